"""Results that are stored part by part."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from support.commands import require_words
from unit.pipeline.conftest import MakePart

from kdcli import console
from kdcli.model_files import SUMS, write_sums
from kdcli.pipeline.cache import exclusive, is_saved, make_in_parts, progress_from, write_rows
from kdcli.pipeline.plan import Run


@pytest.fixture
def run(make_part: MakePart) -> Run:
    return make_part()


@pytest.fixture
def rows() -> datasets.Dataset:
    return datasets.Dataset.from_list([{"id": str(index), "text": f"Text {index}"} for index in range(7)])


class Maker:
    """Makes an upper-case text of each row, and counts the rows."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def __call__(self, part: datasets.Dataset, before: int) -> list[str]:
        assert before == len(self.made)
        self.made += part["id"][:]
        return [text.upper() for text in part["text"]]


def test_parts_are_made_once_and_joined_in_order(run: Run, rows: datasets.Dataset, tmp_path: Path) -> None:
    """A completion that is given to the wrong prompt, or is generated again by a run that was continued."""
    first, second, done = Maker(), Maker(), []
    texts = [text.upper() for text in rows["text"]]
    assert make_in_parts(run, tmp_path / "cache", rows, 3, first, done.append) == texts
    assert done == [3, 6, 7]
    assert make_in_parts(run, tmp_path / "cache", rows, 3, second) == texts
    assert first.made == rows["id"][:]
    assert second.made == []


def test_rows_that_changed_are_made_anew(run: Run, rows: datasets.Dataset, tmp_path: Path) -> None:
    """The same prompts with other completions have the same ids: their scores would be those of the others."""
    make_in_parts(run, tmp_path / "cache", rows, 3, Maker())
    other = rows.map(lambda row: {"text": row["text"].replace("Text 4", "text 4")})
    maker = Maker()
    assert make_in_parts(run, tmp_path / "cache", other, 3, lambda part, _: maker(part, len(maker.made)))
    assert maker.made == ["3", "4", "5"]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[: len(data) // 2],
    "changed": lambda data: data.replace(b"TEXT 1", b"TEXT 9"),
    "another type": lambda data: b"[]",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_part_is_made_again(
    damage: str, run: Run, rows: datasets.Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A part that a full disk truncated would end every later run, and one with a flipped bit would be learnt."""
    make_in_parts(run, tmp_path / "cache", rows, 7, Maker())
    [path] = (tmp_path / "cache").iterdir()
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    maker = Maker()
    with caplog.at_level(logging.WARNING):
        assert make_in_parts(run, tmp_path / "cache", rows, 7, maker) == [t.upper() for t in rows["text"]]
    assert maker.made == rows["id"][:]
    require_words(caplog.text, str(path), "damaged")


def test_a_model_counts_if_it_is_as_it_was_saved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A model whose weights were truncated would be trained further, or exported."""
    folder = tmp_path / "model"
    assert not is_saved(folder)
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    write_sums(folder)
    assert is_saved(folder)
    (folder / "model.safetensors").write_bytes(b"weight")
    with caplog.at_level(logging.WARNING):
        assert not is_saved(folder)
    require_words(caplog.text, str(folder / "model.safetensors"), "again")
    assert (folder / SUMS).is_file()


def test_rows_are_written_for_people(run: Run, rows: datasets.Dataset) -> None:
    """What the teacher wrote must be readable, whatever the script."""
    write_rows(run, "rollouts", [*rows, {"id": "7", "text": "naïve ☃"}])
    lines = (run.folder / "rollouts.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == [*rows["id"], "7"]
    assert "naïve ☃" in lines[-1]


def test_a_folder_is_held_by_one_run(run: Run, tmp_path: Path) -> None:
    """Two runs side by side would tune the same teacher twice, into the same folder."""
    from filelock import FileLock, Timeout

    with exclusive(run, tmp_path / "teacher"), pytest.raises(Timeout):
        FileLock(tmp_path / "teacher.lock").acquire(timeout=0.01)
    FileLock(tmp_path / "teacher.lock").acquire(timeout=1)


def test_progress_counts_from_what_was_done_before() -> None:
    """The bar of the second split would begin at nothing."""
    with console.ProgressStages(["rollouts"]) as stages, stages.stage("rollouts", 20) as stage:
        progress_from(stage, 10)(5)
        assert stage.step == 15
