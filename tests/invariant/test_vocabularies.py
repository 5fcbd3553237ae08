"""A teacher and a student that cut text into different tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from support.commands import require_one_message, require_words, runner, some
from support.tiny import decoder, exchanges, language_model_options, speaker, speller, talk

from kdcli.evaluation.predict import prepared
from kdcli.launch.run import launch
from kdcli.losses.forward_kl import ForwardKL
from kdcli.losses.hard_label import HardLabel
from kdcli.losses.uld import ULD
from kdcli.models.checkpoint import Checkpoint
from kdcli.tasks.causal_lm.task import CausalLM
from kdcli.tasks.rows import IGNORE
from kdcli.teachers.aligned import AlignedTeacher
from kdcli.teachers.local import LocalTeacher
from kdcli.training.distiller import Distiller

TEMPLATE = (
    "{% for turn in messages %}[{{ turn['role'] }}]\n{{ turn['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
Distil = Callable[..., Path]


@pytest.fixture(scope="module")
def voice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speaker(tmp_path_factory.mktemp("models") / "speaker")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student with fewer tokens, and a chat template of its own."""
    folder = tmp_path_factory.mktemp("models") / "foreign"
    tokenizer = speller(TEMPLATE, size=290)
    decoder(tokenizer, seed=5).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def distil(voice: Path, foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Distil:
    monkeypatch.chdir(tmp_path)

    options = [
        option for option in language_model_options(voice) if not option.startswith(("student", "loss"))
    ]
    options += ["student=local", f"student.path={foreign}", "measure=null", "dataset.max_length=100"]
    return runner(tmp_path, lambda form, *overrides: [*options, *talk(tmp_path, form), *overrides])


def rows_of(form: str) -> datasets.Dataset:
    pairs = exchanges(5)
    rows = {
        "pairs": [{"prompt": p + "é ", "completion": f" {a} — ünd\n\n{a}"} for p, a in pairs],
        "messages": [
            {"messages": [{"role": "user", "content": p}, {"role": "assistant", "content": a + " é—"}] * 2}
            for p, a in pairs
        ],
        "text": [{"texts": [p, a + " é"], "ends": [True, True]} for p, a in pairs],
    }[form]
    return datasets.Dataset.from_list([{"id": str(number)} | row for number, row in enumerate(rows)])


def test_plain_text_is_read_whole_by_both() -> None:
    """Rows that only one of the tokenizers fills: of a text most is never read by the other, and its likelihood is counted by tokens
    of a part."""
    theirs, ours, length = speller(), speller(TEMPLATE, size=262), 24
    text = " ".join(f"{question}{answer}" for question, answer in exchanges(40))
    rows = datasets.Dataset.from_list([{"text": text}, {"text": "a film é"}])
    for order in (theirs, ours), (ours, theirs), (theirs, ours, theirs):
        task = CausalLM()
        packed = prepared(task, rows, order, length)
        assert "".join(piece for row in packed["texts"] for piece in row).replace(" ", "") == (
            text + "a film é"
        ).replace(" ", "")
        assert sum(sum(row) for row in packed["ends"]) == 2, "each document ends once"
        for tokenizer in theirs, ours:
            whole = sum(len(tokenizer(piece)["input_ids"]) for row in packed["texts"] for piece in row)
            encoded = task.encode(tokenizer, packed, length)
            read = sum(len(encoded[row]["input_ids"]) for row in range(len(encoded)))
            assert read == whole + 2, "and the ends of text"


@pytest.mark.parametrize("form", ["pairs", "messages", "text"])
def test_positions_are_matched_by_what_was_read(form: str) -> None:
    """Offsets that count a template, a space or half a character put the teacher's answer beside another place."""
    theirs, ours = speller(), speller(TEMPLATE, size=290)
    task = CausalLM(chat=form == "messages")
    rows = rows_of(form)
    one, other = (task.encode(tokenizer, rows, 200) for tokenizer in (theirs, ours))
    shares = []
    for row, (at, matched) in enumerate(task.aligned(one, other)):
        rest = []
        for tokenizer, encoded in ((theirs, one), (ours, other)):
            item = encoded[row]
            places = np.flatnonzero(item["labels"][1:] != IGNORE) + 1
            rest.append([tokenizer.decode(item["input_ids"][place:]) for place in places])
        assert len(at) == len(rest[1])
        for mine, (place, found) in enumerate(zip(at, matched, strict=True)):
            if found and form == "messages":  # what follows differs by the template of the turns that follow
                assert rest[0][place].split("<|end|>")[0] == rest[1][mine].split("<|end|>")[0]
            elif found:
                assert rest[0][place] == rest[1][mine]
        assert matched[0]
        assert matched[-1]
        shares.append(matched.mean())
        halves = [place for place, text in enumerate(rest[1]) if "\ufffd" in text[:1]]
        assert not matched[halves].any()
    assert 0.3 < np.mean(shares) < 1


def test_a_teacher_with_the_same_tokens_is_itself(voice: Path) -> None:
    """An alignment that shifts, drops or repeats positions."""
    task, tokenizer = CausalLM(), speller()
    teacher = LocalTeacher(4)
    teacher.open(Checkpoint(voice, "voice"), task, 200, "fp32")
    rows = list(rows_of("pairs"))
    plain = teacher.signals(rows)
    aligned = AlignedTeacher(teacher, task, tokenizer, tokenizer, 200).signals(rows)
    assert aligned.matched is not None
    assert aligned.matched.float().mean() > 0.8  # but for halves of characters
    assert torch.equal(plain.hidden[aligned.matched], aligned.hidden[aligned.matched])


def test_positions_without_a_match_do_not_count(voice: Path) -> None:
    """A mean over all positions: the fewer match, the less the teacher would weigh."""
    task, theirs, ours = CausalLM(), speller(), speller(size=290)
    inner = LocalTeacher(4)
    inner.open(Checkpoint(voice, "voice"), task, 200, "fp32")
    rows = rows_of("pairs")
    signal = AlignedTeacher(inner, task, theirs, ours, 200).signals(list(rows))
    encoded = task.encode(ours, rows, 200)
    batch = task.collate([encoded[row] for row in range(len(rows))], ours)
    batch.pop("rows")
    losses = {"soft": ULD(), "hard": HardLabel()}
    distiller = Distiller(decoder(ours), task, losses, {"soft": 1.0, "hard": 1.0})
    terms = distiller(**batch, teacher=signal)["terms"]
    values = distiller.values
    assert 0 < int(signal.matched.sum()) < len(signal)
    assert torch.allclose(terms[0], values["soft"][signal.matched].mean())
    assert torch.allclose(terms[1], values["hard"].mean())


def test_rows_that_pad_the_embeddings_are_no_tokens(voice: Path, tmp_path: Path) -> None:
    """Qwen pads its embeddings to 151,936 rows in one size and 152,064 in another: probability goes to tokens that are none."""
    tokenizer, task = speller(), CausalLM()
    rows = rows_of("pairs")
    encoded = task.encode(tokenizer, rows, 200)
    batch = task.collate([encoded[row] for row in range(len(rows))], tokenizer)
    batch.pop("rows")
    found = []
    for padding in ((0, 0), (44, 12), (12, 44)):
        models = [decoder(tokenizer, seed=seed) for seed in (1, 2)]
        for model, more in zip(models, padding, strict=True):
            model.resize_token_embeddings(len(tokenizer) + more, mean_resizing=False)
            model.get_input_embeddings().weight.data[len(tokenizer) :] = 3.0
        models[0].save_pretrained(tmp_path / str(padding))
        tokenizer.save_pretrained(tmp_path / str(padding))
        teacher = LocalTeacher(4)
        teacher.open(Checkpoint(tmp_path / str(padding), "padded"), task, 200, "fp32")
        losses = {"soft": ForwardKL(), "hard": HardLabel()}
        distiller = Distiller(models[1], task, losses, {"soft": 1.0, "hard": 1.0})
        signal = teacher.signals(list(rows))
        assert signal.classes == len(tokenizer)
        found.append(distiller(**batch, teacher=signal)["terms"])
    assert torch.allclose(found[0], found[1], atol=1e-5)
    assert torch.allclose(found[0], found[2], atol=1e-5)


def test_a_teacher_with_one_more_token(distil: Distil, voice: Path, tmp_path: Path) -> None:
    """GPT-2 with [PAD] teaches distilgpt2: a traceback, tokens of the student's that are none, or probabilities that do not sum to 1."""
    tokenizer, model = speller(), decoder(speller())
    decoder(tokenizer, layers=1, seed=5).save_pretrained(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    model = type(model).from_pretrained(voice)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    words = model.get_input_embeddings().weight.data
    words[-1] = words[tokenizer.eos_token_id]  # as likely as the end of a text
    model.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    own = [f"teacher.path={tmp_path / 'teacher'}", f"student.path={tmp_path / 'student'}", "loss=forward_kl"]
    own += ["control=false", "trainer.epochs=1"]
    runs = [
        distil("stored", "pairs", *own, "teacher.top_k=400"),
        distil("live", "pairs", *own, "teacher.cache=false"),
    ]
    assert launch("eval", [f"run={runs[1]}", "measure=null", f"hydra.run.dir={tmp_path / 'eval'}"]) == 0
    reports = [*(run / "report.json" for run in runs), tmp_path / "eval" / "eval.json"]
    stored, live, again = (json.loads(report.read_text())["verdict"]["kl_to_teacher"] for report in reports)
    assert stored == pytest.approx(live, rel=1e-3)
    assert again == pytest.approx(live, rel=1e-5)
    teacher = LocalTeacher(4)
    teacher.open(Checkpoint(tmp_path / "teacher", "teacher"), CausalLM(), 200, "fp32")
    rows, everywhere = list(rows_of("pairs")), slice(None)
    whole = teacher.signals(rows).rows(everywhere).logits.softmax(-1)
    teacher.truncate_vocabulary(340)
    shared = teacher.signals(rows).rows(everywhere).logits.softmax(-1)
    assert whole[:, 340].max() > 0.05
    assert torch.allclose(shared, whole[:, :340] / (1 - whole[:, 340:]), atol=1e-5)


@pytest.mark.parametrize("form", some(["pairs", "messages", "text"], "pairs"))
def test_uld_from_end_to_end(distil: Distil, form: str) -> None:
    """Whatever takes teacher and student for one vocabulary dies, or gives figures that mean nothing."""
    run = distil("run", form, "loss=uld", *(["teacher.cache=false"] if form == "pairs" else []))
    report = json.loads((run / "report.json").read_text())
    verdict, models = report["verdict"], report["models"]
    assert verdict["agreement"] is None
    assert verdict["kl_to_teacher"] is None
    assert verdict["gain_ci95"][0] <= verdict["gain_over_control"] <= verdict["gain_ci95"][1]
    assert verdict["retention"] == pytest.approx(
        np.exp(models["student"]["score"] - models["teacher"]["score"])
    )
    assert models["teacher"]["score"] > models["student"]["score"]
    assert "n/a" not in verdict["text"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [line["eval/loss/soft_label"] for line in lines if "eval/loss/soft_label" in line]
    assert found[-1] < found[0]
    assert launch("eval", [f"run={run}", "measure=null", f"hydra.run.dir={run}/eval"]) == 0


def test_scores_are_of_the_same_text(distil: Distil, voice: Path) -> None:
    """Log-probabilities of tokens of different lengths: whoever has the shorter tokens looks better."""
    run = distil("run", "pairs", "loss=uld")
    teacher = json.loads((run / "report.json").read_text())["models"]["teacher"]
    assert launch("eval", [f"model={voice}", *self_named(run), "measure=null", "hydra.run.dir=own"]) == 0
    own = json.loads(Path("own/eval.json").read_text())["models"]["model"]
    longer, shorter = (
        sum(len(tokenizer(answer)["input_ids"]) + 1 for _, answer in exchanges(120))
        for tokenizer in (speller(size=290), speller())
    )
    assert teacher["score"] == pytest.approx(own["score"] * shorter / longer, rel=0.05)
    assert abs(teacher["score"] / own["score"] - 1) > 0.06


def self_named(run: Path) -> list[str]:
    """The data set of a run, as options of eval."""
    import yaml

    cfg = yaml.safe_load((run / ".hydra" / "config.yaml").read_text())["dataset"]
    keys = ("path", "prompt", "completion", "validation_size", "test_size", "max_length")
    return ["dataset=jsonl", *(f"dataset.{key}={cfg[key]}" for key in keys)]


def test_what_goes_with_other_tokens(distil: Distil, capsys: pytest.CaptureFixture[str]) -> None:
    """A loss that compares tokens by number, between vocabularies; and no word of what can be done."""
    distil("refused", "pairs", "loss=forward_kl", code=2)
    message = require_one_message(capsys.readouterr().err)
    require_words(message, "different tokens", "rollout=teacher", "loss=uld")
    run = distil("written", "pairs", "loss=forward_kl", "loss.soft_label.weight=0", "rollout=teacher",
                 "rollout.max_new_tokens=24", "rollout.sampling_temperature=1")  # fmt: skip
    assert json.loads((run / "report.json").read_text())["verdict"]["kl_to_teacher"] is None
    distil("nothing", "pairs", "loss=forward_kl", "loss.soft_label.weight=0", code=2)
    require_words(require_one_message(capsys.readouterr().err), "loss", "teacher", "weight")
