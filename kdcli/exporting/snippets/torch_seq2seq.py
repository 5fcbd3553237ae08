"""python run_torch.py "A sentence." [MORE …]   (pip install torch transformers sentencepiece)"""

import sys

import torch
from student import HERE, MAX_LENGTH, decode, tokenize
from transformers import AutoModelForSeq2SeqLM

len(sys.argv) > 1 or sys.exit(f"usage: {__doc__}")

device = "cuda" if torch.cuda.is_available() else "cpu"
model = AutoModelForSeq2SeqLM.from_pretrained(HERE, dtype="auto").to(device)
options = {"num_beams": 1, "do_sample": False, "max_new_tokens": MAX_LENGTH}
for text in sys.argv[1:]:
    source = torch.tensor([tokenize(text)], device=device)
    print(decode(model.generate(source, attention_mask=torch.ones_like(source), **options)[0].tolist()))
