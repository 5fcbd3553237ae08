"""Files that take another's place."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from support.commands import naming, require_words
from typing_extensions import TypedDict

from kdcli.errors import ConfigError
from kdcli.files import inner_path, named_path, read_json, read_jsonl, replaced, storage_error


def test_what_stands_there_stays_until_the_other_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export that is interrupted at the last moment, and takes the one before it along."""
    place = tmp_path / "cpu"
    place.mkdir()
    (place / "model.onnx").write_text("old")
    own = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if target == place and self.name == "cpu":
            raise KeyboardInterrupt
        return own(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), replaced(place) as temporary:
        temporary.mkdir()
    assert (place / "model.onnx").read_text() == "old"
    assert list(tmp_path.iterdir()) == [place]
    monkeypatch.undo()
    with replaced(place) as temporary:
        temporary.mkdir()
        (temporary / "model.onnx").write_text("new")
    assert (place / "model.onnx").read_text() == "new"
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "...", "../x", "a/b", "/etc", "a\\b", "cpu/../cpu", "a..b", ".hidden", "-rf", "a b", "a\n", "a\nb", "a\0b", "é",
        "C:", "x:y", "*", "?", "~", "$HOME", "con", "CON.txt", "nul", "Lpt1.json", "end.", "x" * 101, "x" * 5000,
    ],
)  # fmt: skip
def test_a_name_that_leaves_its_folder_or_is_none_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    """A path that a recorded name takes out of the folder; a run that another system cannot copy."""
    with pytest.raises(ConfigError, match="stages") as refused:
        named_path(tmp_path, name, what="stages")
    assert len(refused.value.message) < 500


@pytest.mark.parametrize(
    "name", ["cpu", "model.int8.onnx", "first_stage", "2", "A-b_c.9", "console", "x" * 100]
)
def test_an_ordinary_name_is_a_path_below_its_folder(name: str, tmp_path: Path) -> None:
    """A rule that refuses what people call their stages and devices."""
    assert named_path(tmp_path, "export", name, what="hardware") == tmp_path / "export" / name


@pytest.mark.parametrize(
    "relative", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "./a", "C:/x", "a\\..\\x", "a\0"]
)
def test_a_recorded_path_stays_below_its_folder(relative: str, tmp_path: Path) -> None:
    """A file anywhere on the disk that a foreign export.json makes kdcli read."""
    with pytest.raises(ConfigError, match="artifacts"):
        inner_path(tmp_path, relative, "artifacts")


def test_a_link_does_not_lead_out_of_a_folder(tmp_path: Path) -> None:
    """A foreign run whose export/ is a link into the user's home, which is then written to."""
    run, outside = tmp_path / "run", tmp_path / "home"
    run.mkdir()
    outside.mkdir()
    (run / "export").symlink_to(outside)
    with pytest.raises(ConfigError, match=naming("hardware", f"{run}/export/cpu", "link", f"{outside}/cpu")):
        named_path(run, "export", "cpu", what="hardware")
    with pytest.raises(
        ConfigError,
        match=naming("artifacts", f"{run}/export/onnx/model.onnx", "link", f"{outside}/onnx/model.onnx"),
    ):
        inner_path(run, "export/onnx/model.onnx", "artifacts")
    (run / "inner").mkdir()
    (run / "link").symlink_to(run / "inner")
    assert named_path(run, "link", "cpu", what="hardware") == run / "link" / "cpu"
    assert inner_path(run, "inner/onnx/model.onnx", "artifacts") == run / "inner" / "onnx" / "model.onnx"


class Record(TypedDict):
    name: str
    steps: list[int]


DAMAGE = {
    "empty": b"",
    "cut": b'{"name": "a", "ste',
    "garbage": b"\x00\xff\x93garbage",
    "null": b"null",
    "a list": b"[1, 2]",
    "a key is missing": b'{"name": "a"}',
    "a key has another type": b'{"name": "a", "steps": [1, "two"]}',
    "deep": b"[" * 100_000,
    "a huge number": b'{"name": "a", "steps": [' + b"1" * 10_000 + b"]}",
}


@pytest.mark.parametrize("data", DAMAGE.values(), ids=DAMAGE)
def test_damaged_json_is_named_with_the_remedy(tmp_path: Path, data: bytes) -> None:
    """A file that was cut by a crash ends every later command in a traceback, or in a KeyError far away."""
    path = tmp_path / "record.json"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=naming("record.json", "damaged", "make it again")) as refused:
        read_json(path, Record, "make it again")
    assert len(refused.value.message) < 500 + len(str(path))


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    """A named pipe in the place of a file keeps the command waiting for ever."""
    os.mkfifo(tmp_path / "record.json")
    with pytest.raises(ConfigError, match=naming("record.json", "regular file")):
        read_json(tmp_path / "record.json", dict, "")
    with pytest.raises(ConfigError, match=naming("record.json", "regular file")):
        read_jsonl(tmp_path / "record.json", dict)
    with pytest.raises(ConfigError, match=naming("missing.json", "no such file")):
        read_json(tmp_path / "missing.json", dict, "")


def test_whole_json_is_read_as_it_was_written(tmp_path: Path) -> None:
    """A reader that checks types also converts them, or drops the keys that it does not know."""
    path = tmp_path / "record.json"
    path.write_text('{"name": "a", "steps": [1, 2], "other": 0.1, "none": NaN}')
    found: Any = read_json(path, Record, "")
    assert found | {"none": None} == {"name": "a", "steps": [1, 2], "other": 0.1, "none": None}


def test_lines_of_a_killed_process(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The half line that a kill leaves costs the whole log, or a damaged line passes without a word."""
    path = tmp_path / "lines.jsonl"
    assert read_jsonl(path, Record) == []
    whole = [{"name": str(number), "steps": [number]} for number in range(3)]
    text = '{"name": "0", "steps": [0]}\n{"name": "1", "steps": [1]}\n'
    path.write_text(text + '{"name": "2", "st')
    assert read_jsonl(path, Record, "restore it") == whole[:2]
    path.write_text(text + '{"name": "2", "steps": [2]}')
    assert read_jsonl(path, Record, "restore it") == whole
    assert not caplog.records
    path.write_text(text + "null\n" + '{"name": "2", "steps": [2]}\n')
    assert read_jsonl(path, Record) == whole
    require_words(caplog.text, "lines.jsonl", "1 damaged", "line 3")
    with pytest.raises(ConfigError, match=naming("lines.jsonl", "damaged", "line 3", "restore it")):
        read_jsonl(path, Record, "restore it")


def test_a_file_is_on_the_disk_before_it_replaces_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a loss of power the new name has an empty file, and the old one is gone."""
    steps: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr("os.fsync", lambda descriptor: (steps.append("sync"), sync(descriptor))[1])
    monkeypatch.setattr("os.rename", lambda *names: (steps.append("replace"), replace(*names))[1])
    with replaced(tmp_path / "record.json") as temporary:
        temporary.write_text("{}")
    assert steps == ["sync", "replace", "sync"]


def test_a_copy_that_does_not_fit_names_the_copy() -> None:
    """The message names the source of the copy, and the free space of a disk that is not full."""
    failure = storage_error(OSError(errno.ENOSPC, "No space left", "/source/file", None, "/copy/file"))
    assert failure is not None
    assert failure.message.startswith("/copy/file cannot be written")
