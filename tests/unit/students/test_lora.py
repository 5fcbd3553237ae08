"""Adapters: only they are trained, and what is saved is a plain model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.commands import some
from support.tiny import decoder, language_model_options, speaker, speller, talk
from torch.nn.parallel import DistributedDataParallel

from kdcli.errors import ConfigError
from kdcli.launch.run import launch
from kdcli.losses.hard_label import HardLabel
from kdcli.models.checkpoint import Checkpoint, load_model
from kdcli.students.composed import Composed
from kdcli.students.lora import Lora
from kdcli.tasks.causal_lm.task import CausalLM
from kdcli.training.distiller import Distiller


def test_merged_adapters_are_the_model_that_was_trained() -> None:
    """Adapters that are dropped, or merged twice, and keys that a plain model does not have."""
    model = decoder(speller())
    keys = model.state_dict().keys()
    ids = torch.arange(12).reshape(2, 6)
    before = model(ids).logits
    initializer = Lora(r=4)
    initializer.prepare_for_training(model)
    assert torch.equal(model(ids).logits, before)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert len(trained) == 2 * 7 * 2
    assert all("lora_" in name for name in trained)
    for name, weight in model.named_parameters():
        if name in trained:
            torch.nn.init.normal_(weight, std=0.1)
    dressed = model(ids).logits
    assert not torch.allclose(dressed, before, atol=1e-2)
    initializer.merge_and_unload(model)
    assert model.state_dict().keys() == keys
    assert torch.allclose(model(ids).logits, dressed, atol=1e-4)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_adapters_of_a_quantized_base_are_merged_into_what_was_trained(kind: Any, tmp_path: Path) -> None:
    """A student that is merged into other weights than those that its adapters were trained on, or that is saved as quantized, is not the one that was
    validated."""
    tokenizer = speller()
    plain = decoder(tokenizer)
    plain.save_pretrained(tmp_path)
    ids, initializer = (
        torch.arange(12).reshape(2, 6),
        Lora(r=4, target_modules=["q_proj", "up_proj"], quantization_base=kind),
    )
    source = Checkpoint(tmp_path, "student", quantization=initializer.quantization_base)
    model, _ = load_model(source, CausalLM())
    rounded = model(ids).logits
    assert not torch.allclose(rounded, plain(ids).logits, atol=1e-5)
    initializer.prepare_for_training(model)
    model(ids).logits.square().sum().backward()
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert len(trained) == 2 * 2 * 2
    assert all("lora_" in name for name in trained)
    for name, weight in model.named_parameters():
        if name in trained:
            assert weight.grad is not None
            torch.nn.init.normal_(weight, std=0.1)
    adapted = model(ids).logits
    assert not torch.allclose(adapted, rounded, atol=1e-2)
    initializer.merge_and_unload(model)
    model.save_pretrained(tmp_path / "merged")
    merged, _ = load_model(Checkpoint(tmp_path / "merged", "student"), CausalLM())
    assert merged.state_dict().keys() == plain.state_dict().keys()
    assert not hasattr(merged.config, "quantization_config")
    assert torch.allclose(merged(ids).logits, adapted, atol=1e-5)


def test_processes_do_not_send_each_other_packed_weights(tmp_path: Path) -> None:
    """Under torchrun the run ends with an error of torch, which cannot send the integers of torchao."""
    decoder(speller()).save_pretrained(tmp_path)
    initializer = Lora(r=4, quantization_base="int8")
    model, _ = load_model(Checkpoint(tmp_path, "student", quantization="int8"), CausalLM())
    initializer.prepare_for_training(model)
    distiller = Distiller(model, CausalLM(), {"hard_label": HardLabel()}, {"hard_label": 1.0})
    ids = torch.arange(12).reshape(2, 6)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        DistributedDataParallel(distiller)(labels=ids, input_ids=ids)["loss"].backward()
    finally:
        torch.distributed.destroy_process_group()
    trained = distiller.trained_weights
    assert len(trained) == 2 * 7 * 2
    assert all(
        (weight.grad is not None) == (name in trained) for name, weight in distiller.named_parameters()
    )


def test_layers_without_a_match_are_named() -> None:
    """A typing error in target_modules trains nothing, for hours."""
    with pytest.raises(ConfigError, match="query_proj"):
        Lora(target_modules=["query_proj"]).prepare_for_training(decoder(speller()))


def test_adapters_as_the_first_of_several_steps() -> None:
    """student.initializers=[lora,layers] trains all weights, and nobody says so."""
    steps = {
        "lora": {"_target_": "kdcli.students.lora.Lora", "r": 4},
        "layers": {"_target_": "kdcli.students.pruning.layers.Layers", "num_hidden_layers": 1},
    }
    initializer, model = Composed(["lora", "layers"], steps), decoder(speller())
    keys = model.state_dict().keys()
    assert initializer.trains_adapters
    initializer.prepare_for_training(model)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    initializer.merge_and_unload(model)
    assert model.state_dict().keys() == keys


@pytest.mark.parametrize("task", some(["causal_lm", "classification"], "causal_lm"))
def test_a_run_with_adapters(
    task: str, tmp_path: Path, small: list[str], teacher: Path, body: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body that is trained after all, a student that only peft can read, or a new head that stays random."""
    monkeypatch.chdir(tmp_path)
    if task == "causal_lm":
        tokenizer, base = speller(), tmp_path / "base"
        decoder(tokenizer, seed=3).save_pretrained(base)
        tokenizer.save_pretrained(base)
        options = [*language_model_options(speaker(tmp_path / "speaker")), *talk(tmp_path, "pairs")]
        options = [option for option in options if not option.startswith("student")]
    else:
        base = body
        options = [option for option in small if not option.startswith("student")]
    lora = [
        "student=lora",
        f"student.path={base}",
        "student.r=4",
        "trainer.learning_rate=0.01",
        "student.allow_same_size=true",
    ]
    assert launch("distill", [*options, *lora, "measure=null", "hydra.run.dir=run"]) == 0
    one, other = load_file(base / "model.safetensors"), load_file("run/student/model.safetensors")
    assert not (Path("run/student/adapter_config.json")).exists()
    for name, weight in other.items():
        assert "lora" not in name
        old = one.get(name, one.get(name.partition(".")[2]))
        if old is not None and weight.dim() == 1:  # no adapter there
            assert torch.equal(weight, old), name
    changed = [
        name for name, weight in other.items()
        if (old := one.get(name, one.get(name.partition(".")[2]))) is not None and not torch.equal(weight, old)
    ]  # fmt: skip
    assert changed
    assert not any("embed" in name for name in changed)
