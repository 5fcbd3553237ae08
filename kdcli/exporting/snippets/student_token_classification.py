"""Turns words into the student's inputs, and its logits into tags. Every runtime's script imports this."""

import re

import numpy as np
from row import HERE, LABELS, Row

__all__ = ["HERE", "Example", "entities"]

PARTS = {}  # for each tag: its role, B, I, E, S (begins, continues, ends or is an entity) or O (outside), and the entity's type


class Example(Row):
    """Words, or a sentence, whose words and punctuation marks are taken apart; all words are one text to the student."""

    def __init__(self, *words: str):
        self.words = words if len(words) > 1 else re.findall(r"\w+|[^\w\s]", words[0])
        super().__init__(" ".join(self.words))

    def predictions(self, logits: np.ndarray) -> list[tuple[str, str]]:
        """Return the tag and the text of each word that was not truncated. The first token of a word decides. `logits`: [tokens, tags]."""
        tagged, start = [], 0
        for word in self.words:
            characters = range(start, start + len(word))
            tokens = {self.encoded.char_to_token(character) for character in characters} - {None}
            if tokens:
                tagged.append((LABELS[str(logits[min(tokens)].argmax())], word))
            start += len(word) + 1
        return tagged


def entities(predictions: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the type and the words of each entity."""
    spans, last, last_type = [], "O", ""
    for tag, word in predictions:
        role, type_ = PARTS[tag]
        if role in "BS" or last in "OES" or type_ != last_type:
            spans += [] if role == "O" else [(type_, [word])]
        elif role != "O":
            spans[-1][1].append(word)
        last, last_type = role, type_
    return [(type_, " ".join(words)) for type_, words in spans]
