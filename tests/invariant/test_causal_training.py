"""What must not change the result of a language model, through the real command on decoders that train in seconds."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file
from support.commands import ColdCache, largest_difference, runner, same_weights, some, weights
from support.tiny import (
    CHAT,
    decoder,
    documents,
    exchanges,
    language_model_options,
    speaker,
    speller,
    start,
    talk,
    wait_for,
)

from kdcli.evaluation.models import Evaluator
from kdcli.files import hash_files
from kdcli.launch.run import launch
from kdcli.losses.forward_kl import ForwardKL
from kdcli.losses.hard_label import HardLabel
from kdcli.measure.spec import UNKNOWN
from kdcli.tasks.causal_lm.task import CausalLM
from kdcli.tasks.rows import IGNORE
from kdcli.teachers.local import LocalTeacher
from kdcli.training.distiller import Distiller

Distil = Callable[..., Path]
FORMS = ["pairs", "messages", "text"]
ALONE = ("control=false", "measure=null")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speaker(tmp_path_factory.mktemp("models") / "speaker")


@pytest.fixture(scope="module")
def options(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    """The overrides of a run on exchanges in a form."""
    folder = tmp_path_factory.mktemp("data")
    return lambda form: [*language_model_options(teacher), *talk(folder, form)]


@pytest.fixture
def distil(options: Callable[[str], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Distil:
    """Runs `kdcli distill` in this process and returns the run directory."""
    monkeypatch.chdir(tmp_path)

    return runner(tmp_path, lambda form, *overrides: [*options(form), *overrides])


# ---- what a batch and its padding are -----------------------------------------------------------------


@pytest.mark.parametrize("form", some(["messages", "text"], "messages"))
def test_batch_8x1_is_4x2_is_2x4_accumulated(distil: Distil, form: str) -> None:
    """A mean over the tokens of each micro-batch weighs a token by the length of its neighbours' answers."""
    steps = (*ALONE, "trainer.max_steps=10")
    whole = distil("8x1", form, *steps)
    for micro in (4, 2):
        assert (
            largest_difference(whole, distil(f"{micro}", form, *steps, f"trainer.micro_batch_size={micro}"))
            < 2e-5
        )


ROWS: dict[str, list[dict[str, Any]]] = {
    "pairs": [{"prompt": p * times, "completion": a} for times, (p, a) in enumerate(exchanges(4), 1)],
    "messages": [
        {"messages": [{"role": "user", "content": p}, {"role": "assistant", "content": a}] * times}
        for times, (p, a) in enumerate(exchanges(4), 1)
    ],
    "text": [
        {"texts": [text for pair in exchanges(times) for text in pair], "ends": [True] * 2 * times}
        for times in range(1, 4)
    ],
}


class Judge:
    """A student, its teacher and two losses, on rows as a run has them."""

    def __init__(self) -> None:
        self.tokenizer = speller()
        self.task = CausalLM(chat=False)
        self.teacher = decoder(self.tokenizer, seed=1).eval()
        losses = {"soft": ForwardKL(2.0), "hard": HardLabel()}
        self.distiller = Distiller(
            decoder(self.tokenizer), self.task, losses, {"soft": 1.0, "hard": 0.5}
        ).eval()

    def __call__(self, rows: list[dict[str, Any]], padding: int = 0) -> list[torch.Tensor]:
        """Both losses at each row's counted positions, (2, n)."""
        table = datasets.Dataset.from_list([{"id": str(number)} | row for number, row in enumerate(rows)])
        encoded = self.task.encode(self.tokenizer, table, 128)
        features = [encoded[number] for number in range(len(rows))]
        if padding:
            longest = max(len(feature["input_ids"]) for feature in features)
            long = {key: features[0][key].repeat(99)[: longest + padding] for key in encoded.columns}
            features.append(long | {"row": len(rows)})
        batch = self.task.collate(features, self.tokenizer)
        batch.pop("rows")
        labels = batch.pop("labels")
        counts = self.task.counts(labels).tolist()
        pick, _ = self.task.positions(labels)
        with torch.no_grad():
            known = self.task.signal(self.teacher, batch, pick)
            self.distiller(labels=labels, teacher=known, **batch)
        both = torch.stack([self.distiller.values[name] for name in ("soft", "hard")])
        return list(both.split(counts, 1))[: len(rows)]


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge()


@pytest.mark.parametrize("form", FORMS)
def test_padding_changes_nothing(judge: Judge, form: str) -> None:
    """Padding that is attended to, or counted, makes a row's loss depend on its neighbours' length."""
    rows = ROWS[form]
    together = judge(rows)
    for row, found, longer in zip(rows, together, judge(rows, padding=7), strict=True):
        (alone,) = judge([row])
        assert alone.shape[1] > 4
        assert torch.allclose(found, alone, atol=1e-5)
        assert torch.allclose(longer, alone, atol=1e-5)


def test_documents_of_a_row_do_not_see_each_other(judge: Judge) -> None:
    """Packed without a wall, each document is learnt as the continuation of a stranger."""
    first, other, last = documents(3)
    first, other, last = first[:40], other[:57], last[:60]
    alone = judge([{"texts": [last], "ends": [True]}])[0]
    before = [judge([{"texts": [text, last], "ends": [True, True]}])[0] for text in (first, other)]
    assert before[0].shape != before[1].shape
    for found in before:
        assert torch.allclose(found[:, -alone.shape[1] :], alone, atol=1e-5)
    after = judge([{"texts": [first, other], "ends": [True, True]}])[0]
    count = judge([{"texts": [first], "ends": [True]}])[0].shape[1]
    assert torch.allclose(before[0][:, :count], after[:, :count], atol=1e-5)
    assert not torch.allclose(before[0][:, count + 1], after[:, count + 1], atol=1e-5)


def test_packed_rows_are_the_whole_text(judge: Judge) -> None:
    """A document's end that is cut off, or a piece that stands in two rows, at the edges of the packing."""
    texts = [*documents(2), "so it was.", *documents(5)[2:]]
    table = datasets.Dataset.from_list(
        [{"id": str(number), "text": text} for number, text in enumerate(texts)]
    )
    for length in (16, 33, 128):
        rows = judge.task.prepare(table, judge.tokenizer, length)
        encoded = judge.task.encode(judge.tokenizer, rows, length)
        assert encoded.lengths.max() <= length
        assert encoded.lengths.mean() > 0.7 * length
        ids = encoded.columns["input_ids"].tolist()
        assert judge.tokenizer.decode(ids) == "".join(f"{text}<|end|>" for text in texts)


def turns(*roles: str) -> list[dict[str, Any]]:
    return [{"messages": [{"role": role, "content": f"{role} {place}"} for place, role in enumerate(roles)]}]


def counted(judge: Judge, template: str, rows: list[dict[str, Any]]) -> tuple[str, str]:
    """A conversation as the model reads it, and what counts of it."""
    tokenizer = speller(template)
    encoded = judge.task.encode(tokenizer, datasets.Dataset.from_list([{"id": "a"} | rows[0]]), 128)
    ids, labels = encoded.columns["input_ids"], encoded.columns["labels"]
    return tokenizer.decode(ids), tokenizer.decode(labels[labels != IGNORE])


def test_a_template_knows_no_date(judge: Judge) -> None:
    """Llama 3 writes today's date into each prompt: tomorrow the stored answers are to another one, and a rerun is
    another run."""
    template = "\n{% if strftime_now is defined %}{{ strftime_now('%d %b %Y, %-d %B') }}{% endif %}\n" + CHAT
    text, learnt = counted(judge, template, turns("user", "assistant"))
    assert text.startswith("\n26 Jul 2024, 26 July<|user|>user 0<|end|>\n<|assistant|>")
    assert learnt == "assistant 1<|end|>"


def test_what_the_assistant_says_counts(judge: Judge) -> None:
    """The user's words are learnt, or the end of an answer is not; or a conversation that the assistant opens is refused,
    because nothing stands before it."""
    rows = turns("system", "user", "assistant", "user", "assistant", "user")
    text, learnt = counted(judge, CHAT, rows)
    assert text.endswith("<|assistant|>assistant 4<|end|>")
    assert learnt == "assistant 2<|end|>assistant 4<|end|>"
    text, learnt = counted(judge, CHAT, turns("assistant", "user", "assistant"))
    assert text.startswith("<|assistant|>assistant 0<|end|>")
    assert learnt == "assistant 0<|end|>assistant 2<|end|>"


# ---- what a run ends with -----------------------------------------------------------------------------


def test_killed_and_continued_is_uninterrupted(
    distil: Distil, options: Callable[[str], list[str]], tmp_path: Path
) -> None:
    """A resume that loses the optimizer, the data's place or the random state ends with other weights."""
    more = [*ALONE, "trainer.epochs=5", "trainer.eval_steps=10", "trainer.keep=last", "trainer.dropout=0.1"]
    whole = distil("whole", "messages", *more)
    killed = tmp_path / "killed"
    process = start(killed, [*options("messages"), *more])
    wait_for(lambda: any((killed / "stages/student").glob("checkpoint-2*/trainer_state.json")), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (killed / "student").exists()
    distil("killed", "messages", *more)
    assert same_weights(whole, killed)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return taken.getsockname()[1]


SLOW = """
import os, time
from kdcli import cli
from kdcli.training import trainer

load = trainer._Trainer._load_best_model

def late(self):
    time.sleep(3 * int(os.environ["RANK"]))
    load(self)

trainer._Trainer._load_best_model = late
cli.main()
"""
"""kdcli, with a second process that reads the best checkpoint long after the first has."""


@pytest.mark.long
def test_one_process_is_two_processes(
    distil: Distil, options: Callable[[str], list[str]], tmp_path: Path, cold_cache: ColdCache
) -> None:
    """Tokens counted by each process alone weigh a row by the process that it falls to; one that is slow loses no checkpoint; completions that the
    student wrote in one process are unknown in the other."""
    cold_cache("cache")
    own = ["rollout=student", "rollout.max_new_tokens=8", "rollout.buffer=4"]
    more = [*ALONE, *own, "trainer.max_steps=10"]
    two = tmp_path / "two"
    slow = tmp_path / "slow.py"
    slow.write_text(SLOW)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}",
               str(slow), "distill", *options("messages"), *more, f"hydra.run.dir={two}"]  # fmt: skip
    done = subprocess.run(
        command, env=os.environ.copy(), text=True, capture_output=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    assert largest_difference(distil("one", "messages", *more), two) < 2e-5


def test_stored_answers_of_all_tokens_are_the_teachers_own(distil: Distil) -> None:
    """Answers that are stored in another order, or for another position, are somebody's all the same: the loss falls."""
    steps = (*ALONE, "trainer.max_steps=15", "loss.soft_label.temperature=2", "~loss.hard_label")
    online = distil("online", "messages", *steps, "teacher.cache=false")
    stored = distil("stored", "messages", *steps, "teacher.top_k=340")
    few = distil("few", "messages", *steps, "teacher.top_k=2")
    assert largest_difference(online, stored) < 1e-3
    assert largest_difference(online, few) > 5 * largest_difference(online, stored)


def test_a_second_run_asks_nobody_and_ends_with_the_same_bits(
    distil: Distil, monkeypatch: pytest.MonkeyPatch, cold_cache: ColdCache
) -> None:
    """A key with something in it that changes from run to run: a large teacher is asked all anew, each time."""
    cold_cache("cold")
    asked: list[int] = []
    rows = LocalTeacher.outputs

    def noted(self: LocalTeacher, examples: Any, *more: Any) -> Any:
        asked.append(len(examples))
        return rows(self, examples, *more)

    monkeypatch.setattr(LocalTeacher, "outputs", noted)
    cold = distil("cold_run", "text", *ALONE, "trainer.epochs=1")
    assert len(asked) == 4  # those of the pre-flight, and the three splits
    warm = distil("warm_run", "text", *ALONE, "trainer.epochs=1")
    assert len(asked) == 4
    assert same_weights(cold, warm)


def test_the_teacher_is_as_it_was_and_the_student_is_a_plain_model(distil: Distil, teacher: Path) -> None:
    """A teacher in the optimizer is not the one that the report names; a student that needs kdcli cannot be shipped."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    before = hash_files(teacher.iterdir())
    run = distil("run", "messages", "measure=null", "teacher.cache=false", "trainer.max_steps=6")
    assert hash_files(teacher.iterdir()) == before
    for name in ("student", "control"):
        model, info = AutoModelForCausalLM.from_pretrained(run / name, output_loading_info=True)
        assert not any(info.values())
        assert set(weights(run, name)) == set(model.state_dict()) - {"lm_head.weight"}  # tied
        assert model.config.num_hidden_layers == 1
        assert AutoTokenizer.from_pretrained(run / name).chat_template == CHAT


# ---- from the data to the report ----------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_from_the_data_to_the_report(
    distil: Distil,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    form: str,
) -> None:
    """A form that only its unit tests know; figures of the report that `kdcli eval` does not find again."""
    timed = form == "messages"
    if not timed:  # which takes its time, and is the same for all forms
        monkeypatch.setattr(
            Evaluator,
            "measure_both",
            lambda self, name, _, baseline, __: [
                self.models[key].update(asdict(UNKNOWN)) for key in (name, baseline)
            ],
        )
    more = ["measure.max_texts=4", "control=false"] if timed else []
    run = distil("run", form, "trainer.epochs=3", *more)
    report = json.loads((run / "report.json").read_text())
    assert (report["task"], report["metric"]) == ("causal_lm", "log_prob")
    assert report["labels"] == []
    if form != "text":
        assert report["test_examples"] == 16
    models = report["models"]
    names = {"teacher", "student"} if timed else {"teacher", "control", "student"}
    assert set(models) == names | {"untrained", "trivial"}
    for name in ("untrained", "trivial"):
        assert models[name]["method"]
        assert -6 < models[name]["score"] < 0
    assert models["untrained"]["score"] < models["student"]["score"]
    for name in names:
        scores = models[name]["scores"]
        assert models[name]["calibration"]["ece"] == scores["ece"]
        assert -4 < scores["log_prob"] < 0
        low, high = scores["log_prob_ci95"]
        assert low < scores["log_prob"] < high
        assert scores["perplexity"] == pytest.approx(torch.tensor(-scores["log_prob"]).exp().item(), rel=1e-5)
        assert 0.2 < scores["token_accuracy"] <= 1
        assert ("kl_to_teacher" in scores) == (name != "teacher")
        for share in ("rouge_l", "distinct_2", "repetition"):
            assert 0 <= scores[share] <= 1
        assert models[name]["parameters"] > 0
        assert models[name]["bytes"] > 0
        if timed:
            assert models[name]["throughput_per_s"] > 0
            assert models[name]["latency_ms"]["p95"] >= models[name]["latency_ms"]["p50"] > 0
            assert models[name]["peak_memory_bytes"] > 1e7
        counts = load_file(run / "predictions" / f"test.{name}.safetensors")["counts"]
        assert len(counts) == report["test_examples"]
        assert counts.sum() == report["test_tokens"]
        assert report["validation_score"][name] < 0
    assert models["student"]["parameters"] < models["teacher"]["parameters"]
    verdict = report["verdict"]
    for key in () if timed else ("gain", "kl_gain"):
        low, high = verdict[f"{key}_ci95"]
        assert low <= verdict[f"{key}_over_control"] <= high
    assert 0 < verdict["kl_to_teacher"] < 1
    assert verdict["kl_to_teacher"] == pytest.approx(models["student"]["scores"]["kl_to_teacher"])
    assert verdict["agreement"] > 0.5
    shown = report["generations"]
    assert len(shown) == 6
    columns = {"prompt", "reference", *names} | ({"turns"} if form == "messages" else set())
    assert all(set(row) == columns for row in shown)
    assert all(row["prompt"] and row["reference"] for row in shown)
    if form == "messages":  # what was learnt is said, and nothing of the template
        assert any("it was" in row["student"] for row in shown)
        assert not any("<|" in row["student"] for row in shown)
    capsys.readouterr()
    for split in ("validation", "test"):
        into = [
            f"run={run}",
            f"split={split}",
            "measure=null",
            "format=json",
            f"hydra.run.dir={tmp_path / split}",
        ]
        assert launch("eval", into) == 0
        scored = json.loads(capsys.readouterr().out)
        assert scored["metric"] == "log_prob"
        for name in names:
            expected = models[name]["score"] if split == "test" else report["validation_score"][name]
            known = split == "test" or name != "teacher"  # of its validation rows, the top k are
            assert scored["models"][name]["score"] == pytest.approx(expected, abs=1e-5 if known else 0.1)
        if split == "test":
            assert scored["verdict"]["retention"] == pytest.approx(verdict["retention"], rel=1e-4)
            assert scored["verdict"]["kl_to_teacher"] == pytest.approx(verdict["kl_to_teacher"], rel=0.1)
