"""Computes the outputs of a teacher that does not fit into memory: all rows pass through one layer, then through the next."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from torch import Tensor

from kdcli.errors import ConfigError, StorageError
from kdcli.files import digest
from kdcli.models.checkpoint import (
    Checkpoint,
    fast_bf16,
    label_order,
    load_config,
    load_tokenizer,
    require_complete,
)
from kdcli.models.layerwise import Layerwise, Part
from kdcli.models.spill import UNKNOWN, Spill
from kdcli.models.vocabulary import count_ids, target_vocabulary
from kdcli.numbers import format_bytes
from kdcli.signals import AnySignal
from kdcli.tasks.base import Task, batch_rows
from kdcli.teachers.base import Compress, Teacher, identity
from kdcli.teachers.local import split_rows

logger = logging.getLogger(__name__)
CHECKED_ROWS = 2
"""The number of rows of the first block that check the architecture."""
Progress = Callable[[int, int, str], None]
"""A function that is called with the number of finished steps, the number of all steps, and a note."""


@dataclass(frozen=True)
class Block:
    """The rows of one batch.

    Attributes:
        name: a hash of the tokens.
        rows: their indices in their group.
        length: tokens of the longest row.
    """

    name: str
    group: int
    rows: np.ndarray
    features: Sequence[dict[str, Any]]
    length: int


@dataclass(frozen=True)
class Work:
    """The resources that a pass takes.

    Attributes:
        weights: the bytes of the weights that are read.
        scratch: the maximum number of bytes of hidden states on disk.
        memory: the bytes of each step of the pass, by its name.
        tokens: the number of tokens, with padding.
        blocks: the number of blocks.
    """

    weights: int
    scratch: int
    memory: Mapping[str, int]
    tokens: int
    blocks: int


class StreamedTeacher(Teacher):
    """Gives the same bits as `LocalTeacher`, from a checkpoint of which one layer at a time is in memory.

    The rows are batched as `LocalTeacher` does. All batches pass through a layer before the next one is read; between two layers their hidden
    states are on disk. A process that was killed continues with the block and the layer that it was at.

    Args:
        batch_size: rows in one forward pass.
        folder: for the hidden states; it belongs to this process, teacher, task, maximum length and batch size. It is removed at the end.
        memory_bound: the bytes that the pass may take in addition to what the process holds before it.
    """

    def __init__(self, batch_size: int, folder: Path, memory_bound: float):
        self.batch_size, self.folder, self.memory_bound = batch_size, folder, memory_bound

    def open(self, source: Checkpoint, task: Task, max_length: int, precision: str) -> None:
        """Build the model without its weights.

        Raises:
            ModelError, TeacherError: as for `LocalTeacher`; or the architecture cannot be run layer by layer.
        """
        require_complete(source, task)
        order = label_order(load_config(source), task.labels, source.name) if task.labels else None
        bf16 = source.dtype == "fp32" and fast_bf16(precision)
        self.model = Layerwise(source, task, bf16, order)
        self.tokenizer = load_tokenizer(source, self.model.model)
        self.model.tokenizer = self.tokenizer
        self.classes = len(task.labels) or count_ids(target_vocabulary(self.tokenizer))
        self.task, self.max_length = task, max_length

    def truncate_vocabulary(self, classes: int) -> None:
        """Drop the logits of the other classes, as `LocalTeacher` does."""
        self.classes = min(self.classes, classes)

    def outputs(
        self, examples: Sequence[Mapping[str, Any]], compress: Compress = identity
    ) -> list[AnySignal]:
        """Run one pass for these rows alone."""
        return next(iter(list(self.stream([examples], compress))))

    def work(self, sizes: Sequence[tuple[int, int]]) -> Work:
        """Estimate what a pass takes.

        Args:
            sizes: the number of rows of each block, and the number of tokens of its longest row.
        """
        model = self.model
        width = model.hidden_size * (4 if model.bf16 else model.dtype.itemsize)
        tokens = [rows * length for rows, length in sizes]
        peaks = [model.peak_bytes(rows, length) for rows, length in set(sizes)]
        memory = {step: max(peak[step] for peak in peaks) for step in peaks[0]} if peaks else {"": 0}
        scratch = (sum(tokens) + max(tokens, default=0)) * width
        return Work(model.total_bytes, scratch, memory, sum(tokens), len(sizes))

    def require(self, work: Work) -> None:
        """Refuse a pass that takes more memory than its bound, or more disk than there is.

        Raises:
            ConfigError
        """
        step, most = max(work.memory.items(), key=lambda each: each[1])
        if most > self.memory_bound:
            raise ConfigError(
                f"teacher.memory_bound = {format_bytes(int(self.memory_bound))}: {step} takes up to {format_bytes(most)} with "
                f"{self.batch_size} rows in a block; raise it to {format_bytes(most)}"
                + (
                    f", or lower teacher.batch_size = {self.batch_size} (another batch size makes other stored outputs)"
                    if step == "a layer"
                    else ""
                )
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free + Spill(self.folder).nbytes
        if free < work.scratch:
            raise ConfigError(
                f"teacher.placement=streamed needs {format_bytes(work.scratch)} of scratch space in {self.folder} for hidden states, and "
                f"{format_bytes(free)} are free; free some, or set KDCLI_CACHE_DIR to a larger disk"
            )

    def remove_if_empty(self) -> None:
        """Remove the folder of hidden states, if it holds none."""
        with contextlib.suppress(OSError):
            self.folder.rmdir()
            self.folder.parent.rmdir()

    def stream(
        self,
        groups: Sequence[Sequence[Mapping[str, Any]]],
        compress: Compress = identity,
        progress: Progress = lambda done, total, note: None,
        announce: Callable[[Work], None] = lambda work: None,
    ) -> Iterator[list[AnySignal]]:
        """Yield the outputs for each row of each group. Each group is batched alone, as one call of `outputs` batches it.

        Args:
            announce: is called with what the pass takes, before it begins.

        Raises:
            ConfigError: the pass takes more than its bounds.
            ModelError: the architecture cannot be run layer by layer.
            StorageError: hidden states on the disk are damaged.
        """
        blocks = self._blocks(groups)
        work = self.work([(len(block.rows), block.length) for block in blocks])
        self.require(work)
        announce(work)
        spill = Spill(self.folder)
        steps = _Steps(progress, len(blocks) * (len(self.model.steps) + 1), self.model)
        self._advance(blocks, spill, steps)
        self.model.load("head")
        for group, rows in enumerate(groups):
            by_row: dict[int, AnySignal] = {}
            for block in blocks:
                if block.group == group:
                    by_row |= self._outputs(block, spill, compress)
                    steps.add("the head", 1)
            yield [by_row[row] for row in range(len(rows))]
        self.model.unload("head")
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # other processes have folders there
            self.folder.parent.rmdir()

    def _outputs(self, block: Block, spill: Spill, compress: Compress) -> dict[int, AnySignal]:
        states = spill.read(block.name)
        if states is None:
            raise StorageError(
                f"hidden states in {self.folder} are damaged: is the disk failing? They were removed; run the same command again, which computes them"
            )
        signal, labels = self.model.outputs(block.features, states)
        return split_rows(block.rows, compress(signal.first(self.classes)), labels)

    def _advance(self, blocks: Sequence[Block], spill: Spill, steps: _Steps) -> None:
        """Run all blocks through all layers; blocks that a killed process stored continue at their layer."""
        model, last = self.model, len(self.model.steps) - 1
        model.load("rest")
        model.load(0)
        if blocks:
            model.check(blocks[0].features[:CHECKED_ROWS])
        loaded: Part = 0
        for block in blocks:
            steps.add("", spill.depth(block.name) - UNKNOWN)
        while (depth := min((spill.depth(block.name) for block in blocks), default=last)) < last:
            part = model.steps[depth - UNKNOWN]
            if part != loaded:
                if part != "embedding":
                    model.unload(loaded)
                    loaded = part
                model.load(part)
            for block in blocks:
                if spill.depth(block.name) != depth:
                    continue
                states = self._step(block, depth, spill)
                if states is not None:
                    spill.write(block.name, depth + 1, states)
                    steps.add(
                        f"layer {part + 1}/{len(model.layers)}" if isinstance(part, int) else "embeddings", 1
                    )
            if part == "embedding":
                model.unload(part)
        model.unload(loaded)

    def _step(self, block: Block, depth: int, spill: Spill) -> Tensor | None:
        """Return the hidden states of a block after a further step; None: those before it are damaged."""
        if depth == UNKNOWN:
            return self.model.embed(block.features)
        states, part = spill.read(block.name), self.model.steps[depth - UNKNOWN]
        if states is None:
            return None
        encoder_block = f"{block.name}-encoder"
        if not isinstance(part, int):  # the encoder is done; all layers of the decoder read its states
            spill.write(encoder_block, 0, states)
            return self.model.embed_targets(block.features)
        encoder_states = None
        if 0 < self.model.encoder_layers <= part and (encoder_states := spill.read(encoder_block)) is None:
            spill.remove(block.name)
            return None
        return self.model.layer(part, block.features, states, encoder_states)

    def _blocks(self, groups: Sequence[Sequence[Mapping[str, Any]]]) -> list[Block]:
        blocks = []
        for group, examples in enumerate(groups):
            table = datasets.Dataset.from_list(list(examples))
            encoded = self.task.encode(self.tokenizer, table, self.max_length)
            for rows in batch_rows(encoded, self.batch_size):
                features = [encoded[int(row)] for row in rows]
                tokens = [[np.asarray(value).tolist() for value in row.values()] for row in features]
                name = digest([examples[int(row)]["id"] for row in rows], tokens)[:32]
                blocks.append(Block(name, group, rows, features, int(encoded.lengths[rows].max())))
        return blocks


class _Steps:
    """Counts blocks and layers."""

    def __init__(self, progress: Progress, total: int, model: Layerwise):
        self.progress, self.total, self.model, self.done = progress, total, model, 0

    def add(self, name: str, count: int) -> None:
        """Report further steps."""
        self.done += count
        read, all_bytes = format_bytes(self.model.bytes_read), format_bytes(self.model.total_bytes)
        note = ", ".join(filter(None, [name, f"{read} of {all_bytes} of weights read"]))
        self.progress(self.done, self.total, note)
