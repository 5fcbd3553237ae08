"""What is wrong with a command line is told before torch is loaded, which takes seconds."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from support.runs import make_run

HEAVY = {"torch", "transformers", "datasets", "accelerate", "pandas", "sklearn", "numpy", "huggingface_hub"}
CODE = """
import sys, time
from kdcli.__main__ import main
sys.argv = ["kdcli", *sys.argv[1:]]
code = 0
try:
    main()
except SystemExit as end:
    code = end.code
print(code, time.process_time(), *{name.partition(".")[0] for name in sys.modules}, sep="\\n")
"""
LONGEST = 3.0
"""Seconds of processor time, of which a quiet machine needs less than one; torch alone takes three."""
LOOKED_UP = 0.6
"""Seconds of processor time of what is typed to look something up."""
MANY_ROWS = 5.0
"""Seconds of processor time of a check of 100,000 rows without models."""
TRIES = 4
"""How often a command may be run until it is as quick as it must be: other processes on the machine slow it down."""


def run(cwd: Path, *words: str, most: float = LONGEST, writes: str = "") -> tuple[int, float, set[str], str]:
    """The exit code, the seconds of processor time, the packages that were loaded, and what stderr holds.

    Args:
        most: the command is run again, up to `TRIES` times, while it takes more seconds.
        writes: the file that it writes, which is removed before another try.
    """
    for _ in range(TRIES):
        if writes:
            (cwd / writes).unlink(missing_ok=True)
        done = _run(cwd, *words)
        if done[1] < most or done[0]:
            break
    return done


def _run(cwd: Path, *words: str) -> tuple[int, float, set[str], str]:
    line = [sys.executable, "-c", CODE, *words]
    done = subprocess.run(line, cwd=cwd, capture_output=True, text=True, check=True, env={**os.environ})
    lines = done.stdout.splitlines()
    at = max(number for number, text in enumerate(lines) if text.isdigit() and int(text) < 3)
    return int(lines[at]), float(lines[at + 1]), set(lines[at + 2 :]), done.stderr


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["distill", "trainer.epohs=2"], "trainer.epochs"),
        (["distill", "+sede=1"], "seed"),
        (["distill", "student=tinny"], "student=tinny"),
        (["distill", "seed=-1"], "seed"),
        (["distill", "trainer.epochs=many"], "trainer.epochs"),
        (["distill", "trainer.batch_size=0"], "trainer.batch_size"),
        (["distill", "dataset.task=classificaton"], "dataset.task"),
        (["distill", "rollout.source=teacher"], "rollout.source"),
        (["distill", "dataset=csv", "dataset.path=nowhere.csv"], "nowhere.csv"),
        (["distill", "dataset=csv", "dataset.path=here.csv", "dataset.test=nowhere.csv"], "nowhere.csv"),
        (["distill", "experiment=translation", "dataset.path=nowhere"], "nowhere"),
        (["distill", "hydra.run.dir=here.csv", "dataset=csv", "dataset.path=here.csv"], "--out"),
        (["distill", "seed=1,2", "--multirun", "dataset=csv", "dataset.path=nowhere.csv"], "nowhere.csv"),
        (["distill", "--rerun", "nowhere"], "nowhere"),
        (["export"], "run"),
        (["export", "run=nowhere"], "nowhere"),
        (["export", "hardware=cpuu", "run=nowhere"], "hardware"),
        (["eval", "run=nowhere"], "nowhere"),
        (["predict", "./nowhere", "A text."], "nowhere"),
        (["predict", "here.csv", "A text.", "--out", "here.csv"], "--out"),
        (["chat", "./nowhere"], "nowhere"),
        (["compare", "nowhere"], "nowhere"),
        (["eval", "model=here", "dataset=csv", "dataset.path=nowhere.csv"], "nowhere.csv"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_that_need_no_model(words: list[str], named: str, tmp_path: Path) -> None:
    """A typo that is answered after the seconds that torch takes to load, on a busy machine after ten."""
    (tmp_path / "here.csv").write_text("text,label\n")
    code, seconds, loaded, err = run(tmp_path, *words)
    assert code == 2, err
    assert named in err
    assert not loaded & HEAVY
    assert seconds < LONGEST


@pytest.mark.parametrize("words", [[], ["teacher"], ["student"], ["loss"], ["hardware"]])
def test_list_is_light(words: list[str], tmp_path: Path) -> None:
    """`kdcli list teacher` is typed to look something up: no model is wanted."""
    code, seconds, loaded, err = run(tmp_path, "list", *words, most=LOOKED_UP)
    assert code == 0, err
    assert not loaded & HEAVY
    assert seconds < LOOKED_UP


@pytest.mark.parametrize(
    "words", [[], ["loss.soft_label", "loss=jsd"], ["teacher", "teacher=openai", "--json"]], ids=str
)
def test_keys_are_light(words: list[str], tmp_path: Path) -> None:
    """The arguments of a loss are read from its source: importing it takes the seconds of torch."""
    code, seconds, loaded, err = run(tmp_path, "keys", *words, most=LOOKED_UP)
    assert code == 0, err
    assert not loaded & (HEAVY | {"hydra", "omegaconf"})
    assert seconds < LOOKED_UP


@pytest.mark.parametrize("line", ["kdcli distill loss=jsd loss.soft_label.b", "kdcli keys tr", "kdcli dis"])
def test_completion_is_light(line: str, tmp_path: Path) -> None:
    """A key that is pressed is answered after half a second, in which pydantic and rich are loaded."""
    code, seconds, loaded, err = run(tmp_path, "completion", "bash", "--line", line, most=LOOKED_UP / 2)
    assert code == 0, err
    assert not loaded & (HEAVY | {"hydra", "omegaconf", "pydantic", "rich"})
    assert seconds < LOOKED_UP / 2


@pytest.mark.parametrize(
    "words",
    [
        ["distill", "dataset=csv", "dataset.path=rows.csv"],
        ["check", "dataset=csv", "dataset.path=rows.csv"],
        ["predict", "run", "A text."],
        ["chat", "run"],
    ],
    ids=lambda words: words[0],
)
def test_the_first_line_does_not_wait_for_torch(words: list[str], tmp_path: Path) -> None:
    """Seconds in which a command that loads torch prints nothing, and seems to hang."""
    (tmp_path / "rows.csv").write_text("text,label\n" + "a good one,yes\na bad one,no\n" * 20)
    make_run(tmp_path / "run")
    line = [sys.executable, "-m", "kdcli", *words]
    with subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout
        first = process.stdout.readline()
        process.kill()
    assert first == b"INFO loading torch and transformers\n"


def test_check_without_models_is_light(tmp_path: Path) -> None:
    """`kdcli check --no-load` where torch is not installed, or not wanted: rows, steps and queries need none of it."""
    rows = "".join(f"text {number} of {number % 2},{number % 2}\n" for number in range(200))
    (tmp_path / "rows.csv").write_text(f"text,label\n{rows}")
    words = ["dataset=csv", "dataset.path=rows.csv", "dataset.limit=60", "trainer.epochs=1", "teacher=openai"]
    code, seconds, loaded, err = run(tmp_path, "check", *words, "--no-load", "--out", "run")
    assert code == 0, err
    assert not loaded & {"torch", "transformers", "accelerate"}
    assert seconds < LONGEST + 2  # the library of data sets takes one
    assert not (tmp_path / "run").exists()


def test_check_of_many_rows_is_quick(tmp_path: Path) -> None:
    """A check of a large file takes as long as a training of a small one."""
    drawn = random.Random(0)
    words = [f"word{number}" for number in range(5000)]
    rows = "".join(f"{' '.join(drawn.choices(words, k=20))},{number % 4}\n" for number in range(100_000))
    (tmp_path / "rows.csv").write_text(f"text,label\n{rows}")
    code, seconds, loaded, err = run(
        tmp_path, "check", "dataset=csv", "dataset.path=rows.csv", "--no-load", "--out", "run", most=MANY_ROWS
    )
    assert code == 0, err
    assert "torch" not in loaded
    assert seconds < MANY_ROWS


def test_init_is_light(tmp_path: Path) -> None:
    """The first command that a new user types reads a file, and needs neither a model nor the library of data sets."""
    (tmp_path / "rows.csv").write_text("text,label\n" + "a good one,yes\na bad one,no\n" * 20)
    code, seconds, loaded, err = run(tmp_path, "init", "rows.csv", most=LOOKED_UP, writes="kdcli.yaml")
    assert code == 0, err
    assert not loaded & (HEAVY | {"hydra", "pyarrow"})
    assert seconds < LOOKED_UP
    assert (tmp_path / "kdcli.yaml").is_file()


def test_compare_is_light(tmp_path: Path) -> None:
    """A comparison of runs that are finished waits for torch."""
    for seed in range(10):
        make_run(tmp_path / f"{seed}", [1, 0, 1, 1] * 50 + [seed % 2], keys={"seed": seed})
    code, seconds, loaded, err = run(tmp_path, "compare", *map(str, range(10)), most=LOOKED_UP)
    assert code == 0, err
    assert not loaded & (HEAVY - {"numpy"})
    assert seconds < LOOKED_UP


def test_help_is_light(tmp_path: Path) -> None:
    """The help of each command, too."""
    for words in (
        [],
        ["--help"],
        ["distill", "--help"],
        ["predict", "--help"],
        ["chat", "--help"],
        ["check", "--help"],
        ["init", "--help"],
        ["doctor", "--help"],
        ["--version"],
        ["completion", "bash"],
    ):
        code, seconds, loaded, err = run(tmp_path, *words)
        assert code == 0, err
        assert not loaded & (HEAVY | {"hydra", "omegaconf"})
        assert seconds < LONGEST
