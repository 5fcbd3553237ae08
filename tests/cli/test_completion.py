"""Completion in the shells themselves, by the scripts that `kdcli completion` prints."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import kdcli
from kdcli.cache_notes import note_use

LINES = {
    "kdcli dis": ["distill"],
    "kdcli distill --re": ["--resolve", "--rerun"],
    "kdcli distill --cfg j": ["job"],
    "kdcli distill stu": ["student=", "student."],
    "kdcli distill trainer.sch": ["trainer.schedule="],
    "kdcli distill trainer.schedule=co": ["trainer.schedule=cosine", "trainer.schedule=constant"],
    "kdcli distill student=mini control=": ["control=true", "control=false"],
    "kdcli distill -m student=tiny,mi": ["student=tiny,mini"],
    "kdcli distill loss=jsd loss.soft_label.b": ["loss.soft_label.beta="],
    "kdcli distill stages.general.trainer.ma": [
        f"stages.general.trainer.max_{name}=" for name in ("steps", "epochs", "grad_norm")
    ],
    "kdcli distill trainer.epochs=": [],
    "kdcli eval split=v": ["split=validation"],
    "kdcli export run=ru": ["run=runs"],
    "kdcli export ru": ["run=", "runs/"],
    "kdcli distill mine": ["mine.yaml"],
    "kdcli export runs/on": ["runs/one/"],
    "kdcli distill dataset.path=my": ["dataset.path=my rows.csv"],
    "kdcli keys loss=js": ["loss=jsd"],
    "kdcli list ha": ["hardware"],
    "kdcli distill --config-dir ru": ["runs"],
    "kdcli init ti": ["tickets.csv"],
    "kdcli init tickets.csv dataset.la": ["dataset.label=", "dataset.labelled=", "dataset.labels="],
    "kdcli init tickets.csv da": ["dataset."],
    "kdcli init tickets.csv dataset.format=json": ["dataset.format=json", "dataset.format=jsonl"],
    "kdcli init tickets.csv te": [],
    "kdcli init tickets.csv --out mi": ["mine.yaml"],
    "kdcli cache cl": ["clear"],
    "kdcli cache clear --kind a": ["answers", "augmented"],
    "kdcli cache ls --teacher min": ["minilm"],
    "kdcli cache verify --older-than 3": ["30d"],
    "kdcli chat runs/one --system mi": [],
    "kdcli chat runs/one --seed ": [],
    "kdcli predict runs/one ti": ["tickets.csv"],
}
"""What may stand at the end of a line, in a folder with `runs/`, `mine.yaml`, `tickets.csv` and `my rows.csv`, and outputs of a teacher in the cache."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a command `kdcli` in `bin/`, and with files."""
    folder = tmp_path_factory.mktemp("completion")
    (folder / "bin").mkdir()
    (folder / "runs" / "one").mkdir(parents=True)
    (folder / "my rows.csv").touch()
    (folder / "tickets.csv").touch()
    (folder / "mine.yaml").touch()
    stored = folder / "cache" / "teacher_outputs" / ("0" * 32)
    stored.mkdir(parents=True)
    note_use(stored, "minilm", "tickets.csv", folder / "runs" / "one")
    command = folder / "bin" / "kdcli"
    root = Path(kdcli.__file__).parents[1]
    command.write_text(
        f'#!/bin/sh\nPYTHONPATH="{root}" KDCLI_CACHE_DIR="{folder}/cache" exec "{sys.executable}" -m kdcli "$@"\n'
    )
    command.chmod(0o755)
    return folder


SOME = (
    "kdcli dis",
    "kdcli distill --cfg j",
    "kdcli distill stu",
    "kdcli distill student=mini control=",
    "kdcli export ru",
    "kdcli distill dataset.path=my",
    "kdcli distill --config-dir ru",
    "kdcli cache clear --kind a",
)
"""The lines that the shells besides bash complete: each kind of answer once, because each takes a process."""


def bash_words(line: str) -> list[str]:
    """The words of a line as bash cuts them: at = as well."""
    words = re.findall(r"=|[^\s=]+", line)
    return [*words, ""] if line[-1].isspace() else words


def test_bash(folder: Path) -> None:
    """The word after = is a word of its own to bash, and completions that begin with the key are written twice."""
    script = ['PATH="$PWD/bin:$PATH"', 'eval "$(kdcli completion bash)"', "compopt() { :; }"]
    for line in LINES:
        words = bash_words(line)
        quoted = " ".join(f"'{word}'" for word in words)
        script += [
            f"COMP_WORDS=({quoted}) COMP_CWORD={len(words) - 1} COMP_LINE='{line}' COMP_POINT={len(line)}",
            "_kdcli_complete kdcli",
            "printf '%s\\n' \"${COMPREPLY[@]}\" --",
        ]
    done = subprocess.run(
        ["bash", "--norc", "-c", "\n".join(script)], cwd=folder, capture_output=True, text=True, check=True
    )
    answers = [part.splitlines() for part in done.stdout.split("--\n")[:-1]]
    assert done.stderr == ""
    assert len(answers) == len(LINES)
    for (line, expected), replies in zip(LINES.items(), answers, strict=True):
        *_, last = bash_words(line)
        before = line.split(" ")[-1].removesuffix("" if last == "=" else last)
        assert sorted(f"{before}{reply}" for reply in replies if reply) == sorted(expected), line


def program(shell: str) -> str:
    """The path of a shell; without it the test is skipped."""
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"{shell} is not installed")
    return found


def answers_of(shell: str, options: list[str], script: list[str], folder: Path) -> list[list[str]]:
    """What a script prints for each of `SOME`, without the descriptions, and without a / after a folder's name."""
    line = [program(shell), *options, "-c", "\n".join(script)]
    environment = os.environ | {"HOME": str(folder), "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    parts = done.stdout.split("--\n")[:-1]
    return [[word.partition("\t")[0] for word in part.splitlines() if word] for part in parts]


def test_fish(folder: Path) -> None:
    """A script that fish reads without complaint, and by which it completes nothing."""
    script = ["kdcli completion fish | source"]
    for line in SOME:
        script += [f"complete -C '{line}'", "printf '%s\\n' --"]
    for line, replies in zip(SOME, answers_of("fish", ["--no-config"], script, folder), strict=True):
        assert sorted(each.rstrip("/") for each in replies) == sorted(
            each.rstrip("/") for each in LINES[line]
        ), line


def test_zsh(folder: Path) -> None:
    """A script that zsh reads without complaint, and that passes it no words. The builtins of an interactive zsh print here what they get."""
    script = [
        "compdef() { : }",
        'compadd() { while [[ $1 != -- ]]; do shift; done; shift; print -rl -- "$@" }',
        "compset() { IPREFIX=${PREFIX%${PREFIX##*=}}; PREFIX=${PREFIX##*=} }",
        "_files() { for each in $PREFIX*(N); do print -r -- $IPREFIX$each; done }",
        'eval "$(kdcli completion zsh)"',
    ]
    for line in SOME:
        words = line.split(" ")
        script += [
            f"words=({' '.join(words)}) CURRENT={len(words)} PREFIX={words[-1]} IPREFIX=",
            "_kdcli",
            "print -- --",
        ]
    for line, replies in zip(SOME, answers_of("zsh", ["-f"], script, folder), strict=True):
        assert sorted(replies) == sorted(LINES[line]), line
