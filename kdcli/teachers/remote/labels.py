"""The labels of a classification task in a model's completions: written out, as a letter, or as log-probabilities."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from kdcli.errors import TeacherError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LEADING_LETTER = re.compile(r"[\W_]*(?:\w+:[\W_]*)?([A-Z])(?=[ \t]*(?:[^\w \t]|$))")
"""A completion that is a letter, whatever its reasons: no word follows it, of which it would be the article."""
SHORT = 3
"""Characters below which a token does not identify a label that it begins: a token `I` begins `I think` as well as `irony`."""
LEAST = 1e-6
"""The probability of a label whose token the endpoint does not list."""
SoftLabels = Literal["logprobs", "samples", "one_hot"]


class LabelReader:
    """Reads the log-probabilities of labels from completions.

    Args:
        teacher: the teacher's name, for messages.
        soft_labels: logprobs: the probabilities of each label's first token, renormalised over the labels; samples: the shares of
            several completions; one_hot: one label, and a given rest.
        least_mass: a completion with less probability than this on the labels' first tokens has no label (logprobs).
        smoothing: the probability that all other labels share (one_hot), or the count that is added to each label (samples).

    Attributes:
        lettered: the model is requested to write letters in place of the labels.
        missing: of each completion the probability that is on no label's token.
    """

    def __init__(
        self,
        teacher: str,
        labels: Sequence[str],
        soft_labels: SoftLabels,
        least_mass: float,
        smoothing: float,
    ):
        self.teacher, self.labels, self.soft_labels = teacher, list(labels), soft_labels
        self.least_mass, self.smoothing = least_mass, smoothing
        self.lettered = False
        self.missing: list[float] = []
        self._words = [normalise(label) for label in labels]

    @property
    def answers(self) -> list[str]:
        """What the model is requested to write for each label."""
        return list(LETTERS[: len(self.labels)]) if self.lettered else self.labels

    def use_letters(self, reason: str) -> None:
        """Request letters in place of the labels.

        Raises:
            TeacherError: there are more labels than letters.
        """
        if len(self.labels) > len(LETTERS):
            raise TeacherError(
                f"{reason} to {self.teacher}, and {len(self.labels)} labels are more than there are letters to request instead; give "
                "teacher.soft_labels=samples, or one_hot"
            )
        self.lettered, self._words = True, [letter.casefold() for letter in LETTERS[: len(self.labels)]]

    def read(self, choices: Sequence[Mapping[str, Any]]) -> np.ndarray | None:
        """The log-probabilities (C,) fp32 that the completions of one row give; None if they name no label.

        Raises:
            TeacherError: the endpoint returns no log-probabilities (logprobs).
        """
        shares = (
            self._from_tokens(choices[0]) if self.soft_labels == "logprobs" else self._from_texts(choices)
        )
        return None if shares is None else np.log(shares / shares.sum()).astype(np.float32)

    def token_shares(self, choice: Mapping[str, Any]) -> tuple[np.ndarray, float, float]:
        """The probability of each label's first token, (C,), 0 if it is not listed; that of tokens that begin several labels; and the
        most that a token which is not listed can have.

        Raises:
            TeacherError: there are no log-probabilities.
        """
        tokens = choice["logprobs"]
        if not tokens or not tokens[0]["top"]:
            raise TeacherError(
                f"{self.teacher} gives no log-probabilities; give teacher.soft_labels=samples (the shares of several answers), or one_hot"
            )
        first = next((token for token in tokens if normalise(token["token"])), tokens[0])
        shares, ambiguous = np.zeros(len(self._words)), 0.0
        for top in first["top"]:
            start, share = normalise(top["token"]), math.exp(top["logprob"])
            begun = [label for label, word in enumerate(self._words) if start and word.startswith(start)]
            if len(begun) == 1 and (len(start) >= SHORT or start == self._words[begun[0]]):
                shares[begun[0]] += share
            elif begun:
                ambiguous += share
        listed = [math.exp(top["logprob"]) for top in first["top"]]
        return shares, ambiguous, max(LEAST, min(*listed, 1 - sum(listed)))

    def _from_tokens(self, choice: Mapping[str, Any]) -> np.ndarray | None:
        shares, _, rest = self.token_shares(choice)
        mass = float(shares.sum())
        if mass < self.least_mass:
            return None
        self.missing.append(max(0.0, 1 - mass))
        return np.where(shares > 0, shares, min(rest, float(shares[shares > 0].min())))

    def _from_texts(self, choices: Sequence[Mapping[str, Any]]) -> np.ndarray | None:
        labels = [label for choice in choices if (label := self.label_in(choice["text"])) is not None]
        if not labels:
            return None
        counts = np.bincount(labels, minlength=len(self._words)).astype(float)
        if self.soft_labels == "samples":
            return counts + self.smoothing  # a label that was never sampled is not impossible
        return np.where(counts > 0, 1 - self.smoothing, self.smoothing / (len(self._words) - 1))

    def label_in(self, text: str) -> int | None:
        """The label that a text is, or the only one that it contains; a letter, which may be a word as well, only if it leads."""
        written = normalise(text)
        if written in self._words:
            return self._words.index(written)
        if self.lettered:
            letters = {letter.casefold() for letter in re.findall(r"(?<!\w)[A-Z](?!\w)", text)} & {
                *self._words
            }
            leading = LEADING_LETTER.match(text)
            is_label = leading and letters == {leading[1].casefold()}
            return self._words.index(letters.pop()) if is_label else None
        contained = [
            label
            for label, word in enumerate(self._words)
            if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", written)
        ]
        longest = [
            n for n in contained if not any(n != m and self._words[n] in self._words[m] for m in contained)
        ]
        return longest[0] if len(longest) == 1 else None


def normalise(text: str) -> str:
    """A word in lower case, without the punctuation and the spaces around it."""
    return re.sub(r"^[\W_]+|[\W_]+$", "", text).casefold()


def clash(labels: Sequence[str], full: bool) -> tuple[str, str] | None:
    """Two labels that a completion cannot tell apart. By the first token these are labels of which one begins with the other, or that begin
    with the same word.

    Args:
        full: the model writes the full label, not its first token alone.
    """
    words = [normalise(label) for label in labels]
    heads = words if full else [word.partition(" ")[0] for word in words]
    for i, j in itertools.combinations(range(len(words)), 2):
        is_prefix = words[i].startswith(words[j]) or words[j].startswith(words[i])
        if (not full and is_prefix) or heads[i] == heads[j] or "" in (words[i], words[j]):
            return labels[i], labels[j]
    return None
