"""ROUGE-L, distinct-2 and repetition against values that were worked out by hand."""

from __future__ import annotations

import pytest

from kdcli.text_metrics import text_scores


@pytest.mark.parametrize(
    ("text", "reference", "rouge_l"),
    [
        (
            "police killed the gunman",
            "police kill the gunman",
            0.75,
        ),  # Lin 2004, section 3.1: 3 of 4 words in order
        ("the gunman kill police", "police kill the gunman", 0.5),
        ("The, GUNMAN!", "the gunman", 1.0),
        ("", "a reference", 0.0),
        ("a text", "", 0.0),
        ("a", "b c d", 0.0),
        ("a b", "a x b y", 2 * 2 / 6),
    ],
)
def test_rouge_l(text: str, reference: str, rouge_l: float) -> None:
    """A longest common *substring*, or recall alone, instead of the F1 of the longest common subsequence."""
    assert text_scores([text], [reference])["rouge_l"] == pytest.approx(rouge_l)


def test_rouge_l_is_the_mean_over_the_texts() -> None:
    """Long texts weigh more than short ones."""
    assert text_scores(["a", "b c d e"], ["a", "x y z w"])["rouge_l"] == pytest.approx(0.5)


def test_diversity() -> None:
    """A model that writes the same for every prompt has one of each pair."""
    assert text_scores(["a b c", "a b c"], ["", ""])["distinct_2"] == pytest.approx(2 / 4)
    assert text_scores(["a b c d"], [""])["distinct_2"] == 1


def test_repetition_is_counted_within_a_text() -> None:
    """Two answers that are alike are no loop; one that repeats itself is."""
    assert text_scores(["a b c d", "a b c d"], ["", ""])["repetition"] == 0
    assert text_scores(["a b a b a b a b"], [""])["repetition"] == pytest.approx(1 - 2 / 5)


def test_nothing_to_score() -> None:
    """A division by the number of texts, of pairs or of groups, which may be none."""
    assert text_scores([], []) == {"rouge_l": 0.0, "distinct_2": 0.0, "repetition": 0.0}
