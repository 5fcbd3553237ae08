"""The stages of a run and their times."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from kdcli.pipeline.stages import STAGE_TIMES, Stages, read_or_restart, read_stage_times


def test_the_seconds_of_all_processes_add_up(tmp_path: Path) -> None:
    """A run that was continued would report the time of its last process alone."""
    for seconds in (2.0, 3.0):
        with Stages(["student"], tmp_path, is_main=True) as stages, stages.stage("student", 10) as stage:
            stage._began -= seconds
            stage.update(10)
    [time] = read_stage_times(tmp_path)
    assert time["name"] == "student"
    assert time["steps"] == 10
    assert 5.0 <= time["seconds"] < 6.0


def test_what_a_killed_process_did_after_its_last_record_counts_once(tmp_path: Path) -> None:
    """It is done again, and its time would count twice."""

    def killed() -> None:
        with Stages(["student"], tmp_path, is_main=True) as stages, stages.stage("student", 10) as stage:
            stage._began -= 2.0
            stages.record(stage)
            stage._began -= 100.0
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        killed()
    assert 2.0 <= read_stage_times(tmp_path)[0]["seconds"] < 3.0


def test_stages_keep_their_order(tmp_path: Path) -> None:
    """The report shows them as they were run; a stage that is recorded again stays at its place."""
    with Stages(["teacher", "student"], tmp_path, is_main=True) as stages:
        for name in ("teacher", "student", "teacher"):
            with stages.stage(name):
                pass
    assert [time["name"] for time in read_stage_times(tmp_path)] == ["teacher", "student"]


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    """Two processes that write one file tear it."""
    with Stages(["student"], tmp_path, is_main=False) as stages, stages.stage("student"):
        pass
    assert not (tmp_path / STAGE_TIMES).exists()


@pytest.mark.parametrize("text", ["", "null", '{"a": 1}', '[{"name": 1}]'])
def test_a_damaged_file_begins_anew(text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Times are for information: a run must not die of them."""
    path = tmp_path / STAGE_TIMES
    path.write_text(text)
    with caplog.at_level(logging.WARNING):
        assert read_stage_times(tmp_path) == []
    assert str(path) in caplog.text
    assert not path.exists()
    assert read_or_restart(path, dict[str, float], {"a": 1.0}) == {"a": 1.0}
