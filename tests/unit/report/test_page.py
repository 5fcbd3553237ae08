"""The report: the sentence, the tables, the page and the model card that people decide by."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.commands import require_words

from kdcli.errors import KDError
from kdcli.numbers import (
    format_bytes,
    format_count,
    format_items,
    format_milliseconds,
    format_rate,
    format_share,
)
from kdcli.report.cards import model_card
from kdcli.report.page import _matrix, _read_metrics, write_html
from kdcli.report.plots import loss_curves, score_plot
from kdcli.report.tables import _short, eval_table, export_table, final_table, sweep_table, targets_table
from kdcli.report.verdict import verdict_text
from kdcli.tasks.causal_lm.presentation import PERPLEXITY
from kdcli.tasks.presentation import PERCENT

LABELS = ["World", "Sports", "Business", "Sci/Tech"]


# --- what a run leaves, made up ---


def fake_model(
    rng: random.Random, labels: list[str], score: float, size: int, absent: int | None = None
) -> dict[str, Any]:
    """One entry of report.json["models"]; ``absent`` is a class without test rows."""
    confusion = []
    for i in range(len(labels)):
        row = [0] * len(labels)
        for _ in range(0 if i == absent else 100):
            row[i if rng.random() < score else rng.randrange(len(labels))] += 1
        confusion.append(row)
    counts = [0, 0, 0, 2, 9, 20, 31, 60, 120, 4000 - 242]
    return {
        "parameters": size,
        "bytes": 4 * size,
        "score": score,
        "scores": {
            "accuracy": score,
            "accuracy_ci95": [score - 0.008, score + 0.008],
            "macro_f1": score - 0.002,
            "nll": 0.31,
            "ece": 0.042,
            "per_class_f1": {
                n: None if i == absent else round(rng.uniform(0.5, 1), 3) for i, n in enumerate(labels)
            },
        },
        "latency_ms": {"p50": size / 5e6, "p95": size / 4e6},
        "throughput_per_s": 5e9 / size,
        "peak_memory_bytes": 6 * size + 90_000_000,
        "confusion": confusion,
        "calibration": {
            "confidence": [0.05 + i / 10 if n else None for i, n in enumerate(counts)],
            "accuracy": [max(0.0, i / 10 - 0.03 * rng.random()) if n else None for i, n in enumerate(counts)],
            "count": counts,
        },
    }


def fake_report(
    teacher: float | None = 0.931,
    control: float | None = 0.885,
    student: float = 0.914,
    ci95: tuple[float, float] | None = (0.019, 0.039),
    labels: list[str] = LABELS,
    absent: int | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """report.json as `kdcli distill` writes it; ``control=None`` is a run with control=false."""
    rng = random.Random(1)
    models: dict[str, Any] = {"teacher": fake_model(rng, labels, teacher or 0.5, 109_482_240, absent)}
    if teacher is None:
        keys = ("score", "parameters", "bytes", "latency_ms", "throughput_per_s", "peak_memory_bytes")
        models["teacher"] = dict.fromkeys(keys)
    if control is not None:
        models["control"] = fake_model(rng, labels, control, 4_386_178, absent)
    models["student"] = fake_model(rng, labels, student, 4_386_178, absent)
    return {
        "schema": 1,
        "task": "classification",
        "metric": "accuracy",
        "test_examples": 4000,
        "smoke": False,
        "seed": 7,
        "labels": labels,
        "dataset": {
            "name": "ag_news",
            "train": 20_000,
            "labelled": 2_000,
            "validation": 2_000,
            "test": 4_000,
            "fingerprint": "5d1c0f7ab2e94c31",
        },
        "loss": {"soft_label": {"weight": 0.9, "temperature": 2.0}, "hard_label": {"weight": 0.1}},
        "training": {
            "student": {"steps": 1875, "stopped": "converged", "best_step": 1500, "flat": True},
            "control": {"steps": 2500, "stopped": "bound", "best_step": None, "flat": True},
        },
        "stages": [
            {"name": "teacher", "seconds": 412.0, "steps": 1250},
            {"name": "signals", "seconds": 95.2, "steps": 0},
            {"name": "student", "seconds": 131.4, "steps": 1875},
            {"name": "control", "seconds": 120.9, "steps": 1875},
            {"name": "evaluate", "seconds": 22.5, "steps": None},
        ],
        "models": models,
        "verdict": {
            "retention": None if teacher is None else student / teacher,
            "gain_over_control": None if control is None else student - control,
            "gain_ci95": None if control is None or ci95 is None else list(ci95),
            "agreement": 0.948,
            "kl_to_teacher": 0.113,
            "compression": None if teacher is None else 109_482_240 / 4_386_178,
            "speedup": None if teacher is None else 8.12,
            "text": "",
        },
        **changes,
    }


def fake_metrics(
    stages: tuple[str, ...] = ("teacher", "student", "control"), steps: int = 1875
) -> list[dict[str, Any]]:
    """metrics.jsonl: training records every 15 steps, validation records every 150."""
    rng = random.Random(2)
    records: list[dict[str, Any]] = []
    for stage in stages:
        terms = {"soft_label": 2.0, "hard_label": 1.4} if stage == "student" else {"hard_label": 1.4}
        for step in range(15, steps + 1, 15):
            raw = {k: v * 2.7 ** (-step / 500) + 0.2 + 0.06 * rng.random() for k, v in terms.items()}
            records.append(
                {
                    "stage": stage,
                    "step": step,
                    "epoch": step / 625,
                    "lr": 3e-4,
                    "grad_norm": 1.1,
                    "tokens_per_s": 9e3,
                }
                | {"loss": sum(raw.values())}
                | {f"loss/{k}": v for k, v in raw.items()}
                | {f"weighted/{k}": v / 2 for k, v in raw.items()}
            )
            if step % 150 == 0:
                top = {"teacher": 0.93, "student": 0.915, "control": 0.886}[stage]
                validation = {f"eval/loss/{k}": v + 0.05 for k, v in raw.items()}
                score = top - 0.4 * 2.7 ** (-step / 250)
                records.append(
                    {"stage": stage, "step": step, "eval/score": score, "eval/loss": 0.4} | validation
                )
    return records


def fake_run(path: Path, report: dict[str, Any], metrics: list[dict[str, Any]] | None = None) -> Path:
    """A run directory with what write_html reads."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "report.json").write_text(json.dumps(report))
    if metrics is not None:
        (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in metrics))
    environment = {
        "kdcli": "0.1.0",
        "python": "3.11.7",
        "seeds": {"student": 123},
        "hardware": {"cpu": "x", "gpu": None},
    }
    (path / "env.json").write_text(json.dumps(environment))
    return path


def fake_lm_model(rng: random.Random, perplexity: float, size: int, kl: float | None) -> dict[str, Any]:
    """One entry of report.json["models"] of a language model; ``kl`` is None for the teacher."""
    score = -math.log(perplexity)
    return {
        "parameters": size,
        "bytes": 4 * size,
        "score": score,
        "scores": {
            "log_prob": score,
            "log_prob_ci95": [score - 0.03, score + 0.03],
            "perplexity": perplexity,
            "token_accuracy": 0.471,
            "kl_to_teacher": kl,
            "agreement": None if kl is None else 0.683,
            "rouge_l": 0.312,
            "distinct_2": 0.87,
            "repetition": 0.042,
        },
        "latency_ms": {"p50": size / 5e6, "p95": size / 4e6},
        "throughput_per_s": 5e9 / size,
        "peak_memory_bytes": 6 * size + 90_000_000,
    }


def fake_lm_report(
    teacher: float | None = 10.1,
    control: float | None = 16.0,
    student: float = 14.2,
    ci95: tuple[float, float] | None = (0.08, 0.16),
    kl: float | None = 1.1,
    kl_ci95: tuple[float, float] | None = (0.2, 0.4),
    **changes: Any,
) -> dict[str, Any]:
    """report.json of task causal_lm; models are given by perplexity, ``kl`` is the control's (the student's: 0.8)."""
    rng = random.Random(1)
    score = {
        n: -math.log(p) for n, p in (("teacher", teacher), ("control", control), ("student", student)) if p
    }
    if teacher is None:
        kl = None
    models: dict[str, Any] = {"teacher": fake_lm_model(rng, teacher or 1.0, 134_515_008, None)}
    if teacher is None:
        keys = ("score", "parameters", "bytes", "latency_ms", "throughput_per_s", "peak_memory_bytes")
        models["teacher"] = dict.fromkeys(keys)
    if control is not None:
        models["control"] = fake_lm_model(rng, control, 49_820_373, kl)
    models["student"] = fake_lm_model(rng, student, 49_820_373, 0.8)
    texts = {
        "prompt": "Summarise in one sentence:\n\nThe council met on Tuesday to talk about the bridge, which has "
        "been closed since a lorry hit it in March.",
        "reference": "The council discussed the bridge that a lorry damaged in March.",
        "teacher": "On Tuesday the council talked about the bridge, closed since March.",
        "control": "The council met on Tuesday. The council met on Tuesday. The council met on Tuesday.",
        "student": "The council talked about the closed bridge on Tuesday.",
    }
    if control is None:
        del texts["control"]
    return fake_report() | {
        "task": "causal_lm",
        "metric": "log_prob",
        "labels": [],
        "test_examples": 1000,
        "test_tokens": 23_456,
        "dataset": {
            "name": "news_summaries",
            "train": 20_000,
            "labelled": 20_000,
            "validation": 1_000,
            "test": 1_000,
            "fingerprint": "5d1c0f7ab2e94c31",
        },
        "models": models,
        "verdict": {
            "retention": None if teacher is None else teacher / student,
            "gain_over_control": None if control is None else score["student"] - score["control"],
            "gain_ci95": None if control is None or ci95 is None else list(ci95),
            "agreement": 0.683,
            "kl_to_teacher": None if teacher is None else 0.8,
            "kl_gain_over_control": None if control is None or kl is None else kl - 0.8,
            "kl_gain_ci95": None if control is None or kl is None or kl_ci95 is None else list(kl_ci95),
            "compression": None if teacher is None else 2.7,
            "speedup": None if teacher is None else 2.1,
            "text": "",
        },
        "generations": [dict(texts) for _ in range(10)],
        **changes,
    }


def fake_lm_metrics() -> list[dict[str, Any]]:
    """metrics.jsonl of a language model: validation scores are log-probabilities."""
    records = fake_metrics(steps=1500)
    for record in records:
        if "eval/score" in record:
            start = {"teacher": 2.3, "student": 2.6, "control": 2.75}[record["stage"]]
            record["eval/score"] = -start - 6 * 2.7 ** (-record["step"] / 200)
    return records


NAMES = {
    "teacher": "bert-base",
    "student": "tiny",
    "dataset": "ag_news",
    "base_model": None,
    "kdcli_version": "0.1.0",
}


# --- tables ---


HUGE = {
    "parameters": 671_241_732_096,
    "bytes": 1_384_483_464_192,
    "latency_ms": {"p50": 12_345.6, "p95": 20_000.0},
    "throughput_per_s": 123_456.7,
    "peak_memory_bytes": 999_999_999_999,
}
"""What a teacher of billions of parameters costs."""


def test_final_table_fits_eighty_columns(capsys: pytest.CaptureFixture[str]) -> None:
    """The table wraps into a jumble in a standard terminal once a teacher has billions of parameters."""
    report = fake_report()
    report["models"]["teacher"] |= HUGE
    final_table(report)
    cost = ("17.5 MB", "0.88 ms", "1,140", "116 MB")
    *table, sentence = capsys.readouterr().out.splitlines()
    assert max(map(len, table)) <= 80
    assert [line.split()[0] for line in table[2:]] == ["teacher", "control", "student"]
    assert re.split(r"\s{2,}", table[-1]) == [*("student", "91.4 %", "90.6 to 92.2", "4.4M"), *cost]
    assert sentence == verdict_text(report)


def with_baseline() -> dict[str, Any]:
    """A report with a model without a neural network."""
    report = fake_report()
    entry = copy.deepcopy(report["models"]["student"]) | {
        "method": "TF-IDF + <b>logistic</b> regression",
        "parameters": 40_000,
        "speedup": None,
        "peak_memory_bytes": None,
    }
    report["models"] |= {"trivial": entry}
    return report


def test_a_baseline_stands_last_and_says_what_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row called trivial that nobody explains is read as an error; a method in the table would break its lines."""
    report = with_baseline()
    final_table(report)
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith(("teacher", "control", "student", "trivial "))]
    assert [row.split()[0] for row in rows] == ["teacher", "control", "student", "trivial"]
    assert max(map(len, rows)) <= 80
    assert any(line.startswith("trivial: TF-IDF") and "in the process of the run" in line for line in lines)
    write_html(tmp_path, report)
    page = (tmp_path / "report.html").read_text()
    assert "trivial: TF-IDF + &lt;b&gt;logistic" in page
    assert "Confusion matrix of the trivial" not in page
    card = model_card(report, NAMES)
    assert "| trivial |" in card
    assert "<b>" not in card


@pytest.mark.parametrize(
    ("fitted", "remedies"),
    [
        ({"temperature": 0.4, "ece_before": 0.48}, ["dataset.validation_size"]),
        ({}, ["student.calibrate", "dataset.validation_size"]),
    ],
)
def test_probabilities_that_are_no_shares_are_warned_of(
    fitted: dict[str, float], remedies: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Right answers at 31 % confidence are thrown away by whoever sets a threshold."""
    report = fake_report()
    student = report["models"]["student"]
    student["scores"]["ece"] = 0.1
    final_table(report)
    assert "calibration error" not in capsys.readouterr().out
    student["scores"]["ece"] = 0.28
    student["calibration"] |= fitted
    final_table(report)
    line = capsys.readouterr().out.splitlines()[-1]
    require_words(line, "0.28", *remedies)
    write_html(tmp_path, report)
    page = (tmp_path / "report.html").read_text()
    assert "calibration error is 0.28" in page
    assert ("0.480 before" in page) == bool(fitted)


def test_final_table_shows_what_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    """A remote teacher's nulls crash the end of a run that took hours, or are printed as 0."""
    final_table(fake_report(teacher=None, control=None))
    teacher = capsys.readouterr().out.splitlines()[2]
    assert teacher.split() == ["teacher", *["n/a"] * 7]


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (format_count(999), "999"),
        (format_count(999_999), "1.0M"),
        (format_count(4_386_178), "4.4M"),
        (format_bytes(17_544_712), "17.5 MB"),
        (format_bytes(0), "0 B"),
        (format_milliseconds(1.94), "1.9 ms"),
        (format_rate(45.67), "45.7"),
        (format_share(1.0), "100.0 %"),
        (format_share(float("nan")), "n/a"),
    ],
)
def test_units(shown: str, expected: str) -> None:
    """Figures come out as 1000.0k, as seventeen digits, or as nan."""
    assert shown == expected


def row(overrides: str, **changes: Any) -> dict[str, Any]:
    """A finished run of a sweep."""
    return {
        "overrides": overrides,
        "metric": "accuracy",
        "score": 0.914,
        "validation_score": 0.92,
        "retention": 0.981,
        "gain_over_control": 0.029,
        "gain_ci95": [0.019, 0.039],
    } | changes


def test_sweep_marks_the_best_by_validation(capsys: pytest.CaptureFixture[str]) -> None:
    """The best run of a sweep is picked by its test score, which then flatters it."""
    sweep_table(
        [
            row("student=tiny loss.soft_label.temperature=1", score=0.99, validation_score=0.90),
            row("student=tiny loss.soft_label.temperature=2", score=0.91, validation_score=0.93),
        ]
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 runs with student=tiny"
    assert [line for line in lines[1:] if line.startswith("*")] == [lines[3], lines[4]]
    assert lines[3].split("  ")[0] == "* temperature=2"
    assert "+2.9 [+1.9, +3.9]  helped" in lines[3]


def test_sweep_without_validation_scores_marks_none(capsys: pytest.CaptureFixture[str]) -> None:
    """Without validation scores the table falls back to the test score in silence."""
    sweep_table([row("seed=1", validation_score=None), row("seed=2", validation_score=None, score=0.99)])
    assert "*" not in capsys.readouterr().out


def test_sweep_shows_failures_and_smoke(capsys: pytest.CaptureFixture[str]) -> None:
    """A run that failed is missing from the table, or its message is cut; a smoke run seems to prove something."""
    sweep_table(
        [
            row("loss.a.weight=1 loss.b.weight=1", smoke=True),
            {"overrides": "loss.a.weight=2 loss.b.weight=1", "message": "expected [x], got y"},
            row("loss.a.weight=3 loss.b.weight=1", gain_over_control=None, gain_ci95=None, retention=None),
        ]
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].endswith("smoke")
    assert lines[3].split() == ["weight=2", "n/a", "n/a", "n/a", "n/a", "failed"]
    assert lines[4].split()[-3:] == ["n/a", "not", "enough"]
    assert lines[-1] == "loss.a.weight=2 failed: expected [x], got y"


def test_sweep_shortens_no_key_that_would_be_ambiguous() -> None:
    """Two keys that end alike are both shown as weight=1."""
    assert _short(["loss.a.weight=1 trainer.epochs=2", "loss.b.weight=1"]) == [
        "loss.a.weight=1 epochs=2",
        "loss.b.weight=1",
    ]


def fake_export(**budget: Any) -> dict[str, Any]:
    """export.json with a good fp32 and an int8 file that is out of tolerance."""
    model = fake_model(random.Random(3), LABELS, 0.914, 4_386_178)
    good = model | {
        "parity": {"agreement": 1.0, "score_drop": 0.0, "max_abs_difference": 1e-6, "within": True},
        "budget": {"met": True},
    }
    bad = model | {
        "bytes": 4_500_000,
        "score": 0.851,
        "parity": {"agreement": 0.9012, "score_drop": 0.063, "max_abs_difference": 2.0, "within": False},
        "budget": budget or {"met": True},
    }
    return {
        "metric": "accuracy",
        "hardware": "cpu",
        "test_examples": 4000,
        "smoke": False,
        "torch": model,
        "artifacts": {"model.fp32.onnx": good, "model.int8.onnx": bad},
        "recommended": "model.fp32.onnx",
    }


def test_export_table(capsys: pytest.CaptureFixture[str]) -> None:
    """An artifact that is out of tolerance or over budget looks as good as one that is not."""
    limits = {
        "max_bytes": {"limit": 4e6, "value": 4_512_345, "met": False},
        "max_latency_ms_p95": {"limit": 9, "value": 1, "met": True},
        "min_agreement": {"limit": 0.95, "value": 0.9012, "met": False},
    }
    result = fake_export(**limits, max_memory_bytes={"limit": 1e8, "value": None, "met": False}, met=False)
    export_table(result)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:5])) <= 80
    assert lines[2].startswith("torch student ")
    assert re.split(r"\s{2,}", lines[3])[:2] == ["* model.fp32.onnx", "91.4 %"]
    assert re.split(r"\s{2,}", lines[3])[-2:] == ["100.0 %", "ok"]
    assert re.split(r"\s{2,}", lines[4])[-2:] == ["90.1 %", "MISSED"]
    assert lines[5:] == [
        "model.int8.onnx: out of tolerance: agrees with the torch student on 90.1 % of the rows and loses 6.3 points",
        "model.int8.onnx: misses its budget: max_bytes is 4.0 MB, and it needs 4.5 MB",
        "model.int8.onnx: misses its budget: min_agreement is 95.0 %, and it has 90.1 %",
        "model.int8.onnx: misses its budget: max_memory_bytes is 100 MB, and what it needs is not known",
        "* recommended: the smallest within tolerance and budget",
    ]


def test_targets_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Of several targets the first one's best is called the best of all, or one that failed is not told."""
    cpu = fake_export() | {"overrides": "run=runs/x hardware=cpu"}
    for entry, precision in zip(cpu["artifacts"].values(), ("fp32", "int8"), strict=True):
        entry["precision"] = precision
    intel = fake_export() | {"overrides": "run=runs/x hardware=intel"}
    small = intel["artifacts"]["model.fp32.onnx"] | {
        "bytes": 5_000_000,
        "times_faster": 3.14,
        "precision": "int8",
    }
    intel["artifacts"] = {"model.int8.xml": small}
    failed = {"overrides": "run=runs/x hardware=mobile", "exit_code": 2, "message": "no module litert"}
    targets_table([cpu, intel, failed])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:6])) <= 80
    assert [re.split(r"\s{2,}", line)[0] for line in lines[2:6]] == [
        "torch student",
        "cpu fp32",
        "cpu int8",
        "* intel int8",
    ]
    assert "3.1 x" in lines[5]
    assert [line.partition(":")[0] for line in lines[6:]] == ["* best", "mobile"]
    assert lines[7] == "mobile: no module litert"
    targets_table([failed])
    assert capsys.readouterr().out.splitlines() == ["run=runs/x mobile: no module litert"]


def test_export_table_with_nothing_to_recommend(capsys: pytest.CaptureFixture[str]) -> None:
    """When every artifact misses something the table still points at one, or a smoke export looks real."""
    export_table(fake_export() | {"recommended": None, "smoke": True})
    *_, nothing, smoke = capsys.readouterr().out.splitlines()
    assert nothing == "No artifact is within tolerance and budget."
    assert smoke == verdict_text(fake_report(smoke=True))


def test_eval_table(capsys: pytest.CaptureFixture[str]) -> None:
    """`kdcli eval` of an artifact, which has no parameters and no verdict, ends in a traceback; or of a run whose student is gone
    tells of turns with it."""
    report = fake_report()
    result = {"metric": "accuracy", "split": "validation", "examples": 2000, "dataset": {"name": "ag_news"}}
    artifact = {"bytes": 4_500_000, "score": 0.9, "scores": {}}
    eval_table(result | {"models": {"model.int8.onnx": artifact}})
    title, _, line = capsys.readouterr().out.splitlines()
    assert title == "2,000 rows of ag_news, split validation"
    assert line.split() == ["model.int8.onnx", "90.0", "%", "n/a", "n/a", "4.5", "MB", "n/a", "n/a", "n/a"]
    turns = {"times_faster": 2.0, "speedup": 3.0}
    eval_table(result | {"models": {"model.int8.onnx": artifact | turns}})
    assert "interleaved" in capsys.readouterr().out
    eval_table(result | {"models": {"control": report["models"]["control"] | turns}})
    assert "interleaved" not in capsys.readouterr().out, "it took them with the teacher"
    verdict = {"text": verdict_text(report)}
    eval_table(result | {"models": report["models"], "verdict": verdict})
    assert capsys.readouterr().out.splitlines()[-1] == verdict["text"]


def test_final_table_of_language_models_fits_eighty_columns(capsys: pytest.CaptureFixture[str]) -> None:
    """The table of a language model wraps, shows log-probabilities that nobody can read, or an interval turned
    round."""
    report = fake_lm_report(control=48_500.0)
    report["models"]["teacher"] |= HUGE
    final_table(report)
    title, *table, sentence = capsys.readouterr().out.splitlines()
    assert title == "1,000 test examples, 23,456 reference tokens"
    assert max(map(len, table)) <= 80
    heads = ["model", "perplexity (95 %)", "params", "size", "first token", "tokens/s", "memory"]
    assert re.split(r"\s{2,}", table[0]) == heads
    shown = [re.split(r"\s{2,}", line)[1] for line in table[1:]]
    assert shown == ["10.1 (9.80 to 10.4)", "48.5k (47.1k to 50.0k)", "14.2 (13.8 to 14.6)"]
    assert sentence == verdict_text(report)


def test_table_of_language_models_shows_what_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    """A remote teacher's nulls crash the end of a run, or an artifact without an interval has half a bracket."""
    final_table(fake_lm_report(teacher=None))
    assert capsys.readouterr().out.splitlines()[2].split() == ["teacher", *["n/a"] * 6]
    dataset = {"name": "x"}
    models = {"student.gguf": {"bytes": 45_000_000, "score": -2.5, "scores": {}}}
    eval_table({"metric": "log_prob", "split": "test", "examples": 10, "dataset": dataset, "models": models})
    assert capsys.readouterr().out.splitlines()[2].split()[:3] == ["student.gguf", "12.2", "n/a"]


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (0.0, "1.00"),
        (-0.04, "1.04"),
        (-6.9077, "1.00k"),
        (-6.9, "992"),
        (-25.0, "72.0B"),
        (-34.54, "over 999T"),
        (-1e9, "over 999T"),
        (None, "n/a"),
        (float("nan"), "n/a"),
    ],
)
def test_perplexity(score: float | None, expected: str) -> None:
    """A student that learned nothing overflows exp, or its perplexity of ten digits breaks the table."""
    assert PERPLEXITY.format_score(score) == expected


def test_sweep_of_language_models(capsys: pytest.CaptureFixture[str]) -> None:
    """The run of the highest perplexity is marked as the best, or nobody can tell in which unit the gain is."""
    changes = {"metric": "log_prob", "score": -2.65, "gain_over_control": 0.119, "gain_ci95": [0.08, 0.16]}
    sweep_table(
        [
            row("loss.soft_label.temperature=1", validation_score=-2.7, **changes),
            row("loss.soft_label.temperature=2", validation_score=-2.6, **changes),
        ]
    )
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:4])) <= 80
    assert re.split(r"\s{2,}", lines[3]) == [
        *("* temperature=2", "13.5", "14.2", "98.1 %", "+0.12 [+0.08, +0.16]", "helped")
    ]
    assert lines[-1] == "val. and test: perplexity (lower is better); gain: nats a token, higher is better"


def test_export_table_of_language_models(capsys: pytest.CaptureFixture[str]) -> None:
    """An artifact that is out of tolerance passes for a good one, or a score lost is told without its unit."""
    model = fake_lm_model(random.Random(3), 14.2, 49_820_373, 0.8)
    good = {"parity": {"agreement": 0.998, "score_drop": 0.0004, "within": True}, "budget": {"met": True}}
    bad = {"parity": {"agreement": 0.81, "score_drop": 0.163, "within": False}, "budget": {"met": True}}
    slow = good | {"budget": {"max_latency_ms_p95": {"limit": 5, "value": 9.96, "met": False}, "met": False}}
    export_table(
        fake_export()
        | {"metric": "log_prob", "torch": model, "recommended": "student.q8_0.gguf"}
        | {
            "artifacts": {
                "student.q8_0.gguf": model | good,
                "student.q4_k_m.gguf": model | bad,
                "student.f16.gguf": model | slow,
            }
        }
    )
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:6])) <= 80
    assert re.split(r"\s{2,}", lines[1])[-3:] == ["memory", "agrees", "checks"]
    assert [line.split()[-1] for line in lines[3:6]] == ["ok", "MISSED", "MISSED"]
    tolerance, budget, recommended = lines[6:]
    require_words(tolerance, "student.q4_k_m.gguf", "tolerance", "81.0 % of the tokens", "0.16 nats a token")
    require_words(budget, "student.f16.gguf", "max_latency_ms_p95", "5.0 ms", "10.0 ms")
    assert recommended.startswith("* recommended: ")


def test_export_table_tells_how_answers_come(capsys: pytest.CaptureFixture[str]) -> None:
    """Tokens a second hide the wait for the first token, and a mean the tokens that stutter."""
    good = {"parity": {"agreement": 1.0, "score_drop": 0.0, "within": True}, "budget": {"met": True}}
    stream = {
        "first_token_ms": {"p50": 80.4, "p95": 1234.0},
        "between_tokens_ms": {"p50": 0.42, "p95": 21.34, "p99": 90.0},
    }
    model = fake_lm_model(random.Random(3), 14.2, 49_820_373, 0.8)
    artifacts = {"model.int4.onnx": model | good | stream}
    export_table(fake_export() | {"metric": "log_prob", "torch": model, "artifacts": artifacts})
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("model.int4.onnx: ")]
    require_words(line, "first token", "80.4 ms", "95 %: 1,234 ms", "0.42 ms", "95 %: 21.3 ms")


# --- the page ---


class Page(HTMLParser):
    """What a browser would see in a report: its elements, its text, and everything it would fetch or run."""

    VOID = frozenset({"meta", "br", "path", "use", "circle", "rect", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            self.handlers += [name] if name.startswith("on") else []
            self.links += (
                [str(value)] if name in ("src", "href", "xlink:href", "srcset", "data", "action") else []
            )
            self.links += re.findall(r"url\((.*?)\)", value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(run: Path) -> str:
    write_html(run)
    return (run / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of an ordinary run."""
    return page_of(fake_run(tmp_path_factory.mktemp("run"), fake_report(), fake_metrics()))


def test_page_opens_without_a_network(page: str) -> None:
    """A report that was mailed or archived shows nothing, or tells a server that it was opened."""
    seen = Page(page)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & set(seen.tags)
    assert all(link.startswith("#") for link in seen.links)
    assert not re.search(r"https?:|@import|@font-face", page)
    assert seen.open == []
    assert len(page) < 1_000_000


def test_page_holds_what_was_found(page: str) -> None:
    """A section is lost from the template and nobody notices."""
    seen = Page(page)
    text = " ".join(seen.text.split())
    assert verdict_text(fake_report()) in text
    for part in (
        *(
            "109M",
            "17.5 MB",
            "92.3 to 93.9",
            "soft_label",
            "weight 0.9, temperature 2.0",
            "20,000",
            "seeds.student",
        ),
        *(
            "Loss terms of the teacher",
            "Loss terms of the student",
            "Loss terms of the control",
            "Validation accuracy",
        ),
        *(
            "ECE 0.042",
            "Confusion matrix of the student",
            "What the teacher added",
            "2:11 · 1,875 steps",
            "1,875 steps, until its validation curve was flat; best score at 1,500",
            "2,500 steps, the most that was allowed",
            "Sci/Tech",
        ),
    ):
        assert part in text
    assert seen.tags.count("svg") == 2 + 1 + 3 + 1  # scores and gain, validation, losses, calibration


def test_page_defines_every_colour_in_light_and_dark(page: str) -> None:
    """A plot's lines vanish in dark mode, because a colour was left black or was never defined."""
    light, dark = re.findall(r":root \{(.*?)\}", page, flags=re.DOTALL)
    used = set(re.findall(r"var\(--([\w-]+)\)", page)) - {"v", "c", "tone"}
    assert {"student", "control", "teacher", "ink", "grid"} <= used
    for theme in (light, dark):
        assert used <= set(re.findall(r"--([\w-]+):", theme))
    for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        assert not re.search(r"#[0-9a-f]{6}\b", svg)


def test_page_ids_differ_between_plots(page: str) -> None:
    """Two plots share an id, and one is clipped by, or drawn with the markers of, the other."""
    ids = re.findall(r' id="([^"]*)"', page)
    assert ids
    assert len(ids) == len(set(ids))


def test_page_escapes_text_from_outside(tmp_path: Path) -> None:
    """A label or a data set called <script> runs in the browser of whoever opens the report."""
    evil = '<script>alert("x")</script>'
    report = fake_report(labels=[evil, "$x_1^2$", "a & b", "\\frac{"], control=None)
    report["dataset"]["name"] = evil
    report["loss"] = {evil: {"weight": 1.0, evil: evil}}
    report["stages"].append({"name": evil, "seconds": 1.0, "steps": 1})
    metrics = [
        {"stage": evil, "step": step, f"loss/{evil}": 1.0, "loss/$a_$": 2.0, f"eval/loss/{evil}": 1.0}
        for step in (1, 2)
    ]
    run = fake_run(tmp_path / "a&b<i>", report, metrics)
    (run / "env.json").write_text(json.dumps({evil: evil}))
    seen = Page(page_of(run))
    assert not {"script", "i>"} & set(seen.tags)
    assert seen.handlers == []
    assert seen.text.count(evil) > 8
    assert "$x_1^2$" in seen.text


def failing(**texts: str) -> dict[str, Any]:
    """A report with rows on which the student fails; `texts` replaces values of each row."""
    row = {
        "text": "Late again",
        "gold": "Sports",
        "teacher": ["Sports", 0.9],
        "control": ["World", 0.5],
        "student": ["World", 0.8],
    }
    groups = {
        name: {"total": 70, "rows": [row | texts] * 2} for name in ("teacher_right", "both_wrong", "differ")
    }
    missing = {"reason": "the student was not trained to the end", "key": "trainer.until=converged"}
    report = fake_report(mistakes=groups)
    report["verdict"] |= {"outcome": "not_enough", "missing": [missing]}
    return report


def test_page_shows_where_the_student_fails_and_what_to_try(tmp_path: Path) -> None:
    """A score says that a student fails, and not where; or the search does not run because the page forbids its script."""
    run = fake_run(tmp_path / "run", failing(), fake_metrics())
    (run / ".hydra").mkdir()
    (run / ".hydra" / "overrides.yaml").write_text(
        "- student='small'\n- dataset.path=my rows.csv\n- dataset.label='true'\n- teacher='minilm'\n- student=tiny\n"
    )
    (run / "student").mkdir()
    (run / "student" / "config.json").write_text(
        '{"model_type": "bert", "num_hidden_layers": 2, "hidden_size": 128}'
    )
    page = page_of(run)
    seen = Page(page)
    text = " ".join(seen.text.split())
    for part in (
        *(
            "kdcli distill student=tiny 'dataset.path=my rows.csv' 'dataset.label='\"'\"'true'\"'\"'' teacher=minilm",
            "bert, 2 layers, hidden size 128",
        ),
        *("1,875 steps, 3 epochs, learning rate up to 0.0003", "70 test rows, 2 of them", "Late again"),
        *("World 80.0 %", "Sports 90.0 %, right", "trainer.until=converged", "kdcli compare", "P 9", "R 9"),
    ):
        assert part in text, part
    [script] = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert seen.open == seen.handlers == []
    assert page.count("<svg") == len(re.findall(r'<svg aria-label="[^"]+"', page))


def test_cards_do_not_touch(page: str) -> None:
    """What makes a run doubtful touches the verdict: .card, which comes after .note, takes its margin away."""
    assert page.rindex("\n.suspicions { margin-top: 14px }") > page.rindex("\n.card, figure { margin: 0;")


SEARCH = """
const [texts, typed] = process.argv.slice(1).map(JSON.parse), rows = texts.map((textContent) => ({ textContent, hidden: false }));
const elements = { search: { value: "", addEventListener: (_, listener) => (elements.search.listener = listener) }, found: {} };
const document = { getElementById: (id) => elements[id], querySelectorAll: (all) => (all === ".failure" ? rows : []) };
%s
const shown = typed.map((value) => {
  elements.search.value = value;
  elements.search.listener();
  return [rows.flatMap((row, index) => (row.hidden ? [] : [index])), elements.found.textContent];
});
console.log(JSON.stringify(shown));
"""
"""The script of the page between the elements that it reads; prints for each text that is typed the rows that stay and their count."""


def test_the_search_of_the_page_filters_its_rows(tmp_path: Path) -> None:
    """The search box hides the rows that have the words, or all, or none once it is empty again."""
    report = failing()
    texts = ("Late again", "Never late", "All well")
    row = report["mistakes"]["differ"]["rows"][0]
    report["mistakes"] = {"differ": {"total": 3, "rows": [row | {"text": text} for text in texts]}}
    page = page_of(fake_run(tmp_path / "run", report, []))
    [script] = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    rows = [
        Page(each).text for each in re.findall(r'<dl class="lines failure">.*?</dl>', page, flags=re.DOTALL)
    ]
    assert [text in row for text, row in zip(texts, rows, strict=True)] == [True] * 3
    assert {'id="search"', 'id="found"'} <= set(re.findall(r'id="\w+"', page))
    if (node := shutil.which("node")) is None:
        pytest.skip("node is not installed")
    typed = ["LATE", "late never", "nothing like it", ""]
    done = subprocess.run(
        [node, "-e", SEARCH % script, json.dumps(rows), json.dumps(typed)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [[[0, 1], "2 rows"], [[1], "1 row"], [[], "0 rows"], [[0, 1, 2], ""]]


def test_page_escapes_rows_of_a_data_set(tmp_path: Path) -> None:
    """A row of the test split that holds a <script> runs beside the page's own."""
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    seen = Page(page_of(fake_run(tmp_path / "run", failing(text=evil, gold=evil), [])))
    assert seen.tags.count("script") == 1
    assert seen.handlers == []
    assert seen.text.count(evil) == 12


def test_colours_of_twenty_terms_differ(page: str) -> None:
    """Two loss terms have the same colour."""
    for theme in re.findall(r":root \{(.*?)\}", page, flags=re.DOTALL):
        colours = re.findall(r"--term\d+: (#\w+)", theme)
        assert len(colours) == len(set(colours)) == 20


def test_page_of_language_models_holds_what_was_found(tmp_path: Path) -> None:
    """The page of a language model lacks what it has, or shows empty sections for what it has not."""
    page = page_of(fake_run(tmp_path, fake_lm_report(), fake_lm_metrics()))
    seen = Page(page)
    text = " ".join(seen.text.split())
    assert verdict_text(fake_lm_report()) in text
    for part in (
        *("13.8 to 14.6", "Test perplexity", "Validation perplexity", "nats a token over the control"),
        *("1,000 test rows (23,456 reference tokens)", "tokens per second", "Time to first token, p50"),
        *("KL to the teacher", "0.80", "the control's is 1.10", "ROUGE-L", "trained on references alone"),
        *("Loss terms of the student", "71.1 %", "of the teacher's probability of a reference token"),
    ):
        assert part in text
    for absent in ("Calibration", "Confusion", "Classes", "macro F1", "accuracy ", "p50 ms"):
        assert absent not in text.replace("token accuracy", "")
    assert seen.tags.count("svg") == 2 + 1 + 3  # scores and gain, validation, losses
    assert text.count("The council talked about the closed bridge on Tuesday.") == 10
    assert text.count("The council met on Tuesday. The council met") == 10
    assert seen.open == []
    assert all(link.startswith("#") for link in seen.links)
    assert not re.search(r"https?:|@import|@font-face", page)
    assert len(page) < 1_000_000


def test_page_shows_who_says_what_in_a_prompt(tmp_path: Path) -> None:
    """The turns of a conversation stand in one text, and the instruction passes for what the user says."""
    report = fake_lm_report()
    turns = [("system", "Be brief."), ("user", "Hello <b>"), ("assistant", "Hi."), ("user", "Why?")]
    conversation = {"turns": [{"role": role, "text": text} for role, text in turns]}
    report["generations"] = [report["generations"][0] | conversation, report["generations"][0]]
    page = page_of(fake_run(tmp_path, report, []))
    shown = re.findall(
        r'<div class="prompt"><small>(.*?)</small><p dir="auto">(.*?)</p>', page, flags=re.DOTALL
    )
    assert shown[:4] == [(role, text.replace("<b>", "&lt;b&gt;")) for role, text in turns]
    assert [(role, text.partition(" ")[0]) for role, text in shown[4:]] == [("prompt", "Summarise")]


def test_page_escapes_generations(tmp_path: Path) -> None:
    """A model writes a <script>, and it runs in the browser of whoever reads the report."""
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)></p></div>{{ 7 * 7 }}"
    report = fake_lm_report()
    report["generations"] = [dict.fromkeys(report["generations"][0], evil)]
    seen = Page(page_of(fake_run(tmp_path, report, [])))
    assert not {"script", "img"} & set(seen.tags)
    assert seen.handlers == seen.open == []
    assert seen.text.count(evil) == 5


def test_page_of_odd_generations(tmp_path: Path) -> None:
    """A model that writes nothing, on and on, or half a character breaks the page, or seems to be missing from it."""
    report = fake_lm_report(control=None)
    report["generations"] = [
        {"prompt": "p", "reference": "r", "teacher": "", "student": "word " * 20_000},
        {"prompt": "half \ud83d", "reference": "r", "teacher": None, "student": "x" * 500},
    ]
    page = page_of(fake_run(tmp_path, report, []))
    seen = Page(page)
    assert len(page) < 300_000
    assert page.count('<p class="none">nothing</p>') == 2
    assert "word …" in seen.text
    assert "control" not in page.partition("Generations")[2].partition("The run")[0]


def without(report: dict[str, Any], *keys: str) -> dict[str, Any]:
    """The report with these keys gone from all models."""
    for model in report["models"].values():
        for key in keys:
            model.pop(key, None)
    return report


@pytest.mark.parametrize(
    ("report", "metrics"),
    [
        (fake_report(control=None), fake_metrics(("student",), 300)),
        (fake_report(control=None, smoke=True, stages=[]), []),
        (fake_report(teacher=None), None),
        (
            fake_report(absent=2),
            [{"stage": "student", "step": 1, "loss/a": float("nan"), "eval/score": float("inf")}],
        ),
        (fake_report(ci95=None), [{"stage": "student", "step": 1, "loss/a": 0.0, "eval/score": 0.5}]),
        (
            fake_report(student=0.0, control=0.0, ci95=(0, 0)),
            [{"stage": "student", "step": 1, "loss/a": 1e-9}],
        ),
        (
            without(fake_report(), "confusion", "calibration", "scores", "latency_ms"),
            fake_metrics(("control",), 30),
        ),
        (fake_report(labels=["one"]), fake_metrics(("teacher",), 150)),
        (fake_lm_report(teacher=None, generations=None), None),
        (fake_lm_report(control=None, student=1e300, smoke=True, stages=[]), fake_lm_metrics()),
        (without(fake_lm_report(ci95=None, kl=None), "scores", "latency_ms"), []),
    ],
    ids=[
        *("no-control", "smoke", "remote", "absent-class", "no-interval", "zeros", "bare", "one-class"),
        *("remote-lm", "no-control-lm", "bare-lm"),
    ],
)
def test_page_survives_what_is_missing(
    tmp_path: Path, report: dict[str, Any], metrics: list[dict[str, Any]] | None
) -> None:
    """A run of hours ends in a traceback because a figure that it could not have is not there."""
    run = fake_run(tmp_path, report, metrics)
    if metrics is None:
        (run / "env.json").unlink()
    seen = Page(page_of(run))
    assert verdict_text(report) in " ".join(seen.text.split())
    assert not re.search(r"\b(nan|inf|None|undefined)\b", seen.text)


def test_page_says_which_class_has_no_test_rows(tmp_path: Path) -> None:
    """A class that the test split lacks seems to be one that the student never gets right."""
    text = Page(page_of(fake_run(tmp_path, fake_report(absent=2)))).text
    assert text.count("no test rows") == 3  # once a model


def test_page_of_many_classes_stays_readable(tmp_path: Path) -> None:
    """With 150 classes the page is megabytes of empty cells and its worst confusion cannot be found."""
    report = fake_report(labels=[f"intent {i}" for i in range(150)])
    student = report["models"]["student"]["confusion"]
    student[7][9] += 60
    page = page_of(fake_run(tmp_path, report))
    text = " ".join(Page(page).text.split())
    assert len(page) < 1_000_000
    assert page.count('class="hit"') == 3 * 12
    assert re.search(r"intent 7 → intent 9 \(6\d of 160\)", text)
    assert "elsewhere" in text


def test_matrix_of_many_classes_adds_up() -> None:
    """Rows of a limited confusion matrix lose the answers that went to classes which are not shown."""
    report = fake_report(labels=[str(i) for i in range(40)])
    student = report["models"]["student"]
    matrix = _matrix("student", report["labels"], student, student)
    assert matrix is not None
    for line in matrix["rows"]:
        assert sum(cell[0] for cell in line["cells"]) == line["total"] == 100


def test_page_of_a_long_run_stays_small(tmp_path: Path) -> None:
    """A log of a hundred thousand steps makes a page that no browser opens."""
    metrics = [{"stage": "student", "step": i, "loss/a": 1 / (i + 1), "loss/b": 3.0} for i in range(30_000)]
    assert len(page_of(fake_run(tmp_path, fake_report(), metrics))) < 300_000


def test_log_of_a_killed_and_resumed_run(tmp_path: Path) -> None:
    """Half a line left by a kill stops the report, or the repeated steps draw the curve twice."""
    lines = [
        {"stage": "student", "step": step, "loss/a": value} for step, value in ((1, 9.0), (2, 8.0), (2, 7.0))
    ]
    lines.append({"stage": "student", "step": 2, "eval/score": 0.5})
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"stage": "stud')
    assert _read_metrics(path) == [lines[0], lines[2], lines[3]]


def test_labels_that_are_longer_than_a_plot_leave_some_of_it() -> None:
    """A run whose assistant has a long name ends without a report."""
    models = {name: {"score": 0.5, "scores": {"share_ci95": [0.4, 0.6]}} for name in ("student", "a" * 100)}
    plot = str(score_plot(PERCENT, models))
    x = [float(number) for number in re.findall(r"M (-?[\d.]+) ", plot)]
    assert max(x) - min(x) > 100
    assert "a" * 100 in plot


def test_the_labels_of_an_axis_have_room() -> None:
    """The first digit of `1.05` is cut off: the plot grows into its margins, and another choice of ticks has longer labels."""
    from matplotlib.textpath import TextPath

    for losses in ([1.069, 0.92, 0.912, 0.756, 0.901, 0.918], [2.0, 1.1], [0.0101, 0.0099], [12000.0, 9.5]):
        records = [
            {"stage": "teacher", "step": 10 * n, "loss/hard_label": loss} for n, loss in enumerate(losses, 1)
        ]
        (curve,) = loss_curves(records)
        labels = re.findall(r'text-anchor: end[^>]* x="(-?[\d.]+)"[^>]*>([^<]+)</text>', str(curve["svg"]))
        assert len(labels) >= 3
        widths = {text: TextPath((0, 0), text, size=11).get_extents().width for _, text in labels}
        assert not {text for x, text in labels if float(x) - widths[text] < 0}, losses


def test_page_is_deterministic_and_leaves_matplotlib_alone(tmp_path: Path) -> None:
    """Two reports of one run differ, or a notebook's own plots change style after a report was written."""
    import matplotlib

    run = fake_run(tmp_path, fake_report(), fake_metrics(("student",)))
    before = copy.deepcopy(dict(matplotlib.rcParams))
    first = page_of(run)
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert page_of(run) == first


def test_page_without_a_writable_home(tmp_path: Path) -> None:
    """In a container without a writable home matplotlib's cache folder cannot be made, and the run ends in that."""
    fake_run(tmp_path, fake_report(), fake_metrics(("student",), 60))
    code = "import pathlib, sys; from kdcli.report.page import write_html; write_html(pathlib.Path('.'))"
    code += "; assert 'matplotlib.pyplot' not in sys.modules"
    environment = {
        **os.environ,
        "MPLCONFIGDIR": "/dev/null/no",
        "HOME": "/dev/null/no",
        "PYTHONPATH": os.getcwd(),
    }
    environment["TMPDIR"] = str(tmp_path)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, timeout=60)
    assert (tmp_path / "report.html").is_file()


def test_page_can_be_written_before_the_report(tmp_path: Path) -> None:
    """report.json, which says that a run is finished, must be there before the page, and a kill between them
    leaves a finished run without one."""
    write_html(tmp_path, fake_report())
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """A report that cannot be made again destroys the one that was there, or leaves temporary files."""
    run = fake_run(tmp_path, fake_report(), [])
    before = page_of(run)
    (run / "report.json").write_text(json.dumps({"metric": "accuracy"}))
    with pytest.raises(KeyError):
        write_html(run)
    assert (run / "report.html").read_text(encoding="utf-8") == before
    assert {path.name for path in run.iterdir()} == {
        "report.json",
        "report.html",
        "metrics.jsonl",
        "env.json",
    }


@pytest.mark.parametrize("content", [None, "{half"])
def test_page_of_a_run_without_report_is_a_clear_error(tmp_path: Path, content: str | None) -> None:
    """A directory that is no finished run ends in a traceback."""
    if content:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(KDError, match=r"report\.json"):
        write_html(tmp_path)


# --- the model card ---


def front_matter(card: str) -> tuple[dict[str, Any], str]:
    _, front, body = card.split("---\n", 2)
    return yaml.safe_load(front), body


def test_model_card_front_matter() -> None:
    """The hub refuses the card, files the model under no task, or is given a base model that is no hub id."""
    front, body = front_matter(model_card(fake_report(), NAMES))
    (index,) = front.pop("model-index")
    (result,) = index["results"]
    assert (index["name"], result["dataset"]["name"]) == (NAMES["student"], NAMES["dataset"])
    assert result["metrics"] == [{"type": "accuracy", "value": 0.914, "name": "accuracy"}]
    assert "model-index" not in front_matter(model_card(fake_report(smoke=True), NAMES))[0]
    assert front_matter(model_card(fake_report(), NAMES | {"hub_dataset": "a/b"}))[0]["datasets"] == ["a/b"]
    assert front == {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["text-classification", "knowledge-distillation", "kdcli"],
        "metrics": ["accuracy", "f1"],
    }
    with_base, _ = front_matter(model_card(fake_report(), NAMES | {"base_model": "google/bert: tiny"}))
    assert with_base["base_model"] == "google/bert: tiny"
    assert "started from" not in body.partition("## Limits")[0]


def test_model_card_tells_what_a_stranger_needs() -> None:
    """A published student does not say what it was made from, how good it is, or that a licence may bind it."""
    report = fake_report()
    card = model_card(report, NAMES)
    for part in (
        "distilled from bert-base on ag\\_news",
        verdict_text(report),
        "pipeline(",
        "licences",
        "Sci/Tech",
    ):
        assert part in card
    table = [line for line in card.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 3
    assert len({line.count("|") for line in table}) == 1
    smoke = fake_report(smoke=True, control=None)
    assert verdict_text(smoke) in model_card(smoke, NAMES)


def test_model_card_of_a_language_model() -> None:
    """A language model is filed as a classifier, is loaded with the wrong class, or hides how it compares."""
    report = fake_lm_report()
    card = model_card(report, NAMES)
    front, body = front_matter(card)
    (index,) = front.pop("model-index")
    assert index["results"][0]["metrics"][0]["value"] == pytest.approx(14.2, abs=0.05)
    assert front == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["text-generation", "knowledge-distillation", "kdcli"],
        "metrics": ["perplexity"],
    }
    for part in (
        *(
            verdict_text(report),
            "AutoModelForCausalLM.from_pretrained(path)",
            "lower is better",
            "licences",
        ),
        *(
            "trained on the references alone",
            "20,000 have a reference",
            "the teacher's at 68.3 % of the places",
        ),
    ):
        assert part in body
    assert not re.search(r"classes|classif|gold|ECE", body)
    code = re.search(r"```python\n(.*?)```", body, flags=re.DOTALL)
    assert code
    compile(code[1], "README.md", "exec")
    table = [line for line in card.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert [line.split(" | ")[1] for line in table] == ["perplexity", "---:", "10.1", "16.0", "14.2"]
    smoke = fake_lm_report(smoke=True, control=None)
    assert verdict_text(smoke) in model_card(smoke, NAMES)


def test_model_card_escapes_names() -> None:
    """A label breaks out of its line: a heading, a table, HTML or a second front matter appears in the card."""
    evil = "a|b\n# c <img src=x> `d` ---\n---\n\x1b[2J &lt;img src=y&gt; ![e](http://f) \u202e"
    named = NAMES | {"base_model": "own"}
    plain = model_card(fake_report(), named)
    report = fake_report(labels=[evil, "b"])
    report["loss"] = {evil: {evil: evil}}
    for base in ("own", evil):
        names = dict.fromkeys(("teacher", "student", "dataset"), evil)
        card = model_card(report, named | names | {"base_model": base})
        body = card.partition("\n---\n")[2]
        text = body.partition(" It started from ")[0] if base == evil else body
        assert not re.search(r"(?<!\\)(<img|\[e\]|&lt;|`d)|\x1b|\u202e", text)
        assert card.count("\n# ") == plain.count("\n# ")
        assert body.count("\n") == plain.partition("\n---\n")[2].count("\n")
        index = front_matter(card)[0]["model-index"]
        assert front_matter(card)[0] == front_matter(plain)[0] | {"base_model": base, "model-index": index}


def test_import_is_light() -> None:
    """`kdcli list` and the table of a sweep wait seconds for matplotlib or torch."""
    code = "import kdcli.report.page, kdcli.report.tables, kdcli.report.cards, sys; print(sorted({'torch', 'matplotlib', 'numpy', 'jinja2'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_count_of_one_is_singular(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run of one step on one row passes for one whose figures were made up: `1 test rows`, `1 steps`, `1 epochs`."""
    assert [format_items(count, "row") for count in (0, 1, 1200)] == ["0 rows", "1 row", "1,200 rows"]
    assert format_items(1, "query", "queries") == "1 query"
    assert format_items(2, "query", "queries") == "2 queries"
    short = {"steps": 1, "stopped": "steps", "best_step": None, "flat": False}
    stages = [{"name": name, "seconds": 1.0, "steps": 1} for name in ("teacher", "student", "control")]
    report = fake_report(test_examples=1, training={"student": short, "control": short}, stages=stages)
    metrics = [line | {"epoch": 1.0, "step": 1} for line in fake_metrics(steps=15)]
    plural = re.compile(r"(?<![\d.,])1 (test )?(rows|steps|epochs|examples|runs|tokens)\b")
    html = page_of(fake_run(tmp_path / "run", report, metrics))
    final_table(report)
    export_table(fake_export() | {"test_examples": 1})
    sweep_table([row("seed=1")])
    shown = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL) + capsys.readouterr().out
    assert not plural.search(shown), plural.search(shown)
    require_words(shown, "1 test row", "1 step", "1 epoch", "1 test example", "1 run")
