"""python run_ctranslate2.py "A sentence."   (pip install ctranslate2 transformers sentencepiece)"""

import sys

import ctranslate2
from student import GIVEN, HERE, MAX_LENGTH, SOURCE, TARGET, pieces, read, text

translator = ctranslate2.Translator(str(HERE))
source, given = pieces(read(sys.argv[1]), SOURCE), pieces(GIVEN, TARGET)
room = MAX_LENGTH + len(given)
found = translator.translate_batch([source], target_prefix=[given], beam_size=1, max_decoding_length=room)
print(text(found[0].hypotheses[0][len(given) :]))
