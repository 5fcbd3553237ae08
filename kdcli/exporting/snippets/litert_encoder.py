"""python run_litert.py ASKED   (pip install ai-edge-litert tokenizers)"""

import sys

from ai_edge_litert.interpreter import Interpreter
from student import HERE, Asked

MODEL = "model.int8.tflite"

asked = Asked(*sys.argv[1:])
interpreter = Interpreter(str(HERE / MODEL), num_threads=1)
# it has a signature for each of some lengths, of which the shortest that fits is the quickest
row = asked.padded(*(int(name.removeprefix("tokens_")) for name in interpreter.get_signature_list()))
run = interpreter.get_signature_runner(f"tokens_{row['input_ids'].shape[1]}")
inputs = {name: row[name].astype("int32") for name in run.get_input_details()}
for answer in asked.answers(run(**inputs)["logits"][0]):
    print(*answer)
