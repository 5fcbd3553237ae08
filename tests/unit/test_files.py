"""Files that take another's place."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdcli.files import replaced


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
