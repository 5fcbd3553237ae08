"""Finds columns of pairs by their usual names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from kdcli.tasks.seq2seq.scripts import script_of

PROMPTS = (
    ("prompt", "completion"), ("prompt", "response"), ("prompt", "answer"), ("prompt", "output"), ("prompt", "chosen"),
    ("instruction", "output"), ("instruction", "response"), ("instruction", "completion"), ("question", "answer"),
    ("question", "response"), ("input", "output"),
)  # fmt: skip
"""The usual names of the columns of prompts and completions."""
SOURCES = (
    ("source", "target"), ("src", "tgt"), ("src", "trg"), ("source_text", "target_text"), ("input_text", "target_text"),
    ("article", "summary"), ("article", "highlights"), ("document", "summary"), ("dialogue", "summary"), ("text", "summary"),
)  # fmt: skip
"""The usual names of the columns of sources and targets."""
MAPPING = "translation"
"""The usual name of a column with a mapping of languages to texts."""
_LANGUAGE = re.compile(r"[a-z]{2}([_-][A-Za-z]{2,4})?")
"""A column that is called by the code of a language."""


_MARKER = re.compile(
    r"(?:#{2,}|[-=]+>|(?:^|\n)\W*(?:assistant|ai|bot|response|output|completion)\s*:)\s*\Z", re.IGNORECASE
)
"""The end of a prompt that was written for a model without a chat template."""


def marker_of(prompts: Iterable[str]) -> str:
    """Return the marker with which prompts end that were written for a model without a chat template, such as `###` or `Assistant:`; empty: not all of them
    end with the same one."""
    markers = {match[0].strip() if (match := _MARKER.search(prompt)) else "" for prompt in prompts}
    return markers.pop() if len(markers) == 1 else ""


def keys_of_pairs(columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yield the keys of `dataset`, with the names of the columns, that read columns as pairs."""
    by_name = {column.lower(): column for column in columns}
    languages = [each for each in columns if each != "id" and _LANGUAGE.fullmatch(each) and script_of(each)]
    for keys, names in ((("prompt", "completion"), PROMPTS), (("source", "target"), SOURCES)):
        pairs = [[by_name[each] for each in pair] for pair in names if {*pair} <= by_name.keys()]
        if keys[0] == "source" and len(languages) == 2:
            pairs.append(languages)
        if pairs:
            yield dict(zip(keys, pairs[0], strict=True))
