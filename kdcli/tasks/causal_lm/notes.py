"""Tells what of the rows counts, what the chat template omits, and which conversations it refuses."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from kdcli.errors import DataError, listed
from kdcli.tasks.causal_lm.chat import COUNTED, KEY, NOTES, ROLE, TOKEN, TURNS, UNWEIGHTED, Rendered

logger = logging.getLogger(__name__)


def log_notes(notes: Mapping[str, int], counted_tokens: int, tokens: int) -> None:
    """Log how many turns and tokens count, and what the chat template omits.

    Args:
        notes: of all training rows (`Rendered.notes`).
        counted_tokens, tokens: their numbers of tokens.
    """
    turns, counted, unweighted = (notes.get(name, 0) for name in (TURNS, COUNTED, UNWEIGHTED))
    weights = f" ({unweighted:,} have the weight 0)" if unweighted else ""
    logger.info(
        "training rows: %s of %s turns of the assistant count%s, %s of %s tokens",
        f"{counted:,}", f"{turns:,}", weights, f"{counted_tokens:,}", f"{tokens:,}",
    )  # fmt: skip
    if missing := turns - counted - unweighted:
        logger.warning(
            "%d of %d turns of the assistant do not count: the chat template does not mark them, or does not write them and the turns that they "
            "answer so that they can be found; use a template that marks them ({%% generation %%})",
            missing,
            turns,
        )
    for name, count in notes.items():
        if count and name in NOTES:
            logger.warning("%d %s", count, NOTES[name])
        elif count and name.startswith(ROLE):
            logger.warning("the chat template omits %d turns of the role %s", count, name.removeprefix(ROLE))
        elif count and name.startswith(TOKEN):
            logger.warning(
                "%d conversations have the special token %s in a content, which the model reads as its own (as the end of a turn, for example); remove it "
                "with dataset.replace, or drop these rows",
                count,
                name.removeprefix(TOKEN),
            )
    if keys := sorted(
        name.removeprefix(KEY) for name, count in notes.items() if count and name.startswith(KEY)
    ):
        logger.info("the chat template does not write these keys of turns: %s", listed(keys))


def refusal(
    rows: Any, turns: Sequence[Sequence[Mapping[str, str]]], rendered: Sequence[Rendered | DataError]
) -> DataError:
    """Return the error for conversations that the chat template refuses: it names the first one, and their number."""
    errors = {index: each for index, each in enumerate(rendered) if isinstance(each, DataError)}
    index, error = next(iter(errors.items()))
    remedy = " (dataset.bad_rows=drop drops them)" * (len(errors) < len(turns))
    return DataError(
        f"row {rows['id'][index]} ({turns[index][0]['content'][:60]!r}): {error.message}; so it is with {len(errors)} of {len(turns)} "
        f"rows{remedy}"
    )
