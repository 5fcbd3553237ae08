"""Implements `kdcli export`, which writes a student's files for a device, runs each of them on the test split, and checks them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from transformers import PreTrainedTokenizerBase

from kdcli import console
from kdcli.config.schema import Export as Config
from kdcli.environment import environment
from kdcli.errors import ExitCode
from kdcli.evaluation.models import Evaluator
from kdcli.evaluation.predict import open_checkpoint
from kdcli.evaluation.results import ExportResult
from kdcli.exporting import snippets
from kdcli.exporting.artifacts import Split, folder_of, generate_reference
from kdcli.exporting.packages import required_packages
from kdcli.exporting.plan import TEACHER_PREDICTIONS, ExportPlan, plan_export
from kdcli.exporting.runtimes import runtime_of
from kdcli.exporting.verify import STUDENT, Verified, compare_rounding, verify, warn_if_not_rounded
from kdcli.files import replaced, writing
from kdcli.hub import push, require_pushable
from kdcli.measure.runtime import runtime_name
from kdcli.report.cards import card_data, export_card
from kdcli.report.tables import export_table
from kdcli.rundir import EXPORT

LABELS = {
    "torch": "score and measure the student",
    "export": "write the files",
    "artifacts": "run and compare the files",
}
"""The stages of an export, each with what it does."""


def export(cfg: Config, hardware: str, job: Path | None = None) -> int:
    """Make RUN/export/<hardware>/ in a temporary folder, and replace the old one when every file has run.

    Args:
        job: the directory of a job of a sweep, which gets a copy of the result: other jobs may write the same files, even at the same time.
    """
    if cfg.hub.push_to:
        require_pushable(cfg.hub.push_to)
    plan = plan_export(cfg, hardware)
    task, length = plan.task, plan.max_length
    with ExitStack() as stack:
        folder = stack.enter_context(replaced(plan.out))
        stack.enter_context(writing(folder.parent))
        stages = stack.enter_context(console.ProgressStages([*LABELS], labels=LABELS))
        with stages.stage("torch"):
            model, tokenizer = open_checkpoint(plan.student, task, length)
            split = Split(task, task.prepare(plan.test, tokenizer, length), tokenizer, length)
            evaluator = stack.enter_context(Evaluator(task, split.rows, length, plan.measure))
            evaluator.predict(STUDENT, plan.student, model, tokenizer)
            evaluator.measure(STUDENT, [plan.student], keep_alive=True)
        with stages.stage("export"):
            inputs = plan.sample_inputs(tokenizer)
            folder.mkdir()
            files = plan.target.export(plan.student.path, folder, model.cpu(), inputs, length)
            generated = generate_reference(model, split, plan.measure)
        with stages.stage("artifacts", len(files), "files") as stage:
            verified = verify(plan, folder, files, split, evaluator, generated, stage)
        rounding: dict[str, Any] = {}
        if plan.quantization is not None and verified.ran:
            rounding = compare_rounding(plan, folder, split, inputs, verified)
            warn_if_not_rounded(plan.quantization, plan.target, files)
        result = _result(plan, evaluator.models[STUDENT], verified, rounding)
        if plan.target.shows:
            rows = _shown(plan, split)
            plan.target.show(folder, plan.report.dataset.name, plan.labels, rows)
        _write_instructions(folder, files.values(), result, plan, tokenizer)
        result.write(folder / EXPORT)
    status = ExitCode.DONE if verified.passed else ExitCode.MISSED
    if job:
        result.model_copy(update={"exit_code": int(status)}).write(job / EXPORT)
    address = None
    if cfg.hub.push_to and status == ExitCode.DONE:
        address = push(plan.out, cfg.hub.push_to, cfg.hub.private, hardware)
    if cfg.format == "json":
        console.say(json.dumps(result.as_json(), indent=2, ensure_ascii=False))
        return status
    export_table(result.as_json())
    console.say(f"files: {plan.out}")
    if address is not None:
        console.say(f"published: {address}")
    if plan.target.hint:
        console.say(plan.target.hint.format(out=plan.out))
    return status


def _result(
    plan: ExportPlan, student: dict[str, Any], verified: Verified, rounding: dict[str, Any]
) -> ExportResult:
    return ExportResult.of(
        task=plan.report.task,
        metric=plan.task.metric,
        student=plan.student.weights_hash,
        hardware=plan.hardware,
        note=plan.target.caveat,
        test_examples=len(plan.test),
        smoke=plan.report.smoke,
        environment=environment(required_packages(plan.target)),
        **plan.own,
        torch=student,
        artifacts=verified.artifacts,
        failed=verified.failed,
        quantization=rounding,
        recommended=verified.recommended,
    )


def _write_instructions(
    folder: Path,
    files: Iterable[Path],
    result: ExportResult,
    plan: ExportPlan,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Write the scripts that run the files without kdcli, for each runtime that of the recommended or else smallest file, and the model card."""
    scripts: dict[str, list[tuple[Path, str]]] = {}
    sizes = {name: entry.bytes or 0 for name, entry in result.artifacts.items()}
    paths = {path.name: path for path in files}
    texts = 2 if "text_pair" in plan.test.column_names else 1
    values = plan.task.snippet_constants(tokenizer, plan.max_length) | {"TEXTS": texts}
    for name in sorted(sizes, key=lambda name: (name != result.recommended, sizes[name])):
        path = paths[name]
        runtime = runtime_name(runtime_of(path) or "")
        if runtime and runtime not in scripts:
            written = snippets.write(folder_of(path), runtime, plan.family, values | {"MODEL": name})
            scripts[runtime] = [
                (file.relative_to(folder), file.read_text(encoding="utf-8")) for file in written
            ]
    card = export_card(
        result.as_json(),
        plan.report.as_json(),
        [each for of_runtime in scripts.values() for each in of_runtime],
        card_data(plan.student.path),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _shown(plan: ExportPlan, split: Split) -> list[dict[str, Any]]:
    """Return rows of the test split as `Target.show` takes them, with the stored predictions of the teacher."""
    logits = load_file(plan.run / TEACHER_PREDICTIONS)["logits"].astype(np.float64)
    probabilities = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).tolist()
    return [
        {"texts": row, "label": plan.labels[label], "teacher": dict(zip(plan.labels, of_row, strict=True))}
        for row, label, of_row in zip(split.texts, split.rows["label"][:], probabilities, strict=True)
    ]
