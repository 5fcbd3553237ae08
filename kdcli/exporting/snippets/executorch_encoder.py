"""python run_executorch.py ASKED   (pip install executorch tokenizers)"""

import sys

import torch
from executorch.runtime import Runtime
from student import HERE, Asked

MODEL = "model.pte"

asked = Asked(*sys.argv[1:])
forward = Runtime.get().load_program(HERE / MODEL).load_method("forward")
row = list(asked.padded(2).values())[: forward.metadata.num_inputs()]  # it takes no row of a single token
for answer in asked.answers(forward.execute([torch.from_numpy(array) for array in row])[0][0].numpy()):
    print(*answer)
