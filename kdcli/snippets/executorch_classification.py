"""python run_executorch.py "A text." ["The text that belongs to it."]   (pip install executorch tokenizers)"""

import json
import sys
from pathlib import Path

import torch
from executorch.runtime import Runtime
from tokenizers import Tokenizer

MODEL = "model.pte"

folder = Path(__file__).parent
program = Runtime.get().load_program(folder / MODEL)
forward = program.load_method("forward")
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
labels = json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"]

row = tokenizer.encode(*sys.argv[1:3])
known = [row.ids, row.attention_mask, row.type_ids][: forward.metadata.num_inputs()]
padding = [0] * (2 - len(row.ids))  # it takes no row of a single token
(logits,) = forward.execute([torch.tensor([ids + padding]) for ids in known])
probabilities = logits[0].softmax(-1)
for number in probabilities.argsort(descending=True).tolist():
    print(f"{probabilities[number]:.4f} {labels[str(number)]}")
