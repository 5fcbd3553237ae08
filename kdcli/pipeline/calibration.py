"""Calibrates trained models, and records the temperature of each in the run directory."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdcli.evaluation.models import Evaluator
from kdcli.files import write_json
from kdcli.pipeline.plan import Run
from kdcli.pipeline.stages import read_or_restart
from kdcli.training.calibration import Fitted, calibrate

logger = logging.getLogger(__name__)
CALIBRATION = "calibration.json"
"""The file of a run directory with the temperature of each model."""


def calibrate_trained(
    run: Run, tokenizer: PreTrainedTokenizerBase, out: Path, model: PreTrainedModel
) -> None:
    """Fit a model's temperature, and record it before the model is saved, so that a run that is killed in between records it again.

    Args:
        out: the folder in which the model is saved.
    """
    fitted = calibrate(run.task, model, tokenizer, run.encode(tokenizer, run.data["validation"]))
    name = out.relative_to(run.folder).as_posix()
    if fitted["skipped"]:
        logger.info("the %s is not calibrated: %s", name, fitted["skipped"])
    write_json(run.folder / CALIBRATION, read_calibrations(run.folder) | {name: fitted})


def read_calibrations(folder: Path) -> dict[str, Fitted]:
    """Return what was done to each model of a run, by its folder; empty if nothing was done."""
    return read_or_restart(folder / CALIBRATION, dict[str, Fitted], {})


def add_calibration(run: Run, evaluator: Evaluator) -> None:
    """Add to the entry of each calibrated model its temperature, and its calibration error on the test split without it."""
    for name, fitted in read_calibrations(run.folder).items():
        if name in evaluator.predictions and not fitted["skipped"]:
            predictions, temperature = evaluator.predictions[name], fitted["temperature"]
            before = replace(predictions, arrays={"logits": predictions["logits"] * temperature})
            error = run.task.scores(before).get("calibration", {}).get("ece")
            curve = evaluator.models[name].setdefault("calibration", {})
            curve |= {"ece_before": error, "temperature": temperature}
