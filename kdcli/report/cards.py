"""Writes model cards of students and of exported files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from kdcli.errors import printable
from kdcli.numbers import format_count, format_items, format_number, format_share
from kdcli.report.metrics import baseline_lines, baselines, metric_of, present_models
from kdcli.report.tables import (
    UNRUN,
    export_cells,
    export_columns,
    load_lines,
    model_columns,
    model_rows,
    probability_lines,
    seed_columns,
    seed_rows,
    stream_lines,
)
from kdcli.report.verdict import verdict_text
from kdcli.tasks import presentation_of
from kdcli.tasks.presentation import Card, Metric, Presentation, Report

LARGEST_FRONT, LONGEST_ENTRY = 100_000, 200
"""Characters of a README.md that are searched for its front matter, and of an entry in it."""


def model_card(report: Report, extra: Mapping[str, Any]) -> str:
    """Write the README.md of the student's directory, with the front matter that the Hugging Face hub reads.

    Args:
        extra: `teacher`, `student` and `dataset` (names), `kdcli_version`; `base_model`, the hub id that the student was initialised from, or
            None; `hub_dataset`, the hub id of the data set, or None; `chat`, whether it was trained on conversations; `license` and `language` of
            the front matter, or None.
    """
    card, metric = _presentation(report).card, metric_of(report)
    models, dataset = present_models(report) | baselines(report), report["dataset"]
    details = [(name, cells) for _, name, cells in details_of(metric, models) if name]
    columns = [*model_columns(metric), *(name for name, _ in details)]
    rows = [row + [cells[i] for _, cells in details] for i, row in enumerate(model_rows(metric, models))]
    sample = json.dumps(
        f"{dataset.get('prefix') or ''}A text like those it was trained on.", ensure_ascii=False
    )
    agreement = format_share(report["verdict"].get("agreement"))
    return _render(
        "model_card.md.jinja",
        front=_front_matter(report, extra, card, metric),
        card=card,
        metric=metric,
        report=report,
        dataset=dataset,
        name=_markdown(extra["student"]),
        teacher=_markdown(extra["teacher"]),
        data=_markdown(extra["dataset"]),
        version=extra["kdcli_version"],
        base=_code(extra["base_model"]) if extra.get("base_model") else "",
        verdict=_markdown(verdict_text(report)),
        parameters=format_count(models["student"].get("parameters")),
        labels=list(map(_markdown, report["labels"])),
        use=card.usage(report, bool(extra.get("chat")), sample),
        table=_table([columns, *rows]),
        seeds=[each["seed"] for each in report["verdict"].get("seeds") or []],
        seed_table=_table([seed_columns(metric), *seed_rows(report)]),
        signatures=[
            *(f"- {_markdown(line)}" for line in baseline_lines(report)),
            *(f"- {name}: {_markdown(text)}" for name, text in signatures_of(report)),
        ],
        dropped={_markdown(why): count for why, count in (dataset.get("dropped") or {}).items()},
        losses=[
            f"{_markdown(term)} ("
            + ", ".join(f"{_markdown(k)} {_markdown(v)}" for k, v in options.items())
            + ")"
            for term, options in report["loss"].items()
        ],
        agreement="" if agreement == "n/a" else card.agreement.format(agreement),
    )


def card_data(folder: Path) -> dict[str, Any]:
    """Return `license`, `language` (a list), `base_model` and `datasets` in the front matter of a model directory's README.md; those that it names."""
    try:
        card = folder / "README.md"
        if not card.is_file():  # a pipe may never deliver a byte
            return {}
        with card.open(encoding="utf-8", errors="replace") as stream:
            text = stream.read(LARGEST_FRONT)
        front = re.match(r"\s*---[ \t]*\n(.*?)\n---", text, re.DOTALL)
        tree = yaml.safe_load(front[1]) if front else None
    except (OSError, RecursionError, yaml.YAMLError):
        return {}
    if not isinstance(tree, dict):
        return {}
    lists = {key: _names(tree.get(key)) for key in ("language", "base_model", "datasets")}
    named = {"license": next(iter(_names(tree.get("license"))), None), **lists}
    return {key: value for key, value in named.items() if value}


def _names(value: Any) -> list[str]:
    """Return the short texts of a value of front matter: one, or a list."""
    values = value if isinstance(value, list) else [value]
    return [_one_line(each) for each in values if isinstance(each, str) and len(each) <= LONGEST_ENTRY]


def export_card(
    result: Mapping[str, Any],
    report: Report,
    scripts: Sequence[tuple[Path, str]],
    metadata: Mapping[str, Any] | None = None,
) -> str:
    """Write the README.md of the folder that `kdcli export` makes: what its files are worth, where they were measured, how to run them.

    Args:
        result: the content of export.json.
        report: the run's report.json.
        scripts: the files that run an artifact without kdcli, with their text.
        metadata: what `card_data` returns of the student.
    """
    from huggingface_hub import ModelCardData

    card, metric, best = _presentation(result).card, metric_of(result), result["recommended"]
    front = ModelCardData(
        pipeline_tag=card.tag,
        tags=[card.tag, "knowledge-distillation", "kdcli", result["hardware"]],
        **(metadata or {}),
    )
    texts = any("same_texts" in (entry["parity"] or {}) for entry in result["artifacts"].values())
    agrees = ["agrees", "texts"] if texts else ["agrees"]
    rows = [export_cells("torch student", metric, result["torch"], agrees)]
    rows += [export_cells(_code(name), metric, entry, agrees) for name, entry in result["artifacts"].items()]
    languages = {".py": "python", ".mjs": "js", ".kt": "kotlin", ".swift": "swift"}
    return _render(
        "export_card.md.jinja",
        front=front.to_yaml(),
        card=card,
        result=result,
        title=card.model[0].upper() + card.model[1:],
        hardware=_markdown(result["hardware"]),
        parameters=format_count(result["torch"].get("parameters")),
        verdict=_markdown(verdict_text(report)),
        table=_table([export_columns(metric, agrees), *rows]),
        best=_code(best) if best else "",
        ran=any(entry["parity"] for entry in result["artifacts"].values()),
        unrun=UNRUN,
        machine=_markdown(result["environment"]["processor"]),
        notes=[*probability_lines(result), *stream_lines(result), *load_lines(result)],
        failed=list(map(_code, result["failed"])),
        scripts=[(file.as_posix(), languages[file.suffix], text.strip()) for file, text in scripts],
    )


def _front_matter(report: Report, extra: Mapping[str, Any], card: Card, metric: Metric) -> str:
    """Return the metadata of a model card as YAML, without unknown entries."""
    from huggingface_hub import EvalResult, ModelCardData

    score, hub = report["models"]["student"].get("score"), extra.get("hub_dataset")
    languages = [report["dataset"].get(f"{side}_language") for side in ("source", "target")]
    is_scored = format_number(score) is not None and not report.get("smoke")
    result = EvalResult(
        task_type=card.tag,
        dataset_type=hub or "custom",
        dataset_name=_one_line(extra["dataset"]),
        dataset_split="test",
        metric_type=card.metrics[0],
        metric_name=metric.name,
        metric_value=metric.figure(score) if is_scored else None,
    )
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=card.tag,
        tags=[card.tag, "knowledge-distillation", "kdcli"],
        metrics=list(card.metrics),
        base_model=extra.get("base_model"),
        datasets=[hub] if hub else None,
        language=[code for code in languages if code and len(code) < 4] or extra.get("language"),
        license=extra.get("license"),
        model_name=_one_line(extra["student"]) if is_scored else None,
        eval_results=[result] if is_scored else None,
    ).to_yaml()


def _render(template: str, **values: Any) -> str:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    jinja = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    jinja.filters["count"] = "{:,}".format
    jinja.filters["counted"] = format_items
    path = Path(__file__).parent / "templates" / template
    return jinja.from_string(path.read_text(encoding="utf-8")).render(values)


def _table(lines: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown, the first line being its header."""
    header, *rows = lines
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *rows))


def _presentation(result: Mapping[str, Any]) -> Presentation:
    """Return how the results of the task are shown. A run that writes a card has imported its task."""
    presentation = presentation_of(result["task"])
    assert presentation is not None
    return presentation


def signatures_of(report: Report) -> list[tuple[str, str]]:
    """Return how translations were generated and scored: (name, signature of sacrebleu, or width of the beam search)."""
    presentation = presentation_of(report["task"])
    names = presentation.score_names if presentation is not None else {}
    signatures = [(names.get(key, key), text) for key, text in (report.get("signature") or {}).items()]
    beams = report.get("beams") or 1
    return [*signatures, ("Beam search", f"{beams} beams")] if beams > 1 else signatures


def _one_line(value: Any) -> str:
    """Return untrusted text without line breaks and control characters."""
    return " ".join(printable(str(value)).split())


def _markdown(value: Any) -> str:
    """Return untrusted text as one line of plain Markdown, without markup, HTML, table cells and control characters."""
    return re.sub(r"([\\`*_\[\]<>|#~&])", r"\\\1", _one_line(value))


def _code(value: Any) -> str:
    """Return untrusted text as one line of code in Markdown."""
    return "`" + _one_line(value).replace("`", "'").replace("|", "¦") + "`"


def details_of(metric: Metric, models: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, list[str]]]:
    """Return further scores that at least one model has: (name on the page, name on the card, one cell for each model)."""
    details = [
        (name, on_card, [text(model.get("scores", {})) for model in models.values()])
        for name, on_card, text in metric.details
    ]
    return [detail for detail in details if set(detail[2]) != {"n/a"}]
