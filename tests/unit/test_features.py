"""What is seen of a model's inside, and the losses on it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import transformers
from support.commands import naming
from torch import Tensor
from transformers import PreTrainedModel

from kdcli.errors import ConfigError, ModelError
from kdcli.features import capture_features
from kdcli.losses.attention import Attention
from kdcli.losses.embeddings import Embeddings
from kdcli.losses.features import pairs
from kdcli.losses.hidden_states import HiddenStates
from kdcli.losses.relations import Relations
from kdcli.signals import Features, Signal

ALL = frozenset(("hidden_states", "attentions", "relations"))
IDS = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
SHAPE = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
         "initializer_range": 0.2}  # fmt: skip
OTHER = {
    "qwen2": SHAPE | {"num_key_value_heads": 4},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 24, "vocab_size": 32},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 4, "vocab_size": 32, "bos_token_id": 1, "eos_token_id": 1},
}
DECODERS = ("llama", "gpt2", "qwen2")


def model(kind: str, seed: int = 0, layers: int = 2, **more: Any) -> PreTrainedModel:
    torch.manual_seed(seed)
    shape = OTHER.get(kind, SHAPE | {"num_hidden_layers": layers})
    config = transformers.AutoConfig.for_model(kind, pad_token_id=0, **shape | more)
    return transformers.AutoModel.from_config(config).eval()


def look(of: PreTrainedModel, ids: Tensor = IDS, mask: Tensor = MASK, parts: frozenset[Any] = ALL) -> Signal:
    inputs = {"input_ids": ids, "attention_mask": mask}
    with torch.no_grad(), capture_features(of, inputs, parts) as inside:
        of(**inputs)
        seen = inside()
    return Signal(torch.zeros(2, 2), features=seen)


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "distilbert", "llama", "qwen2", "gpt2"])
def test_every_architecture_says_what_goes_on_in_it(kind: str) -> None:
    """A hook on a layer of another name sees nothing, and the loss is taken of nothing."""
    seen = look(model(kind)).features
    assert seen is not None
    assert [x.shape for x in seen.hidden_states] == [(2, 5, 16)] * 3
    assert [x.shape for x in seen.attentions] == [(2, 4, 5, 5)] * 2
    for x in (*seen.queries, *seen.keys, *seen.values):
        assert x.shape == (2, 5, 16)
    probabilities = seen.attentions[0]
    assert torch.allclose(probabilities[0].sum(-1), torch.ones(4, 5))
    assert seen.pairs[0].equal(
        torch.ones(5, 5).tril().bool() if kind in DECODERS else torch.ones(5, 5).bool()
    )
    assert (probabilities[:, :, :3][~seen.pairs[:, None, :3].expand(-1, 4, -1, -1)] == 0).all()
    assert seen.tokens.equal(MASK.bool())


def test_queries_and_keys_are_those_that_the_attention_is_made_of() -> None:
    """Keys taken for values, or a layer for another, give a loss that looks sound."""
    seen = look(model("bert")).features
    assert seen is not None
    for layer in range(2):
        q, k = (x[layer].unflatten(-1, (4, 4)).transpose(1, 2) for x in (seen.queries, seen.keys))
        scores = (q @ k.transpose(-1, -2) / 2).masked_fill(~seen.pairs[:, None], -torch.inf)
        assert torch.allclose(scores.softmax(-1)[0], seen.attentions[layer][0], atol=1e-6)


def test_attention_is_watched_without_its_dropout() -> None:
    """Weights that dropout has thinned have zeros, whose logarithm is most of the loss."""
    trained = model("bert", attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.0)
    still = look(trained).features
    seen = look(trained.train()).features
    assert seen is not None
    assert still is not None
    assert torch.equal(seen.attentions[0], still.attentions[0])
    assert all(module.training for module in trained.modules())


def test_nothing_is_left_in_a_model_that_was_watched() -> None:
    """Hooks that stay slow every later step down, and keep its activations in memory."""
    of = model("bert")
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in of.modules()]
    look(of, parts=frozenset({"relations"}))
    assert hooks == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in of.modules()]


def test_packed_texts_do_not_see_each_other() -> None:
    """Relations between two documents that only share a row teach what no model can know."""
    of = model("llama")
    inputs = {"input_ids": IDS[:1], "position_ids": torch.tensor([[0, 1, 0, 1, 0]])}
    with torch.no_grad(), capture_features(of, inputs, frozenset({"relations"})) as inside:
        of(**inputs)
        seen = inside()
    assert seen is not None
    assert seen.tokens.tolist() == [[True, True, True, True, False]]  # the last one pads the row
    expected = torch.zeros(5, 5).bool()
    expected[0, 0] = expected[1, :2] = expected[2, 2] = expected[3, 2:4] = True
    assert seen.pairs[0].equal(expected)


def test_an_architecture_that_does_not_say_it_is_refused() -> None:
    """A loss over no layers is 0, and the run goes on."""
    of = transformers.AutoModel.from_config(
        transformers.AutoConfig.for_model("fnet", **{key: SHAPE[key] for key in SHAPE if "heads" not in key})
    ).eval()
    with (
        torch.no_grad(),
        capture_features(of, {"input_ids": IDS, "attention_mask": MASK}, frozenset({"relations"})) as inside,
    ):
        of(input_ids=IDS)
        with pytest.raises(ModelError, match=naming("relations", "return")):
            inside()


# ---- the losses --------------------------------------------------------------------------------------

LOSSES = [
    HiddenStates(), HiddenStates("last", "cosine"), HiddenStates([(0, 0), (-1, -1)], tokens="first"), Embeddings(),
    Attention(), Attention("last", "probabilities"), Attention("uniform", "probabilities", "kl"),
    Relations(), Relations(["values"], 2, [(1, 1)]),
]  # fmt: skip
each_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: f"{type(loss).__name__}")


def attached(loss: Any, student: PreTrainedModel, teacher: PreTrainedModel) -> Any:
    torch.manual_seed(1)
    loss.attach(student.config, teacher.config)
    return loss


@each_loss
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_zero_where_both_are_the_same_and_above_elsewhere(loss: Any, kind: str) -> None:
    """A hint that pulls away from the teacher."""
    one, other = model(kind), model(kind, seed=1)
    attached(loss, one, one)
    assert loss(look(one), look(one), None).abs().max() < 1e-6
    assert (loss(look(one), look(other), None) > 1e-5).any()
    assert (loss(look(one), look(other), None) >= 0).all()


@each_loss
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_padding_changes_nothing_and_only_tokens_count(loss: Any, kind: str) -> None:
    """Padding that takes part makes the loss depend on the neighbours of a row."""
    one, other = model(kind), model(kind, seed=1)
    attached(loss, one, other)
    padded = [torch.nn.functional.pad(x, (0, 3)) for x in (IDS, MASK)]
    before = loss(look(one), look(other), None)
    after = loss(look(one, *padded), look(other, *padded), None)
    assert len(before) == (2 if loss.over == "rows" else 8)
    assert torch.allclose(before, after, atol=1e-6)


@each_loss
def test_widths_depths_and_heads_may_differ(loss: Any) -> None:
    """A student that is no smaller copy of the teacher cannot learn from its inside."""
    student = model("bert", hidden_size=8, num_attention_heads=2)
    teacher = model("bert", layers=4)
    attached(loss, student, teacher)
    assert (loss(look(student), look(teacher), None) > 0).all()
    learnt = [name for name, _ in loss.named_parameters()]
    assert bool(learnt) == isinstance(loss, HiddenStates)


def tokens_of(features: Features) -> list[tuple[int, int]]:
    return [(int(row), int(place)) for row, place in features.tokens.nonzero()]


def test_hidden_states_against_the_formula() -> None:
    """The wrong layer, or a mean over the wrong axis."""
    student, teacher = model("bert", hidden_size=8), model("bert", layers=4, seed=1)
    loss = attached(HiddenStates("uniform"), student, teacher)
    q, p = look(student), look(teacher)
    found = loss(q, p, None)
    for value, (row, place) in zip(found, tokens_of(q.features), strict=True):
        apart = 0.0
        for number, (s, t) in enumerate([(1, 2), (2, 4)]):
            mine = loss.projections[number](q.features.hidden_states[s][row, place])
            apart += (mine - p.features.hidden_states[t][row, place]).square().sum().item() / 16
        assert value.item() == pytest.approx(apart / 2, rel=1e-5)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_attention_against_the_formulas(kind: str) -> None:
    """Arguments swapped, padded keys counted, a softmax of probabilities."""
    one, other = model(kind), model(kind, seed=1)
    q, p = look(one), look(other)
    kl = attached(Attention([(2, 1)], "probabilities", "kl"), one, other)(q, p, None)
    mse = attached(Attention([(2, 1)], "probabilities"), one, other)(q, p, None)
    scores = attached(Attention([(2, 1)], "scores"), one, other)(q, p, None)
    for number, (row, place) in enumerate(tokens_of(q.features)):
        there = q.features.pairs[row, place]
        a, b = q.features.attentions[1][row, :, place, there], p.features.attentions[0][row, :, place, there]
        assert float(kl[number]) == pytest.approx(float((b * (b / a).log()).sum(-1).mean()), abs=1e-6)
        assert float(mse[number]) == pytest.approx(float((a - b).square().mean()), abs=1e-7)
        centred = [x.log() - x.log().mean(-1, keepdim=True) for x in (a, b)]
        assert float(scores[number]) == pytest.approx(
            float((centred[0] - centred[1]).square().mean()), abs=1e-6
        )


def test_relations_against_the_formula() -> None:
    """Heads cut across tokens, or the student's relation as the target."""
    student, teacher = model("bert", hidden_size=8, num_attention_heads=2), model("bert", seed=1)
    q, p = look(student), look(teacher)
    found = attached(Relations(["queries", "values"], 4), student, teacher)(q, p, None)
    for value, (row, place) in zip(found, tokens_of(q.features), strict=True):
        there = q.features.tokens[row]
        total = 0.0
        for name in ("queries", "values"):
            logs = []
            for inside in (q.features, p.features):
                x = getattr(inside, name)[1][row, there]
                width = x.shape[-1] // 4
                heads = [x[:, head * width : (head + 1) * width] for head in range(4)]
                logs.append([(h[place] @ h.T / math.sqrt(width)).log_softmax(-1) for h in heads])
            total += sum(float((b.exp() * (b - a)).sum()) for a, b in zip(*logs, strict=True)) / 4
        assert float(value) == pytest.approx(total, rel=1e-4, abs=1e-6)


def test_relations_of_grouped_keys_and_values() -> None:
    """SmolLM2 has 9 heads and 3 of keys and values, 192 columns wide: they are not cut into 9, and the message is torch's."""
    one = model("llama", hidden_size=36, num_attention_heads=9, num_key_value_heads=3)
    wide = model("llama", num_key_value_heads=2, head_dim=12)  # queries 48, keys and values 24
    with pytest.raises(ConfigError, match=naming("9", "student's keys", "12", "relation_heads = 6")):
        attached(Relations(), one, one)
    with pytest.raises(ConfigError, match=naming("16", "student's values", "24", "relation_heads = 12")):
        attached(Relations(["values"], 16), wide, wide)
    attached(Relations(["queries"]), one, one)
    loss = attached(Relations(relation_heads=6), one, wide)
    assert torch.isfinite(loss(look(one), look(wide), None)).all()


@each_loss
def test_gradients_reach_the_student_and_not_the_teacher(loss: Any, tokenizer) -> None:
    """A hint that is detached does nothing, whatever its value."""
    student, teacher = model("bert", hidden_size=8, num_attention_heads=2), model("bert", seed=1)
    attached(loss, student, teacher)
    inputs = {"input_ids": IDS, "attention_mask": MASK}
    with capture_features(student, inputs, loss.features) as inside:
        student(**inputs)
        seen = inside()
    loss(Signal(torch.zeros(2, 2), features=seen), look(teacher), None).sum().backward()
    assert any(weight.grad is not None and weight.grad.abs().max() > 0 for weight in student.parameters())
    assert all(weight.grad is None for weight in teacher.parameters())


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        ("uniform", [(1, 3), (2, 6), (3, 9), (4, 12)]),
        ("last", [(1, 9), (2, 10), (3, 11), (4, 12)]),
        ("skip", [(1, 3), (2, 6), (3, 9)]),
        ([(0, 0), (-1, -1)], [(0, 0), (4, 12)]),
    ],
)
def test_layer_mappings_are_those_of_the_papers(mapping: Any, expected: list[tuple[int, int]]) -> None:
    """TinyBERT-4's g(m) = 3 m; PKD's skip and last."""
    assert pairs(mapping, 4, 12, lowest=0) == expected


def test_attention_has_no_layer_of_the_embeddings() -> None:
    """Layer 0 of the attentions would silently be the last one."""
    with pytest.raises(ConfigError, match="no layer 0"):
        pairs([(0, 1)], 4, 12, lowest=1)
