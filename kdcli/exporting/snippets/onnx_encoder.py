"""python run_onnx.py ARGUMENTS   (pip install onnxruntime tokenizers)"""

import sys

import onnxruntime
from student import HERE, Example

len(sys.argv) > 1 or sys.exit(f"usage: {__doc__}")

MODEL = "model.onnx"

example = Example(*sys.argv[1:])
session = onnxruntime.InferenceSession(HERE / MODEL)
inputs = {entry.name: example.inputs[entry.name] for entry in session.get_inputs()}
(logits,) = session.run(["logits"], inputs)
for prediction in example.predictions(logits[0]):
    print(*prediction)
