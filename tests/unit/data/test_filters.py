"""Which answers are learnt."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError
from support.commands import naming

from kdcli.config.rollout import Filter
from kdcli.data.filters import filter_completions, own_function
from kdcli.errors import ConfigError


def test_each_reason_is_counted() -> None:
    """An answer is left out and nobody knows why; or a good one is."""
    cfg = Filter(min_length=4, max_length=30, refusals=["i'm sorry", "as an? ai"])
    answers = [
        "So it is.",
        "so  IT is.",
        "no",
        "x" * 31,
        " I'm Sorry, no.",
        "As an AI, I say no",
        "I\u2019m sorry, no.",
        "He said: I'm sorry.",
    ]
    dropped: Counter[str] = Counter()
    judge = {"He said: I'm sorry.": False}
    found = filter_completions({}, answers, cfg, lambda row, answer: judge.get(answer, True), dropped)
    assert found == ["So it is."]
    assert dropped == {
        "duplicate": 1, "too short": 1, "too long": 1, "a refusal": 3, "rollout.filter.function": 1
    }  # fmt: skip
    assert filter_completions({}, ["a", "A"], Filter(duplicates=False), None, dropped) == ["a", "A"]
    assert filter_completions({}, ["", " \n"], Filter(), None, dropped) == []
    assert dropped["empty"] == 2
    assert filter_completions({}, ["I'm sorry"], Filter(refusals=["i\u2019m"]), None, dropped) == []


def test_a_function_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A typo in its name is told after all was paid for; or by a traceback."""
    (tmp_path / "mine.py").write_text(
        "NOTHING = 1\n\n\ndef good(row, answer):\n    return row['id'] == answer\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    judge = own_function(Filter(function="mine.good"))
    assert filter_completions({"id": "1"}, ["1", "2"], Filter(), judge, Counter()) == ["1"]
    assert own_function(Filter()) is None
    for wrong, words in (
        ("mine.godo", ("mine.godo", "imported")),
        ("nowhere.good", ("nowhere.good", "imported")),
        ("mine.NOTHING", ("mine.NOTHING", "a function")),
    ):
        with pytest.raises(ConfigError, match=naming("rollout.filter.function", *words)):
            own_function(Filter(function=wrong))
    with pytest.raises(ValidationError, match=naming("refusals:", "regular expression")):
        Filter(refusals=["("])
