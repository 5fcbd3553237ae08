"""A student that DeepSpeed divides among processes (trainer.deepspeed), through the real command."""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.commands import largest_difference, refusal, require_words, runner
from support.tiny import language_model_options, talk
from test_sharded import LOSSES, in_processes

from kdcli.config.trainer import Trainer
from kdcli.errors import ConfigError
from kdcli.training.deepspeed import read_config, tensors_alone

INSTALLED = Path(sys.prefix) / "deepspeed"
"""Where `make test` installs DeepSpeed: apart, so that all other tests run without it."""
needs_deepspeed = pytest.mark.skipif(
    not INSTALLED.is_dir(), reason="DeepSpeed is not installed (make test installs it)"
)
LENGTH = ["trainer.max_steps=20", "trainer.eval_steps=10", "trainer.keep=last"]


@pytest.fixture
def options(talker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Overrides of a language model's run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(INSTALLED)]))
    )
    more = ["teacher.cache=false", "measure=null", "control=false"]
    return [*language_model_options(talker), *talk(tmp_path, "messages"), *more]


def settings(folder: Path, stage: int = 3, **more: Any) -> Path:
    """A file of DeepSpeed as in the documentation of transformers: "auto" wherever it can be."""
    sizes = ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold")
    zero: dict[str, Any] = dict.fromkeys(sizes, "auto")
    warmup = dict.fromkeys(("warmup_min_lr", "warmup_max_lr", "warmup_num_steps"), "auto")
    adam = dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto")
    config: dict[str, Any] = {
        "zero_optimization": zero | {"stage": stage},
        "optimizer": {"type": "AdamW", "params": adam},
        "scheduler": {"type": "WarmupLR", "params": warmup},
        "bf16": {"enabled": "auto"},
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
    }
    path = folder / "deepspeed.json"
    path.write_text(json.dumps(config | more))
    return path


def difference(tmp_path: Path, words: list[str], stage: int) -> float:
    """Train in one process, and in two that DeepSpeed divides the model among, which end after a checkpoint and continue; returns the
    largest difference of a weight."""
    one = runner(tmp_path, lambda *more: words)("one")
    two = tmp_path / "two"
    file = settings(tmp_path, stage)
    in_processes("sharded.py", str(tmp_path), *words, f"trainer.deepspeed={file}", f"hydra.run.dir={two}")
    return largest_difference(one, two)


@needs_deepspeed
@pytest.mark.parametrize(
    "stage", [pytest.param(1, marks=pytest.mark.long), pytest.param(2, marks=pytest.mark.long), 3]
)
def test_a_training_by_deepspeed_is_that_of_one_process(
    stage: int, options: list[str], tmp_path: Path
) -> None:
    """A training that is plain DDP; with ZeRO-3 a chunked head or a projection reads an empty weight; a checkpoint
    has the weights of one process; the saved student is empty."""
    terms = [f"+loss.{name.split('.')[0]}._target_=kdcli.losses.{name}" for name in LOSSES]
    size = ["student=pruned", "student.num_hidden_layers=null", "student.hidden_size=16"]
    words = [*options, *size, *LENGTH, "~loss.soft_label", *terms, "trainer.gradient_checkpointing=true"]
    assert difference(tmp_path, words, stage) < 1e-5


@needs_deepspeed
@pytest.mark.long
@pytest.mark.parametrize("stage", [2, 3])
def test_a_student_of_deepspeed_generates(stage: int, options: list[str], tmp_path: Path) -> None:
    """An on-policy student whose weights are divided while it generates."""
    words = [*options, "rollout=student", "rollout.max_new_tokens=8", "trainer.epochs=null", "trainer.max_epochs=6",
             "trainer.min_steps=20", "trainer.eval_steps=10"]  # fmt: skip
    assert difference(tmp_path, words, stage) < 1e-5


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"zero_optimization": {"stage": 0}}, ["zero_optimization.stage = 0", "trainer.deepspeed"]),
        ({"zero_optimization": 3}, ["zero_optimization.stage = None"]),
        ({"train_batch_size": 64}, ["train_batch_size = 64", "trainer.batch_size", "32"]),
        ({"train_micro_batch_size_per_gpu": 2}, ["train_micro_batch_size_per_gpu = 2", "trainer.micro_batch_size"]),
        ({"gradient_clipping": 0.5}, ["gradient_clipping = 0.5", "trainer.max_grad_norm"]),
        ({"bf16": {"enabled": True}}, ["bf16.enabled = True", "trainer.precision"]),
        ({"bf16": True}, ["bf16 = True", "object"]),
        ({"fp16": {"enabled": True}}, ["fp16.enabled = True", "trainer.precision"]),
        ({"optimizer": {"type": "Lamb", "params": {}}}, ["Lamb", "trainer.optimizer"]),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 1e-5}}}, ["lr = 1e-05", "learning_rate"]),
        ({"optimizer": "AdamW"}, ["optimizer = 'AdamW'", "object"]),
        ({"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 10}}}, ["warmup_num_steps", "trainer.schedule"]),
        ({"tensor_parallel": {"autotp_size": 2}}, ["tensor_parallel"]),
        ({"sequence_parallel_size": 2}, ["sequence_parallel_size"]),
    ],
)  # fmt: skip
def test_a_file_that_contradicts_the_trainer_is_refused(
    more: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    """A run with another batch size, learning rate or precision than its config says."""
    cfg = Trainer(deepspeed=str(settings(tmp_path, **more)), precision="fp32")
    with pytest.raises(ConfigError) as error:
        read_config(cfg, "trainer", 2)
    require_words(error.value.message, str(tmp_path / "deepspeed.json"), *words)


def test_a_file_that_says_the_same_is_followed(tmp_path: Path) -> None:
    """A refusal of numbers that are equal."""
    same = {
        "train_batch_size": 32,
        "train_micro_batch_size_per_gpu": 16,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0,
    }
    cfg = Trainer(deepspeed=str(settings(tmp_path, **same, wall_clock_breakdown=True)), precision="fp32")
    config = read_config(cfg, "trainer", 2)
    assert config.keys().isdisjoint({"optimizer", "scheduler"})
    assert config["wall_clock_breakdown"]
    assert {name: config[name] for name in same} == same


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_offload_without_a_gpu_is_refused(tmp_path: Path) -> None:
    """An offload that saves nothing."""
    for offload in ({"device": "cpu"}, "cpu"):
        zero = {"stage": 2, "offload_optimizer": offload}
        cfg = Trainer(deepspeed=str(settings(tmp_path, zero_optimization=zero)))
        with pytest.raises(ConfigError, match=r"offload_optimizer.*no GPU"):
            read_config(cfg, "trainer", 2)
    zero = {"stage": 2, "offload_optimizer": {"device": "none", "pin_memory": True}}
    read_config(Trainer(deepspeed=str(settings(tmp_path, zero_optimization=zero))), "trainer", 2)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], ["trainer.deepspeed", "torchrun"]),
        (["trainer.fsdp=full_shard"], ["fsdp", "deepspeed"]),
        (["trainer.optimizer=adafactor"], ["adafactor", "deepspeed"]),
    ],
)
def test_what_deepspeed_cannot_divide_is_refused(
    options: list[str], more: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that exits 0 and was never divided."""
    file = settings(tmp_path)
    require_words(refusal(capsys, "distill", [*options, f"trainer.deepspeed={file}", *more]), *words)


@needs_deepspeed
def test_deepspeed_loads_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of a run from elsewhere whose pickle calls a function: DeepSpeed itself loads it with weights_only=False."""
    monkeypatch.syspath_prepend(str(INSTALLED))

    class Call:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "called",)

    torch.save({"state": Call()}, tmp_path / "state.pt")
    with tensors_alone(), pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "state.pt", weights_only=False)
    assert not (tmp_path / "called").exists()
