"""python run_torch.py "A prompt."   (pip install torch transformers; or: vllm serve FOLDER)"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

CHAT = False

folder, device = Path(__file__).parent, "cuda" if torch.cuda.is_available() else "cpu"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").to(device)

text = sys.argv[1]
if CHAT:
    turns = [{"role": "user", "content": text}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
row = tokenizer(text, return_tensors="pt", add_special_tokens=not CHAT).to(device)
written = model.generate(
    input_ids=row["input_ids"], attention_mask=row["attention_mask"], max_new_tokens=64, do_sample=False
)
print(tokenizer.decode(written[0, row["input_ids"].shape[1] :], skip_special_tokens=True))
