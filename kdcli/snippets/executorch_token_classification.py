"""python run_executorch.py One word after the other   (pip install executorch tokenizers)"""

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

words = sys.argv[1:]
row = tokenizer.encode(" ".join(words))
known = [row.ids, row.attention_mask, row.type_ids][: forward.metadata.num_inputs()]
padding = [0] * (2 - len(row.ids))  # it takes no row of a single token
(logits,) = forward.execute([torch.tensor([ids + padding]) for ids in known])
start = 0
for word in words:  # its tag is that of its first piece; one that was cut off has none
    pieces = {row.char_to_token(place) for place in range(start, start + len(word))} - {None}
    if pieces:
        print(labels[str(int(logits[0, min(pieces)].argmax()))], word)
    start += len(word) + 1
