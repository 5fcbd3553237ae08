"""Implements `kdcli predict`, which predicts for texts, for the rows of a file, or for the lines of stdin."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from kdcli import console
from kdcli.data.sources import SUFFIXES_OF_DATA, data_suffix
from kdcli.errors import ConfigError, DataError, ExitCode, shown
from kdcli.files import replaced, user_path
from kdcli.inference.inputs import from_file, from_line, from_words, require_texts
from kdcli.inference.paths import CSV_SUFFIXES
from kdcli.inference.predictor import CHUNK, Predictor, csv_lines, json_line
from kdcli.numbers import format_items
from kdcli.tasks.inference import Prediction, Values

SHOWN = 60
"""The maximum number of characters of an input that a table shows."""


def predict(
    predictor: Predictor,
    words: Sequence[str],
    out: Path | None = None,
    as_json: bool = False,
    max_new_tokens: int | None = None,
) -> int:
    """Predict, and print the predictions or write them into a file.

    Args:
        words: texts; or a file, and KEY=VALUE that say how it is read; or `-`, for the lines of stdin.
        out: the file; None: stdout.
        as_json: whether lines of JSON are printed.
    """
    if list(words) == ["-"] and out is None:
        return _stream(predictor, sys.stdin, as_json, max_new_tokens)
    inputs, from_data = _inputs(predictor, words)
    if out is not None:
        _write(predictor, inputs, out, max_new_tokens)
        console.say(f"{format_items(len(inputs), 'row')}: {out}")
        if from_data and words[0] != "-" and not as_json and predictor.subject.run is not None:
            console.say(f"next, if the rows have labels: {_scoring(predictor, words)}")
        return ExitCode.DONE
    predictions = [prediction for chunk in predictor.chunks(inputs, max_new_tokens) for prediction in chunk]
    if as_json or (from_data and not sys.stdout.isatty()):
        for prediction in predictions:
            console.say(json_line(prediction))
    else:
        _show(predictor, predictions)
        if sys.stdout.isatty():  # a pipe gets the predictions alone
            file = shlex.join(words) if from_data else "FILE"
            console.say(
                f"next: kdcli predict {shlex.quote(predictor.subject.name)} {file} --out predictions.jsonl"
            )
    return ExitCode.DONE


def _scoring(predictor: Predictor, words: Sequence[str]) -> str:
    """Return the command that scores a model of a run on the rows of a file.

    Args:
        words: the file, and KEY=VALUE that say how it is read.
    """
    subject = predictor.subject
    artifact = [f"artifact={subject.path}"] if subject.exported else []
    keys = [f"dataset.{word.removeprefix('dataset.')}" for word in words[1:]]
    return shlex.join(
        ["kdcli", "eval", str(subject.run), *artifact, f"dataset.path={words[0]}", *keys, "split=all"]
    )


def _inputs(predictor: Predictor, words: Sequence[str]) -> tuple[list[Values], bool]:
    """Return the inputs that words name, and whether they come from a file or from stdin."""
    first = words[0]
    if first == "-":
        if len(words) > 1:
            raise ConfigError(
                f"{shown(words[1])} stands after -, by which the lines of stdin are texts; leave one of them out"
            )
        lines = [line.rstrip("\r\n") for line in sys.stdin]
        return [from_line(line, predictor.inference) for line in lines if line.strip()], True
    if _is_file(first):
        return from_file(first, words[1:], predictor.inference), True
    if data_suffix(first) in SUFFIXES_OF_DATA and not any(map(str.isspace, first)):
        raise DataError(
            f"the data file {first} does not exist (looked for {user_path(first).absolute()}); correct the path"
        )
    require_texts(words)
    return from_words(words, predictor.inference), False


def _is_file(word: str) -> bool:
    try:
        return os.path.isfile(user_path(word))
    except (OSError, ValueError):  # a text that is too long for a path
        return False


def _write(predictor: Predictor, inputs: Sequence[Values], out: Path, max_new_tokens: int | None) -> None:
    """Write the predictions into a file, which replaces an older one when all are there."""
    with (
        replaced(out) as temporary,
        console.ProgressStages(["predict"]) as stages,
        stages.stage("predict", len(inputs), "rows") as stage,
        temporary.open("w", encoding="utf-8") as stream,
    ):
        for text, done in _texts(predictor, inputs, out, max_new_tokens):
            stream.write(text)
            stage.update(done)


def _texts(
    predictor: Predictor, inputs: Sequence[Values], out: Path, max_new_tokens: int | None
) -> Iterator[tuple[str, int]]:
    """Return the text of each chunk of predictions, and the number of inputs that are done."""
    for index, predictions in enumerate(predictor.chunks(inputs, max_new_tokens)):
        done = index * CHUNK + len(predictions)
        if out.suffix.lower() in CSV_SUFFIXES:
            yield csv_lines(predictor, predictions, header=not index), done
        else:
            yield "".join(f"{json_line(prediction)}\n" for prediction in predictions), done


def _stream(predictor: Predictor, stream: IO[str], as_json: bool, max_new_tokens: int | None) -> int:
    """Predict for each line as soon as it is read, and print one line; an empty line gives an empty one."""
    inference = predictor.inference
    for line in stream:
        text = line.rstrip("\r\n")
        if not text.strip():
            console.say("{}" if as_json else "")
            continue
        (prediction,) = inference.predict([from_line(text, inference)], predictor.model, max_new_tokens)
        if as_json:
            console.say(json_line(prediction))
        else:
            cells = inference.cells(prediction).values()
            console.say("\t".join(" ".join(cell.split()) for cell in cells))
    return ExitCode.DONE


def _show(predictor: Predictor, predictions: Sequence[Prediction]) -> None:
    """Print predictions for people: all details of a single one, or a row for each of several."""
    inference = predictor.inference
    if len(predictions) == 1:
        columns, rows = inference.details(predictions[0])
        if columns:
            console.table("", columns, rows)
        else:
            console.say("\n".join(row[0] for row in rows))
        return
    rows = []
    for prediction in predictions:
        texts = [
            value for key, value in prediction.items() if key in predictor.fields and isinstance(value, str)
        ]
        rows.append([*(_short(text) for text in texts), *inference.cells(prediction).values()])
    console.table("", [*predictor.fields, *inference.cells(predictions[0])], rows)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"
