"""Reads rows of translation: pairs of a source and its target."""

from __future__ import annotations

import itertools
import logging
import statistics
from collections import Counter
from collections.abc import Callable
from typing import Any

from kdcli.config.dataset import Dataset as DatasetConfig
from kdcli.tasks.rows import Row, RowSchema, fold_white_space, require_text, row_hash
from kdcli.tasks.seq2seq.scripts import SIDES, Side, fits, script_of

logger = logging.getLogger(__name__)


class Seq2SeqRows(RowSchema):
    """Reads columns source and target. White space is folded, and pairs are duplicates if all of their characters are equal.

    Rows with the same source, up to case, stay in one split.
    """

    keys = "dataset.source= and dataset.target="
    shared = "source"

    def __init__(self, cfg: DatasetConfig):
        super().__init__(cfg)
        folder = cfg.spec.formats.get(cfg.format)
        self.columns = list(folder.columns) if folder else [str(cfg.source), str(cfg.target)]

    def check(self, values: tuple[Any, ...], where: str) -> tuple[Any, ...]:
        """Check that the values are two texts, or a source alone."""
        return tuple(
            require_text(value, f"the {side}", where) for side, value in zip(SIDES, values, strict=False)
        )

    def row(self, values: tuple[Any, ...], where: str) -> Row | None:
        """Make a row whose id is a hash of both texts."""
        pair = [fold_white_space(self.replaced(text)) for text in values]
        return {"id": row_hash(pair), **dict(itertools.zip_longest(SIDES, pair))} if all(pair) else None

    def hide(self, row: Row) -> None:
        """Remove the target. The row gets another id, because results cached under the id of the pair may depend on the target."""
        row |= {"id": row_hash([row["id"], "hidden"]), "target": None}

    def group(self, row: Row) -> str:
        """Return a hash of the case-folded source."""
        return row_hash([row["source"].casefold()])

    def filtered(self, train: list[Row]) -> tuple[list[Row], Counter[str]]:
        """Drop copies, pairs with an unusual ratio of lengths, and pairs in other scripts than the rest. Warn if the columns are not in the
        scripts of their languages."""
        clean = self.cfg.clean
        rows, dropped = train, Counter[str]()

        def drop(why: str, wrong: Callable[[Row], bool]) -> None:
            nonlocal rows
            count = len(rows)
            rows = [row for row in rows if not wrong(row)]
            dropped[why] += count - len(rows)

        if clean.identical:
            drop("identical", lambda row: row["source"] == row["target"])
        sides = [Side(name, rows) for name in SIDES]
        self._compare(sides)
        if clean.max_ratio and rows:
            limit = clean.max_ratio
            usual = statistics.median(len(row["target"]) / len(row["source"]) for row in rows)

            def uneven(row: Row) -> bool:
                source, target = len(row["source"]), len(row["target"])
                ratio = target / source / usual
                return max(source, target) >= clean.ratio_from and max(ratio, 1 / ratio) > limit

            drop("length ratio", uneven)
        if clean.script:
            drop("wrong script", lambda row: any(side.strange(row) for side in sides))
        return rows, +dropped

    def _compare(self, sides: list[Side]) -> None:
        """Warn if a side is not in the script of its language: most often, source and target are swapped."""
        codes = [self.cfg.source_language, self.cfg.target_language]
        expected = [script_of(code or "") for code in codes]
        wrong = [
            f"the {side.name} is written in {' and '.join(side.own)} letters, dataset.{side.name}_language = {code} is in {script}"
            for side, code, script in zip(sides, codes, expected, strict=True)
            if not fits(script, side)
        ]
        if not wrong:
            return
        if all(map(fits, expected, reversed(sides))):
            remedy = "source and target seem to be swapped: exchange dataset.source and dataset.target, or the two languages"
        else:
            remedy = "name the languages that the data has, or other columns"
        logger.warning("%s: %s; %s", self.cfg.path, "; ".join(wrong), remedy)
