from __future__ import annotations

import pytest
import torch
from support.tiny import bert

from kdcli.losses.forward_kl import ForwardKL
from kdcli.losses.hard_label import HardLabel
from kdcli.signals import Signal
from kdcli.tasks.classification.task import Classification
from kdcli.training.distiller import Distiller

TEXTS = ["a good film", "this was very bad and sad so quite awful", "the book", "lovely sweet day"]


@pytest.fixture
def distiller(tokenizer) -> Distiller:
    task = Classification(["bad", "good"])
    losses = {"soft_label": ForwardKL(2.0), "hard_label": HardLabel()}
    return Distiller(
        bert(tokenizer, task.labels), task, losses, {"soft_label": 1.0, "hard_label": 0.5}
    ).eval()


def batch(tokenizer, labels: list[int], padding: int = 0) -> dict[str, torch.Tensor]:
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    if padding:
        inputs = {key: torch.nn.functional.pad(value, (0, padding)) for key, value in inputs.items()}
    return dict(inputs) | {"labels": torch.tensor(labels)}


TEACHER = Signal(torch.tensor([[-1.0, 2.0], [3.0, -2.0], [0.1, 0.0], [-2.0, 2.0]]))


def test_each_term_is_divided_by_its_own_count(tokenizer, distiller: Distiller) -> None:
    """One mean for all terms would make the hard labels fade as unlabelled rows are added."""
    out = distiller(**batch(tokenizer, [1, 0, -100, -100]), teacher=TEACHER)
    soft, hard = distiller.values["soft_label"], distiller.values["hard_label"]
    assert torch.allclose(out["terms"], torch.stack([soft.mean(), hard[:2].mean()]))
    assert torch.allclose(out["loss"], soft.mean() + 0.5 * hard[:2].mean())


def test_denominators_come_from_outside(tokenizer, distiller: Distiller) -> None:
    """A mean in each micro-batch weighs rows by the company they are in."""
    whole = distiller(**batch(tokenizer, [1, 0, -100, 1]), teacher=TEACHER)["loss"]
    full = batch(tokenizer, [1, 0, -100, 1])
    counts = torch.tensor([4.0, 3.0])
    parts = []
    for rows in (slice(0, 1), slice(1, 4)):
        part = {key: value[rows] for key, value in full.items()}
        parts.append(
            distiller(**part, teacher=Signal(TEACHER.logits[rows]), num_items_in_batch=counts)["loss"]
        )
    assert torch.allclose(sum(parts), whole, atol=1e-6)


def test_padding_changes_nothing(tokenizer, distiller: Distiller) -> None:
    """Padding that leaks into the attention or the loss makes a row's loss depend on its neighbours' length."""
    short = distiller(**batch(tokenizer, [1, 0, 1, 1]), teacher=TEACHER)
    long = distiller(**batch(tokenizer, [1, 0, 1, 1], padding=9), teacher=TEACHER)
    assert torch.allclose(short["predictions"]["logits"], long["predictions"]["logits"], atol=1e-5)
    assert torch.allclose(short["loss"], long["loss"], atol=1e-5)


def test_no_gold_label_in_a_batch_is_zero_not_nan(tokenizer, distiller: Distiller) -> None:
    """0 / 0 in one batch without gold labels would end the run."""
    out = distiller(**batch(tokenizer, [-100] * 4), teacher=TEACHER)
    assert out["terms"][1] == 0
    assert torch.isfinite(out["loss"])


def test_votes_replace_the_labels_of_losses_on_gold_alone(tokenizer, distiller: Distiller) -> None:
    """A majority that is trained on where the shares are asked for; a row without a label that counts; scores of a share."""
    inputs = batch(tokenizer, [1, 0, -100, 1])
    features = [{"votes": votes} for votes in ([0, 1, 1], [0], [], [1, 1])]
    soft = distiller.task.soft_gold(features)
    assert torch.allclose(soft["votes"], torch.tensor([[1 / 3, 2 / 3], [1, 0], [0, 0], [0, 1]]))
    plain = distiller(**inputs, teacher=TEACHER)
    out = distiller(**inputs, **soft, teacher=TEACHER)
    log_q = out["predictions"]["logits"].log_softmax(-1)
    expected = -(soft["votes"] * log_q).sum(1).sum() / 3
    assert torch.allclose(out["terms"], torch.stack([plain["terms"][0], expected]))
    assert distiller.task.soft_gold([{"label": 1}]) == {}


def test_the_teacher_is_not_a_part_of_what_is_trained(distiller: Distiller) -> None:
    """A teacher inside the module tree would be saved, wrapped and put into train mode."""
    assert {name.partition(".")[0] for name, _ in distiller.named_parameters()} == {"student"}
