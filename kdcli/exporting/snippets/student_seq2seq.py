"""What the student is given, and the text of what it writes: beside each runtime's own lines.   (pip install transformers sentencepiece)"""

from pathlib import Path

from transformers import AutoTokenizer

MAX_LENGTH = 128  # tokens that it writes at most
PREFIX = ""  # put before each source
GIVEN: list[int] = []  # tokens that begin each text it writes: the language's

HERE = Path(__file__).parent
TOKENIZER = AutoTokenizer.from_pretrained(HERE)
SOURCE = TOKENIZER.get_vocab()
TARGET = SOURCE | getattr(
    TOKENIZER, "target_encoder", {}
)  # Marian's models may have one vocabulary for each side


def read(source: str) -> list[int]:
    """The source's tokens."""
    return TOKENIZER(PREFIX + source)["input_ids"]


def pieces(tokens: list[int], vocabulary: dict[str, int]) -> list[str]:
    """The tokens by name, as CTranslate2 takes them."""
    names = {index: token for token, index in vocabulary.items()}
    return [names[token] for token in tokens]


def text(written: list[int] | list[str]) -> str:
    """The text of what was written, in numbers or in pieces."""
    tokens = [TARGET[each] if isinstance(each, str) else each for each in written]
    return TOKENIZER.decode(tokens, skip_special_tokens=True).strip()
