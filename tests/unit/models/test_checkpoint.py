"""Directories of models: what is refused before anything is loaded, by name, and what is not."""

from __future__ import annotations

import copy
import json
import os
import shutil
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.commands import naming
from support.tiny import bert
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from kdcli.config.types import CheckpointConfig
from kdcli.errors import ConfigError, ModelError
from kdcli.model_files import SUMS, require_unchanged, write_sums
from kdcli.models.checkpoint import (
    find,
    load_model,
    load_tokenizer,
    require_loadable,
    with_new_head,
)
from kdcli.models.vocabulary import require_savable
from kdcli.tasks.base import Task
from kdcli.tasks.causal_lm.task import CausalLM
from kdcli.tasks.classification.task import Classification

TASK = Classification(["bad", "good"])
SIZES = {"vocab_size": 32, "num_attention_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0}


def used(folder: Path, task: Task = TASK) -> None:
    """All that is looked at before anything is trained."""
    source = find(CheckpointConfig.model_validate({"_target_": "x", "path": str(folder)}), "teacher")
    require_loadable(source, task)
    require_savable(load_tokenizer(source, max_length=32), source.name)


def config(**changes: object) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def tokenizer_config(**changes: object) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def written(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


def indexed(index: bytes) -> Callable[[Path], object]:
    """Weights under another name, and an index, which is not read beside model.safetensors."""

    def edit(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "x.safetensors")
        (folder / "model.safetensors.index.json").write_bytes(index)

    return edit


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        change(found)
        save_file(found, folder / "model.safetensors", {"format": "pt"})

    return edit


def in_place_of(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return edit


def bind(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as each:
        each.bind(path.name)
    os.chdir(before)


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 50 * 2**30)


def twice(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tree = json.loads(path.read_text())
    words = list(tree["model"]["vocab"])
    tree["model"]["vocab"][words[7]] = tree["model"]["vocab"][words[8]]
    path.write_text(json.dumps(tree))


def outside(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tree = json.loads(path.read_text())
    tree["model"]["vocab"]["far"] = 10**6
    path.write_text(json.dumps(tree))


def added(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    tokenizer.add_tokens([f"[unused{index}]" for index in range(rows - len(tokenizer))] + ["[MORE]"])
    tokenizer.save_pretrained(folder)


WEIGHT = "bert.encoder.layer.1.output.dense.weight"
SPOILED: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "architectures is a number": (config(architectures=5), ("architectures is 5",)),
    "architectures is a string": (config(architectures="BertModel"), ("architectures is 'BertModel'",)),
    "architectures is nested": (config(architectures=[["BertModel"]]), ("architectures",)),
    "model_type is a number": (config(model_type=5), ("model_type is 5",)),
    "a precision that is a number": (config(dtype=7), ("dtype is 7", "float32")),
    "a precision of the older key": (config(torch_dtype="torch.int8"), ("torch_dtype is 'torch.int8'", "bfloat16")),
    "a precision within the config": (config(text_config={"dtype": {"a": 1}}), ("dtype", "float16")),
    "labels are no object": (config(id2label=["bad", "good"]), ("id2label",)),
    "a label has no number": (config(id2label={"x": "bad", "1": "good"}), ("id2label",)),
    "a label is missing": (config(id2label={"0": "bad", "2": "good"}), ("id2label",)),
    "two labels of one name": (config(id2label={"0": "bad", "1": "bad"}), ("id2label",)),
    "no heads": (config(num_attention_heads=0), ("config.json",)),
    "heads that do not divide": (config(num_attention_heads=5), ("config.json",)),
    "a negative size": (config(intermediate_size=-1), ("config.json",)),
    "a string for a size": (config(hidden_size="32"), ("config.json",)),
    "a size that no weights have": (config(hidden_size=10**12), ("hidden_size is 1000000000000",)),
    "a dropout above 1": (config(attention_probs_dropout_prob=2**63), ("attention_probs_dropout_prob",)),
    "ten million layers": (config(num_hidden_layers=10**7), ("num_hidden_layers is 10000000",)),
    "fewer layers than the weights": (config(num_hidden_layers=1), ("bert.encoder.layer.1.",)),
    "more layers than the weights": (config(num_hidden_layers=3), ("bert.encoder.layer.2.",)),
    "another shape": (config(intermediate_size=63), ("config.json",)),
    "another vocabulary": (config(vocab_size=31), ("config.json",)),
    "a kernel from the hub": (config(_attn_implementation="some/kernel"), ("_attn_implementation",)),
    "a kernel from the hub in a mapping": (config(attn_implementation={"": "some/kernel"}), ("attn_implementation", "some/kernel")),
    "a config within the config": (config(text_config={"a": 1}), ("config.json", "'a'")),
    "an encoder that the architecture has not": (config(is_encoder_decoder=True), ("config.json", "is_encoder_decoder")),
    "outputs without names": (config(return_dict=False), ("return_dict", "leave the key out")),
    "rows in chunks": (config(chunk_size_feed_forward=7), ("chunk_size_feed_forward is 7", "leave the key out")),
    "config.json is a list": (written("config.json", b"[]"), ("config.json",)),
    "config.json is nested too deeply": (written("config.json", b'{"a":' * 10**5), ("config.json",)),
    "config.json is UTF-16": (written("config.json", '{"model_type": "bert"}'.encode("utf-16")), ("config.json",)),
    "config.json begins with a byte order mark": (written("config.json", b'\xef\xbb\xbf{"model_type": "bert"}'), ("config.json",)),
    "NaN in config.json": (written("config.json", b'{"model_type": "bert", "layer_norm_eps": NaN}'), ("NaN",)),
    "digits without end": (written("config.json", b'{"vocab_size": ' + b"1" * 5000 + b"}"), ("config.json",)),
    "model_max_length is a string": (tokenizer_config(model_max_length="x"), ("model_max_length is 'x'",)),
    "tokenizer_class is a number": (tokenizer_config(tokenizer_class=5), ("tokenizer_class is 5",)),
    "tokenizer_class is itself": (tokenizer_config(tokenizer_class="AutoTokenizer"), ("tokenizer",)),
    "a tokenizer that cannot be saved": (tokenizer_config(decoder=10**7), ("tokenizer", "cannot be saved", "tokenizer_config.json")),
    "tokenizer.json is no JSON": (written("tokenizer.json", b"\xff\xfe"), ("tokenizer",)),
    "tokenizer.json is a list": (written("tokenizer.json", b"[]"), ("tokenizer",)),
    "a vocabulary in latin-1": (written("vocab.txt", "é\n".encode("latin-1")), ("vocab.txt",)),
    "two words with one id": (twice, ("same id", "tokenizer files")),
    "a token beyond the embeddings": (outside, ("embeddings", "another model's tokenizer")),
    "an added token without an embedding": (added, ("'[MORE]'", "model.resize_token_embeddings")),
    "NaN": (tensors(lambda found: found[WEIGHT][0].fill_(torch.nan)), (WEIGHT,)),
    "infinity": (tensors(lambda found: found[WEIGHT][0].fill_(torch.inf)), (WEIGHT,)),
    "weights that are integers": (tensors(lambda found: found.update({WEIGHT: found[WEIGHT].to(torch.int8)})), (WEIGHT, "I8", "float32")),
    "weights that are booleans": (tensors(lambda found: found.update({WEIGHT: found[WEIGHT] > 0})), (WEIGHT, "BOOL", "float32")),
    "a weight is missing": (tensors(lambda found: found.pop(WEIGHT)), (WEIGHT,)),
    "a header without end": (written("model.safetensors", struct.pack("<Q", 2**62) + b"{}"), ("model.safetensors",)),
    "a FIFO for a config": (in_place_of("config.json", os.mkfifo), ("config.json",)),
    "a FIFO for a tokenizer": (in_place_of("tokenizer.json", os.mkfifo), ("tokenizer.json", "regular file")),
    "a FIFO for weights": (in_place_of("model.safetensors", os.mkfifo), ("model.safetensors", "regular file")),
    "a socket": (in_place_of("vocab.txt", bind), ("vocab.txt", "regular file")),
    "a device": (in_place_of("vocab.txt", lambda path: path.symlink_to("/dev/zero")), ("vocab.txt", "regular file")),
    "a directory": (in_place_of("tokenizer.json", Path.mkdir), ("tokenizer.json", "regular file")),
    "a link to itself": (in_place_of("tokenizer.json", lambda path: path.symlink_to(path.name)), ("tokenizer.json", "cannot be read")),
    "fifty gigabytes of nothing": (in_place_of("vocab.txt", sparse), ("vocab.txt", "53,687,091,200 bytes")),
    "weights of nothing": (in_place_of("model.safetensors", sparse), ("model.safetensors", "whole safetensors file")),
    "generation_config.json is a list": (written("generation_config.json", b"[]"), ("generation_config.json",)),
    "a token that is a word": (written("generation_config.json", b'{"eos_token_id": "x"}'), ("eos_token_id is 'x'",)),
    "special tokens are a list": (written("special_tokens_map.json", b"[]"), ("special_tokens_map.json",)),
    "an adapter": (written("adapter_config.json", b"{}"), ("adapter_config.json",)),
    "weights elsewhere": (indexed(b'{"weight_map": {"x": "../x.safetensors"}}'), ("../x.safetensors",)),
    "no map of weights": (indexed(b"{}"), ("weight_map",)),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_directory_is_refused_by_name(name: str, teacher: Path, tmp_path: Path) -> None:
    """A traceback of a library, a wait without end, or a model that runs without some of its layers."""
    spoil, words = SPOILED[name]
    folder = Path(shutil.copytree(teacher, tmp_path / "a\nteacher"))
    used(folder)
    spoil(folder)
    with pytest.raises((ModelError, ConfigError), match=naming(*words)):
        used(folder)


def test_a_generation_config_with_keys_that_have_no_effect_can_be_saved(tmp_path: Path, tokenizer) -> None:
    """transformers loads such a published config with a warning, and refuses to save it once the end tokens are set: after the training."""
    model = LlamaForCausalLM(LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, **SIZES))
    model.save_pretrained(tmp_path / "published")
    tokenizer.save_pretrained(tmp_path / "published")
    own = {"do_sample": False, "temperature": 0.6, "top_p": 0.9, "length_penalty": 0.8, "bos_token_id": 7}
    written("generation_config.json", json.dumps(own).encode())(tmp_path / "published")
    loaded, _ = CausalLM().from_pretrained(tmp_path / "published", local_files_only=True)
    CausalLM().prepare_for_saving(loaded, copy.deepcopy(tokenizer), 16)
    loaded.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert (saved["bos_token_id"], saved["do_sample"]) == (7, False)
    assert not {"temperature", "top_p", "length_penalty"} & {
        key for key, value in saved.items() if value is not None
    }


def test_an_unknown_way_of_counting_positions_is_refused(tmp_path: Path, tokenizer) -> None:
    """Positions by default, whatever the model was trained with."""
    model = LlamaForCausalLM(LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, **SIZES))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    used(tmp_path, CausalLM())
    config(rope_parameters={"rope_type": "mystery", "rope_theta": 10000.0})(tmp_path)
    with pytest.raises(ModelError, match="mystery|rope"):
        used(tmp_path, CausalLM())


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert", "albert", "masked"])
def test_what_weights_hold_besides_is_no_reason_to_refuse_them(kind: str, tmp_path: Path, tokenizer) -> None:
    """Masks, positions and frequencies that older checkpoints keep, a tied matrix, the head of another task, layers that share weights."""
    task, more = (CausalLM() if kind in ("gpt2", "llama") else TASK), {}
    if kind == "gpt2":
        model = GPT2LMHeadModel(
            GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=32, n_positions=64, pad_token_id=0)
        )
        mask = torch.ones(1, 1, 64, 64, dtype=torch.uint8).tril()
        more = {
            "transformer.h.0.attn.bias": mask,
            "transformer.h.1.attn.masked_bias": torch.tensor(-torch.inf),
        }
    elif kind == "llama":
        model = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=16, intermediate_size=32, num_hidden_layers=2, tie_word_embeddings=True, **SIZES
            )
        )
        more = {
            "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
            "lm_head.weight": torch.zeros(32, 16),
        }
    elif kind == "albert":
        model = AlbertForSequenceClassification(
            AlbertConfig(
                hidden_size=16, embedding_size=8, intermediate_size=32, num_hidden_layers=12, **SIZES
            )
        )
        config_of = {"id2label": {0: "bad", 1: "good"}}
        model.config.update(config_of)
    elif kind == "masked":
        model = BertForMaskedLM(bert(tokenizer, ["bad", "good"]).config)
    else:
        model = bert(tokenizer, ["bad", "good"])
        more = {"bert.embeddings.position_ids": torch.arange(64)[None]}
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    tensors(lambda found: found.update(more))(tmp_path)
    used(tmp_path, task)
    source = find(CheckpointConfig.model_validate({"_target_": "x", "path": str(tmp_path)}), "teacher")
    with_new_head(source, task) if kind == "masked" else load_model(source, task)


def test_a_body_of_another_shape_is_not_made_anew_with_the_head(body: Path, tmp_path: Path) -> None:
    """The head's shape may differ, and what differs in the body was random, too."""
    folder = Path(shutil.copytree(body, tmp_path / "body"))
    source = find(CheckpointConfig.model_validate({"_target_": "x", "path": str(folder)}), "teacher")
    with_new_head(source, TASK)
    config(intermediate_size=63)(folder)
    for load in (with_new_head, require_loadable):
        with pytest.raises(ModelError, match="intermediate"):
            load(source, TASK)


def test_hashes_of_a_saved_model(tmp_path: Path) -> None:
    """A file that changed, vanished or was never hashed; or a list of hashes that names a file elsewhere."""
    folder = tmp_path / "student"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes(name.encode())
    assert not require_unchanged(folder, "mend it")
    write_sums(folder)
    (folder / "README.md").write_text("written later")
    assert require_unchanged(folder, "mend it")
    listed = (folder / SUMS).read_text()
    for name in ("config.json", "model.safetensors"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[::-1])
        with pytest.raises(ModelError, match=naming(name, SUMS, "it has", "mend it")):
            require_unchanged(folder, "mend it")
        (folder / name).unlink()
        with pytest.raises(ModelError, match=naming(name, SUMS, "gone", "mend it")):
            require_unchanged(folder, "mend it")
        (folder / name).write_bytes(whole)
    for wrong in (listed.replace("config.json", "../config.json"), "no hash  config.json\n", "\n"):
        (folder / SUMS).write_text(wrong)
        with pytest.raises(ModelError, match=naming(SUMS, "damaged", "mend it")):
            require_unchanged(folder, "mend it")
