"""python run_exported.py One word after the other   (pip install torch tokenizers)"""

import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer

MODEL = "model.pt2"
MAX_LENGTH = 128
SIDE = "right"

folder = Path(__file__).parent
program = torch.export.load(folder / MODEL)
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
tokenizer.no_padding()
tokenizer.enable_truncation(MAX_LENGTH, direction=SIDE)
labels = json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"]

words = sys.argv[1:]
row = tokenizer.encode(words, is_pretokenized=True)
known = {"input_ids": row.ids, "attention_mask": row.attention_mask, "token_type_ids": row.type_ids}
inputs = {name: torch.tensor([known[name]]) for name in program.graph_signature.user_inputs}
logits = program.module()(**inputs)[0]
first = {number: place for place, number in reversed(list(enumerate(row.word_ids)))}
for number, word in enumerate(words):  # its tag is that of its first piece; none beyond MAX_LENGTH
    if number in first:
        print(labels[str(int(logits[first[number]].argmax()))], word)
