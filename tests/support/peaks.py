"""Trains models of about 25 million parameters, each in a process of its own, and prints the planned and the measured peak of memory of each."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import datasets
import numpy as np
import torch
from support.tiny import speller
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from kdcli.config.tasks import spec_of
from kdcli.config.trainer import Trainer
from kdcli.losses.hard_label import HardLabel
from kdcli.memory import peak_memory, restart_peak
from kdcli.tasks.base import Split, Task
from kdcli.tasks.causal_lm.task import CausalLM
from kdcli.tasks.classification.task import Classification
from kdcli.tasks.encoded import Encoded
from kdcli.training.batches import micro_batches
from kdcli.training.distiller import Distiller
from kdcli.training.job import TrainJob
from kdcli.training.length import Length
from kdcli.training.memory import count_activations, step_memory
from kdcli.training.trainer import train

STEPS = 2


class Silent:
    """Shows nothing."""

    def update(self, *_: Any, **__: Any) -> None:
        """Take a step."""


def bert(layers: int = 4, hidden: int = 384) -> PreTrainedModel:
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=50_000,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=6,
            intermediate_size=4 * hidden,
        )
    )


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=20_000, hidden_size=512, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4, intermediate_size=1408,
            tie_word_embeddings=True,
        )
    )  # fmt: skip


@dataclass
class Case:
    """A training: rows of random tokens, all of one length."""

    make: Callable[[], PreTrainedModel]
    batch: int
    length: int
    trainer: dict[str, Any]
    is_decoder: bool = False


CASES = {
    "bert": Case(bert, 8, 128, {}),
    "llama": Case(llama, 2, 256, {}, True),
    "checkpointing": Case(
        llama, 4, 256, {"gradient_checkpointing": True, "micro_batch_size": 2, "optimizer": "sgd"}, True
    ),
}
FIRST = Case(lambda: bert(1, 12), 2, 16, {"gradient_checkpointing": True})
"""Loads what the libraries load when they are first used."""


def peaks(case: Case, processes: int = 1) -> tuple[int, int]:
    """Train, as one of several processes, and return the planned and the measured peak in bytes."""
    rows, length = STEPS * case.batch, case.length
    ids = np.random.default_rng(0).integers(5, 300, rows * length)
    task: Task
    if case.is_decoder:
        task, labels = CausalLM(), {"labels": ids}
    else:
        task, labels = Classification(["bad", "good"]), {}

    def split(count: int) -> Split:
        table = datasets.Dataset.from_list([{"id": f"{row}", "text": "", "label": 0} for row in range(count)])
        columns = {name: column[: count * length] for name, column in {"input_ids": ids, **labels}.items()}
        own = None if labels else np.zeros(count, np.int64)
        return Split(table, Encoded(columns, np.arange(count + 1) * length, own))

    cfg = Trainer(max_steps=STEPS, batch_size=case.batch, keep="last", precision="fp32", **case.trainer)
    micro, accumulate = micro_batches(cfg, processes)
    tokenizer, train_rows = speller(), split(rows)
    with torch.device("meta"):
        empty = case.make().train()
    kept = count_activations(empty, task, [train_rows.encoded[0]] * micro, tokenizer, False, False)
    assert kept.is_counted
    planned = step_memory(empty, kept, cfg, processes, accumulate > 1).peak
    before = restart_peak()
    assert before is not None
    model = case.make()
    with tempfile.TemporaryDirectory() as folder:
        train(
            TrainJob(
                name="student",
                folder=Path(folder) / "checkpoints",
                out=Path(folder) / "out",
                distiller=Distiller(model, task, {"hard_label": HardLabel()}, {"hard_label": 1.0}),
                tokenizer=tokenizer,
                train=train_rows,
                validation=split(1),
                cfg=cfg,
                length=Length.of(cfg, rows, spec_of("causal_lm" if labels else "classification")),
                learning_rate=1e-4,
                eval_steps=STEPS,
                seed=0,
                progress=Silent(),
                max_length=length,
            )
        )
    return planned, (peak_memory() or 0) - before


if __name__ == "__main__":
    torch.set_num_threads(1)
    peaks(FIRST)
    for name, case in CASES.items():
        sys.stdout.flush()
        if (child := os.fork()) == 0:
            peaks(FIRST)  # touches the pages of the libraries
            planned, measured = peaks(case)
            print(json.dumps({"case": name, "planned": planned, "measured": measured}), flush=True)
            os._exit(0)
        os.waitpid(child, 0)
