"""python run_executorch.py ARGUMENTS   (pip install executorch tokenizers)"""

import sys

import torch
from executorch.runtime import Runtime
from student import HERE, Example

len(sys.argv) > 1 or sys.exit(f"usage: {__doc__}")

MODEL = "model.pte"

example = Example(*sys.argv[1:])
forward = Runtime.get().load_program(HERE / MODEL).load_method("forward")
row = list(example.padded(2).values())[: forward.metadata.num_inputs()]  # a row has at least two tokens
for prediction in example.predictions(
    forward.execute([torch.from_numpy(array) for array in row])[0][0].numpy()
):
    print(*prediction)
