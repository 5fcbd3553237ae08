"""`kdcli export`: a student becomes files for a device, which are run there and checked before they are called done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from kdcli import console, report
from kdcli.commands.artifacts import ask, bytes_of, write
from kdcli.config import Budget, Distill, Tolerance, build, check, conf_dir, locate
from kdcli.config import Export as Config
from kdcli.data import load
from kdcli.errors import ConfigError, DataError
from kdcli.evaluate import agreement, examine, opened, save_predictions, score
from kdcli.files import replaced, write_json
from kdcli.hardware.base import Target
from kdcli.measure import measure_rows
from kdcli.models import Source
from kdcli.rundir import read_report, saved_config
from kdcli.tasks import task_of

MISSED = 3
"""The exit code when the artifacts are there, and a tolerance or a budget is not met."""


def export(cfg: Config, hardware: str) -> int:
    """Make RUN/export/<hardware>/ anew, and swap it in when every artifact was run."""
    run = Path(cfg.run).expanduser().absolute()
    recorded = read_report(run)
    dataset = check(Distill, saved_config(run)).dataset
    target: Target = build(cfg.hardware, Target)
    _require_task(target, hardware, dataset.kind)
    data = load(dataset)
    if data.fingerprint != recorded["dataset"]["fingerprint"]:
        raise DataError(
            f"the data set is not the one that {run} was trained on: its test rows may have been seen"
        )
    task = task_of(dataset, data.labels)
    student = Source(run / "student", "student")
    length = dataset.max_length
    out = run / "export" / hardware
    with replaced(out) as folder, console.Stages(["torch", "export", "artifacts"]) as stages:
        with stages.stage("torch"):
            model, tokenizer = opened(student, task, length)
            test = task.prepare(data["test"], tokenizer, length)
            torch_entry, torch_said = examine(student, model, tokenizer, task, test, length)
            torch_entry |= score(task, torch_said)
            texts = task.inputs(test, tokenizer)
            torch_entry |= measure_rows(cfg.measure, "torch", student.path, student.path, task, texts, length)
        with stages.stage("export"):
            model.cpu()
            encoded = task.encode(tokenizer, test.select(range(min(8, len(test)))), length)
            sample = task.collate([encoded[row] for row in range(len(encoded))], tokenizer)
            sample = {name: tensor for name, tensor in sample.items() if name not in ("labels", "rows")}
            folder.mkdir()
            files = target.export(student.path, folder, model, sample)
            written = [] if task.labels else write(model, tokenizer, task, test, cfg.measure, length)
        artifacts: dict[str, dict[str, Any]] = {}
        with stages.stage("artifacts", len(files)) as stage:
            for done, (precision, path) in enumerate(files.items()):
                stage.update(done, extra=path.name)
                needs, said, shares = ask(cfg.measure, path, task, test, tokenizer, length, written)
                save_predictions(folder / "predictions" / f"test.{path.name}.safetensors", said)
                entry = {
                    "precision": precision,
                    "parameters": torch_entry["parameters"],
                    "bytes": bytes_of(path),
                    **score(task, said),
                    **needs,
                }
                parity = {"score_drop": torch_entry["score"] - entry["score"]}
                if said.answers:
                    kept = "logits" if task.labels else "log_prob"
                    parity["agreement"] = agreement(task, torch_said, said)
                    parity["max_abs_difference"] = float(np.abs(torch_said[kept] - said[kept]).max())
                parity |= shares
                tolerances = cfg.hardware.tolerances
                tolerance = tolerances.get(path.name, tolerances.get(precision, cfg.hardware.tolerance))
                entry["parity"] = parity | {"within": _within(tolerance, parity)}
                entry["budget"] = _budget(cfg.hardware.budget, entry)
                artifacts[path.name] = entry
        good = [
            name for name, entry in artifacts.items() if entry["parity"]["within"] and entry["budget"]["met"]
        ]
        result = {
            "schema": 1,
            "task": recorded["task"],
            "metric": task.metric,
            "hardware": hardware,
            "test_examples": len(test),
            "smoke": recorded["smoke"],
            "torch": torch_entry,
            "artifacts": artifacts,
            "recommended": min(good, key=lambda name: artifacts[name]["bytes"], default=None),
        }
        write_json(folder / "export.json", result)
    report.export_table(result)
    console.say(f"files: {out}")
    return 0 if good and all(entry["parity"]["within"] for entry in artifacts.values()) else MISSED


def _require_task(target: Target, hardware: str, kind: str) -> None:
    if kind in target.serves:
        return
    names = {
        "classification": "classifiers",
        "token_classification": "token classifiers",
        "causal_lm": "language models",
        "seq2seq": "translators",
    }
    others = [
        f"hardware={path.stem}"
        for path in sorted((conf_dir() / "hardware").glob("*.yaml"))
        if kind in getattr(locate(yaml.safe_load(path.read_text(encoding="utf-8"))["_target_"]), "serves", ())
    ]
    raise ConfigError(
        f"hardware={hardware} makes files of {' and '.join(names[task] for task in target.serves)}, and this run's task "
        f"is {kind}; use {' or '.join(others)}"
    )


def _within(tolerance: Tolerance, parity: dict[str, float]) -> bool:
    least = ("agreement", "generated", "same_tokens", "same_texts")
    return parity["score_drop"] <= tolerance.score_drop and all(
        parity[key] >= getattr(tolerance, key) for key in least if key in parity
    )


def _budget(budget: Budget, entry: dict[str, Any]) -> dict[str, Any]:
    """Each limit that is set, what the artifact needs, and whether all are met."""
    needs = {
        "size_mb": entry["bytes"] / 1e6,
        "latency_ms": entry["latency_ms"]["p50"],
        "peak_memory_mb": entry["peak_memory_bytes"] and entry["peak_memory_bytes"] / 1e6,
    }
    limits = {key: limit for key, limit in budget.model_dump().items() if limit is not None}
    checked = {
        key: {"limit": limit, "value": needs[key], "met": needs[key] <= limit}
        for key, limit in limits.items()
    }
    return checked | {"met": all(entry["met"] for entry in checked.values())}
