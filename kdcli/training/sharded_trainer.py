"""The stock Trainer, for a model that each process holds as a whole or in part."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, load_model
from transformers import PreTrainedModel
from transformers import Trainer as HFTrainer
from transformers.trainer import SCHEDULER_NAME

from kdcli.training.deepspeed import DeepSpeed
from kdcli.training.job import TrainJob
from kdcli.training.resume import WEIGHTS, restoring
from kdcli.training.sharding import FSDP, LAUNCHED, Sharding, T

PREFIX = "student."
"""How the names of the student's weights begin in the distiller."""


class ShardedTrainer(HFTrainer):
    """The stock Trainer, whose checkpoints hold one file a process where the weights are divided.

    Attributes:
        sharding: how they are divided; None: each process holds the whole model.
    """

    job: TrainJob
    sharding: Sharding | None

    def create_accelerator_and_postprocess(self) -> None:
        """Create the accelerator, which divides the weights if the config demands it."""
        super().create_accelerator_and_postprocess()
        for (
            name
        ) in LAUNCHED:  # the arguments set it, and the next training of this process may not be sharded
            os.environ.pop(name, None)
        if self.args.deepspeed:
            self.sharding = DeepSpeed(self)
        else:
            self.sharding = FSDP(self) if self.args.fsdp_plugin_args is not None else None
        if self.sharding is not None:
            self.sharding.start()

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> Any:
        if not self.is_deepspeed_enabled:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        assert self.sharding is not None
        # the stock Trainer would load the checkpoint at once, and unpickle it
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        self.sharding.prepared()
        if resume_from_checkpoint is not None:
            self._load_from_checkpoint(resume_from_checkpoint)
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared

    def shard(self) -> None:
        """Divide the student among the processes without training, so that its checkpoint can be loaded."""
        if self.sharding is not None:
            self.sharding.prepare()

    def with_weights(self, function: Callable[[], T]) -> T:
        """Call a function that runs the student outside of a training step, such as for generation. All processes call it together, and the
        numbers of their forward passes may differ."""
        return function() if self.sharding is None else self.sharding.with_weights(function)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the whole model; where it is divided, each process saves its part with the optimizer's state."""
        if self.sharding is None:
            super().save_model(output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save the state of the optimizer, each process its own part."""
        if self.sharding is None:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        self.sharding.save(Path(output_dir))
        if self.args.should_save:
            assert self.lr_scheduler is not None
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with restoring(checkpoint):
            if self.sharding is None or checkpoint is None:
                super()._load_optimizer_and_scheduler(checkpoint)
                return
            self.sharding.load_optimizer(Path(checkpoint))
            assert self.lr_scheduler is not None
            self.lr_scheduler.load_state_dict(
                torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True)
            )

    def load_weights(self, checkpoint: Path) -> None:
        """Load the weights of a checkpoint into the model, which is divided if they are.

        Raises:
            ConfigError: another number of processes wrote it.
            KDError: they cannot be loaded.
        """
        if self.sharding is not None:
            self.sharding.load_weights(checkpoint)
            return
        with restoring(str(checkpoint)):
            if self.job.distiller.has_quantized_weights:
                self.job.distiller.load_trained(load_file(checkpoint / WEIGHTS))
            else:
                load_model(self.job.distiller, str(checkpoint / WEIGHTS))

    def student_weights(self) -> dict[str, torch.Tensor]:
        """Return the student's weights by their names, those that are divided among processes as a whole in the main process. All processes call it
        together."""
        if self.sharding is None:
            return dict(self.job.distiller.student.state_dict())
        weights = self.sharding.weights()
        return {
            name.removeprefix(PREFIX): weight for name, weight in weights.items() if name.startswith(PREFIX)
        }

    def gather_student(self, empty: PreTrainedModel) -> PreTrainedModel:
        """Gather the student in the main process, after training, and release the rest.

        Args:
            empty: the student's `skeleton`; it stays one in the other processes.
        """
        assert self.sharding is not None
        weights = self.sharding.final_weights()
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
