"""Labels and texts as people have them, through the real command."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import edit, read, refusal, require_words, same_weights
from support.tiny import BAD, FILLER, GOOD, sentences, write_csv

Distil = Callable[..., Path]
NAMES = ['bad <b>&</b> "sad", 😀', "Good | [red]"]


def test_names_with_signs_and_several_annotators(
    distil: Distil, teacher: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A label that is markup in the report; rows without a label that end the run; annotators of whom the first alone is heard."""
    named = Path(shutil.copytree(teacher, tmp_path / "named"))
    edit(
        named / "config.json",
        id2label=dict(enumerate(NAMES)),
        label2id={name: at for at, name in enumerate(NAMES)},
    )
    rows = []
    for number, (text, label) in enumerate(sentences(400, seed=4)):
        name = NAMES[label == "good"]
        votes = [name, name, NAMES[label != "good"]] if number % 2 else [None if number % 10 == 0 else name]
        rows += [{"text": text, "label": vote} for vote in votes]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["dataset=jsonl", f"dataset.path={path}", f"teacher.path={named}", "trainer.max_steps=4"]
    majority = distil("majority", *options)
    require_words(caplog.text, "40 of 800 rows of train", "empty: 40", "200 of 400 texts")
    soft = distil("soft", *options, "dataset.duplicates=soft")
    for model in "student", "control":
        assert not same_weights(majority, soft, model)
    report = read(soft / "report.json")
    assert report["labels"] == sorted(NAMES)
    assert report["dataset"]["train"] - report["dataset"]["labelled"] == 40
    assert read(soft / "student" / "config.json")["id2label"] == dict(zip("01", sorted(NAMES), strict=True))
    for text in ((soft / "report.html").read_text(), (soft / "student" / "README.md").read_text()):
        assert NAMES[0] not in text
        assert "😀" in text


def test_texts_that_are_cut_before_what_decides(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """ "Tune the teacher", whose texts were cut at a quarter: it is always right about all of them."""
    rows = [
        (f"{' '.join(FILLER[(number + at) % len(FILLER)] for at in range(40))} {' '.join(words)}", label)
        for number in range(100)
        for words, label in ((GOOD[:3], "good"), (BAD[:3], "bad"))
    ]
    rows = [
        (f"{FILLER[at % len(FILLER)]} {FILLER[at // len(FILLER) % len(FILLER)]} {text}", label)
        for at, (text, label) in enumerate(rows)
    ]
    path = write_csv(tmp_path / "long.csv", rows)
    options = [f"dataset.path={path}", "dataset.validation_size=0.2", "dataset.test_size=0.2", "measure=null"]
    message = refusal(capsys, "distill", [*small, *options, f"hydra.run.dir={tmp_path / 'run'}"])
    require_words(message, "dataset.max_length = 32", "47", "dataset.max_length=47")
    train = re.search(r"(\d+) of (\d+) rows of train \(100%\)", caplog.text)
    assert train is not None
    assert train[1] == train[2]
    warned = [record for record in caplog.records if "rows of train" in record.getMessage()]
    assert [record.levelname for record in warned] == ["WARNING"]
    require_words(warned[0].getMessage(), "47", "dataset.max_length")
