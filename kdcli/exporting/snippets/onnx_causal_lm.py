"""python run_onnx.py "A prompt."   (pip install onnxruntime transformers jinja2)"""

import sys

import onnxruntime
from greedy import HERE, read, text, write

MODEL = "model.onnx"

onnxruntime.set_default_logger_severity(3)  # errors: each optional input is warned of
session = onnxruntime.InferenceSession(HERE / MODEL)
print(text(list(write(session, read(sys.argv[1]), most=64))))
