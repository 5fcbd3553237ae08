"""The recipes of the papers (experiment=…) on a small teacher, through the real command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.tiny import bert, language_model_options, speaker, talk

from kdcli.launch.run import launch

SHAPE = ["student.hidden_size=16", "student.num_hidden_layers=2", "student.num_attention_heads=2",
         "student.intermediate_size=32"]  # fmt: skip
RECIPES = {
    "tinybert": (
        SHAPE,
        {"features/embeddings", "features/hidden_states", "features/attention", "predictions/soft_label"},
    ),
    "patient": (
        ["student.num_hidden_layers=2", "student.layers=[0,1]"],
        {"soft_label", "hard_label", "hidden_states"},
    ),
    "minilm": (
        [*SHAPE, "stages.relations.loss.relations.relation_heads=2"],
        {"relations/relations", "task/soft_label", "task/hard_label"},
    ),
    "assistant": (
        [*SHAPE, *(item.replace("student.", "stages.assistant.student.") for item in SHAPE)],
        {"from_assistant/soft_label", "from_assistant/hard_label"},
    ),
}


@pytest.fixture(scope="module")
def deep(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of four layers."""
    folder = tmp_path_factory.mktemp("models") / "deep"
    bert(tokenizer, ["bad", "good"], layers=4).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def terms(run: Path) -> tuple[set[str], dict[str, int]]:
    """The loss terms that a run logged, as stage/term, and the steps of its stages."""
    report = json.loads((run / "report.json").read_text())
    logged = set()
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        model, _, stage = line["stage"].partition("/")
        if model == "student":
            logged |= {f"{stage}/{key[5:]}".lstrip("/") for key in line if key.startswith("loss/")}
    return logged, {stage["name"]: stage["steps"] for stage in report["stages"]}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_for_classifiers(
    name: str, small: list[str], deep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe that composes and does not run, or runs without the terms that are its point."""
    monkeypatch.chdir(tmp_path)
    base = [item for item in small if not item.startswith("student.") and "teacher.path" not in item]
    options, expected = RECIPES[name]
    command = [
        *base,
        f"experiment={name}",
        "debug=smoke",
        "measure=null",
        "dataset.max_length=32",
        f"teacher.path={deep}",
        *options,
    ]
    assert launch("distill", [*command, f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    logged, steps = terms(tmp_path / "run")
    assert logged == expected
    parts = {f"student/{term.partition('/')[0]}" for term in expected if "/" in term} or {"student"}
    assert {name for name in steps if name.startswith("student")} == parts
    assert steps["control"] == sum(count for name, count in steps.items() if name.startswith("student"))


def test_minitron(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pruned decoder that is not smaller, or that learns from labels."""
    monkeypatch.chdir(tmp_path)
    teacher = speaker(tmp_path / "teacher", steps=5)
    run = tmp_path / "run"
    base = [
        item
        for item in language_model_options(teacher)
        if not item.startswith(("student", "loss", "trainer"))
    ]
    command = [
        "experiment=minitron",
        *base,
        *talk(tmp_path, "pairs"),
        "student.intermediate_size=32",
        "debug=smoke",
        "measure=null",
    ]
    assert launch("distill", [*command, f"hydra.run.dir={run}"]) == 0
    assert terms(run)[0] == {"soft_label"}
    assert json.loads((run / "student" / "config.json").read_text())["intermediate_size"] == 32
    models = json.loads((run / "report.json").read_text())["models"]
    assert models["student"]["parameters"] < models["teacher"]["parameters"]
