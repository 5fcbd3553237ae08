"""Defines the schema of a training: every key with its type, range, default and meaning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kdcli.config.types import (
    BatchSize,
    Copies,
    Epochs,
    Float,
    Fraction,
    GradNorm,
    Int,
    LearningRate,
    Location,
    Section,
    Steps,
    WeightDecay,
)

SHARDED_OPTIMIZERS = ("adamw_torch_fused", "adamw_torch", "sgd")
"""The optimizers whose state follows the parts of the weights of `fsdp`."""


class Trainer(Section):
    """Describes how one model is trained."""

    until: Literal["converged", "steps"] | None = None
    """converged: train until neither the validation loss nor the score has improved for `patience` validations, and then lower the learning
    rate to 0 over the last `decay` of all steps. steps: train for `epochs` or `max_steps`. null: steps if one of these is given, else
    converged."""
    epochs: Epochs | None = None
    """Passes over the training rows; with until=converged the most of them, in place of `max_epochs`."""
    max_steps: Steps | None = None
    """Stop after this number of optimizer steps, for any value of `epochs`."""
    max_epochs: Epochs | None = None
    """until=converged: the most passes over the training rows, if these are at least `min_steps`. null: 30 for classifiers, 10 for translators,
    5 for language models."""
    min_steps: Steps = 500
    """until=converged: the fewest optimizer steps."""
    patience: Copies = 3
    """until=converged: validations without an improvement until the learning rate begins to fall."""
    decay: Annotated[Float, Field(ge=0, lt=1)] = 0.25
    """until=converged: the share of the steps at their end over which the learning rate falls to 0."""
    batch_size: BatchSize = 32
    """Rows an optimizer step, over all processes and accumulated micro-batches."""
    micro_batch_size: BatchSize | None = None
    """Rows that a process holds in memory at once; null: batch_size / processes. It changes the memory use, not the result."""
    learning_rate: LearningRate | None = None
    """null: what suits the student's initial weights: less for a model that was trained before than for random weights (of a teacher: 1e-4)."""
    embedding_learning_rate_factor: Annotated[Float, Field(ge=0, le=10)] | None = None
    """The learning rate of the word embeddings as a share of learning_rate; null: 1, and 0.1 for a classifier with new layers over the teacher's embeddings
    (student=tiny, mini, small) that has no stages, which would forget them."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """until=steps: how the learning rate falls after its warm-up. (Until convergence it is constant, and then falls linearly.)"""
    warmup: Fraction = 0.1
    """The share of the steps (until=converged: of `min_steps`) over which the learning rate rises linearly from 0."""
    optimizer: Literal[
        "adamw_torch_fused",
        "adamw_torch",
        "adamw_torch_8bit",
        "adamw_torch_4bit",
        "adamw_8bit",
        "paged_adamw_8bit",
        "adafactor",
        "sgd",
    ] = "adamw_torch_fused"
    """By its name in transformers. adamw_torch_8bit and adamw_torch_4bit (torchao), adamw_8bit and paged_adamw_8bit (bitsandbytes) keep the
    optimizer state in a quarter of the memory or less; adafactor keeps next to none."""
    weight_decay: WeightDecay = 0.01
    """The factor of decoupled weight decay (AdamW); biases and the weights of normalisation layers do not decay."""
    dropout: Fraction | None = None
    """The probability of every dropout layer during training; null: the model's own config decides."""
    token_dropout: Fraction | None = None
    """The probability with which each token of a training text is replaced by the mask token (word dropout, Iyyer et al. 2015,
    https://aclanthology.org/P15-1162); the teacher's outputs are those of the whole text. null: 0.15 for a classifier with new layers
    (student=tiny, mini, small) that has no stages, else 0. (classification, token_classification)"""
    freeze: list[str] = []
    """Parameters whose name contains one of these strings are not trained."""
    max_grad_norm: GradNorm = 1.0
    """The L2 norm of all gradients at which they are clipped; 0: they are not clipped."""
    gradient_checkpointing: bool = False
    """Compute activations a second time in the backward pass in place of keeping them: less memory for the same result, in about 1.3 times
    the time."""
    compile: Literal["inductor", "cudagraphs", "aot_eager", "eager"] | None = None
    """Compile each transformer layer with this backend of torch.compile: inductor is the fast one, aot_eager and eager find out what it cannot
    compile. The first steps take minutes. null: nothing is compiled."""
    fsdp: Literal["full_shard", "offload"] | None = None
    """Divide the weights, gradients and optimizer state among the processes (FSDP2, Zhao et al. 2023, https://arxiv.org/abs/2304.11277); the result is
    that of one process. full_shard: the weights of a layer are gathered while it is computed. offload: besides, what a GPU does not need is in
    the CPU's memory. null: each process holds all."""
    deepspeed: Location | None = None
    """A JSON file with DeepSpeed's settings, which then divides the optimizer state (`"zero_optimization": {"stage": 1}`), the gradients (2) and the
    weights (3) among the processes (ZeRO, Rajbhandari et al. 2020, https://arxiv.org/abs/1910.02054). `"auto"` in it is what the keys of this
    section say. null: DeepSpeed is not used. (pip install 'kdcli[deepspeed]')"""
    ddp_timeout: Annotated[Int, Field(ge=1, le=7 * 24 * 3600)] = 1800
    """Seconds that a process waits for the others in a step, before it ends with an error. Where processes wait for the work of one, such as an
    evaluation, they wait as long as it lives. It holds for the whole run, and is read from the run's own `trainer`."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 means autocast: weights, optimizer state and losses stay fp32. auto: bf16 where the processor has fast bf16 instructions."""
    keep: Literal["best", "last"] = "best"
    """Which checkpoint becomes the result: the one with the best validation score, or the last one."""
    eval_steps: Steps | None = None
    """Optimizer steps between two validations, each with a checkpoint; null: one epoch, with until=converged between 50 and 250."""
    logging_steps: Steps = 20
    """Optimizer steps between two lines of metrics.jsonl."""
    report_to: list[str] = []
    """Experiment trackers besides metrics.jsonl, by their names in transformers: tensorboard, wandb, mlflow …"""

    @property
    def is_fixed(self) -> bool:
        """Whether the number of steps is fixed before training."""
        if self.until is None:
            return self.epochs is not None or self.max_steps is not None
        return self.until == "steps"

    @model_validator(mode="after")
    def _has_length(self) -> Trainer:
        if self.until == "steps" and self.epochs is None and self.max_steps is None:
            raise ValueError("until = steps: expected epochs or max_steps, which give their number")
        return self

    @property
    def sharded_by(self) -> Literal["fsdp", "deepspeed"] | None:
        """The key that divides the model among processes."""
        if self.fsdp is not None:
            return "fsdp"
        return None if self.deepspeed is None else "deepspeed"

    @model_validator(mode="after")
    def _shards_optimizer(self) -> Trainer:
        if self.fsdp and self.deepspeed:
            raise ValueError(
                "fsdp and deepspeed: each divides the model among processes; leave one of them out"
            )
        if self.sharded_by and self.optimizer not in SHARDED_OPTIMIZERS:
            raise ValueError(
                f"optimizer = {self.optimizer} keeps a state that {self.sharded_by} cannot divide among processes; give one of "
                f"{', '.join(SHARDED_OPTIMIZERS)}, or leave {self.sharded_by} out"
            )
        return self

    @model_validator(mode="after")
    def _divides(self) -> Trainer:
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size = {self.batch_size}: expected a multiple of micro_batch_size = {self.micro_batch_size}"
            )
        return self
