"""python run_openvino.py One word after the other   (pip install openvino tokenizers)"""

import json
import sys
from pathlib import Path

import numpy as np
import openvino
from tokenizers import Tokenizer

MODEL = "model.fp16.xml"
MAX_LENGTH = 128
SIDE = "right"

folder = Path(__file__).parent
core = openvino.Core()
graph = core.read_model(folder / MODEL)
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
tokenizer.no_padding()
tokenizer.enable_truncation(MAX_LENGTH, direction=SIDE)
labels = json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"]

words = sys.argv[1:]
row = tokenizer.encode(words, is_pretokenized=True)
known = {"input_ids": row.ids, "attention_mask": row.attention_mask, "token_type_ids": row.type_ids}
# a model of one shape is twice as fast: compile one for each size when you begin, and one of any shape for longer texts
sizes = (16, 24, 32, 48, 64, 96, 128)
size = min(next((size for size in sizes if size >= len(row.ids)), len(row.ids)), MAX_LENGTH)
padding = [0] * (size - len(row.ids))
inputs = {entry.any_name: np.array([known[entry.any_name] + padding], np.int64) for entry in graph.inputs}
graph.reshape({name: array.shape for name, array in inputs.items()})
logits = core.compile_model(graph, "CPU")(inputs)["logits"][0]
first = {number: place for place, number in reversed(list(enumerate(row.word_ids)))}
for number, word in enumerate(words):  # its tag is that of its first piece; none beyond MAX_LENGTH
    if number in first:
        print(labels[str(logits[first[number]].argmax())], word)
