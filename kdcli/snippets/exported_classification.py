"""python run_exported.py "A text." ["The text that belongs to it."]   (pip install torch tokenizers)"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

MODEL = "model.pt2"

folder = Path(__file__).parent
program = torch.export.load(folder / MODEL)
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
labels = json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"]

row = tokenizer.encode(*sys.argv[1:3])
known = {"input_ids": row.ids, "attention_mask": row.attention_mask, "token_type_ids": row.type_ids}
inputs = {name: torch.tensor([known[name]]) for name in program.graph_signature.user_inputs}
logits = program.module()(**inputs)[0].detach().numpy()
probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
for number in np.argsort(-probabilities):
    print(f"{probabilities[number]:.4f} {labels[str(number)]}")
