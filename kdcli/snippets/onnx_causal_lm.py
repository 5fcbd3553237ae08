"""python run_onnx.py "A prompt."   (pip install onnxruntime transformers jinja2)"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from transformers import AutoTokenizer

MODEL = "model.onnx"
CHAT = False

folder = Path(__file__).parent
onnxruntime.set_default_logger_severity(3)  # errors: each optional input is warned of
session = onnxruntime.InferenceSession(folder / MODEL)
tokenizer = AutoTokenizer.from_pretrained(folder)
text = sys.argv[1]
if CHAT:
    turns = [{"role": "user", "content": text}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

ids = np.array([tokenizer(text, add_special_tokens=not CHAT)["input_ids"]], np.int64)
shapes = {entry.name: entry.shape for entry in session.get_inputs() if entry.name.startswith("past")}
past = {name: np.zeros((1, heads, 0, size), np.float32) for name, (_, heads, _, size) in shapes.items()}
outputs = ["logits", *(name.replace("past_key_values", "present") for name in past)]
config = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
ends = set(np.ravel(config.get("eos_token_id", [])).tolist())
written, length = list[int](), 0
while len(written) < 64 and not ends & set(written[-1:]):
    places = np.arange(length, length := length + ids.shape[1])[None]
    inputs = {"input_ids": ids, "attention_mask": np.ones((1, length), np.int64), "position_ids": places}
    logits, *parts = session.run(outputs, inputs | {"num_logits_to_keep": np.array(1)} | past)
    ids, past = logits.argmax(-1), dict(zip(past, parts, strict=True))
    written.append(int(ids[0, -1]))
print(tokenizer.decode(written, skip_special_tokens=True))
