"""Commands of kdcli in the test's own process, which is quicker than the entry point, and what tests read of a run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

ColdCache = Callable[..., Path]
"""Begins an empty cache of a name for the rest of the test, and returns its folder: the fixture `cold_cache`."""
MESSAGE_LENGTH = 1000
"""Characters that an error message may have in these tests."""


def runner(
    folder: Path, options: Callable[..., Sequence[str]], command: str = "distill"
) -> Callable[..., Path]:
    """A function that runs `kdcli distill` into a folder of a given name.

    Args:
        folder: where the run directories are made.
        options: called with the positional arguments of the run that are not its name, returns the overrides.
    """
    from kdcli.launch.run import launch

    def run(name: str, *arguments: str, code: int = 0) -> Path:
        directory = folder / name
        assert launch(command, [*options(*arguments), f"hydra.run.dir={directory}"]) == code
        return directory

    return run


def some(values: Iterable[Any], *short: Any) -> list[Any]:
    """The parameters of a test of which `make test` takes a few, and `make test-long` the others."""
    return [
        value
        if value in short
        else pytest.param(*(value if isinstance(value, tuple) else [value]), marks=pytest.mark.long)
        for value in values
    ]


def require_one_message(err: str) -> str:
    """The error on stderr after the log and the progress: one message, bounded, without a traceback."""
    lines = [line for line in err.splitlines() if not re.match(r"INFO |warning: |\[\d+/\d+\] ", line)]
    message = "\n".join(lines)
    assert message.startswith("error: "), err
    assert message.count("\nerror: ") == 0, err
    assert "Traceback" not in err
    assert len(message) < MESSAGE_LENGTH, message
    return message


def refusal(
    capsys: pytest.CaptureFixture[str], command: str, overrides: Sequence[str], **options: object
) -> str:
    """Runs a command on wrong input.

    Returns:
        Its one message; the exit code is 2, and nothing is on stdout.
    """
    from kdcli.launch.run import launch

    capsys.readouterr()
    code = launch(command, list(overrides), **options)  # type: ignore[arg-type]
    captured = capsys.readouterr()
    assert code == 2, captured.err
    assert captured.out == ""
    return require_one_message(captured.err)


def naming(*words: str) -> re.Pattern[str]:
    """The messages that hold all of these words, in any order, and none of them as a part of a longer word, key or path.

    A test asserts what a script relies on: the key or the file (with its row) at fault, the value, the key or the command of
    the remedy. The sentence around them is free.
    """

    def pattern(word: str) -> str:
        before = r"(?<![\w.])" if word[0].isalnum() else ""
        after = r"(?!\w|\.\w|/\w)" if word[-1].isalnum() else ""
        return before + r"\s+".join(map(re.escape, word.split())) + after

    return re.compile(r"(?s)\A" + "".join(f"(?=.*{pattern(word)})" for word in words))


def require_words(message: str, *words: str) -> None:
    """What `naming` describes, of a message that is at hand."""
    missing = [word for word in words if not naming(word).search(message)]
    assert not missing, f"not in the message: {missing}\n{message}"


def weights(run: Path, model: str = "student") -> dict[str, torch.Tensor]:
    """The weights of a run's model."""
    return load_file(run / model / "model.safetensors")


def same_weights(one: Path, other: Path, model: str = "student") -> bool:
    """Whether two runs have the same model, bit by bit."""
    a, b = weights(one, model), weights(other, model)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def close_weights(one: Path, other: Path, model: str = "student") -> bool:
    """Whether two runs have the same model up to rounding."""
    a, b = weights(one, model), weights(other, model)
    return a.keys() == b.keys() and all(torch.allclose(a[key], b[key], atol=2e-5) for key in a)


def largest_difference(one: Path, other: Path, ignored: str = "") -> float:
    """The largest difference between two students' weights.

    Args:
        ignored: how the names of weights end that are not compared; empty: all are.
    """
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    return max(float((a[key] - b[key]).abs().max()) for key in a if not (ignored and key.endswith(ignored)))


def read(path: Path) -> dict[str, Any]:
    """The content of a JSON file."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def edit(path: Path, **changes: object) -> None:
    """Change values of a JSON file, or make it."""
    path.write_text(json.dumps((read(path) if path.is_file() else {}) | changes))
