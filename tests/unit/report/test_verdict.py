"""The verdict. Each of its sentences is asserted here, once; other tests read the fields of `report["verdict"]`."""

from __future__ import annotations

from typing import Any

import pytest
from support.commands import require_words
from test_page import fake_lm_report, fake_report
from test_translation_report import bare, fake_translator

from kdcli.report.verdict import verdict_text

HELPED, UNCLEAR, HURT = "Distillation helped", "No evidence that the teacher helped", "The teacher HURT"
KEEPS = "The student keeps 98.1 % of the teacher's accuracy (91.4 % against 93.1 %)"
SAVES = "and is 25 times smaller and 8.1 times faster"
GAIN = f"{HELPED}: +2.9 points over the same student without a teacher (95 % interval +1.9 to +3.9)."
NO_CONTROL = "No control was trained, so whether the teacher helped is not known."
PERPLEXITY = (
    "The student's perplexity is 14.2, its teacher's 10.1: it gives a reference token 71.1 % of the probability that its "
    "teacher gives it. It is 2.7 times smaller and 2.1 times faster."
)
LM_GAIN = (
    f"{HELPED}: perplexity 14.2 against 16.0 for the same student without a teacher (+0.12 nats a token, 95 % interval "
    "+0.08 to +0.16)"
)
NEARER = "the student is nearer to the teacher (KL 0.80 against 1.10)."
BLEU = "The student keeps 93.0 % of the teacher's BLEU (24.1 against 25.9) and is 4.1 times smaller"
BLEU_GAIN = f"{HELPED}: +1.4 BLEU over the same student without a teacher (95 % interval +0.6 to +2.1"


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (fake_report(), f"{KEEPS} {SAVES}. {GAIN}"),
        (fake_report(control=None), f"{KEEPS} {SAVES}. {NO_CONTROL}"),
        (
            fake_report(teacher=None),
            "The student has accuracy 91.4 % (the teacher's is not known); how much smaller and faster it is cannot be "
            f"known. {GAIN}",
        ),
        (fake_report(smoke=True), "A smoke run: these figures mean nothing."),
        (fake_lm_report(), f"{PERPLEXITY} {LM_GAIN}, and {NEARER}"),
        (fake_lm_report(kl=None), f"{PERPLEXITY} {LM_GAIN}."),
        (fake_lm_report(control=None), f"{PERPLEXITY} {NO_CONTROL}"),
        (
            fake_translator(),
            f"{BLEU} and 3.2 times faster; its greedy BLEU is 90.2 % of the teacher's by beam search (26.7). {BLEU_GAIN}, "
            "p < 0.001).",
        ),
        (fake_translator(beam=None, p=None), f"{BLEU} and 3.2 times faster. {BLEU_GAIN})."),
        (bare(), f"{BLEU}; how much faster it is cannot be known. {NO_CONTROL}"),
    ],
    ids=[
        *("classifier", "no control", "remote", "smoke", "lm", "lm without KL", "lm without control"),
        *("translator", "greedy", "bare"),
    ],
)
def test_verdict_in_full(report: dict[str, Any], expected: str) -> None:
    """A sentence that people quote changes without anyone having decided it, or greedy BLEU is held against beam search
    without a word."""
    assert verdict_text(report) == expected


@pytest.mark.parametrize("fake", [fake_report, fake_lm_report, fake_translator])
def test_a_smoke_run_has_one_verdict(fake: Any) -> None:
    """Figures of a rehearsal that are told as results."""
    assert verdict_text(fake(smoke=True)) == verdict_text(fake_report(smoke=True))


@pytest.mark.parametrize(
    ("report", "sentence"),
    [
        (fake_report(teacher=0.88), "The student beats the teacher in accuracy (91.4 % against 88.0 %)"),
        (fake_report(teacher=0.914), "The student has the teacher's accuracy (91.4 %)"),
        (
            fake_report(teacher=0.88),
            "; the teacher itself is no better than that student (88.0 % against 88.5 %).",
        ),
        (
            fake_report(control=0.914, ci95=(0.0, 0.0)),
            f"{UNCLEAR}: the same student without a teacher does exactly as well.",
        ),
        (fake_report(ci95=None), "(its interval is not known)."),
        (
            fake_report(control=0.925, ci95=(-0.02, -0.002)),
            f"{HURT}: -1.1 points against the same student without a teacher (95 % interval",
        ),
        (
            fake_lm_report(teacher=15.0),
            "The student's perplexity is 14.2, better than its teacher's 15.0: it gives a reference token 5.6 % more "
            "probability than its teacher does. It is",
        ),
        (
            fake_lm_report(teacher=40.0),
            "it gives a reference token 2.8 times the probability that its teacher gives it. It is",
        ),
        (fake_lm_report(teacher=14.2), "The student has its teacher's perplexity (14.2). It is"),
        (
            fake_lm_report(teacher=16.2),
            "; the teacher itself is no better than the student without it (16.2 against 16.0).",
        ),
        (
            fake_lm_report(kl_ci95=None),
            ", but the student is not clearly nearer to the teacher (KL 0.80 against 1.10).",
        ),
        (
            fake_lm_report(kl=0.6, kl_ci95=(-0.3, -0.1)),
            ", but the student is further from the teacher (KL 0.80 against 0.60).",
        ),
    ],
)
def test_sentences_that_few_runs_have(report: dict[str, Any], sentence: str) -> None:
    """The verdict of a run that went otherwise than most does not say so, or says it in words that nobody understands."""
    assert sentence in verdict_text(report)


@pytest.mark.parametrize(
    ("report", "head", "figures"),
    [
        (fake_report(control=0.912, ci95=(-0.006, 0.010)), UNCLEAR, ["+0.2 points"]),
        (fake_report(control=0.904, ci95=(0.0, 0.02)), UNCLEAR, ["+1.0 points"]),
        (fake_report(control=0.925, ci95=(-0.02, -0.002)), HURT, ["-1.1 points"]),
        (fake_report(control=0.925, ci95=(-0.02, 0.0)), UNCLEAR, ["-1.1 points"]),
        (fake_report(control=0.914, ci95=(0.0, 0.0)), UNCLEAR, []),
        (fake_report(ci95=None), UNCLEAR, ["+2.9 points"]),
        (
            fake_lm_report(control=14.3, ci95=(-0.01, 0.03), kl_ci95=(-0.1, 0.3), kl=0.9),
            UNCLEAR,
            ["14.2 against 14.3", "+0.01 nats", "-0.01 to +0.03", "and the student", "not clearly nearer", "0.80 against 0.90"],
        ),
        (fake_lm_report(ci95=(0.0, 0.2)), UNCLEAR, ["14.2 against 16.0", "+0.00 to +0.20"]),
        (fake_lm_report(ci95=(-0.1, 0.2)), UNCLEAR, ["-0.10 to +0.20", "but the student", "nearer", "0.80 against 1.10"]),
        (fake_lm_report(ci95=None), UNCLEAR, ["14.2 against 16.0", "+0.12 nats", "not known", "but the student", "nearer"]),
        (
            fake_lm_report(control=13.0, ci95=(-0.1, -0.07)),
            HURT,
            ["14.2 against 13.0", "-0.09 nats", "-0.10 to -0.07", "but the student", "nearer"],
        ),
        (
            fake_lm_report(control=13.0, ci95=(-0.1, -0.07), kl=0.6, kl_ci95=(-0.3, -0.1)),
            HURT,
            ["-0.07", "and the student", "further", "0.80 against 0.60"],
        ),
        (
            fake_lm_report(control=14.2, ci95=(0.0, 0.0), kl=0.8, kl_ci95=(0.0, 0.0)),
            UNCLEAR,
            ["exactly as well", "and the student", "not clearly nearer", "0.80 against 0.80"],
        ),
        (fake_lm_report(teacher=16.2), HELPED, ["0.80 against 1.10", "16.2 against 16.0"]),
        (fake_lm_report(teacher=16.2, kl=None), HELPED, ["+0.16", "that student", "16.2 against 16.0"]),
        (
            fake_translator(control=24.08, ci95=(-0.5, 0.6), p=0.4712),
            UNCLEAR,
            ["+0.02", "-0.50 to +0.60", "p = 0.471"],
        ),
        (
            fake_translator(control=25.0, ci95=(-1.6, -0.2), p=0.9996),
            HURT,
            ["-0.9 BLEU", "-1.6 to -0.2", "p > 0.999"],
        ),
    ],
)  # fmt: skip
def test_verdict_is_honest(report: dict[str, Any], head: str, figures: list[str]) -> None:
    """A gain whose interval touches 0, a harmful teacher or a tie is told as a success. Perplexity, of which less is better, turns
    a loss into a gain; or nearness to the teacher, which is what was trained for, is sold as better answers."""
    text = verdict_text(report)
    assert [each for each in (HELPED, UNCLEAR, HURT) if each in text] == [head]
    require_words(text, *figures)


def test_a_gain_that_is_not_known() -> None:
    """A gain that could not be had hides that the student's nearness to the teacher is known, or is told as one."""
    report = fake_lm_report()
    report["verdict"] |= {"gain_over_control": None, "gain_ci95": None}
    assert verdict_text(report) == (
        f"{PERPLEXITY} The gain over the same student without a teacher is not known, nor whether the teacher helped, but "
        f"{NEARER}"
    )


@pytest.mark.parametrize(
    ("report", "figures"),
    [
        (
            fake_report(teacher=0.91403, student=0.914, control=0.9138, ci95=(0.00002, 0.0004)),
            ["99.9 %", "+0.020 points", "+0.002 to +0.040"],
        ),
        (
            fake_report(teacher=31.2, control=25.0, student=28.236, ci95=(2.0, 4.0), metric="ter"),
            ["90.5 %", "ter", "28.236 against 31.200", "+3.236 ter"],
        ),
        (
            fake_lm_report(student=14.201, control=14.209, ci95=(0.0003, 0.0009), kl=0.8004, kl_ci95=(0.0001, 0.0009)),
            ["14.20 against 14.21", "+0.0006 nats", "+0.0003 to +0.0009", "0.8000 against 0.8004"],
        ),
        (fake_lm_report(teacher=14.199), ["14.200", "14.199", "99.9 %"]),
        (fake_lm_report(student=48_500.0, teacher=10.1), ["48.5k", "10.1", "under 0.1 %"]),
        (fake_lm_report(student=1e40), ["over 999T"]),
        (fake_translator(student=25.87), ["99.8 %", "25.87 against 25.90"]),
        (fake_translator(student=26.4), ["beats", "26.4 against 25.9"]),
        (fake_translator(student=26.9), ["greedy BLEU", "100.7 %", "26.7"]),
        (fake_translator(teacher=0.0, beam=0.0), ["beats", "24.1 against 0.0"]),
    ],
)  # fmt: skip
def test_rounding_hides_no_difference(report: dict[str, Any], figures: list[str]) -> None:
    """A loss is rounded up to 100.0 %, a gain is shown as +0.0 points with "helped" beside it, two perplexities or two distances
    look the same, a score that is no percentage is printed as one, or a BLEU of 0 divides."""
    require_words(verdict_text(report), *figures)


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ({"compression": 0.5, "speedup": 0.25}, ["2.0 times larger", "4.0 times slower"]),
        ({"compression": 1.0, "speedup": 1.02}, ["about as large", "about as fast"]),
        ({"compression": None}, ["8.1 times faster", "how much smaller"]),
        ({"compression": 1234.5}, ["1,234 times smaller"]),
    ],
)
def test_verdict_on_size_and_speed(verdict: dict[str, Any], words: list[str]) -> None:
    """A student that is larger or slower than its teacher is sold as "0.5 times smaller"."""
    report = fake_report()
    report["verdict"] |= verdict
    require_words(verdict_text(report), *words)
