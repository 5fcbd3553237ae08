"""Losses on what goes on inside, and what they learn, over two processes: through the real command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support.commands import close_weights
from support.tiny import wait_for
from test_causal_training import free_port

Distil = Callable[..., Path]
NOTED = '''
"""A user's own loss, which notes what it has learnt so far."""

import os
from pathlib import Path

import torch
from kdcli.losses.hidden_states import HiddenStates


class Noted(HiddenStates):
    def forward(self, student, teacher, labels):
        if self.training:
            rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
            Path(os.environ["NOTES"]).mkdir(exist_ok=True)
            torch.save(self.projections.state_dict(), Path(os.environ["NOTES"]) / f"{rank}.pt")
        return super().forward(student, teacher, labels)
'''
OPTIONS = [
    "trainer.max_steps=30",
    "trainer.eval_steps=10",
    "trainer.keep=last",
    "student.dropout=0",
    "control=false",
    "dataset.labelled=200",
    "trainer.freeze=[key.bias]",  # no softmax sees it: its gradient is rounding, which Adam makes steps of
]
HIDDEN = ["loss=relations", "+loss.hidden._target_=noted.Noted"]
ALONE = ["~loss.soft_label", "~loss.hard_label", "+loss.hidden.tokens=first"]


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """Where the projections of the runs that are started from now on are noted, by process."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "noted.py").write_text(NOTED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "own"), prepend=os.pathsep)
    monkeypatch.syspath_prepend(tmp_path / "own")

    def into(name: str) -> Path:
        monkeypatch.setenv("NOTES", str(tmp_path / name))
        return tmp_path / name

    yield into
    sys.modules.pop("noted", None)


def two_processes(folder: Path, options: list[str]) -> list[subprocess.Popen[str]]:
    """`kdcli distill` over two processes, as torchrun starts them, but so that both can be killed."""
    command = [sys.executable, "-m", "kdcli", "distill", *options, "measure=null", f"hydra.run.dir={folder}"]
    both = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    return [
        subprocess.Popen(
            command,
            env=both | {"RANK": rank, "LOCAL_RANK": rank},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in ("0", "1")
    ]


def ended(processes: list[subprocess.Popen[str]]) -> None:
    """Wait until both are done, and done well."""
    for process in processes:
        said, _ = process.communicate(timeout=600)
        assert process.returncode == 0, said


def learnt(folder: Path, process: int = 0) -> dict[str, torch.Tensor]:
    return torch.load(folder / f"{process}.pt")


def close_to_learnt(one: Path, two: Path) -> bool:
    """Whether both processes of a run have learnt what a process alone has."""
    alone = learnt(one)
    assert alone
    return all(
        torch.allclose(learnt(two, process)[name], weight, atol=2e-5)
        for process in (0, 1)
        for name, weight in alone.items()
    )


@pytest.mark.long
def test_one_process_is_two_processes(
    distil: Distil, small: list[str], tmp_path: Path, notes: Callable[[str], Path]
) -> None:
    """Tokens counted by each process alone; projections that are not synchronised, and drift apart."""
    options = [*OPTIONS, *HIDDEN]
    alone = notes("noted one")
    one = distil("one", *options)
    both = notes("noted two")
    ended(two_processes(tmp_path / "two", [*small, *options]))
    assert close_weights(one, tmp_path / "two")
    assert close_to_learnt(alone, both)


@pytest.mark.long
def test_two_processes_killed_and_continued_are_one_uninterrupted(
    distil: Distil, small: list[str], tmp_path: Path, notes: Callable[[str], Path]
) -> None:
    """Projections that begin anew, or in one process only, after a resume; the inside alone, where the head has no gradient."""
    options = [*OPTIONS, *HIDDEN, *ALONE]
    alone = notes("noted one")
    one = distil("one", *options)
    killed, both = tmp_path / "killed", notes("noted two")
    processes = two_processes(killed, [*small, *options])
    state = "stages/student/checkpoint-1*/trainer_state.json"
    wait_for(lambda: any(killed.glob(state)), processes[0])
    for process in processes:
        process.kill()
    for process in processes:
        process.communicate()
    assert not (killed / "student").exists()
    ended(two_processes(killed, [*small, *options]))
    assert close_weights(one, killed)
    assert close_to_learnt(alone, both)
