"""python run_onnx.py ASKED   (pip install onnxruntime tokenizers)"""

import sys

import onnxruntime
from student import HERE, Asked

MODEL = "model.onnx"

asked = Asked(*sys.argv[1:])
session = onnxruntime.InferenceSession(HERE / MODEL)
inputs = {entry.name: asked.inputs[entry.name] for entry in session.get_inputs()}
(logits,) = session.run(["logits"], inputs)
for answer in asked.answers(logits[0]):
    print(*answer)
