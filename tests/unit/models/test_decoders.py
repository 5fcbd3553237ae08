"""Decoder architectures: the outputs that kdcli distils are those of the model itself, or it is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.commands import naming
from support.decoders import KINDS, NOT_BUILT, REFUSED, VOCABULARY, tiny_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from kdcli.errors import ModelError
from kdcli.models.checkpoint import Checkpoint, load_model, require_loadable
from kdcli.tasks.causal_lm.task import CausalLM

CLOSE = 1e-4
"""Nats."""
QUICK = (
    "llama", "qwen3", "gemma2", "gemma3_text", "mistral", "phi3", "gpt2", "gpt_neox", "opt", "bloom", "falcon", "mixtral", "gpt_oss", "deepseek_v3",
    "cohere2", "granite", "olmo2", "llama4_text", "mamba", "xlnet",
)  # fmt: skip
"""Architectures of `make test`: soft caps, scales, sliding windows, experts, no positions, a body elsewhere, a state."""


def compared(kind: str, folder: Path) -> None:
    """Save a tiny model, load it as a teacher is loaded, and compare its outputs at all positions of a padded batch."""
    tiny_model(kind).save_pretrained(folder)
    source, task = Checkpoint(folder, kind), CausalLM()
    if kind in REFUSED:
        with pytest.raises(ModelError, match=naming(*REFUSED[kind])):
            load_model(source, task)
        return
    require_loadable(source, task)
    loaded, new = load_model(source, task)
    assert not new
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.randint(3, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    ids[1, 7:] = 0
    rows, columns = mask.nonzero(as_tuple=True)
    with torch.no_grad():
        expected = own_logits(model, ids, mask)[rows, columns]
        outputs = task.signal(loaded, {"input_ids": ids, "attention_mask": mask}, (rows, columns))
        logits = outputs.rows(slice(None)).logits
    difference = (logits.log_softmax(-1) - expected.log_softmax(-1)).abs().max()
    assert difference <= CLOSE, f"{float(difference)} nats"


def own_logits(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()


@pytest.mark.parametrize("kind", QUICK)
def test_outputs_are_those_of_the_model(kind: str, tmp_path: Path) -> None:
    """A scale, a cap, a window or a bias that is left out, or a model that sees the token that it predicts: the student learns that."""
    compared(kind, tmp_path)


@pytest.mark.architectures
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in NOT_BUILT])
def test_outputs_of_every_architecture(kind: str, tmp_path: Path) -> None:
    """As above, for all that transformers can make tiny."""
    compared(kind, tmp_path)
