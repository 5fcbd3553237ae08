"""Implements `kdcli init`, which examines a data file and writes a commented config for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from kdcli import console
from kdcli.config.tasks import spec_of
from kdcli.data.inspection import CHOSEN_BY, SAMPLE, Inspection, inspect
from kdcli.errors import ConfigError, ExitCode, listed, shown
from kdcli.files import user_path, write_text

SCHEMA = Path(__file__).parents[1] / "config" / "kdcli.schema.json"
"""The JSON schema that editors read."""
LENGTHS = (64, 128, 256, 512, 1024, 2048)
"""The values of dataset.max_length that are proposed."""
CHARACTERS, MARGIN = 3, 32
"""A cautious number of characters per token, and the number of tokens besides those of the texts."""
MOST_LABELS = 20
"""The maximum number of labels that are shown with their rows."""


def init(given: str, words: list[str], out: Path, with_schema: bool = True) -> int:
    """Examine a data file, and write a config for it and a JSON schema into one folder.

    Args:
        given: the path of the file, as it is written into the config.
        words: `dataset.KEY=VALUE`, for what the file does not show.
        out: the file to write.
        with_schema: also write `kdcli.schema.json` into the same folder, and name it in the config for editors.

    Raises:
        ConfigError, DataError: `out` exists, a word is wrong, the file cannot be read, no task fits it, or several do.
    """
    out = user_path(out)
    if out.exists():
        raise ConfigError(
            f"{out} is there already, and is left as it is; give another file with --out, or remove it"
        )
    if not out.parent.is_dir():
        raise ConfigError(f"the folder {out.parent} does not exist; make it, or give another file with --out")
    inspection = inspect(given, _keys(words))
    write_text(out, "\n".join(_lines(inspection, with_schema)) + "\n")
    schema = out.parent / SCHEMA.name
    if with_schema and not schema.exists():
        write_text(schema, SCHEMA.read_text(encoding="utf-8"))
    for line in described(inspection):
        console.say(line)
    console.say(f"wrote {out}" + (f" and {schema}, which editors read" if with_schema else ""))
    console.say(f"next: kdcli check {out}")
    return ExitCode.DONE


def _keys(words: list[str]) -> dict[str, Any]:
    """Return the keys of `dataset` in the words of a command line."""
    keys = {}
    for word in words:
        key, equals, value = word.partition("=")
        section, _, name = key.partition(".")
        if not equals or section != "dataset" or not name or name == "path":
            raise ConfigError(
                f"{shown(word)}: expected dataset.KEY=VALUE, as in dataset.label=category; other keys are given to kdcli distill, or written into the file"
            )
        try:
            keys[name] = yaml.safe_load(value) if name not in CHOSEN_BY or value == "null" else value
        except yaml.YAMLError:
            raise ConfigError(f"{shown(word)}: it is not YAML; put the value into quotes") from None
    return keys


def described(inspection: Inspection) -> Iterator[str]:
    """Yield what was found, in a few lines."""
    yield f"{inspection.keys['path']}: {inspection.reading}"
    yield (
        f"{inspection.rows:,} rows"
        if inspection.is_whole
        else f"more than {SAMPLE:,} rows, of which the first were looked at"
    )
    columns = [f"{key} = {value}" for key, value in inspection.keys.items() if key in CHOSEN_BY[1:] and value]
    yield f"task: {inspection.task}" + (f" ({', '.join(columns)})" if columns else "")
    if inspection.unread:
        yield f"columns that are not read: {listed(inspection.unread)}"
    if inspection.texts and "text_pair" in spec_of(inspection.task).reads - inspection.keys.keys():
        yield f"if a row has two texts, name the second one: dataset.text_pair={inspection.texts[0]}"
    if inspection.labels:
        yield f"labels: {_labels(inspection.labels)}"
    if inspection.problem:
        yield f"some rows cannot be read and are dropped (dataset.bad_rows): {inspection.problem}"


def _labels(labels: Mapping[str, int]) -> str:
    most = sorted(labels.items(), key=lambda item: -item[1])
    names = [f"{name} {rows:,}" for name, rows in most[:MOST_LABELS]]
    return ", ".join(names) + (f" and {len(most) - len(names):,} more" if len(most) > len(names) else "")


def _lines(inspection: Inspection, with_schema: bool) -> Iterator[str]:
    """Yield the lines of the config."""
    if with_schema:
        yield f"# yaml-language-server: $schema={SCHEMA.name}"
    yield f"# Written by kdcli init for {inspection.keys['path']}. Its keys are those of the command line: typed ones replace them."
    yield "# `kdcli check FILE` reports what a run does and costs, and `kdcli distill FILE` starts it."
    yield "# `kdcli keys KEY` explains a key, and `kdcli list GROUP` shows the options of teacher, student, loss, hardware …"
    yield "# Relative paths are relative to the folder in which kdcli is started."
    yield ""
    yield from _dataset(inspection)
    yield ""
    yield from _models(inspection)
    yield ""
    yield "# hydra.run.dir: runs/NAME  # the run directory, which --out gives too; without it each run has a new one with its time"


def _value(value: Any) -> str:
    """Return a value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**9).strip()
    return text.removesuffix("...").strip()


def _dataset(inspection: Inspection) -> Iterator[str]:
    """Yield the lines of the data set."""
    spec = spec_of(inspection.task)
    keys = dict(inspection.keys)
    notes = {
        "path": str(inspection.reading),
        "bad_rows": "rows that cannot be read are dropped and counted",
        "split": "the column with the split of each row; with none, rows are split by a hash",
    }
    if inspection.labels:
        notes["label"] = notes["tags"] = f"labels: {_labels(inspection.labels)}"
    if inspection.reading.guess is not None and not inspection.reading.guess.certain:
        keys.setdefault("encoding", inspection.reading.encoding)
        notes["encoding"] = "guessed from the bytes; correct it if letters are wrong"
    yield f"dataset:  # {inspection.task}"
    for key, value in keys.items():
        yield f"  {key}: {_value(value)}" + (f"  # {' '.join(notes[key].split())}" if key in notes else "")
    if inspection.unread:
        yield f"  # columns that are not read: {' '.join(listed(inspection.unread).split())}"
    if keys.get("label", "") is None and "max_length" not in keys:
        yield "  max_length: 256  # documents are packed into rows of so many tokens"
    elif "max_length" not in keys:
        needed = inspection.length / CHARACTERS + MARGIN
        proposed = next((each for each in LENGTHS if each >= needed), LENGTHS[-1])
        length = min(proposed, spec.longest_proposed)
        yield f"  max_length: {length}  # tokens of a row; 95 % of the rows have at most {inspection.length:,} characters"
    yield from (f"  {line}" for line in spec.proposed_data(keys))
    if "split" not in keys:
        yield "  # validation_size: 0.1  # split off the rows; `validation` and `test` name files of their own"
    yield "  # limit: 2000  # training rows, for a first try"


def _models(inspection: Inspection) -> Iterator[str]:
    """Yield the lines of teacher, student and device."""
    yield from spec_of(inspection.task).proposed_models(inspection.keys)
    yield "# trainer.epochs: 3  # without it, training ends when the validation curve is flat"
    yield "# hardware.budget.max_bytes: 20000000  # what an exported file may cost; a miss is exit code 3"
