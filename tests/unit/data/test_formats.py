"""Data files as spreadsheets, pandas, R, Spark and datasets write them: read without a key, or refused with the key that helps.

The tables of docs/formats.md list these cases by the same names.
"""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import io
import json
import lzma
import os
import re
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import pandas
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
import zstandard
from support.commands import naming, require_words
from support.pages import table
from support.tiny import sentences

from kdcli.config.dataset import Dataset
from kdcli.data.dataset import Data, load
from kdcli.data.encodings import guessed, is_damaged_utf8
from kdcli.data.inspection import inspect
from kdcli.data.reading import Reading
from kdcli.data.splits import SPLITS
from kdcli.data.streams import DataFile
from kdcli.errors import DataError
from kdcli.tasks.rows import IGNORE

ROWS = sentences(60)
FRAME = pandas.DataFrame(ROWS, columns=["text", "label"])
OBJECTS = [{"text": text, "label": label} for text, label in ROWS]
LINES = "".join(f"{json.dumps(row)}\n" for row in OBJECTS)
PLAIN = "text,label\n" + "".join(f"{text},{label}\n" for text, label in ROWS)
Write = Callable[[Path], Path]


def split_column(name: str, *values: str) -> str:
    """A csv file with a column of splits: 40, 10 and 10 rows have one of three values."""
    rows = (f"{text},{label},{values[(at > 39) + (at > 49)]}\n" for at, (text, label) in enumerate(ROWS))
    return f"text,label,{name}\n" + "".join(rows)


def file(name: str, content: str | bytes, encoding: str = "utf-8") -> Write:
    """What writes a file and returns its path."""

    def write(folder: Path) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
        return path

    return write


def frame(name: str, **keys: Any) -> Write:
    """What writes the rows with pandas."""

    def write(folder: Path) -> Path:
        method = FRAME.to_json if "orient" in keys else FRAME.to_csv
        method(folder / name, **keys)
        return folder / name

    return write


def files(**contents: str | bytes) -> Write:
    """What writes a folder with files; __ in a name is a slash, _ a dot."""

    def write(folder: Path) -> Path:
        for name, content in contents.items():
            file(name.replace("__", "/").replace("_", "."), content)(folder / "data")
        return folder / "data"

    return write


def rows(form: str, start: str = "text,label\n") -> str:
    return start + "".join(
        form.format(text=text, label=label, number=number) for number, (text, label) in enumerate(ROWS, 1)
    )


def part(begin: int, end: int) -> str:
    return "text,label\n" + "".join(f"{text},{label}\n" for text, label in ROWS[begin:end])


def zipped(*names: str) -> bytes:
    """A zip archive of files with the rows."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, PLAIN)
    return stream.getvalue()


def tar() -> bytes:
    """An archive with one file."""
    with io.BytesIO() as stream:
        with tarfile.open(fileobj=stream, mode="w:gz") as archive:
            entry = tarfile.TarInfo("a.csv")
            entry.size = len(PLAIN)
            archive.addfile(entry, io.BytesIO(PLAIN.encode()))
        return stream.getvalue()


def class_folders(suffix: str, *splits: str) -> Write:
    """A text in each file, in folders of classes, as aclImdb and 20 Newsgroups have them, with a list of addresses beside them."""

    def write(folder: Path) -> Path:
        for number, (text, label) in enumerate(ROWS):
            path = folder / (splits[number % len(splits)] if splits else "") / label / f"{number}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        (folder / splits[0] if splits else folder).joinpath(f"addresses{suffix}").write_text("nowhere\n")
        return folder

    return write


def labelled(folder: Path) -> datasets.Dataset:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    columns = {"text": list(FRAME["text"]), "label": list(FRAME["label"])}
    return datasets.Dataset.from_dict(columns, features=features)


def saved(folder: Path) -> Path:
    labelled(folder).save_to_disk(folder / "saved", num_shards=3)
    return folder / "saved"


def saved_splits(folder: Path) -> Path:
    whole = labelled(folder)
    parts = {
        "train": whole.select(range(40)),
        "valid": whole.select(range(40, 50)),
        "test": whole.select(range(50, 60)),
    }
    datasets.DatasetDict(parts).save_to_disk(folder / "saved")
    return folder / "saved"


def repository(folder: Path) -> Path:
    labelled(folder).to_parquet(folder / "hub" / "data" / "train-00000-of-00001.parquet")
    (folder / "hub" / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n---\n"
    )
    return folder / "hub"


def repository_of_splits(folder: Path) -> Path:
    whole, names = labelled(folder), ("train", "validation", "test")
    for name, rows_of in zip(names, (range(40), range(40, 50), range(50, 60)), strict=True):
        whole.select(rows_of).to_parquet(folder / "hub" / "data" / f"{name}-00000-of-00001.parquet")
    files = "".join(f"  - split: {name}\n    path: data/{name}-*\n" for name in names)
    (folder / "hub" / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n"
    )
    return folder / "hub"


def folder_of_splits(folder: Path) -> Path:
    return files(train_csv=part(0, 40), dev_csv=part(40, 50), test_csv=part(50, 60))(folder)


def feather(folder: Path) -> Path:
    pyarrow.feather.write_feather(pyarrow.Table.from_pandas(FRAME), folder / "a.feather")
    return folder / "a.feather"


def parquet(folder: Path) -> Path:
    labelled(folder).to_parquet(folder / "a.parquet")
    return folder / "a.parquet"


def parquet_bytes(folder: Path) -> Path:
    """Columns without the mark of text, as Hive and Impala write them."""
    columns = {
        name: pyarrow.array([value.encode() for value in FRAME[name]], pyarrow.binary())
        for name in FRAME.columns
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "a.parquet")
    return folder / "a.parquet"


def shards(folder: Path) -> Path:
    for shard in range(4):
        labelled(folder).shard(4, shard).to_parquet(folder / f"train-{shard:05}-of-00004.parquet")
    return folder


def hive(folder: Path) -> Path:
    """What `write.partitionBy("label").parquet(…)` of Spark leaves."""
    for label, own in FRAME.groupby("label"):
        for number in range(2):
            path = folder / f"label={label}" / f"part-{number}.snappy.parquet"
            path.parent.mkdir(exist_ok=True)
            own[["text"]][number::2].to_parquet(path)
    (folder / "_SUCCESS").touch()
    return folder


def texts_of(label: str, start: int = 0, step: int = 1) -> str:
    """The lines of the texts with a label."""
    return "\n".join([text for text, own in ROWS if own == label][start::step]) + "\n"


READ: dict[str, tuple[Write, dict[str, Any]]] = {
    "commas, with a header": (file("a.csv", PLAIN), {}),
    "semicolons (Excel)": (frame("a.csv", sep=";", index=False), {}),
    "a first line sep=;": (file("a.csv", "sep=;\r\n" + rows("{text};{label}\r\n", "text;label\r\n")), {}),
    "tabs, in a file of any name": (file("a.txt", rows("{text}\t{label}\n", "text\tlabel\n")), {}),
    "vertical bars": (frame("a.csv", sep="|", index=False), {}),
    "a suffix in capitals (.TSV)": (file("a.TSV", rows("{text}\t{label}\n", "text\tlabel\n")), {}),
    "a space after each comma": (file("a.csv", rows('"{text}", {label}\n', "text, label\n")), {}),
    "a delimiter after the last field": (file("a.csv", rows("{text},{label},\n")), {}),
    "blank lines, and rows of empty fields": (file("a.csv", "\n\n" + rows("{text},{label}\n\n") + ",\n"), {}),
    "line ends of CR": (file("a.csv", PLAIN.replace("\n", "\r")), {}),
    "an index without a name (pandas)": (frame("a.csv"), {}),
    "row names without a column (R)": (
        file("a.csv", rows('"{number}","{text}","{label}"\n', '"text","label"\n')),
        {},
    ),
    "every field quoted": (frame("a.csv", index=False, quoting=csv.QUOTE_ALL), {}),
    "every field quoted, between tabs": (frame("a.tsv", index=False, sep="\t", quoting=csv.QUOTE_ALL), {}),
    "single quotes around fields": (file("a.csv", rows("'{text}','{label}'\n", "'text','label'\n")), {}),
    "lines above the header": (file("a.csv", "Export of 1 May\n\n" + PLAIN), {}),
    "a header that begins with #": (file("a.tsv", rows("{text}\t{label}\n", "#text\tlabel\n")), {}),
    "a header of whose later names some begin with # (MRPC)": (
        file("a.tsv", rows("{label}\t{text}\n", "#label\t#1 String\n")),
        {"text": "#1 String"},
    ),
    "joined files, the header repeated": (file("a.csv", part(0, 30) + part(30, 60)), {}),
    "no header, with dataset.columns": (
        file("a.tsv", rows("{label}\t{text}\n", "")),
        {"columns": ["label", "text"]},
    ),
    "last fields that some rows lack": (
        file("a.csv", rows("{text},{label},x\n", "text,label,note\n").replace(",x\n", "\n", 5)),
        {},
    ),
    "UTF-8 with a byte order mark": (file("a.csv", PLAIN, "utf-8-sig"), {}),
    "UTF-16 (Excel's Unicode text)": (file("a.txt", rows("{text}\t{label}\n", "text\tlabel\n"), "utf-16"), {}),
    "UTF-16 without a byte order mark": (file("a.csv", PLAIN, "utf-16-le"), {}),
    "JSON, an object a line (.jsonl, .ndjson)": (file("a.ndjson", LINES), {}),
    "JSON, an array with a comma behind its last item": (
        file("a.json", f"[{''.join(f'{json.dumps(row)},' for row in OBJECTS)}]"),
        {},
    ),
    "fastText (__label__good text)": (file("a.txt", rows("__label__{label} {text}\n", "")), {}),
    "JSON, one array": (file("a.json", json.dumps(OBJECTS, indent=1)), {}),
    "JSON, one array on one line": (file("a.jsonl", json.dumps(OBJECTS)), {}),
    "JSON, arrays of objects that follow each other": (file("a.json", "\n".join(json.dumps(part, indent=1) for part in (OBJECTS[:30], OBJECTS[30:]))), {}),
    "JSON, an array of objects a line": (file("a.json", f"{json.dumps(OBJECTS[:30])}\n{json.dumps(OBJECTS[30:])}\n"), {}),
    "JSON, objects that follow each other": (file("a.json", "\n".join(json.dumps(row, indent=1) for row in OBJECTS)), {}),
    "JSON, objects under one key": (file("a.json", json.dumps({"version": 1, "data": OBJECTS})), {}),
    "JSON, objects under one of several keys, with dataset.field": (
        file("a.json", json.dumps({"train": OBJECTS, "more": OBJECTS[:3]})),
        {"field": "train"},
    ),
    "JSON, columns as lists": (file("a.json", FRAME.to_json(orient="columns")), {}),
    "JSON of pandas: columns, index, split, table": (frame("a.json", orient="split"), {}),
    "JSON, arrays, with dataset.columns": (frame("a.json", orient="values"), {"columns": ["text", "label"]}),
    "JSON, arrays under a key, with dataset.columns": (
        file("a.json", json.dumps({"classes": ["bad", "good"], "rows": [list(row) for row in ROWS]})),
        {"columns": ["text", "label"]},
    ),
    "JSON lines in a file of another name": (file("a.txt", LINES), {}),
    "csv in a file .json": (file("a.json", PLAIN), {}),
    "parquet; the names of a class label are kept": (parquet, {}),
    "parquet, texts as bytes": (parquet_bytes, {}),
    "Arrow and feather files": (feather, {}),
    "a folder of shards": (shards, {}),
    "a pattern of files (data/*.csv)": (
        lambda folder: files(a_csv=part(0, 30), b_csv=part(30, 60))(folder) / "*.csv",
        {},
    ),
    "a folder for each class, a text a file": (class_folders(".txt"), {}),
    "a folder for each class, a text a file, by split, without suffixes": (
        class_folders("", "20news-train", "20news-test"),
        {},
    ),
    "a folder with train, dev and test": (
        files(train_csv=part(0, 40), dev_csv=part(40, 50), test_csv=part(50, 60)),
        {},
    ),
    "a folder of folders train, dev and test": (
        files(train__a_csv=part(0, 40), dev__a_csv=part(40, 50), test__a_csv=part(50, 60)),
        {},
    ),
    "a folder with train, test and the template of an answer": (
        files(train_csv=part(0, 50), test_csv=part(50, 60), sample_submission_csv="id,label\n1,bad\n2,good\n"),
        {},
    ),
    "a column of splits": (
        file("a.csv", split_column("split", "train", "dev", "test")),
        {},
    ),
    "a column of splits in capitals": (
        file("a.csv", split_column("Subset", "TRAIN", "VALIDATION", "TEST")),
        {},
    ),
    "a column of splits with other values": (
        file("a.csv", split_column("fold", "0", "1", "2")),
        {"split": "fold", "train": "0", "validation": "1", "test": "2"},
    ),
    "part-00000 of Spark": (
        lambda folder: files(**{"part-00000-a_csv": part(0, 30), "part-00001-a_csv": part(30, 60)})(folder),
        {},
    ),
    "folders that name the label, label=good/part-0.parquet (Hive, Spark)": (hive, {}),
    "folders that name the label and the split, split=test/label=good/a.csv": (
        files(**{
            f"split={split}__label={label}__a_csv": "text\n" + texts_of(label, start, 2)
            for start, split in enumerate(("train", "test")) for label in ("bad", "good")
        }),
        {},
    ),
    "save_to_disk, a data set": (saved, {}),
    "save_to_disk, a data set with splits": (saved_splits, {}),
    "a repository of the hub on disk": (repository, {}),
    "a folder that dataset=hub names": (repository, {"format": "hub"}),
    "a byte order mark and a first line sep=;": (file("a.csv", "\ufeffsep=;\n" + rows("{text};{label}\n", "text;label\n")), {}),
    "gzip": (file("a.csv.gz", gzip.compress(PLAIN.encode())), {}),
    "bzip2": (file("a.jsonl.bz2", bz2.compress(LINES.encode())), {}),
    "xz": (file("a.csv.xz", lzma.compress(PLAIN.encode())), {}),
    "Zstandard": (file("a.jsonl.zst", zstandard.compress(LINES.encode())), {}),
    "zip with one file": (file("a.zip", zipped("a.csv")), {}),
    "zip with one file and those of macOS or Windows": (
        file("a.zip", zipped("data/a.csv", "data/.DS_Store", "data/__MACOSX/._a.csv", "__MACOSX/data/._a.csv", "Thumbs.db")),
        {},
    ),
}  # fmt: skip
OTHERS: dict[str, tuple[Write, str, str]] = {
    "another encoding, such as Windows-1252": (
        file("a.csv", rows("{text} café – naïve,{label}\n"), "cp1252"),
        "cp1252",
        " café – naïve",
    ),
    "doubled quotes, commas and line breaks in quotes": (
        file("a.csv", rows('"{text} ""so"", yes\nno",{label}\n')),
        "quoted",
        ' "so", yes no',
    ),
    "quotes escaped by a backslash": (
        file("a.csv", rows('"{text} \\"so\\", yes",{label}\n')),
        "escaped by backslash",
        ' "so", yes',
    ),
    "quoted fields between tabs (pandas, Excel)": (
        file("a.tsv", rows('"{text} ""so"""\t{label}\n', "text\tlabel\n")),
        "quoted",
        ' "so"',
    ),
    "quotes that are text, between tabs": (
        file("a.tsv", rows('{text} "so\t{label}\n', "text\tlabel\n")),
        "quotes are text",
        ' "so',
    ),
    "quotes around fields, and others within that are not doubled": (
        file("a.csv", rows('"{text} "so" yes",{label}\n')),
        "undoubled within",
        ' "so" yes',
    ),
    "single quotes around texts alone": (
        file("a.csv", rows("'{text}, so',{label}\n")),
        "' around fields",
        ", so",
    ),
}
"""Files whose texts end with more than the rows: what writes them, what the run says of them, the end of each text."""
REFUSED: dict[str, tuple[Write, tuple[str, ...]]] = {
    "no header": (file("a.csv", rows("{label},{text}\n", "")), ("a.csv", "dataset.columns=[label,text]")),
    "a header beside dataset.columns": (
        file("a.csv", PLAIN.replace("text,label", "Text, LABEL", 1)),
        ("a.csv", "line 1", "Text", "LABEL", "remove dataset.columns"),
    ),
    "a header of other names beside dataset.columns": (
        file("a.csv", PLAIN.replace("text,label", "review,sentiment", 1)),
        ("a.csv", "line 1", "review, sentiment", "remove dataset.columns"),
    ),
    "JSON, arrays below one of names, beside dataset.columns": (
        file("a.json", json.dumps([["Text", "Label"], *map(list, ROWS)])),
        ("a.json", "Text, Label", "remove dataset.columns"),
    ),
    "words with tags": (
        file("a.txt", "".join(f"{text.replace(' ', ' O' + chr(10))} O\n\n" for text, _ in ROWS)),
        ("a.txt", "'text'", "dataset=conll"),
    ),
    "columns of other names": (
        file("a.csv", PLAIN.replace("text,", "review,", 1)),
        ("a.csv", "review", "dataset.text="),
    ),
    "a row with too many or too few fields": (
        file("a.csv", PLAIN + "well, yes, no,bad\n"),
        (
            "a.csv",
            "line 62",
            "4 fields",
            "header",
            "truncated",
            "dataset.delimiter=",
            "dataset.quote=",
            "dataset.bad_rows=drop",
        ),
    ),
    "a quote that does not close, in the last of many quoted fields": (
        file("a.csv", PLAIN + rows('"{text}, yes",{label}\n', "") + '"open,bad\n'),
        ("in/a.csv", "line 122", "stray quote", "dataset.quote=", "dataset.bad_rows=drop"),
    ),
    "a quote that does not close, between tabs": (
        file("a.tsv", PLAIN.replace(",", "\t") + rows('"{text} ""so"""\t{label}\n', "") + '"open\tbad\n'),
        ("in/a.tsv", "line 122", "stray quote", "dataset.quote=", "dataset.bad_rows=drop"),
    ),
    "two colons between the fields": (
        file("a.txt", rows("{text}::{label}\n", "text::label\n")),
        ("a.txt", "'text'", "::", "write tabs"),
    ),
    "an empty object in the first line": (
        file("a.jsonl", "{}\n" + LINES),
        ("in/a.jsonl", "line 1", "text", "dataset.text="),
    ),
    "an empty text of several lines, below a title": (
        file("a.csv", "A title\n\n" + PLAIN + '" \n",bad\n'),
        ("in/a.csv", "lines 64 to 65", "the text", "empty", "dataset.bad_rows=drop"),
    ),
    "a line that holds NUL": (
        file("a.csv", PLAIN + "an odd\0 film,bad\n"),
        ("a.csv", "line 62", "NUL", "dataset.bad_rows=drop"),
    ),
    "a line that is no JSON": (
        file("a.jsonl", LINES + '{"text": "cut'),
        ("a.jsonl", "line 61", "not JSON", "dataset.bad_rows=drop"),
    ),
    "JSON below a comment": (
        file("a.json", f"// a comment\n{json.dumps(OBJECTS, indent=1)}"),
        ("a.json", "line 1", "not JSON", "remove", "dataset.bad_rows=drop"),
    ),
    "JSON, an object of texts with their labels": (
        file("a.json", json.dumps(dict(ROWS))),
        ("a.json", "60 keys", 'write an object a row: {"text": …, "label": …}'),
    ),
    "JSON, an object of labels with their texts": (
        file("a.json", json.dumps({each: texts_of(each).split("\n") for each in ("bad", "good")})),
        ("a.json", "2 keys", 'write an object a row: {"text": …, "label": …}'),
    ),
    "an object without the key of its label": (
        file("a.jsonl", LINES + '{"text": "some text"}\n'),
        ("a.jsonl", "line 61", "no column 'label'", "'label': null", "dataset.bad_rows=drop"),
    ),
    "a text of JSON that is a number, below blank lines": (
        file("a.jsonl", LINES.replace("\n", "\n\n", 2) + '{"text": 5, "label": "bad"}\n'),
        ("in/a.jsonl", "line 63", "the text is 5", "dataset.bad_rows=drop"),
    ),
    "an empty text": (
        file("a.csv", PLAIN.replace("\n", "\n\n", 3) + " ,bad\n"),
        ("in/a.csv", "line 65", "the text", "empty", "dataset.bad_rows=drop"),
    ),
    "lines that are not UTF-8 in a file that is": (
        file("a.csv", PLAIN.encode() + "é,good\nü,bad\n".encode() + b"caf\xe9,good\n"),
        ("a.csv", "line 64", "utf-8", "dataset.bad_rows=drop"),
    ),
    "an encoding that is none of those": (
        file("a.csv", PLAIN.encode() + b"a\xf7b\xd7c\x9dd\xac,bad\n"),
        ("a.csv", "dataset.encoding="),
    ),
    "JSON with rows under several keys": (
        file("a.json", json.dumps({"one": OBJECTS[:2], "two": OBJECTS})),
        ("a.json", "one", "two", "dataset.field=two"),
    ),
    "JSON, arrays without names under a key": (
        file("a.json", json.dumps({"classes": ["bad", "good"], "annotations": [list(row) for row in ROWS]})),
        ("a.json", "annotations", "2 items", "dataset.field=annotations", "dataset.columns=[text,label]"),
    ),
    "JSON, arrays without names": (frame("a.json", orient="values"), ("a.json", "dataset.columns=[…]")),
    "a folder with several formats": (
        files(a_csv=PLAIN, a_jsonl=LINES),
        ("*.csv", "*.jsonl", "dataset.path="),
    ),
    "a folder with a split in another format": (
        files(train_csv=PLAIN, test_jsonl=LINES),
        ("*.csv", "*.jsonl", "dataset.path=", "data/train.csv dataset.test=", "data/test.jsonl"),
    ),
    "zip with several files": (file("a.zip", zipped("a.csv", "b.csv")), ("a.zip", "dataset.path=")),
    "a compressed file that is cut off": (
        file("a.csv.gz", gzip.compress(PLAIN.encode())[:-20]),
        ("a.csv.gz", "not a complete gz", "write it anew"),
    ),
    "Excel's .xlsx": (
        file("a.xlsx", zipped("[Content_Types].xml", "xl/workbook.xml")),
        ("a.xlsx", "CSV (UTF-8)"),
    ),
    "a document of OpenOffice (.ods)": (
        file("a.ods", zipped("mimetype", "content.xml")),
        ("a.ods", "CSV (UTF-8)"),
    ),
    "no header, and spaces between label and text": (
        file("a.txt", rows("DESC:{label} {text} again\n", "")),
        ("a.txt", "tabs", "dataset.delimiter", "dataset.columns=[text,label]"),
    ),
    "dictionaries of Python": (
        file("a.jsonl", "".join(f"{row}\n" for row in OBJECTS)),
        ("a.jsonl", "line 1", "json.dumps"),
    ),
    "a folder for each class, with tables": (
        files(bad__a_csv="text\n" + texts_of("bad"), good__a_csv="text\n" + texts_of("good")),
        ("a.csv", "'label'", "rename", "label=bad", "dataset.label="),
    ),
    "folders that name another column (class=good)": (
        files(
            **{
                "class=bad__a_csv": "text\n" + texts_of("bad"),
                "class=good__a_csv": "text\n" + texts_of("good"),
            }
        ),
        ("a.csv", "'label'", "dataset.label=class"),
    ),
    "an archive (tar, 7z, rar)": (file("a.tar.gz", tar()), ("a.tar.gz", "unpack it", "dataset.path")),
    "XML": (
        file("a.xml", "<rows><row>" + rows("<text>{text}</text><label>{label}</label>", "")),
        ("a.xml", "XML", "csv or jsonl"),
    ),
    "ARFF of Weka": (file("a.arff", "@RELATION films\n@DATA\n'a film',good\n"), ("a.arff", "ARFF", "csv")),
    "a pickle": (file("a.pkl", b"\x80\x04\x95" + bytes(90)), ("a.pkl", "jsonl", "parquet")),
    "a pointer of Git LFS": (
        file("a.csv", "version https://git-lfs.github.com/spec/v1\n"),
        ("a.csv", "git lfs pull"),
    ),
    "a web page": (file("a.csv", "<!DOCTYPE html><html></html>"), ("a.csv", "download the file")),
    "a table of Markdown": (
        file("a.md", rows("| {text} | {label} |\n", "| text | label |\n|------|:-----:|\n")),
        ("a.md", "printed table", "csv or jsonl"),
    ),
    "a table of a database's shell": (
        file("a.txt", rows(" {text} | {label}\n", " text | label\n------+-------\n")),
        ("a.txt", "printed table", "csv or jsonl"),
    ),
    "a header with spaces between its names": (
        file("a.csv", rows("{label} {text}\n", "label text\n")),
        ("a.csv", "label text", "tabs or commas", "dataset.delimiter="),
    ),
    "a folder of brat": (
        files(a_txt="Peter\n", a_ann="T1\tPER 0 5\tPeter\n"),
        ("brat", "*.ann", "anntoconll.py", "dataset=conll", "dataset.path="),
    ),
    "a TSV of WebAnno": (
        file("a.tsv", "#FORMAT=WebAnno TSV 3.2\n\n\n#Text=Peter\n1-1\t0-5\tPeter\tPER\n"),
        ("a.tsv", "WebAnno", "CoNLL 2002", "dataset=conll"),
    ),
    "a parquet file with dataset.columns": (parquet, ("leave dataset.columns out",)),
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def read(path: Path, recorded: list[Reading] | None = None, **keys: Any) -> Data:
    return load(Dataset.model_validate({"path": str(path), **keys}), recorded or [])


def texts(data: Data) -> dict[str, str]:
    """The label of each text."""
    return {row["text"]: data.labels[row["label"]] for split in SPLITS for row in data[split]}


@pytest.mark.parametrize("name", READ)
def test_files_that_are_read(tmp_path: Path, name: str) -> None:
    """A stranger's file needs a key, is refused, or teaches other texts and labels than it holds."""
    write, keys = READ[name]
    (tmp_path / "in").mkdir()
    data = read(write(tmp_path / "in"), **keys)
    assert texts(data) == dict(ROWS)
    assert data.labels == ["bad", "good"]


def rows_by(keys: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of all splits that a run reads by keys of `dataset`."""
    data = load(Dataset.model_validate(keys))
    return [row for split in SPLITS for row in data[split]]


INIT_EXCUSED = {
    "folders that name the label, label=good/part-0.parquet (Hive, Spark)": "the run of all files is proposed",
    "folders that name the label and the split, split=test/label=good/a.csv": "the same",
}
"""Files of which `kdcli init` writes no config, with the reason."""


@pytest.mark.parametrize("name", [*READ, *OTHERS])
def test_init_reads_files_as_a_run_does(tmp_path: Path, name: str) -> None:
    """A config of `kdcli init` by which the run reads other rows than the file holds, or classes of which half the name is a quote."""
    write, keys = READ[name] if name in READ else (OTHERS[name][0], {})
    end = OTHERS[name][2] if name in OTHERS else ""
    path = write(tmp_path)
    if name in INIT_EXCUSED:
        with pytest.raises(DataError, match=naming("kdcli distill", "dataset.label=")):
            inspect(str(path), keys)
        return
    inspection = inspect(str(path), keys)
    assert inspection.task == "classification"
    text, label = (inspection.keys.get(key, key) for key in ("text", "label"))
    assert {text, label} <= {"text", "label", *keys.values()} if "columns" not in keys else {"text", "label"}
    data = read(path, **{key: value for key, value in inspection.keys.items() if key != "path"})
    assert texts(data) == {f"{text}{end}": label for text, label in ROWS}


ROW_KEYS = {f"t{number}": row for number, row in enumerate(OBJECTS)}
INIT: dict[str, tuple[Write, dict[str, Any]]] = {
    "single quotes around fields of single words": (file("a.csv", "'text','label'\n" + "".join(f"'{text}','{label}'\n" for text, label in ROWS)), {}),
    "a field twice in the first row": (file("a.csv", "1,good,good\n" + rows("{number},{label},{text}\n", "")), {"columns": 3}),
    "an empty field in the first row": (file("a.tsv", "5\t\tgood\n" + rows("{number}\t{label}\t{text}\n", "")), {"columns": 3}),
    "no header, a column with one value": (file("a.tsv", rows("gj04\t{label}\t\t{text}\n", "")), {"columns": 4, "label": "column2"}),
    "columns without names at the end": (file("a.csv", rows("{label},{text},,,\n", "v1,v2,,,\n")), {"label": "v1", "text": "v2"}),
    "titles padded with delimiters (Excel)": (file("a.csv", "A report;;\n;;\n" + rows("{number};{text};{label}\n", "id;text;label\n")), {"text": "text", "label": "label"}),
    "JSON of pandas, index": (frame("a.json", orient="index"), {"text": "text", "label": "label"}),
    "JSON of pandas, columns": (frame("a.json", orient="columns"), {"text": "text", "label": "label"}),
    "JSON, rows by their ids": (file("a.json", json.dumps(ROW_KEYS)), {"text": "text", "label": "label"}),
    "JSON, rows below two keys": (file("a.json", json.dumps({"a": {"b": OBJECTS}})), {"field": "a.b", "label": "label"}),
    "JSON, a row of arrays twice": (file("a.json", json.dumps([["good", "good", "a long text of several words"], *([label, f"id {number}", text] for number, (text, label) in enumerate(ROWS))])), {"columns": 3}),
}  # fmt: skip


@pytest.mark.parametrize("name", INIT)
def test_the_keys_that_init_finds(tmp_path: Path, name: str) -> None:
    """Columns that `kdcli init` counts or orients otherwise than the run, so that its config reads nothing, or the rows as columns."""
    write, expected = INIT[name]
    inspection = inspect(str(write(tmp_path)), {})
    assert inspection.task == "classification"
    width = expected.get("columns")
    named = {"columns": [f"column{number}" for number in range(1, width + 1)]} if width else {}
    assert {key: inspection.keys[key] for key in expected} == expected | named
    found = {row["text"] for row in rows_by(inspection.keys)}
    assert {text for text, _ in ROWS} <= found


INIT_REFUSED: dict[str, tuple[Write, tuple[str, ...]]] = {
    "JSON of pandas, table": (frame("a.json", orient="table"), ("dataset.field=data",)),
    "JSON, a key for each split": (file("a.json", json.dumps({"train": OBJECTS, "test": OBJECTS[:9]})), ("train, test", "dataset.field=train")),
    "JSON, arrays under a key for each split": (
        file("a.json", json.dumps({"train": [*map(list, ROWS)], "test": [list(row) for row in ROWS[:9]]})),
        ("'train', 'test'", "dataset.field=train", "dataset.columns=[column1,column2]"),
    ),
    "two columns of one name": (file("a.csv", rows("{text},{label},{label}\n", "text,label,label\n")), ("2 columns 'label'", "dataset.label=null")),
    "two colons between the fields": (file("a.dat", rows("{text}::{label}\n", "text::label\n")), ("'::'", "2 fields", "dataset.delimiter")),
    "many lines above the header": (
        file("a.csv", "".join(f"note {number}\n" for number in range(25)) + rows("{text},{label}\n" * 4)),
        ("','", "2 fields", "dataset.columns="),
    ),
    "spans of which most cannot be read": (
        file("a.jsonl", "".join(json.dumps({"text": text, "entities": [{"text": "a", "label": "X"}] * (number % 4 > 0)}) + "\n" for number, (text, _) in enumerate(ROWS))),
        ("line 2", "45 of 60 rows", "dataset.bad_rows=drop"),
    ),
    "an object of texts with their labels": (file("a.json", json.dumps(dict(ROWS))), ("60 keys", "an object a row")),
    "keys of a table for a text": (file("a.txt", "one two\n\nthree\n"), ("dataset.columns",)),
}  # fmt: skip


@pytest.mark.parametrize("name", INIT_REFUSED)
def test_what_init_refuses(tmp_path: Path, name: str) -> None:
    """A language model of whole lines, or a tagger of the seven rows that can be read, in place of the key that is needed."""
    write, words = INIT_REFUSED[name]
    keys = {"columns": ["one", "two"]} if name.startswith("keys") else {}
    with pytest.raises(DataError, match=naming(*words)):
        inspect(str(write(tmp_path)), keys)


def test_folders_of_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Reviews without a class are a third one; an empty file, or one in another encoding, is not named; or a text of several lines is several rows."""
    folder = class_folders(".txt", "train", "test")(tmp_path / "in")
    (folder / "train" / "unsup").mkdir()
    (folder / "train" / "unsup" / "0.txt").write_text("nobody knows\n")
    (folder / "train" / "good" / "café.txt").write_bytes("un café\n\nand another line".encode("cp1252"))
    data = read(folder)
    assert data.labels == ["bad", "good"]
    assert {row["text"]: row["label"] for row in data["train"]}["nobody knows"] == IGNORE
    assert "un café and another line" in [row["text"] for split in SPLITS for row in data[split]]
    require_words(caplog.text, "read 1 file", "cp1252")
    (folder / "train" / "bad" / "empty.txt").write_text(" \n")
    with pytest.raises(DataError, match=naming("empty.txt", "dataset.bad_rows=drop")):
        read(folder)


@pytest.mark.parametrize("line", ["{text}\t{label}", "word O"])
def test_folders_of_tables_are_no_classes(tmp_path: Path, line: str) -> None:
    """Tables by year, or words with tags by their source: each file is one text, and the years are the classes."""
    for number, (text, label) in enumerate(ROWS[:12]):
        path = tmp_path / ("2023" if number % 2 else "2024") / f"{number}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join([line.format(text=text, label=label)] * 5))
    with contextlib.suppress(DataError):
        assert read(tmp_path).labels != ["2023", "2024"]


def test_labels_that_contradict_each_other_everywhere(tmp_path: Path) -> None:
    """An index error, because no row is left."""
    write = file(
        "a.csv",
        "text,label\n" + "".join(f"text {number},{label}\n" for number in range(20) for label in ("a", "b")),
    )
    with pytest.raises(DataError, match=naming("no row of train", "dataset.duplicates=soft")):
        read(write(tmp_path))


@pytest.mark.parametrize("write", [saved_splits, repository_of_splits, folder_of_splits])
def test_the_splits_of_a_folder_are_kept(tmp_path: Path, write: Write) -> None:
    """Rows that their author kept for the test are trained on."""
    data = read(write(tmp_path))
    parts = {"train": ROWS[:40], "validation": ROWS[40:50], "test": ROWS[50:]}
    for split, own in parts.items():
        assert {*data[split]["text"]} == {text for text, _ in own}, split


@pytest.mark.parametrize("name", OTHERS)
def test_texts_are_those_of_the_file(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Marks of the file format are learnt as text, letters become others, and no line says what was decided."""
    write, decided, end = OTHERS[name]
    caplog.set_level("INFO")
    assert texts(read(write(tmp_path))) == {f"{text}{end}": label for text, label in ROWS}
    [line] = [each.getMessage() for each in caplog.records if each.getMessage().startswith("read ")]
    require_words(line, decided)


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_are_refused(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """A message about something else, or one without the key that helps."""
    write, words = REFUSED[name]
    (tmp_path / "in").mkdir()
    is_named = {"leave dataset.columns out", "remove dataset.columns"} & {*words}
    keys = {"columns": ["text", "label"]} if is_named else {}
    with pytest.raises(DataError, match=naming(*words)):
        read(write(tmp_path / "in"), **keys)
    if "dataset.bad_rows=drop" in words:
        data = read(next((tmp_path / "in").iterdir()), bad_rows="drop")
        assert dict(ROWS).items() <= texts(data).items()
        assert data.dropped["cannot be read"] == 1
        assert "utf-8-sig" not in caplog.text  # the codec by which a byte order mark is skipped


@pytest.mark.parametrize(
    ("start", "form", "proposed"),
    [
        ("v1,v2,,,\n", "{label},{text},,,\n", None),
        ("kind,note,kind\n", "{label},{text},{label}\n", None),
        ("", "gj04\t{label}\t\t{text}\n", "[column1,label,column3,text]"),
        ("", "en,{label},{text} and so on for some words\n", "[column1,label,text]"),
    ],
)
def test_columns_are_proposed_for_rows_alone(
    start: str, form: str, proposed: str | None, tmp_path: Path
) -> None:
    """Names to paste that take the labels for the texts, the header for a row, or a column of one value for the labels."""
    with pytest.raises(DataError, match=naming("'text'", "dataset.text=")) as caught:
        read(file("a.csv", rows(form, start))(tmp_path))
    assert ("dataset.columns" in caught.value.message) == (proposed is not None)
    require_words(caught.value.message, *([f"dataset.columns={proposed}"] if proposed else []))


@pytest.mark.parametrize("first", ["very good,mixed", "Well,good", "a film of 1999,Mixed", "good film,bad"])
def test_first_rows_that_are_no_headers(first: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A row of few words that is refused as a header, or one that may be a header and is learned as a class without a word."""
    path = file("a.csv", f"{first}\n" + rows("{text},{label}\n", ""))(tmp_path)
    data = read(path, columns=["text", "label"])
    assert texts(data) == dict([first.split(","), *ROWS])
    assert ("dataset.columns" in caplog.text) == (first == "very good,mixed")


def test_a_header_of_lines_of_arrays(tmp_path: Path) -> None:
    """The names of columns in the first line of arrays that are learned as a text and its label."""
    lines_of_arrays = "".join(json.dumps(row) + "\n" for row in [("TEXT", "label"), *ROWS])
    with pytest.raises(DataError, match=naming("a.jsonl", "TEXT", "remove dataset.columns")):
        read(file("a.jsonl", lines_of_arrays)(tmp_path), columns=["text", "label"])


@pytest.mark.parametrize("test", ["text\nsome text\n", "text,label\nsome text,-1\n"])
def test_a_test_file_without_labels_is_not_used(tmp_path: Path, test: str) -> None:
    """The folder of a competition is refused for its test file, or a student is scored on no rows."""
    data = read(files(train_csv=PLAIN, test_csv=test)(tmp_path), test_size=6)
    assert texts(data) == dict(ROWS)
    assert len(data["test"]) == 6


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_rows_stay_in_the_split_that_a_column_gives(
    suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A student that was trained on the rows which its author kept for the test."""
    splits = ["train", "dev", "test", "unsup", None]
    values = [splits[0 if at < 40 else 1 + (at % 4)] for at in range(60)]
    frame = FRAME.assign(split=values)
    path = tmp_path / f"a.{suffix}"
    {"csv": frame.to_csv, "jsonl": lambda path, **_: frame.to_json(path, orient="records", lines=True),
     "parquet": frame.to_parquet}[suffix](path, index=False)  # fmt: skip
    expected = {
        name: {text for (text, _), value in zip(ROWS, values, strict=True) if value == own}
        for name, own in (("train", "train"), ("validation", "dev"), ("test", "test"))
    }
    with caplog.at_level("INFO"):
        data = read(path)
    assert {split: set(data[split]["text"][:]) for split in SPLITS} == expected
    require_words(caplog.text, "'split'", "train 40", "10 rows dropped", "unsup", "dataset.split=none")
    assert data.dropped["in no split"] == 10
    ignored = read(path, split="none")
    assert texts(ignored) == dict(ROWS)
    other = tmp_path / "other.csv"
    other.write_text("text,label\na great film,good\nan awful film,bad\n")
    given = read(path, test=str(other), split="split")
    assert set(given["test"]["text"][:]) == {"a great film", "an awful film"}
    assert set(given["train"]["text"][:]) == expected["train"]


def test_a_word_a_row_with_a_column_of_splits(tmp_path: Path) -> None:
    """Sentences that are cut where the split changes, or that lose their words."""
    rows = [
        (number, word, "B-X" if word == "red" else "O", split)
        for number, split in enumerate(["train"] * 8 + ["test"] * 3 + ["dev"] * 3)
        for word in ("a", "red", f"house{number}")
    ]
    path = tmp_path / "a.csv"
    path.write_text("sentence,word,tag,split\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
    data = read(path, words="word", tags="tag")
    sizes = {split: sorted(map(len, data[split]["words"][:])) for split in SPLITS}
    assert sizes == {"train": [3] * 8, "validation": [3] * 3, "test": [3] * 3}


@pytest.mark.parametrize(
    ("name", "content", "split", "words"),
    [
        ("a.csv", PLAIN, "split", ("a.csv", "'split'", "text, label", "dataset.split")),
        (
            "a.csv",
            split_column("fold", "0", "1", "2"),
            "fold",
            ("0, 1, 2", "dataset.train=", "dataset.test="),
        ),
        (
            "a.txt",
            "__label__good a film\n__label__bad a film\n",
            "split",
            ("dataset.split", "no column of splits"),
        ),
    ],
)
def test_a_column_without_splits(
    name: str, content: str, split: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    """A column that is misspelt, whose values say nothing, or of a file without columns."""
    with pytest.raises(DataError, match=naming(*words)):
        read(file(name, content)(tmp_path), split=split)
    if split == "fold":
        assert texts(read(tmp_path / name)) == dict(ROWS)


def test_the_page_lists_these_files() -> None:
    """A page that promises a format which no test reads, or a remedy that no message has."""
    read_rows = table("formats.md", "Files that are read")
    assert read_rows.keys() == READ.keys() | OTHERS.keys() | PARALLEL.keys()
    refused = table("formats.md", "Files that are refused")
    assert refused.keys() == REFUSED.keys()
    for name, (_, words) in REFUSED.items():
        for key in re.findall(r"dataset\.[a-z_]+", refused[name]):
            assert key in " ".join(words), name


@pytest.mark.parametrize(
    ("ending", "pack", "pads"),
    [
        ("gz", gzip.compress, True),
        ("bz2", bz2.compress, True),
        ("xz", lzma.compress, False),
        ("zst", zstandard.compress, False),
    ],
)
def test_a_hole_behind_compressed_data_is_its_end(
    tmp_path: Path, ending: str, pack: Callable[[bytes], bytes], pads: bool
) -> None:
    """A file of which only the beginning was written is a sparse one: gzip reads its zeros one by one, for hours."""
    path = file(f"a.csv.{ending}", pack(PLAIN.encode()))(tmp_path)
    os.truncate(path, 2**36)
    if pads:
        assert DataFile.of(path).head() == PLAIN.encode()
        return
    with pytest.raises(DataError, match=naming(f"a.csv.{ending}", "complete")):
        DataFile.of(path).head()


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gz", "zst"])
def test_compressed_files_that_hold_far_more_than_their_size(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    """A file of some kilobytes fills the memory."""
    path = file("a.csv.gz", pack(PLAIN.encode() + b"x" * (2**26 + 1)))(tmp_path)
    with pytest.raises(DataError, match=naming("a.csv.gz", "times", "bytes")):
        read(path)


# ---- what was decided


def test_one_line_says_how_a_file_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A guess in silence; or four lines for four shards."""
    caplog.set_level("INFO")
    path = file("tickets.csv", rows("{number};{text} café;{label};;\n", "id;text;label;a;b\n"), "cp1252")(
        tmp_path
    )
    read(path)
    [record] = [each for each in caplog.records if each.getMessage().startswith("read ")]
    assert record.levelname == "WARNING"
    words = (str(path), "csv", "cp1252", "café", "';'", "quoted", "5 columns", "dataset.encoding=")
    require_words(record.getMessage(), *words)
    caplog.clear()
    (tmp_path / "shards").mkdir()
    read(shards(tmp_path / "shards"))
    [line] = [each.getMessage() for each in caplog.records if each.getMessage().startswith("read ")]
    require_words(line, "4 files", str(tmp_path / "shards"), "parquet")
    caplog.clear()
    read(files(a_csv=PLAIN, b_tsv=PLAIN.replace(",", "\t"))(tmp_path / "mixed"))
    lines = [each.getMessage() for each in caplog.records if each.getMessage().startswith("read ")]
    assert [line.partition(" of ")[0] for line in lines] == ["read 1 file"] * 2


@pytest.mark.parametrize(("above", "line"), [("A title\n\n\n", 4), ('sep=,\n\n"A title\nof two",\n', 5)])
def test_the_line_of_the_header(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, above: str, line: int
) -> None:
    """A line that counts rows without the blank ones, so that the user looks at another line of the file."""
    caplog.set_level("INFO")
    assert texts(read(file("a.csv", above + PLAIN)(tmp_path))) == dict(ROWS)
    assert f"header in line {line}," in caplog.text


def test_what_was_decided_is_read_so_again(tmp_path: Path) -> None:
    """A newer release guesses otherwise, and eval scores other texts than the run was trained on."""
    path = file("a.csv", rows("{text} café,{label}\n"), "cp1252")(tmp_path)
    first = read(path)
    records = [json.loads(json.dumps(reading.as_record())) for reading in first.readings]
    assert records[0]["encoding"] == "cp1252"
    records[0]["encoding"] = "cp1250"  # what an earlier release might have said
    earlier = [Reading.of_record(record) for record in records]
    path.write_bytes(path.read_bytes().replace("é".encode("cp1252"), "³".encode("cp1252")))
    assert all(text.endswith("cafł") for text in texts(read(path, earlier)))
    assert all(text.endswith("caf³") for text in texts(read(path, earlier, encoding="cp1252")))
    path.write_bytes(path.read_bytes().replace("³".encode("cp1252"), "é".encode("cp1252")) + b"\n")
    assert read(path, earlier).readings[0].encoding == "cp1252"  # it is another file


def test_quotes_that_are_text_by_the_config(tmp_path: Path) -> None:
    """Quotes that are removed although dataset.quote=none keeps them; or those of a text that begins and ends with a quotation."""
    path = file("a.csv", rows('"{text} "so" yes",{label}\n'))(tmp_path)
    assert all(text.startswith('"') for text in texts(read(path, quote="none")))
    path.write_text(rows('"{text}" or "so",{label}\n') + "plain words,good\n")
    assert sum(text.startswith('"') for text in texts(read(path))) == len(ROWS)


@pytest.mark.parametrize("form", ["{text},{label}\n", '"the {number}. of many: {text}",{label}\n'])
def test_shards_of_which_the_first_one_has_the_header(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, form: str
) -> None:
    """Pieces that `split` cuts are refused without dataset.columns, and with it; or their first rows are lost, also when a later command reads them."""
    lines = rows(form).splitlines(keepends=True)
    folder = files(a_csv="".join(lines[:31]), b_csv="".join(lines[31:]))(tmp_path)
    expected = texts(read(file("all.csv", "".join(lines))(tmp_path)))
    caplog.set_level("INFO")
    data = read(folder)
    assert len(expected) == len(ROWS)
    assert texts(data) == expected
    assert sum("no header" in each.getMessage() for each in caplog.records) == 1
    assert (
        texts(read(folder, [Reading.of_record(reading.as_record()) for reading in data.readings])) == expected
    )
    assert inspect(str(folder), {}).labels == Counter(expected.values())
    (folder / "b.csv").write_text("".join(["review,sentiment\n", *lines[31:]]))
    with pytest.raises(
        DataError, match=naming("b.csv", "no column 'text'", "review, sentiment", "dataset.text=")
    ):
        read(folder)


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_stray_quote_among_many_quoted_fields(tmp_path: Path, suffix: str) -> None:
    """A single row with a stray quote makes the quotes of all others text: rows with a delimiter in quotes are dropped, or keep their quotes."""
    sign = {"csv": ",", "tsv": "\t"}[suffix]
    lines = rows(f'"{{text}}, ""so""{sign}"{sign}{{label}}\n', f"text{sign}label\n").splitlines(keepends=True)
    lines.insert(30, f'"He said "hi" there, so"{sign}bad\n')
    path = file(f"a.{suffix}", "".join(lines))(tmp_path)
    with pytest.raises(DataError, match=naming(f"a.{suffix}", "line 31", "dataset.bad_rows=drop")):
        read(path)
    data = read(path, bad_rows="drop")
    assert {text.rstrip() for text in texts(data)} == {f'{text}, "so"{sign}'.rstrip() for text, _ in ROWS}
    assert data.dropped["cannot be read"] == 1


@pytest.mark.parametrize(("sign", "columns"), [(" ||| ", ["text", "label"]), ("::", ["id", "text", "label"])])
def test_delimiters_of_several_characters(tmp_path: Path, sign: str, columns: list[str]) -> None:
    """A file with dataset.columns whose fields `|||` or `::` divides is refused without the remedy."""
    line = sign.join(f"{{{name}}}" for name in columns).replace("{id}", "{number}")
    path = file("a.txt", rows(line + "\n", ""))(tmp_path)
    with pytest.raises(DataError, match=naming("a.txt", "line 1", sign.strip(), "write tabs")):
        read(path, columns=columns)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"delimiter": ";"}, ("no column 'text'", "text,label")),
        ({"quote": "none"}, ("fields", "header")),
        ({"escape": "none"}, ("fields", "header")),
        ({"encoding": "ascii"}, ("not ascii", "dataset.encoding")),
        ({"format": "jsonl"}, ("not JSON",)),
    ],
)
def test_a_key_is_obeyed(tmp_path: Path, keys: dict[str, Any], words: tuple[str, ...]) -> None:
    """A key that a guess overrules."""
    path = file("a.csv", rows('"{text} é \\"so\\", yes",{label}\n'))(tmp_path)
    assert texts(read(path))
    with pytest.raises(DataError, match=naming("a.csv", *words)):
        read(path, **keys)


LATE = "".join(f"{text} {number},{label}\n" for number in range(300) for text, label in ROWS)


@pytest.mark.parametrize(
    ("last", "text"),
    [
        ("café here,good\n".encode("cp1252"), "café here"),
        (b'"a \\"so\\", here",good\n', 'a "so", here'),
        (b'"a ""so"", here",good\n', 'a "so", here'),
    ],
    ids=["encoding", "escape", "quotes"],
)
def test_what_only_the_end_of_a_file_shows(tmp_path: Path, last: bytes, text: str) -> None:
    """The first thousand lines of plain ASCII decide for the rest, which is refused or read wrongly."""
    path = file("a.csv", b"text,label\n" + LATE.encode() + last)(tmp_path)
    assert text in texts(read(path))


def test_quotes_at_the_end_of_a_file_with_tabs(tmp_path: Path) -> None:
    """A long TSV of pandas whose first quoted field comes late keeps its doubled quotes."""
    late = LATE.replace(",", "\t") + '"a ""so"" here"\tgood\n'
    assert 'a "so" here' in texts(read(file("a.tsv", "text\tlabel\n" + late)(tmp_path)))


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "Der Bär aß süße Äpfel"),
        ("cp1252", "L’été, j’ai mangé des crêpes"),
        ("cp1252", "costs 5€ — “truly”"),
        ("cp1250", "Zażółć gęślą jaźń, to był świetny film"),
        ("iso8859_2", "Příliš žluťoučký kůň úpěl ďábelské ódy"),
        ("cp1251", "Это был очень хороший фильм"),
        ("cp1251", "хорошо и плохо"),
        ("koi8_r", "Это был очень хороший фильм"),
        ("cp866", "Это был очень хороший фильм"),
        ("cp1253", "Αυτή η ταινία ήταν πολύ καλή"),
        ("cp1254", "Bu film çok güzeldi, oyuncular şahane, değişik bir öykü"),
        ("cp1255", "הסרט הזה היה טוב מאוד"),
        ("cp1256", "كان هذا الفيلم جيدا جدا"),
        ("cp874", "หนังเรื่องนี้ดีมาก"),
        ("gb18030", "这部电影非常好看，我很喜欢"),
        ("big5", "這部電影非常好看，我很喜歡"),
        ("shift_jis", "この映画はとても良かったです"),
        ("euc_jp", "この映画はとても良かったです"),
        ("cp949", "이 영화는 정말 좋았습니다"),
    ],
)
def test_encodings_of_many_languages(encoding: str, text: str) -> None:
    """Texts of other alphabets are read as Western European ones, and learnt as such."""
    for sample in (text, f"a film and {text} and a day\n" * 20):
        guess = guessed(sample.encode(encoding))
        assert guess
        assert sample.encode(encoding).decode(guess.encoding) == sample
        assert not is_damaged_utf8(sample.encode(encoding))


# ---- parallel text files

PAIRS = {f"one {text}": f"eins {text[::-1]}" for text, _ in ROWS}
SOURCES, TARGETS = ("".join(f"{text}\n" for text in side) for side in (PAIRS.keys(), PAIRS.values()))
PARALLEL: dict[str, tuple[dict[str, str | bytes], str]] = {
    "two text files, train.en and train.de": ({"train_en": SOURCES, "train_de": TARGETS}, "train"),
    "two text files, the path of one of them": ({"train_en": SOURCES, "train_de": TARGETS}, "train.en"),
    "two text files, en.txt and de.txt in a folder": ({"en_txt": SOURCES, "de_txt": TARGETS}, ""),
    "two text files, en-train.txt and de-train.txt": (
        {"en-train_txt": SOURCES, "de-train_txt": TARGETS},
        "en-train.txt",
    ),
    "two text files alone in a folder": (
        {"A.de-en_en": SOURCES, "A.de-en_de": TARGETS, "LICENSE": "free\n"},
        "",
    ),
    "two text files of each split in a folder": (
        {
            f"{split}_{side}": "".join(text.splitlines(keepends=True)[part])
            for side, text in (("en", SOURCES), ("de", TARGETS))
            for split, part in (("train", slice(40)), ("dev", slice(40, 50)), ("test", slice(50, None)))
        },
        "",
    ),
    "two text files, compressed": ({"a_en_gz": gzip.compress(SOURCES.encode()), "a_de": TARGETS}, "a"),
}
LANGUAGES = {"source": "en", "target": "de", "clean": {"max_ratio": None}}


@pytest.mark.parametrize("name", PARALLEL)
def test_parallel_files(tmp_path: Path, name: str) -> None:
    """Two files of Moses or OPUS, the usual form of translations, have to be joined by hand."""
    contents, given = PARALLEL[name]
    path = files(**contents)(tmp_path) / given
    for keys in ({}, {"format": "parallel"}):
        data = read(path, **LANGUAGES, **keys)
        assert {row["source"]: row["target"] for split in SPLITS for row in data[split]} == PAIRS


@pytest.mark.parametrize("name", PARALLEL)
def test_init_reads_parallel_files_as_a_run_does(tmp_path: Path, name: str) -> None:
    """Translations that become texts of a language model, or whose keys are refused by the run."""
    contents, given = PARALLEL[name]
    path = files(**contents)(tmp_path) / given
    keys = inspect(str(path), LANGUAGES).keys
    assert {row["source"]: row["target"] for row in rows_by(keys)} == PAIRS
    with contextlib.suppress(DataError):
        own = inspect(str(path), {}).keys
        pairs = {
            frozenset((row["source"], row["target"])) for row in rows_by({**own, "clean": LANGUAGES["clean"]})
        }
        assert pairs == {frozenset(pair) for pair in PAIRS.items()}


@pytest.mark.parametrize(
    ("one", "other"),
    [("source.txt", "target.txt"), ("a-src.txt", "a-tgt.txt"), ("train.en.gz", "train.de.gz")],
)
def test_the_sides_of_pairs(tmp_path: Path, one: str, other: str) -> None:
    """The sources are read as the documents of a language model, without the targets beside them."""
    pack = gzip.compress if one.endswith("gz") else bytes
    (tmp_path / one).write_bytes(pack(SOURCES.encode()))
    (tmp_path / other).write_bytes(pack(TARGETS.encode()))
    for given in (tmp_path / one, tmp_path):
        pairs = rows_by({**inspect(str(given), {}).keys, "clean": LANGUAGES["clean"]})
        assert {frozenset((row["source"], row["target"])) for row in pairs} == {
            frozenset(pair) for pair in PAIRS.items()
        }


def test_two_texts_that_are_no_pair(tmp_path: Path) -> None:
    """Chapters of a book that are read as each other's translations."""
    for name, text in (("an.txt", "A chapter.\n\nMore.\n"), ("be.txt", "Another one.\n")):
        (tmp_path / name).write_text(text)
    assert inspect(str(tmp_path / "an.txt"), {}).task == "causal_lm"


def test_splits_of_parallel_files(tmp_path: Path) -> None:
    """The test files of a folder are left unread, and a part of the training pairs is kept in their place."""
    contents, _ = PARALLEL["two text files of each split in a folder"]
    folder = files(**contents)(tmp_path)
    for keys in ({}, {"validation": "dev", "test": "test"}):
        data = read(folder, format="parallel", **LANGUAGES, **keys)
        assert [len(data[split]) for split in SPLITS] == [40, 10, 10]
        assert {*data["test"]["source"][:]} == {*list(PAIRS)[50:]}


def test_parallel_files_that_do_not_belong_together(tmp_path: Path) -> None:
    """From a line that one file lacks on, each source has the translation of another."""
    folder = files(train_en=SOURCES, train_de=TARGETS.partition("\n")[2])(tmp_path)
    with pytest.raises(DataError, match=naming("train.en", "60 lines", "train.de", "59")):
        read(folder / "train", **LANGUAGES)
    with pytest.raises(DataError, match=naming("dev.en", "dev.de", "dataset.source=", "dataset.target=")):
        read(folder / "dev", format="parallel", **LANGUAGES)
    (folder / "train.de").write_text(TARGETS.replace("eins", "eins\u2028\x85", 3))
    assert len(read(folder / "train", **LANGUAGES, test_size=6, validation_size=6)["train"]) == 48
    (folder / "train.de").write_text("\n" + TARGETS.partition("\n")[2])
    with pytest.raises(DataError, match=naming("line 1", "the target", "empty")):
        read(folder / "train", **LANGUAGES)
    assert read(folder / "train", bad_rows="drop", **LANGUAGES).dropped["cannot be read"] == 1
    mono = files(more_en="".join(f"{text} more\n" for text, _ in ROWS))(tmp_path) / "more.en"
    data = read(folder / "train", bad_rows="drop", unlabelled=str(mono), **LANGUAGES)
    assert sum(target is None for target in data["train"]["target"][:]) == 60


@pytest.mark.parametrize(
    ("form", "proposed"),
    [
        (
            "{text}\teins {number}\tCC-BY 2.0, see https://example.org for the terms of {number}\n",
            "[en,de,column3]",
        ),
        ("{number}\teng\t{text}\tdeu\teins {number}\n", "[column1,column2,en,column4,de]"),
    ],
)
def test_proposed_columns_of_pairs(tmp_path: Path, form: str, proposed: str) -> None:
    """The names that a message proposes for a file without a header take its licences for the translations."""
    path = file("a.tsv", rows(form, ""))(tmp_path)
    with pytest.raises(DataError, match=naming(f"dataset.columns={proposed}")):
        read(path, **LANGUAGES)


def test_a_repository_on_disk_is_read_from_its_own_files(tmp_path: Path) -> None:
    """The library finds what it prepared by the folder's last name: another repository of that name is read, or what the files held before."""
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data.csv\n---\n"
    for place, labels in (("a", ("old", "older")), ("b", ("new", "newer")), ("a", ("odd", "even"))):
        folder = tmp_path / place / "repo"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "README.md").write_text(card)
        content = "".join(f"{text},{labels[label == 'good']}\n" for text, label in ROWS)
        (folder / "data.csv").write_text("text,label\n" + content)
        assert set(read(folder).labels) == set(labels)


def test_keys_that_say_how_files_are_read_hold_in_a_repository(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """dataset.encoding= and dataset.delimiter= that change nothing, because a README stands beside the file."""
    folder = tmp_path / "repo"
    folder.mkdir()
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: data.csv\n---\n")
    rows = "".join(f"caf\xe9 {text};{label}\n" for text, label in ROWS)
    (folder / "data.csv").write_bytes(f"text;label\n{rows}".encode("cp1252"))
    with pytest.raises(DataError, match=naming("dataset.format=csv")):
        read(folder)
    caplog.set_level("INFO")
    for keys in ({"encoding": "cp1252"}, {"delimiter": ";"}, {"format": "csv"}):
        assert {f"caf\xe9 {text}" for text, _ in ROWS} == set(texts(read(folder, **keys)))
    repository(tmp_path)
    caplog.clear()
    [reading] = read(tmp_path / "hub").readings
    assert any("as a repository of the hub" in each.getMessage() for each in caplog.records)
    assert (reading.file, reading.format) == ("hub", "hub")
    assert Reading.of_record(reading.as_record()) == reading, "what env.json keeps"
