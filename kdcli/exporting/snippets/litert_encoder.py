"""python run_litert.py ARGUMENTS   (pip install ai-edge-litert tokenizers)"""

import sys

from ai_edge_litert.interpreter import Interpreter
from student import HERE, Example

len(sys.argv) > 1 or sys.exit(f"usage: {__doc__}")

MODEL = "model.int8.tflite"

example = Example(*sys.argv[1:])
interpreter = Interpreter(str(HERE / MODEL), num_threads=1)
# the file has signatures of several lengths; the shortest that fits is the fastest
row = example.padded(*(int(name.removeprefix("tokens_")) for name in interpreter.get_signature_list()))
run = interpreter.get_signature_runner(f"tokens_{row['input_ids'].shape[1]}")
inputs = {name: row[name].astype("int32") for name in run.get_input_details()}
for prediction in example.predictions(run(**inputs)["logits"][0]):
    print(*prediction)
