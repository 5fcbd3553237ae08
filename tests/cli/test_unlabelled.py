"""`dataset.unlabelled` through the real command: more text for the student, and nothing else changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import require_one_message, require_words, same_weights
from support.tiny import sentences, talk

from kdcli.launch.run import launch

BRIEF = ["teacher.trainer.max_steps=8", "teacher.trainer.batch_size=16", "trainer.max_steps=8", "smoke=true"]


@pytest.fixture
def more(tmp_path: Path) -> Path:
    """Text without a column of labels, some of it as in the data set."""
    path = tmp_path / "more.csv"
    texts = [text for text, _ in [*sentences(50), *sentences(200, seed=11)]]
    path.write_text("text\n" + "".join(f"{text}\n" for text in texts))
    return path


def test_text_without_labels_teaches_the_student_alone(
    distil: Callable[..., Path], body: Path, more: Path
) -> None:
    """A teacher or a control that is trained on rows without a gold label, or on fewer gold rows than before."""
    options = [f"teacher.path={body}", "dataset.labelled=100", "dataset.limit=150", *BRIEF]
    options.append("student.embeddings=random")  # else both are initialized from the text
    plain = distil("plain", *options)
    taught = distil("taught", *options, f"dataset.unlabelled={more}", "dataset.unlabelled_limit=120")
    before, after = (json.loads((run / "report.json").read_text()) for run in (plain, taught))
    assert (before["dataset"]["train"], after["dataset"]["train"]) == (150, 270)
    assert before["dataset"]["labelled"] == after["dataset"]["labelled"] == 100
    assert before["dataset"]["fingerprint"] != after["dataset"]["fingerprint"]
    assert before["models"]["teacher"]["path"] == after["models"]["teacher"]["path"], (
        "it was tuned on other rows"
    )
    assert same_weights(plain, taught, "control")
    assert not same_weights(plain, taught)
    assert (
        launch("eval", [f"run={taught}", "split=train", "measure=null", f"hydra.run.dir={taught / 'eval'}"])
        == 0
    )
    assert json.loads((taught / "eval" / "eval.json").read_text())["examples"] == 100


def test_text_that_changed_under_a_run(distil: Callable[..., Path], more: Path, tmp_path: Path) -> None:
    """A run that is continued with other text than it was begun with is two halves of two runs."""
    run = distil("run", "trainer.max_steps=2", "smoke=true", f"dataset.unlabelled={more}")
    (run / "report.json").unlink()
    more.write_text(more.read_text() + "a song that was very good and new\n")
    distil("run", "trainer.max_steps=2", "smoke=true", f"dataset.unlabelled={more}", code=2)


def test_more_plain_text_is_no_unlabelled_text(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A language model learns from all text alike; a file of it that is never read."""
    data = talk(tmp_path, "pairs")
    options = [*small, *data, "dataset.unlabelled=more.jsonl", f"hydra.run.dir={tmp_path / 'run'}"]
    assert launch("distill", options) == 2
    require_words(require_one_message(capsys.readouterr().err), "unlabelled", "causal_lm")
    assert not (tmp_path / "run").exists()
