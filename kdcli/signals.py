"""What a model says about the counted positions of a batch: one type for teacher and student.

N is the number of counted positions (rows of a classifier, tokens of a language model), C the number of
classes (labels, or the vocabulary).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import linear

Part = Literal["hidden_states", "attentions", "relations"]
"""What a loss can read of a model's layers."""
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True)
class Features:
    """What went on in a model's layers, over the padded rows of a batch; empty where nobody asked for it.

    Attributes:
        tokens: bool, (B, L): no padding.
        pairs: bool, (B, L, L): the second may be looked at by the first.
        hidden_states: (B, L, H) each: the embeddings, then what each layer makes of them.
        attentions: (B, A, L, L) each: probabilities of A heads.
        queries, keys, values: (B, L, heads · head size) each.
    """

    tokens: Tensor
    pairs: Tensor
    hidden_states: tuple[Tensor, ...] = ()
    attentions: tuple[Tensor, ...] = ()
    queries: tuple[Tensor, ...] = ()
    keys: tuple[Tensor, ...] = ()
    values: tuple[Tensor, ...] = ()

    def to(self, where: torch.device) -> Features:
        """The same on another device."""
        layers = {
            name: tuple(part.to(where) for part in getattr(self, name))
            for name in ("hidden_states", "attentions", "queries", "keys", "values")
        }
        return Features(self.tokens.to(where), self.pairs.to(where), **layers)


@dataclass(frozen=True)
class Signal:
    """Dense scores before the softmax.

    Attributes:
        logits: fp32, (N, C).
        matched: as of every signal: where it says something of the student's position, bool (N,); None: everywhere.
        inside: as of every signal but a stored one: what went on in the layers, if somebody asked for it.
    """

    logits: Tensor
    matched: Tensor | None = None
    features: Features | None = None

    def __len__(self) -> int:
        return len(self.logits)

    @property
    def classes(self) -> int:
        """C."""
        return self.logits.shape[-1]

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.logits.device

    def at(self, positions: slice | Tensor) -> Signal:
        """The signal at some of the positions."""
        return Signal(self.logits[positions], _some(self.matched, positions))

    def rows(self, positions: slice) -> Signal:
        """What a loss gets of some of the positions: the same."""
        return self.at(positions)

    def first(self, classes: int) -> Signal:
        """The signal over (at most) the first so many classes."""
        return self if classes >= self.classes else replace(self, logits=self.logits[:, :classes])

    def to(self, where: torch.device) -> Signal:
        """The same signal on another device."""
        features = None if self.features is None else self.features.to(where)
        return Signal(self.logits.to(where), _moved(self.matched, where), features)


@dataclass(frozen=True)
class Head:
    """A language model's output head.

    Attributes:
        weight: (C, H).
        bias: (C,), or None.
        scale: what the logits are multiplied by (Cohere, Granite).
        cap: logits become cap · tanh(logits / cap) (Gemma 2).
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    cap: float | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """(n, H) -> fp32 logits (n, C)."""
        return self.shaped(linear(hidden.to(self.weight.dtype), self.weight, self.bias))

    def first(self, classes: int) -> Head:
        """The head of (at most) the first so many classes."""
        if classes >= len(self.weight):
            return self
        bias = None if self.bias is None else self.bias[:classes]
        return replace(self, weight=self.weight[:classes], bias=bias)

    def to(self, where: torch.device) -> Head:
        """The same head on another device."""
        bias = None if self.bias is None else self.bias.to(where)
        return replace(self, weight=self.weight.to(where), bias=bias)

    def shaped(self, logits: Tensor) -> Tensor:
        """What comes after the matrix product, in fp32."""
        logits = logits.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


@dataclass(frozen=True)
class HiddenSignal:
    """Last hidden states and the head that makes logits of them: a language model's logits never exist whole.

    Attributes:
        hidden: (N, H).
        head: makes (n, C) of (n, H).
    """

    hidden: Tensor
    head: Head
    matched: Tensor | None = None
    features: Features | None = None

    def __len__(self) -> int:
        return len(self.hidden)

    @property
    def classes(self) -> int:
        """C."""
        return len(self.head.weight)

    def at(self, positions: slice | Tensor) -> HiddenSignal:
        """The signal at some of the positions."""
        return HiddenSignal(self.hidden[positions], self.head, _some(self.matched, positions))

    def rows(self, positions: slice) -> Signal:
        """What a loss gets of some of the positions: their logits."""
        return Signal(self.head(self.hidden[positions]))

    def first(self, classes: int) -> HiddenSignal:
        """The signal over (at most) the first so many classes."""
        return replace(self, head=self.head.first(classes))

    def to(self, where: torch.device) -> HiddenSignal:
        """The same signal on another device, with its head."""
        features = None if self.features is None else self.features.to(where)
        return HiddenSignal(self.hidden.to(where), self.head.to(where), _moved(self.matched, where), features)


@dataclass(frozen=True)
class TopKSignal:
    """The k most likely classes of each position, and the rest of the mass in one bucket.

    A sum over the top k alone is no divergence (it goes negative); over k + 1 buckets it is one, and a lower bound of
    the divergence over all classes (data-processing inequality).

    Attributes:
        indices: int64, (N, k).
        log_p: fp32, (N, k): log-probabilities at temperature 1.
        log_rest: fp32, (N,): the logarithm of all other classes' mass at `temperature`.
        temperature: the T that the signal was stored for: p^(1/T), normalised over all classes.
        classes: C, of all classes.
    """

    indices: Tensor
    log_p: Tensor
    log_rest: Tensor
    temperature: float
    classes: int
    matched: Tensor | None = None
    features: None = None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.log_p.device

    def at(self, positions: slice | Tensor) -> TopKSignal:
        """The signal at some of the positions."""
        return replace(
            self,
            indices=self.indices[positions],
            log_p=self.log_p[positions],
            log_rest=self.log_rest[positions],
            matched=_some(self.matched, positions),
        )

    def rows(self, positions: slice) -> TopKSignal:
        """What a loss gets of some of the positions: the same."""
        return self.at(positions)

    def to(self, where: torch.device) -> TopKSignal:
        """The same signal on another device."""
        return replace(
            self,
            indices=self.indices.to(where),
            log_p=self.log_p.to(where),
            log_rest=self.log_rest.to(where),
            matched=_moved(self.matched, where),
        )

    def softened(self, temperature: float) -> Tensor:
        """Log-probabilities of the k + 1 buckets, (N, k + 1), which sum to 1; the last one is the rest.

        Raises:
            ValueError: another temperature than the stored one and 1.
        """
        if temperature == self.temperature:
            rest = self.log_rest.clamp(min=FLOOR)
            top = self.log_p / temperature
            top = top - top.logsumexp(-1, keepdim=True) + torch.log1p(-rest.exp())[:, None]
        elif temperature == 1.0:
            rest = torch.log1p(-self.log_p.exp().sum(-1).clamp(max=1 - 1e-6))
            top = self.log_p
        else:
            raise ValueError(
                f"the signal was stored for the temperature {self.temperature}, not {temperature}"
            )
        return torch.cat([top, rest[:, None]], dim=-1)


def _some(matched: Tensor | None, positions: slice | Tensor) -> Tensor | None:
    return None if matched is None else matched[positions]


def _moved(matched: Tensor | None, where: torch.device) -> Tensor | None:
    return None if matched is None else matched.to(where)


CHUNK = 2**24
"""Logits of a vocabulary that are in memory at once: 64 MB in fp32."""
FLOOR = -25.0
"""The logarithm of a mass that counts as none: so that 0 · log 0 is 0."""
AnySignal = Signal | HiddenSignal | TopKSignal


def chunks(positions: int, classes: int) -> Iterator[slice]:
    """Slices of so many positions of which the logits fit in memory; one empty slice where there are none."""
    size = max(16, CHUNK // classes)
    for start in range(0, max(1, positions), size):
        yield slice(start, min(start + size, positions))


def top_k(signal: Signal | HiddenSignal, k: int, temperature: float) -> TopKSignal:
    """The k most likely classes of each position and the mass of the rest; (at most) a few hundred rows of logits at once."""
    k = min(k, signal.classes)
    parts = []
    for at in chunks(len(signal), signal.classes):
        log_p = signal.rows(at).logits.float().log_softmax(-1)
        top, indices = log_p.topk(k, dim=-1)
        rest = log_p.mul_(1 / temperature).scatter_(-1, indices, -torch.inf)
        whole = torch.logaddexp(rest.logsumexp(-1), (top / temperature).logsumexp(-1))
        parts.append((indices, top, (rest.logsumexp(-1) - whole).clamp(min=FLOOR)))
    indices, log_p, log_rest = (torch.cat(column) for column in zip(*parts, strict=True))
    return TopKSignal(indices, log_p, log_rest, temperature, signal.classes)


def concatenate(signals: Sequence[AnySignal]) -> AnySignal:
    """Signals of one kind, one after the other."""
    first = signals[0]
    names = {Signal: ["logits"], HiddenSignal: ["hidden"], TopKSignal: ["indices", "log_p", "log_rest"]}[
        type(first)
    ] + (["matched"] if first.matched is not None else [])
    joined: dict[str, Any] = {
        name: torch.cat([getattr(signal, name) for signal in signals]) for name in names
    }
    return replace(first, **joined)
