"""python run_ctranslate2.py "A sentence."   (pip install ctranslate2 transformers sentencepiece)"""

import sys
from pathlib import Path

import ctranslate2
from transformers import AutoTokenizer

MAX_LENGTH = 128
PREFIX = ""
GIVEN: list[int] = []

folder = Path(__file__).parent
tokenizer = AutoTokenizer.from_pretrained(folder)
translator = ctranslate2.Translator(str(folder))

source = tokenizer.convert_ids_to_tokens(tokenizer(PREFIX + sys.argv[1])["input_ids"])
given = tokenizer.convert_ids_to_tokens(GIVEN)
room = MAX_LENGTH + len(given)
found = translator.translate_batch([source], target_prefix=[given], beam_size=1, max_decoding_length=room)
written = found[0].hypotheses[0][len(given) :]
print(tokenizer.decode(tokenizer.convert_tokens_to_ids(written), skip_special_tokens=True))
