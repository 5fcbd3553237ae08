"""python run_openvino.py ARGUMENTS   (pip install openvino tokenizers)"""

import sys

import openvino
from student import HERE, Example

len(sys.argv) > 1 or sys.exit(f"usage: {__doc__}")

MODEL = "model.fp16.xml"

example = Example(*sys.argv[1:])
graph = openvino.Core().read_model(HERE / MODEL)
inputs = {entry.any_name: example.inputs[entry.any_name] for entry in graph.inputs}
# one shape is twice as fast as any: an application compiles some when it begins (16, 24, 32, 48 … tokens), and pads to them
graph.reshape({name: array.shape for name, array in inputs.items()})
for prediction in example.predictions(openvino.compile_model(graph, "CPU")(inputs)["logits"][0]):
    print(*prediction)
