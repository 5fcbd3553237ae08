"""Checkpoints as strangers have them: read as transformers reads them, or refused by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.checkpoints import CASES, LABELS, Case, multimodal, pickled
from support.commands import naming
from support.tiny import sentences

from kdcli.config.types import CheckpointConfig
from kdcli.errors import KDError
from kdcli.models.checkpoint import (
    Checkpoint,
    find,
    load_config,
    load_model,
    load_ready,
    load_tokenizer,
    require_loadable,
    with_new_head,
)
from kdcli.models.checkpoint import label_order as match_labels
from kdcli.tasks.causal_lm.task import CausalLM
from kdcli.tasks.classification.task import Classification

PAGE = Path(__file__).parents[3] / "docs" / "checkpoints.md"


def remedies() -> dict[str, list[str]]:
    """What the page says that helps where a layout is refused: keys, files and commands."""
    found: dict[str, list[str]] = {}
    before: list[str] = []
    for name, text in re.findall(r"^\| (.+?) \| refused \| (.+) \|$", PAGE.read_text("utf-8"), re.MULTILINE):
        before = before if text == "likewise" else re.findall(r"`([^`]+)`", text)
        found[name] = before
    return found


def opened(folder: Path, case: Case) -> tuple[Any, Any, Any]:
    """All that is looked at before anything is trained, and the loaded model."""
    task = case.task()
    keys = {"_target_": "x", "path": str(folder)} | {
        key: value for key, value in case.keys.items() if key != "tune"
    }
    source = find(CheckpointConfig.model_validate(keys), "teacher")
    require_loadable(source, task)
    tokenizer = load_tokenizer(source, max_length=16)
    if case.keys.get("tune"):
        return task, with_new_head(source, task).eval(), tokenizer
    if task.labels:
        match_labels(load_config(source), task.labels, source.name)
    model = load_ready(source, task)
    return task, model, load_tokenizer(source, model, 16)


@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_is_read_or_refused(name: str, tokenizer, tmp_path: Path) -> None:
    """A body of random weights that is called a teacher, padding that is read as text, or a traceback of a library."""
    case = CASES[name]
    original = case.make(tmp_path, tokenizer)
    if case.refused:
        with pytest.raises(KDError, match=naming(*case.refused)) as caught:
            opened(tmp_path, case)
        for remedy in remedies()[name]:
            assert remedy in caught.value.message
        return
    task, model, own = opened(tmp_path, case)
    if isinstance(original, torch.nn.Module) and not case.keys.get("tune"):
        ids = torch.tensor([own("the film was good")["input_ids"]])
        with torch.no_grad():
            torch.testing.assert_close(
                model(input_ids=ids).logits, original.eval()(input_ids=ids).logits, atol=1e-4, rtol=1e-4
            )
    if not task.labels:
        return
    rows = [{"id": str(at), "text": text, "label": 0} for at, (text, _) in enumerate(sentences(24))]
    import datasets

    encoded = task.encode(own, datasets.Dataset.from_list(rows), 16)
    alone = [logits_of(task, model, own, encoded, size) for size in (1, 8)]
    np.testing.assert_allclose(*alone, atol=1e-5)


def test_the_conversion_of_pickled_weights_keeps_them(
    tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command that the message gives loses the head, or reads weights with a prefix as none, and writes random ones."""
    original = pickled(tmp_path, tokenizer)
    config = CheckpointConfig.model_validate({"_target_": "x", "path": str(tmp_path)})
    with pytest.raises(KDError) as caught:
        find(config, "teacher")
    monkeypatch.chdir(tmp_path)
    code = re.search(r"python -c '(.+)'", caught.value.message)
    assert code is not None
    exec(code[1])
    model = load_ready(find(config, "teacher"), Classification(LABELS))
    weights = model.state_dict()
    for name, weight in original.state_dict().items():
        torch.testing.assert_close(weights[name], weight)


@pytest.mark.parametrize("kind", ["Qwen3_5", "Gemma3"])
def test_only_the_head_of_a_multimodal_model_s_text_decoder_is_new(kind: str, tmp_path: Path) -> None:
    """A student for labels that is initialised from it has random layers; or the text model cannot be saved and read again."""
    (folder := tmp_path / "model").mkdir()
    original = multimodal(folder, kind)
    source = find(CheckpointConfig.model_validate({"_target_": "x", "path": str(folder)}), "teacher")
    labelled = with_new_head(source, Classification(["bad", "good"]))
    decoder = {
        name.removeprefix("model.language_model."): weight
        for name, weight in original.state_dict().items()
        if name.startswith("model.language_model.")
    }
    body = labelled.base_model.state_dict()
    assert body.keys() == decoder.keys()
    for name, weight in body.items():
        torch.testing.assert_close(weight, decoder[name])
    text, new = load_model(source, CausalLM())
    assert not new
    text.save_pretrained(tmp_path / "student")
    again, new = load_model(Checkpoint(tmp_path / "student", "student"), CausalLM())
    assert not new
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, original(input_ids=ids).logits)


def logits_of(task: Any, model: Any, tokenizer: Any, encoded: Any, size: int) -> np.ndarray:
    logits = np.empty((len(encoded), len(task.labels)), np.float32)
    for rows, signal, _ in task.batches(model, tokenizer, encoded, size, False):
        logits[rows] = signal.logits.numpy()
    return logits


def test_the_page_lists_the_cases() -> None:
    """A table of what is read that no test has tried."""
    rows = re.findall(
        r"^\| (.+?) \| (read|merged|refused|converted|taken)", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert dict(rows).keys() == CASES.keys()
    assert {name for name, what in rows if what == "refused"} == {
        name for name, case in CASES.items() if case.refused
    }
