"""python run_torch.py "A prompt." [MORE …]   (pip install torch transformers; or: vllm serve FOLDER)"""

import sys
from pathlib import Path

import torch
from transformers import pipeline

len(sys.argv) > 1 or sys.exit(f"usage: {__doc__}")

CHAT = False

device = "cuda" if torch.cuda.is_available() else "cpu"
generate = pipeline("text-generation", str(Path(__file__).parent), device=device, dtype="auto")
for text in sys.argv[1:]:
    prompt = [{"role": "user", "content": text}] if CHAT else text
    print(generate(prompt, max_new_tokens=64, do_sample=False, return_full_text=False)[0]["generated_text"])
