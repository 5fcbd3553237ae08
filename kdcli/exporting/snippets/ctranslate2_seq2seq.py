"""python run_ctranslate2.py "A sentence."   (pip install ctranslate2 transformers sentencepiece)"""

import sys

import ctranslate2
from student import GIVEN, HERE, MAX_LENGTH, SOURCE, TARGET, decode, names, tokenize

len(sys.argv) > 1 or sys.exit(f"usage: {__doc__}")

translator = ctranslate2.Translator(str(HERE))
source, given = names(tokenize(sys.argv[1]), SOURCE), names(GIVEN, TARGET)
options = {"beam_size": 1, "max_decoding_length": MAX_LENGTH + len(given)}
(result,) = translator.translate_batch([source], target_prefix=[given], **options)
print(decode(result.hypotheses[0][len(given) :]))
