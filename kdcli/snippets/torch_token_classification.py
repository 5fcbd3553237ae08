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
row = tokenizer(words, is_split_into_words=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
with torch.inference_mode():
    tags = model(**row.to(device)).logits[0].argmax(-1).tolist()
first = {number: place for place, number in reversed(list(enumerate(row.word_ids())))}
for number, word in enumerate(words):  # its tag is that of its first piece; none beyond MAX_LENGTH
    if number in first:
        print(model.config.id2label[tags[first[number]]], word)
