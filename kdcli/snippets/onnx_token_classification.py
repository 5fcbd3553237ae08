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

row = tokenizer.encode(sys.argv[1:], is_pretokenized=True)
known = {"input_ids": row.ids, "attention_mask": row.attention_mask, "token_type_ids": row.type_ids}
inputs = {entry.name: np.array([known[entry.name]], np.int64) for entry in session.get_inputs()}
logits = session.run(["logits"], inputs)[0][0]
for number in sorted(set(row.word_ids) - {None}):  # a word's tag is that of its first piece
    print(labels[str(logits[row.word_ids.index(number)].argmax())], sys.argv[1:][number])
