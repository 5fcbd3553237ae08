"""New translators."""

from __future__ import annotations

import datasets
import torch
from support.tiny import pairs

from kdcli.students.encoder_decoder import EncoderDecoder, learn_vocabulary


def test_a_deep_translator_is_initialized_able_to_learn() -> None:
    """Branches stronger than what they are added to: after ten epochs a model of Marian's shape still writes nonsense."""
    rows = [{"source": source, "target": target} for source, target in pairs(20)]
    tokenizer = learn_vocabulary(datasets.Dataset.from_list(rows), 300)
    torch.manual_seed(0)
    model = EncoderDecoder(64, 6, 6, 4, 256).over(tokenizer).eval()
    added: dict[str, float] = {}
    for name, module in model.named_modules():
        if name.endswith(("out_proj", "fc2")):
            module.register_forward_hook(lambda _, __, out, name=name: added.update({name: out.std().item()}))
    ids = torch.randint(3, 300, (4, 12))
    with torch.no_grad():
        model(input_ids=ids, decoder_input_ids=ids)
    assert len(added) == 6 * 2 + 6 * 3
    assert max(added.values()) < 0.6, "what they are added to is normalised: 1"
