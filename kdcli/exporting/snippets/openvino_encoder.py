"""python run_openvino.py ASKED   (pip install openvino tokenizers)"""

import sys

import openvino
from student import HERE, Asked

MODEL = "model.fp16.xml"

asked = Asked(*sys.argv[1:])
graph = openvino.Core().read_model(HERE / MODEL)
inputs = {entry.any_name: asked.inputs[entry.any_name] for entry in graph.inputs}
# one shape is twice as fast as any: an application compiles some when it begins (16, 24, 32, 48 … tokens), and pads to them
graph.reshape({name: array.shape for name, array in inputs.items()})
for answer in asked.answers(openvino.compile_model(graph, "CPU")(inputs)["logits"][0]):
    print(*answer)
