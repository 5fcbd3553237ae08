"""Translates greedily with an encoder-decoder. Its keys and values are passed from step to step."""

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
    """Yield the tokens of a translation, as soon as each is computed. `first` returns the keys and values, and `later` reads them."""
    ids = np.array([source], np.int64)
    values = dict.fromkeys(["attention_mask", "encoder_attention_mask"], np.ones_like(ids))
    (values["encoder_hidden_states"],) = encoder.run(
        ["last_hidden_state"], {"input_ids": ids, "attention_mask": values["attention_mask"]}
    )
    session, tokens = first, [CONFIG["decoder_start_token_id"], *GIVEN]
    for _ in range(MAX_LENGTH):
        values["input_ids"] = np.array([tokens], np.int64)
        outputs = session.run(None, {entry.name: values[entry.name] for entry in session.get_inputs()})
        for entry, array in zip(session.get_outputs(), outputs, strict=True):
            values[entry.name.replace("present", "past_key_values")] = array
        session, tokens = later, [int(values["logits"][0, -1].argmax())]
        yield tokens[0]
        if tokens[0] in ENDS:
            return
