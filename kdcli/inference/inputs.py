"""Reads the inputs of a user: words of a command line, or a data file, by the readers of data sets."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import yaml
from pydantic import create_model

from kdcli.config.check import check_values
from kdcli.config.dataset import Dataset as DatasetConfig
from kdcli.config.types import Section
from kdcli.data.inspection import READING
from kdcli.data.readers import read_file, read_parallel
from kdcli.data.sources import data_suffix
from kdcli.errors import ConfigError, listed, shown, suggest
from kdcli.files import user_path
from kdcli.tasks.inference import Inference, InputRows, Values

logger = logging.getLogger(__name__)
COLUMNS = ("text", "text_pair")
"""The keys that name the columns of the inputs for every task."""
_FIELDS: dict[str, Any] = {
    key: (DatasetConfig.model_fields[key].annotation, DatasetConfig.model_fields[key])
    for key in (*COLUMNS, *READING)
}
InputFile: type[Section] = create_model("InputFile", __base__=Section, **_FIELDS)
"""The keys that may stand behind a file of inputs."""


def from_words(words: Sequence[str], inference: Inference) -> list[Values]:
    """Return the inputs among words of a command line: one for each word, or for each two if an input is a pair of texts.

    Raises:
        ConfigError: a text lacks its pair.
        DataError: a text is empty.
    """
    fields = list(inference.fields)
    if len(words) % len(fields):
        raise ConfigError(
            f"an input is {len(fields)} texts ({', '.join(fields)}), and the command line has {len(words)}; give {len(fields)} for each input"
        )
    groups = zip(*[iter(words)] * len(fields), strict=True)
    return [inference.check(group, f"input {number}") for number, group in enumerate(groups, 1)]


def from_line(line: str, inference: Inference) -> Values:
    """Return the input in a line of text; a tab stands between two texts.

    Raises:
        ConfigError: a text lacks its pair.
        DataError: a text is empty.
    """
    return from_words([line] if len(inference.fields) == 1 else line.split("\t"), inference)[0]


def from_file(given: str, words: Sequence[str], inference: Inference) -> list[Values]:
    """Return the inputs in a data file: of a text file its lines without those that are empty, of other files the columns that the run read.

    Args:
        words: KEY=VALUE of `InputFile`: other columns (text=COLUMN, text_pair=COLUMN), and how the file is read.

    Raises:
        ConfigError: a word is no such key, or has a wrong value.
        DataError: the file cannot be read, lacks a column, or has an empty text.
    """
    chosen = _chosen(words)
    reading = {key: InputFile.model_fields[key].get_default() for key in READING}
    cfg = inference.cfg.model_copy(
        update={**reading, **chosen, "task": inference.cfg.kind, "path": given, "text": inference.cfg.text}
    )
    columns = [
        chosen.get(key, column) for key, column in zip(COLUMNS, inference.fields.values(), strict=False)
    ]
    if extra := [key for key in COLUMNS[len(columns) :] if key in chosen]:
        raise ConfigError(
            f"{extra[0]}: an input of this model is one text ({', '.join(inference.fields)}); leave it out"
        )
    path = user_path(given)
    is_lines = cfg.format == "txt" or (cfg.format == "auto" and data_suffix(given) in (".txt", ""))
    if is_lines and len(columns) > 1:
        raise ConfigError(
            f"{given}: an input is {len(columns)} texts; give a csv or jsonl file with a column for each"
        )
    schema = InputRows(cfg, inference, columns)
    if is_lines:
        part, _ = read_parallel(schema, path, path)
        logger.info("read %s as lines of text", given)
        return [tuple(row) for row in part.rows]
    part, reading_of_file = read_file(schema, path, given)
    logger.info("read %s as %s", given, reading_of_file)
    return [tuple(row) for row in part.rows]


def require_texts(words: Sequence[str]) -> None:
    """Refuse words that say how a file is read, where the words are texts.

    Raises:
        ConfigError
    """
    for word in words:
        key, equals, _ = word.partition("=")
        if equals and key.removeprefix("dataset.") in InputFile.model_fields:
            raise ConfigError(
                f"{shown(word)} says how a file of inputs is read, and no file is given; give the file before it, or leave it out (give a text "
                "that begins like this on stdin: -)"
            )


def _chosen(words: Sequence[str]) -> dict[str, Any]:
    """Return the values of KEY=VALUE words, by their keys."""
    tree: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        key = name.removeprefix("dataset.")
        names = [*InputFile.model_fields]
        if not equals or key not in names:
            expected = suggest(key, names) or f"; expected one of: {listed(f'{each}=' for each in names)}"
            raise ConfigError(f"{shown(word)} is not KEY=VALUE of a file of inputs{expected} (text=COLUMN …)")
        tree[key] = yaml.safe_load(value) if value[:1] == "[" else value
    return check_values(InputFile, tree).model_dump(include=set(tree))
