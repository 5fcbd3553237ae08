"""Writes compare.html: several runs and exported files on one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdcli.files import write_text
from kdcli.numbers import (
    format_bytes,
    format_count,
    format_milliseconds,
    format_number,
    format_pair,
    format_rate,
    format_share,
)
from kdcli.report.metrics import metric_of
from kdcli.report.page import render
from kdcli.report.tables import config_value, difference_text
from kdcli.tasks.presentation import Metric

PAGE = "compare.html"
"""The page in the directory of a sweep."""


def write_comparison(path: Path, comparison: Mapping[str, Any], title: str) -> None:
    """Write the page.

    Args:
        comparison: as `kdcli.report.comparison.compare` returns it.
        title: the heading.
    """
    runs = comparison["runs"]
    values = {
        "title": title,
        "lines": [_line(number, run) for number, run in enumerate(runs, 1)],
        "notes": comparison["notes"],
        "differences": _intervals(runs),
        "keys": [
            (
                key,
                [
                    config_value(run["keys"][key]) if key in run["keys"] else ""
                    for run in runs
                    if "message" not in run
                ],
            )
            for key in comparison["keys"]
        ],
        "numbers": [number for number, run in enumerate(runs, 1) if "message" not in run],
    }
    write_text(path, render("compare.html.jinja", values))


def _line(number: int, run: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line of the table as text."""
    line = {"number": number, "name": run["name"], "message": run.get("message")}
    if "message" in run:
        return line
    metric, speed = metric_of(run), run["latency_ms"] or {}
    gain, (low, high) = format_number(run.get("gain_over_control")), format_pair(run.get("gain_ci95"))
    shown = metric.differences(*(value for value in (gain, low, high) if value is not None))
    return line | {
        "cells": [
            f"{metric.name} {metric.format_score(run['score'])}",
            metric.format_interval(run["ci95"]),
            difference_text(metric, run) or ("the first" if number == 1 else "not compared"),
            format_share(run.get("retention")),
            "n/a" if gain is None else shown[0] + (f" [{shown[1]}, {shown[2]}]" if len(shown) == 3 else ""),
            format_count(run["parameters"]),
            format_bytes(run["bytes"]),
            format_milliseconds(speed.get("p50")),
            format_rate(run["throughput_per_s"]),
        ]
    }


def _intervals(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the differences with their intervals on one scale: places in percent of the width."""
    drawn = [
        (number, run, format_number(run["difference"]), format_pair(run["difference_ci95"]))
        for number, run in enumerate(runs, 1)
        if "message" not in run
    ]
    values_drawn = [value for _, _, gain, bounds in drawn for value in (gain, *bounds) if value is not None]
    reach = 1.1 * max(map(abs, values_drawn), default=0.0)
    if not reach:
        return []

    def place(value: float) -> float:
        return 50 + 50 * value / reach

    lines = []
    for number, run, gain, (low, high) in drawn:
        if gain is None:
            continue
        metric: Metric = metric_of(run)
        first, last = (gain, gain) if low is None or high is None else (low, high)
        lines.append(
            {
                "name": f"{number} {run['name']}",
                "text": f"{difference_text(metric, run)} {metric.unit}",
                "left": place(first),
                "width": place(last) - place(first),
                "at": place(gain),
                "tone": "good" if first > 0 else "bad" if last < 0 else "muted",
            }
        )
    return lines
