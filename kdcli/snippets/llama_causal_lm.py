"""python run_llama.py "A prompt."   (pip install xllamacpp; or: llama-cli -m FILE -p "A prompt.")"""

import sys
from pathlib import Path

import xllamacpp

MODEL = "model.q8_0.gguf"
CHAT = False

options = xllamacpp.CommonParams()
options.model.path = str(Path(__file__).parent / MODEL)
options.n_gpu_layers, options.verbosity = 0, 1
server = xllamacpp.Server(options)

how = {"max_tokens": 64, "temperature": 0}
if CHAT:
    asked = {"messages": [{"role": "user", "content": sys.argv[1]}]}
    print(server.handle_chat_completions(asked | how)["choices"][0]["message"]["content"])
else:
    print(server.handle_completions({"prompt": sys.argv[1]} | how)["choices"][0]["text"])
