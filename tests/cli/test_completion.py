"""Completion in the shells themselves, by the scripts that `kdcli completion` prints."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import kdcli
from kdcli.launch.completion import SCRIPTS

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
}
"""What may stand at the end of a line, in a folder with `runs/`, `mine.yaml` and `my rows.csv`."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a command `kdcli` in `bin/`, and with files."""
    folder = tmp_path_factory.mktemp("completion")
    (folder / "bin").mkdir()
    (folder / "runs" / "one").mkdir(parents=True)
    (folder / "my rows.csv").touch()
    (folder / "mine.yaml").touch()
    command = folder / "bin" / "kdcli"
    root = Path(kdcli.__file__).parents[1]
    command.write_text(f'#!/bin/sh\nPYTHONPATH="{root}" exec "{sys.executable}" -m kdcli "$@"\n')
    command.chmod(0o755)
    return folder


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


@pytest.mark.parametrize("shell", [shell for shell in SCRIPTS if shell != "bash"])
def test_scripts_of_other_shells(shell: str, folder: Path) -> None:
    """A script with a syntax error breaks the start of the user's shell."""
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    script = folder / f"_kdcli.{shell}"
    script.write_text(SCRIPTS[shell])
    subprocess.run([program, "--no-execute" if shell == "fish" else "-n", str(script)], check=True)
