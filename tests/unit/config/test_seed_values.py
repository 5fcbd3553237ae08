"""The seeds of a run: which values of `seeds` are understood, and as which seeds."""

from __future__ import annotations

from typing import Any

import pytest
from support.commands import naming

from kdcli.config.check import check_values
from kdcli.config.schema import Distill
from kdcli.errors import ConfigError


def config(**own: Any) -> Distill:
    """A config with these keys, in whose classes nothing is checked."""
    parts = {"teacher": "t", "student": "s", "hardware": "h"}
    tree = {name: {"_target_": target} for name, target in parts.items()}
    given = {"dataset": {"path": "rows.csv"}, "loss": {"hard_label": {"_target_": "l"}}}
    return check_values(Distill, {"seed": 0, **tree, **given, **own})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, [0]),
        ({"seeds": None, "seed": 7}, [7]),
        ({"seeds": 1, "seed": 7}, [7]),
        ({"seeds": 3}, [0, 1, 2]),
        ({"seeds": 3, "seed": 7}, [7, 8, 9]),
        ({"seeds": [5, 9]}, [5, 9]),
        ({"seeds": [5, 9], "seed": 5}, [5, 9]),
        ({"seeds": [9, 0]}, [9, 0]),
        ({"seeds": [2**32 - 1]}, [2**32 - 1]),
        ({"seeds": 2, "seed": 2**32 - 2}, [2**32 - 2, 2**32 - 1]),
    ],
)
def test_the_seeds_of_a_run(given: dict[str, Any], expected: list[int]) -> None:
    """A seed that is trained twice or not at all; a teacher of seed 0 beside students of 5 and 9."""
    cfg = config(**given)
    assert cfg.all_seeds == expected
    assert cfg.seed == expected[0]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"seeds": []}, ["seeds", "[]", "[0,5,9]"]),
        ({"seeds": 0}, ["seeds", "0", "1 to 100"]),
        ({"seeds": 101}, ["seeds", "101", "1 to 100"]),
        ({"seeds": True}, ["seeds", "True"]),
        ({"seeds": 2.5}, ["seeds", "2.5"]),
        ({"seeds": "many"}, ["seeds", "'many'"]),
        ({"seeds": {"a": 1}}, ["seeds", "a list"]),
        ({"seeds": [1, 2, 1]}, ["seeds", "[1, 2, 1]", "1 is given twice"]),
        ({"seeds": [3, -1]}, ["seeds", "-1", "4294967295"]),
        ({"seeds": [2**32]}, ["seeds", "4294967296"]),
        ({"seeds": [True]}, ["seeds", "True"]),
        ({"seeds": ["a"]}, ["seeds", "'a'"]),
        ({"seeds": [*range(101)]}, ["seeds", "1 to 100"]),
        ({"seeds": [5, 9], "seed": 7}, ["seed", "7", "[5, 9]", "leave seed out"]),
        ({"seeds": 2, "seed": 2**32 - 1}, ["seeds", "4294967296", "seed="]),
    ],
)
def test_what_is_no_set_of_seeds_is_refused(given: dict[str, Any], words: list[str]) -> None:
    """One seed counted twice makes the interval too narrow; a message of three lines for one mistake hides it."""
    with pytest.raises(ConfigError, match=naming("the config is wrong", *words)):
        config(**given)
