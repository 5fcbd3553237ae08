"""What a translator writes, token by token, each the likeliest: its keys and values are handed on from step to step."""

import json
from collections.abc import Iterator

import numpy as np
from onnxruntime import InferenceSession
from student import GIVEN, HERE, MAX_LENGTH

CONFIG = json.loads((HERE / "generation_config.json").read_text(encoding="utf-8"))
ENDS = set(np.ravel(CONFIG["eos_token_id"]).tolist())


def translate(
    encoder: InferenceSession, first: InferenceSession, later: InferenceSession, source: list[int]
) -> Iterator[int]:
    """The tokens of the source's translation, as they are found. `first` makes the keys and values, `later` takes them."""
    ids = np.array([source], np.int64)
    known = dict.fromkeys(["attention_mask", "encoder_attention_mask"], np.ones_like(ids))
    (known["encoder_hidden_states"],) = encoder.run(
        ["last_hidden_state"], {"input_ids": ids, "attention_mask": known["attention_mask"]}
    )
    session, tokens = first, [CONFIG["decoder_start_token_id"], *GIVEN]
    for _ in range(MAX_LENGTH):
        known["input_ids"] = np.array([tokens], np.int64)
        found = session.run(None, {entry.name: known[entry.name] for entry in session.get_inputs()})
        for entry, array in zip(session.get_outputs(), found, strict=True):
            known[entry.name.replace("present", "past_key_values")] = array
        session, tokens = later, [int(known["logits"][0, -1].argmax())]
        yield tokens[0]
        if tokens[0] in ENDS:
            return
