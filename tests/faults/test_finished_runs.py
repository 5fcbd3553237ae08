"""Finished runs whose files are damaged or changed: every command that looks at one ends in a result or in one message."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from faults.harness import Batch, batches, require_clean, run_here
from faults.test_model_folders import cut, flip, mutate, replace, retype

CPU = [
    "hardware=cpu", "hardware.precisions=[fp32]", "hardware.tolerance.agreement=0", "hardware.tolerance.score_drop=1", "measure.latency_runs=2",
    "measure.throughput_seconds=0.1",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is done, and its export."""
    folder = tmp_path_factory.mktemp("finished")
    few = ["measure=null", "trainer.max_steps=2", "dataset.limit=64"]
    require_clean(run_here(["distill", *small, *few, f"hydra.run.dir={folder / 'run'}"], folder), codes=[0])
    require_clean(run_here(["export", str(folder / "run"), *CPU], folder), codes=[0])
    return folder / "run"


@pytest.mark.parametrize("batch", batches(240, quick=0, size=20))
def test_any_file_of_a_finished_run(batch: Batch, finished: Path, tmp_path: Path) -> None:
    """What kdcli has written itself is believed, though a disk, an editor or somebody else has changed it."""
    paths = sorted(path for path in finished.rglob("*") if path.is_file() and ".lock" not in path.name)
    records = [path for path in paths if path.suffix in (".json", ".jsonl", ".yaml")]
    for name, chance in batch:
        folder = tmp_path / name.replace("/", "-")
        run = Path(shutil.copytree(finished, folder / "run"))
        path = run / chance.choice([*paths, *records * 3]).relative_to(finished)
        damages = [flip, cut, replace]
        if path.suffix == ".json":
            damages += [mutate, mutate, mutate, retype]
        chance.choice(damages)(path, chance)
        words = chance.choice(
            [
                ["eval", str(run), "measure=null"],
                ["export", str(run), *CPU, f"hydra.run.dir={folder / 'export'}"],
                ["predict", str(run), "a film"],
                ["predict", str(run / "export"), "a film"],
                ["compare", str(run), str(finished)],
                ["compare", str(run / "export" / "cpu"), str(finished)],
                ["chat", str(run)],
                ["distill", f"--rerun={run}", "dry_run=true"],
                ["check", f"--rerun={run}", "--no-load"],
            ]
        )
        outcome = run_here(words, folder)
        require_clean(outcome, (0, 1, 2, 3) if words[0] == "export" else (0, 2))
