"""A training whose weights, gradients and optimizer state are divided among processes (trainer.fsdp): FSDP2 as Accelerate applies it.

Each transformer layer is a unit: its weights are gathered for its forward and its backward pass. All else (embeddings, output head, parameters of the
losses) is gathered once a step, for the whole of `Distiller.forward`, so that the chunked head reads whole weights.
"""

from __future__ import annotations

import copy
import os
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
from safetensors.torch import load_file, load_model
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import Trainer as HFTrainer
from transformers.trainer import SCHEDULER_NAME

from kdcli.config.trainer import Trainer as TrainerConfig
from kdcli.config.types import Quantization
from kdcli.device import has_gpu
from kdcli.errors import ConfigError
from kdcli.training.job import TrainJob
from kdcli.training.resume import WEIGHTS, restoring

PREFIX = "student."
"""How the names of the student's weights begin in the distiller."""
LAUNCHED = {
    "ACCELERATE_USE_FSDP": "trainer.fsdp=full_shard",
    "ACCELERATE_USE_DEEPSPEED": "trainer.fsdp=full_shard",
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
    if cfg.fsdp is None:
        return
    if processes == 1:
        raise ConfigError(
            f"{key}.fsdp = {cfg.fsdp}: it divides a model among several processes, and one is running; start several "
            f"(torchrun --nproc-per-node=2 -m kdcli distill …), or leave {key}.fsdp out"
        )
    if cfg.fsdp == "offload" and not has_gpu():
        raise ConfigError(
            f"{key}.fsdp = offload: it keeps in the CPU's memory what a GPU does not need, and there is no GPU; give {key}.fsdp=full_shard"
        )


def require_unquantized(config: PreTrainedConfig, base: Quantization | None = None) -> None:
    """Refuse to shard a student that holds quantized weights: parts of packed integers cannot be gathered.

    Args:
        config: of its checkpoint.
        base: the quantization of the weights that its adapters are trained on.

    Raises:
        ConfigError
    """
    if base is not None:
        raise ConfigError(
            f"trainer.fsdp: student.quantization_base={base} quantizes the weights of the student, and only floats are divided among "
            "processes; leave one of the two out (without fsdp each process holds all of the quantized weights)"
        )
    if getattr(config, "quantization_config", None) is not None:
        raise ConfigError(
            "trainer.fsdp: the weights of student.path are quantized (quantization_config in its config.json), and only floats are divided among "
            "processes; give the checkpoint before its quantization, or leave trainer.fsdp out"
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


class ShardedTrainer(HFTrainer):
    """The stock Trainer, whose checkpoints hold one file a process where the weights are sharded."""

    job: TrainJob

    def create_accelerator_and_postprocess(self) -> None:
        """Have Accelerate shard the weights on a CPU too, where it would leave `fsdp` out without a message."""
        super().create_accelerator_and_postprocess()
        os.environ.pop("ACCELERATE_USE_FSDP", None)  # the next training of this process may not be sharded
        state = self.accelerator.state
        if self.args.fsdp_plugin_args is None:
            return
        if state.distributed_type == DistributedType.MULTI_CPU:
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
            state.distributed_type = DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.is_fsdp_enabled = True

    def shard(self) -> None:
        """Shard the student over the processes without training, so that a sharded checkpoint can be loaded."""
        if self.is_fsdp_enabled:
            self.create_optimizer()
            self.model, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)

    def with_weights(self, function: Callable[[], T]) -> T:
        """Call a function that runs the student outside of a training step, such as for generation. All processes call it together, and the
        numbers of their forward passes may differ."""
        if not self.is_fsdp_enabled:
            return function()
        model: Any = self.model
        if not hasattr(model, "call"):
            model.call = lambda function: function()
            register_fsdp_forward_method(model, "call")

        def gathered() -> T:
            with _gathered(model):
                return function()

        result: T = model.call(gathered)
        return result

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Each process saves its own part."""
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        plugin, scheduler = self.accelerator.state.fsdp_plugin, self.lr_scheduler
        save_fsdp_model(plugin, self.accelerator, self.model, output_dir, use_dcp=False)
        save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir, use_dcp=False)
        if self.args.should_save:
            assert scheduler is not None
            torch.save(scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with restoring(checkpoint):
            if not self.is_fsdp_enabled or checkpoint is None:
                super()._load_optimizer_and_scheduler(checkpoint)
                return
            plugin, scheduler = self.accelerator.state.fsdp_plugin, self.lr_scheduler
            load_fsdp_optimizer(
                plugin, self.accelerator, self.optimizer, self.model, checkpoint, use_dcp=False
            )
            assert scheduler is not None
            scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))

    def load_weights(self, checkpoint: Path) -> None:
        """Load the weights of a checkpoint into the model, which is sharded if they are.

        Raises:
            ConfigError: another number of processes wrote it.
            KDError: they cannot be loaded.
        """
        if not self.is_fsdp_enabled:
            with restoring(str(checkpoint)):
                if self.job.distiller.has_quantized_weights:
                    self.job.distiller.load_trained(load_file(checkpoint / WEIGHTS))
                else:
                    load_model(self.job.distiller, str(checkpoint / WEIGHTS))
            return
        parts, processes = len(list(checkpoint.glob("pytorch_model_fsdp_0_rank*"))), self.args.world_size
        if parts != processes:
            raise ConfigError(
                f"{checkpoint} holds the sharded weights of {parts} processes, and {processes} are running (trainer.fsdp): start "
                f"{parts} processes (torchrun --nproc-per-node={parts})"
            )
        with restoring(str(checkpoint)):
            plugin = self.accelerator.state.fsdp_plugin
            load_fsdp_model(plugin, self.accelerator, self.model, str(checkpoint), use_dcp=False)

    def student_weights(self) -> dict[str, torch.Tensor]:
        """Return the student's weights by their names, those that are divided among processes as a whole in the main process. All processes call it
        together."""
        if not self.is_fsdp_enabled:
            return dict(self.job.distiller.student.state_dict())
        weights = self.accelerator.get_state_dict(self.model)
        return {
            name.removeprefix(PREFIX): weight for name, weight in weights.items() if name.startswith(PREFIX)
        }

    def gather_student(self, empty: PreTrainedModel) -> PreTrainedModel:
        """Gather the student in the main process, after training. The optimizer is released before.

        Args:
            empty: the student's `skeleton`; it stays one in the other processes.
        """
        self.optimizer = self.lr_scheduler = None
        self.callback_handler.optimizer = self.callback_handler.lr_scheduler = None
        self.accelerator.free_memory()
        weights = self.accelerator.get_state_dict(self.model)
        if not self.is_world_process_zero():
            return empty
        filled: dict[int, torch.nn.Parameter] = {}
        for prefix, module in empty.named_modules():
            for name, weight in module.named_parameters(recurse=False):
                if id(weight) not in filled:
                    tensor = weights[PREFIX + (f"{prefix}." if prefix else "") + name].to(weight.dtype)
                    filled[id(weight)] = torch.nn.Parameter(tensor, weight.requires_grad)
                module.register_parameter(name, filled[id(weight)])
        torch.nn.Module.to(empty, self.args.device)
        return empty
