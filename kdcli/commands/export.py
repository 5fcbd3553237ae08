"""`kdcli export`: a student becomes files for a device, which are run there and checked before they are called done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from safetensors.numpy import load_file
from torch import Tensor

from kdcli import console
from kdcli.config.check import check
from kdcli.config.components import build
from kdcli.config.dataset import Dataset
from kdcli.config.schema import Budget, Hardware, Tolerance, require_length
from kdcli.config.schema import Export as Config
from kdcli.data.dataset import load, without
from kdcli.environment import environment
from kdcli.errors import ConfigError, DataError, ExitCode, ExportError, ModelError
from kdcli.evaluation.compare import agreement, score
from kdcli.evaluation.predict import examine, open_checkpoint, require_trained, save_predictions
from kdcli.exporting import snippets
from kdcli.exporting.artifacts import ask, bytes_of, folder_of, hashes_of, write
from kdcli.exporting.targets.base import Target, require_task
from kdcli.files import abandonable, named_path, replaced, require_name, user_path, write_json, writing
from kdcli.measure.process import measured
from kdcli.measure.spec import UNKNOWN, runtime_of
from kdcli.models.checkpoint import Checkpoint
from kdcli.report.cards import export_card
from kdcli.report.tables import export_table
from kdcli.rundir import EXPORT, REPORT, UNQUANTIZED, read_report, saved_config, unanswered
from kdcli.tasks import task_of
from kdcli.tasks.base import Task
from kdcli.tasks.classification.task import log_softmax
from kdcli.tasks.seq2seq.task import Seq2Seq

ANSWERS = Path("predictions", "test.teacher.safetensors")
"""What a run keeps of its teacher's answers."""
ELSEWHERE = {".mlpackage": "coreml"}
"""What runs a file where kdcli cannot, by how its name ends."""
GGUF = {"int8": "q8_0", "int4": "q4_0"}
"""What llama.cpp calls a precision."""


def export(cfg: Config, hardware: str) -> int:
    """Make RUN/export/<hardware>/ anew, and swap it in when every artifact was run."""
    run = user_path(cfg.run).absolute()
    recorded = read_report(run)
    saved = saved_config(run)
    moved = cfg.dataset.model_dump(exclude_none=True)
    dataset, quantization = check(Dataset, saved["dataset"] | moved), saved["student"].get("quantization")
    target: Target = build(cfg.hardware, Target)
    require_task(target, hardware, dataset.spec.family)
    shows = dataset.spec.family == "classification" and type(target).show is not Target.show
    if shows and not (run / ANSWERS).is_file():
        raise ModelError(
            f"hardware={hardware} shows the teacher's answers, and {run / ANSWERS} is gone; remove {run / REPORT}, and the same "
            "kdcli distill writes both again"
        )
    data = load(dataset)
    if data.fingerprint != recorded["dataset"]["fingerprint"]:
        raise DataError(
            f"the data set is not the one that {run} was trained on: its test rows may have been seen"
        )
    left_out = unanswered(run)
    train, test = (without(data[split], left_out) for split in ("train", "test"))
    task = task_of(dataset, data.labels)
    student = Checkpoint(run / "student", "student", code=cfg.trust_remote_code)
    before = Checkpoint(run / UNQUANTIZED, "the student before its weights were rounded", code=student.code)
    for source in [student] if quantization is None else [student, before]:
        require_trained(source, run)
    length = dataset.max_length
    out = named_path(run, "export", hardware, what="hardware")
    own = {
        key: getattr(cfg.hardware, key) or getattr(cfg.measure, key)
        for key in ("threads", "batch_sizes", "sequence_length")
    }
    speed = cfg.measure.model_copy(update=own | {"device": target.device})
    try:
        require_length(speed, length)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    budget = cfg.hardware.budget
    with ExitStack() as stack:
        folder = stack.enter_context(replaced(out))
        stack.enter_context(writing(folder.parent))
        stages = stack.enter_context(console.ProgressStages(["torch", "export", "artifacts"]))
        with stages.stage("torch"):
            model, tokenizer = open_checkpoint(student, task, length)
            test = task.prepare(test, tokenizer, length)
            torch_entry, torch_said = examine(student, model, tokenizer, task, test, length)
            torch_entry |= score(task, torch_said)
            texts = task.inputs(test, tokenizer)
            torch, needs = measured(speed, student, task, texts, length, stays=stack)
            torch_entry |= needs
        with stages.stage("export"):
            model.cpu()
            some = min(cfg.hardware.calibration_rows, len(train))
            rows = train.select(np.linspace(0, len(train) - 1, some).astype(int))
            encoded = task.encode(tokenizer, task.prepare(rows, tokenizer, length), length)
            inputs = [_inputs(task, encoded[row], tokenizer) for row in range(len(encoded))]
            folder.mkdir()
            files = target.export(student.path, folder, model, inputs, length)
            written = [] if task.labels else write(model, tokenizer, task, test, speed, length)
        artifacts: dict[str, dict[str, Any]] = {}
        failed = dict(target.failed)
        for message in failed.values():
            console.error(message)
        with stages.stage("artifacts", len(files)) as stage:
            for done, (precision, path) in enumerate(files.items()):
                stage.update(done, extra=path.name)
                made = {
                    "precision": precision,
                    "parameters": torch_entry["parameters"],
                    "bytes": bytes_of(path),
                    "sha256": hashes_of(path),
                }
                if runtime_of(path) is None:
                    entry = {**made, "score": None, **asdict(UNKNOWN), "parity": None, "retention": None}
                    artifacts[path.name] = entry | {"budget": _budget(budget, entry)}
                    continue
                try:
                    with writing(folder):
                        needs, said, shares = ask(
                            speed,
                            path,
                            task,
                            test,
                            tokenizer,
                            length,
                            written,
                            torch,
                            budget.max_latency_ms_p95,
                            student.code,
                        )
                except ExportError as error:
                    failed[path.name] = str(error)
                    console.error(str(error))
                    continue
                require_name(path.name, f"a file that hardware={hardware} wrote")
                save_predictions(folder / "predictions" / f"test.{path.name}.safetensors", said)
                entry = {**made, **score(task, said), **needs}
                parity = {"score_drop": torch_entry["score"] - entry["score"]}
                if said.answers:
                    kept = "logits" if task.labels else "log_prob"
                    parity["agreement"] = agreement(task, torch_said, said)
                    parity["max_abs_difference"] = float(np.abs(torch_said[kept] - said[kept]).max())
                    if task.labels:
                        apart = np.exp(log_softmax(torch_said[kept])) - np.exp(log_softmax(said[kept]))
                        parity["max_abs_difference_of_probabilities"] = float(np.abs(apart).max())
                parity |= shares
                tolerance = _tolerance(
                    cfg.hardware, path.name, precision, f"{dataset.spec.family}_{precision}"
                )
                entry["parity"] = parity | {"within": _within(tolerance, parity)}
                entry["retention"] = _retention(task, entry["score"], recorded["models"]["teacher"]["score"])
                entry["budget"] = _budget(budget, entry)
                artifacts[path.name] = entry
        if not artifacts:
            raise ExportError(f"no file of hardware={hardware} could be run; nothing was kept")
        ran = {name: entry for name, entry in artifacts.items() if entry["parity"]}
        compared: dict[str, Any] = {}
        if quantization is not None and ran:
            scores = _before(before, folder, target, set(ran), task, test, inputs, length)
            compared = {"precision": quantization} | _beside(
                task, scores, ran, recorded["models"]["teacher"]["score"]
            )
            remind(quantization, files)
        good = [name for name, entry in ran.items() if entry["parity"]["within"] and entry["budget"]["met"]]
        result = {
            "schema": 1,
            "task": recorded["task"],
            "metric": task.metric,
            "student": student.weights_hash,
            "hardware": hardware,
            "note": target.note,
            "test_examples": len(test),
            "smoke": recorded["smoke"],
            "environment": environment(),
            **own,
            "torch": torch_entry,
            "artifacts": artifacts,
            "failed": failed,
            "quantization": compared,
            "recommended": min(good, key=lambda name: artifacts[name]["bytes"], default=None),
        }
        if shows:
            name = recorded["dataset"]["name"]
            target.show(folder, name, data.labels, _shown(run, texts, test["label"], data.labels))
        _deliver(folder, files.values(), result, recorded, task, tokenizer, length)
        write_json(folder / EXPORT, result)
    export_table(result)
    console.say(f"files: {out}")
    if target.hint:
        console.say(target.hint.format(out=out))
    within = all(entry["parity"]["within"] for entry in ran.values())
    unseen = not ran and all(entry["budget"]["met"] for entry in artifacts.values())
    return ExitCode.DONE if (good or unseen) and within and not failed else ExitCode.MISSED


def _deliver(
    folder: Path,
    files: Iterable[Path],
    result: dict[str, Any],
    recorded: Mapping[str, Any],
    task: Task,
    tokenizer: Any,
    length: int,
) -> None:
    """Write what runs the artifacts without kdcli, of each runtime the recommended or else the smallest, and the model card."""
    given = task.given(tokenizer) if isinstance(task, Seq2Seq) else []
    constants = {
        "MAX_LENGTH": max(1, length - len(given)),
        "CHAT": task.chat,
        "PREFIX": task.prefix if isinstance(task, Seq2Seq) else "",
        "GIVEN": given,
    }
    artifacts, runs = result["artifacts"], {}
    places = {path.name: path for path in files}
    for name in sorted(artifacts, key=lambda name: (name != result["recommended"], artifacts[name]["bytes"])):
        path = places[name]
        runtime, place = runtime_of(path) or ELSEWHERE.get(path.suffix), folder_of(path)
        if runtime and runtime not in runs:
            written = snippets.write(place, runtime, task.spec.family, constants | {"MODEL": name})
            runs[runtime] = [(file.relative_to(folder), file.read_text(encoding="utf-8")) for file in written]
    card = export_card(result, recorded, [file for files in runs.values() for file in files])
    (folder / "README.md").write_text(card, encoding="utf-8")


def remind(quantization: str, files: Mapping[str, Path]) -> None:
    """Tell that none of the files has the precision that the student was trained for."""
    if not files.keys() & {quantization, GGUF[quantization]}:
        console.warn(
            f"the student was trained for weights in {quantization}, and none of these files has them; "
            f"hardware=cpu 'hardware.precisions=[fp32,{quantization}]' makes one"
        )


def _before(
    source: Checkpoint,
    folder: Path,
    target: Target,
    names: set[str],
    task: Task,
    rows: datasets.Dataset,
    inputs: list[dict[str, Tensor]],
    length: int,
) -> dict[str, float]:
    """What the same files score if they are made of the student as it was before its weights were rounded; they are not kept.

    Returns:
        The scores of that student itself, by the name "", and of the files of these names.
    """
    model, tokenizer = open_checkpoint(source, task, length)
    test = task.prepare(rows, tokenizer, length)
    _, ours = examine(source, model, tokenizer, task, test, length)
    found: dict[str, float] = {"": score(task, ours)["score"]}
    with abandonable("before", folder) as temporary:
        files = target.export(source.path, temporary, model.cpu(), inputs, length)
        for path in files.values():
            if path.name not in names:
                continue
            _, said, _ = ask(None, path, task, test, tokenizer, length, code=source.code)
            found[path.name] = score(task, said)["score"]
    return found


def _retention(task: Task, score: float, teacher: float | None) -> float | None:
    """How much of the teacher's score is kept; None where that is not known (of one that was only asked for texts)."""
    return None if teacher is None else task.retention(score, teacher)


def _beside(
    task: Task, before: dict[str, float], artifacts: dict[str, dict[str, Any]], teacher: float | None
) -> dict[str, Any]:
    """The student before its weights were rounded, and each file beside what rounding after training would have made.

    Args:
        before: as `_before` gives it.

    Returns:
        `score` and `retention`, in fp32; and `artifacts`, by name `quantization_aware` and `post_training`, each with `score`,
        `retention` (of the teacher's score) and `kept` (of that student's score in fp32).
    """

    def told(score: float) -> dict[str, float | None]:
        return {
            "score": score,
            "retention": _retention(task, score, teacher),
            "kept": task.retention(score, before[""]),
        }

    return {
        "score": before[""],
        "retention": _retention(task, before[""], teacher),
        "artifacts": {
            name: {"quantization_aware": told(entry["score"]), "post_training": told(before[name])}
            for name, entry in artifacts.items()
            if name in before
        },
    }


def _tolerance(hardware: Hardware, *names: str) -> Tolerance:
    """The one of the first name that has its own."""
    return next(
        (hardware.tolerances[name] for name in names if name in hardware.tolerances), hardware.tolerance
    )


def _shown(
    run: Path, texts: Sequence[Sequence[str]], gold: Sequence[int], labels: Sequence[str]
) -> list[dict[str, Any]]:
    """Rows of the test split as `Target.show` takes them, with the answers of the teacher that the run keeps."""
    logits = load_file(run / ANSWERS)["logits"]
    probabilities = np.exp(log_softmax(logits)).tolist()
    return [
        {"texts": row, "label": labels[number], "teacher": dict(zip(labels, said, strict=True))}
        for row, number, said in zip(texts, gold, probabilities, strict=True)
    ]


def _within(tolerance: Tolerance, parity: dict[str, float]) -> bool:
    least = ("agreement", "generated", "same_tokens", "same_texts")
    return parity["score_drop"] <= tolerance.score_drop and all(
        parity[key] >= getattr(tolerance, key) for key in least if key in parity
    )


def _budget(budget: Budget, entry: dict[str, Any]) -> dict[str, Any]:
    """Each limit that is set, what the artifact needs (None: nobody could measure it, and it is missed), and whether all are met."""
    most = {
        "max_bytes": entry["bytes"],
        "max_latency_ms_p95": entry["latency_ms"]["p95"],
        "max_memory_bytes": entry["peak_memory_bytes"],
    }
    least = {
        "min_retention": entry["retention"],
        "min_agreement": (entry["parity"] or {}).get("agreement"),
    }
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
