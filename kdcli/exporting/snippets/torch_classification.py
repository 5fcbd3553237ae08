"""python run_torch.py "A text." ["The text that belongs to it."]   (pip install torch transformers)"""

import sys
from pathlib import Path

import torch
from transformers import pipeline

MAX_LENGTH = 128

device = "cuda" if torch.cuda.is_available() else "cpu"
classify = pipeline("text-classification", str(Path(__file__).parent), device=device, dtype="auto")
row = dict(zip(("text", "text_pair"), sys.argv[1:], strict=False))
for found in classify(row, top_k=None, truncation=True, max_length=MAX_LENGTH):
    print(f"{found['score']:.4f} {found['label']}")
