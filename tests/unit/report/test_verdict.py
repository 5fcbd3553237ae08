"""The verdict. Each of its sentences is asserted here, once; other tests read the fields of `report["verdict"]`."""

from __future__ import annotations

from typing import Any

import pytest
from support.commands import require_words
from test_page import fake_lm_report, fake_report
from test_translation_report import bare, fake_translator

from kdcli.report.outcome import outcome
from kdcli.report.verdict import verdict_text

HELPED, UNCLEAR, HURT = "Distillation helped", "No evidence that the teacher helped", "The teacher hurt"
NOT_ENOUGH = "Not enough to tell whether the teacher helped"
HEADS = (HELPED, UNCLEAR, HURT, NOT_ENOUGH)
KEEPS = "The student keeps 98.1 % of the teacher's accuracy (91.4 % against 93.1 %)"
SAVES = "and is 25 times smaller and 8.1 times faster"
GAIN = (
    f"{HELPED}: +2.9 points over the same student without a teacher (95 % interval +1.9 to +3.9, one seed)."
)
NO_CONTROL = f"{NOT_ENOUGH}: no control was trained (control=true)."
PERPLEXITY = (
    "The student's perplexity is 14.2, its teacher's 10.1: it gives a reference token 71.1 % of the probability that its "
    "teacher gives it. It is 2.7 times smaller and 2.1 times faster."
)
LM_GAIN = (
    f"{HELPED}: perplexity 14.2 against 16.0 for the same student without a teacher (+0.12 nats a token, 95 % interval "
    "+0.08 to +0.16, one seed)"
)
NEARER = "the student is nearer to the teacher (KL 0.80 against 1.10)."
BLEU = "The student keeps 93.0 % of the teacher's BLEU (24.1 against 25.9) and is 4.1 times smaller"
BLEU_GAIN = f"{HELPED}: +1.4 BLEU over the same student without a teacher (95 % interval +0.6 to +2.1"
TUNE = ": tune it longer (teacher.tune=true, teacher.trainer.until=converged)."


def judged(report: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A report with further numbers in its verdict, and the outcome that follows from all of them."""
    report["verdict"] |= changes
    report["verdict"] |= outcome(report)
    return report


def training(**flat: tuple[str, bool | None]) -> dict[str, Any]:
    """How trainings ended: (why, whether the validation curve was flat), by model."""
    return {
        name: {"steps": 500, "stopped": stopped, "best_step": 400, "flat": is_flat}
        for name, (stopped, is_flat) in flat.items()
    }


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
            "p < 0.001, one seed).",
        ),
        (fake_translator(beam=None, p=None), f"{BLEU} and 3.2 times faster. {BLEU_GAIN}, one seed)."),
        (bare(), f"{BLEU}; how much faster it is cannot be known. {NO_CONTROL}"),
    ],
    ids=[
        *("classifier", "no control", "remote", "smoke", "lm", "lm without KL", "lm without control"),
        *("translator", "greedy", "bare"),
    ],
)
def test_verdict_in_full(report: dict[str, Any], expected: str) -> None:
    """A sentence that people quote changes without anyone having decided it, or greedy BLEU is held against beam search
    without a word. A report of an earlier version, which has no outcome, reads the same."""
    assert verdict_text(report) == expected
    assert verdict_text(judged(report)) == expected


@pytest.mark.parametrize("fake", [fake_report, fake_lm_report, fake_translator])
def test_a_smoke_run_has_one_verdict(fake: Any) -> None:
    """Figures of a rehearsal that are told as results."""
    assert verdict_text(fake(smoke=True)) == verdict_text(fake_report(smoke=True))
    report = judged(fake(smoke=True))
    assert report["verdict"]["outcome"] == "not_enough"
    assert [each["key"] for each in report["verdict"]["missing"]] == ["debug"]


CUT = "was not shown to have stopped improving when training ended (500 steps)"


@pytest.mark.parametrize(
    ("report", "reason", "key"),
    [
        (fake_report(control=None), "no control was trained", "control=true"),
        (fake_report(ci95=None), "the interval of the gain is not known", None),
        (
            fake_report(training=training(student=("steps", False), control=("steps", True))),
            f"the student {CUT}",
            "trainer.until=converged",
        ),
        (
            fake_report(training=training(student=("converged", True), control=("bound", False))),
            f"the control {CUT}",
            "trainer.max_epochs",
        ),
        (
            fake_report(training=training(student=("steps", None), control=("steps", None))),
            "the student and the control were not shown to have stopped improving when training ended (500 steps, 500 steps)",
            "trainer.until=converged",
        ),
        (
            fake_report(
                training=training(student=("converged", True), control=("converged", True))
                | {
                    "student@5": {"steps": 300, "stopped": "bound", "best_step": 300, "flat": False},
                    "control@5": {"steps": 300, "stopped": "bound", "best_step": 300, "flat": False},
                    "teacher@5": {"steps": 300, "stopped": "bound", "best_step": 300, "flat": False},
                }
            ),
            "the student of seed 5 and the control of seed 5 were not shown to have stopped improving when training ended (300 steps, 300 steps)",
            "trainer.max_epochs",
        ),
    ],
)
def test_what_is_missing_is_said_with_its_key(report: dict[str, Any], reason: str, key: str | None) -> None:
    """A run that was cut short, or that compares with nothing, is given a judgement; or one without, and no word on what to do."""
    text = verdict_text(judged(report))
    assert report["verdict"]["outcome"] == "not_enough"
    assert {"reason": reason, "key": key} in report["verdict"]["missing"]
    assert f"{NOT_ENOUGH}: {reason}{f' ({key})' if key else ''}." in text
    if report["models"].get("control"):
        assert "Measured: +2.9 points over the same student without a teacher" in text


@pytest.mark.parametrize(
    "ended",
    [
        {},
        training(student=("converged", True), control=("steps", True)),
        training(student=("bound", None), control=("converged", None)),
        training(student=("converged", True), control=("bound", True), teacher=("bound", False)),
    ],
)
def test_a_training_that_came_to_its_end_is_judged(ended: dict[str, Any]) -> None:
    """A fixed number of steps that sufficed, or a report that does not know its curves, is never given a judgement."""
    assert judged(fake_report(training=ended))["verdict"]["outcome"] == "helped"


@pytest.mark.parametrize(
    ("chance", "reason", "key"),
    [
        (
            {"student": [-0.2, -0.1], "control": [0.1, 0.3]},
            "the student is not clearly better than the most frequent label (52.0 %)",
            "trainer.min_steps",
        ),
        (
            {"student": [0.1, 0.3], "control": [-0.01, 0.3]},
            "the control is not clearly better than the most frequent label (52.0 %)",
            "dataset.test_size",
        ),
        (
            {"student": [-0.2, 0.1], "control": [-0.3, 0.0]},
            "the student and the control are not clearly better than the most frequent label (52.0 %)",
            "trainer.min_steps",
        ),
        (
            {"student": [0.0, 0.1], "control": None, "metric": "macro_f1"},
            "the student is not clearly better than the most frequent label (macro f1 52.0 %)",
            "dataset.test_size",
        ),
    ],
)
def test_models_at_chance_are_not_compared(chance: dict[str, Any], reason: str, key: str) -> None:
    """Two models that have learnt nothing are compared, and the teacher is blamed or praised for it."""
    report = judged(fake_report(), chance={"metric": "accuracy", "score": 0.52} | chance)
    assert report["verdict"]["outcome"] == "not_enough"
    assert {"reason": reason, "key": key} in report["verdict"]["missing"]
    assert f"{reason} ({key})" in verdict_text(report)


def test_a_student_at_chance_keeps_nothing() -> None:
    """A translator of BLEU 0.1 "has the teacher's BLEU and is 8 times smaller"."""
    report = judged(
        fake_translator(teacher=0.1, student=0.1, control=0.1, ci95=(0.0, 0.0), beam=None),
        chance={"metric": "bleu", "score": 2.3, "student": [-2.5, -1.9], "control": [-2.5, -1.9]},
    )
    text = verdict_text(report)
    assert text.startswith(
        "The student is not clearly better than a copy of the source (2.3): its BLEU is 0.1, the teacher's BLEU 0.1. Not enough to tell"
    )
    for praise in ("keeps", "has the teacher's", "smaller", "faster"):
        assert praise not in text


@pytest.mark.parametrize(
    ("fake", "trivial"),
    [(fake_report, "the most frequent label"), (fake_lm_report, "the frequencies of the tokens"), (fake_translator, "a copy of the source")],
)  # fmt: skip
def test_the_trivial_model_of_each_task(fake: Any, trivial: str) -> None:
    """A language model is held against a label."""
    report = fake()
    report["verdict"]["chance"] = {"metric": report["metric"], "score": 0.1, "student": [-1, 1]}
    assert f"not clearly better than {trivial} (" in verdict_text(judged(report))


ROWS = "4,000 test rows show a gain from"


@pytest.mark.parametrize(
    ("teacher", "smallest", "expected"),
    [
        (0.931, 0.045, None),
        (0.931, 0.05, f"{ROWS} 5.0 points on, and one of 4.6 points would matter"),
        (
            0.80,
            0.05,
            None,
        ),  # the teacher is 8.5 points below the control: as large a loss would have been seen
        (0.88, 0.019, None),
        (0.88, 0.021, f"{ROWS} 2.1 points on, and one of 2.0 points would matter"),
        (0.931, None, "4,000 test rows can show no gain"),
    ],
)
def test_no_evidence_needs_rows_that_could_have_shown_some(
    teacher: float, smallest: float | None, expected: str | None
) -> None:
    """Forty rows that could show no gain of ten points prove that there is none."""
    report = judged(fake_report(teacher=teacher, ci95=(-0.01, 0.04)), smallest_gain=smallest)
    text = verdict_text(report)
    if expected is None:
        assert report["verdict"]["outcome"] == "no_evidence"
        assert f"; {ROWS} {100 * (smallest or 0):.1f} points on" in text
    else:
        assert report["verdict"]["missing"] == [{"reason": expected, "key": "dataset.test_size"}]
        assert f"{NOT_ENOUGH}: {expected} (dataset.test_size). Measured: +2.9 points" in text
    assert outcome(report, "dataset.test")["missing"] == [
        each | {"key": "dataset.test"} for each in report["verdict"]["missing"]
    ]


def test_a_gain_that_few_rows_show_is_one() -> None:
    """A large gain in a small test split is called unclear because a small one could not be seen there."""
    assert judged(fake_report(), smallest_gain=0.2)["verdict"]["outcome"] == "helped"


def test_seeds_are_counted() -> None:
    """A gain of one seed is told as one of distillation in general."""
    seeds = [{"seed": seed, "student": 0.914, "control": 0.885, "gain": 0.029} for seed in (7, 8, 9)]
    assert "+3.9, over 3 seeds)" in verdict_text(judged(fake_report(), seeds=seeds))
    assert "+3.9, one seed)" in verdict_text(judged(fake_report(), seeds=[]))


@pytest.mark.parametrize(
    ("report", "keys"),
    [
        (fake_report(teacher=0.88), "teacher.tune=true, teacher.trainer.until=converged"),
        (
            fake_report(teacher=0.88, training=training(teacher=("steps", False))),
            "teacher.trainer.until=converged",
        ),
        (
            fake_report(teacher=0.88, training=training(teacher=("bound", False))),
            "teacher.trainer.max_epochs",
        ),
        (
            fake_report(teacher=0.88, training=training(teacher=("converged", True))),
            "teacher.trainer.min_steps",
        ),
        (fake_report(teacher=0.88, endpoint={}), None),
    ],
)
def test_a_teacher_below_its_control_is_said_to_be_under_tuned(
    report: dict[str, Any], keys: str | None
) -> None:
    """The teacher that stopped learning before its own control did is blamed on distillation; or an API is to be tuned."""
    text = verdict_text(judged(report))
    remedy = f": tune it longer ({keys})" if keys else ""
    assert f"; the teacher itself is no better than that student (88.0 % against 88.5 %){remedy}." in text


@pytest.mark.parametrize(
    ("score", "method", "expected"),
    [
        (0.91, "TF-IDF with logistic regression", True),
        (0.95, "TF-IDF with logistic regression", True),
        (0.90, "TF-IDF with logistic regression", False),
        (None, "TF-IDF with logistic regression", False),
    ],
)
def test_a_model_without_a_network_that_does_as_well(
    score: float | None, method: str, expected: bool
) -> None:
    """A student of millions of parameters is praised where counting words is as good; or a worse model is called as good."""
    report = fake_report()
    report["models"]["trivial"] = {
        "score": score,
        "method": method,
        "bytes": 1_200_000,
        "throughput_per_s": 9_876.0,
    }
    text = verdict_text(judged(report))
    sentence = (
        f" A model without a network does as well: {method} has accuracy {100 * (score or 0):.1f} % (1.2 MB, 9,876 rows/s; "
        "the student: 17.5 MB, 1,140 rows/s)."
    )
    assert text.endswith(sentence) == expected
    assert ("without a network" in text) == expected


@pytest.mark.parametrize(
    ("report", "sentence"),
    [
        (fake_report(teacher=0.88), "The student beats the teacher in accuracy (91.4 % against 88.0 %)"),
        (fake_report(teacher=0.914), "The student has the teacher's accuracy (91.4 %)"),
        (
            fake_report(teacher=0.88),
            f"; the teacher itself is no better than that student (88.0 % against 88.5 %){TUNE}",
        ),
        (
            fake_report(control=0.914, ci95=(0.0, 0.0)),
            f"{UNCLEAR}: the same student without a teacher does exactly as well (95 % interval +0.0 to +0.0, one seed).",
        ),
        (fake_report(ci95=None), "(its interval is not known, one seed)."),
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
            f"; the teacher itself is no better than the student without it (16.2 against 16.0){TUNE}",
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
    assert sentence in verdict_text(judged(report))


@pytest.mark.parametrize(
    ("report", "head", "figures"),
    [
        (fake_report(control=0.912, ci95=(-0.006, 0.010)), UNCLEAR, ["+0.2 points"]),
        (fake_report(control=0.904, ci95=(0.0, 0.02)), UNCLEAR, ["+1.0 points"]),
        (fake_report(control=0.925, ci95=(-0.02, -0.002)), HURT, ["-1.1 points"]),
        (fake_report(control=0.925, ci95=(-0.02, 0.0)), UNCLEAR, ["-1.1 points"]),
        (fake_report(control=0.914, ci95=(0.0, 0.0)), UNCLEAR, []),
        (fake_report(ci95=None), NOT_ENOUGH, ["+2.9 points"]),
        (
            fake_lm_report(control=14.3, ci95=(-0.01, 0.03), kl_ci95=(-0.1, 0.3), kl=0.9),
            UNCLEAR,
            ["14.2 against 14.3", "+0.01 nats", "-0.01 to +0.03", "and the student", "not clearly nearer", "0.80 against 0.90"],
        ),
        (fake_lm_report(ci95=(0.0, 0.2)), UNCLEAR, ["14.2 against 16.0", "+0.00 to +0.20"]),
        (fake_lm_report(ci95=(-0.1, 0.2)), UNCLEAR, ["-0.10 to +0.20", "but the student", "nearer", "0.80 against 1.10"]),
        (fake_lm_report(ci95=None), NOT_ENOUGH, ["14.2 against 16.0", "+0.12 nats", "not known", "and the student", "nearer"]),
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
            fake_translator(control=25.0, ci95=(-1.6, -0.2), p=0.0123),
            HURT,
            ["-0.9 BLEU", "-1.6 to -0.2", "p = 0.012"],
        ),
        (fake_translator(control=24.1, ci95=(-0.5, 0.5), p=0.9996), UNCLEAR, ["p > 0.999"]),
    ],
)  # fmt: skip
def test_verdict_is_honest(report: dict[str, Any], head: str, figures: list[str]) -> None:
    """A gain whose interval touches 0, a harmful teacher or a tie is told as a success. Perplexity, of which less is better, turns
    a loss into a gain; or nearness to the teacher, which is what was trained for, is sold as better answers."""
    for text in (verdict_text(report), verdict_text(judged(report))):
        assert [each for each in HEADS if each in text] == [head]
        assert "HURT" not in text
        require_words(text, *figures)


def test_a_gain_that_is_not_known() -> None:
    """A gain that could not be had hides that the student's nearness to the teacher is known, or is told as one."""
    report = fake_lm_report()
    report["verdict"] |= {"gain_over_control": None, "gain_ci95": None}
    assert verdict_text(report) == (
        f"{PERPLEXITY} {NOT_ENOUGH}: the gain over the control is not known. Measured: the gain over the same student without a "
        f"teacher is not known, but {NEARER}"
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
    ("verdict", "expected"),
    [
        (
            {"compression": 0.5, "speedup": 0.25},
            f"The student is no smaller and no faster than its teacher (2.0 times larger, 4.0 times slower). {KEEPS}. {GAIN}",
        ),
        (
            {"compression": 1.0, "speedup": 1.02},
            f"The student is no smaller and no faster than its teacher (about as large, about as fast). {KEEPS}. {GAIN}",
        ),
        (
            {"speedup": 0.8},
            f"The student is no faster than its teacher (1.2 times slower). {KEEPS} and is 25 times smaller. {GAIN}",
        ),
        (
            {"compression": None, "speedup": 0.8},
            f"The student is no faster than its teacher (1.2 times slower). {KEEPS}; how much smaller it is cannot be known. {GAIN}",
        ),
        (
            {"compression": None},
            f"{KEEPS} and is 8.1 times faster; how much smaller it is cannot be known. {GAIN}",
        ),
        ({"compression": 1234.5}, f"{KEEPS} and is 1,234 times smaller and 8.1 times faster. {GAIN}"),
    ],
)
def test_verdict_on_size_and_speed(verdict: dict[str, Any], expected: str) -> None:
    """A student that is larger or slower than its teacher is sold as "0.5 times smaller", or that is said behind what it retains."""
    assert verdict_text(judged(fake_report(), **verdict)) == expected
