"""Run directories that were not trained: what the commands that read finished runs need of one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from kdcli.evaluation.row_scores import RowScores


def make_run(
    run: Path,
    right: Sequence[int] | None = None,
    rows: str = "rows",
    score: float | None = None,
    examples: int | None = None,
    keys: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """A finished run of a classifier.

    Args:
        right: 1 for each test row on which the student is right, else 0; None: the scores of single rows are not stored.
        rows: the hash of the test rows.
        keys: the recorded config.
        changes: keys of report.json.
    """
    values = np.asarray(right if right is not None else [1.0], np.float64)
    score = float(values.mean()) if score is None else score
    (run / ".hydra").mkdir(parents=True)
    (run / ".hydra" / "hydra.yaml").write_text("hydra:\n  job:\n    name: kdcli\n")
    config = {
        "seed": 0,
        "teacher": {"path": "big"},
        "student": {"layers": 2},
        "dataset": {"path": "rows.csv"},
    }
    (run / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config | dict(keys or {})))
    if right is not None:
        RowScores("accuracy", rows, "targets", {"student": values, "teacher": values}).write(run)
    model = {
        "parameters": 4_000_000,
        "bytes": 16_000_000,
        "score": score,
        "scores": {"accuracy": score, "accuracy_ci95": [max(0.0, score - 0.05), min(1.0, score + 0.05)]},
        "latency_ms": {"p50": 1.5, "p95": 2.5},
        "throughput_per_s": 800.0,
    }
    verdict = dict.fromkeys(("gain_over_control", "gain_ci95", "agreement", "kl_to_teacher"))
    report = {
        "schema": 1,
        "task": "classification",
        "metric": "accuracy",
        "test_examples": len(values) if examples is None else examples,
        "smoke": False,
        "seed": 0,
        "labels": ["no", "yes"],
        "dataset": {
            "name": "rows", "train": 80, "labelled": 80, "augmented": 0, "validation": 10, "test": 10, "fingerprint": rows,
        },
        "loss": {},
        "stages": [],
        "validation_score": {"student": score},
        "models": {"teacher": model, "student": model},
        "assistants": {},
        "verdict": verdict | {"retention": 1.0, "compression": 10.0, "speedup": 2.0, "outcome": "not_enough", "text": ""},
        **changes,
    }  # fmt: skip
    (run / "report.json").write_text(json.dumps(report))
    return run


def make_result(folder: Path, command: str, run: Path) -> Path:
    """The directory of a finished `kdcli eval`, or of a job of `kdcli export`, of a run."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "hydra.yaml").write_text(
        yaml.safe_dump(
            {
                "hydra": {
                    "job": {"name": "kdcli", "config_name": command},
                    "runtime": {"choices": {"dataset": "of_the_run"}},
                    "overrides": {"task": [f"run={run}"]},
                }
            }
        )
    )
    (folder / ".hydra" / "config.yaml").write_text(
        yaml.safe_dump({"run": str(run), "dataset": {"path": None}})
    )
    name = "eval.json" if command == "eval" else "export.json"
    (folder / name).write_text(json.dumps({"schema": 1}))
    return folder
