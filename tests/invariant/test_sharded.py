"""A student whose weights are divided among processes (trainer.fsdp), through the real command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from support import sharded
from support.commands import largest_difference, read, refusal, require_words, runner
from support.tiny import decoder, language_model_options, speller, talk
from test_causal_training import free_port
from transformers import LlamaConfig, OpenAIGPTConfig, OpenAIGPTLMHeadModel

from kdcli.errors import ConfigError
from kdcli.training.sharding import require_processes, require_unquantized, skeleton

LOSSES = [
    "forward_kl.ForwardKL", "reverse_kl.ReverseKL", "jsd.JSD", "skew_kl.SkewKL", "skew_reverse_kl.SkewReverseKL", "tvd.TVD", "uld.ULD",
    "hidden_states.HiddenStates", "attention.Attention", "relations.Relations", "embeddings.Embeddings",
]  # fmt: skip
"""All losses but the hard label, which `loss=forward_kl` has too."""


@pytest.fixture
def options(talker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Overrides of a language model's run."""
    monkeypatch.chdir(tmp_path)
    return [*language_model_options(talker), *talk(tmp_path, "messages"), "measure=null", "control=false"]


def in_processes(script: str, *words: str, codes: Sequence[int] = (0, 0)) -> list[str]:
    """Run a script of tests/support in two processes, as torchrun starts them; returns what each prints.

    Args:
        codes: their exit codes.
    """
    support = Path(sharded.__file__).parent
    both = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    both["PYTHONPATH"] = os.pathsep.join([str(support.parent), os.environ.get("PYTHONPATH", "")])
    processes = [
        subprocess.Popen(
            [sys.executable, str(support / script), *words],
            env=both | {"RANK": rank, "LOCAL_RANK": rank},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in ("0", "1")
    ]
    printed = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == list(codes), "\n".join(printed)
    return printed


def test_a_sharded_training_is_that_of_one_process(options: list[str], tmp_path: Path) -> None:
    """Accelerate leaves FSDP out on a CPU without a message; a chunked head, a tied weight or a projection of which a process holds a part has the
    gradients of that part; checkpoints that hold one process's part; a saved student that is a shard."""
    terms = [f"+loss.{name.split('.')[0]}._target_=kdcli.losses.{name}" for name in LOSSES]
    size = ["student=pruned", "student.num_hidden_layers=null", "student.hidden_size=16"]
    length = ["trainer.max_steps=20", "trainer.eval_steps=10", "trainer.keep=last"]
    words = [*options, *size, *length, "~loss.soft_label", *terms, "teacher.cache=false", "trainer.gradient_checkpointing=true"]  # fmt: skip
    folders = [tmp_path / name for name in ("gradients of one", "gradients of two")]
    for folder in folders:
        folder.mkdir()
    with sharded.recorded(folders[0]):
        one = runner(tmp_path, lambda *more: words)("one")
    two = tmp_path / "two"
    in_processes("sharded.py", str(folders[1]), *words, "trainer.fsdp=full_shard", f"hydra.run.dir={two}")
    alone, both = (torch.load(folder / sharded.GRADIENTS) for folder in folders)
    assert alone.keys() == both.keys()
    assert any(name.startswith("losses.hidden_states.projections") for name in alone)
    for name, gradient in alone.items():
        assert torch.dist(gradient, both[name]) <= 1e-6 * gradient.norm() + 1e-9, name
    assert largest_difference(one, two) < 1e-5


def test_an_empty_copy_keeps_ties_and_buffers() -> None:
    """A saved student with two copies of the embeddings; or rotary frequencies that are lost on the meta device."""
    model = decoder(speller())
    empty = skeleton(model)
    assert all(weight.is_meta for weight in empty.parameters())
    assert empty.lm_head.weight is empty.model.embed_tokens.weight
    assert not any(weight.is_meta for weight in model.parameters())
    assert all(one is other for one, other in zip(model.buffers(), empty.buffers(), strict=True))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["trainer.fsdp=full_shard"], ["trainer.fsdp", "torchrun"]),
        (["teacher.trainer.fsdp=full_shard"], ["teacher.trainer.fsdp", "torchrun"]),
        (["trainer.fsdp=full_shard", "trainer.optimizer=adafactor"], ["optimizer", "adafactor", "fsdp"]),
    ],
)
def test_what_cannot_be_sharded_is_refused(
    options: list[str], more: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that exits 0 and was never sharded; or one that fails in its first step, after the teacher was tuned."""
    require_words(refusal(capsys, "distill", [*options, *more]), *words)


@pytest.mark.long
def test_torchrun_keeps_the_exit_code(tmp_path: Path) -> None:
    """torchrun exits with 1, so a script cannot distinguish a wrong key from a failure that another start may not have."""
    file = tmp_path / "exit.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}",
               "-m", "kdcli", "distill", "seeed=1"]  # fmt: skip
    environment = os.environ | {"TORCHELASTIC_ERROR_FILE": str(file)}
    done = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=300, check=False)
    assert done.returncode == 1, done.stderr
    failure = read(file)["message"]
    assert failure["errorCode"] == 2
    require_words(failure["message"], "seeed", "seed")


def test_what_the_processes_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An offload that saves nothing where there is no GPU; FSDP1 by the config of accelerate launch, of which kdcli does not know."""
    from kdcli.config.trainer import Trainer

    require_processes(Trainer(fsdp="full_shard"), "trainer", 2)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"trainer\.fsdp=full_shard"):
            require_processes(Trainer(fsdp="offload"), "trainer", 2)
    with pytest.raises(ConfigError, match=r"trainer\.fsdp.*student\.path"):
        require_unquantized(
            LlamaConfig(quantization_config={"quant_method": "gptq", "bits": 4}), "trainer.fsdp"
        )
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match=r"ACCELERATE_USE_FSDP.*trainer\.fsdp"):
        require_processes(Trainer(), "trainer", 2)


def test_an_architecture_that_keeps_its_activations_is_refused(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A refusal after the teacher was tuned and its outputs were stored."""
    tokenizer = speller()
    config = OpenAIGPTConfig(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=128)
    OpenAIGPTLMHeadModel(config).save_pretrained(tmp_path / "gpt")
    tokenizer.save_pretrained(tmp_path / "gpt")
    own = ["student=local", f"student.path={tmp_path / 'gpt'}", "trainer.gradient_checkpointing=true"]
    words = [word for word in options if not word.startswith("student")]
    message = refusal(capsys, "distill", [*words, *own])
    require_words(message, "trainer.gradient_checkpointing", "OpenAIGPTLMHeadModel")
