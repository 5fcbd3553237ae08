"""python run_onnx.py One word after the other   (pip install onnxruntime tokenizers)"""

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

words = sys.argv[1:]
row = tokenizer.encode(" ".join(words))
known = {"input_ids": row.ids, "attention_mask": row.attention_mask, "token_type_ids": row.type_ids}
inputs = {entry.name: np.array([known[entry.name]], np.int64) for entry in session.get_inputs()}
logits = session.run(["logits"], inputs)[0][0]
start = 0
for word in words:  # its tag is that of its first piece; one that was cut off has none
    pieces = {row.char_to_token(place) for place in range(start, start + len(word))} - {None}
    if pieces:
        print(labels[str(logits[min(pieces)].argmax())], word)
    start += len(word) + 1
