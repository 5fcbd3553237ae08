"""python run_torch.py "A text." ["Its second text."]   (pip install torch transformers)"""

import sys
from pathlib import Path

import torch
from transformers import pipeline

len(sys.argv) > 1 or sys.exit(f"usage: {__doc__}")

MAX_LENGTH = 128

device = "cuda" if torch.cuda.is_available() else "cpu"
classify = pipeline("text-classification", str(Path(__file__).parent), device=device, dtype="auto")
row = dict(zip(("text", "text_pair"), sys.argv[1:], strict=False))
for prediction in classify(row, top_k=None, truncation=True, max_length=MAX_LENGTH):
    print(f"{prediction['score']:.4f} {prediction['label']}")
