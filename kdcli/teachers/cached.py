"""A teacher's answers on disk: asked once, read in every epoch and in later runs."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kdcli.files import digest, replaced
from kdcli.signals import FLOOR, AnySignal, HiddenSignal, Signal, TopKSignal, concatenate, top_k
from kdcli.teachers.base import Compress, Teacher, identity

logger = logging.getLogger(__name__)
SHARD = 1024
"""Rows in a shard: what is lost when the fetching is killed."""
FORMAT = "2"
"""Of the tensors of a shard: a new one whenever they come to mean something else."""
KNEE, CODES = 0.2, 2**12
SCALE = (CODES - 1) / math.log1p(-FLOOR / KNEE)
GAPS = (KNEE * torch.expm1(torch.arange(CODES).double() / SCALE)).float()
"""What each code of 12 bits stands for: how far a token's log-probability is below the next likelier one's (the likeliest's below
0), 0 to -`FLOOR`, in steps of 0.12 % of the gap and `KNEE`. Most gaps are a few hundredths. So a log-probability is off by 1e-4 on
average (half precision: 1.4e-3), by 7e-4 at most above -1, and a probability by 2.6e-4 at most (half precision: 1.7e-4)."""


class CachedTeacher(Teacher):
    """Answers looked up by the row's id, which is a hash of its content.

    A classifier's logits are kept whole. Of a language model's, the k most likely tokens of each position are: their
    numbers (16 bits; 20 above 65,536 tokens), their log-probabilities (12 bits, `GAPS`) and the mass of all others (half
    precision): 3.5 k + 2 bytes a position, 226 at k = 64 (4 k + 2 and 258 above 65,536 tokens).

    The folder belongs to one teacher, tokenizer, template, maximum length, precision, k, temperature and list of rows
    (the caller's key): its shards are always made of the same rows in the same batches, so that a cold and a warm cache
    hold the same bits. Shards are mapped into memory, not read into it. Each holds its own checksum; one that is spoiled,
    of other rows or of another `FORMAT`, is named and made again.

    Args:
        k: tokens kept of each position.
        temperature: of the losses that will read them.
    """

    def __init__(self, folder: Path, k: int = 64, temperature: float = 1.0):
        self.folder, self.k, self.temperature = folder, k, temperature
        self.index: dict[str, tuple[int, int, int]] = {}
        self.shards: list[dict[str, Tensor]] = []
        self.about: dict[str, str] = {}

    def fetch(
        self,
        rows: datasets.Dataset,
        ask: Callable[[], Teacher],
        progress: Callable[[int], None],
        state: PartialState | None = None,
    ) -> None:
        """Read what is there, and ask the teacher for the rest; several processes share it.

        Args:
            ask: gives the teacher; called only if a shard is missing.
            progress: called with the number of rows that are answered so far.
            state: of the processes; None: there is one.
        """
        done = 0
        for shards in shares(range(0, len(rows), SHARD), state):
            for start in shards:
                chunk = rows.select(range(start, min(start + SHARD, len(rows))))
                ids = list(chunk["id"])
                path = self.folder / f"{digest(ids)[:32]}.safetensors"
                if not self._open(path, ids):
                    self._write(path, ids, ask().outputs(list(chunk), self._compress))
                    if not self._open(path, ids):
                        raise OSError(f"{path} was written and cannot be read: is the disk failing?")
                done += len(chunk)
                progress(done)

    def outputs(
        self, examples: Sequence[Mapping[str, Any]], compress: Compress = identity
    ) -> list[AnySignal]:
        """The stored answers of rows that were fetched."""
        found = []
        for example in examples:
            shard, start, end = self.index[example["id"]]
            found.append(self._signal({name: part[start:end] for name, part in self.shards[shard].items()}))
        return found

    def signals(self, examples: Sequence[Mapping[str, Any]]) -> AnySignal:
        """The stored answers of a batch: its parts are joined before they are unpacked."""
        places = [self.index[example["id"]] for example in examples]
        return self._signal(
            {
                name: torch.cat([self.shards[shard][name][start:end] for shard, start, end in places])
                for name in self.shards[0]
            }
        )

    def _compress(self, signal: AnySignal) -> AnySignal:
        kept = top_k(signal, self.k, self.temperature) if isinstance(signal, HiddenSignal) else signal
        return kept.to(torch.device("cpu"))

    def _write(self, path: Path, ids: list[str], rows: list[AnySignal]) -> None:
        whole = concatenate(rows)
        tensors = {"offsets": torch.tensor([0, *map(len, rows)]).cumsum(0)}
        about = {"format": FORMAT, "rows": digest(ids), "classes": str(whole.classes)}
        if isinstance(whole, TopKSignal):
            about["temperature"] = repr(whole.temperature)
            codes = _codes(whole.log_p)
            tensors |= {
                "indices": (whole.indices & 0xFFFF).to(torch.uint16),
                "gaps": (codes & 0xFF).to(torch.uint8),
                "gaps_high": _nibbles(codes >> 8),
                "log_rest": whole.log_rest.half(),
            }
            if whole.classes > 2**16:
                tensors["indices_high"] = _nibbles(whole.indices >> 16)
        else:
            assert isinstance(whole, Signal)
            tensors["logits"] = whole.logits
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        about["checksum"] = _checksum(tensors, about)
        with replaced(path, sync=False) as temporary:
            save_file(tensors, temporary, metadata=about)

    def _open(self, path: Path, ids: list[str]) -> bool:
        if not path.is_file():
            return False
        try:
            with safe_open(path, "pt") as file:
                about = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if about.pop("checksum") != _checksum(tensors, about):
                raise ValueError("its checksum is another")
            if about.get("format") != FORMAT:
                raise ValueError("it is of another version's format")
            if about["rows"] != digest(ids):
                raise ValueError("it is of other rows")
            offsets = tensors.pop("offsets").tolist()
        except (SafetensorError, KeyError, OSError, ValueError) as error:
            logger.warning("the teacher's answers in %s cannot be used (%s) and are made again", path, error)
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
        codes += _whole(stored["gaps_high"], codes.shape[-1]) << 8
        if "indices_high" in stored:
            indices += _whole(stored["indices_high"], indices.shape[-1]) << 16
        return TopKSignal(
            indices.long(),
            -GAPS[codes].cumsum(-1),
            stored["log_rest"].float(),
            float(self.about["temperature"]),
            int(self.about["classes"]),
        )


def shares(parts: Sequence[int], state: PartialState | None) -> Iterator[Sequence[int]]:
    """This process's share of some work, and when all have done theirs the others' shares, of which the results are there."""
    if state is None:
        yield parts
        return
    yield parts[state.process_index :: state.num_processes]
    state.wait_for_everyone()
    yield [part for place, part in enumerate(parts) if place % state.num_processes != state.process_index]


def _codes(log_p: Tensor) -> Tensor:
    """(N, k), the likeliest first -> the codes of their gaps, (N, k).

    Each gap is taken from where the codes before it have led, so that their errors do not add up, and a gap too wide for a code
    is made good at the next tokens. A teacher's NaN is no gap; the mass of the rest is NaN then, too, and stored as it is.
    """
    reached = torch.zeros(len(log_p))
    codes = []
    for column in log_p.unbind(-1):
        gap = (reached - column).nan_to_num().clamp(0, -FLOOR)
        codes.append((torch.log1p(gap / KNEE) * SCALE).round().int())
        reached = reached - GAPS[codes[-1]]
    return torch.stack(codes, -1)


def _nibbles(values: Tensor) -> Tensor:
    """(N, k) numbers below 16, two in a byte: (N, ⌈k / 2⌉)."""
    if values.shape[-1] % 2:
        values = torch.nn.functional.pad(values, (0, 1))
    return (values[:, ::2] | values[:, 1::2] << 4).to(torch.uint8)


def _whole(packed: Tensor, k: int) -> Tensor:
    """What `_nibbles` packed, (N, k)."""
    pairs = torch.stack([packed & 15, packed >> 4], -1)
    return pairs.flatten(-2)[:, :k].int()


def _checksum(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    found = hashlib.sha256(digest(about).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if tensor.numel():
            found.update(tensor.view(torch.uint8).numpy().data)
    return found.hexdigest()
