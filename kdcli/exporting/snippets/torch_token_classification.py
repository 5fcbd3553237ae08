"""python run_torch.py "A sentence."   (pip install torch transformers)"""

import sys

import torch
from student import HERE, Example
from transformers import AutoModelForTokenClassification, AutoTokenizer

len(sys.argv) > 1 or sys.exit(f"usage: {__doc__}")

example, device = Example(*sys.argv[1:]), "cuda" if torch.cuda.is_available() else "cpu"
model = AutoModelForTokenClassification.from_pretrained(HERE, dtype="auto").to(device)
names = AutoTokenizer.from_pretrained(HERE).model_input_names
inputs = {name: torch.from_numpy(example.inputs[name]).to(device) for name in names}
for prediction in example.predictions(model(**inputs).logits[0].detach().float().cpu().numpy()):
    print(*prediction)
