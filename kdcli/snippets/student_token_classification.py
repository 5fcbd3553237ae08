"""What the student is given, and what its numbers say: beside each runtime's own lines.   (pip install numpy tokenizers)"""

import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

HERE = Path(__file__).parent
TOKENIZER = Tokenizer.from_file(str(HERE / "tokenizer.json"))
LABELS = json.loads((HERE / "config.json").read_text(encoding="utf-8"))["id2label"]


class Asked:
    """Words, of which the tokenizer cuts off those that are too many.

    `inputs`: int64 arrays [1, tokens] by their names in transformers; a student takes those that it has an input for.
    """

    def __init__(self, *words: str):
        self.words = words
        self.row = TOKENIZER.encode(" ".join(words))
        named = {
            "input_ids": self.row.ids,
            "attention_mask": self.row.attention_mask,
            "token_type_ids": self.row.type_ids,
        }
        self.inputs = {name: np.array([numbers], np.int64) for name, numbers in named.items()}

    def padded(self, *sizes: int) -> dict[str, np.ndarray]:
        """The inputs with zeros behind them, up to the least of these sizes that holds them; as they are if none does."""
        tokens = self.inputs["input_ids"].shape[1]
        more = min((size for size in sizes if size >= tokens), default=tokens) - tokens
        return {name: np.pad(array, ((0, 0), (0, more))) for name, array in self.inputs.items()}

    def answers(self, logits: np.ndarray) -> list[tuple[str, str]]:
        """Each word's tag, which is that of its first piece, and the word; one that was cut off has none. `logits`: [tokens, tags]."""
        tagged, start = [], 0
        for word in self.words:
            pieces = {self.row.char_to_token(place) for place in range(start, start + len(word))} - {None}
            if pieces:
                tagged.append((LABELS[str(logits[min(pieces)].argmax())], word))
            start += len(word) + 1
        return tagged
