"""Lists and mappings that a table holds as text."""

from __future__ import annotations

import pytest

from kdcli.tasks import notation
from kdcli.tasks.causal_lm.conversations import is_conversation
from kdcli.tasks.labels import read_label
from kdcli.tasks.notation import decode_notation
from kdcli.tasks.token_classification.spans import literal

SIMILAR = [
    "{[1]: 2}",
    "{{}: 1}",
    "[" * 100_000,
    "['\\d',",
    "[a]",
    "[laughs] so good",
    "[1.5 stars]",
    "[1.2.3 4]",
    "array(",
    "tensor(f)",
]
"""Texts that begin as a list or a mapping, and are none."""


@pytest.mark.parametrize("text", SIMILAR, ids=lambda text: text[:20])
def test_a_text_that_only_begins_as_a_list_stays_a_text(text: str) -> None:
    """Python's parser raises TypeError for a list as a key, RecursionError for depth: a traceback for a review in brackets."""
    assert literal(text) == text
    assert not is_conversation(text)
    if len(text) < 100:
        assert read_label(text, "row 1") == text


@pytest.mark.filterwarnings("error")
def test_an_escape_that_python_does_not_know_is_silent() -> None:
    """Python warns on stderr of an escape in a string, once for each text, which no user has written as code."""
    assert decode_notation("['\\d+']") == ["\\d+"]


def test_arrays_of_numpy_are_lists() -> None:
    """Python joins the strings of ['sport' 'art'] to sportart: a class that nobody has named."""
    assert decode_notation("['sport'\n 'art']") == ["sport", "art"]
    assert decode_notation("[0 3  4]") == literal("[0 3 4]") == [0, 3, 4]
    assert decode_notation("[0.1 0.9\n 1.e-05 -1. 2]") == [0.1, 0.9, 1e-5, -1.0, 2]
    assert decode_notation("tensor([0.1000, 0.9000], device='cuda:0')") == [0.1, 0.9]
    assert decode_notation("array([0, 1], dtype=int8)") == decode_notation("tensor([0, 1])") == [0, 1]
    assert read_label("tensor(1)", "row 1") == "1"
    assert read_label("[0. 1.]", "row 1") == ("0", "1")
    assert read_label("['sport' 'art']", "row 1") == ("sport", "art")


def test_a_long_text_is_not_parsed_as_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """A syntax tree takes a hundred times the memory of its text: a cell of 16 MB would take gigabytes."""
    monkeypatch.setattr(notation, "LONGEST", 10)
    assert decode_notation("['a']") == ["a"]
    assert decode_notation('["a", "b", "c"]') == ["a", "b", "c"]
    with pytest.raises(ValueError, match="long"):
        decode_notation("['a', 'b', 'c']")
