"""python run_exported.py ARGUMENTS   (pip install torch numpy tokenizers)"""

import sys

import torch
from student import HERE, Example

len(sys.argv) > 1 or sys.exit(f"usage: {__doc__}")

MODEL = "model.pt2"

example = Example(*sys.argv[1:])
program = torch.export.load(HERE / MODEL)
inputs = {name: torch.from_numpy(example.inputs[name]) for name in program.graph_signature.user_inputs}
for prediction in example.predictions(program.module()(**inputs)[0].detach().numpy()):
    print(*prediction)
