"""Writes sections of report.html: what was trained, where the student fails, and what to try next."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdcli.errors import ConfigError
from kdcli.files import read_json
from kdcli.numbers import format_items, format_number, truncate_text
from kdcli.report.outcome import under_tuned
from kdcli.rundir import recorded_overrides
from kdcli.tasks.presentation import PERCENT, Report, outcome_of

SHAPE = (
    ("layers", ("num_hidden_layers", "n_layers", "num_layers", "n_layer", "encoder_layers")),
    ("decoder layers", ("decoder_layers", "num_decoder_layers")),
    ("hidden size", ("hidden_size", "d_model", "dim", "n_embd")),
    ("attention heads", ("num_attention_heads", "n_heads", "n_head", "encoder_attention_heads", "num_heads")),
    ("feed-forward size", ("intermediate_size", "hidden_dim", "ffn_dim", "encoder_ffn_dim", "d_ff")),
    ("tokens", ("vocab_size",)),
)
"""The sizes of an architecture, and the names that configs of transformers have for each."""
GROUPS = (
    ("teacher_right", "The student is wrong, the teacher is right", "the student's most confident first"),
    ("both_wrong", "Both are wrong", "the student's most confident first"),
    ("differ", "They differ most", "by the total variation distance of their probabilities"),
)
"""The groups of `kdcli.tasks.mistakes.mistakes`, with their headings."""


_QUOTED = re.compile(
    r"^([^=]*=)'(?!(?:null|true|false|on|off|inf|nan)')([A-Za-z_./~][\w./:@+~-]*)'$", re.IGNORECASE
)
"""An override whose value is in quotes of Hydra's grammar, and need not be."""


def facts(run: Path, report: Report, metrics: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield lines on what was trained and how, as far as the run directory states it."""
    words = recorded_overrides(run)
    if words is not None:
        last = {word.partition("=")[0]: _QUOTED.sub(r"\1\2", word) for word in words}
        yield "command", shlex.join(["kdcli", "distill", *last.values()])
    if shape := _shape(run / "student" / "config.json"):
        yield "student", shape
    if fidelity := report.get("fidelity"):
        yield f"teacher in {fidelity['quantization']}", _fidelity(fidelity)
    for name in ("student", "control", "teacher"):
        records = [
            record
            for record in metrics
            if str(record.get("stage")).partition("/")[0] == name and "lr" in record
        ]
        if not records:
            continue
        steps = (report.get("training") or {}).get(name, {}).get("steps") or records[-1]["step"]
        epochs = format_number(records[-1].get("epoch"))
        rate = max(
            (value for each in records if (value := format_number(each["lr"])) is not None), default=None
        )
        length = "" if epochs is None else f"{epochs:.3g}"
        text = format_items(steps, "step") + (length and f", {length} epoch{'s' * (length != '1')}")
        yield (
            f"training of the {name}",
            text + (f", learning rate up to {rate:.2g}" if rate is not None else ""),
        )


def _fidelity(fidelity: Mapping[str, Any]) -> str:
    """Return what the quantization of the teacher costs."""
    divergence, agreement = format_number(fidelity["kl"]), format_number(fidelity["agreement"])
    if divergence is None or agreement is None:
        return "its loss of fidelity is unknown: without quantization it does not fit into memory"
    return f"KL {divergence:.5f} nats from itself without quantization, the same prediction at {agreement:.1%} of the validation positions"


def _shape(path: Path) -> str:
    """Return the architecture in a model's config.json; "" if it tells none."""
    try:
        config = read_json(path, dict[str, Any], "")
    except ConfigError:
        return ""
    sizes = [
        f"{next(config[key] for key in keys if isinstance(config.get(key), int)):,} {name}"
        if name in ("layers", "decoder layers", "attention heads", "tokens")
        else f"{name} {next(config[key] for key in keys if isinstance(config.get(key), int)):,}"
        for name, keys in SHAPE
        if any(isinstance(config.get(key), int) for key in keys)
    ]
    return ", ".join([str(config.get("model_type") or "model"), *sizes])


def failures(report: Report) -> list[dict[str, Any]]:
    """Return the groups of test rows that show where the student fails, without empty ones."""
    groups = []
    for key, title, order in GROUPS:
        group = (report.get("mistakes") or {}).get(key) or {}
        rows = [
            {
                "text": truncate_text(row.get("text")),
                "gold": str(row.get("gold")),
                "predictions": [
                    (
                        name,
                        str(row[name][0]),
                        PERCENT.format_score(row[name][1]),
                        row[name][0] == row.get("gold"),
                    )
                    for name in ("teacher", "control", "student")
                    if name in row
                ],
            }
            for row in group.get("rows") or ()
        ]
        if rows:
            groups.append(
                {"title": title, "order": order, "total": group.get("total", len(rows)), "rows": rows}
            )
    return groups


def next_steps(run: Path, report: Report) -> Iterator[tuple[str, str]]:
    """Yield what to try next: (what for, a key or a command). The first ones are what the verdict misses."""
    verdict = report["verdict"]
    for missing in verdict.get("missing") or ():
        yield str(missing.get("reason")), str(missing.get("key") or "")
    keys = under_tuned(report)
    if keys:
        yield "the teacher is no better than the student without it: tune it longer", keys
    for suspicion in report.get("suspicions") or ():
        if suspicion.get("key"):
            yield str(suspicion.get("text")).split("; ")[0], str(suspicion["key"])
    if outcome_of(verdict) == "no_evidence":
        yield (
            "a smaller gain is shown by more test rows, or by several seeds",
            "dataset.test_size, seeds=[0,1,2]",
        )
    yield "export the student for a device", f"kdcli export {shlex.quote(str(run))} hardware=cpu"
    yield "compare it with another run", f"kdcli compare {shlex.quote(str(run))} OTHER"


def precision_and_recall(report: Report, label: str, name: str) -> tuple[float | None, float | None]:
    """Return precision and recall of a class, or of an entity type, of a model; None: there is none, or it is not known."""
    model = report["models"][name]
    scores = model.get("scores") or {}
    if "per_type_precision" in scores:
        return (
            format_number(scores["per_type_precision"].get(label)),
            format_number((scores.get("per_type_recall") or {}).get(label)),
        )
    confusion, labels = model.get("confusion"), report["labels"]
    if not confusion or label not in labels:
        return None, None
    at = labels.index(label)
    hits, gold, predicted = confusion[at][at], sum(confusion[at]), sum(row[at] for row in confusion)
    return hits / predicted if predicted else None, hits / gold if gold else None
