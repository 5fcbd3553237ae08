"""Processes that train together, of which one is late, sees other folders, or dies."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from support import ranks
from support.commands import naming, read
from support.tiny import language_model_options, speaker, talk
from test_sharded import in_processes


@pytest.mark.long
def test_processes_wait_for_a_long_evaluation_and_end_with_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time-out in the barrier loses the report of a night; a process that dies leaves the others waiting for half an hour, and a traceback for each; a
    second machine without the disk of the first looks for a model in the hub."""
    monkeypatch.chdir(tmp_path)
    options = [*language_model_options(speaker(tmp_path / "speaker", steps=10)), *talk(tmp_path, "messages"), "measure=null"]  # fmt: skip
    length = ["trainer.max_steps=6", "trainer.eval_steps=2", f"trainer.ddp_timeout={ranks.TIMEOUT}", "control=false"]  # fmt: skip
    main, other = in_processes("ranks.py", str(tmp_path), *options, *length, codes=(1, -9))
    ended = time.time()
    errors = re.findall(r"(?m)^error: .*", main)
    assert len(errors) == 2, main
    assert naming("process 1", "KDCLI_CACHE_DIR", "--out").search(errors[0])
    assert naming("process 1 of 2", "student", "the same command").search(errors[1])
    assert "error:" not in other
    assert "INFO" not in other
    assert not (tmp_path / "unshared").exists()
    assert read(tmp_path / "late" / "report.json")["models"]["student"]
    assert ended - float((tmp_path / ranks.DIED).read_text()) < 30
    assert list((tmp_path / "died").glob("stages/student/checkpoint-*"))
