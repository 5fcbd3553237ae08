"""`kdcli export`: a student becomes files for a device, which are run there and checked before they are called done."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch import Tensor

from kdcli import console, report
from kdcli.commands.artifacts import ask, bytes_of, write
from kdcli.config import Budget, Distill, Tolerance, build, check, conf_dir, locate
from kdcli.config import Export as Config
from kdcli.data import load
from kdcli.environment import environment
from kdcli.errors import ConfigError, DataError, ExportError
from kdcli.evaluate import agreement, examine, opened, save_predictions, score
from kdcli.files import replaced, write_json
from kdcli.hardware.base import Target
from kdcli.measure import Process, specified
from kdcli.models import Source
from kdcli.rundir import read_report, saved_config
from kdcli.tasks import task_of
from kdcli.tasks.base import Task

MISSED = 3
"""The exit code when the artifacts are there, and a tolerance or a budget is not met, or one of them could not be run."""


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
    speed = cfg.measure.model_copy(update={"threads": cfg.hardware.threads or cfg.measure.threads})
    with ExitStack() as stack:
        folder = stack.enter_context(replaced(out))
        stages = stack.enter_context(console.Stages(["torch", "export", "artifacts"]))
        with stages.stage("torch"):
            model, tokenizer = opened(student, task, length)
            test = task.prepare(data["test"], tokenizer, length)
            torch_entry, torch_said = examine(student, model, tokenizer, task, test, length)
            torch_entry |= score(task, torch_said)
            texts = task.inputs(test, tokenizer)
            asked = specified(speed, "torch", student.path, student.path, task, texts, length)
            torch = stack.enter_context(Process(*asked))
            torch_entry |= asdict(torch.measure())
        with stages.stage("export"):
            model.cpu()
            some = min(cfg.hardware.calibration_rows, len(data["train"]))
            rows = data["train"].select(np.linspace(0, len(data["train"]) - 1, some).astype(int))
            encoded = task.encode(tokenizer, task.prepare(rows, tokenizer, length), length)
            inputs = [_inputs(task, encoded[row], tokenizer) for row in range(len(encoded))]
            folder.mkdir()
            files = target.export(student.path, folder, model, inputs, length)
            written = [] if task.labels else write(model, tokenizer, task, test, speed, length)
        artifacts: dict[str, dict[str, Any]] = {}
        failed: dict[str, str] = {}
        with stages.stage("artifacts", len(files)) as stage:
            for done, (precision, path) in enumerate(files.items()):
                stage.update(done, extra=path.name)
                try:
                    needs, said, shares = ask(speed, path, task, test, tokenizer, length, written, torch)
                except ExportError as error:
                    failed[path.name] = str(error)
                    console.error(str(error))
                    continue
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
                entry["retention"] = task.retention(entry["score"], recorded["models"]["teacher"]["score"])
                entry["budget"] = _budget(cfg.hardware.budget, entry)
                artifacts[path.name] = entry
        if not artifacts:
            raise ExportError(f"no file of hardware={hardware} could be run; nothing was kept")
        good = [
            name for name, entry in artifacts.items() if entry["parity"]["within"] and entry["budget"]["met"]
        ]
        result = {
            "schema": 1,
            "task": recorded["task"],
            "metric": task.metric,
            "hardware": hardware,
            "note": target.note,
            "test_examples": len(test),
            "smoke": recorded["smoke"],
            "environment": environment(),
            "torch": torch_entry,
            "artifacts": artifacts,
            "failed": failed,
            "recommended": min(good, key=lambda name: artifacts[name]["bytes"], default=None),
        }
        write_json(folder / "export.json", result)
    report.export_table(result)
    console.say(f"files: {out}")
    within = all(entry["parity"]["within"] for entry in artifacts.values())
    return 0 if good and within and not failed else MISSED


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
    most = {
        "max_bytes": entry["bytes"],
        "max_latency_ms_p95": entry["latency_ms"]["p95"],
        "max_memory_bytes": entry["peak_memory_bytes"],
    }
    least = {"min_retention": entry["retention"], "min_agreement": entry["parity"].get("agreement")}
    limits = {key: limit for key, limit in budget.model_dump().items() if limit is not None}
    checked = {}
    for key, limit in limits.items():
        value = (most | least)[key]
        met = value is not None and (value <= limit if key in most else value >= limit)
        checked[key] = {"limit": limit, "value": value, "met": met}
    return checked | {"met": all(entry["met"] for entry in checked.values())}


def _inputs(task: Task, row: Any, tokenizer: Any) -> dict[str, Tensor]:
    """What a model reads of a row, (1, L) each."""
    batch = task.collate([row], tokenizer)
    return {name: tensor for name, tensor in batch.items() if name not in ("labels", "rows")}
