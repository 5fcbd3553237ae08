"""Model cards of students and of exported files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdcli.errors import printable
from kdcli.numbers import format_count, format_share
from kdcli.report.metrics import metric_of, present_models
from kdcli.report.tables import (
    UNRUN,
    export_cells,
    export_columns,
    load_lines,
    model_columns,
    model_rows,
    probability_lines,
    stream_lines,
)
from kdcli.report.verdict import verdict_text
from kdcli.tasks import presentation_of
from kdcli.tasks.presentation import Metric, Presentation, Report


def model_card(report: Report, extra: Mapping[str, Any]) -> str:
    """README.md of the student's directory, with the front matter that the Hugging Face hub reads.

    ``extra``: ``teacher``, ``student``, ``dataset`` (names), ``base_model`` (hub id that the student started
    from, or None), ``kdcli_version``; ``chat``: it has learnt conversations.
    """
    import yaml

    card, metric = _presentation(report).card, metric_of(report)
    front: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": card.tag,
        "tags": [card.tag, "knowledge-distillation", "kdcli"],
        "metrics": list(card.metrics),
    }
    if extra.get("base_model"):
        front["base_model"] = extra["base_model"]
    models, dataset = present_models(report), report["dataset"]
    student = models["student"]
    teacher, name, data = (_markdown(extra[key]) for key in ("teacher", "student", "dataset"))
    details = [(name, cells) for _, name, cells in details_of(metric, models) if name]
    columns = [*model_columns(metric), *(name for name, _ in details)]
    rows = [row + [cells[i] for _, cells in details] for i, row in enumerate(model_rows(metric, models))]
    table = [columns, ["---"] + ["---:"] * (len(columns) - 1), *rows]
    labels = [_markdown(label) for label in report["labels"]]
    listed = (
        f" It tells {len(labels)} classes apart: "
        + ", ".join(labels[:50])
        + (f" and {len(labels) - 50} more" if len(labels) > 50 else "")
        + "."
    )
    losses = [
        f"{_markdown(term)} (" + ", ".join(f"{_markdown(k)} {_markdown(v)}" for k, v in options.items()) + ")"
        for term, options in report["loss"].items()
    ]
    agreement = format_share(report["verdict"].get("agreement"))
    copied = "" if agreement == "n/a" else " " + card.agreement.format(agreement)
    started = f" It started from {_code(extra['base_model'])}." if extra.get("base_model") else ""
    train, labelled, validation = (f"{dataset[split]:,}" for split in ("train", "labelled", "validation"))
    cleaned = cleaned_text(dataset.get("dropped") or {})
    sample = json.dumps(
        f"{dataset.get('prefix') or ''}A text like those it was trained on.", ensure_ascii=False
    )
    signed = "\n".join(f"- {name}: {_markdown(text)}" for name, text in signatures_of(report))
    return f"""---
{yaml.safe_dump(front, sort_keys=False).strip()}
---

# {name}

**{_markdown(verdict_text(report))}**

A {card.model} of {format_count(student.get("parameters"))} parameters, distilled from {teacher} on {data}
with kdcli {extra["kdcli_version"]}.{started}{listed if labels else ""}

## Use

```python
{card.use_of_chat if extra.get("chat") else card.use.replace("INPUT", sample)}
```

## Figures

{chr(10).join("| " + " | ".join(line) + " |" for line in table)}

Measured once, after training, on {report["test_examples"]:,} test rows that neither training nor selection
saw. The control is the same student trained on the {metric.gold} alone, without the teacher. {card.figures}{signed and chr(10) * 2 + signed}

## Training

{train} training rows, of which {labelled} {card.labelled}; {validation} validation rows.{cleaned}
Loss terms: {", ".join(losses)}. Seed {report["seed"]}.
Data fingerprint `{dataset.get("fingerprint")}`.

## Limits

- The figures hold for text like that of {data}. Other domains, languages or lengths were not measured.
- A distilled model takes over its teacher's mistakes and biases.{copied}
- {card.limits}
- The licences of the teacher ({teacher}), of the data and of what the student started from were not checked
  by kdcli and may bind this model: check them before you publish or sell it.
"""


def export_card(result: Mapping[str, Any], report: Report, runs: Sequence[tuple[Path, str]]) -> str:
    """README.md of the folder that ``kdcli export`` makes: what its files are worth, where they were measured, how to run them.

    ``result`` is what export.json holds, ``report`` the run's report.json, ``runs`` the files that run an artifact, with
    their text.
    """
    import yaml

    card, metric, best = _presentation(result).card, metric_of(result), result["recommended"]
    front = {
        "pipeline_tag": card.tag,
        "tags": [card.tag, "knowledge-distillation", "kdcli", result["hardware"]],
    }
    texts = any("same_texts" in (entry["parity"] or {}) for entry in result["artifacts"].values())
    agrees = ["agrees", "texts"] if texts else ["agrees"]
    columns = export_columns(metric, agrees)
    rows = [export_cells("torch student", metric, result["torch"], agrees)]
    rows += [export_cells(_code(name), metric, entry, agrees) for name, entry in result["artifacts"].items()]
    table = [columns, ["---"] + ["---:"] * (len(columns) - 1), *rows]
    machine = result["environment"]
    threads = f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}"
    length = result["sequence_length"]
    row = f"row of {length:,} tokens" if length else "row of its own length"
    batches = " or ".join(map(str, result["batch_sizes"]))
    ran = any(entry["parity"] for entry in result["artifacts"].values())
    advice = "**None of them is within tolerance and budget.**"
    if best:
        advice = f"{_code(best)} is the smallest within tolerance and budget."
    elif not ran:
        advice = f"**{UNRUN}**"
    checked = (
        f"Each file was run by its own runtime on all {result['test_examples']:,} test rows, and its answers compared with "
        "those of the student in torch. "
    )
    if result.get("note"):
        checked += f"**They were {result['note']}.** "
    notes = [f"- {note}" for note in [*probability_lines(result), *stream_lines(result), *load_lines(result)]]
    failed = [f"- {_code(name)} could not be made or run, and is not to be used" for name in result["failed"]]
    languages = {".py": "python", ".mjs": "js", ".kt": "kotlin", ".swift": "swift"}
    used = "\n\n".join(
        f"`{file.as_posix()}`:\n\n```{languages[file.suffix]}\n{text.strip()}\n```" for file, text in runs
    )
    return f"""---
{yaml.safe_dump(front, sort_keys=False).strip()}
---

# {card.model[0].upper()}{card.model[1:]} for hardware={_markdown(result["hardware"])}

Files of a student of {format_count(result["torch"].get("parameters"))} parameters. {_markdown(verdict_text(report))}

## Figures

{chr(10).join("| " + " | ".join(line) + " |" for line in table)}

{advice} {checked if ran else ""}Measured on {_markdown(machine["processor"])} with {threads}, one {row} at a time, tokens given: on another machine
the times are other ones. All figures, throughput in batches of {batches} rows among them, and the versions of what made and ran the files, stand in `export.json`.
{chr(10).join(["", *notes, *failed, ""]) if notes or failed else ""}
{used and f"## Use{chr(10) * 2}Without kdcli, by what the first line of each names; the rest that they import lies beside them:{chr(10) * 2}{used}{chr(10) * 2}"}## Limits

- {card.limits}
- The licences of the teacher, of the data and of what the student started from were not checked by kdcli and may bind
  these files: check them before you publish or sell them.
"""


def _presentation(result: Mapping[str, Any]) -> Presentation:
    """How the results of the task are shown, of which a run has always one."""
    found = presentation_of(result["task"])
    assert found is not None
    return found


def cleaned_text(dropped: Mapping[str, int]) -> str:
    """A sentence on what cleaning left out, after a space; "" if that was nothing."""
    if not dropped:
        return ""
    reasons = ", ".join(f"{_markdown(reason)} {count:,}" for reason, count in dropped.items())
    return f" Left out were {sum(dropped.values()):,} rows ({reasons})."


def signatures_of(report: Report) -> list[tuple[str, str]]:
    """How translations were made and scored: (name, sacrebleu's signature, or how wide the beam search was)."""
    presentation = presentation_of(report["task"])
    names = presentation.score_names if presentation is not None else {}
    found = [(names.get(key, key), text) for key, text in (report.get("signature") or {}).items()]
    beams = report.get("beams") or 1
    return [*found, ("Beam search", f"{beams} beams")] if beams > 1 else found


def _markdown(value: Any) -> str:
    """Text from outside as one line of plain Markdown: no markup, no HTML, no table cell of its own, no control characters."""
    return re.sub(r"([\\`*_\[\]<>|#~&])", r"\\\1", " ".join(printable(str(value)).split()))


def _code(value: Any) -> str:
    """Text from outside as one line of code in Markdown."""
    return "`" + " ".join(printable(str(value)).split()).replace("`", "'").replace("|", "¦") + "`"


def details_of(metric: Metric, models: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, list[str]]]:
    """Further figures that any model has: (name on the page, name on the card, one cell a model)."""
    found = [
        (name, on_card, [text(model.get("scores", {})) for model in models.values()])
        for name, on_card, text in metric.details
    ]
    return [detail for detail in found if set(detail[2]) != {"n/a"}]
