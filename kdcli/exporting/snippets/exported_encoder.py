"""python run_exported.py ASKED   (pip install torch numpy tokenizers)"""

import sys

import torch
from student import HERE, Asked

MODEL = "model.pt2"

asked = Asked(*sys.argv[1:])
program = torch.export.load(HERE / MODEL)
inputs = {name: torch.from_numpy(asked.inputs[name]) for name in program.graph_signature.user_inputs}
for answer in asked.answers(program.module()(**inputs)[0].detach().numpy()):
    print(*answer)
