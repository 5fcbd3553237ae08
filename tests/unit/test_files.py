"""Files that take another's place."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdcli.errors import ConfigError
from kdcli.files import inner_path, named_path, replaced


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
    with pytest.raises(ConfigError, match="leads out of"):
        named_path(run, "export", "cpu", what="hardware")
    with pytest.raises(ConfigError, match="leads out of"):
        inner_path(run, "export/onnx/model.onnx", "artifacts")
    (run / "inner").mkdir()
    (run / "link").symlink_to(run / "inner")
    assert named_path(run, "link", "cpu", what="hardware") == run / "link" / "cpu"
    assert inner_path(run, "inner/onnx/model.onnx", "artifacts") == run / "inner" / "onnx" / "model.onnx"
