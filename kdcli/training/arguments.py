"""The arguments of the stock Trainer, and whether the packages that they name are installed."""

from __future__ import annotations

import torch
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from kdcli.config.trainer import Trainer as TrainerConfig
from kdcli.device import has_gpu
from kdcli.errors import ConfigError
from kdcli.models.checkpoint import fast_bf16
from kdcli.training.batches import micro_batches
from kdcli.training.deepspeed import deepspeed_config
from kdcli.training.job import TrainJob


def require_trackers(cfg: TrainerConfig) -> None:
    """Refuse trackers that transformers does not know, or whose packages are missing.

    Raises:
        ConfigError
    """
    try:
        for tracker in get_reporting_integration_callbacks(cfg.report_to):
            tracker()
    except (ValueError, RuntimeError, ImportError) as error:
        raise ConfigError(f"trainer.report_to = {cfg.report_to}: {error}") from None


def require_optimizer(cfg: TrainerConfig) -> None:
    """Refuse an optimizer whose package is missing.

    Raises:
        ConfigError
    """
    try:
        arguments = TrainingArguments(optim=cfg.optimizer, use_cpu=not has_gpu(), report_to="none")
        Trainer.get_optimizer_cls_and_kwargs(arguments)
    except (ValueError, RuntimeError, ImportError) as error:
        raise ConfigError(
            f"trainer.optimizer = {cfg.optimizer}: {error}. Install the package, or leave the key out"
        ) from None


def require_compiler(cfg: TrainerConfig, key: str) -> None:
    """Refuse a backend of torch.compile that this machine cannot run.

    Args:
        key: of the trainer, for the message.

    Raises:
        ConfigError
    """
    if has_gpu() or cfg.compile not in ("inductor", "cudagraphs"):
        return
    if cfg.compile == "cudagraphs":
        raise ConfigError(
            f"{key}.compile = cudagraphs: it needs a GPU; give {key}.compile=inductor, or leave the key out"
        )
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise ConfigError(
            f"{key}.compile = inductor: it needs a C++ compiler, and there is none; install one (g++), or leave the key out"
        ) from None


def require_attention(model: PreTrainedModel, name: str) -> None:
    """Refuse an attention that this machine or a student's architecture does not have.

    Args:
        model: of the student's architecture, on any device.

    Raises:
        ConfigError
    """
    what = f"student.attn_implementation = {name}"
    if name not in ("eager", "sdpa") and not has_gpu():
        raise ConfigError(f"{what}: it trains on a GPU only; give sdpa or eager, or leave the key out")
    try:
        model._check_and_adjust_attn_implementation(name)
    except (ValueError, ImportError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"{what}: {first}; give another one, or leave the key out") from None


def require_gradient_checkpointing(model: type[PreTrainedModel], key: str) -> None:
    """Refuse a class of models that cannot compute their activations again.

    Args:
        key: of the trainer, for the message.

    Raises:
        ConfigError
    """
    if not model.supports_gradient_checkpointing:
        raise ConfigError(
            f"{key}.gradient_checkpointing = true: {model.__name__} cannot compute its activations again; leave the key out"
        )


def trainer_arguments(job: TrainJob, world: int) -> TrainingArguments:
    """Return the arguments of the stock Trainer, for a number of processes."""
    cfg, cuda = job.cfg, has_gpu()
    micro, accumulate = micro_batches(cfg, world)
    arguments = TrainingArguments(
        output_dir=str(job.folder),
        max_steps=job.length.bound,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulate,
        learning_rate=job.learning_rate,
        optim=cfg.optimizer,
        lr_scheduler_type="constant_with_warmup" if cfg.schedule == "constant" else cfg.schedule,
        warmup_steps=job.length.warmup,
        weight_decay=cfg.weight_decay,
        max_grad_norm=cfg.max_grad_norm,
        bf16=fast_bf16(cfg.precision),
        use_cpu=not cuda,
        ddp_backend=None if cuda or world == 1 else "gloo",
        seed=job.seed,
        eval_strategy="steps",
        eval_steps=job.eval_steps,
        save_strategy="steps",
        save_steps=job.eval_steps,
        metric_for_best_model="best",
        greater_is_better=True,
        logging_steps=cfg.logging_steps,
        logging_nan_inf_filter=False,
        report_to=cfg.report_to or "none",
        run_name=f"kdcli-{job.name}",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=cuda,
        # losses of features alone leave the head without a gradient
        fsdp=cfg.fsdp is not None,  # type: ignore[arg-type]
        fsdp_config={"cpu_offload": cfg.fsdp == "offload", "state_dict_type": "SHARDED_STATE_DICT"},
        deepspeed=None
        if cfg.deepspeed is None
        else deepspeed_config(cfg, world, job.distiller.student.config),
        ddp_find_unused_parameters=all(loss.features for loss in job.distiller.losses.values()),
    )
    if arguments.fsdp_plugin_args is not None:
        arguments.fsdp_plugin_args["mixed_precision_policy"] = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if arguments.bf16 else None,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
        )
    # several GPUs are used by several processes, never by DataParallel
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments
