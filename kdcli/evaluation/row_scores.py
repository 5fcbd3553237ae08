"""Stores the scores of each test row, so that runs and exports can be compared on the same rows. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kdcli.errors import ConfigError
from kdcli.files import replaced
from kdcli.tasks.notation import decode_json

if TYPE_CHECKING:
    import numpy as np

    from kdcli.evaluation.statistics import Gain
ROW_SCORES = Path("predictions", "scores.safetensors")
"""The path of the scores of the test rows in a run directory or an exported folder."""
FORMAT = "1"


@dataclass(frozen=True)
class RowScores:
    """The shares of the test rows in the headline metric.

    Attributes:
        metric: the headline metric.
        rows: the hash of the ids of the rows, in their order.
        targets: the hash of what the models must predict there: the labels, their counts and the references.
        values: for each model the share of each row, float64 (rows,): the mean of the shares is the score.
    """

    metric: str
    rows: str
    targets: str
    values: Mapping[str, np.ndarray]

    def write(self, folder: Path) -> None:
        """Write `ROW_SCORES` below a folder: 8 bytes for each row and model."""
        from safetensors.numpy import save_file

        about = {"format": FORMAT, "metric": self.metric, "rows": self.rows, "targets": self.targets}
        with replaced(folder / ROW_SCORES) as temporary:
            # one entry, since safetensors writes several in any order, and a continued run has the same bits
            save_file(dict(self.values), temporary, metadata={"about": json.dumps(about)})

    @classmethod
    def read(cls, folder: Path) -> RowScores | None:
        """Return the scores that a folder holds; None: an earlier version wrote it, and stored none.

        Raises:
            ConfigError: the file is damaged.
        """
        import numpy as np
        from safetensors import SafetensorError, safe_open

        path = folder / ROW_SCORES
        if not path.is_file():
            return None
        try:
            with safe_open(path, "numpy") as file:
                about = decode_json((file.metadata() or {}).get("about", "{}"))
                values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if not isinstance(about, dict):
                raise ValueError("its metadata is not a mapping")
            if about.get("format") != FORMAT:
                return None
            if len({value.shape for value in values.values()}) != 1 or any(
                value.ndim != 1 for value in values.values()
            ):
                raise ValueError("its models have different numbers of rows")
            if not all(np.isfinite(value).all() for value in values.values()):
                raise ValueError("a score is not finite")
            return cls(about["metric"], about["rows"], about["targets"], values)
        except (SafetensorError, KeyError, OSError, ValueError, TypeError) as error:
            raise ConfigError(
                f"{path} is damaged ({error}); remove it, and intervals are no longer paired"
            ) from None

    def same_rows(self, other: RowScores) -> bool:
        """Return whether the models of both had to predict the same on the same rows, and are judged by the same metric."""
        sizes = {len(value) for each in (self, other) for value in each.values.values()}
        same = (self.metric, self.rows, self.targets) == (other.metric, other.rows, other.targets)
        return same and len(sizes) == 1

    def gain(self, model: str, other: RowScores, baseline: str) -> Gain:
        """Return the score of a model less that of a baseline on the same rows, with its paired 95 % interval."""
        from kdcli.evaluation.statistics import paired_gain

        return paired_gain(self.values[model] - other.values[baseline])
