"""Computes the memory of a training step, and of a forward pass, from the shapes of a model on the device "meta": no weights are loaded.

The model runs once without data. What its forward pass keeps for the backward pass is counted by the hooks of autograd, so that the count holds for every
architecture; what a step holds besides (gradients, optimizer state, chunks of logits) follows from the shapes of the weights.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from kdcli.config.trainer import Trainer as TrainerConfig
from kdcli.device import has_gpu
from kdcli.signals import HiddenSignal, chunks
from kdcli.tasks.base import Task
from kdcli.training.deepspeed import zero_stage
from kdcli.training.trainer import SHORT

logger = logging.getLogger(__name__)
FP32 = 4
"""The bytes of a number in fp32."""
STATE = {
    "adamw_torch_fused": 2.0,
    "adamw_torch": 2.0,
    "sgd": 0.0,
    "adamw_torch_8bit": 0.51,
    "adamw_8bit": 0.51,
    "paged_adamw_8bit": 0.51,
    "adamw_torch_4bit": 0.27,
}
"""The numbers of an optimizer's state for each trained weight: two moments, which are quantized in blocks with one scale each. Adafactor keeps sums over rows
and columns."""
PER_UNIT = 68
"""The bytes that a layer keeps per token and hidden unit in fp32 where a model cannot be run without data (Korthikanti et al. 2022, section 4.1: 34 in half
precision)."""
HEAP = 1.1
"""The memory that activations take on a CPU, as a multiple of their sizes: what the C library keeps between them (measured)."""
LOGITS = 4
"""The copies of a chunk of logits that a loss holds on a GPU at one time."""


@dataclass(frozen=True)
class Activations:
    """What the forward pass of a batch keeps for the backward pass, in bytes.

    Attributes:
        saved: all that is kept.
        layers: the part of it that each layer keeps.
        inputs: the input of each layer.
        head: what the chunked head of a language model holds beyond the gradient of its weights.
        is_counted: whether the model could be run without data; else the sizes are rough.
    """

    saved: int
    layers: tuple[int, ...] = ()
    inputs: tuple[int, ...] = ()
    head: int = 0
    is_counted: bool = True

    def retained(self, checkpointing: bool) -> int:
        """Return the most bytes that are kept: of all layers, or (gradient checkpointing) of one layer and the inputs of all."""
        if not checkpointing or not self.layers:
            return self.saved
        return self.saved - sum(self.layers) + sum(self.inputs) + max(self.layers)

    @property
    def work(self) -> int:
        """What a layer holds while it is computed or differentiated."""
        return max(self.layers, default=self.saved)


@dataclass(frozen=True)
class StepMemory:
    """The memory of a training step in one process, in bytes.

    Attributes:
        parameters: the number of weights.
        weights, gradients, optimizer: what is held between steps and at the end of the backward pass.
        activations: what is held at the end of the forward pass.
        peak: the most at one time. The backward pass frees activations while it allocates gradients, so that it is less than the sum.
    """

    parameters: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    peak: int


def optimizer_bytes(name: str, weights: Sequence[Tensor]) -> int:
    """Return the bytes of an optimizer's state for the trained weights, by its name in transformers."""
    if name == "adafactor":
        return sum(
            FP32
            * (
                weight.numel()
                if weight.ndim < 2
                else weight.numel() // weight.shape[-1] + weight.numel() // weight.shape[-2]
            )
            for weight in weights
        )
    return math.ceil(sum(STATE[name] * weight.numel() * weight.element_size() for weight in weights))


def count_activations(
    model: PreTrainedModel,
    task: Task,
    features: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    bf16: bool,
    cuda: bool,
) -> Activations:
    """Run a model on the device "meta" over rows, and count what it keeps.

    Args:
        features: the rows of a batch, as the task collates them.
        bf16: whether it computes in bf16 by autocast.
        cuda: whether it runs on a GPU.
    """
    batch = task.collate([dict(row) for row in features], tokenizer)
    batch.pop("rows")
    pick, labels = task.positions(batch.pop("labels"))
    short = not cuda and batch["input_ids"].shape[1] <= SHORT
    inputs = {name: tensor.to("meta") for name, tensor in batch.items()}
    pick = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), pick)
    dtype = next(model.parameters()).dtype
    halved = bf16 and dtype == torch.float32
    if halved:
        nn.Module.to(model, torch.bfloat16)
    try:
        with _counting(model) as count, _WithoutData(short, cuda):
            signal = task.signal(model, inputs, pick)
    except Exception as error:  # code that looks at the values of tensors may raise any
        logger.debug("the activations of %s are not counted: %s", type(model).__name__, error)
        return _rough(model, batch["input_ids"].numel(), bf16)
    finally:
        if halved:
            nn.Module.to(model, dtype)
    head, saved = 0, count.total
    if isinstance(signal, HiddenSignal):
        first = next(chunks(len(labels), signal.classes))
        chunk = (first.stop - first.start) * signal.classes
        head = FP32 * chunk * (LOGITS if cuda else 1) + signal.hidden.numel() * signal.hidden.element_size()
    if halved:  # autocast keeps the weights of linear maps in bf16
        maps = [part.weight for part in model.modules() if isinstance(part, nn.Linear | Conv1D)]
        saved += sum(weight.numel() * torch.bfloat16.itemsize for weight in {id(w): w for w in maps}.values())
    return Activations(saved, tuple(count.layers), tuple(count.inputs), head)


def step_memory(
    model: PreTrainedModel, activations: Activations, cfg: TrainerConfig, processes: int, accumulates: bool
) -> StepMemory:
    """Return the memory of a training step.

    Args:
        model: on the device "meta", as it is trained: what is frozen needs no gradient.
        processes: how many share a batch.
        accumulates: whether a step has several micro-batches, so that gradients are there in the forward pass.
    """
    every = list(model.parameters())
    trained = [weight for weight in every if weight.requires_grad]
    weights, gradients = _bytes(every), _bytes(trained)
    optimizer = optimizer_bytes(cfg.optimizer, trained)
    largest = max((_bytes([weight]) for weight in trained), default=0)
    head = _head_gradient(model)
    retained = activations.retained(cfg.gradient_checkpointing)
    held, gathered, loading = gradients, 0, weights
    layer = _bytes(weight for first in layers_of(model)[:1] for weight in first.parameters())
    outside = weights - layer * len(layers_of(model))
    if cfg.deepspeed:
        stage, live = zero_stage(cfg)
        optimizer = (optimizer + weights) // processes  # and a copy of the weights
        if stage == 3:
            gathered, loading = (
                min(weights, FP32 * live) + layer + outside,
                loading + 2 * weights // processes,
            )
            weights //= processes
        if stage > 1:
            gathered += layer
            gradients //= processes
        held = gradients
    elif cfg.fsdp:
        gathered = 2 * (layer + outside)  # a layer, and what belongs to none, with gradients
        loading = weights  # each process reads all of them, and keeps its part
        weights, gradients, optimizer, head = (
            size // processes for size in (weights, gradients, optimizer, head)
        )
        held, loading = gradients, loading + weights
    elif processes > 1:
        held = 2 * gradients  # the buckets in which the gradients of all processes are summed
    forward = retained + head + max(activations.head, activations.work // 2)
    peak = weights + optimizer + gathered
    if has_gpu():  # the backward pass frees activations while it allocates gradients
        peak += max(forward + (held if accumulates else held - gradients), held + largest)
    else:  # the C library keeps most of what is freed, in pieces that do not fit the next tensors
        peak += int(HEAP * forward) + held + (head if _is_tied(model) else 0)
    peak = max(peak, loading)
    return StepMemory(sum(weight.numel() for weight in every), weights, held, optimizer, forward - head, peak)


def layers_of(model: nn.Module) -> list[nn.Module]:
    """Return the layers that gradient checkpointing computes again."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def _bytes(weights: Any) -> int:
    return sum(weight.numel() * weight.element_size() for weight in weights)


def _is_tied(model: PreTrainedModel) -> bool:
    """Return whether input and output embeddings are one weight, whose gradient is the sum of two."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def _head_gradient(model: PreTrainedModel) -> int:
    """Return the bytes of the gradient of a language model's head, which the forward pass computes chunk by chunk."""
    head = model.get_output_embeddings()
    return 0 if head is None or not head.weight.requires_grad else _bytes([head.weight])


def _rough(model: PreTrainedModel, tokens: int, bf16: bool) -> Activations:
    """Return a rough estimate for a model that cannot be run without data."""
    config = model.config.get_text_config()
    layers, hidden = (getattr(config, name, None) or 0 for name in ("num_hidden_layers", "hidden_size"))
    layer = tokens * hidden * PER_UNIT // (2 if bf16 else 1)
    return Activations(
        layer * layers, (layer,) * layers, (tokens * hidden * FP32,) * layers, is_counted=False
    )


@dataclass
class _Count:
    """What was kept so far, and by which layer."""

    total: int = 0
    layers: list[int] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)


@contextmanager
def _counting(model: PreTrainedModel) -> Iterator[_Count]:
    """Count the storages that autograd keeps, without those of the weights."""
    count = _Count()
    stored: dict[int, Tensor] = {}  # keeps them alive, so that no address is used again
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own and storage._cdata not in stored:
            stored[storage._cdata] = tensor.detach()
            count.total += storage.nbytes()
        return tensor

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        count.layers.append(-count.total)
        count.inputs.append(states.numel() * states.element_size())

    def leave(*_: Any) -> None:
        count.layers[-1] += count.total

    hooks = [layer.register_forward_pre_hook(enter, with_kwargs=True) for layer in layers_of(model)]
    hooks += [layer.register_forward_hook(leave) for layer in layers_of(model)]
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield count
    finally:
        for hook in hooks:
            hook.remove()


class _WithoutData(TorchFunctionMode):
    """Lets attention keep what a fused kernel keeps, where training uses one: on a GPU, and on a CPU for long rows without dropout. What architectures look at
    in a mask (whether nothing is masked) is true."""

    def __init__(self, short: bool, cuda: bool):
        super().__init__()
        self.short, self.cuda = short, cuda

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.__bool__ and args[0].is_meta:
            return True
        if func is not scaled_dot_product_attention or self.short:
            return func(*args, **kwargs)
        dropout = args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0)
        if dropout and not self.cuda:
            return func(*args, **kwargs)
        query, key, value = (*args, *(kwargs[name] for name in ("query", "key", "value") if name in kwargs))[
            :3
        ]
        return _Kernel.apply(query, key, value)


class _Kernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1]).transpose(1, 2).contiguous().transpose(1, 2)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError
