"""Reads the seeds of a run: one, several from `seed` on, or a list."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from kdcli.config.types import Int, Seed
from kdcli.errors import shown

MOST_SEEDS = 100
"""The maximum number of seeds of a run."""
END = 2**32
"""The exclusive upper bound of a seed."""


def _is_seed(value: Any) -> bool:
    return type(value) is int and 0 <= value < END


def check_seeds(value: Any) -> Any:
    """Check a number of seeds, or a list of them.

    Raises:
        ValueError: there is none, one is given twice, or one is no seed.
    """
    if isinstance(value, list):
        if not 1 <= len(value) <= MOST_SEEDS:
            raise ValueError(
                f"expected 1 to {MOST_SEEDS} seeds, such as [0,5,9]; leave it out for the one of seed="
            )
        if wrong := [seed for seed in value if not _is_seed(seed)]:
            raise ValueError(f"{shown(wrong[0])} is no seed: expected an integer from 0 to {END - 1}")
        if twice := [seed for seed in value if value.count(seed) > 1]:
            raise ValueError(
                f"{twice[0]} is given twice, and one seed trains one model; give different seeds"
            )
    elif value is not None and (type(value) is not int or not 1 <= value <= MOST_SEEDS):
        raise ValueError(f"expected a number of seeds from 1 to {MOST_SEEDS}, or a list, such as [0,5,9]")
    return value


Seeds = Annotated[
    Annotated[Int, Field(ge=1, le=MOST_SEEDS)] | Annotated[list[Seed], Field(min_length=1)] | None,
    BeforeValidator(check_seeds),
]


def with_first_seed(tree: Any) -> Any:
    """Return a run's config in which `seed` is the first one of the list `seeds`, if there is a list. The default of `seed` stands for none.

    Raises:
        ValueError: `seed` is another one, or the last of several seeds is too large.
    """
    if not isinstance(tree, Mapping):
        return tree
    seeds, seed = tree.get("seeds"), tree.get("seed", 0)
    if type(seeds) is int and _is_seed(seed) and seed + seeds > END:
        raise ValueError(f"seeds = {seeds}: the last one would be {seed + seeds - 1}; give a smaller seed=")
    if not isinstance(seeds, list) or not seeds or not _is_seed(seeds[0]) or seed == seeds[0]:
        return tree
    if seed != 0:
        raise ValueError(
            f"seed = {shown(seed)}: the first of seeds = {shown(seeds)} is the run's; leave seed out"
        )
    return {**tree, "seed": seeds[0]}


def all_seeds(seed: int, seeds: int | list[int] | None) -> list[int]:
    """Return every seed of a run, its own first."""
    return seeds if isinstance(seeds, list) else [*range(seed, seed + (seeds or 1))]


def with_seed(name: str, seed: int | None) -> str:
    """Return the name of a phase or a model of a further seed: student@5/first, control@5. No stage of a config has a name with @.

    Args:
        seed: None: the first one, whose name is that of the model.
    """
    if seed is None:
        return name
    model, slash, phase = name.partition("/")
    return f"{model}@{seed}{slash}{phase}"
