"""What the student's numbers say of words: beside each runtime's own lines."""

import numpy as np
from row import HERE, LABELS, Row

__all__ = ["HERE", "Asked", "entities"]

PARTS = {}  # of each tag: B, I, E, S (it begins, continues, ends or is an entity) or O (it is in none), and the entity's type


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


def entities(answers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The type and the words of each entity among tags and words."""
    spans, last, last_type = [], "O", ""
    for tag, word in answers:
        part, type_ = PARTS[tag]
        if part in "BS" or last in "OES" or type_ != last_type:
            spans += [] if part == "O" else [(type_, [word])]
        elif part != "O":
            spans[-1][1].append(word)
        last, last_type = part, type_
    return [(type_, " ".join(words)) for type_, words in spans]
