"""Files for a browser: transformers.js reads what the student reads, and says what it says."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file
from support.commands import ColdCache, naming
from support.tiny import bert, sentences

from kdcli.errors import ExportError
from kdcli.exporting.artifacts import folder_of
from kdcli.exporting.runtimes import runtime_of
from kdcli.exporting.runtimes.node import PACKAGES, NodeEncoder, packages
from kdcli.exporting.targets.browser import LIBRARY, Browser
from kdcli.files import cache_dir, digest
from kdcli.measure.models import measure
from kdcli.measure.spec import MeasureSpec

LONG = "the film was very good and the book was so sad " * 3
TEXTS = [
    *([text] for text, _ in sentences(8)),
    ["A FILM, so-good!? it's café naïve"],
    ["über 東京 🎬 sad\tday\n and\u200b more\u00a0good"],
    [""],
    [LONG],
    ["good"],
]
PAIRS = [
    ["a film", "a book"],
    [LONG, "a book"],
    ["a film", LONG],
    [LONG, LONG],
    [LONG[:60], LONG],
    [LONG, LONG[:60]],
    ["good", ""],
    ["", LONG],
]


@pytest.fixture
def row(tokenizer) -> dict[str, torch.Tensor]:
    return dict(tokenizer("a film", return_tensors="pt"))


@pytest.fixture
def student(tokenizer, tmp_path: Path) -> Path:
    """A directory whose config and tokenizer the artifacts get."""
    bert(tokenizer, ["bad", "good"]).config.save_pretrained(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    (tmp_path / "out").mkdir()
    return tmp_path / "student"


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cold_cache: ColdCache) -> Path:
    """A cache and a path that look as if Node were there and its packages were fetched."""
    cold_cache("cache")
    modules = cache_dir("node") / digest(PACKAGES)[:32] / "node_modules"
    for name in [f"{folder}/{file}" for folder, files in LIBRARY.items() for file in files]:
        (modules / name).parent.mkdir(parents=True, exist_ok=True)
        (modules / name).write_text(name)
    (modules / ".package-lock.json").write_text("{}")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "node").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "node").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return modules


def test_the_layout_is_that_of_transformers_js(
    tokenizer, row: dict[str, torch.Tensor], student: Path, fetched: Path, tmp_path: Path
) -> None:
    """A file that has another name, or lies elsewhere, is looked for in vain; or it is another model's."""
    import onnxruntime

    model, out = bert(tokenizer, ["bad", "good"]).eval(), tmp_path / "out"
    files = Browser(["fp32", "int8"]).export(student, out, model, [row], 48)
    assert files == {"fp32": out / "onnx" / "model.onnx", "int8": out / "onnx" / "model_quantized.onnx"}
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert found == {
        "config.json", "tokenizer.json", "tokenizer_config.json", "student.mjs", "onnx/model.onnx", "onnx/model_quantized.onnx",
        "web/transformers.min.js", "web/ort-wasm-simd-threaded.mjs", "web/ort-wasm-simd-threaded.wasm",
    }  # fmt: skip
    code = (out / "student.mjs").read_text()
    assert "MOST = 48;" in code
    assert "DTYPE = 'q8';" in code
    with torch.inference_mode():
        expected = model(**row).logits.numpy()
    for path, most in zip(files.values(), (1e-5, 0.1), strict=True):
        assert (runtime_of(path), folder_of(path)) == ("node", out)
        said = onnxruntime.InferenceSession(path).run(
            ["logits"], {name: tensor.numpy() for name, tensor in row.items()}
        )[0]
        np.testing.assert_allclose(said, expected, atol=most)


def test_the_page_holds_rows_whatever_is_in_them(
    tokenizer, row: dict[str, torch.Tensor], student: Path, fetched: Path, tmp_path: Path
) -> None:
    """A text that ends the page's script runs whatever it says in the reader's browser."""
    out, model = tmp_path / "out", bert(tokenizer, ["bad", "good"])
    target = Browser(["fp32"], rows=3)
    target.export(student, out, model, [row], 48)
    texts = ["</script><script>alert(1)</script>", 'a "quoted" \\ text %DATA%', "<!-- 東京", "four", "five"]
    rows = [{"texts": [text], "label": "bad", "teacher": {"bad": 0.75, "good": 0.25}} for text in texts]
    target.show(out, "</script>", ["bad", "good"], rows)
    page = (out / "index.html").read_text(encoding="utf-8")
    held = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
    assert held
    data = json.loads(held[1])
    assert [each["texts"][0] for each in data.pop("rows")] == [texts[0], texts[2], texts[4]]
    assert data == {"name": "</script>", "labels": ["bad", "good"], "pairs": False, "dtypes": ["fp32"]}
    assert "alert(1)</script>" not in page
    assert not re.search(r"""(src|href)=["']?(https?:)?//|url\(|@import""", page), "from elsewhere"


def test_no_rows_are_shown_if_none_are_asked_for(tmp_path: Path) -> None:
    """Test rows may be nobody else's business."""
    rows = [{"texts": ["private"], "label": "bad", "teacher": {"bad": 0.75, "good": 0.25}}]
    Browser(["fp32"], rows=0).show(tmp_path, "a", ["bad", "good"], rows)
    assert "private" not in (tmp_path / "index.html").read_text()


def test_without_node_one_is_told_what_to_install(
    tokenizer, row: dict[str, torch.Tensor], student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A traceback of a subprocess names no remedy."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    model = bert(tokenizer, ["bad", "good"])
    with pytest.raises(ExportError, match=naming("Node", "pip install 'kdcli[browser]'")):
        Browser(["fp32"]).export(student, tmp_path / "out", model, [row], 48)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.devices
def test_packages_that_cannot_be_fetched_leave_nothing_and_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cold_cache: ColdCache
) -> None:
    """A half-filled folder would be taken for a whole one the next time."""
    cold_cache()
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm"))
    with pytest.raises(
        ExportError,
        match=naming("npm install", f"@huggingface/transformers@{PACKAGES['@huggingface/transformers']}"),
    ) as raised:
        packages()
    folder = cache_dir("node") / digest(PACKAGES)[:32]
    assert f"--prefix {folder} " in str(raised.value)
    assert not list(cache_dir("node").iterdir())


def roberta(tmp_path: Path):
    """A byte-level tokenizer, whose words begin with their space, and a classifier."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    inner.train_from_iterator([text for text, _ in sentences(50)], trainer)
    inner.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    (tmp_path / "raw").mkdir()
    inner.save(str(tmp_path / "raw" / "tokenizer.json"))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "raw" / "tokenizer.json"),
        bos_token="<s>", eos_token="</s>", sep_token="</s>", cls_token="<s>", unk_token="<unk>", pad_token="<pad>", mask_token="<mask>",
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    config = transformers.RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=66, type_vocab_size=1, num_labels=2,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.RobertaForSequenceClassification(config), tokenizer


@pytest.mark.devices
@pytest.mark.parametrize("rows", [TEXTS, PAIRS], ids=["texts", "pairs"])
@pytest.mark.parametrize("kind", ["bert", "bert, cut on the left", "roberta"])
@pytest.mark.parametrize("most", [17, 20])
def test_texts_are_cut_as_the_student_was_trained_on_them(
    tokenizer, kind: str, rows: list[list[str]], most: int, tmp_path: Path
) -> None:
    """transformers.js cuts long texts after the special tokens were added, the last one off with them."""
    if kind == "roberta":
        model, tokenizer = roberta(tmp_path)
    else:
        model = bert(tokenizer, ["bad", "good"])
        side = "left" if "left" in kind else "right"
        inner = tokenizer.backend_tokenizer
        tokenizer = transformers.BertTokenizerFast(tokenizer_object=inner, truncation_side=side)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.eval().save_pretrained(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    (tmp_path / "out").mkdir()
    batches = [tokenizer(*texts, truncation=True, max_length=most, return_tensors="pt") for texts in rows]
    files = Browser(["fp32"]).export(tmp_path / "student", tmp_path / "out", model, [dict(batches[0])], most)
    spec = MeasureSpec("node", str(files["fp32"]), str(tmp_path / "out"), most)
    made = NodeEncoder(spec).encode(rows)
    assert any(len(batch["input_ids"][0]) == most for batch in batches)
    for batch, theirs, texts in zip(batches, made, rows, strict=True):
        assert set(theirs) == set(batch)
        for name, tensor in batch.items():
            assert theirs[name].tolist() == tensor[0].tolist(), (name, texts)
    answers = tmp_path / "answers.safetensors"
    measure(MeasureSpec(**spec.__dict__ | {"speed": False, "predictions": str(answers)}), rows)
    with torch.inference_mode():
        expected = np.concatenate([model(**batch).logits.numpy() for batch in batches])
    np.testing.assert_allclose(load_file(answers)["logits"], expected, atol=1e-4)


@pytest.mark.devices
def test_its_own_process_is_measured(
    tokenizer, row: dict[str, torch.Tensor], student: Path, tmp_path: Path
) -> None:
    """Python only hands on: its memory and its time are not the model's."""
    files = Browser(["fp32"]).export(student, tmp_path / "out", bert(tokenizer, ["a", "b"]), [row], 48)
    spec = MeasureSpec(
        "node", str(files["fp32"]), str(tmp_path / "out"), 48, latency_runs=100, throughput_seconds=0.1
    )
    found = measure(spec, TEXTS[:8])
    assert found.latency_ms["p50"] > 0
    assert found.cpu_share > 0.3, "of both: neither of them has so much while the other computes"
    assert found.import_memory_bytes > 5e7
    assert 1e6 < found.peak_memory_bytes < 3e8


@pytest.mark.devices
def test_a_file_that_is_cut_off_is_told(
    tokenizer, row: dict[str, torch.Tensor], student: Path, tmp_path: Path
) -> None:
    """A number for a model that never ran, or a page of frames."""
    file = Browser(["fp32"]).export(student, tmp_path / "out", bert(tokenizer, ["a", "b"]), [row], 48)["fp32"]
    os.truncate(file, 1000)
    with pytest.raises(ExportError, match=naming("model.onnx", "run by node", "Node ended")):
        measure(MeasureSpec("node", str(file), str(tmp_path / "out"), 48), TEXTS)


@pytest.mark.devices
def test_its_packages_are_those_of_the_list() -> None:
    """A pin that npm did not follow."""
    modules = packages() / "node_modules"
    for name, version in PACKAGES.items():
        assert json.loads((modules / name / "package.json").read_text())["version"] == version
