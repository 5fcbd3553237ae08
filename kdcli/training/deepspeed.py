"""A training whose weights, gradients and optimizer state are divided among processes by DeepSpeed (trainer.deepspeed): ZeRO, Rajbhandari et al. 2020,
https://arxiv.org/abs/1910.02054.

The file of trainer.deepspeed says how DeepSpeed works, and the keys of the trainer what it computes: "auto" in the file is what they say.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from kdcli.config.trainer import Trainer as TrainerConfig
from kdcli.device import has_gpu
from kdcli.errors import ConfigError
from kdcli.files import read_json
from kdcli.memory import trim
from kdcli.models.checkpoint import fast_bf16
from kdcli.training.batches import micro_batches
from kdcli.training.distiller import Distiller
from kdcli.training.resume import restoring
from kdcli.training.sharding import Sharding, T

AUTO = "auto"
STAGES = (1, 2, 3)
OPTIMIZERS = ("adam", "adamw")
MADE = {
    "optimizer": "optimizer, learning_rate and weight_decay",
    "scheduler": "schedule and warmup",
}
"""Sections of the file whose objects kdcli makes itself, and the keys that describe them."""
DIVIDED = {"tensor_parallel": "autotp_size", "sequence_parallel_size": None, "pipeline": "stages"}
"""Kinds of parallelism other than data parallelism, and the entries that hold their sizes."""


def read_config(cfg: TrainerConfig, key: str, processes: int) -> dict[str, Any]:
    """Read the file of `trainer.deepspeed`. What the keys of the trainer say is filled in, and objects that kdcli makes itself are left out.

    Args:
        key: of the trainer, for messages.
        processes: that are running.

    Raises:
        ConfigError: it cannot be read, contradicts a key of the trainer, or cannot be followed here.
    """
    where = f"{key}.deepspeed = {cfg.deepspeed}"
    config = _read(cfg, key)
    zero = config.get("zero_optimization", {})
    stage = zero.get("stage", 0) if isinstance(zero, dict) else None
    if stage not in STAGES:
        raise ConfigError(
            f"{where}: zero_optimization.stage = {stage}: it divides nothing among processes; give 1 (optimizer state), 2 (and gradients) or 3 "
            f"(and weights) in the file, or leave {key}.deepspeed out"
        )
    for name, entry in DIVIDED.items():
        value = config.get(name, 1)
        parts = value.get(entry, 1) if isinstance(value, dict) else value
        if parts not in (0, 1, AUTO):
            raise ConfigError(
                f"{where}: {name}: kdcli divides each batch among all processes; leave it out of the file"
            )
    for name in () if has_gpu() else ("offload_optimizer", "offload_param"):
        part = zero.get(name)
        device = part.get("device") if isinstance(part, dict) else part
        if device not in (None, "none"):
            raise ConfigError(
                f"{where}: zero_optimization.{name}: it keeps in the CPU's memory what a GPU does not need, and there is no GPU; leave it "
                "out of the file"
            )
    for section, keys in MADE.items():
        _require_auto(config.pop(section, {}), section, f"{key}.{keys}", where)
    micro, accumulate = micro_batches(cfg, processes)
    _fill(config, "train_batch_size", cfg.batch_size, f"{key}.batch_size", where)
    _fill(config, "train_micro_batch_size_per_gpu", micro, f"{key}.micro_batch_size", where)
    _fill(config, "gradient_accumulation_steps", accumulate, f"{key}.micro_batch_size", where)
    _fill(config, "gradient_clipping", cfg.max_grad_norm, f"{key}.max_grad_norm", where)
    _fill(config, "bf16.enabled", fast_bf16(cfg.precision), f"{key}.precision", where)
    _fill(config, "fp16.enabled", False, f"{key}.precision", where)
    return config


def _require_auto(section: Any, name: str, keys: str, where: str) -> None:
    """Refuse a section with values of its own, for an object that the trainer's keys describe."""
    params = section.get("params", {}) if isinstance(section, dict) else None
    if not isinstance(params, dict):
        raise ConfigError(f"{where}: {name} = {section!r}: expected an object with type and params")
    own = {entry: value for entry, value in params.items() if value != AUTO}
    if name == "optimizer" and str(section.get("type", "AdamW")).lower() not in OPTIMIZERS:
        own |= {"type": section["type"]}
    if own:
        shown = ", ".join(f"{entry} = {value}" for entry, value in own.items())
        raise ConfigError(
            f'{where}: {name}: {shown}: kdcli makes the {name} from its own keys; leave {name} out of the file or write "auto", and give {keys}'
        )


def _fill(config: dict[str, Any], name: str, value: Any, key: str, where: str) -> None:
    """Set an entry to what a key of the trainer says; refuse an entry that says something else."""
    *outer, entry = name.split(".")
    holder = config.setdefault(outer[0], {}) if outer else config
    if not isinstance(holder, dict):
        raise ConfigError(f"{where}: {outer[0]} = {holder!r}: expected an object with {entry}")
    given = holder.get(entry, AUTO)
    if given not in (AUTO, value):
        raise ConfigError(
            f'{where}: {name} = {given}, and {key} says {value}; write "auto" in the file, and give {key}'
        )
    holder[entry] = value


def require_deepspeed(cfg: TrainerConfig, key: str, processes: int) -> None:
    """Refuse a training that DeepSpeed cannot run here.

    Args:
        key: of the trainer, for messages.
        processes: that are running.

    Raises:
        ConfigError
    """
    if cfg.deepspeed is None:
        return
    if find_spec("deepspeed") is None:
        raise ConfigError(
            f"{key}.deepspeed: DeepSpeed is not installed; pip install 'kdcli[deepspeed]' (it compiles nothing before it is used), or leave "
            f"{key}.deepspeed out"
        )
    if not has_gpu():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed warns where it finds no other by itself
    read_config(cfg, key, processes)


def _read(cfg: TrainerConfig, key: str) -> dict[str, Any]:
    return read_json(
        Path(str(cfg.deepspeed)), dict[str, Any], f"{key}.deepspeed is a JSON file with DeepSpeed's settings"
    )


LIVE = 10**9
"""DeepSpeed's default of stage3_max_live_parameters and of stage3_max_reuse_distance."""


def zero_stage(cfg: TrainerConfig) -> tuple[int, int]:
    """Return ZeRO's stage, and the most parameters that stage 3 holds as a whole at one time: DeepSpeed keeps them for the backward pass."""
    zero = _read(cfg, "trainer")["zero_optimization"]
    limits = (zero.get(f"stage3_max_{name}", LIVE) for name in ("live_parameters", "reuse_distance"))
    return zero["stage"], min(LIVE if limit == AUTO else int(limit) for limit in limits)


def deepspeed_config(cfg: TrainerConfig, processes: int, student: PreTrainedConfig) -> dict[str, Any]:
    """Return DeepSpeed's settings, for a number of processes. The sizes of buckets that are "auto" follow from the width of the student, as in
    transformers."""
    config = read_config(cfg, "trainer", processes)
    zero = config["zero_optimization"]
    width = student.get_text_config().hidden_size
    sizes = {
        "reduce_bucket_size": width * width,
        "stage3_prefetch_bucket_size": int(0.9 * width * width),
        "stage3_param_persistence_threshold": 10 * width,
    }
    for name, size in sizes.items():
        if zero.get(name) == AUTO:
            zero[name] = size
    return config


@contextmanager
def tensors_alone() -> Iterator[None]:
    """Have torch load no other objects than tensors, plain types and DeepSpeed's own settings from a checkpoint, which DeepSpeed loads by pickle."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        with torch.serialization.safe_globals(
            [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]
        ):
            yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


class DeepSpeed(Sharding):
    """ZeRO: the optimizer state (stage 1), the gradients (2) and the weights (3) are divided among the processes."""

    def start(self) -> None:
        """Leave out what DeepSpeed would do to other trainings of the process, and what it would compile."""
        from deepspeed.ops import __compatible_ops__

        unset_hf_deepspeed_config()  # transformers would divide each model that is loaded later
        if not has_gpu():
            __compatible_ops__["deepspeed_shm_comm"] = False  # it serves inference

    @property
    def stage(self) -> int:
        """ZeRO's stage."""
        return int(self.trainer.args.hf_deepspeed_config.config["zero_optimization"]["stage"])

    @property
    def engine(self) -> Any:
        """DeepSpeed's engine, which wraps the model."""
        return self.trainer.model_wrapped

    def prepared(self) -> None:
        """Gather all weights outside of layers for the whole of `Distiller.forward`: the chunked head and losses read whole weights."""
        trim()  # whole weights were freed
        if self.stage != 3:
            return
        from deepspeed.runtime.zero import register_external_parameter

        distiller: Distiller = self.trainer.job.distiller
        inside = {id(weight) for layer in distiller.layers for weight in layer.parameters()}
        for weight in distiller.parameters():
            if id(weight) not in inside:
                register_external_parameter(distiller, weight)

    def with_weights(self, function: Callable[[], T]) -> T:
        if self.stage != 3:
            return function()
        from deepspeed.runtime.zero import GatheredParameters

        offload = self.engine.optimizer.parameter_offload
        with GatheredParameters(list(self.engine.module.parameters())):
            offload._remove_module_hooks()  # they would divide the weights again after each forward pass
            offload.forward_hooks, offload.backward_hooks = [], []
            try:
                return function()
            finally:
                offload.setup_zero_stage3_hooks()

    def save(self, folder: Path) -> None:
        self.engine.save_checkpoint(str(folder))

    def load_weights(self, checkpoint: Path) -> None:
        """Load the weights and the optimizer's state: DeepSpeed has them in the same files."""
        parts = len(list(checkpoint.glob("global_step*/*zero_pp_rank_*_optim_states.pt")))
        self.require_processes(checkpoint, parts, "trainer.deepspeed")
        with restoring(str(checkpoint)), tensors_alone():
            folder, _ = self.engine.load_checkpoint(str(checkpoint), load_lr_scheduler_states=False)
            if folder is None:
                raise ValueError("DeepSpeed finds no checkpoint in it")

    def load_optimizer(self, checkpoint: Path) -> None:
        """Do nothing: `load_weights` did it."""

    def weights(self) -> dict[str, torch.Tensor]:
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_get_full_fp32_param

        gathered: dict[str, torch.Tensor] = {}
        for name, value in self.engine.module.state_dict(keep_vars=True).items():
            weight = safe_get_full_fp32_param(value) if value.requires_grad else None
            if weight is None:
                with GatheredParameters([value]):
                    weight = value.detach().clone()
            if self.trainer.is_world_process_zero():
                gathered[name] = weight.view(getattr(value, "ds_shape", value.shape)).cpu()
        return gathered

    def final_weights(self) -> dict[str, torch.Tensor]:
        self.engine.optimizer.optimizer.state.clear()  # the moments make room for whole weights
        trim()
        weights = self.weights()
        self.engine.destroy()
        return weights
