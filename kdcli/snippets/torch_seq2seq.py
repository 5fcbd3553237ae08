"""python run_torch.py "A sentence."   (pip install torch transformers sentencepiece)"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

MAX_LENGTH = 128
PREFIX = ""

folder, device = Path(__file__).parent, "cuda" if torch.cuda.is_available() else "cpu"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype="auto").to(device)

row = tokenizer(PREFIX + sys.argv[1], return_tensors="pt").to(device)
written = model.generate(**row, num_beams=1, do_sample=False, max_new_tokens=MAX_LENGTH)
print(tokenizer.decode(written[0], skip_special_tokens=True).strip())
