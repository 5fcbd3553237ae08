"""Seven data sets of different kinds, for the table of the default recipe: `python benchmarks/students.py anyone CLINC AUSTEN VERSES`.

CLINC is a folder with CLINC150 as train.tsv, val.tsv and test.tsv (columns text and label), AUSTEN one with plain texts, VERSES a file whose
lines begin with an English verse and a tab. The reviews and the snippets of editorials come from the sources of the package
vaderSentiment, which pip downloads.
"""

from __future__ import annotations

import csv
import json
import random
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

Rows = list[tuple[str, str]]
TICKETS = 12
"""Intents of the small set of CLINC150: each twelfth in alphabetical order."""
RARE = ("report_fraud", "report_lost_card", "damaged_card", "card_declined", "account_blocked")
"""Intents that are the rare class of the imbalanced set: 3 % of its rows."""
PASSAGE = 180
"""Words of a passage: about 250 tokens."""


def write(path: Path, rows: Iterable[tuple[str, str]]) -> Path:
    """Write rows as csv."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("text", "label"), *rows])
    return path


def table(path: Path) -> Rows:
    """The rows of a file of CLINC150."""
    with path.open(encoding="utf-8", newline="") as stream:
        return [
            (row["text"], row["label"])
            for row in csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        ]


def of_files(folder: Path, splits: dict[str, Rows]) -> list[str]:
    """The options of a data set in three files."""
    names = {"train": "path", "val": "validation", "test": "test"}
    files = [f"dataset.{key}={write(folder / f'{split}.csv', splits[split])}" for split, key in names.items()]
    return ["dataset=csv", *files]


def clinc(folder: Path, out: Path) -> dict[str, list[str]]:
    """CLINC150 whole, twelve of its intents, and two thousand of its rows with a rare class."""
    whole = {split: table(folder / f"{split}.tsv") for split in ("train", "val", "test")}
    intents = sorted({label for _, label in whole["train"]})[::TICKETS][:TICKETS]
    tickets = {split: [row for row in rows if row[1] in intents] for split, rows in whole.items()}
    rare = {}
    for split, rows in whole.items():
        two = [(text, "card" if label in RARE else "other") for text, label in rows]
        random.Random(0).shuffle(two)
        rare[split] = two[: {"train": 3000, "val": 1000, "test": 3000}[split]]
    return {
        "clinc": of_files(out / "clinc", whole),
        "tickets": of_files(out / "tickets", tickets),
        "imbalanced": of_files(out / "imbalanced", rare),
    }


def passages(folder: Path, out: Path) -> list[str]:
    """Passages of novels, which are to be attributed to their book: the last fifth of each is for validation and test."""
    splits: dict[str, Rows] = {"train": [], "val": [], "test": []}
    for path in sorted(folder.glob("*.txt")):
        words = path.read_text(encoding="utf-8", errors="replace").split()
        parts = [" ".join(words[at : at + PASSAGE]) for at in range(0, len(words) - PASSAGE, PASSAGE)]
        held, half = len(parts) * 4 // 5, len(parts) * 9 // 10
        for split, own in {"train": parts[:held], "val": parts[held:half], "test": parts[half:]}.items():
            splits[split] += [(text, path.stem) for text in own]
    return [*of_files(out / "passages", splits), "dataset.max_length=256"]


def names(file: Path, out: Path) -> list[str]:
    """Verses without capitals, in which names are to be found: the words that have a capital inside a sentence."""
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines():
        words = re.findall(r"[A-Za-z']+|[.,;:?!]", line.split("\t")[0])
        tags, inside = [], False
        for word, before in zip(words, [".", *words], strict=False):
            name = word[0].isupper() and word not in ("I", "O") and before not in ".?!:;"
            tags.append(("I-NAME" if inside else "B-NAME") if name else "O")
            inside = name
        if len(words) < 40 and "B-NAME" in tags:
            rows.append({"words": [word.lower() for word in words], "tags": tags})
    random.Random(0).shuffle(rows)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "names.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:2500]), encoding="utf-8")
    return ["dataset=jsonl", f"dataset.path={path}", "dataset.words=words", "dataset.tags=tags",
            "dataset.test_size=0.3", "dataset.max_length=64"]  # fmt: skip


def snippets(out: Path) -> dict[str, list[str]]:
    """Sentences of film and product reviews, editorials and tweets: positive or negative by the mean of twenty ratings; 8,000 to train on,
    and 1,000."""
    out.mkdir(parents=True, exist_ok=True)
    package = "vaderSentiment==2.5"
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest", out, package],
                   check=True)  # fmt: skip
    rows: dict[str, str] = {}
    with tarfile.open(out / "vaderSentiment-2.5.tar.gz") as outer:
        inner = next(item for item in outer.getmembers() if item.name.endswith("hutto_ICWSM_2014.tar.gz"))
        with tarfile.open(fileobj=outer.extractfile(inner)) as archive:
            for item in sorted(archive.getmembers(), key=lambda item: item.name):
                stream = archive.extractfile(item) if item.name.endswith("GroundTruth.txt") else None
                for line in stream.read().decode("latin-1").splitlines() if stream else ():
                    _, rating, text, *_ = [*line.split("\t"), "", ""]
                    if re.fullmatch(r"-?[\d.]+", rating) and abs(float(rating)) >= 0.3 and text.strip():
                        rows.setdefault(text.strip(), "positive" if float(rating) > 0 else "negative")
    whole = list(rows.items())
    random.Random(0).shuffle(whole)
    held = {"val": whole[8000:9000], "test": whole[9000:11000]}
    return {
        "reviews": of_files(out / "reviews", {"train": whole[:8000], **held}),
        "reviews-1000": of_files(out / "reviews-1000", {"train": whole[:1000], **held}),
    }


def data_sets(out: Path, sources: Sequence[str]) -> dict[str, list[str]]:
    """The options of each data set, by its name."""
    if len(sources) != 3:
        sys.exit("anyone: name the folder of CLINC150, a folder of plain texts, and the file of verses")
    folder, texts, verses = map(Path, sources)
    return {
        "tweets": [],
        **clinc(folder, out),
        **snippets(out),
        "passages": passages(texts, out),
        "names": names(verses, out),
    }
