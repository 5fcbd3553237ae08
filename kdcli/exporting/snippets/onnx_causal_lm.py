"""python run_onnx.py "A prompt." [MORE …]   (pip install onnxruntime transformers jinja2)"""

import sys

import onnxruntime
from greedy import HERE, decode, generate, tokenize

len(sys.argv) > 1 or sys.exit(f"usage: {__doc__}")

MODEL = "model.onnx"

onnxruntime.set_default_logger_severity(3)  # errors alone: it warns of each optional input
session = onnxruntime.InferenceSession(HERE / MODEL)
for prompt in sys.argv[1:]:
    print(decode(list(generate(session, tokenize(prompt), max_new_tokens=64))))
