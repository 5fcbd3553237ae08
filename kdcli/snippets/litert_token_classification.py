"""python run_litert.py One word after the other   (pip install ai-edge-litert tokenizers)"""

import json
import sys
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from tokenizers import Tokenizer

MODEL = "model.int8.tflite"

folder = Path(__file__).parent
interpreter = Interpreter(str(folder / MODEL), num_threads=1)
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
labels = json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"]

words = sys.argv[1:]
row = tokenizer.encode(" ".join(words))
known = {"input_ids": row.ids, "attention_mask": row.attention_mask, "token_type_ids": row.type_ids}
sizes = sorted(int(name.removeprefix("tokens_")) for name in interpreter.get_signature_list())
size = next(size for size in sizes if size >= len(row.ids))  # the shortest signature that fits
run = interpreter.get_signature_runner(f"tokens_{size}")
padding = [0] * (size - len(row.ids))
inputs = {name: np.array([known[name] + padding], np.int32) for name in run.get_input_details()}
logits = run(**inputs)["logits"][0]
start = 0
for word in words:  # its tag is that of its first piece; one that was cut off has none
    pieces = {row.char_to_token(place) for place in range(start, start + len(word))} - {None}
    if pieces:
        print(labels[str(logits[min(pieces)].argmax())], word)
    start += len(word) + 1
