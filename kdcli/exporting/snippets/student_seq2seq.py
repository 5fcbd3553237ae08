"""Tokenizes the student's sources, and decodes its translations. Every runtime's script imports this.   (pip install transformers sentencepiece)"""

from pathlib import Path

from transformers import AutoTokenizer

MAX_LENGTH = 128  # the maximum number of generated tokens
PREFIX = ""  # the text before each source
GIVEN: list[int] = []  # the first tokens of each translation: the language code

HERE = Path(__file__).parent
TOKENIZER = AutoTokenizer.from_pretrained(HERE)
SOURCE = TOKENIZER.get_vocab()
TARGET = SOURCE | getattr(
    TOKENIZER, "target_encoder", {}
)  # Marian's models may have one vocabulary for each side


def tokenize(source: str) -> list[int]:
    """Return the token ids of a source."""
    return TOKENIZER(PREFIX + source)["input_ids"]


def names(ids: list[int], vocabulary: dict[str, int]) -> list[str]:
    """Return the names of tokens, which CTranslate2 takes in place of ids."""
    by_id = {index: token for token, index in vocabulary.items()}
    return [by_id[index] for index in ids]


def decode(tokens: list[int] | list[str]) -> str:
    """Return the text of generated tokens, given by ids or names."""
    ids = [TARGET[token] if isinstance(token, str) else token for token in tokens]
    return TOKENIZER.decode(ids, skip_special_tokens=True).strip()
