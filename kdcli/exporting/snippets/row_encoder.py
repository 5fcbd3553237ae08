"""Tokenizes a text for the student. Every runtime's script imports this.   (pip install numpy tokenizers)"""

import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

HERE = Path(__file__).parent
TOKENIZER = Tokenizer.from_file(str(HERE / "tokenizer.json"))
LABELS = json.loads((HERE / "config.json").read_text(encoding="utf-8"))["id2label"]


class Row:
    """A text, or a text and its pair. The tokenizer truncates long texts.

    `inputs`: int64 arrays [1, tokens] by their names in transformers; a student takes those that it has an input for.
    """

    def __init__(self, *texts: str):
        self.encoded = row = TOKENIZER.encode(*texts)
        named = {"input_ids": row.ids, "attention_mask": row.attention_mask, "token_type_ids": row.type_ids}
        self.inputs = {name: np.array([ids], np.int64) for name, ids in named.items()}

    def padded(self, *sizes: int) -> dict[str, np.ndarray]:
        """Return the inputs, padded with zeros to the smallest of these sizes that is large enough; unchanged if none is."""
        tokens = self.inputs["input_ids"].shape[1]
        more = min((size for size in sizes if size >= tokens), default=tokens) - tokens
        return {name: np.pad(array, ((0, 0), (0, more))) for name, array in self.inputs.items()}
