"""Reads files of tagged words: a word a line (CoNLL)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from kdcli.errors import DataError, shown
from kdcli.tasks.rows import RowSchema


def tagged_sentences(schema: RowSchema, path: Path, lines: Iterable[str]) -> Iterator[tuple[Any, ...]]:
    """Sentences: a line for each word, with the word in the first and its tag in the last column, and a blank line between sentences."""
    words: list[str] = []
    tags: list[str] = []
    for number, line in enumerate(itertools.chain(lines, ["\n"]), 1):
        columns = re.split(r"[ \t]+", line.strip(" \t\r\n"))
        if columns[0] and columns[0] != "-DOCSTART-":
            if len(columns) < len(schema.columns):
                raise DataError(
                    f"{path}, line {number}: expected a word and its tag, got {shown(line.strip())}"
                )
            words.append(columns[0])
            tags.append(columns[-1])
        elif words:
            yield (words, tags)[: len(schema.columns)]
            words, tags = [], []
