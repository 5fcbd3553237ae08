"""What makes the results on a data set doubtful is told before any training."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from support.commands import require_words
from support.tiny import write_csv

from kdcli.config.dataset import Dataset
from kdcli.data.dataset import Data, load
from kdcli.data.near_duplicates import clusters, near_duplicates
from kdcli.data.splits import SPLITS
from kdcli.data.suspicions import find_suspicions, require_several_classes
from kdcli.errors import DataError

Rows = list[tuple[str, str]]
RANDOM = random.Random(7)
VOCABULARY = ["".join(RANDOM.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(900)]
TEXTS = [" ".join(RANDOM.choices(VOCABULARY, k=12)) for _ in range(400)]
ROWS: Rows = [(text, "good" if number % 2 else "bad") for number, text in enumerate(TEXTS)]


def config(path: Path, rows: Rows, **keys: Any) -> Dataset:
    return Dataset.model_validate({"path": str(write_csv(path, rows)), "format": "csv", **keys})


def suspicions(cfg: Dataset, data: Data) -> dict[str, dict[str, Any]]:
    return {each["kind"]: each for each in [*data.suspicions, *find_suspicions(cfg, data)]}


def test_a_clean_data_set_is_not_suspicious(tmp_path: Path) -> None:
    """A warning for every data set is one that nobody reads."""
    cfg = config(tmp_path / "a.csv", ROWS)
    assert suspicions(cfg, load(cfg)) == {}


def changed(text: str, number: int) -> str:
    """A near-duplicate: one word more, a letter less, or punctuation and case."""
    return [f"{text} indeed", text[:10] + text[11:], text.title().replace(" ", ", ") + "!"][number % 3]


def test_near_duplicates_between_test_and_train(tmp_path: Path) -> None:
    """A test split of training rows with another punctuation: the score is of what was learnt by heart."""
    test = [(changed(text, number), label) for number, (text, label) in enumerate(ROWS[:30])]
    test += [(" ".join(reversed(text.split())), label) for text, label in ROWS[30:60]]
    given = str(write_csv(tmp_path / "test.csv", test))
    cfg = config(tmp_path / "a.csv", ROWS, test=given, validation_size=20)
    data = load(cfg)
    own = suspicions(cfg, data)["near_duplicates"]
    assert (own["key"], len(data["test"])) == ("dataset.near_duplicates", 60)
    assert 0.4 < own["share"] < 0.5  # some are near-duplicates of validation rows
    require_words(own["text"], "60 rows of test", "near-duplicate", "train", "dataset.near_duplicates=group")
    ignored = config(tmp_path / "a.csv", ROWS, test=given, validation_size=20, near_duplicates="ignore")
    assert suspicions(ignored, load(ignored)) == {}
    group = config(tmp_path / "a.csv", ROWS, test=given, validation_size=20, near_duplicates="group")
    grouped = load(group)
    assert len(grouped["test"]) == 60
    assert not near_duplicates(grouped["test"]["text"][:], grouped["train"]["text"][:])


def test_near_duplicates_are_in_one_split(tmp_path: Path) -> None:
    """The second version of a text is in test, the first one in train."""
    rows = [(changed(text, number) if copy else text, label)
            for copy in range(2) for number, (text, label) in enumerate(ROWS)]  # fmt: skip
    data = load(config(tmp_path / "a.csv", rows, near_duplicates="group", test_size=0.2))
    assert sum(len(data[split]) for split in SPLITS) == 800
    for first, second in (("train", "test"), ("train", "validation"), ("validation", "test")):
        assert not near_duplicates(data[first]["text"][:], data[second]["text"][:])


def test_texts_that_are_compared() -> None:
    """Short texts, texts of one sign and texts in other scripts are all called the same, or end in a traceback."""
    assert near_duplicates(["", "?", "a"], ["", "!", "b"]) == {}
    assert near_duplicates([], ["a"]) == near_duplicates(["a"], []) == {}
    assert near_duplicates(["Good film!"], ["bad film", "good  film"]) == {0: 1}
    assert near_duplicates(["今日は天気がいいですね。"], ["今日は天気がいいですね"]) == {0: 0}
    assert clusters(["one text of several words", "another one", "One text of several words!"]) == [0, 1, 0]


def test_labels_that_contradict_each_other(tmp_path: Path) -> None:
    """No score can be above the share of texts whose label is a matter of opinion, and no word of it."""
    for extra, told in ((4, False), (40, True)):
        rows = [*ROWS, *((text, "bad" if label == "good" else "good") for text, label in ROWS[:extra])]
        cfg = config(tmp_path / f"{extra}.csv", rows)
        found = suspicions(cfg, load(cfg))
        assert ("contradicting_labels" in found) == told
        if told:
            own = found["contradicting_labels"]
            assert (own["rows"], own["share"], own["key"]) == (40, 0.1, "dataset.duplicates")


def test_classes_that_a_split_lacks(tmp_path: Path) -> None:
    """A class of one row is never tested, and a given validation split lacks one: the scores say nothing of them."""
    cfg = config(tmp_path / "a.csv", [*ROWS, ("the only rare text", "rare")])
    missing = [each for each in find_suspicions(cfg, load(cfg)) if each["kind"] == "missing_classes"]
    assert [each["split"] for each in missing] == ["validation", "test"]
    require_words(missing[1]["text"], "test lacks 1 of 3 classes", "rare: 1", "dataset.test_size")
    given = str(write_csv(tmp_path / "validation.csv", ROWS[:40]))
    rare = [(f"{text} rarely", "rare") for text in TEXTS[300:340]]
    cfg = config(tmp_path / "b.csv", [*ROWS, *rare], validation=given)
    missing = [each for each in find_suspicions(cfg, load(cfg)) if each["kind"] == "missing_classes"]
    assert [each["split"] for each in missing] == ["validation"]


def test_a_validation_split_of_one_class_is_refused(tmp_path: Path) -> None:
    """A teacher that is always right is no better than chance there, and any student is chosen."""
    given = str(write_csv(tmp_path / "validation.csv", [row for row in ROWS if row[1] == "good"][:40]))
    for keys, remedy in (
        ({"validation": given}, "dataset.validation="),
        ({"validation_size": 1}, "dataset.validation_size"),
    ):
        cfg = config(tmp_path / "a.csv", ROWS, **keys)
        with pytest.raises(DataError) as caught:
            require_several_classes(cfg, load(cfg))
        require_words(caught.value.message, "validation", "rows", remedy)
    rows = [(text, "rare" if number % 50 == 7 else "common") for number, text in enumerate(TEXTS)]
    cfg = config(tmp_path / "b.csv", rows, eval_limit=4)
    require_several_classes(cfg, load(cfg))


def test_rows_that_are_all_equal(tmp_path: Path) -> None:
    """A file of one text a thousand times is refused for a split size."""
    with pytest.raises(DataError) as caught:
        load(config(tmp_path / "a.csv", [("the same text", "good")] * 50 + [("THE SAME TEXT", "bad")] * 3))
    require_words(caught.value.message, "a.csv", "duplicates", "rows")
