"""Students that are the teacher without what matters least, of every architecture that is known."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pytest
import torch
from support.architectures import MODELS, NEWER, says
from support.commands import naming
from support.tiny import (
    bert,
    decoder,
    documents,
    exchanges,
    language_model_options,
    sentences,
    speaker,
    speller,
    talk,
)
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from kdcli.errors import ConfigError
from kdcli.students.pruning.anatomy import Anatomy, Group
from kdcli.students.pruning.pruned import Batch, Pruned, by_activation
from kdcli.tasks.base import Task
from kdcli.tasks.causal_lm.task import CausalLM
from kdcli.tasks.classification.task import Classification
from kdcli.tasks.rows import IGNORE

EVERY = MODELS | NEWER
MIXTURES = ("mixtral", "qwen3-moe")
"""Their sizes are multiples of 8."""
FREE = [name for name in EVERY if Anatomy(EVERY[name]()).family.head_size]
"""Architectures whose heads are not bound to the hidden size."""
PRE_NORM = [name for name in MODELS if name.startswith(("gpt2", "mbart", "m2m"))] + FREE
"""Architectures in which a layer without weights hands on what it is given."""


def prune(model: PreTrainedModel, **arguments: object) -> PreTrainedModel:
    """Without data; in the model's precision."""
    student, _ = Pruned(**arguments, importance="magnitude").cut(model, None, None, None)
    return student.to(model.dtype)


@torch.no_grad()
def empty(model: PreTrainedModel, group: Group, units: list[int]) -> None:
    """Write 0 to all weights of some units."""
    anatomy = Anatomy(model)
    for name, weight in model.state_dict().items():
        for dim, parts in enumerate(anatomy.axes[name]):
            for axis in parts:
                if axis.group == group:
                    weight.index_fill_(dim, axis.indices(torch.tensor(units)), 0)


def groups(model: PreTrainedModel, *kinds: str) -> Iterator[tuple[int, Group, int]]:
    """Numbered, with their units."""
    for number, (group, units) in enumerate(Anatomy(model).units.items()):
        if group.kind in kinds:
            yield number, group, units


# ---- what does nothing can go -------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_feed_forward_units_that_do_nothing(name: str) -> None:
    """Units taken from one matrix and not from its partner, or other ones than those with the least weight."""
    few = 8 if name in MIXTURES else 11
    model = EVERY[name]().double()
    for number, group, units in groups(model, "ffn"):
        empty(model, group, [(7 * unit + number) % units for unit in range(units - few)])
    student = prune(model, intermediate_size=few)
    torch.testing.assert_close(says(student), says(model))
    assert {units for _, _, units in groups(student, "ffn")} == {few}


@pytest.mark.parametrize("name", [name for name in FREE if name != "olmo2"])  # its norm is over all heads
def test_heads_that_do_nothing(name: str) -> None:
    """Queries that meet the keys of another head; a T5 whose position biases are those of other heads."""
    model = EVERY[name]().double()
    grouped = {group._replace(kind="heads") for _, group, _ in groups(model, "kv")}
    for number, group, _ in list(groups(model, "heads", "cross")):
        if group in grouped:
            pair = number % Anatomy(model).units[group._replace(kind="kv")]
            each = 4 // Anatomy(model).units[group._replace(kind="kv")]
            for first in [pair] if each == 2 else [pair, (pair + 1) % 4]:
                empty(model, group._replace(kind="kv"), [first])
                empty(model, group, list(range(first * each, (first + 1) * each)))
        else:
            empty(model, group, [number % 4, (number + 1) % 4])
    student = prune(model, num_attention_heads=2)
    torch.testing.assert_close(says(student), says(model))
    assert {units for _, _, units in groups(student, "heads", "cross")} == {2}


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3"])
def test_heads_within_their_groups(name: str) -> None:
    """A group that loses its keys and values though one of its heads is needed."""
    model = MODELS[name](num_key_value_heads=2).double()
    for number, group, _ in list(groups(model, "heads")):
        empty(model, group, [number % 2, 2 + (number + 1) % 2])
    student = prune(model, num_attention_heads=2, num_key_value_heads=2)
    torch.testing.assert_close(says(student), says(model))
    assert (student.config.num_attention_heads, student.config.num_key_value_heads) == (2, 2)


@pytest.mark.parametrize("name", PRE_NORM)
def test_layers_that_do_nothing(name: str) -> None:
    """A layer that is kept though all its weights are 0; what lists name for each layer is another layer's."""
    model = EVERY[name]().double()
    anatomy = Anatomy(model)
    with torch.no_grad():
        for weight_name, weight in model.state_dict().items():
            location = anatomy.locate(weight_name)
            if location and location[1] in (0, 2) and not anatomy.is_shared(weight_name):
                if "gemma" in name and "norm" in weight_name:
                    weight.fill_(-1)  # it is added to 1
                else:
                    weight.zero_()
    student = prune(model, num_hidden_layers=2)
    torch.testing.assert_close(says(student), says(model))


@torch.no_grad()
def twin(model: PreTrainedModel) -> None:
    """Make odd hidden channels copies of the even ones that nobody reads: a norm does not notice when they go.

    Where heads are bound to the hidden size, half of them do nothing; so does half of a task's own hidden units.
    """
    bound = Anatomy(model).family.head_size is None
    for number, group, units in list(groups(model, "pooled", *(["heads", "cross"] if bound else []))):
        empty(model, group, [unit for unit in range(units) if unit % 2 == number % 2])
    anatomy, parts = Anatomy(model), dict(model.named_modules())
    for part in parts.values():
        if type(part).__name__ == "M2M100SinusoidalPositionalEmbedding":  # a buffer that no checkpoint holds
            part.weights[:, 1::2] = part.weights[:, ::2]
    for name, weight in model.named_parameters():
        part = parts[name.rpartition(".")[0]]
        for dim, axes in enumerate(anatomy.axes[name]):
            if not any(axis.group.kind in ("hidden", "derived") for axis in axes):
                continue
            odd, even = torch.arange(1, 24, 2), torch.arange(0, 24, 2)
            reads = (
                weight.dim() > 1
                and not isinstance(part, nn.Embedding)
                and dim == (0 if isinstance(part, Conv1D) else 2 if name.endswith("gate_up_proj") else 1)
            )
            reads = reads and not name.endswith("experts.down_proj")
            if reads:
                weight.index_fill_(dim, odd, 0)
            else:
                weight.index_copy_(dim, odd, weight.index_select(dim, even))


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in EVERY if name not in MIXTURES])
def test_hidden_channels_that_do_nothing(name: str) -> None:
    """A norm, an embedding or a head that loses other channels than the rest; heads or pooled units that are taken with
    them as if they were channels."""
    model = EVERY[name]().double()
    model.config.final_logit_softcapping = None
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        model.get_output_embeddings().bias.zero_()  # it would not be doubled with what is read
    twin(model)
    student = prune(model, hidden_size=12)
    said = says(model)
    embeddings, words = student.get_input_embeddings(), model.get_input_embeddings()
    narrow = words.weight.shape[1] < 24
    assert torch.equal(embeddings.weight, words.weight if narrow else words.weight[:, ::2])
    # what follows from the width alone is not the student's fault
    for (_, ours), (_, theirs) in zip(student.named_modules(), model.named_modules(), strict=True):
        if isinstance(getattr(theirs, "embed_scale", None), float):
            ours.embed_scale = theirs.embed_scale
        elif hasattr(theirs, "embed_scale"):
            ours.embed_scale.copy_(theirs.embed_scale)
        if type(theirs).__name__ == "MarianSinusoidalPositionalEmbedding":
            ours.weight.copy_(theirs.weight[:, ::2])
        elif type(theirs).__name__ == "M2M100SinusoidalPositionalEmbedding":
            ours.weights.copy_(theirs.weights[:, ::2])
    head = student.get_output_embeddings()
    tied = head is not None and head.weight is embeddings.weight
    assert tied == (
        model.get_output_embeddings() is not None and model.get_output_embeddings().weight is words.weight
    )
    factor = 2.0 if tied and not narrow else 1.0  # the twins were read as well
    if model.config.model_type == "t5" and head is not None and model.config.scale_decoder_outputs:
        factor *= 0.5**0.5
    near = 1e-4 if name in FREE else 1e-7  # root mean squares are taken in fp32
    torch.testing.assert_close(says(student) * factor, said, rtol=near, atol=near)


# ---- a plain model -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in EVERY if name not in MIXTURES])
def test_a_plain_model_with_less_of_everything(name: str, tmp_path: Path) -> None:
    """A student that transformers alone loads as another one: sizes that its config does not say, a second matrix of the
    vocabulary, positions that the checkpoint does not hold."""
    model = EVERY[name]()
    said = says(model)
    heads = {"num_attention_heads": 2} if name in FREE else {}
    student = prune(model, hidden_size=12, intermediate_size=9, num_hidden_layers=2, **heads)
    assert torch.equal(says(model), said)
    assert says(student).isfinite().all()
    assert not student.training
    student.save_pretrained(tmp_path)
    loaded, info = type(student).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(says(loaded.eval()), says(student))
    assert student.config.hidden_size == 12
    assert Anatomy(loaded).head_size(Anatomy(loaded).stacks[0]) == Anatomy(model).head_size(
        Anatomy(model).stacks[0]
    )
    before, after = model.get_output_embeddings(), student.get_output_embeddings()
    if before is not None:
        assert (before.weight is model.get_input_embeddings().weight) == (
            after.weight is student.get_input_embeddings().weight
        )


# ---- which are the best --------------------------------------------------------------------------------


def classified(count: int = 40) -> datasets.Dataset:
    rows = [{"id": text, "text": text, "label": int(label == "good")} for text, label in sentences(count)]
    return datasets.Dataset.from_list(rows)


def spoken(count: int = 24) -> datasets.Dataset:
    rows = [{"id": prompt, "prompt": prompt, "completion": answer} for prompt, answer in exchanges(count)]
    return datasets.Dataset.from_list(rows)


Case = tuple[PreTrainedModel, object, Task, datasets.Dataset]


@pytest.fixture(params=["classifier", "decoder"])
def case(request: pytest.FixtureRequest, tokenizer) -> Case:
    """A model whose names are known here, its tokenizer, task and rows."""
    if request.param == "classifier":
        return (
            bert(tokenizer, ["bad", "good"], layers=3),
            tokenizer,
            Classification(["bad", "good"]),
            classified(),
        )
    own = speller()
    return decoder(own, layers=3), own, CausalLM(), spoken()


@torch.no_grad()
def weaken(model: PreTrainedModel, names: str, dim: int, kept: list[int], width: int = 1) -> None:
    """Make small what the named weights hold, but for some units of a width."""
    found = [weight for name, weight in model.named_parameters() if re.fullmatch(names, name)]
    assert found
    for weight in found:
        units = weight.movedim(dim, 0).unflatten(0, (-1, width))
        units[[unit for unit in range(len(units)) if unit not in kept]] *= 0.01


@pytest.mark.parametrize("importance", ["activation", "gradient", "magnitude"])
def test_the_units_that_matter_are_kept(case: Case, importance: str) -> None:
    """A score that is read the wrong way round, or taken of other units than those that it is used for."""
    model, tokenizer, task, rows = case
    best = [3, 20, 41, 60]
    weaken(model, r".*(intermediate\.dense|mlp\.(gate|up)_proj)\.(weight|bias)", 0, best)
    if importance != "activation":  # which is taken before the projection
        weaken(model, r".*(layer\.\d\.output\.dense|down_proj)\.weight", 1, best)
    initializer = Pruned(intermediate_size=4, importance=importance, calibration=20)
    student, same = initializer.cut(copy.deepcopy(model), tokenizer, task, rows)
    assert same is tokenizer
    ours, theirs = (
        [
            weight
            for name, weight in part.state_dict().items()
            if re.search(r"(\.output|down_proj).*weight", name)
        ]
        for part in (student, model)
    )
    pairs = [(one, other) for one, other in zip(ours, theirs, strict=True) if one.shape != other.shape]
    assert len(pairs) == 3
    assert all(torch.equal(one, other[:, best]) for one, other in pairs)


@pytest.mark.parametrize("importance", ["activation", "gradient", "magnitude"])
def test_the_heads_that_matter_are_kept(importance: str) -> None:
    """Heads told by the width of another axis, or by that of their neighbour's group."""
    tokenizer = speller()
    model = decoder(tokenizer, hidden=64)
    model = type(model)(
        type(model.config)(
            **(model.config.to_dict() | {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8})
        )
    )
    weaken(model, r".*v_proj\.weight", 0, [1, 2], width=8)
    weaken(model, r".*o_proj\.weight", 1, [3, 4, 0], width=8)
    sizes = {"num_attention_heads": 2, "num_key_value_heads": 2}
    student, _ = Pruned(**sizes, importance=importance, calibration=20).cut(
        copy.deepcopy(model), tokenizer, CausalLM(), spoken()
    )
    ours, theirs = student.model.layers[1].self_attn, model.model.layers[1].self_attn
    assert torch.equal(ours.k_proj.weight, theirs.k_proj.weight[8:24])
    if importance != "activation":  # which is taken before o_proj
        assert torch.equal(ours.q_proj.weight, theirs.q_proj.weight[24:40])
    assert (student.config.head_dim, student.config.hidden_size) == (8, 64)


@pytest.mark.parametrize("importance", ["activation", "gradient", "magnitude"])
def test_the_channels_that_matter_are_kept(case: Case, importance: str) -> None:
    """Channels told by one norm alone, or by the weights of one side."""
    model, tokenizer, task, rows = case
    best = [1, 2, 7, 8, 9, 12, 15, 16, 21, 22, 23, 25, 27, 29, 30, 31]
    weaken(model, r".*([Nn]orm|embeddings|embed_tokens)\.(weight|bias)", -1, best)
    if importance != "activation":
        weaken(
            model, r".*(query|key|value|intermediate\.dense|[qkv]_proj|gate_proj|up_proj)\.weight", 1, best
        )
        weaken(model, r".*(output\.dense|o_proj|down_proj)\.weight", 0, best)
    student, _ = Pruned(hidden_size=16, importance=importance, calibration=20).cut(
        copy.deepcopy(model), tokenizer, task, rows
    )
    words, own = (part.get_input_embeddings().weight for part in (model, student))
    assert torch.equal(own, words[:, best])


@pytest.mark.parametrize("importance", ["activation", "gradient", "magnitude"])
def test_the_layers_that_matter_are_kept(case: Case, importance: str) -> None:
    """The layers that change least are kept, and those that change most taken."""
    model, tokenizer, task, rows = case
    weaken(model, r".*layers?\.1\..*(output\.dense|o_proj|down_proj)\.(weight|bias)", 0, [])
    if importance != "activation":
        weaken(
            model,
            r".*layers?\.1\..*(query|key|value|intermediate\.dense|[qkv]_proj|gate_proj|up_proj)\.weight",
            0,
            [],
        )
    student, _ = Pruned(num_hidden_layers=2, importance=importance, calibration=20).cut(
        copy.deepcopy(model), tokenizer, task, rows
    )
    ours, theirs = (
        [weight for name, weight in part.state_dict().items() if re.search(r"(query|q_proj)\.weight", name)]
        for part in (student, model)
    )
    assert len(ours) == 2
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[2])


# ---- the rows that scores are taken on -----------------------------------------------------------------


def scores(
    initializer: Pruned,
    model: PreTrainedModel,
    tokenizer: object,
    task: Task,
    rows: datasets.Dataset,
    batch: int,
) -> dict[Group, Tensor]:
    task.batch = batch
    return initializer._scores(Anatomy(copy.deepcopy(model)), tokenizer, task, rows)


def packed(tokenizer) -> tuple[CausalLM, datasets.Dataset]:
    task = CausalLM()
    rows = datasets.Dataset.from_list(
        [{"id": text, "text": text[: 40 * (1 + n % 4)]} for n, text in enumerate(documents(6))]
    )
    return task, task.prepare(rows, tokenizer, 64)


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "llama", "packed", "bart-labels", "t5-labels"])
def test_padding_does_not_count(name: str, tokenizer) -> None:
    """Units that are kept for what they make of padding; a decoder's tokens told by its encoder's padding."""
    if name in ("gpt2", "llama", "packed"):
        own = speller()
        task, rows = packed(own) if name == "packed" else (CausalLM(), spoken())
        model = MODELS[name.replace("packed", "llama")](vocab_size=len(own), n_positions=128)
    else:
        own, task, rows = tokenizer, Classification(["bad", "good"]), classified()
        model = MODELS[name](vocab_size=len(own), max_position_embeddings=64)
    initializer = Pruned(hidden_size=4)
    alone, together = (scores(initializer, model.double(), own, task, rows, batch) for batch in (1, 16))
    assert len(alone) > 5
    for group, expected in alone.items():
        torch.testing.assert_close(together[group], expected, rtol=1e-6, atol=1e-9)
        assert group.kind in ("kv", "derived") or expected.abs().sum() > 0


def test_texts_longer_than_the_positions_after_the_paddings(tokenizer) -> None:
    """An index error at the first text with two tokens more than RoBERTa's positions hold."""
    model = MODELS["roberta"](vocab_size=len(tokenizer), max_position_embeddings=12)
    rows = datasets.Dataset.from_list([{"id": "0", "text": " ".join(["good"] * 40), "label": 0}])
    found = scores(Pruned(hidden_size=4), model, tokenizer, Classification(["bad", "good"]), rows, 1)
    assert all(torch.isfinite(each).all() for each in found.values())


@pytest.mark.parametrize("name", ["bart", "marian"])
def test_an_encoder_and_a_decoder_have_each_their_own_padding(name: str) -> None:
    """A translation's tokens that count, or do not, where its source has them."""
    lengths = [(9, 3), (4, 7), (6, 6)]  # of source and target
    few = [torch.arange(4, 4 + length) + row for row, pair in enumerate(lengths) for length in pair]

    def padded(rows: list[Tensor]) -> Tensor:
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def batch(rows: list[int]) -> Batch:
        source, target = padded([few[2 * row] for row in rows]), padded([few[2 * row + 1] for row in rows])
        real, written = source.ne(0), target.ne(0)
        inputs = {"input_ids": source, "attention_mask": real.long(), "decoder_input_ids": target}
        return Batch(inputs, target.masked_fill(~written, IGNORE), (real, written))

    model = MODELS[name]().double()
    anatomy = Anatomy(model)
    alone = by_activation(anatomy, [batch([0]), batch([1]), batch([2])], CausalLM())
    together = by_activation(anatomy, [batch([0, 1, 2])], CausalLM())
    for group, expected in alone.items():
        torch.testing.assert_close(together[group], expected, rtol=1e-5, atol=1e-7)
        assert group.kind == "derived" or (expected > 0).all()


def test_gradients_are_those_of_the_loss(tokenizer) -> None:
    """A loss over other tokens than the completion's; a head whose gradient is lost with its logits."""
    own = speller()
    model, rows = decoder(own), spoken(1)
    found = scores(Pruned(hidden_size=4, importance="gradient"), model, own, CausalLM(), rows, 1)
    text = rows[0]["prompt"] + rows[0]["completion"] + own.eos_token
    ids = torch.tensor([own(text)["input_ids"]])
    labels = ids.clone()
    labels[0, : len(own(rows[0]["prompt"])["input_ids"])] = -100
    (model(input_ids=ids, labels=labels).loss * (labels != -100).sum()).backward()
    taken = {name: (weight * weight.grad).abs().double() for name, weight in model.named_parameters()}
    down = taken["model.layers.1.mlp.down_proj.weight"].sum(0)
    up = sum(taken[f"model.layers.1.mlp.{part}_proj.weight"].sum(1) for part in ("up", "gate"))
    torch.testing.assert_close(found[Group("ffn", "layers", 1)], down + up, rtol=1e-4, atol=1e-7)
    hidden = taken["model.embed_tokens.weight"].sum(0) + taken["model.norm.weight"]
    assert (found[Group("hidden")] > hidden).all()
    layer = sum(worth.sum() for name, worth in taken.items() if ".layers.1." in name)
    torch.testing.assert_close(found[Group("layer", "layers")][1], layer, rtol=1e-4, atol=1e-7)


def test_gradients_are_of_gold_rows(tokenizer) -> None:
    """Rows without a label that use up those that the scores are taken on."""
    model, task = bert(tokenizer, ["bad", "good"]), Classification(["bad", "good"])
    rows = classified(12)
    hidden = rows.map(
        lambda row, number: row | {"label": IGNORE if number < 8 else row["label"]}, with_indices=True
    )
    initializer = Pruned(hidden_size=16, importance="gradient", calibration=4)
    expected = scores(initializer, model, tokenizer, task, rows.select(range(8, 12)), 4)
    found = scores(initializer, model, tokenizer, task, hidden, 4)
    assert all(torch.equal(found[group], expected[group]) for group in expected)
    apart = [scores(initializer, model, tokenizer, task, rows.select([row]), 1) for row in range(8, 12)]
    one_by_one = scores(initializer, model, tokenizer, task, hidden, 1)
    for group, found in one_by_one.items():
        torch.testing.assert_close(found, sum(each[group] for each in apart))
    nothing = hidden.select(range(8))
    with pytest.raises(ConfigError, match=naming("training row", "gold label")):
        initializer.cut(model, tokenizer, task, nothing)
    with_all = scores(Pruned(hidden_size=16, calibration=4), model, tokenizer, task, hidden, 4)
    first = scores(Pruned(hidden_size=16), model, tokenizer, task, rows.select(range(4)), 4)
    assert all(torch.equal(with_all[group], first[group]) for group in first)


@pytest.mark.parametrize("importance", ["activation", "gradient"])
def test_the_same_student_again(case: Case, importance: str) -> None:
    """A run that cannot be repeated; a teacher that is another one after its student was initialised."""
    model, tokenizer, task, rows = case
    before = copy.deepcopy(model.state_dict())
    initializer = Pruned(num_hidden_layers=2, hidden_size=16, intermediate_size=20, importance=importance)
    one, other = (
        initializer.cut(copy.deepcopy(model), tokenizer, task, rows)[0].state_dict() for _ in range(2)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    initializer.cut(model, tokenizer, task, rows)
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert not any(part._forward_hooks for part in model.modules())


# ---- what cannot be ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sizes", "words"),
    [
        ("bert", {"hidden_size": 30}, ["student.hidden_size", "30", "24"]),
        ("bert", {"hidden_size": 20}, ["student.hidden_size", "20", "multiple of 6", "24"]),
        ("bert", {"num_attention_heads": 2}, ["2 heads", "hidden_size", "12"]),
        ("gpt2", {"num_attention_heads": 3, "hidden_size": 12}, ["3 heads", "hidden_size", "18"]),
        ("bart", {"hidden_size": 18}, ["student.hidden_size", "18", "multiple of 12", "24"]),
        ("bart", {"intermediate_size": 18}, ["student.intermediate_size", "18", "16", "decoder_ffn_dim"]),
        ("bert", {"num_key_value_heads": 2}, ["student.num_key_value_heads", "2", "bert", "null"]),
        ("bert", {"num_hidden_layers": 5}, ["student.num_hidden_layers", "5", "4"]),
        ("bert", {"hidden_size": 24, "num_hidden_layers": 4}, ["nothing", "num_hidden_layers = 4", "hidden_size = 24"]),
        ("t5", {"num_attention_heads": 4}, ["nothing", "num_layers = 4"]),
        ("llama", {"num_attention_heads": 3}, ["student.num_attention_heads", "3", "4 heads", "2 keys and values"]),
        ("llama", {"num_attention_heads": 4, "num_key_value_heads": 1}, ["student.num_attention_heads", "4", "num_key_value_heads = 1", "times 1 to 2"]),
        ("llama", {"num_key_value_heads": 3}, ["student.num_key_value_heads", "3", "2"]),
        ("llama", {"hidden_size": 22}, ["transformers", "llama", "22"]),
    ],
)  # fmt: skip
def test_sizes_that_cannot_be(name: str, sizes: dict[str, int], words: list[str]) -> None:
    """A traceback from within torch, or a student that transformers cannot load, after the teacher was tuned."""
    with pytest.raises(ConfigError, match=naming(*words)):
        prune(MODELS[name](), **sizes)


def test_nothing_is_said() -> None:
    """A student that is its teacher, and a run that says so after hours."""
    with pytest.raises(ConfigError, match=naming("student.num_hidden_layers", "student.hidden_size")):
        Pruned()


def test_an_embedding_as_wide_as_the_hidden_states() -> None:
    """ELECTRA without its projection, because the widths happen to be the same."""
    with pytest.raises(ConfigError, match=naming("student.hidden_size", "electra.embeddings_project.weight")):
        prune(MODELS["electra-narrow"](embedding_size=12), hidden_size=12)


# ---- the whole run -------------------------------------------------------------------------------------


def test_a_pruned_classifier_learns(distil: Callable[..., Path]) -> None:
    """An initialiser that works alone, and not where its config, the rows and the export of a run meet it."""
    sizes = ["student.hidden_size=16", "student.num_hidden_layers=1", "student.intermediate_size=4"]
    run = distil("run", "student=pruned", *sizes, "student.importance=gradient", "trainer.epochs=1")
    student = AutoModelForSequenceClassification.from_pretrained(run / "student")
    assert (student.config.hidden_size, student.config.num_attention_heads) == (16, 1)
    models = json.loads((run / "report.json").read_text())["models"]
    assert models["student"]["score"] > 0.75
    assert models["student"]["parameters"] < models["teacher"]["parameters"] / 2


def test_a_pruned_decoder_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As above, of a language model."""
    from kdcli.launch.run import launch

    monkeypatch.chdir(tmp_path)
    teacher = speaker(tmp_path / "teacher", steps=40)
    sizes = ["student=pruned", "student.num_attention_heads=1", "student.intermediate_size=40"]
    options = [word for word in language_model_options(teacher) if not word.startswith("student")] + talk(
        tmp_path, "messages"
    )
    folder = tmp_path / "run"
    assert (
        launch(
            "distill", [*options, *sizes, "measure=null", "trainer.max_steps=6", f"hydra.run.dir={folder}"]
        )
        == 0
    )
    student = AutoModelForCausalLM.from_pretrained(folder / "student")
    config = student.config
    assert (config.num_attention_heads, config.head_dim, config.hidden_size, config.intermediate_size) == (
        1,
        16,
        32,
        40,
    )
    assert student.get_output_embeddings().weight is student.get_input_embeddings().weight
