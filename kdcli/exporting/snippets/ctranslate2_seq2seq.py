"""python run_ctranslate2.py "A sentence." [MORE …]   (pip install ctranslate2 transformers sentencepiece)"""

import sys

import ctranslate2
from student import GIVEN, HERE, MAX_LENGTH, SOURCE, TARGET, decode, names, tokenize

len(sys.argv) > 1 or sys.exit(f"usage: {__doc__}")

translator = ctranslate2.Translator(str(HERE))
given = names(GIVEN, TARGET)
options = {"beam_size": 1, "max_decoding_length": MAX_LENGTH + len(given)}
for text in sys.argv[1:]:
    (result,) = translator.translate_batch([names(tokenize(text), SOURCE)], target_prefix=[given], **options)
    print(decode(result.hypotheses[0][len(given) :]))
