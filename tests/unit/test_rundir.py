"""What Hydra recorded in a run directory that somebody else made: it is read, or refused, at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.commands import naming, refusal, require_words

from kdcli import rundir
from kdcli.errors import ConfigError
from kdcli.report.cards import card_data

RECORDS = {
    "config": "teacher: {}\nstudent: {}\ndataset: {}\n",
    "hydra": "hydra: {job: {name: kdcli}, runtime: {choices: {}}, overrides: {task: []}}\n",
    "overrides": "- seed=1\n",
}


@pytest.fixture(autouse=True)
def _watched() -> Iterator[None]:
    """A test that waits for a pipe fails after 30 seconds."""

    def hang(*_: object) -> None:
        pytest.fail("it waits for a pipe")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A run directory with its records alone."""
    run = tmp_path / "run"
    (run / ".hydra").mkdir(parents=True)
    for name, text in RECORDS.items():
        (run / ".hydra" / f"{name}.yaml").write_text(text)
    return run


def replaced(run: Path, name: str) -> None:
    path = run / ".hydra" / f"{name}.yaml"
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("name", ["hydra", "config"])
def test_a_pipe_in_the_place_of_a_record_is_not_opened(
    foreign: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A named pipe in a foreign run keeps eval, --rerun and compare waiting for ever."""
    assert rundir.saved_config(foreign)["teacher"] == {}
    replaced(foreign, name)
    require_words(refusal(capsys, "eval", [str(foreign)]), str(foreign))
    require_words(refusal(capsys, "distill", [], rerun=foreign), str(foreign))
    if name == "config":
        with pytest.raises(ConfigError, match=naming("config.yaml", "regular file")):
            rundir.recorded_keys(foreign)
    else:
        with pytest.raises(ConfigError, match=naming("hydra.yaml", "regular file")):
            rundir.recorded_choice(foreign)


def test_a_pipe_in_the_place_of_overrides_or_a_card_is_not_opened(foreign: Path) -> None:
    """A report, and the table of a sweep, wait for ever."""
    assert rundir.recorded_overrides(foreign) == ["seed=1"]
    replaced(foreign, "overrides")
    assert rundir.recorded_overrides(foreign) is None
    os.mkfifo(foreign / "README.md")
    assert card_data(foreign) == {}


@pytest.mark.parametrize("text", ["5\n", "a text\n", "- a\n", "null\n", ""])
def test_a_record_that_is_no_mapping(foreign: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A plain value ends in OmegaConf's assertion, as a defect of kdcli."""
    (foreign / ".hydra" / "config.yaml").write_text(text)
    require_words(refusal(capsys, "eval", [str(foreign)]), str(foreign), "damaged")
    require_words(refusal(capsys, "distill", [], rerun=foreign), str(foreign), "damaged")
