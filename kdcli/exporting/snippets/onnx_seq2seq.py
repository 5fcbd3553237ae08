"""python run_onnx.py "A sentence." [MORE …]   (pip install onnxruntime transformers sentencepiece)"""

import sys

import onnxruntime
from greedy import translate
from student import HERE, decode, tokenize

len(sys.argv) > 1 or sys.exit(f"usage: {__doc__}")

names = ("encoder_model", "decoder_model", "decoder_with_past_model")
encoder, first, later = (onnxruntime.InferenceSession(HERE / f"{name}.onnx") for name in names)
for source in sys.argv[1:]:
    print(decode(list(translate(encoder, first, later, tokenize(source)))))
