"""A language model behind a server that scores given tokens: soft targets without its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch

from kdcli.errors import ConfigError, TeacherError, shown
from kdcli.models.checkpoint import Checkpoint, load_tokenizer
from kdcli.models.vocabulary import count_ids, target_vocabulary
from kdcli.signals import FLOOR, AnySignal, TopKSignal
from kdcli.tasks.base import Task
from kdcli.tasks.rows import IGNORE
from kdcli.teachers.base import Compress, Teacher, identity
from kdcli.teachers.remote.ledger import Answer
from kdcli.teachers.remote.limits import Estimate, Usage
from kdcli.teachers.remote.scoring import ScoringClient
from kdcli.teachers.remote.top import Top

COMPARED_TEXTS = 8
"""Texts whose tokens are compared with those of the server's tokenizer."""


class Piece(NamedTuple):
    """A part of a row that is scored by itself: all of it, or one of its documents."""

    prompt: list[int]
    counted: np.ndarray
    """Which of the tokens count, bool (N,); the first one never does."""

    @property
    def start(self) -> int:
        """Return the index of the first token that counts; 0: none does."""
        return int(self.counted.argmax())


class TokenScorer(Teacher):
    """The outputs of a language model at the tokens of given rows: its k likeliest tokens with their log-probabilities at temperature 1.

    Rows are tokenized here, and the server gets token ids. It knows nothing of attention masks: the documents of a packed row are scored
    one by one.

    Args:
        client: sends the requests.
        tokenizer: a directory or hub id with the model's tokenizer and config.json; None: that of the student.
        verify: a checkpoint of the model on this machine, with which some answers are compared before the others are requested.
        rows_per_request: rows that are requested together.

    Attributes:
        answered: is called after each row that was answered.
    """

    def __init__(
        self,
        client: ScoringClient,
        tokenizer: str | None = None,
        verify: str | None = None,
        rows_per_request: int = 1,
    ):
        self.client, self.tokenizer_path, self.verify = client, tokenizer, verify
        self.rows_per_request = rows_per_request
        self.answered: Callable[[Usage], None] = lambda usage: None

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Return what determines its answers, beside the tokenizer."""
        return {"base_url": self.client.base_url, "model": self.client.model}

    def prepare(self, source: Checkpoint, task: Task, max_length: int, top_k: int) -> None:
        """Load the tokenizer; nothing is sent.

        Args:
            source: has the tokenizer.
            top_k: the likeliest tokens that are requested at each position.

        Raises:
            ConfigError: models of the task are not served so.
            ModelError: there is no tokenizer.
        """
        if task.auto != "AutoModelForCausalLM":
            raise ConfigError(
                f"teacher: {self.client.model} at {self.client.root} scores the tokens of decoders (dataset.task=causal_lm), not those of "
                "another task; use a teacher that runs here (teacher=local), or for labels teacher.soft_labels=logprobs"
            )
        self.task, self.max_length = task, max_length
        self.tokenizer = load_tokenizer(source)
        self.classes = count_ids(target_vocabulary(self.tokenizer))
        self.top_k = min(top_k, self.classes)

    def truncate_vocabulary(self, classes: int) -> None:
        """Leave out the tokens beyond the first `classes`; the probabilities of the others sum to 1."""
        self.classes = min(self.classes, classes)
        self.top_k = min(self.top_k, self.classes)

    # ---- outputs -----------------------------------------------------------------------------------------

    def outputs(
        self, examples: Sequence[Mapping[str, Any]], compress: Compress = identity
    ) -> list[AnySignal]:
        """Return the likeliest tokens at each counted position of each row.

        Raises:
            TeacherError, EndpointError: as `Client.query`.
        """
        pieces = self._pieces(examples)
        requested = [piece for of_row in pieces for piece in of_row if piece.counted.any()]
        tops = self._scored(requested)
        signals = []
        for of_row in pieces:
            parts = [
                self._at(next(tops), piece.counted[piece.start :]) for piece in of_row if piece.counted.any()
            ]
            signals.append(compress(self._signal(parts)))
            self.answered(self.client.usage)
        return signals

    def keep(self, row: Mapping[str, Any], tokens: Mapping[str, Any]) -> bool:
        """Keep the scores that came with a completion as those of its row, if the row has just these tokens here: then it need not be scored.

        Args:
            tokens: as `written_top` returns them.
        """
        pieces, prompt, written = self._pieces([row])[0], tokens["prompt"], tokens["written"]
        piece, length = pieces[0], len(prompt) + len(written)
        same = len(pieces) == 1 and piece.prompt[:length] == prompt + written
        if not same or piece.start != len(prompt) or piece.counted[length:].any():
            return False
        top = Top.unpacked(tokens)
        if top.ids.shape[1] < self.top_k:
            return False
        top = Top(top.ids[:, : self.top_k], top.log_p[:, : self.top_k])
        self.client.ledger.append(self.client.key(self._row(piece)), Answer("answered", [top.packed()]))
        return True

    def estimate(self, rows: Iterable[Mapping[str, Any]]) -> Estimate:
        """Return the expected cost of the outputs of rows; nothing is sent."""
        pieces = [piece for of_row in self._pieces(list(rows)) for piece in of_row if piece.counted.any()]
        return self.client.estimate({"rows": [self._row(piece)]} for piece in pieces)

    def _pieces(self, examples: Sequence[Mapping[str, Any]]) -> list[list[Piece]]:
        """Return the pieces of each row."""
        table = datasets.Dataset.from_list([dict(example) for example in examples])
        encoded = self.task.encode(self.tokenizer, table, self.max_length)
        rows = []
        for index in range(len(encoded)):
            row = encoded[index]
            is_first = (
                row["position_ids"] == 0 if "position_ids" in row else np.arange(len(row["labels"])) == 0
            )
            begins = np.flatnonzero(is_first)[1:]
            labels = np.split(row["labels"], begins)
            counted = [part != IGNORE for part in labels]
            for part in counted:
                part[:1] = False  # no token precedes it
            ids = np.split(row["input_ids"], begins)
            rows.append([Piece(part.tolist(), count) for part, count in zip(ids, counted, strict=True)])
        return rows

    def _row(self, piece: Piece) -> dict[str, Any]:
        """Return a row of a request."""
        return {"prompt": piece.prompt, "start": piece.start, "k": self.top_k}

    def _scored(self, pieces: Sequence[Piece]) -> Iterator[Top]:
        """Return the answers to pieces. Those that the ledger has are in no batch with others."""
        rows = list(map(self._row, pieces))
        bodies = [{"rows": rows[start : start + 1]} for start in range(len(rows))]
        if self.rows_per_request > 1:
            bodies = self._batches(rows)
        for _, answer in self.client.query(bodies):
            if answer.status != "answered":
                raise TeacherError(
                    f"{self.client.base_url} gives no scores of prompts ({answer.reason}); take a server that does: {self.client.serve}"
                )
            yield from map(Top.unpacked, answer.choices)

    def _batches(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, list[dict[str, Any]]]]:
        bodies: list[dict[str, list[dict[str, Any]]]] = []
        open_batch: list[dict[str, Any]] = []
        for row in rows:
            is_stored = self.client.ledger.get(self.client.key(row)) is not None
            if open_batch and (is_stored or len(open_batch) == self.rows_per_request):
                bodies.append({"rows": open_batch})
                open_batch = []
            if is_stored:
                bodies.append({"rows": [row]})
            else:
                open_batch.append(row)
        return [*bodies, {"rows": open_batch}] if open_batch else bodies

    def _at(self, top: Top, counted: np.ndarray) -> Top:
        """Return the tokens at the counted positions, of the vocabulary alone."""
        counted = counted[: len(top.ids)]  # what follows a completion does not count
        ids, log_p = top.ids[counted].astype(np.int64), top.log_p[counted].astype(np.float64)
        for row in np.flatnonzero((ids >= self.classes).any(1)):
            ids[row], log_p[row] = self._within_vocabulary(ids[row], log_p[row])
        return Top(ids, log_p)

    def _within_vocabulary(self, ids: np.ndarray, log_p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the same tokens without those beyond the vocabulary, renormalised. In their places are others that are not listed, with equal shares
        of the remaining mass."""
        valid = ids < self.classes
        log_p = log_p - np.log1p(-min(np.exp(log_p[~valid]).sum(), 1 - 1e-6))
        unlisted = np.setdiff1d(np.arange(min(self.classes, 2 * len(ids))), ids[valid])[: (~valid).sum()]
        rest = max(1 - np.exp(log_p[valid]).sum(), np.exp(FLOOR)) / (self.classes - valid.sum())
        share = np.full(len(unlisted), min(np.log(rest), log_p[valid].min(initial=0.0)))
        return np.concatenate([ids[valid], unlisted]), np.concatenate([log_p[valid], share])

    def _signal(self, parts: Sequence[Top]) -> TopKSignal:
        if not parts:  # no token of the row counts
            parts = [Top(np.empty((0, self.top_k), np.int64), np.empty((0, self.top_k)))]
        ids, log_p = (np.concatenate(column) for column in zip(*parts, strict=True))
        rest = np.log(np.maximum(1 - np.exp(log_p).sum(1), np.exp(FLOOR)))
        return TopKSignal(
            torch.from_numpy(ids),
            torch.from_numpy(log_p).float(),
            torch.from_numpy(rest).float(),
            1.0,
            self.classes,
        )

    # ---- the server --------------------------------------------------------------------------------------

    def require_server(self, longest: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> None:
        """Check that the server is there and scores rows as the run needs it. The longest row is scored first; its answer is kept.

        Raises:
            TeacherError: it is not, or does not.
        """
        pieces = self._pieces([longest])[0]
        self.client.require_model(max(len(piece.prompt) for piece in pieces))
        self._require_tokenizer([longest, *others])
        self.outputs([longest])

    def _require_tokenizer(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Compare the tokens of some texts with those of the server."""
        for of_row in self._pieces(rows[:COMPARED_TEXTS]):
            text = str(self.tokenizer.decode(of_row[0].prompt))
            own = self.tokenizer(text, add_special_tokens=False)["input_ids"][1:]
            served = self.client.tokenize(text)
            if served is None:
                return
            before = len(served) - len(own)  # the first token, and a start token
            if not 0 <= before <= 2 or served[before:] != own:
                served = served[max(0, before) :]
                at = next(
                    (i for i, (a, b) in enumerate(zip(own, served, strict=False)) if a != b),
                    min(len(own), len(served)),
                )
                raise TeacherError(
                    f"{self.client.base_url} has another tokenizer than {self.tokenizer_path or 'the student'}: {shown(text[:80])} differs "
                    f"from token {at + 1} on (here {own[at : at + 3]}, there {served[at : at + 3]}); give its tokenizer (teacher.tokenizer=PATH), or correct "
                    "teacher.model"
                )
