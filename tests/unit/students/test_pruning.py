from __future__ import annotations

from pathlib import Path

import datasets
import torch
from support.tiny import bert

from kdcli.models.checkpoint import Checkpoint
from kdcli.students.pruning.layers import Layers
from kdcli.tasks.classification.task import Classification


def test_labels_of_the_teacher_in_another_order_are_put_in_the_datas(tokenizer, tmp_path: Path) -> None:
    """A student that inherits the teacher's head in the teacher's order learns with its classes mixed up, and is shipped so."""
    teacher = bert(tokenizer, ["c", "a", "b"]).eval()
    torch.nn.init.normal_(teacher.classifier.bias)
    teacher.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    student, _ = Layers(2).initialize(
        Classification(["a", "b", "c"]), Checkpoint(tmp_path, "it"), datasets.Dataset.from_list([])
    )
    batch = tokenizer(["a good film", "so sad"], return_tensors="pt", padding=True)
    with torch.no_grad():
        assert torch.equal(student(**batch).logits, teacher(**batch).logits[:, [1, 2, 0]])
    assert student.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert student.config.label2id == {"a": 0, "b": 1, "c": 2}
