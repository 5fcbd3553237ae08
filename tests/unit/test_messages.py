"""How the tests assert messages: by the words that a script relies on."""

from __future__ import annotations

import pytest
from support.commands import naming, require_words

MESSAGE = (
    "trainer.epochs = 0: expected greater than 0; give\n  trainer.max_steps=100 for in/data.csv, row 201."
)


@pytest.mark.parametrize(
    "words",
    [
        ["trainer.epochs", "0"],
        ["row 201", "trainer.epochs"],
        ["give trainer.max_steps=100"],
        ["trainer.max_steps="],
        ["data.csv"],
        ["in/data.csv"],
    ],
)
def test_words_of_a_message(words: list[str]) -> None:
    """A sentence whose order or whose line breaks change is a sentence whose test fails."""
    assert naming(*words).search(MESSAGE)
    require_words(MESSAGE, *words)


@pytest.mark.parametrize(
    "word", ["trainer.epoch", "epochs", "row 20", "csv", "trainer", "in", "trainer.max_steps=10"]
)
def test_parts_of_words_are_no_words(word: str) -> None:
    """The refusal of another key, or of another row, passes for the one that is expected."""
    assert not naming("trainer.epochs", word).search(MESSAGE)
    with pytest.raises(AssertionError, match=naming(word)):
        require_words(MESSAGE, "trainer.epochs", word)
