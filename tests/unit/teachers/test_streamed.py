"""A teacher that is run layer by layer: the same stored outputs, bit by bit, as from the whole model in memory."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers as of
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.commands import naming
from support.decoders import VOCABULARY, tiny_model
from support.tiny import full_disk, speller
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from kdcli.config.types import Dtype
from kdcli.errors import ConfigError, ModelError
from kdcli.files import storage_error
from kdcli.models.checkpoint import Checkpoint
from kdcli.models.spill import Spill
from kdcli.tasks.base import Task
from kdcli.tasks.causal_lm.task import CausalLM
from kdcli.tasks.classification.task import Classification
from kdcli.tasks.seq2seq.task import Seq2Seq
from kdcli.tasks.token_classification.task import TokenClassification
from kdcli.teachers import cached
from kdcli.teachers.base import Teacher
from kdcli.teachers.cached import CachedTeacher
from kdcli.teachers.local import LocalTeacher
from kdcli.teachers.streamed import StreamedTeacher

DECODERS = (
    "llama", "qwen2", "qwen3", "qwen3_moe", "qwen2_moe", "mistral", "mixtral", "gemma2", "gemma3_text", "granite", "gpt2", "gpt_neox", "olmo2",
    "phi3", "smollm3",
)  # fmt: skip
SIZES: dict[str, Any] = {"vocab_size": VOCABULARY, "num_hidden_layers": 3, "pad_token_id": 0}
WIDTHS: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
ENCODERS: dict[str, Callable[[], Any]] = {
    "bert": lambda: of.BertConfig(**SIZES, **WIDTHS, max_position_embeddings=64),
    "roberta": lambda: of.RobertaConfig(**SIZES, **WIDTHS, max_position_embeddings=64),
    "distilbert": lambda: of.DistilBertConfig(
        vocab_size=VOCABULARY, dim=32, n_layers=3, n_heads=2, hidden_dim=48, max_position_embeddings=64
    ),
    "modernbert": lambda: of.ModernBertConfig(
        **SIZES, **WIDTHS, max_position_embeddings=64, local_attention=4, global_attn_every_n_layers=2,
        cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2,
    ),
    "deberta-v2": lambda: of.DebertaV2Config(
        **SIZES, **WIDTHS, max_position_embeddings=64, relative_attention=True, pos_att_type=["p2c", "c2p"],
        position_buckets=8, norm_rel_ebd="layer_norm", share_att_key=True,
    ),
}  # fmt: skip
SIDES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 40, "max_position_embeddings": 64, "pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 2,
    "bos_token_id": 1, "forced_eos_token_id": None, "init_std": 0.2,
}  # fmt: skip
TRANSLATORS: dict[str, Callable[[], Any]] = {
    "marian": lambda: of.MarianConfig(**SIDES),
    "marian, two vocabularies": lambda: of.MarianConfig(
        **SIDES, decoder_vocab_size=VOCABULARY, share_encoder_decoder_embeddings=False, scale_embedding=True
    ),
    "bart": lambda: of.BartConfig(**SIDES),
    "mbart": lambda: of.MBartConfig(**SIDES),
    "m2m_100": lambda: of.M2M100Config(**SIDES),
    "pegasus": lambda: of.PegasusConfig(**SIDES),
}
PROMPTS = [" ".join(f"w{(row * 7 + at) % 80}" for at in range(3 + row * 3 % 11)) for row in range(11)]


def words() -> PreTrainedTokenizerFast:
    """A tokenizer of whole words."""
    vocabulary = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3} | {f"w{n}": n + 4 for n in range(90)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", eos_token="[SEP]"
    )


def saved(folder: Path, model: PreTrainedModel, dtype: Dtype = "fp32", **options: Any) -> Checkpoint:
    """A checkpoint of a model, with the tokenizer of whole words."""
    model.save_pretrained(folder, **options)
    words().save_pretrained(folder)
    return Checkpoint(folder, "the teacher", dtype=dtype)


def decoder(folder: Path, kind: str, dtype: Dtype = "fp32", **options: Any) -> Checkpoint:
    model = tiny_model(kind)
    if kind != "qwen2":
        return saved(folder, model, dtype, **options)
    tokenizer = speller()  # transformers reads any tokenizer of this architecture as a byte-level one
    model.resize_token_embeddings(len(tokenizer) + 8, mean_resizing=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Checkpoint(folder, "the teacher", dtype=dtype)


def encoder(folder: Path, kind: str, head: type, **own: Any) -> Checkpoint:
    """A classifier or tagger with random weights."""
    config = ENCODERS[kind]()
    for name, value in own.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    model = head.from_config(TASKS[head].configure(config)).eval()
    return saved(folder, model)


TASKS: dict[type, Task] = {
    of.AutoModelForSequenceClassification: Classification(["bad", "good", "so-so"]),
    of.AutoModelForTokenClassification: TokenClassification(["O", "B-X", "I-X"]),
}
LANGUAGE = datasets.Dataset.from_list(
    [
        {"id": str(row), "prompt": prompt, "completion": f" w{row} w{row + 5} w9"}
        for row, prompt in enumerate(PROMPTS)
    ]
)
TEXTS = datasets.Dataset.from_list(
    [{"id": str(row), "text": prompt, "label": row % 3} for row, prompt in enumerate(PROMPTS)]
)
PAIRS = datasets.Dataset.from_list(
    [
        {"id": str(row), "source": prompt, "target": " ".join(prompt.split()[::-1][: 2 + row % 4]) + " w7"}
        for row, prompt in enumerate(PROMPTS)
    ]
)
SENTENCES = datasets.Dataset.from_list(
    [
        {"id": str(row), "words": prompt.split(), "label": [0] * len(prompt.split())}
        for row, prompt in enumerate(PROMPTS)
    ]
)


def resident(source: Checkpoint, task: Task, batch_size: int = 4) -> LocalTeacher:
    teacher = LocalTeacher(batch_size)
    teacher.open(source, task, 60, "auto")
    return teacher


def streamed(
    source: Checkpoint, task: Task, folder: Path, bound: float = 1e9, batch_size: int = 4
) -> StreamedTeacher:
    teacher = StreamedTeacher(batch_size, folder, bound)
    teacher.open(source, task, 60, "auto")
    return teacher


def fill(teacher: Teacher, folder: Path, rows: datasets.Dataset) -> dict[str, dict[str, Any]]:
    """Store outputs in shards of six rows, and return the content of the files. (The order of their headers is random.)"""
    store = CachedTeacher(folder, k=8, temperature=2.0)
    if isinstance(teacher, StreamedTeacher):
        shards = store.missing(rows)
        outputs = teacher.stream([list(shard.rows) for shard in shards], store.compress)
        for shard, signals in zip(shards, outputs, strict=True):
            store.store(shard, signals)
    else:
        store.fetch(rows, lambda: teacher, lambda done: None)
    return contents(folder)


def contents(folder: Path) -> dict[str, dict[str, Any]]:
    """The metadata of each file, with the checksum of its tensors, and their bytes."""
    files = {}
    for path in sorted(folder.iterdir()):
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            bits = {name: tensor.view(torch.uint8).numpy().tobytes() for name, tensor in tensors.items()}
            files[path.name] = {"about": file.metadata(), **bits}
    return files


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached, "SHARD", 6)


def require_same_store(source: Checkpoint, task: Task, rows: datasets.Dataset, folder: Path) -> None:
    expected = fill(resident(source, task), folder / "resident", rows)
    assert len(expected) == 2
    assert fill(streamed(source, task, folder / "scratch"), folder / "streamed", rows) == expected
    assert not (folder / "scratch").exists()


@pytest.mark.parametrize("kind", DECODERS)
def test_a_streamed_decoder_stores_the_same_bytes(kind: str, tmp_path: Path) -> None:
    """Masks, positions, sliding windows or experts that are not those of the whole model: soft targets that are silently wrong."""
    require_same_store(decoder(tmp_path / "model", kind), CausalLM(), LANGUAGE, tmp_path)


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_output_embeddings_that_are_stored_beside_the_tied_ones(factor: float, tmp_path: Path) -> None:
    """Other tools write tied weights twice: a pass ends in a traceback, or takes the one for the other where they differ (transformers then leaves
    them untied)."""
    source = decoder(tmp_path / "model", "qwen3")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tie_word_embeddings": True}))
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["lm_head.weight"] = factor * weights["model.embed_tokens.weight"]
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    require_same_store(source, CausalLM(), LANGUAGE, tmp_path)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_streamed_decoder_computes_in_its_dtype(dtype: Dtype, tmp_path: Path) -> None:
    """Weights that are stored in one dtype and computed in another would be cast otherwise than transformers casts them."""
    source = decoder(tmp_path / "model", "llama", dtype, max_shard_size="20KB")
    assert len(list(source.path.glob("*.safetensors"))) > 2
    require_same_store(source, CausalLM(), LANGUAGE, tmp_path)


def test_autocast_is_that_of_the_whole_model(tmp_path: Path) -> None:
    """A streamed teacher under teacher.trainer.precision=bf16 would store outputs of fp32 under the key of bf16."""
    source, files = decoder(tmp_path / "model", "llama"), []
    for name in ("resident", "streamed"):
        teacher: Teacher = LocalTeacher(4) if name == "resident" else StreamedTeacher(4, tmp_path / "s", 1e9)
        teacher.open(source, CausalLM(), 60, "bf16")
        files.append(fill(teacher, tmp_path / name, LANGUAGE))
    assert files[0] == files[1]


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_streamed_classifier_stores_the_same_bytes(kind: str, tmp_path: Path) -> None:
    """As for decoders; a pooler or a relative position bias that is computed beside the layers."""
    head = of.AutoModelForSequenceClassification
    require_same_store(encoder(tmp_path / "model", kind, head), TASKS[head], TEXTS, tmp_path)


def test_a_streamed_tagger_stores_the_same_bytes(tmp_path: Path) -> None:
    """A tagger counts several positions of a row, which are split by row otherwise than a classifier's."""
    head = of.AutoModelForTokenClassification
    require_same_store(encoder(tmp_path / "model", "bert", head), TASKS[head], SENTENCES, tmp_path)


def translator(folder: Path, kind: str) -> Checkpoint:
    torch.manual_seed(0)
    return saved(folder, of.AutoModelForSeq2SeqLM.from_config(TRANSLATORS[kind]()).eval())


@pytest.mark.parametrize("kind", TRANSLATORS)
def test_a_streamed_translator_stores_the_same_bytes(kind: str, tmp_path: Path) -> None:
    """The decoder reads the encoder's states of another layer, or of other rows; positions that no file holds are random; one of two vocabularies is
    taken for both."""
    require_same_store(translator(tmp_path / "model", kind), Seq2Seq(), PAIRS, tmp_path)


# ---- killed and continued ----------------------------------------------------------------------------------


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize(
    ("kind", "writes"),
    [*(("qwen3", writes) for writes in (2, 4, 7, 9, 11)), *(("marian", writes) for writes in (14, 20, 27))],
)
def test_a_killed_pass_continues_with_the_block_and_layer_it_was_at(
    kind: str, writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A night's work would be lost at the last layer; or blocks of different depths would be mixed."""
    source: Checkpoint
    task: Task
    if kind in TRANSLATORS:
        source, task, rows = translator(tmp_path / "model", kind), Seq2Seq(), PAIRS
    else:
        source, task, rows = decoder(tmp_path / "model", kind), CausalLM(), LANGUAGE
    expected = fill(resident(source, task), tmp_path / "resident", rows)
    write, done = Spill.write, []

    def limited(self: Spill, block: str, depth: int, states: torch.Tensor) -> None:
        if len(done) == writes:
            raise Killed
        done.append((block, depth))
        write(self, block, depth, states)

    monkeypatch.setattr(Spill, "write", limited)
    with pytest.raises(Killed):
        fill(streamed(source, task, tmp_path / "scratch"), tmp_path / "streamed", rows)
    before = list(done)
    monkeypatch.setattr(Spill, "write", lambda *args: (done.append(args[1:3]), write(*args)))
    assert fill(streamed(source, task, tmp_path / "scratch"), tmp_path / "streamed", rows) == expected
    assert len(before) == writes
    assert len(done) == len(set(done))  # nothing is computed twice
    assert not (tmp_path / "scratch").exists()


def test_states_of_stored_shards_are_kept_while_the_others_are_stored(tmp_path: Path) -> None:
    """A process that is killed between two shards would begin with the embeddings again."""
    source, task, folder = decoder(tmp_path / "model", "llama"), CausalLM(), tmp_path / "streamed"
    store = CachedTeacher(folder, k=8, temperature=2.0)
    shards = store.missing(LANGUAGE)
    teacher = streamed(source, task, tmp_path / "scratch")
    outputs = teacher.stream([list(shard.rows) for shard in shards], store.compress)
    store.store(shards[0], next(outputs))
    outputs.close()
    again = streamed(source, task, tmp_path / "scratch")
    notes: list[str] = []
    rest = store.missing(LANGUAGE)
    assert len(rest) == len(shards) - 1
    for shard, signals in zip(
        rest,
        again.stream(
            [list(shard.rows) for shard in rest], store.compress, lambda done, total, note: notes.append(note)
        ),
        strict=True,
    ):
        store.store(shard, signals)
    assert not any("layer" in note for note in notes)
    assert contents(folder) == fill(resident(source, task), tmp_path / "resident", LANGUAGE)


@pytest.mark.parametrize("spoil", [lambda data: data[:-3], lambda data: data[:-1] + bytes([data[-1] ^ 1])])
def test_damaged_states_are_computed_again(
    spoil: Callable[[bytes], bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """After a power cut a file may be short, or a disk may flip a bit: wrong soft targets for all rows of the block."""
    source, task, scratch = decoder(tmp_path / "model", "llama"), CausalLM(), tmp_path / "scratch"
    teacher = streamed(source, task, scratch)
    blocks = teacher._blocks([list(LANGUAGE)])
    spill = Spill(scratch)
    teacher.model.load("rest")
    teacher.model.load("embedding")
    spill.write(blocks[0].name, 0, teacher.model.embed(blocks[0].features))
    (path,) = scratch.iterdir()
    path.write_bytes(spoil(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        streamed_files = fill(streamed(source, task, scratch), tmp_path / "streamed", LANGUAGE)
    assert streamed_files == fill(resident(source, task), tmp_path / "resident", LANGUAGE)


def test_a_full_disk_ends_a_pass_that_continues_when_there_is_room(tmp_path: Path) -> None:
    """Hidden states that fill the disk would end the run as a bug (exit code 1 with a traceback), or leave half a block that is read later."""
    source, task = decoder(tmp_path / "model", "llama"), CausalLM()
    expected = fill(resident(source, task), tmp_path / "resident", LANGUAGE)
    with full_disk(4000), pytest.raises(OSError, match=os.strerror(errno.EFBIG)) as raised:
        fill(streamed(source, task, tmp_path / "scratch"), tmp_path / "streamed", LANGUAGE)
    assert storage_error(raised.value) is not None
    assert fill(streamed(source, task, tmp_path / "scratch"), tmp_path / "streamed", LANGUAGE) == expected


# ---- what is refused ---------------------------------------------------------------------------------------


def test_a_bound_below_a_layer_and_the_head_is_refused_with_what_is_needed(tmp_path: Path) -> None:
    """The process would be killed by the system in the middle of the night."""
    source, task = decoder(tmp_path / "model", "llama"), CausalLM()
    teacher = streamed(source, task, tmp_path / "scratch", bound=10_000)
    with pytest.raises(ConfigError, match=naming("teacher.memory_bound", "10.0 kB", "raise it")):
        next(teacher.stream([list(LANGUAGE)]))


def test_missing_scratch_space_is_refused_with_what_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk would be full after hours."""
    source, task = decoder(tmp_path / "model", "llama"), CausalLM()
    teacher = streamed(source, task, tmp_path / "scratch")
    work = teacher.work([(4, 16)])
    with pytest.raises(ConfigError, match=naming("scratch space", "TB", "KDCLI_CACHE_DIR")):
        teacher.require(dataclasses.replace(work, scratch=10**15))


def t5(folder: Path) -> None:
    of.T5ForSequenceClassification(
        of.T5Config(
            vocab_size=VOCABULARY, d_model=16, d_ff=16, d_kv=8, num_layers=2, num_heads=2, num_labels=3
        )
    ).save_pretrained(folder)


def albert(folder: Path) -> None:
    of.AlbertForSequenceClassification(
        of.AlbertConfig(
            vocab_size=VOCABULARY, embedding_size=8, hidden_size=16, num_attention_heads=2, intermediate_size=16, num_hidden_layers=2,
            num_labels=3,
        )
    ).save_pretrained(folder)  # fmt: skip


@pytest.mark.parametrize(
    ("write", "name"), [(t5, "T5ForSequenceClassification"), (albert, "AlbertForSequenceClassification")]
)
def test_a_model_without_a_list_of_layers_is_refused_by_name(
    write: Callable[[Path], None], name: str, tmp_path: Path
) -> None:
    """An encoder-decoder or a model whose layers share weights would give the outputs of a part of it."""
    write(tmp_path / "model")
    words().save_pretrained(tmp_path / "model")
    task = Classification(["LABEL_0", "LABEL_1", "LABEL_2"])
    with pytest.raises(ModelError, match=naming("the teacher", name, "layer by layer")):
        streamed(Checkpoint(tmp_path / "model", "the teacher"), task, tmp_path / "scratch")


def test_a_model_that_computes_between_its_layers_is_refused(tmp_path: Path) -> None:
    """DeBERTa's convolution after the first layer would be left out."""
    head = of.AutoModelForSequenceClassification
    source = encoder(tmp_path / "model", "deberta-v2", head, conv_kernel_size=3, conv_act="gelu")
    teacher = streamed(source, TASKS[head], tmp_path / "scratch")
    with pytest.raises(ModelError, match=naming("DebertaV2ForSequenceClassification", "between its layers")):
        next(teacher.stream([list(TEXTS)]))


def test_an_incomplete_checkpoint_is_refused(tmp_path: Path) -> None:
    """Missing weights would be random, or on no device at all."""
    model = of.BertModel(ENCODERS["bert"]())
    source = saved(tmp_path / "model", model)
    with pytest.raises(ModelError, match=naming("lack", "random", "teacher.tune")):
        streamed(source, TASKS[of.AutoModelForSequenceClassification], tmp_path / "scratch")
