"""The verdict where the truth is known; `python benchmarks/verdict.py simulated` takes more cases."""

from __future__ import annotations

from support.simulated import failures, rates, simulate


def test_the_verdict_is_rarely_wrong_and_sees_what_the_rows_show() -> None:
    """Chance is called help or harm more often than the interval says, or a gain of twice what the rows can show is not seen: the parts of
    the verdict are right one by one, and wrong together."""
    judged = simulate(200)
    assert failures(judged) == []
    found = rates(judged)
    assert all(found[name][1] >= 10 for name in found)
    assert {each.outcome for each in judged} == {"helped", "no_evidence", "hurt", "not_enough"}
