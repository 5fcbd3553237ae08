"""Command lines that somebody typed wrongly: one message and exit code 2, or a run; never a traceback, and no directory after exit code 2."""

from __future__ import annotations

import io
import json
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults.harness import Batch, Fence, Outcome, batches, require_clean, run_here, run_process
from faults.odd import WORDS, nested
from faults.test_schema import keys, whole

from kdcli.config.paths import conf_dir
from kdcli.config.schema import COMMANDS

GROUPS = {
    path.name: sorted(each.stem for each in path.glob("*.yaml"))
    for path in conf_dir().iterdir()
    if path.is_dir()
}
OF_HYDRA = [
    "hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.job.name", "hydra.output_subdir", "hydra.mode", "hydra/launcher", "hydra/sweeper",
    "hydra.launcher.n_jobs", "hydra.sweeper.max_batch_size", "hydra.callbacks", "hydra", "hydra.searchpath", "hydra.launcher._target_",
]  # fmt: skip
WRONG = [
    "",
    "=",
    "a",
    "a..b=1",
    ".a=1",
    "a.=1",
    "[0]=1",
    "a.b.c=",
    " ",
    "x y=1",
    "-q",
    "--x",
    "--cfg=x",
    "--info=x",
    "--resolve",
    "--rerun=nowhere",
]

SWEPT = ("multirun.yaml", "error.json")
"""What a sweep leaves of points that were refused."""


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch, points_here: None) -> None:
    """Commands end once their config has been checked: what is behind that has tests of its own."""
    for name, command in (("distill", "distill"), ("eval", "evaluate"), ("export", "export")):
        module = __import__(f"kdcli.commands.{name}", fromlist=[command])
        monkeypatch.setattr(module, command, lambda *_: 0)


def word(source: random.Random, paths: list[tuple[Any, ...]]) -> str:
    """A word of a command line, or what is like one."""
    kind = source.random()
    if kind < 0.1:
        return source.choice(WRONG)
    if kind < 0.35:
        group = source.choice(list(GROUPS))
        value = source.choice([*GROUPS[group], *WORDS])
        key = group + source.choice(("", "", "", "@x", "@:y", "/z"))
    elif kind < 0.5:
        key, value = source.choice(OF_HYDRA), source.choice(WORDS)
    else:
        key, value = ".".join(map(str, source.choice(paths))), source.choice(WORDS)
    if source.random() < 0.1:
        at = source.randrange(len(key))
        key = key[:at] + source.choice("._/@x \t=") + key[at + 1 :]
    before = source.choice(("", "", "", "", "+", "++", "~"))
    return f"{before}{key}" if before == "~" and source.random() < 0.5 else f"{before}{key}={value}"


def line(source: random.Random) -> list[str]:
    command = source.choice(["distill", "distill", *COMMANDS])
    paths = list(keys(whole(command)))
    options = [
        option
        for option, share in (("-m", 0.15), ("--cfg=job", 0.1), ("--cfg=all", 0.02))
        if source.random() < share
    ]
    return [command, *options, *(word(source, paths) for _ in range(source.choice((1, 1, 1, 2, 3))))]


def left(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def require(outcome: Outcome, arguments: list[str], folder: Path) -> None:
    # a point of a sweep whose command is cut short has no report: the table says so, and no message does
    cut_short = "-m" in arguments and "did not finish" in outcome.out and "error: " not in outcome.err
    require_clean(outcome, (0, 1, 2, 3) if cut_short else (0, 2, 3))
    if outcome.code == 2:  # the points of a sweep that were refused leave their messages
        files = [path for path in left(folder) if "-m" not in arguments or path.name not in SWEPT]
        assert not files, f"left after exit code 2: {files[:3]} {outcome.command}"


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("batch", batches(3000, 12, 100))
def test_any_command_line(batch: Batch, tmp_path: Path) -> None:
    """Hydra, OmegaConf, ANTLR and argparse each end in exceptions of their own, with pages of text, or in a directory that holds nothing."""
    for number, (_, source) in enumerate(batch):
        folder = tmp_path / str(number)
        folder.mkdir()
        arguments = [each for each in line(source) if "/dev" not in each and "=/" not in each]
        require(run_here(arguments, folder), arguments, folder)


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("command", COMMANDS)
def test_any_key_that_is_removed(command: str, tmp_path: Path) -> None:
    """Code that reads the composed config finds no such key, though the schema has a default for it."""
    subject = {"distill": [], "eval": ["model=somewhere"], "export": ["run=somewhere"]}[command]
    for key in COMMANDS[command].model_fields:
        folder = tmp_path / key
        folder.mkdir()
        words = [command, *subject, f"~{key}"]
        require(run_here(words, folder), words, folder)


@pytest.mark.parametrize("batch", batches(100, quick=0, size=10))
def test_any_command_line_in_a_process(batch: Batch, tmp_path: Path) -> None:
    """What this process has already imported, or set, hides what a user sees."""
    for number, (_, source) in enumerate(batch):
        folder = tmp_path / str(number)
        folder.mkdir()
        arguments = [
            each.replace("\0", "") for each in line(source) if "/dev" not in each and "=/" not in each
        ]
        if arguments[0] == "distill":
            arguments += ["dataset=csv", "dataset.path=no-such-file.csv"]
        require(run_process(arguments, folder), arguments, folder)


COMMANDS_OF_FILES = [
    ["predict"], ["chat"], ["compare"], ["init"], ["keys"], ["list"], ["cache", "ls"], ["cache", "clear"], ["cache", "verify"],
]  # fmt: skip
"""Commands that take files and names in place of a config."""
OPTIONS = [
    "--json", "--overwrite", "--yes", "--no-schema", "--trust-run", "--merge-adapter", "--trust-remote-code", "--teacher", "--kind", "--older-than",
    "--out", "--nope", "--", "-", "-h",
]  # fmt: skip
JUNK = [
    "model.onnx",
    "model.gguf",
    "model.pt2",
    "model.xml",
    "data.csv",
    "data.jsonl",
    "data.parquet",
    "data.csv.gz",
    "text.txt",
]


def places(folder: Path, source: random.Random) -> list[str]:
    """Make files, folders and runs that are not what their names promise; returns their paths."""
    for name in ("empty", "run", "run/.hydra", "run/student", "export"):
        (folder / name).mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    for name in JUNK:
        (folder / name).write_bytes(source.choice([b"", b"\0", b"text,label\na,b\n", source.randbytes(64)]))
    for name in ("run/report.json", "run/env.json", "run/student/config.json", "export/export.json"):
        (folder / name).write_text(json.dumps(nested(source), default=str), errors="replace")
    (folder / "run" / ".hydra" / "config.yaml").write_text(source.choice(WORDS), errors="replace")
    return ["empty", "run", "run/student", "export", "pipe", "loop", "nowhere", "run/report.json", *JUNK]


def of_files(source: random.Random, folder: Path) -> list[str]:
    paths = places(folder, source)
    kinds = (paths, paths, paths, OPTIONS, WORDS)
    return [
        *source.choice(COMMANDS_OF_FILES),
        *(source.choice(source.choice(kinds)) for _ in range(source.choice((0, 1, 1, 2, 2, 3)))),
    ]


@pytest.mark.parametrize("batch", batches(600, 12, 50))
def test_any_words_of_commands_that_take_files(
    batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that only looks at a run is not expected to fail, and its exceptions are found by users."""
    monkeypatch.setenv("KDCLI_CACHE_DIR", str(tmp_path / "cache"))
    for number, (_, source) in enumerate(batch):
        folder = tmp_path / str(number)
        folder.mkdir()
        arguments = [each for each in of_files(source, folder) if each != "/"]  # init reads all of it
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a film\n")))
        fence = Fence(folder)
        outcome = run_here(arguments, folder)
        require_clean(outcome, (0, 2))
        if outcome.code == 2:
            fence.require_untouched(outcome.command)


@pytest.mark.parametrize("batch", batches(60, quick=0, size=10))
def test_any_words_of_commands_that_take_files_in_a_process(batch: Batch, tmp_path: Path) -> None:
    """What this process has already imported, or set, hides what a user sees."""
    for number, (_, source) in enumerate(batch):
        folder = tmp_path / str(number)
        folder.mkdir()
        arguments = [each.replace("\0", "") for each in of_files(source, folder) if each != "/"]
        fence = Fence(folder)
        outcome = run_process(arguments, folder, KDCLI_CACHE_DIR=str(tmp_path / "cache"))
        require_clean(outcome, (0, 2))
        if outcome.code == 2:
            fence.require_untouched(outcome.command)
