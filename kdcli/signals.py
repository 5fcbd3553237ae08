"""Defines the outputs of a model at the counted positions of a batch: one type for teacher and student.

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

from kdcli.device import has_gpu

Part = Literal["hidden_states", "attentions", "relations"]
"""A kind of features that a loss can read."""
LAYERS = ("hidden_states", "attentions", "queries", "keys", "values")
"""The fields of `Features` with a tensor for each layer."""
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True)
class Features:
    """The features of a model's layers, over the padded rows of a batch; empty if they were not captured.

    Attributes:
        tokens: bool, (B, L): the tokens that are not padding.
        pairs: bool, (B, L, L): the first token may attend to the second.
        hidden_states: (B, L, H) each: the embeddings, then the output of each layer.
        attentions: (B, A, L, L) each: the probabilities of A heads.
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
        """Return the same on another device."""
        layers = {name: tuple(part.to(where) for part in getattr(self, name)) for name in LAYERS}
        return Features(self.tokens.to(where), self.pairs.to(where), **layers)

    def float(self) -> Features:
        """Return the same in fp32."""
        layers = {name: tuple(part.float() for part in getattr(self, name)) for name in LAYERS}
        return Features(self.tokens, self.pairs, **layers)


@dataclass(frozen=True)
class Signal:
    """Dense scores before the softmax.

    Attributes:
        logits: fp32, (N, C).
        matched: the positions of the student at which there are teacher outputs, bool (N,); None: all.
        features: the features of the layers, if they were captured; stored signals have none.
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
        """The device of the tensors."""
        return self.logits.device

    def at(self, positions: slice | Tensor) -> Signal:
        """Return the signal at some positions."""
        return Signal(self.logits[positions], _select(self.matched, positions))

    def rows(self, positions: slice) -> Signal:
        """Return the signal at some positions, in the form that losses read: unchanged."""
        return self.at(positions)

    def first(self, classes: int) -> Signal:
        """Return the signal over at most the first `classes` classes."""
        return self if classes >= self.classes else replace(self, logits=self.logits[:, :classes])

    def to(self, where: torch.device) -> Signal:
        """Return the same signal on another device."""
        features = None if self.features is None else self.features.to(where)
        return Signal(self.logits.to(where), _moved(self.matched, where), features)


@dataclass(frozen=True)
class Head:
    """The output head of a language model.

    Attributes:
        weight: (C, H).
        bias: (C,), or None.
        scale: a factor of the logits (Cohere, Granite).
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
        """Return the head for at most the first `classes` classes."""
        return self if classes >= len(self.weight) else self.part(slice(classes))

    def part(self, classes: slice) -> Head:
        """Return the head for some of the classes."""
        bias = None if self.bias is None else self.bias[classes]
        return replace(self, weight=self.weight[classes], bias=bias)

    def to(self, where: torch.device) -> Head:
        """Return the same head on another device."""
        bias = None if self.bias is None else self.bias.to(where)
        return replace(self, weight=self.weight.to(where), bias=bias)

    def shaped(self, logits: Tensor) -> Tensor:
        """Apply scale and cap to the matrix product, in fp32."""
        logits = logits.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


@dataclass(frozen=True)
class HiddenSignal:
    """Last hidden states and the output head, so that the full logits of a language model are never in memory.

    Attributes:
        hidden: (N, H).
        head: (n, H) -> (n, C).
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
        """Return the signal at some positions."""
        return HiddenSignal(self.hidden[positions], self.head, _select(self.matched, positions))

    def rows(self, positions: slice) -> Signal:
        """Return the signal at some positions, in the form that losses read: their logits."""
        return Signal(self.head(self.hidden[positions]))

    def first(self, classes: int) -> HiddenSignal:
        """Return the signal over at most the first `classes` classes."""
        return replace(self, head=self.head.first(classes))

    def to(self, where: torch.device) -> HiddenSignal:
        """Return the same signal on another device, with its head."""
        features = None if self.features is None else self.features.to(where)
        return HiddenSignal(self.hidden.to(where), self.head.to(where), _moved(self.matched, where), features)


@dataclass(frozen=True)
class TopKSignal:
    """The k most likely classes of each position, and the remaining mass in one bucket.

    A sum over the top k alone is not a divergence, since it can be negative. Over k + 1 buckets it is one, and a lower bound of the
    divergence over all classes (data-processing inequality).

    Attributes:
        indices: int64, (N, k).
        log_p: fp32, (N, k): log-probabilities at temperature 1.
        log_rest: fp32, (N,): the logarithm of the mass of all other classes at `temperature`.
        temperature: the T for which the signal was stored: p^(1/T), normalised over all classes.
        classes: C, the number of all classes.
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
        """The device of the tensors."""
        return self.log_p.device

    def at(self, positions: slice | Tensor) -> TopKSignal:
        """Return the signal at some positions."""
        return replace(
            self,
            indices=self.indices[positions],
            log_p=self.log_p[positions],
            log_rest=self.log_rest[positions],
            matched=_select(self.matched, positions),
        )

    def rows(self, positions: slice) -> TopKSignal:
        """Return the signal at some positions, in the form that losses read: unchanged."""
        return self.at(positions)

    def to(self, where: torch.device) -> TopKSignal:
        """Return the same signal on another device."""
        return replace(
            self,
            indices=self.indices.to(where),
            log_p=self.log_p.to(where),
            log_rest=self.log_rest.to(where),
            matched=_moved(self.matched, where),
        )

    def softened(self, temperature: float) -> Tensor:
        """Return the log-probabilities of the k + 1 buckets at a temperature, (N, k + 1); the last bucket is the rest.

        Raises:
            ValueError: the temperature is neither the stored one nor 1.
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


def _select(matched: Tensor | None, positions: slice | Tensor) -> Tensor | None:
    return None if matched is None else matched[positions]


def _moved(matched: Tensor | None, where: torch.device) -> Tensor | None:
    return None if matched is None else matched.to(where)


CHUNK = 2**24
"""The number of logits that are in memory at once on a CPU: 64 MB in fp32."""
GPU_FACTOR = 4
"""How many times as many on a GPU, where the product of a few hundred rows with a vocabulary of 150,000 tokens takes hardly longer than that of a hundred."""
SLICE = 2**13
"""The number of classes of which the top k are selected at once on a CPU. The math library copies the slice of the head for each product."""
FINE = 2**21
"""The number of their logits that are in memory at once on a CPU: 8 MB in fp32."""
FLOOR = -25.0
"""The logarithm of a mass of zero, so that 0 · log 0 is 0."""
AnySignal = Signal | HiddenSignal | TopKSignal


def chunks(positions: int, classes: int) -> Iterator[slice]:
    """Yield slices of positions whose logits fit in memory; one empty slice if there are no positions."""
    most = CHUNK * GPU_FACTOR if has_gpu() else CHUNK
    size = max(16, most // classes)
    for start in range(0, max(1, positions), size):
        yield slice(start, min(start + size, positions))


def top_k(signal: Signal | HiddenSignal, k: int, temperature: float) -> TopKSignal:
    """Return the k most likely classes of each position and the mass of the rest. The logits of a few hundred positions in a slice of the classes are in
    memory at once, so that it does not grow with the vocabulary."""
    k = min(k, signal.classes)
    size = FINE // SLICE * (GPU_FACTOR if has_gpu() else 1)
    starts = range(0, max(1, len(signal)), size)
    parts = [_top_of(signal.at(slice(start, start + size)), k, temperature) for start in starts]
    indices, log_p, log_rest = (torch.cat(column) for column in zip(*parts, strict=True))
    return TopKSignal(indices, log_p, log_rest, temperature, signal.classes)


def _top_of(signal: Signal | HiddenSignal, k: int, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the indices of the k most likely classes, their log-probabilities at temperature 1, (n, k), and the logarithm of the mass of all others at the
    temperature, (n,). The mass is summed up as classes are dropped: as the difference of two sums it would be lost where it is small."""

    def drop(logits: Tensor, selected: Tensor) -> Tensor:
        """Return the logarithm of the mass of all but the selected ones, (n,). The logits are overwritten."""
        return logits.div_(temperature).scatter_(-1, selected, -torch.inf).logsumexp(-1)

    slices = _logits_by_classes(signal)
    _, logits = next(slices)
    totals = [logits.logsumexp(-1)]
    top, indices = logits.topk(min(k, logits.shape[-1]), dim=-1)
    rests = [drop(logits, indices)]
    for first, logits in slices:
        totals.append(logits.logsumexp(-1))
        more, more_indices = logits.topk(min(k, logits.shape[-1]), dim=-1)
        rests.append(drop(logits, more_indices))
        candidates = torch.cat([top, more], -1)
        top, selected = candidates.topk(min(k, candidates.shape[-1]), dim=-1)
        indices = torch.cat([indices, more_indices + first], -1).gather(-1, selected)
        rests.append(drop(candidates, selected))
    log_p = top - torch.stack(totals, -1).logsumexp(-1, keepdim=True)
    rest = torch.stack(rests, -1).logsumexp(-1)
    mass = torch.stack([rest, (top / temperature).logsumexp(-1)], -1).logsumexp(-1)
    return indices, log_p, (rest - mass).clamp(min=FLOOR)


def _logits_by_classes(signal: Signal | HiddenSignal) -> Iterator[tuple[int, Tensor]]:
    """Yield the fp32 logits of a slice of the classes at a time, in memory of their own, with the first of these classes."""
    size = SLICE * (GPU_FACTOR if has_gpu() else 1)
    for first in range(0, signal.classes, size):
        part = slice(first, first + size)
        if isinstance(signal, Signal):
            yield first, signal.logits[:, part].float().clone()
        else:
            yield first, signal.head.part(part)(signal.hidden)


def concatenate(signals: Sequence[AnySignal]) -> AnySignal:
    """Concatenate signals of the same type."""
    first = signals[0]
    names = {Signal: ["logits"], HiddenSignal: ["hidden"], TopKSignal: ["indices", "log_p", "log_rest"]}[
        type(first)
    ] + (["matched"] if first.matched is not None else [])
    joined: dict[str, Any] = {
        name: torch.cat([getattr(signal, name) for signal in signals]) for name in names
    }
    return replace(first, **joined)
