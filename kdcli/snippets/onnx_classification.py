"""python run_onnx.py "A text." ["The text that belongs to it."]   (pip install onnxruntime tokenizers)"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

MODEL = "model.onnx"

folder = Path(__file__).parent
session = onnxruntime.InferenceSession(folder / MODEL)
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
labels = json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"]

row = tokenizer.encode(*sys.argv[1:3])
known = {"input_ids": row.ids, "attention_mask": row.attention_mask, "token_type_ids": row.type_ids}
inputs = {entry.name: np.array([known[entry.name]], np.int64) for entry in session.get_inputs()}
logits = session.run(["logits"], inputs)[0][0]
probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
for number in np.argsort(-probabilities):
    print(f"{probabilities[number]:.4f} {labels[str(number)]}")
