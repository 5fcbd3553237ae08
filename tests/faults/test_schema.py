"""Any value at any key of a config: it is taken, or it is refused by its key, soon."""

from __future__ import annotations

import contextlib
import copy
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from faults.harness import LONGEST_MESSAGE, Batch, batches, require_clean, run_process
from faults.odd import nested

from kdcli.config.check import check, defaults
from kdcli.config.schema import COMMANDS
from kdcli.errors import ConfigError

COMPONENTS: dict[str, dict[str, Any]] = {
    "teacher": {"_target_": "kdcli.teachers.local.LocalTeacher", "batch_size": 64, "path": "t"},
    "student": {
        "_target_": "kdcli.students.from_config.FromConfig", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
        "intermediate_size": 8,
    },
    "hardware": {"_target_": "kdcli.exporting.targets.cpu.Cpu", "precisions": ["fp32"]},
    "dataset": {"path": "d.csv"},
}  # fmt: skip
STAGE = {
    "trainer": {"epochs": 1.0},
    "loss": {"soft": {"_target_": "kdcli.losses.jsd.JSD", "beta": 0.5, "temperature": 1.0}},
}


def whole(command: str) -> dict[str, Any]:
    """A config that is complete."""
    tree = defaults(COMMANDS[command])
    for key in tree.keys() & COMPONENTS.keys():
        tree[key] |= copy.deepcopy(COMPONENTS[key])
    if command == "distill":
        tree["loss"] = copy.deepcopy(STAGE["loss"])
        tree["stages"] = {"first": copy.deepcopy(STAGE)}
    return tree | ({} if command == "distill" else {"run": "somewhere"})


def keys(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield (*path, key)
            yield from keys(value, (*path, key))


@pytest.fixture(scope="module", autouse=True)
def right() -> None:
    """The whole configs are right before anything in them is changed; and what they name is imported by then, which takes seconds."""
    for command in COMMANDS:
        check(COMMANDS[command], whole(command))


def placed(source: random.Random) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """A mapping with a value of any kind at any key of a run's config, and the path of the key."""
    path = source.choice(list(keys(whole("distill"))))
    tree: Any = nested(source)
    for key in reversed(path):
        tree = {key: tree}
    return tree, path


@pytest.mark.parametrize("batch", batches(100, quick=0, size=10))
def test_any_value_in_a_file_in_a_process(batch: Batch, tmp_path: Path) -> None:
    """Hydra, OmegaConf and the reader of YAML stand before the schema, and what this process has imported hides what a user sees."""
    for number, (_, source) in enumerate(batch):
        folder = tmp_path / str(number)
        (folder / "mine" / "experiment").mkdir(parents=True)
        while True:
            tree, path = placed(source)
            with contextlib.suppress(
                yaml.YAMLError, ValueError
            ):  # no YAML says bytes, tuples or lone surrogates
                text = yaml.safe_dump(tree)
                text.encode()
                break
        (folder / "mine" / "experiment" / "odd.yaml").write_text("# @package _global_\n" + text)
        words = ["distill", f"--config-dir={folder / 'mine'}", "dataset=csv", "dataset.path=no-such-file.csv"]
        outcome = run_process([*words, "experiment=odd"], folder)
        require_clean(outcome, codes=[2])
        left = [each for each in folder.rglob("*") if each.is_file() and each.name != "odd.yaml"]
        assert not left, f"left after exit code 2: {left[:3]} {outcome.command}: {path}"


@pytest.mark.parametrize("batch", batches(30_000, 300, 1000))
def test_any_value_at_any_key(batch: Batch) -> None:
    """A traceback of pydantic, of a validator or of `re` for a value that nobody thought of; seconds of work for one value."""
    for name, source in batch:
        command = source.choice(list(COMMANDS))
        tree = whole(command)
        path = source.choice(list(keys(tree)))
        node, value = tree, nested(source)
        for key in path[:-1]:
            node = node[key]
        node[path[-1] if source.random() < 0.9 else source.choice(("x", "", 5, "a.b"))] = value
        case = f"{name}: {'.'.join(map(str, path))} = {value!r:.200}"
        began, message = time.process_time(), ""
        try:
            check(COMMANDS[command], tree)
        except ConfigError as error:
            message = error.message
        except Exception as error:
            raise AssertionError(case) from error
        assert time.process_time() - began < 1, f"{case} takes long"
        assert len(message) <= LONGEST_MESSAGE, f"{case}: a message of {len(message)} characters"
        named = not message or "the config" in message or any(str(part) in message for part in path)
        assert named, f"{case}: the key is not named: {message}"
