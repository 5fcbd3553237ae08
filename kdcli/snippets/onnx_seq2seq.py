"""python run_onnx.py "A sentence."   (pip install onnxruntime transformers sentencepiece)"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from transformers import AutoTokenizer

MAX_LENGTH = 128
PREFIX = ""
GIVEN: list[int] = []

folder = Path(__file__).parent
names = ("encoder_model", "decoder_model", "decoder_with_past_model")
encoder, first, later = (onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in names)
tokenizer = AutoTokenizer.from_pretrained(folder)
config = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))

source = np.array([tokenizer(PREFIX + sys.argv[1])["input_ids"]], np.int64)
known = {
    "input_ids": source,
    "attention_mask": np.ones_like(source),
    "encoder_attention_mask": np.ones_like(source),
}
hidden = encoder.run(["last_hidden_state"], {"input_ids": source, "attention_mask": np.ones_like(source)})
known["encoder_hidden_states"] = hidden[0]
written, session, tokens = list[int](), first, [config["decoder_start_token_id"], *GIVEN]
while len(written) < MAX_LENGTH and not set(written[-1:]) & set(np.ravel(config["eos_token_id"]).tolist()):
    known["input_ids"] = np.array([tokens], np.int64)
    found = session.run(None, {entry.name: known[entry.name] for entry in session.get_inputs()})
    for entry, array in zip(session.get_outputs(), found, strict=True):
        known[entry.name.replace("present", "past_key_values")] = array
    tokens = [int(known["logits"][0, -1].argmax())]
    written, session = written + tokens, later
print(tokenizer.decode(written, skip_special_tokens=True))
