"""How the processes of a training hold the model: each the whole of it, or a part (trainer.fsdp: FSDP2 as Accelerate applies it; trainer.deepspeed:
kdcli/training/deepspeed.py).

Where weights are divided, each transformer layer is a unit: its weights are gathered for its forward and its backward pass. All else (embeddings,
output head, parameters of the losses) is gathered once a step, for the whole of `Distiller.forward`, so that the chunked head reads whole weights.
"""

from __future__ import annotations

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import (
    DistributedType,
    FullyShardedDataParallelPlugin,
    load_fsdp_model,
    load_fsdp_optimizer,
    save_fsdp_model,
    save_fsdp_optimizer,
)
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from transformers import PreTrainedConfig, PreTrainedModel

from kdcli.config.trainer import Trainer as TrainerConfig
from kdcli.config.types import Quantization
from kdcli.device import has_gpu
from kdcli.errors import ConfigError
from kdcli.training.resume import restoring

LAUNCHED = {
    "ACCELERATE_USE_FSDP": "trainer.fsdp=full_shard",
    "ACCELERATE_USE_DEEPSPEED": "trainer.deepspeed=FILE",
}
"""How `accelerate launch` passes on what its own config chooses, and the key that chooses it here."""
T = TypeVar("T")


def require_processes(cfg: TrainerConfig, key: str, processes: int) -> None:
    """Refuse what cannot be sharded here.

    Args:
        key: of the trainer, for messages.
        processes: that are running.

    Raises:
        ConfigError
    """
    for name, remedy in LAUNCHED.items():
        if os.environ.get(name, "false").lower() == "true":
            raise ConfigError(
                f"the config of accelerate launch sets {name}, and kdcli reads this from its own config: give {remedy}, and leave FSDP and "
                "DeepSpeed out of Accelerate's config"
            )
    if cfg.sharded_by is None:
        return
    if processes == 1:
        raise ConfigError(
            f"{key}.{cfg.sharded_by} = {cfg.fsdp or cfg.deepspeed}: it divides a model among several processes, and one is running; start several "
            f"(torchrun --nproc-per-node=2 -m kdcli distill …), or leave {key}.{cfg.sharded_by} out"
        )
    if cfg.fsdp == "offload" and not has_gpu():
        raise ConfigError(
            f"{key}.fsdp = offload: it keeps in the CPU's memory what a GPU does not need, and there is no GPU; give {key}.fsdp=full_shard"
        )


def require_unquantized(config: PreTrainedConfig, key: str, base: Quantization | None = None) -> None:
    """Refuse to shard a student that holds quantized weights: parts of packed integers cannot be gathered.

    Args:
        config: of its checkpoint.
        key: that divides it, for the messages.
        base: the quantization of the weights that its adapters are trained on.

    Raises:
        ConfigError
    """
    if base is not None:
        raise ConfigError(
            f"{key}: student.quantization_base={base} quantizes the weights of the student, and only floats are divided among processes; leave "
            f"one of the two out (without {key} each process holds all of the quantized weights)"
        )
    if getattr(config, "quantization_config", None) is not None:
        raise ConfigError(
            f"{key}: the weights of student.path are quantized (quantization_config in its config.json), and only floats are divided among "
            f"processes; give the checkpoint before its quantization, or leave {key} out"
        )


def skeleton(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of a model with weights on the meta device, which `ShardedTrainer.gather_student` fills. Buffers are shared, and tied weights stay tied."""
    memo: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
    for weight in model.parameters():
        memo[id(weight)] = torch.nn.Parameter(weight.detach().to("meta"), weight.requires_grad)
    return copy.deepcopy(model, memo)


@contextmanager
def _gathered(model: torch.nn.Module) -> Iterator[None]:
    """Hold all weights in each process, whatever number of forward passes it makes."""
    parts = [part for part in model.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(part is not model, recurse=False)
            part.reshard()


class Sharding(ABC):
    """How the weights, gradients and optimizer state of a training are divided among its processes.

    Args:
        trainer: the `ShardedTrainer` whose model it is.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer

    @abstractmethod
    def start(self) -> None:
        """Configure the Accelerator, which was made from the arguments."""

    def prepare(self) -> None:
        """Divide the model among the processes without training, so that a checkpoint can be loaded."""
        trainer = self.trainer
        trainer.create_optimizer()
        trainer.model_wrapped, trainer.optimizer = trainer.accelerator.prepare(
            trainer.model, trainer.optimizer
        )
        self.prepared()

    @abstractmethod
    def prepared(self) -> None:
        """Complete the trainer when Accelerate has divided the model, before a step."""

    @abstractmethod
    def with_weights(self, function: Callable[[], T]) -> T:
        """Call a function that runs the student outside of a training step; see `ShardedTrainer.with_weights`."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Save what this process holds of the weights and of the optimizer's state."""

    @abstractmethod
    def load_weights(self, checkpoint: Path) -> None:
        """Load what this process holds of the weights."""

    @abstractmethod
    def load_optimizer(self, checkpoint: Path) -> None:
        """Load what this process holds of the optimizer's state."""

    @abstractmethod
    def weights(self) -> dict[str, torch.Tensor]:
        """Return all weights in fp32 by their names in the distiller, in the main process. All processes call it together."""

    @abstractmethod
    def final_weights(self) -> dict[str, torch.Tensor]:
        """Return `weights` after the last step, and release what the training holds."""

    def require_processes(self, checkpoint: Path, parts: int, key: str) -> None:
        """Refuse a checkpoint of another number of processes.

        Args:
            parts: files that it has.
            key: that divides the model, for the message.

        Raises:
            ConfigError
        """
        processes = self.trainer.args.world_size
        if parts != processes:
            raise ConfigError(
                f"{checkpoint} holds the sharded weights of {parts} processes, and {processes} are running ({key}): start "
                f"{parts} processes (torchrun --nproc-per-node={parts})"
            )


class FSDP(Sharding):
    """FSDP2: weights, gradients and optimizer state are divided among the processes."""

    def start(self) -> None:
        """Have Accelerate shard the weights on a CPU too, where it would leave `fsdp` out without a message."""
        state = self.trainer.accelerator.state
        if state.distributed_type == DistributedType.MULTI_CPU:
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**self.trainer.args.fsdp_plugin_args)
            state.distributed_type = DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.trainer.is_fsdp_enabled = True

    def prepared(self) -> None:
        self.trainer.model = self.trainer.model_wrapped

    def with_weights(self, function: Callable[[], T]) -> T:
        model: Any = self.trainer.model
        if not hasattr(model, "call"):
            model.call = lambda function: function()
            register_fsdp_forward_method(model, "call")

        def gathered() -> T:
            with _gathered(model):
                return function()

        result: T = model.call(gathered)
        return result

    def save(self, folder: Path) -> None:
        trainer, plugin = self.trainer, self.trainer.accelerator.state.fsdp_plugin
        save_fsdp_model(plugin, trainer.accelerator, trainer.model, str(folder), use_dcp=False)
        save_fsdp_optimizer(
            plugin, trainer.accelerator, trainer.optimizer, trainer.model, str(folder), use_dcp=False
        )

    def load_weights(self, checkpoint: Path) -> None:
        self.require_processes(
            checkpoint, len(list(checkpoint.glob("pytorch_model_fsdp_0_rank*"))), "trainer.fsdp"
        )
        trainer, plugin = self.trainer, self.trainer.accelerator.state.fsdp_plugin
        with restoring(str(checkpoint)):
            load_fsdp_model(plugin, trainer.accelerator, trainer.model, str(checkpoint), use_dcp=False)

    def load_optimizer(self, checkpoint: Path) -> None:
        trainer, plugin = self.trainer, self.trainer.accelerator.state.fsdp_plugin
        load_fsdp_optimizer(
            plugin, trainer.accelerator, trainer.optimizer, trainer.model, str(checkpoint), use_dcp=False
        )

    def weights(self) -> dict[str, torch.Tensor]:
        return dict(self.trainer.accelerator.get_state_dict(self.trainer.model))

    def final_weights(self) -> dict[str, torch.Tensor]:
        trainer = self.trainer
        trainer.optimizer = trainer.lr_scheduler = None
        trainer.callback_handler.optimizer = trainer.callback_handler.lr_scheduler = None
        trainer.accelerator.free_memory()  # the optimizer's state makes room for whole weights
        return self.weights()
