"""Spoiled data files of every format through the real command: refused in one message before any model is read, or read."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet
import pytest
import yaml
import zstandard
from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import write_po
from faults.harness import Batch, Fence, Outcome, batches, require_clean, run_here, run_process
from support.tiny import documents, exchanges, pairs, sentences

HOSTILE = [
    b"\0", b"\0" * 200, b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xff\xfe", b"\x1b[2J", b"\r", b"\n", b"\n\n", b'"', b"'", b",", b"\t",
    b"{", b"}", b"[" * 2000, b'{"a":' * 2000, b"9" * 5000, b"1e999", b"NaN", b"-0", b"null", b"\\ud800", b"\\u0000", b"&a ", b"*a ", b"!!python/name:os.system ",
    b"---\n", b"<script>", b"msgid \"\"\n", b"msgstr[7] \"x\"\n", b"#, fuzzy\n", b"plural=n/0;", b"charset=zip", b"B-", b"\xe2\x80\xae", b"x" * 100_000,
]  # fmt: skip
ENCODINGS = ["utf-16", "utf-32", "utf-8-sig", "utf-7", "cp037", "utf-16-le"]
GIVEN = [
    "utf-16",
    "latin-1",
    "utf-7",
    "idna",
    "zip",
    "hex",
    "undefined",
    "unicode_escape",
    "x" * 2000,
    "../x",
]
Write = Callable[[Path, random.Random], None]


def _rows(chance: random.Random) -> list[dict[str, Any]]:
    """Rows of a classifier, some of them with a value of another type."""
    rows: list[dict[str, Any]] = [{"text": text, "label": label} for text, label in sentences(40)]
    odd = [
        None,
        True,
        5,
        -1.5,
        float("nan"),
        float("inf"),
        10**30,
        [],
        ["a"],
        {"a": 1},
        "",
        " ",
        "\ud800",
        "\0",
        "a\nb",
        "l" * 2000,
    ]
    for _ in range(chance.choice([0, 0, 1, 3])):
        chance.choice(rows)[chance.choice(["text", "label", "more"])] = chance.choice(odd)
    return rows


def _csv(path: Path, chance: random.Random) -> None:
    header = ["text", "label", *chance.choice([[], [], ["label"], ["", ""]])]
    lines = [[row["text"], row["label"], *header[2:]] for row in _rows(chance)]
    text = io.StringIO()
    csv.writer(text, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([header, *lines])
    path.write_bytes(text.getvalue().encode("utf-8", "surrogatepass"))


def _jsonl(path: Path, chance: random.Random) -> None:
    lines = [json.dumps(row) for row in _rows(chance)]
    if chance.random() < 0.2:
        lines[5] = '{"text": "a b", "label": "good", "label": "bad"}'
    path.write_text("\n".join(lines) + "\n")


def _parquet(path: Path, chance: random.Random) -> None:
    texts, labels = zip(*sentences(40), strict=True)
    kinds: list[Callable[[tuple[str, ...]], Any]] = [
        pyarrow.array,
        pyarrow.array,
        pyarrow.array,
        lambda values: pyarrow.array(values).dictionary_encode(),
        lambda values: pyarrow.array([value.encode() for value in values]),
        lambda values: pyarrow.nulls(len(values)),
        lambda values: pyarrow.array([{"a": value} for value in values]),
        lambda values: pyarrow.array([2**62] * len(values), pyarrow.timestamp("us")),
    ]
    columns = [chance.choice(kinds)(texts), chance.choice(kinds)(labels), pyarrow.array(labels)]
    names = ["text", "label", chance.choice(["more", "label"])]
    pyarrow.parquet.write_table(pyarrow.table(columns, names=names), path)


def _json(path: Path, chance: random.Random) -> None:
    rows = _rows(chance)
    columns = {key: [row.get(key) for row in rows] for key in ("text", "label")}
    shapes: list[Any] = [
        rows,
        {"data": rows},
        columns,
        {"columns": ["text", "label"], "data": list(zip(*columns.values(), strict=True))},
    ]
    path.write_text(json.dumps(chance.choice(shapes), indent=chance.choice([None, 1])))


def _arrow(path: Path, chance: random.Random) -> None:
    texts, labels = zip(*sentences(40), strict=True)
    table = pyarrow.table({"text": texts, "label": labels})
    if chance.random() < 0.5:
        pyarrow.feather.write_feather(table, path, compression=chance.choice(["lz4", "zstd", "uncompressed"]))
        return
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def _compressed(path: Path, chance: random.Random) -> None:
    """A csv or jsonl file that is compressed, or a bomb."""
    plain = path.with_name("plain.csv")
    chance.choice([_csv, _jsonl])(plain, chance)
    content = plain.read_bytes()
    plain.unlink()
    if chance.random() < 0.2:
        at = chance.randrange(len(content))
        content = content[:at] + bytes([chance.randrange(256)]) + content[at + 1 :]
    if path.suffix in (".gz", ".zst") and chance.random() < 0.1:  # the others take long to write
        content += chance.choice([b"x", b"\0", b"a b,good\n"]) * 2**22 * chance.choice([1, 1, 1, 20])
    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard.compress}
    if path.suffix in pack:
        path.write_bytes(pack[path.suffix](content))
        return
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(chance.choice(["a.csv", "../a.csv", "a/b.csv"]), content)


def _lines_of_pairs(path: Path, chance: random.Random) -> None:
    for side, name in zip(zip(*pairs(40), strict=True), (path, path.with_suffix(".de")), strict=True):
        name.write_text("\n".join(side) + "\n")


def _txt(path: Path, chance: random.Random) -> None:
    path.write_text("\n\n".join(documents(12)))


def _conversations(path: Path, chance: random.Random) -> None:
    path.write_text(yaml.safe_dump({"conversations": [list(pair) for pair in exchanges(40)]}))


def _conll(path: Path, chance: random.Random) -> None:
    words = [text.split() for text, _ in sentences(40)]
    path.write_text(
        "\n\n".join(
            "\n".join(f"{word} {chance.choice(['B-X', 'I-X', 'O'])}" for word in line) for line in words
        )
    )


def _catalogue(path: Path, chance: random.Random) -> None:
    catalog = Catalog(locale="de")
    for one, other in pairs(40):
        catalog.add(one, other)
    catalog.add(("one file of them", "files of them"), ("eine Datei", "Dateien"))
    with path.open("wb") as stream:
        (write_po if path.suffix == ".po" else write_mo)(stream, catalog)


FORMATS: dict[str, tuple[str, Write, list[str]]] = {
    "csv": ("a.csv", _csv, ["dataset=csv"]),
    "tsv": ("a.tsv", _csv, ["dataset=csv"]),
    "jsonl": ("a.jsonl", _jsonl, ["dataset=jsonl"]),
    "parquet": ("a.parquet", _parquet, ["dataset=parquet"]),
    "json": ("a.json", _json, ["dataset=jsonl"]),
    "arrow": ("a.arrow", _arrow, ["dataset=parquet"]),
    "gz": ("a.csv.gz", _compressed, ["dataset=csv"]),
    "bz2": ("a.csv.bz2", _compressed, ["dataset=csv"]),
    "xz": ("a.csv.xz", _compressed, ["dataset=csv"]),
    "zst": ("a.csv.zst", _compressed, ["dataset=csv"]),
    "zip": ("a.zip", _compressed, ["dataset=csv"]),
    "parallel": ("a.en", _lines_of_pairs, ["dataset=parallel", "loss=forward_kl"]),
    "txt": ("a.txt", _txt, ["dataset=text", "loss=forward_kl"]),
    "conversations": ("a.yml", _conversations, ["dataset=chat", "loss=forward_kl"]),
    "conll": ("a.conll", _conll, ["dataset=conll"]),
    "po": ("de/LC_MESSAGES/a.po", _catalogue, ["dataset=gettext"]),
    "mo": ("de/LC_MESSAGES/a.mo", _catalogue, ["dataset=gettext"]),
}
"""Of each format the file, what writes a whole one, and the words that choose it."""


def _spoil(path: Path, chance: random.Random) -> None:
    """Damage a whole file in one of the ways in which files are damaged, or made to damage."""
    raw = bytearray(path.read_bytes())
    way = chance.choice(
        ["flip", "flip", "insert", "insert", "insert", "cut", "double", "encoding", "none", "other", "sparse"]
    )
    if way == "flip":
        for _ in range(chance.choice([1, 5, 50])):
            raw[chance.randrange(len(raw))] = chance.randrange(256)
    elif way == "insert":
        for _ in range(chance.choice([1, 1, 4])):
            place = chance.randrange(len(raw) + 1)
            raw[place : place + chance.choice([0, 0, 9])] = chance.choice(HOSTILE)
    elif way == "cut":
        del raw[chance.randrange(len(raw)) :]
    elif way == "double":
        raw += raw[chance.randrange(len(raw)) :]
    elif way == "encoding":
        raw = bytearray(raw.decode("utf-8", "replace").encode(chance.choice(ENCODINGS), "replace"))
    path.write_bytes(raw)
    if way == "sparse":
        os.truncate(path, 50 * 2**30)
    if way == "other":
        path.unlink()
        other = chance.choice(["pipe", "folder", "loop", "zeros", "nothing", "empty"])
        if other == "pipe":
            os.mkfifo(path)
        elif other == "folder":
            path.mkdir()
        elif other in ("loop", "zeros"):
            path.symlink_to(path if other == "loop" else "/dev/zero")
        elif other == "empty":
            path.touch()


@pytest.fixture(scope="module")
def nothing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher without weights: a run whose data can be read ends there, before anything is trained."""
    folder = tmp_path_factory.mktemp("teacher")
    (folder / "config.json").write_text("{}")
    return folder


def _cases(batch: Batch, folder: Path, teacher: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """Spoiled files, each alone in a folder, and the command that reads it."""
    for number, (name, chance) in enumerate(batch):
        kind = list(FORMATS)[(batch.first + number) % len(FORMATS)]
        file, write, words = FORMATS[kind]
        place = folder / name.replace("/", "-")
        path = place / "data" / file
        path.parent.mkdir(parents=True)
        write(path, chance)
        _spoil(path, chance)
        given = place / "data" if kind in ("po", "mo") else path
        more = [f"dataset.encoding={chance.choice(GIVEN)}"] if chance.random() < 0.1 else []
        arguments = [
            "distill",
            "teacher=local",
            f"teacher.path={teacher}",
            *words,
            f"dataset.path={given}",
            *more,
        ]
        yield f"{name} ({kind})", place, arguments
        shutil.rmtree(place)


def _require(name: str, place: Path, fence: Fence, outcome: Outcome) -> None:
    require_clean(outcome, codes=[2])
    said = f"{name}: {outcome.err}\n{outcome.command}"
    assert any(word in outcome.err for word in (str(place / "data"), "a.", "dataset.", "the teacher")), said
    assert not list(place.glob("runs/*/*")), f"a run directory is left: {said}"
    fence.require_untouched(said)


@pytest.mark.parametrize("batch", batches(200, quick=9, size=34))
def test_spoiled_data_files(batch: Batch, nothing: Path, tmp_path: Path) -> None:
    """A damaged or hostile file of data ends in a traceback, hangs, fills the memory, or leaves a run directory behind."""
    for name, place, arguments in _cases(batch, tmp_path, nothing):
        fence = Fence(place, place / "runs")
        outcome = run_here(arguments, place)
        _require(name, place, fence, outcome)
        assert outcome.seconds < 20, f"{name}: {outcome.seconds:.0f} s: {outcome.command}"


@pytest.mark.faults
@pytest.mark.parametrize("batch", batches(100, quick=0, size=17))
def test_spoiled_data_files_in_a_process(batch: Batch, nothing: Path, tmp_path: Path) -> None:
    """What a process of its own does besides: a crash of a library in native code, a message that cannot be printed."""
    later = Batch(batch.seed, 10_000 + batch.first, batch.count)
    for name, place, arguments in _cases(later, tmp_path, nothing):
        fence = Fence(place, place / "runs")
        _require(name, place, fence, run_process(arguments, place))
