"""python run_exported.py One word after the other   (pip install torch tokenizers)"""

import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer

MODEL = "model.pt2"

folder = Path(__file__).parent
program = torch.export.load(folder / MODEL)
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
labels = json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"]

row = tokenizer.encode(sys.argv[1:], is_pretokenized=True)
known = {"input_ids": row.ids, "attention_mask": row.attention_mask, "token_type_ids": row.type_ids}
inputs = {name: torch.tensor([known[name]]) for name in program.graph_signature.user_inputs}
logits = program.module()(**inputs)[0]
for number in sorted(set(row.word_ids) - {None}):  # a word's tag is that of its first piece
    print(labels[str(int(logits[row.word_ids.index(number)].argmax()))], sys.argv[1:][number])
