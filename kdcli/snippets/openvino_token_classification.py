"""python run_openvino.py One word after the other   (pip install openvino tokenizers)"""

import json
import sys
from pathlib import Path

import numpy as np
import openvino
from tokenizers import Tokenizer

MODEL = "model.fp16.xml"

folder = Path(__file__).parent
core = openvino.Core()
graph = core.read_model(folder / MODEL)
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
labels = json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"]

words = sys.argv[1:]
row = tokenizer.encode(" ".join(words))
known = {"input_ids": row.ids, "attention_mask": row.attention_mask, "token_type_ids": row.type_ids}
inputs = {entry.any_name: np.array([known[entry.any_name]], np.int64) for entry in graph.inputs}
# one shape is twice as fast as any: an application compiles some when it begins (16, 24, 32, 48 … tokens), and pads to them
graph.reshape({name: array.shape for name, array in inputs.items()})
logits = core.compile_model(graph, "CPU")(inputs)["logits"][0]
start = 0
for word in words:  # its tag is that of its first piece; one that was cut off has none
    pieces = {row.char_to_token(place) for place in range(start, start + len(word))} - {None}
    if pieces:
        print(labels[str(logits[min(pieces)].argmax())], word)
    start += len(word) + 1
