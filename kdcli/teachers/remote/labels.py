"""Reads the labels of a classification task from a model's completions: written out, as a letter, or as log-probabilities."""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from kdcli.errors import TeacherError, shown
from kdcli.tasks.labels import unambiguous
from kdcli.teachers.remote.answers import (
    Stated,
    before_next_text,
    denies,
    is_cut,
    plain_text,
    stated,
    without_thoughts,
)

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LEADING_LETTER = re.compile(r"[\W_]*(?:\w+:[\W_]*)?([A-Z])(?=[ \t]*(?:[^\w \t]|$))")
"""Matches a completion that is a letter, with or without reasons. No word follows the letter, since `A` could be its article."""
RATING = re.compile(r"(?P<given>\d+)\s*(?:(?:/|of|out of)\s*(?P<most>\d+))?\s*(?:stars?|points?)?")
"""Matches a number of a scale, with its highest one or its unit: `4/5`, `4 out of 5`, `4 stars`."""
SHORT = 3
"""The number of characters below which a token does not identify the label that it begins: a token `I` begins `I think` as well as `irony`."""
LEAST = 1e-6
"""The probability of a label whose token the endpoint does not list."""
SoftLabels = Literal["logprobs", "samples", "one_hot", "prompt_logprobs"]


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
        self._accept([normalise(label) for label in labels])

    def _accept(self, words: list[str]) -> None:
        """Set what the model may write for each label."""
        self._words = words
        self._by_word = unambiguous(words)
        self._by_compact = unambiguous(list(map(_compact, words)))
        is_scale = len(words) > 2 and all(map(str.isdecimal, words))  # `0/1` is a list of two labels
        self._highest = max(words, key=int) if is_scale else None

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
        self.lettered = True
        self._accept([letter.casefold() for letter in LETTERS[: len(self.labels)]])

    def read(
        self, choices: Sequence[Mapping[str, Any]]
    ) -> tuple[np.ndarray | None, Sequence[Mapping[str, Any]]]:
        """Read the completions of one row.

        Returns:
            The log-probabilities (C,) fp32 that they give, None if they name no label; and the completions that name none.

        Raises:
            TeacherError: the endpoint returns no log-probabilities (logprobs).
        """
        if self.soft_labels == "logprobs":
            shares = self._from_tokens(choices[0])
            unparsable = choices[:1] if shares is None else []
        else:
            labels = [self.label_of(choice) for choice in choices]
            unparsable = [choice for choice, label in zip(choices, labels, strict=True) if label is None]
            shares = self._from_labels([label for label in labels if label is not None])
        return (None if shares is None else np.log(shares / shares.sum()).astype(np.float32)), unparsable

    def token_shares(self, choice: Mapping[str, Any]) -> tuple[np.ndarray, float, float]:
        """Return the probability of each label's first token, (C,), 0 if it is not listed; that of tokens that begin several labels; and the
        most that a token which is not listed can have.

        Raises:
            TeacherError: there are no log-probabilities.
        """
        tokens = choice["logprobs"]
        if not tokens or not tokens[0]["top"]:
            raise self._no_log_probabilities("no log-probabilities")
        first = _first_token(choice)
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
        if without_thoughts(choice).text is None and (choice["text"].strip() or choice.get("reasoning")):
            return None  # the tokens are thoughts
        shares, _, rest = self.token_shares(choice)
        mass = float(shares.sum())
        if mass < self.least_mass:
            self._require_tokens_of_text(choice)
            return None
        self.missing.append(max(0.0, 1 - mass))
        return np.where(shares > 0, shares, min(rest, float(shares[shares > 0].min())))

    def _no_log_probabilities(self, what: str) -> TeacherError:
        return TeacherError(
            f"{self.teacher} gives {what}; give teacher.soft_labels=samples (the shares of several answers), or one_hot"
        )

    def _require_tokens_of_text(self, choice: Mapping[str, Any]) -> None:
        """Refuse log-probabilities of tokens that are not the text of the completion, such as `token_id:101`, if that text is a label, and no
        completion before had probability on one.

        Raises:
            TeacherError
        """
        text, token = plain_text(without_thoughts(choice).text or ""), _first_token(choice)["token"]
        is_label = self._label_that_is(text) is not None
        if is_label and not self.missing and not normalise(text).startswith(normalise(token)):
            raise self._no_log_probabilities(
                f"log-probabilities of tokens ({shown(token)}) that are not the text of its answer ({shown(text)})"
            )

    def _from_labels(self, labels: Sequence[int]) -> np.ndarray | None:
        if not labels:
            return None
        counts = np.bincount(labels, minlength=len(self._words)).astype(float)
        if self.soft_labels == "samples":
            return counts + self.smoothing  # a label that was never sampled is not impossible
        return np.where(counts > 0, 1 - self.smoothing, self.smoothing / (len(self._words) - 1))

    def label_of(self, choice: Mapping[str, Any]) -> int | None:
        """Return the label that a completion is, behind its thoughts."""
        written = without_thoughts(choice)
        if written.text is not None:
            return self.label_in(written.text, written.cut)
        if (calls := choice.get("calls")) and not is_cut(choice):
            return self.label_in(calls[0]["arguments"]) if len(calls) == 1 else None
        # some servers return the answer itself as thoughts (https://github.com/vllm-project/vllm/issues/19222)
        thoughts = plain_text(choice.get("reasoning", ""))
        if choice["text"].strip() or is_cut(choice):
            return None
        return self.label_in(thoughts) if thoughts.startswith("{") else self._label_that_is(thoughts)

    def label_in(self, text: str, cut: bool = False) -> int | None:
        """Return the label that a text is, or that it states (`stated`). A label's name in a sentence is not enough.

        Args:
            cut: the text was truncated.
        """
        text, goes_on = before_next_text(plain_text(text))
        cut = cut and not goes_on
        label = self._label_that_is(text)
        if label is None:
            values = {
                label
                for value in stated(text, cut)
                if (label := self._label_that_is(value.value)) is not None and self._agrees(value, label)
            }
            label = values.pop() if len(values) == 1 else None
        if label is None and self.lettered and (leading := LEADING_LETTER.match(text)):
            label = self._by_word.get(leading[1].casefold())
        if label is None or (self.lettered and not self._is_only_letter(text, label)):
            return None
        begun = sum(word.startswith(self._words[label]) for word in self._words)
        return None if cut and begun > 1 and text.casefold().endswith(self._words[label]) else label

    def _label_that_is(self, text: str) -> int | None:
        """Return the label that a text is, but for case, separators, quotation marks and other punctuation around it."""
        word = normalise(text)
        if self._highest and (rating := RATING.fullmatch(word)) and rating["most"] in (None, self._highest):
            word = rating["given"]
        return self._by_word.get(word, self._by_compact.get(_compact(word))) if word else None

    def _agrees(self, value: Stated, label: int) -> bool:
        """Return whether an explanation agrees with the label before it: it does not deny it, and names no other one."""
        why = normalise(value.why)
        names = (word for other, word in enumerate(self._words) if other != label)
        return not denies(why) and not any(
            re.search(rf"(?<!\w){re.escape(name)}(?!\w)", why) for name in names
        )

    def _is_only_letter(self, text: str, label: int) -> bool:
        letters = {letter.casefold() for letter in re.findall(r"(?<!\w)[A-Z](?!\w)", text)} & {*self._words}
        return letters <= {self._words[label]}


def _compact(word: str) -> str:
    """Return a word without spaces, hyphens and other separators, except between digits; a whole number without decimals."""
    word = re.sub(r"(?<!\d)[\W_]+|[\W_]+(?!\d)", "", word)
    return re.sub(r"^(\d+)\.0+$", r"\1", word)


def _first_token(choice: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the first token behind the thoughts that is more than a space, a line break or punctuation."""
    written, tokens = without_thoughts(choice), choice["logprobs"]
    start = choice["text"].rfind(written.text) if written.text else 0
    ends = itertools.accumulate(len(token["token"]) for token in tokens)
    return next(
        (token for token, end in zip(tokens, ends, strict=True) if end > start and normalise(token["token"])),
        tokens[0],
    )


def normalise(text: str) -> str:
    """Return a word in lower case and compatibility form, without the punctuation and the spaces around it."""
    return re.sub(r"^[\W_]+|(?<![\W_])[\W_]+$", "", unicodedata.normalize("NFKC", text)).casefold()


def clash(labels: Sequence[str], full: bool) -> tuple[str, str] | None:
    """Return two labels that a completion cannot tell apart. By the first token these are labels of which one begins with the other, or that begin
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


def label_schema(labels: Sequence[str]) -> dict[str, Any]:
    """Return the `response_format` of a JSON object with one of the labels."""
    schema = {
        "type": "object",
        "properties": {"label": {"type": "string", "enum": list(labels)}},
        "required": ["label"],
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": "label", "strict": True, "schema": schema}}
