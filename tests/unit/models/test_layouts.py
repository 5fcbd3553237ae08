"""Checkpoints as strangers have them: read as transformers reads them, or refused by name."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import (
    CASES,
    LABELS,
    Case,
    changed,
    classifier,
    configured,
    labels_by_name,
    language_model,
    multimodal,
    own_output_layer,
    pickled,
    tagger,
    with_further_heads,
    without,
)
from support.commands import edit, naming, require_words
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


def test_a_head_that_is_not_read_is_named(
    tokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The head of a SetFit model is taken for the teacher, and a new one is trained without a word."""
    with_further_heads(tmp_path, tokenizer)
    find(CheckpointConfig.model_validate({"_target_": "x", "path": str(tmp_path)}), "teacher")
    (warning,) = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    require_words(warning, "model_head.pkl", "2_Dense")
    assert "1_Pooling" not in warning


def test_labels_are_in_the_order_of_label2id(tokenizer, tmp_path: Path) -> None:
    """The labels of a config.json without id2label are called LABEL_0, LABEL_1, and taken for the data's in another order."""
    labels_by_name(tmp_path, tokenizer)
    source = find(CheckpointConfig.model_validate({"_target_": "x", "path": str(tmp_path)}), "teacher")
    assert match_labels(load_config(source), LABELS, source.name) == [1, 0]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_the_file_of_a_model_is_answered_with_its_directory(name: str, tokenizer, tmp_path: Path) -> None:
    """A user who gives the file of weights is told that it has no config.json."""
    classifier(tmp_path, tokenizer)
    config = CheckpointConfig.model_validate({"_target_": "x", "path": str(tmp_path / name)})
    with pytest.raises(KDError, match=naming(f"teacher.path={tmp_path}")):
        find(config, "teacher")


@pytest.mark.parametrize("kind", ["gptq", "bitsandbytes"])
def test_quantized_weights_need_their_package_before_they_are_loaded(
    kind: str, tokenizer, tmp_path: Path
) -> None:
    """kdcli check passes, and the run fails for a package that is not installed."""
    if importlib.util.find_spec({"gptq": "optimum"}.get(kind, kind)) is not None:
        pytest.skip("the package is installed")
    configured(quantization_config={"quant_method": kind, "load_in_4bit": True, "bits": 4})(
        tmp_path, tokenizer
    )
    with pytest.raises(KDError, match=naming("quantization_config", "config.json")):
        require_loadable(Checkpoint(tmp_path, "the model"), Classification(LABELS))


def test_an_output_layer_of_its_own_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A student is saved with its own output layer and a config.json that ties it to the embeddings: other programs drop the layer."""
    (folder := tmp_path / "model").mkdir()
    changed(language_model, own_output_layer)(folder, None)
    expected = load_file(folder / "model.safetensors")["lm_head.weight"]
    model, _ = load_model(Checkpoint(folder, f"the model {tmp_path}"), CausalLM())
    torch.testing.assert_close(model.get_output_embeddings().weight.detach(), expected)
    assert not model.config.tie_word_embeddings
    require_words(caplog.text, "tie_word_embeddings", f"the model {tmp_path}")
    caplog.clear()
    model.save_pretrained(tmp_path / "student")
    again, _ = load_model(Checkpoint(tmp_path / "student", "student"), CausalLM())
    torch.testing.assert_close(again.get_output_embeddings().weight.detach(), expected)
    (plain := tmp_path / "plain").mkdir()
    language_model(plain)
    assert load_model(Checkpoint(plain, "plain"), CausalLM())[0].config.tie_word_embeddings
    assert "tie_word_embeddings" not in caplog.text


def test_a_head_of_the_same_names_is_new(tokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The head of a model of tags is taken for the one of a classifier that is to be trained."""
    tags = tagger(tmp_path, tokenizer)
    caplog.set_level("INFO")
    model = with_new_head(Checkpoint(tmp_path, "the model"), Classification(LABELS))
    assert not torch.isclose(model.classifier.weight, tags.classifier.weight).any()
    torch.testing.assert_close(
        model.bert.embeddings.word_embeddings.weight, tags.bert.embeddings.word_embeddings.weight
    )
    require_words(caplog.text, "another task", "classifier.weight")


def test_a_missing_output_layer_may_be_that_of_the_embeddings(tmp_path: Path) -> None:
    """kdcli check passes for weights without an output layer, and the run is refused without the key that mends it."""
    language_model(tmp_path)
    edit(tmp_path / "config.json", tie_word_embeddings=False)
    source = Checkpoint(tmp_path, "the model")
    require_loadable(source, CausalLM())
    with pytest.raises(KDError, match=naming("lm_head.weight", "tie_word_embeddings", "config.json")):
        require_loadable(source, CausalLM(), complete=True)
    edit(tmp_path / "config.json", tie_word_embeddings=True)
    require_loadable(source, CausalLM(), complete=True)


def test_a_missing_weight_of_a_head_is_no_output_layer(tokenizer, tmp_path: Path) -> None:
    """A classifier without its head is answered with a key for embeddings."""
    changed(classifier, without("classifier.weight"))(tmp_path, tokenizer)
    with pytest.raises(KDError, match=naming("classifier.weight", "teacher.tune=true")) as caught:
        require_loadable(Checkpoint(tmp_path, "the model"), Classification(LABELS), complete=True)
    assert "tie_word_embeddings" not in caught.value.message


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
