"""What people see of a run with several seeds: the table, the page, the model card."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from support.commands import require_words
from unit.report.test_page import NAMES, fake_lm_report, fake_metrics, fake_report, fake_run

from kdcli.report.cards import model_card
from kdcli.report.page import write_html
from kdcli.report.tables import final_table

SEEDS = [
    {"seed": 7, "student": 0.914, "control": 0.885, "gain": 0.029},
    {"seed": 8, "student": 0.912, "control": 0.887, "gain": 0.025},
    {"seed": 9, "student": 0.914, "control": 0.914, "gain": 0.0},
]


def of_seeds(
    report: dict[str, Any], seeds: list[dict[str, Any]], gain: float | None, ci95: Any
) -> dict[str, Any]:
    """A report whose gain is over several seeds."""
    own = {"seeds": seeds, "gain_over_control": gain, "gain_ci95": ci95}
    return report | {"verdict": report["verdict"] | own}


def table_of(report: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """The terminal's table of seeds: its head and its rows."""
    final_table(report)
    lines = capsys.readouterr().out.splitlines()
    head = next(number for number, line in enumerate(lines) if line.startswith("seed "))
    table = lines[head : head + 2 + len(report["verdict"]["seeds"])]
    assert max(map(len, table)) <= 80
    return [re.split(r"\s{2,}", line.strip()) for line in table]


def test_the_table_has_a_line_for_each_seed(capsys: pytest.CaptureFixture[str]) -> None:
    """A gain over seeds that shows none of them hides that it is the luck of one."""
    head, *rows = table_of(of_seeds(fake_report(), SEEDS, 0.018, [-0.021, 0.057]), capsys)
    assert head == ["seed", "student", "control", "gain in points (95 %)"]
    assert rows == [
        ["7", "91.4 %", "88.5 %", "+2.9"],
        ["8", "91.2 %", "88.7 %", "+2.5"],
        ["9", "91.4 %", "91.4 %", "+0.0"],
        ["mean", "91.3 %", "89.5 %", "+1.8 [-2.1, +5.7]"],
    ]


def test_the_table_without_controls(capsys: pytest.CaptureFixture[str]) -> None:
    """control=false ends a run of hours in a traceback."""
    alone = [each | {"control": None, "gain": None} for each in SEEDS]
    _, *rows = table_of(of_seeds(fake_report(control=None), alone, None, None), capsys)
    assert rows[0] == ["7", "91.4 %", "n/a", "n/a"]
    assert rows[-1] == ["mean", "91.3 %", "n/a", "n/a"]


def test_the_table_of_a_language_model(capsys: pytest.CaptureFixture[str]) -> None:
    """Log-probabilities that nobody can read, or a gain whose unit nobody knows."""
    score = {name: -math.log(perplexity) for name, perplexity in (("student", 14.2), ("control", 16.0))}
    gain = score["student"] - score["control"]
    seeds = [{"seed": seed, **score, "gain": gain} for seed in (0, 1)]
    head, *rows = table_of(of_seeds(fake_lm_report(), seeds, gain, [0.1, 0.14]), capsys)
    assert head[-1] == "gain in nats a token (95 %)"
    assert rows[0] == ["0", "14.2", "16.0", "+0.12"]
    assert rows[-1] == ["mean", "14.2", "16.0", "+0.12 [+0.10, +0.14]"]


def test_one_seed_has_no_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A table of one line, or reports of earlier versions that cannot be shown."""
    for verdict in ({}, {"seeds": []}):
        report = fake_report()
        report["verdict"] |= verdict
        final_table(report)
        assert "seed" not in capsys.readouterr().out.split()
        assert "<h2>Seeds" not in page_of(report, tmp_path)
        assert "Seed 7." in model_card(report, NAMES)


def page_of(report: dict[str, Any], folder: Path) -> str:
    """report.html of a run whose log has phases of a further seed."""
    records = fake_metrics(steps=150)
    records += [
        record | {"stage": f"{record['stage']}@8"} for record in records if record["stage"] != "teacher"
    ]
    run = fake_run(folder / "run", report, records)
    write_html(run)
    return (run / "report.html").read_text(encoding="utf-8")


def test_the_page_shows_the_seeds_and_the_curves_of_the_first(tmp_path: Path) -> None:
    """A page on which the gain of three seeds stands beside the scores of one, without a word; or with four more plots."""
    page = page_of(of_seeds(fake_report(), SEEDS, 0.018, [-0.021, 0.057]), tmp_path)
    section = page.partition("<h2>Seeds")[2].partition("<h2>")[0]
    rows = [
        re.findall(r">([^<>]+)</t[hd]>", line) for line in section.splitlines() if line.startswith("<tr>")
    ]
    assert rows[0] == ["7", "91.4 %", "88.5 %", "+2.9"]
    assert rows[-1] == ["mean", "91.3 %", "89.5 %", "+1.8 [-2.1, +5.7]"]
    require_words(section, "seed 7", "over seeds and test rows")
    assert "seeds 7, 8, 9" in page
    assert "Loss terms of the student <" in page
    assert "student@8" not in page


def test_the_card_names_the_seeds() -> None:
    """A card whose gain is over three seeds, and whose reader takes the model for the mean of them."""
    card = model_card(of_seeds(fake_report(), SEEDS, 0.018, [-0.021, 0.057]), NAMES)
    assert "| 8 | 91.2 % | 88.7 % | +2.5 |" in card
    assert "Seed 7 (of 7, 8, 9)." in card
    require_words(card, "3 seeds", "student of seed 7")


def test_a_speed_that_was_not_measured_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """A control's speed that is the student's passes for a measurement of its own."""
    report = fake_report()
    report["models"]["control"]["measured_as"] = "student"
    final_table(report)
    require_words(capsys.readouterr().out, "control", "student", "same architecture", "measure.mode=full")
    final_table(fake_report())
    assert "measure.mode" not in capsys.readouterr().out
