"""Stores a teacher's outputs on disk. They are computed once, and read in every epoch and in later runs."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import datasets
import torch
from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kdcli.distributed import wait_for_everyone
from kdcli.files import digest, replaced
from kdcli.signals import FLOOR, AnySignal, HiddenSignal, Signal, TopKSignal, concatenate, top_k
from kdcli.teachers.base import Compress, Teacher, identity
from kdcli.teachers.shards import CHECKSUM, checksum

logger = logging.getLogger(__name__)
T = TypeVar("T")
SHARD = 1024
"""The number of rows in a shard. A killed process loses at most one shard."""
FORMAT = "3"
"""The version of a shard's tensors."""
KNEE, CODES = 0.2, 2**12
SCALE = (CODES - 1) / math.log1p(-FLOOR / KNEE)
GAPS = (KNEE * torch.expm1(torch.arange(CODES).double() / SCALE)).float()
"""The value of each code of 12 bits: the difference between the log-probabilities of a token and of the next likelier one (of the
likeliest token: between 0 and its own), 0 to -`FLOOR`, in steps of 0.12 % of the gap and `KNEE`. Most gaps are a few hundredths. The
error of a log-probability is 1e-4 on average (half precision: 1.4e-3) and at most 7e-4 above -1; that of a probability is at most 2.6e-4
(half precision: 1.7e-4)."""


@dataclass(frozen=True)
class Shard:
    """The file of some consecutive rows."""

    path: Path
    rows: datasets.Dataset

    @property
    def ids(self) -> list[str]:
        """The ids of the rows."""
        return list(self.rows["id"][:])


class CachedTeacher(Teacher):
    """Looks up outputs by the row's id, which is a hash of its content.

    All logits of a classifier are stored. For a language model the k most likely tokens of each position are stored: their
    indices (16 bits; 20 above 65,536 tokens), their log-probabilities (12 bits, `GAPS`) and the mass of all others (half
    precision). A position takes 3.5 k + 2 bytes, 226 at k = 64 (4 k + 2 and 258 above 65,536 tokens).

    The folder belongs to one teacher, tokenizer, template, maximum length, precision, k, temperature and list of rows
    (the caller's key). Its shards always consist of the same rows in the same batches, so a cold and a warm cache hold the
    same bits. Shards are memory-mapped. Each has a checksum; a damaged shard, or one of other rows or of another `FORMAT`, is
    reported and computed again.

    Args:
        k: the number of tokens that are stored for each position.
        temperature: the temperature of the losses that read them.
        since: shards that are older than this do not count, in seconds since the epoch; None: all count.

    Attributes:
        reused: how many rows had stored outputs.
        oldest: when the oldest of them was stored, in seconds since the epoch.
    """

    def __init__(
        self, folder: Path, k: int = 64, temperature: float = 1.0, since: float | None = None
    ) -> None:
        self.folder, self.k, self.temperature, self.since = folder, k, temperature, since
        self.reused, self.oldest = 0, math.inf
        self.index: dict[str, tuple[int, int, int]] = {}
        self.shards: list[dict[str, Tensor]] = []
        self.about: dict[str, str] = {}

    def fetch(
        self,
        rows: datasets.Dataset,
        load_teacher: Callable[[], Teacher],
        progress: Callable[[int], None],
        state: PartialState | None = None,
    ) -> None:
        """Open the stored shards and compute the missing ones; several processes share the work.

        Args:
            load_teacher: returns the teacher; called only if a shard is missing.
            progress: called with the number of rows that are finished.
            state: the processes of the run; None: there is one.
        """
        done = 0
        for shards in shares(self._shards(rows), state):
            for shard in shards:
                if self._open(shard.path, shard.ids):
                    self.reused += len(shard.rows)
                    self.oldest = min(self.oldest, shard.path.stat().st_mtime)
                else:
                    self.store(shard, load_teacher().outputs(list(shard.rows), self.compress))
                    if not self._open(shard.path, shard.ids):
                        raise OSError(f"{shard.path} was written and cannot be read: is the disk failing?")
                done += len(shard.rows)
                progress(done)

    def missing(self, rows: datasets.Dataset, state: PartialState | None = None) -> list[Shard]:
        """Return the shards of this process's share that are not stored."""
        index, count = (0, 1) if state is None else (state.process_index, state.num_processes)
        own = self._shards(rows)[index::count]
        reader = CachedTeacher(self.folder, self.k, self.temperature, self.since)
        return [shard for shard in own if not reader._open(shard.path, shard.ids)]

    def store(self, shard: Shard, rows: list[AnySignal]) -> None:
        """Write the outputs of a shard's rows, which `compress` made smaller."""
        self._write(shard.path, shard.ids, rows)

    def _shards(self, rows: datasets.Dataset) -> list[Shard]:
        chunks = [
            rows.select(range(start, min(start + SHARD, len(rows)))) for start in range(0, len(rows), SHARD)
        ]
        return [
            Shard(self.folder / f"{digest(list(chunk['id']))[:32]}.safetensors", chunk) for chunk in chunks
        ]

    def outputs(
        self, examples: Sequence[Mapping[str, Any]], compress: Compress = identity
    ) -> list[AnySignal]:
        """Return the stored outputs of rows that were fetched."""
        signals = []
        for example in examples:
            shard, start, end = self.index[example["id"]]
            signals.append(self._signal({name: part[start:end] for name, part in self.shards[shard].items()}))
        return signals

    def signals(self, examples: Sequence[Mapping[str, Any]]) -> AnySignal:
        """Return the stored outputs of a batch, whose parts are concatenated before they are unpacked."""
        slices = [self.index[example["id"]] for example in examples]
        return self._signal(
            {
                name: torch.cat([self.shards[shard][name][start:end] for shard, start, end in slices])
                for name in self.shards[0]
            }
        )

    def compress(self, signal: AnySignal) -> AnySignal:
        """Return the part of a signal that is stored."""
        stored = top_k(signal, self.k, self.temperature) if isinstance(signal, HiddenSignal) else signal
        return stored.to(torch.device("cpu"))

    def _write(self, path: Path, ids: list[str], rows: list[AnySignal]) -> None:
        signal = concatenate(rows)
        tensors = {"offsets": torch.tensor([0, *map(len, rows)]).cumsum(0)}
        about = {"format": FORMAT, "rows": digest(ids), "classes": str(signal.classes)}
        if isinstance(signal, TopKSignal):
            about["temperature"] = repr(signal.temperature)
            codes = _codes(signal.log_p)
            tensors |= {
                "indices": (signal.indices & 0xFFFF).to(torch.uint16),
                "gaps": (codes & 0xFF).to(torch.uint8),
                "gaps_high": _nibbles(codes >> 8),
                "log_rest": signal.log_rest.half(),
            }
            if signal.classes > 2**16:
                tensors["indices_high"] = _nibbles(signal.indices >> 16)
        else:
            assert isinstance(signal, Signal)
            tensors["logits"] = signal.logits
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        about[CHECKSUM] = _checksum(tensors, about)
        with replaced(path, sync=False) as temporary:
            save_file(tensors, temporary, metadata=about)

    def _open(self, path: Path, ids: list[str]) -> bool:
        if not path.is_file() or (self.since is not None and path.stat().st_mtime < self.since):
            return False
        try:
            with safe_open(path, "pt") as file:
                about = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if about.pop(CHECKSUM) != _checksum(tensors, about):
                raise ValueError("its checksum does not match")
            if about.get("format") != FORMAT:
                raise ValueError("its format is that of another version")
            if about["rows"] != digest(ids):
                raise ValueError("it holds other rows")
            offsets = tensors.pop("offsets").tolist()
        except (SafetensorError, KeyError, OSError, ValueError) as error:
            logger.warning(
                "the teacher outputs in %s cannot be used (%s) and are computed again", path, error
            )
            return False
        self.about = about
        for row, key in enumerate(ids):
            self.index[key] = len(self.shards), offsets[row], offsets[row + 1]
        self.shards.append(tensors)
        return True

    def _signal(self, stored: dict[str, Tensor]) -> AnySignal:
        if "logits" in stored:
            return Signal(stored["logits"])
        indices, codes = stored["indices"].int(), stored["gaps"].int()
        codes += _unpack(stored["gaps_high"], codes.shape[-1]) << 8
        if "indices_high" in stored:
            indices += _unpack(stored["indices_high"], indices.shape[-1]) << 16
        return TopKSignal(
            indices.long(),
            -GAPS[codes].cumsum(-1),
            stored["log_rest"].float(),
            float(self.about["temperature"]),
            int(self.about["classes"]),
        )


def shares(parts: Sequence[T], state: PartialState | None) -> Iterator[Sequence[T]]:
    """Yield this process's share of some work and, when all processes have finished theirs, the other shares, whose results exist then."""
    if state is None:
        yield parts
        return
    yield parts[state.process_index :: state.num_processes]
    wait_for_everyone(state)
    yield [part for index, part in enumerate(parts) if index % state.num_processes != state.process_index]


def _codes(log_p: Tensor) -> Tensor:
    """Encode log-probabilities (N, k), the likeliest first, as codes of their gaps, (N, k).

    Each gap is measured from the decoded value of the token before, so that errors do not add up and a gap too wide for a code
    is corrected at the next tokens. A NaN of the teacher becomes the gap 0; the mass of the rest is then NaN, too, and stored as it is.
    """
    decoded = torch.zeros(len(log_p))
    codes = []
    for column in log_p.unbind(-1):
        gap = (decoded - column).nan_to_num().clamp(0, -FLOOR)
        codes.append((torch.log1p(gap / KNEE) * SCALE).round().int())
        decoded = decoded - GAPS[codes[-1]]
    return torch.stack(codes, -1)


def _nibbles(values: Tensor) -> Tensor:
    """Pack numbers below 16, (N, k), two in a byte: (N, ⌈k / 2⌉)."""
    if values.shape[-1] % 2:
        values = torch.nn.functional.pad(values, (0, 1))
    return (values[:, ::2] | values[:, 1::2] << 4).to(torch.uint8)


def _unpack(packed: Tensor, k: int) -> Tensor:
    """Unpack `_nibbles`: (N, ⌈k / 2⌉) -> (N, k)."""
    pairs = torch.stack([packed & 15, packed >> 4], -1)
    return pairs.flatten(-2)[:, :k].int()


def _checksum(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    return checksum(
        (
            (
                name,
                tuple(each.shape),
                str(each.dtype),
                each.view(torch.uint8).numpy().data if each.numel() else b"",
            )
            for name, each in tensors.items()
        ),
        about,
    )
