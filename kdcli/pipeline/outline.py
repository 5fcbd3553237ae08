"""Outlines what a run does, as far as the config and the data show it: no model is loaded, and no torch is imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import datasets

from kdcli.config.schema import Distill as Config
from kdcli.config.schema import StageConfig
from kdcli.config.seeds import with_seed
from kdcli.data.dataset import Data, with_gold
from kdcli.data.splits import SPLITS
from kdcli.pipeline.cost_plan import CostPlan, PhaseCost
from kdcli.teachers.remote.limits import (
    BYTES_PER_TOKEN,
    FIRST_TOKENS,
    JSON_TOKENS,
    LABEL_TOKENS,
    Estimate,
    Prices,
)
from kdcli.training.length import planned_steps

REQUEST, QUESTION = 33, 94
"""The bytes of a turn without its text, and those that the question about a label adds, without the labels."""
TEXTS = "text", "text_pair", "prompt", "source"
"""The columns that a teacher is queried about, whatever the task."""
ENDPOINT = "base_url"
"""The argument by which a teacher behind an endpoint is recognized without its class."""


def is_remote(cfg: Config) -> bool:
    """Return whether the teacher is behind an endpoint, by its arguments."""
    return ENDPOINT in cfg.teacher.arguments


def outline(cfg: Config, data: Data) -> CostPlan:
    """Return the phases of a run with their rows and steps. The steps of a stage whose losses read features alone may be fewer, and what a rollout or an
    augmentation adds is not known."""
    rows = {split: len(data[split]) for split in SPLITS}
    gold = len(data.gold)
    phases = _teacher_phases(cfg, rows, gold)
    trained = [_student_phase(cfg, data, name, stage) for name, stage in _stages(cfg)]
    if cfg.student.quantization is not None:
        epochs = {"until": "steps", "epochs": cfg.student.quantization_epochs}
        last = next(reversed(cfg.stages.values())).trainer if cfg.stages else cfg.trainer
        steps = planned_steps(last.model_copy(update=epochs), rows["train"], cfg.dataset.spec)
        trained.append(PhaseCost("student/quantized", rows["train"], steps))
    own = [phase for phase in trained if phase.name.partition("/")[0] == "student"]
    control = [PhaseCost("control", gold, _sum(own), True)] if cfg.control else []
    again = [
        replace(phase, name=with_seed(phase.name, seed))
        for seed in cfg.all_seeds[1:]
        for phase in [*own, *control]
    ]
    phases += [*trained, *control, *again, PhaseCost("evaluate", rows["test"])]
    queries = _queries(cfg, data, rows) if is_remote(cfg) else {}
    endpoint = str(cfg.teacher.arguments.get("model", "the endpoint")) if queries else ""
    return CostPlan(rows | {"labelled": gold}, phases, endpoint=endpoint, queries=queries, timed=False)


def _stages(cfg: Config) -> list[tuple[str, StageConfig]]:
    return list(cfg.stages.items()) or [("", StageConfig(trainer=cfg.trainer))]


def _sum(phases: Sequence[PhaseCost]) -> int:
    return sum(phase.steps or 0 for phase in phases if not phase.name.endswith("/quantized"))


def _teacher_phases(cfg: Config, rows: dict[str, int], gold: int) -> list[PhaseCost]:
    phases = []
    spec, teacher = cfg.dataset.spec, cfg.teacher
    if cfg.dataset.augment is not None:
        phases.append(PhaseCost("augment", gold * cfg.dataset.augment.copies, at_most=True))
    for member in range(0 if is_remote(cfg) else 1 + len(teacher.others)):
        name = f"teacher {member + 1}" if member else "teacher"
        steps = planned_steps(teacher.trainer, gold, spec)
        tuned = PhaseCost(name, gold, steps, not teacher.trainer.is_fixed)
        if teacher.tune is False:
            tuned = PhaseCost(name, 0, note="used as it is")
        elif teacher.tune is None and teacher.from_scratch is None:
            tuned = replace(tuned, note="if it has no head for the task")
        phases.append(tuned)
    if cfg.rollout.source == "teacher":
        texts = (rows["train"] + cfg.rollout.expand) * cfg.rollout.answers
        phases.append(PhaseCost("rollouts", texts))
    if not (is_remote(cfg) and spec.writes):
        online = not is_remote(cfg) and not teacher.cache
        outputs = PhaseCost("teacher outputs", sum(rows.values()))
        phases.append(PhaseCost("teacher outputs", 0, note="in every step") if online else outputs)
    return phases


def _student_phase(cfg: Config, data: Data, name: str, stage: StageConfig) -> PhaseCost:
    chosen = data["train"] if stage.rows == "all" else with_gold(data["train"], stage.rows == "labelled")
    full = name if stage.student is not None else f"student/{name}" if name else "student"
    if stage.dataset is not None and stage.dataset != cfg.dataset:
        return PhaseCost(full, 0, note=f"on {stage.dataset.path}")
    steps = planned_steps(stage.trainer, len(chosen), cfg.dataset.spec)
    fewer = cfg.rollout.source == "teacher" or bool(cfg.stages)
    return PhaseCost(full, len(chosen), steps, fewer or not stage.trainer.is_fixed)


def _queries(cfg: Config, data: Data, rows: dict[str, int]) -> dict[str, Estimate]:
    """Return the queries to an endpoint, with their tokens by the number of characters. Which of them are in the ledger is known to the teacher's
    class alone."""
    arguments = cfg.teacher.arguments
    answers = int(arguments.get("samples", 8)) if arguments.get("soft_labels") == "samples" else 1
    if cfg.dataset.spec.writes:
        answers = cfg.rollout.answers
    per_request = arguments.get("n_per_request")
    requests = -(-answers // int(per_request)) if per_request else 1
    splits = SPLITS[:1] if cfg.dataset.spec.writes else SPLITS
    queried = {split: (rows[split], _text_bytes(data[split])) for split in splits}
    if cfg.rollout.expand:
        count, size = queried["train"]
        queried["new prompts"] = (cfg.rollout.expand, size * cfg.rollout.expand // max(1, count))
    return {
        name: _estimate(cfg, data.labels, count * requests, size * requests, count * answers)
        for name, (count, size) in queried.items()
    }


def _text_bytes(rows: datasets.Dataset) -> int:
    """Return the bytes of the texts of which a teacher is queried: of conversations those before the last turn."""
    columns = [rows[name][:] for name in TEXTS if name in rows.column_names]
    size = sum(len(text.encode()) for column in columns for text in column if text)
    if "messages" in rows.column_names:
        turns = (turn for messages in rows["messages"][:] for turn in messages[:-1])
        size += sum(len(turn["content"].encode()) for turn in turns)
    return size


def _estimate(cfg: Config, labels: Sequence[str], requests: int, size: int, answers: int) -> Estimate:
    """Return the estimate of some requests.

    Args:
        size: the bytes of their rows.
        answers: the number of answers that are requested in all.
    """
    arguments = cfg.teacher.arguments
    if "prices" not in arguments:  # a teacher of the user's own may charge for something else than tokens
        return Estimate(requests, 0, 0, 0, None)
    most: int | None = cfg.rollout.max_new_tokens
    question = 0
    if arguments.get("soft_labels") == "prompt_logprobs":
        most = 1
    elif labels:
        question = QUESTION + sum(len(label.encode()) + 2 for label in labels)
        is_read_by_tokens = arguments.get("soft_labels") == "logprobs"
        most = FIRST_TOKENS if is_read_by_tokens else LABEL_TOKENS + JSON_TOKENS + max(map(len, labels))
    size += size * int(arguments.get("shots") or 0) + requests * (REQUEST + question)
    limits = {"max_tokens": most} | (arguments.get("parameters") or {})
    most = limits.get("max_completion_tokens", limits["max_tokens"])
    prompt, completion = size // BYTES_PER_TOKEN, None if most is None else answers * most
    prices, cost = arguments["prices"], None
    if completion is not None and None not in (prices.get("prompt"), prices.get("completion")):
        cost = Prices(prices["prompt"], prices["completion"]).of(prompt, completion)
    return Estimate(requests, 0, prompt, completion, cost)
