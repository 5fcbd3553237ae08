"""Replaces the completions of training rows by the student's own (rollout=student), written for one optimizer step or for several at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from typing_extensions import TypedDict

from kdcli.config.rollout import Rollout
from kdcli.distributed import wait_for_everyone
from kdcli.files import read_jsonl, write_jsonl
from kdcli.generation import Reply, seed_of
from kdcli.training.batches import LengthBuckets
from kdcli.training.job import TrainJob
from kdcli.training.resume import REMEDY

COMPLETIONS = "completions.jsonl"
"""The file of a checkpoint with the completions of the steps after it. The weights that generated them are older than the checkpoint's."""


class Completion(TypedDict):
    """A line of that file: what the student wrote for a training row in a step."""

    step: int
    row: int
    text: str
    complete: bool


Generate = Callable[[Sequence[int], Sequence[int]], list[Reply]]


class OnPolicy:
    """Replaces the completions of some rows of a batch by the student's own.

    Which rows, and what is sampled, depends on (seed, row, step) alone: not on how processes and micro-batches divide a batch.

    Args:
        generate: has the student generate after the prompts of training rows, with one seed for each; all processes call it together.
    """

    def __init__(self, job: TrainJob, rollout: Rollout, generate: Generate):
        self.job, self.rollout, self.generate = job, rollout, generate
        self._order = LengthBuckets(job.train.encoded.lengths, job.cfg.batch_size, job.seed)
        self._buffer: dict[tuple[int, int], Completion] = {}

    def _seeds(self, ids: Sequence[str], steps: Sequence[int]) -> list[int | None]:
        """Return the seed of each row's completion; None: the row keeps its own completion in that step."""
        seeds = [seed_of(self.job.seed, row_id, step) for row_id, step in zip(ids, steps, strict=True)]
        chosen = self.rollout.on_policy_fraction * 10**6
        return [seed if seed % 10**6 < chosen else None for seed in seeds]

    def write_ahead(self, step: int, total: int) -> None:
        """Write the completions of `rollout.buffer` steps, if this step is the first of so many. The processes share them out.

        Args:
            step: counted from 0.
            total: optimizer steps of the training, as far as it is known.
        """
        size = self.rollout.buffer
        if size == 1 or step % size:
            return
        rows = list(self._order.steps(step, min(step + size, total)))
        ids = self.job.train.rows.select([row for _, row in rows])["id"][:]
        seeds = self._seeds(ids, [at for at, _ in rows])
        own = [(*key, seed) for key, seed in zip(rows, seeds, strict=True) if seed is not None]
        state = PartialState()
        share = own[state.process_index :: state.num_processes]
        replies = self.generate([row for _, row, _ in share], [seed for *_, seed in share])
        written = [
            Completion(step=at, row=row, text=reply.text, complete=reply.complete)
            for (at, row, _), reply in zip(share, replies, strict=True)
        ]
        if state.num_processes > 1:
            wait_for_everyone(state)  # a process that writes longer texts may take its time
            written = gather_object(written)
        self._keep(written)

    def _keep(self, written: Sequence[Completion]) -> None:
        self._buffer = {(each["step"], each["row"]): each for each in written}

    def save(self, folder: Path, step: int) -> None:
        """Write the completions of the steps from `step` on to a checkpoint, if there are any."""
        if lines := [each for each in self._buffer.values() if each["step"] >= step]:
            write_jsonl(folder / COMPLETIONS, lines)

    def load(self, folder: Path) -> None:
        """Read the completions of a checkpoint."""
        self._keep(read_jsonl(folder / COMPLETIONS, Completion, REMEDY))

    def replace(self, batch: dict[str, Any], raw: list[dict[str, Any]], step: int) -> list[dict[str, Any]]:
        """Replace the completions in a micro-batch of a step; returns its rows.

        A completion that was truncated has no end token that counts. A row keeps its completion where no token of the student's counts.
        """
        job, task, rows = self.job, self.job.distiller.task, batch["rows"].tolist()
        seeds = self._seeds([row["id"] for row in raw], [step] * len(raw))
        own = {at: seed for at, seed in enumerate(seeds) if seed is not None}
        if self.rollout.buffer == 1:
            replies = self.generate([rows[at] for at in own], list(own.values()))
        else:
            ahead = [self._buffer[step, rows[at]] for at in own]
            replies = [Reply(each["text"], each["complete"]) for each in ahead]
        replaced_by: dict[int, int] = {}
        if own:
            completed = [
                task.with_completion(raw[at], text) | {"ends": ends}
                for at, (text, ends) in zip(own, replies, strict=True)
            ]
            encoded = task.encode(job.tokenizer, datasets.Dataset.from_list(completed), job.max_length)
            _, counts = task.targets(encoded)
            replaced_by = {at: index for index, at in enumerate(own) if counts[index]}
            raw = [
                completed[replaced_by[at]] if at in replaced_by else row | {"ends": True}
                for at, row in enumerate(raw)
            ]
            features = [job.train.encoded[row] for row in rows]
            for at, index in replaced_by.items():
                features[at] = encoded[index] | {"row": features[at]["row"]}
            collated = task.collate(features, job.tokenizer)
            batch |= {name: tensor.to(batch["rows"].device) for name, tensor in collated.items()}
        is_gold = torch.ones(len(raw), dtype=torch.bool, device=batch["labels"].device)
        is_gold[list(replaced_by)] = False
        batch["gold"] = is_gold.repeat_interleave(task.counts(batch["labels"]))
        return raw
