"""python run_torch.py One word after the other   (pip install torch transformers)"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

MAX_LENGTH = 128

folder, device = Path(__file__).parent, "cuda" if torch.cuda.is_available() else "cpu"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForTokenClassification.from_pretrained(folder, dtype="auto").to(device)

words = sys.argv[1:]
row = tokenizer(" ".join(words), truncation=True, max_length=MAX_LENGTH, return_tensors="pt").to(device)
with torch.inference_mode():
    tags = model(**row).logits[0].argmax(-1).tolist()
start = 0
for word in words:  # its tag is that of its first piece; one that was cut off has none
    pieces = {row.char_to_token(place) for place in range(start, start + len(word))} - {None}
    if pieces:
        print(model.config.id2label[tags[min(pieces)]], word)
    start += len(word) + 1
