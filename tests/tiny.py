"""Small real things that tests make: sentences with something to learn, a model from a config."""

from __future__ import annotations

import csv
import random
from pathlib import Path

GOOD = ["good", "great", "lovely", "fine", "superb", "sweet"]
BAD = ["bad", "awful", "poor", "sad", "dire", "sour"]
FILLER = [
    "film",
    "book",
    "song",
    "meal",
    "the",
    "a",
    "this",
    "was",
    "is",
    "very",
    "so",
    "quite",
    "and",
    "day",
    "trip",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def bert(
    tokenizer, labels: list[str], hidden: int = 32, layers: int = 2, seed: int = 0, dropout: float = 0.0
):
    """A small random BERT classifier."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=2 * hidden,
            max_position_embeddings=64,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            id2label=dict(enumerate(labels)),
            label2id={label: number for number, label in enumerate(labels)},
            pad_token_id=0,
        )
    )


def sentences(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Distinct sentences with more good words than bad ones, or the other way round; a tenth is labelled wrongly."""
    chance = random.Random(seed)
    rows: dict[str, str] = {}
    while len(rows) < count:
        label = chance.choice(["bad", "good"])
        words = chance.choices(FILLER, k=chance.randint(2, 10))
        words += chance.choices(GOOD if label == "good" else BAD, k=chance.randint(1, 3))
        chance.shuffle(words)
        rows[" ".join(words)] = label if chance.random() > 0.1 else {"bad": "good", "good": "bad"}[label]
    return list(rows.items())


def write_csv(path: Path, rows: list[tuple[str, str]], header: tuple[str, str] = ("text", "label")) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path
