"""Splits that are carved out of the training rows: by hash, with each class, and groups together."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.commands import require_words
from support.tiny import write_csv

from kdcli.config.dataset import Dataset
from kdcli.data.dataset import Data, load
from kdcli.data.splits import SPLITS, in_order, position
from kdcli.errors import DataError
from kdcli.files import digest
from kdcli.tasks.rows import row_hash

Rows = list[tuple[str, str]]


def texts_of(count: int, begin: int = 0) -> Rows:
    return [
        (f"text number {number}", "good" if number % 2 else "bad") for number in range(begin, begin + count)
    ]


def read(path: Path, rows: Rows, **keys: Any) -> Data:
    return load(Dataset.model_validate({"path": str(write_csv(path, rows)), "format": "csv", **keys}))


def split_of(data: Data) -> dict[str, str]:
    """The split of each text."""
    return {text: split for split in SPLITS for text in data[split]["text"][:]}


def classes(data: Data, split: str) -> Counter[str]:
    return Counter(data.labels[label] for label in data[split]["label"][:])


def test_more_rows_move_no_old_one(tmp_path: Path) -> None:
    """A file that grows puts rows that were learned into test, and two runs judge on other rows."""
    data = []
    for rows in (300, 1500):
        path = tmp_path / f"{rows}.jsonl"
        path.write_text("".join(json.dumps({"p": f"prompt {row}", "c": "x"}) + "\n" for row in range(rows)))
        data.append(load(Dataset.model_validate({"path": str(path), "prompt": "p", "completion": "c"})))
        for split in ("validation", "test"):
            assert 0.05 * rows < len(data[-1][split]) < 0.15 * rows
    before, after = (
        {(split, text) for split in SPLITS for text in each[split]["prompt"][:]} for each in data
    )
    assert before <= after


def test_more_rows_of_a_class_move_those_alone_that_are_near_the_border(tmp_path: Path) -> None:
    """Splits that are exact in each class choose most of their rows anew whenever the file grows."""
    few, many = (split_of(read(tmp_path / f"{rows}.csv", texts_of(rows))) for rows in (3000, 15000))
    moved = [text for text in few if few[text] != many[text]]
    assert len(moved) < 0.01 * len(few)
    assert not any({few[text], many[text]} == {"validation", "test"} for text in moved)


@pytest.mark.parametrize("count", [40, 100, 600, 3000])
@pytest.mark.parametrize(
    "sizes", [{}, {"validation_size": 0.2, "test_size": 0.3}, {"test_size": 19, "validation_size": 8}]
)
def test_splits_have_each_class_in_proportion(tmp_path: Path, count: int, sizes: dict[str, float]) -> None:
    """13 rows of test in 501 for 18 in 618: by chance, the rare class is judged by twice its share, or by half."""
    names = ["rare"] * 3 + ["medium"] * 27 + ["common"] * 70
    rows = [(f"text {number}", names[number * 37 % 100]) for number in range(count)]
    totals = Counter(label for _, label in rows)
    data = read(tmp_path / "a.csv", rows, **sizes)
    for split in ("validation", "test"):
        size = sizes.get(f"{split}_size", 0.1)
        for label, total in totals.items():
            expected = size * total if size < 1 else size * total / count
            if expected >= 1:
                slack = max(1, 0.1 * expected) if size < 1 else 1
                assert abs(classes(data, split)[label] - expected) <= slack, (split, label, expected)
    if "test_size" in sizes and sizes["test_size"] >= 1:
        assert [len(data[split]) for split in ("test", "validation")] == [19, 8]


def test_a_test_row_is_never_a_validation_row_of_another_size(tmp_path: Path) -> None:
    """A smaller test split hands its rows to validation, which then chooses the student by them."""
    rows = texts_of(600)
    small, large = (
        read(tmp_path / "a.csv", rows, test_size=0.1),
        read(tmp_path / "b.csv", rows, test_size=0.4),
    )
    assert {*small["test"]["text"][:]} < {*large["test"]["text"][:]}
    assert small["validation"]["text"][:] == large["validation"]["text"][:]
    counted = read(tmp_path / "c.csv", rows, test_size=10, validation_size=25)
    assert [len(counted[split]) for split in ("test", "validation")] == [10, 25]
    assert {*counted["test"]["text"][:]} <= {*small["test"]["text"][:]}
    assert {*counted["validation"]["text"][:]} <= {*small["validation"]["text"][:]}


@pytest.mark.parametrize("sizes", [{}, {"validation_size": 62, "test_size": 62}])
def test_a_rare_class_is_in_every_split(tmp_path: Path, sizes: dict[str, int]) -> None:
    """62 validation rows of one class: a teacher that is always right is no better than chance, and the run is refused."""
    rows = [(f"text number {number}", "rare" if number % 206 == 7 else "common") for number in range(618)]
    data = read(tmp_path / "a.csv", rows, **sizes)
    assert {split: classes(data, split)["rare"] for split in SPLITS} == dict.fromkeys(SPLITS, 1)
    if sizes:
        assert [len(data[split]) for split in SPLITS] == [494, 62, 62]


def test_the_rows_of_a_rare_class_go_to_train_and_test_first(tmp_path: Path) -> None:
    """A class that only test has cannot be learned, and one that only validation has is never judged."""
    common = [(f"text number {number}", "common") for number in range(200)]
    for count, having in ((1, {"train"}), (2, {"train", "test"}), (3, {*SPLITS})):
        for draw in range(4):
            rare = [(f"rare {draw} {number}", "rare") for number in range(count)]
            data = read(tmp_path / "a.csv", [*common, *rare])
            assert {split for split in SPLITS if classes(data, split)["rare"]} == having, (count, draw)


def test_many_rare_classes_leave_rows_to_train_on(tmp_path: Path) -> None:
    """Of 150 classes of three rows each, two thirds of the rows are tested on."""
    rows = [(f"text number {number}", f"class {number % 150}") for number in range(450)]
    data = read(tmp_path / "a.csv", rows)
    assert len(data["train"]) > 250
    assert min(len(data["test"]), len(data["validation"])) > 20


def test_tags_are_in_every_split(tmp_path: Path) -> None:
    """An entity type that test lacks has no score, though the data has it."""
    rows = [{"words": ["see", f"word{number}"], "tags": ["O", "B-LOC" if number % 100 == 7 else "O"]}
            for number in range(400)]  # fmt: skip
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = load(Dataset.model_validate({"path": str(path), "words": "words", "tags": "tags"}))
    for split in SPLITS:
        assert data.labels.index("B-LOC") in {tag for tags in data[split]["label"][:] for tag in tags}, split


def test_a_group_that_is_larger_than_a_split_is_trained_on(tmp_path: Path) -> None:
    """One prompt with half of all rows becomes the test split, by chance."""
    rows = [(f"prompt {number}", "an answer") for number in range(100)]
    rows += [("Tell a joke.", f"joke {number}") for number in range(100)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"p": prompt, "c": answer}) + "\n" for prompt, answer in rows))
    data = load(
        Dataset.model_validate({"path": str(path), "prompt": "p", "completion": "c", "test_size": 0.3})
    )
    assert Counter(data["train"]["prompt"][:])["Tell a joke."] == 100
    assert len(data["test"]) < 60


def test_few_rows_are_split(tmp_path: Path) -> None:
    """The hash leaves no row for test, or none to train on."""
    for count in range(6, 20):
        data = read(tmp_path / f"{count}.csv", [("one more", "good"), *texts_of(count)])
        assert all(len(data[split]) for split in SPLITS)
    with pytest.raises(DataError) as caught:
        read(tmp_path / "a.csv", texts_of(2))
    require_words(caught.value.message, "a.csv", "dataset.test=", "more rows")


def test_groups_of_a_task_of_ones_own_need_not_be_hashes() -> None:
    """A traceback for a group that is the name of a document."""
    assert all(0.01 < position(group) < 1 for group in ("chapter one", "cafe", ""))
    assert position("8" + "0" * 31) == 0.5


def test_ids_and_order_are_those_of_the_definition() -> None:
    """A faster way to hash or to sort rows moves rows of old data to other splits, and stored outputs are computed anew."""
    contents: list[list[Any]] = [
        ["a"],
        ['ä " \\ \u2028 \n', "b"],
        ["x", 1],
        [[{"b": 1, "a": [None]}], "t"],
        [],
    ]
    for content in contents:
        assert row_hash(content) == digest(content)[:32]
    hashes = [row_hash([number]) for number in range(300)]
    hashes += [f"{group[:14]}{other}" for group, other in itertools.pairwise(hashes)]
    for groups in hashes, [*hashes, "ann", "b" * 20]:
        assert in_order(groups) == sorted(groups, key=lambda group: (position(group), group))
