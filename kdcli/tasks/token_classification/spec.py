"""Declares token classification."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from kdcli.config.tasks import FolderFormat, TaskSpec

if TYPE_CHECKING:
    from kdcli.config.dataset import Dataset
    from kdcli.tasks.columns import Column, Fit
WORD = ("word", "token")
"""The usual names of the column of words of a table with a word a row."""
COLUMNS = (
    ("tokens", "ner_tags"), ("tokens", "tags"), ("tokens", "ner"), ("tokens", "labels"), ("words", "ner_tags"), ("words", "tags"),
    ("words", "ner"), ("words", "labels"), ("word", "tag"), ("token", "tag"), ("text", "entities"), ("text", "spans"), ("text", "label"),
)  # fmt: skip
"""The usual names of the columns of words and tags."""
SHARE = 0.2
"""The maximum number of different tags, in each of the words."""


def _have_a_tag_a_word(words: Column, tags: Column) -> bool:
    """Return whether one column has texts, and another one as many tags in a text as these have words."""
    from kdcli.tasks.columns import LOOKED_AT
    from kdcli.tasks.token_classification.rows import split_tags
    from kdcli.tasks.token_classification.scheme import is_outside, looks_prefixed

    if len(words.values) != len(tags.values):
        return False
    rows = list(zip(words.values[:LOOKED_AT], tags.values[:LOOKED_AT], strict=True))
    if not all(isinstance(text, str) and isinstance(own, str) for text, own in rows):
        return False
    cut = [(text.split(), split_tags(own, text.split())) for text, own in rows]
    counts = Counter(tag for _, own in cut for tag in own)
    is_long = counts.total() >= 2 * len(cut) and len(counts) <= SHARE * counts.total()
    are_tags = all(tag == tag.upper() or looks_prefixed(tag) or is_outside(tag) for tag in counts)
    return is_long and are_tags and all(len(own) == len(tags_of) for own, tags_of in cut)


class TokenClassificationSpec(TaskSpec):
    """One tag a word."""

    family = "token_classification"
    reads = frozenset(
        {"words", "tags", "sentence", "outside", "labels", "labelled", "unlabelled", "unlabelled_limit"}
    )
    reads_of_run = frozenset({"trainer.token_dropout", "teacher.trainer.token_dropout"})
    only_here: ClassVar[Mapping[str, str]] = {
        "sentence": "it numbers the sentences of words with tags",
        "outside": "it names the tags of words in no entity",
    }
    formats: ClassVar[dict[str, FolderFormat]] = {
        "conll": FolderFormat(
            (
                ".conll",
                ".conllu",
                ".conllup",
                ".bio",
                ".iob",
                ".iob2",
                ".bioes",
                ".bilou",
                ".bmes",
                ".tsv",
                ".txt",
            ),
            ("words", "tags"),
        )
    }
    inference_order = 0
    script_arguments = '"A sentence."'
    column_keys = "dataset.words= and dataset.tags="
    quantizable = True

    def implied_by(self, cfg: Dataset) -> bool:
        """Return whether there is a column of tags, or a CoNLL file."""
        return bool(cfg.tags) or cfg.format == "conll"

    def usual_keys(self, tokenizer: Any) -> dict[str, Any]:
        """Return the keys of words and tags."""
        return {"words": "text", "tags": "tags"}

    def fits(self, columns: Sequence[Column], given: Mapping[str, Any]) -> Iterator[Fit]:
        """Yield lists of words with lists of tags, texts with spans, or a word a row."""
        from kdcli.tasks.columns import CERTAIN, LOOKED_AT, Fit, usual_pair
        from kdcli.tasks.token_classification.spans import contains_spans

        def are_tags(words: Column, tags: Column) -> bool:
            are_lists = words.is_list and tags.is_list
            return are_lists or tags.is_spans or words.name.lower() in WORD

        for words, tags in itertools.permutations(columns, 2):
            if words.is_text and _have_a_tag_a_word(words, tags):
                yield Fit({"words": words.name, "tags": tags.name}, CERTAIN)
        if pair := usual_pair(columns, COLUMNS, are_tags):
            yield Fit({"words": pair[0], "tags": pair[1]})
            return
        texts = [column for column in columns if column.is_text]
        spans = [
            column
            for column in columns
            if column.is_spans and any(map(contains_spans, column.values[:LOOKED_AT]))
        ]
        if texts and len(spans) == 1:
            text = max(texts, key=lambda column: column.length)
            yield Fit({"words": text.name, "tags": spans[0].name})

    def check(self, cfg: Dataset) -> None:
        """Check that the data set has columns of words and tags, unless the format has them."""
        if not cfg.tags and cfg.format != "conll":
            raise ValueError(
                "token_classification: name the columns of words and of their tags with dataset.words= and dataset.tags=; for texts with spans of "
                "characters (doccano, Label Studio, Prodigy) the columns of the texts and of the spans; for a file with a word and its tag a line give "
                "dataset=conll"
            )


SPEC = TokenClassificationSpec()
