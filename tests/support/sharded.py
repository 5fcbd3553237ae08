"""`kdcli distill` with the gradients of its first step recorded; as a script, one of several processes, which is interrupted after its
first checkpoint, and continues.

python sharded.py FOLDER OVERRIDE…
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers.trainer_callback import CallbackHandler

from kdcli.errors import KDError
from kdcli.launch.run import launch
from kdcli.training.trainer import _Trainer

GRADIENTS = "gradients.pt"


@contextmanager
def recorded(folder: Path) -> Iterator[None]:
    """Save the gradients of the first step, by the names of the weights, and how many bytes of the weights this process holds."""
    original = CallbackHandler.on_pre_optimizer_step

    def save(self: Any, args: Any, state: Any, control: Any) -> Any:
        if args.deepspeed:
            _require_divided(self.model, self.optimizer.optimizer, args)
            return original(self, args, state, control)
        weights = {name: weight for name, weight in self.model.named_parameters() if weight.grad is not None}
        if state.global_step == 0:
            full = {name: _gathered(weight.grad) for name, weight in weights.items()}
            if args.process_index == 0:
                torch.save(full, folder / GRADIENTS)
        if args.fsdp:
            assert all(isinstance(weight, DTensor) for weight in self.model.parameters())
            own = sum(weight.to_local().numel() for weight in weights.values())
            assert own < 0.6 * sum(weight.numel() for weight in weights.values())
        return original(self, args, state, control)

    CallbackHandler.on_pre_optimizer_step = save  # type: ignore[method-assign]
    try:
        yield
    finally:
        CallbackHandler.on_pre_optimizer_step = original  # type: ignore[method-assign]


def _require_divided(model: torch.nn.Module, optimizer: Any, args: Any) -> None:
    """ZeRO gives each process half of the optimizer's state, and in stage 3 of the weights."""
    stage = args.hf_deepspeed_config.config["zero_optimization"]["stage"]
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    whole = sum(getattr(weight, "ds_numel", weight.numel()) for weight in weights)
    if stage == 3:
        assert all(weight.numel() == 0 or weight.ds_persist for weight in weights)
        assert sum(weight.ds_tensor.numel() for weight in weights) < 0.6 * whole
        masters = optimizer.fp32_partitioned_groups_flat
    else:
        masters = optimizer.single_partition_of_fp32_groups
        assert optimizer.partition_gradients == (stage == 2)
    assert 0 < sum(master.numel() for master in masters) < 0.6 * whole


def _gathered(gradient: torch.Tensor) -> torch.Tensor:
    complete = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
    return complete.clone()


def _interrupted(overrides: list[str]) -> None:
    """A run that ends after its first checkpoint."""
    original = _Trainer._save_checkpoint

    def save(self: _Trainer, *arguments: Any) -> None:
        original(self, *arguments)
        raise KDError("interrupted")

    _Trainer._save_checkpoint = save  # type: ignore[method-assign]
    assert launch("distill", overrides) == 1
    _Trainer._save_checkpoint = original  # type: ignore[method-assign]


if __name__ == "__main__":
    with recorded(Path(sys.argv[1])):
        _interrupted(sys.argv[2:])
    sys.exit(launch("distill", sys.argv[2:]))
