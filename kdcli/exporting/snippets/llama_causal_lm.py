"""python run_llama.py "A prompt." [MORE …]   (pip install xllamacpp; or: llama-cli -m FILE -p "A prompt.")"""

import sys
from pathlib import Path

import xllamacpp

len(sys.argv) > 1 or sys.exit(f"usage: {__doc__}")

MODEL = "model.q8_0.gguf"
CHAT = False

options = xllamacpp.CommonParams()
options.model.path, options.n_gpu_layers, options.verbosity = str(Path(__file__).parent / MODEL), 0, 1
complete = getattr(xllamacpp.Server(options), "handle_chat_completions" if CHAT else "handle_completions")
for prompt in sys.argv[1:]:
    request = {"messages": [{"role": "user", "content": prompt}]} if CHAT else {"prompt": prompt}
    choice = complete(request | {"max_tokens": 64, "temperature": 0})["choices"][0]
    print(choice["message"]["content"] if CHAT else choice["text"])
