"""Spoiled YAML files in a folder of one's own: told with the file, or read; never a traceback."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from faults.harness import Batch, batches, require_clean, run_here, run_process
from faults.test_command_lines import left, untrained

__all__ = ["untrained"]
GOOD = """\
# @package _global_
# Two steps
defaults:
  - override /loss: jsd
  - _self_
dataset:
  max_length: 32
  labels: [negative, neutral, positive]
trainer: &few
  max_steps: 2
  learning_rate: 1e-3
  freeze: ["embeddings", 'layer.0']
teacher:
  trainer: *few
"""
PIECES = [
    "\t", "\n\t", "---\n", "...\n", "%YAML 9\n", "? ", ": ", "- ", "&a ", "*a ", "*few ", "<<: *few\n", "!!python/object:os.x {}", "!x ", "!!int x", "!!set ", "[", "]", "{",
    "}", "'", '"', "|\n", ">\n", "@", "`", "\0", "\x07", "\ufeff", "\u2028", "\\ud800", "null", "5", "[1]", "true", "1e999", "9" * 5000, "0x" + "f" * 5000, "2024-13-01",
    "${", "${x}", "${seed}", "${oc.env:NO_SUCH_VARIABLE}", "???", "yes: 1\n", "5: 1\n", "a: 1\na: 2\n", "  ", "\n", "\r", "# @package x\n", "# @package\n",
    "defaults: 5\n", "defaults:\n  - mine\n", "defaults:\n  - {}\n", "  - nope\n", "  - /no: no\n", "  - override /loss: nope\n", "hydra:\n  mode: 5\n", "[" * 9000,
    "a: &b [*b]\n", "x: &y [" + "1," * 10 + "]\nz: [" + "*y," * 9000 + "]\n",
]  # fmt: skip


def spoiled(source: random.Random) -> bytes:
    text = GOOD
    for _ in range(source.choice((1, 1, 1, 2, 4))):
        at, kind = source.randrange(len(text) + 1), source.random()
        if kind < 0.6:
            text = text[:at] + source.choice(PIECES) + text[at:]
        elif kind < 0.7:
            text = text[:at] + text[at + source.choice((1, 2, 30)) :]
        elif kind < 0.8:
            lines = text.splitlines(keepends=True)
            source.shuffle(lines)
            text = "".join(lines)
        elif kind < 0.9:
            lines = text.splitlines(keepends=True) or [""]
            lines.insert(source.randrange(len(lines)), source.choice(lines))
            text = "".join(lines)
        else:
            text = source.choice(PIECES) + text
    encoding = source.choice(("utf-8",) * 7 + ("utf-16", "utf-8-sig", "utf-32"))
    data = text.encode(encoding, "replace")
    if source.random() < 0.15:
        at = source.randrange(len(data) + 1)
        data = data[:at] + bytes([source.randrange(256)]) + data[at:]
    return data


def case(source: random.Random, folder: Path) -> list[str]:
    """A config folder with a spoiled file in it, and the words that choose it."""
    place = folder / "mine" / "experiment"
    place.mkdir(parents=True)
    (place / "mine.yaml").write_bytes(spoiled(source))
    words = ["experiment=mine", "dataset=csv", "dataset.path=no-such-file.csv"]
    return [
        source.choice(("distill", "distill", "distill", "list")),
        f"--config-dir={folder / 'mine'}",
        *words,
    ]


def run(source: random.Random, folder: Path, process: bool) -> None:
    folder.mkdir()
    arguments = case(source, folder)
    if arguments[0] == "list":
        arguments = arguments[:2]
    outcome = (run_process if process else run_here)(arguments, folder)
    shown = f"{outcome.command}\n{(folder / 'mine' / 'experiment' / 'mine.yaml').read_bytes()!r:.3000}"
    require_clean(outcome, (0, 2))
    if outcome.code == 2:
        files = [path for path in left(folder) if path.name != "mine.yaml"]
        assert not files, f"left after exit code 2: {files[:3]} {shown}"


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("batch", batches(300, 8, 50))
def test_any_file(batch: Batch, tmp_path: Path) -> None:
    """Where YAML is wrong, PyYAML, OmegaConf and Hydra raise a dozen kinds of exceptions, few of which name the file."""
    for number, (_, source) in enumerate(batch):
        run(source, tmp_path / str(number), process=False)


@pytest.mark.parametrize("batch", batches(100, quick=0, size=10))
def test_any_file_in_a_process(batch: Batch, tmp_path: Path) -> None:
    """What this process has already imported, or set, hides what a user sees."""
    for number, (_, source) in enumerate(batch):
        run(source, tmp_path / str(number), process=True)
