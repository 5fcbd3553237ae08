"""What the student's numbers say of words: beside each runtime's own lines."""

import numpy as np
from row import HERE, LABELS, Row

__all__ = ["HERE", "Asked"]


class Asked(Row):
    """Words, which are one text to the student."""

    def __init__(self, *words: str):
        self.words = words
        super().__init__(" ".join(words))

    def answers(self, logits: np.ndarray) -> list[tuple[str, str]]:
        """Each word's tag, which is that of its first piece, and the word; one that was cut off has none. `logits`: [tokens, tags]."""
        tagged, start = [], 0
        for word in self.words:
            places = range(start, start + len(word))
            pieces = {self.encoded.char_to_token(place) for place in places} - {None}
            if pieces:
                tagged.append((LABELS[str(logits[min(pieces)].argmax())], word))
            start += len(word) + 1
        return tagged
