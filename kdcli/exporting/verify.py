"""Verifies the files of an export: each runs on the test split, and is compared with the torch student and with the budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kdcli import console
from kdcli.errors import ExportError
from kdcli.evaluation.compare import row_scores, score
from kdcli.evaluation.models import Evaluator
from kdcli.evaluation.predict import open_checkpoint, save_predictions
from kdcli.exporting.artifacts import Split, bytes_of, hashes_of, run_artifact, runs_here
from kdcli.exporting.gates import check_budget, parity, tolerance_of, within
from kdcli.exporting.plan import ExportPlan
from kdcli.exporting.targets.base import Target
from kdcli.files import abandonable, require_name, writing
from kdcli.measure.spec import UNKNOWN, Counted

STUDENT = "torch student"
"""The name of the torch student in the evaluation of an export."""


@dataclass
class Verified:
    """The results of an export.

    Attributes:
        artifacts: what is known of each file, by name.
        failed: the files that could not be made or run, and why.
    """

    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def ran(self) -> dict[str, dict[str, Any]]:
        """The files that ran here."""
        return {name: entry for name, entry in self.artifacts.items() if entry["parity"]}

    @property
    def good(self) -> list[str]:
        """The files within tolerance and budget."""
        return [
            name for name, entry in self.ran.items() if entry["parity"]["within"] and entry["budget"]["met"]
        ]

    @property
    def recommended(self) -> str | None:
        """The smallest file within tolerance and budget."""
        return min(self.good, key=lambda name: self.artifacts[name]["bytes"], default=None)

    @property
    def passed(self) -> bool:
        """Whether all files ran and are within tolerance, and one is within its budget. If no file runs here, all budgets must be met."""
        unseen = not self.ran and all(entry["budget"]["met"] for entry in self.artifacts.values())
        close = all(entry["parity"]["within"] for entry in self.ran.values())
        return bool(self.good or unseen) and close and not self.failed


def verify(
    plan: ExportPlan,
    folder: Path,
    files: Mapping[str, Path],
    split: Split,
    evaluator: Evaluator,
    generated: Sequence[Counted],
    stage: console.ProgressStage,
) -> Verified:
    """Run all files of an export.

    Args:
        folder: the folder of the files, which gets their predictions and the scores of each row.
        files: by precision.
        evaluator: has the torch student's entry and predictions, and its process.
        generated: the texts of the torch student, as `generate_reference` returns them.

    Raises:
        ExportError: no file could be run.
    """
    verified = Verified(failed=dict(plan.target.failed))
    for message in verified.failed.values():
        console.error(message)
    for done, (precision, path) in enumerate(files.items()):
        stage.update(done, extra=path.name)
        try:
            verified.artifacts[path.name] = _verify_file(
                plan, folder, precision, path, split, evaluator, generated
            )
        except ExportError as error:
            verified.failed[path.name] = str(error)
            console.error(str(error))
    row_scores(plan.task, evaluator.rows, evaluator.predictions, STUDENT).write(folder)
    if not verified.artifacts:
        raise ExportError(
            f"no file of hardware={plan.hardware} could be run, and nothing was kept; choose another hardware"
        )
    return verified


def _verify_file(
    plan: ExportPlan,
    folder: Path,
    precision: str,
    path: Path,
    split: Split,
    evaluator: Evaluator,
    generated: Sequence[Counted],
) -> dict[str, Any]:
    hardware, student = plan.config.hardware, evaluator.models[STUDENT]
    made = {
        "precision": precision,
        "parameters": student["parameters"],
        "bytes": bytes_of(path),
        "sha256": hashes_of(path),
    }
    if not runs_here(path):
        entry = {**made, "score": None, **asdict(UNKNOWN), "parity": None, "retention": None}
        return entry | {"budget": check_budget(hardware.budget, entry)}
    with writing(folder):
        run = run_artifact(
            plan.measure,
            path,
            split,
            generated,
            evaluator.process,
            hardware.budget.max_latency_ms_p95,
            plan.student.code,
        )
    require_name(path.name, f"a file that hardware={plan.hardware} wrote")
    save_predictions(folder / "predictions" / f"test.{path.name}.safetensors", run.predictions)
    evaluator.predictions[path.name] = run.predictions
    entry = {**made, **score(plan.task, run.predictions), **run.needs}
    apart = parity(plan.task, evaluator.predictions[STUDENT], student["score"], run, entry["score"])
    tolerance = tolerance_of(hardware, path.name, precision, plan.family)
    entry["parity"] = apart | {"within": within(tolerance, apart)}
    entry["retention"] = plan.retention(entry["score"])
    entry["budget"] = check_budget(hardware.budget, entry)
    return entry


def compare_rounding(
    plan: ExportPlan, folder: Path, split: Split, inputs: Sequence[Mapping[str, Any]], verified: Verified
) -> dict[str, Any]:
    """Compare the files of a student whose weights were rounded in training with the same files of the student before that, which are rounded
    after training. The latter are removed.

    Args:
        inputs: as for `Target.export`.

    Returns:
        `precision`; `score` and `retention` of that student, in fp32; and `artifacts`, by name `quantization_aware` and
        `post_training`, each with `score`, `retention` (of the teacher's score) and `kept` (of that student's score).
    """
    task, length, source = plan.task, plan.max_length, plan.unrounded
    model, tokenizer = open_checkpoint(source, task, length)
    before = Split(task, task.prepare(split.rows, tokenizer, length), tokenizer, length)
    evaluator = Evaluator(task, before.rows, length, None)
    evaluator.predict(source.name, source, model, tokenizer)
    base: float = evaluator.models[source.name]["score"]
    scores: dict[str, float] = {}
    with abandonable("before", folder) as temporary:
        files = plan.target.export(source.path, temporary, model.cpu(), inputs, length)
        for path in files.values():
            if path.name in verified.ran:
                run = run_artifact(None, path, before, trust_remote_code=source.code)
                scores[path.name] = score(task, run.predictions)["score"]

    def entry(score: float) -> dict[str, float | None]:
        return {
            "score": score,
            "retention": plan.retention(score),
            "kept": task.retention(score, base),
        }

    return {
        "precision": plan.quantization,
        "score": base,
        "retention": plan.retention(base),
        "artifacts": {
            name: {"quantization_aware": entry(made["score"]), "post_training": entry(scores[name])}
            for name, made in verified.ran.items()
            if name in scores
        },
    }


def warn_if_not_rounded(quantization: str, target: Target, files: Mapping[str, Path]) -> None:
    """Warn if none of the files has the precision in which the student's weights were rounded in training."""
    if target.precision_of(quantization) not in files:
        console.warn(
            f"the student was trained for weights in {quantization}, and none of these files has them; "
            f"hardware=cpu 'hardware.precisions=[fp32,{quantization}]' makes one"
        )
