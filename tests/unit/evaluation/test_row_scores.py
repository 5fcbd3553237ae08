"""The scores of the rows of a run: damaged ones are named, and are compared with nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.commands import naming

from kdcli.errors import ConfigError
from kdcli.evaluation.row_scores import ROW_SCORES, RowScores

ABOUT = json.dumps({"format": "1", "metric": "accuracy", "rows": "a", "targets": "b"})
WHOLE = {"student": np.ones(5), "teacher": np.zeros(5)}


def written(folder: Path, values: dict[str, np.ndarray], about: str) -> Path:
    path = folder / ROW_SCORES
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(values, path, metadata={"about": about})
    return folder


@pytest.mark.parametrize("about", ["[]", "null", '"x"', "[" * 100_000, "{", '{"format": "1"}'])
def test_damaged_metadata_are_named(tmp_path: Path, about: str) -> None:
    """`kdcli compare` of a run from elsewhere ends as a defect of kdcli."""
    with pytest.raises(ConfigError, match=naming("scores.safetensors", "damaged", "remove it")):
        RowScores.read(written(tmp_path, WHOLE, about))


@pytest.mark.parametrize(
    "values",
    [{}, {"student": np.ones((5, 2))}, {"student": np.ones(5), "teacher": np.ones(4)}, {"student": np.full(5, np.inf)}],
)  # fmt: skip
def test_damaged_scores_are_named(tmp_path: Path, values: dict[str, np.ndarray]) -> None:
    """A shape that numpy cannot subtract, or an infinite interval."""
    with pytest.raises(ConfigError, match=naming("scores.safetensors", "damaged")):
        RowScores.read(written(tmp_path, values, ABOUT))


def test_other_numbers_of_rows_are_other_rows(tmp_path: Path) -> None:
    """Hashes that agree beside scores that do not."""
    whole = RowScores.read(written(tmp_path / "a", WHOLE, ABOUT))
    fewer = RowScores.read(written(tmp_path / "b", {"student": np.ones(3)}, ABOUT))
    assert whole is not None
    assert fewer is not None
    assert whole.same_rows(whole)
    assert not whole.same_rows(fewer)
