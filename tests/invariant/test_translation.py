"""What must not change the result of a translator, and what a run of one leaves, through the real command."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import ColdCache, largest_difference, require_one_message, require_words, runner
from support.tiny import (
    LEXICON,
    into_hub,
    pairs,
    start,
    translation,
    translator,
    wait_for,
    write_jsonl,
    write_pairs,
)
from support.translators import lay_out

from kdcli.config.rollout import Rollout
from kdcli.launch.run import launch
from kdcli.models.checkpoint import Checkpoint
from kdcli.tasks.seq2seq.task import Seq2Seq
from kdcli.teachers.local import LocalTeacher

Distil = Callable[..., Path]
ALONE = ("control=false", "measure=null")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return translator(tmp_path_factory.mktemp("models") / "translator")


@pytest.fixture(scope="module")
def options(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a run of a few seconds."""
    file = write_pairs(tmp_path_factory.mktemp("data") / "pairs.csv", pairs(300, longest=4))
    return [
        "teacher=local",
        f"teacher.path={teacher}",
        "teacher.trainer.precision=fp32",
        "student=translator-tiny",
        "student.hidden_size=16",
        "student.encoder_layers=1",
        "student.num_attention_heads=2",
        "student.intermediate_size=32",
        "student.dropout=0.0",
        "dataset=csv",
        f"dataset.path={file}",
        "dataset.source=en",
        "dataset.target=es",
        "dataset.validation_size=40",
        "dataset.test_size=48",
        "dataset.max_length=32",
        "loss.hard_label.weight=1",
        "trainer.precision=fp32",
        "trainer.batch_size=16",
        "trainer.epochs=3",
        "trainer.learning_rate=5e-3",
        "trainer.logging_steps=5",
        "measure.latency_runs=3",
        "measure.throughput_seconds=0.05",
        "measure.max_texts=4",
    ]


@pytest.fixture
def distil(options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Distil:
    """Runs `kdcli distill` in this process and returns the run directory."""
    monkeypatch.chdir(tmp_path)

    return runner(tmp_path, lambda *overrides: [*options, *overrides])


KEY_BIAS = "k_proj.bias"
"""A bias of keys adds the same to all scores of a query: its gradient is rounding alone, which Adam makes large."""


def written(run: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (run / "rollouts.jsonl").read_text(encoding="utf-8").splitlines()]


def right(row: dict[str, str]) -> bool:
    return row["target"] == translation(row["source"].split())


OF_TOKENS = {
    "reverse": "reverse_kl.ReverseKL", "jsd": "jsd.JSD", "skew": "skew_kl.SkewKL", "skew_reverse": "skew_reverse_kl.SkewReverseKL",
    "tvd": "tvd.TVD", "uld": "uld.ULD",
}  # fmt: skip
"""Losses on every token of the target, beside the two of the default."""


@pytest.mark.long
def test_batch_8x2_is_16x1(distil: Distil) -> None:
    """A mean over the tokens of each micro-batch weighs a token by the length of its neighbours; or a loss of language models
    counts other positions of a translator, or none."""
    terms = [f"+loss.{name}={{_target_: kdcli.losses.{made}, weight: 1}}" for name, made in OF_TOKENS.items()]
    steps = (*ALONE, *terms, "loss.soft_label.temperature=1", "trainer.max_steps=8")
    whole = distil("whole", *steps)
    parts = distil("parts", *steps, "trainer.micro_batch_size=4")
    assert largest_difference(whole, parts, ignored=KEY_BIAS) < 2e-5
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    logged = next(line for line in lines if line["stage"] == "student" and "loss/hard_label" in line)
    assert all(logged[f"loss/{name}"] > 0 for name in (*OF_TOKENS, "soft_label"))


@pytest.mark.long
def test_stored_answers_of_all_tokens_are_the_teachers_own(distil: Distil) -> None:
    """Answers that are stored for another position, or another pair, are somebody's all the same: the loss falls."""
    steps = (*ALONE, "trainer.max_steps=10", "loss.soft_label.temperature=2", "~loss.hard_label")
    online = distil("online", *steps, "teacher.cache=false")
    stored = distil("stored", *steps, "teacher.top_k=400")
    few = distil("few", *steps, "teacher.top_k=1")
    difference = largest_difference(online, stored, ignored=KEY_BIAS)
    assert difference < 1e-3
    assert largest_difference(online, few, ignored=KEY_BIAS) > 5 * difference


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return taken.getsockname()[1]


@pytest.mark.long
def test_one_process_is_two_processes(
    distil: Distil, options: list[str], tmp_path: Path, cold_cache: ColdCache
) -> None:
    """Tokens counted by each process alone; or each translates, and one waits for ever for the other."""
    cold_cache("cache")
    more = [*ALONE, "trainer.max_steps=8", "rollout=beam", "rollout.num_beams=2"]
    two = tmp_path / "two"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}", "-m",
               "kdcli", "distill", *options, *more, f"hydra.run.dir={two}"]  # fmt: skip
    done = subprocess.run(
        command, env=os.environ.copy(), text=True, capture_output=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    cold_cache("another")
    one = distil("one", *more)
    assert written(one) == written(two)
    assert largest_difference(one, two, ignored=KEY_BIAS) < 2e-5


@pytest.mark.long
def test_killed_and_continued_is_uninterrupted_and_keeps_pairs_together(
    distil: Distil, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cold_cache: ColdCache
) -> None:
    """A resume that loses the data's place; or, after shuffling, filtering by score, sorting by length and a kill among the
    translations, a source gets its neighbour's target."""
    monkeypatch.setattr("kdcli.pipeline.rollouts.PART", 16)
    more = [*ALONE, "rollout=beam", "rollout.num_beams=3", "rollout.keep_fraction=0.7", "trainer.keep=last", "trainer.epochs=4",
            "trainer.eval_steps=5", "trainer.dropout=0.1"]  # fmt: skip
    cold_cache("one")
    whole = distil("whole", *more)
    rows = written(whole)
    assert len(rows) == round(0.7 * 212)
    assert len({row["source"] for row in rows}) == len(rows)
    assert sum(map(right, rows)) > 0.8 * len(rows)  # a shift by one leaves none
    everything = distil("everything", *[*more, "rollout.keep_fraction=1.0"])
    share = sum(map(right, written(everything))) / 212
    assert share < sum(map(right, rows)) / len(rows)  # what the teacher is sure of is right more often
    cold_cache("other")
    killed = tmp_path / "killed"
    for glob, where in (
        ("rollouts/*/*.json", tmp_path / "other"),
        ("stages/student/checkpoint-1*/trainer_state.json", killed),
    ):
        process = start(killed, [*options, *more])
        wait_for(lambda glob=glob, where=where: any(where.glob(glob)), process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (killed / "student").exists()
    distil("killed", *more)
    assert written(killed) == rows
    assert largest_difference(whole, killed, ignored=KEY_BIAS) == 0


@pytest.mark.long
def test_the_teachers_own_translations(distil: Distil, teacher: Path) -> None:
    """Beams, drawn candidates and the choice among them are options that nothing reads."""
    beams = written(distil("beams", *ALONE, "trainer.max_steps=2", "rollout=beam", "rollout.num_beams=3"))
    own = LocalTeacher()
    own.open(Checkpoint(teacher, "teacher"), Seq2Seq(), 32, "fp32")
    how = Rollout(source="teacher", sampling_temperature=0.0, num_beams=3)
    assert [row["target"] for row in beams] == own.write(beams, how, 0)
    near = [
        "rollout=teacher",
        "rollout.candidates=4",
        "rollout.sampling_temperature=1.5",
    ]
    drawn = written(distil("drawn", *ALONE, "trainer.max_steps=2", *near))
    single = written(
        distil("single", *ALONE, "trainer.max_steps=2", "rollout=teacher", "rollout.sampling_temperature=1.5")
    )
    assert sum(map(right, drawn)) > sum(map(right, single))


def test_a_student_translates_while_it_is_trained(distil: Distil) -> None:
    """On-policy rows whose positions are those of the references: the teacher is asked about other tokens."""
    run = distil("run", *ALONE, "rollout=student", "trainer.max_steps=6", "teacher.cache=false")
    assert (run / "report.json").is_file()


def test_from_the_data_to_the_report(
    distil: Distil, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Figures of the report that `kdcli eval` does not find again; a student that plain transformers cannot use."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    beams = ["rollout=beam", "rollout.num_beams=2", "measure.num_beams=2"]
    run = distil("run", *beams, "trainer.epochs=12", "student.hidden_size=32")
    report = json.loads((run / "report.json").read_text())
    assert (report["task"], report["metric"]) == ("seq2seq", "bleu")
    assert report["beams"] == 2
    assert report["signature"]["bleu"].startswith("nrefs:1|case:mixed")
    copied = report["models"].pop("trivial")
    assert (copied["method"], copied["scores"]["copied"]) == ("copy", 1)
    assert set(report["models"]) == {"teacher", "control", "student"}
    for name, model in report["models"].items():
        scores = model["scores"]
        low, high = scores["bleu_ci95"]
        assert low <= model["score"] == scores["bleu"] <= high
        assert scores["chrf"] > 0
        assert 0 <= scores["bleu_beam"] <= 100
        assert scores["log_prob"] < 0
        assert model["throughput_per_s"] > 0
        assert model["latency_ms"]["p95"] >= model["latency_ms"]["p50"] > 0
        lines = (run / "predictions" / f"test.{name}.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(lines) == report["test_examples"] == 48
    assert report["models"]["teacher"]["score"] > 60
    assert report["models"]["student"]["score"] > 5
    for key in ("worst", "best"):
        assert len(report["translations"][key]) == 20
        assert {"source", "reference", "teacher", "control", "student", "score"} == set(
            report["translations"][key][0]
        )
    assert report["translations"]["best"][0]["score"] >= report["translations"]["worst"][0]["score"]
    assert 0 < report["verdict"]["gain_p"] <= 1
    model, info = AutoModelForSeq2SeqLM.from_pretrained(run / "student", output_loading_info=True)
    assert not any(info.values())
    tokenizer = AutoTokenizer.from_pretrained(run / "student")
    first = json.loads(
        (run / "predictions" / "test.student.jsonl").read_text(encoding="utf-8").splitlines()[0]
    )
    said = model.generate(**tokenizer(first["source"], return_tensors="pt"))
    assert tokenizer.decode(said[0], skip_special_tokens=True).strip() == first["text"]
    capsys.readouterr()
    into = [f"run={run}", "measure=null", "format=json", f"hydra.run.dir={tmp_path / 'scored'}"]
    assert launch("eval", into) == 0
    scored = json.loads(capsys.readouterr().out)
    for name, model in report["models"].items():
        assert scored["models"][name]["score"] == pytest.approx(model["score"])
    assert scored["verdict"]["gain_ci95"] == pytest.approx(report["verdict"]["gain_ci95"])


@pytest.mark.parametrize(
    ("family", "more"),
    [
        pytest.param("T5", ["dataset.prefix=translate: "], marks=pytest.mark.long),
        pytest.param("MT5", [], marks=pytest.mark.long),
        ("Bart", ["rollout=beam", "rollout.num_beams=2", "dataset=jsonl", "dataset.path=articles.jsonl", "dataset.source=article",
                  "dataset.target=summary", "dataset.clean.max_ratio=null"]),
        pytest.param("M2M100", ["rollout=beam", "rollout.num_beams=2", "dataset.source_language=en", "dataset.target_language=es"],
                     marks=pytest.mark.long),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_translators_of_other_families(
    options: list[str], family: str, more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A family that the command cannot take, or whose student is scored on other texts than plain transformers writes with it: its
    start, its language, or how its teacher searched is lost, or a shared matrix comes apart."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    monkeypatch.chdir(tmp_path)
    lay_out(tmp_path / "teacher", family)
    rows = [{"article": source, "summary": target} for source, target in pairs(300, longest=4)]
    write_jsonl(tmp_path / "articles.jsonl", rows)
    taken = ("student", "teacher.path", *(["dataset="] if "dataset=jsonl" in more else []))
    own = [option for option in options if not option.startswith(taken)]
    own += [f"teacher.path={tmp_path / 'teacher'}", "teacher.tune=true", "teacher.trainer.max_steps=60", "teacher.trainer.eval_steps=60",
            "teacher.trainer.batch_size=32", "teacher.trainer.learning_rate=1e-2", "student=layers", "student.num_hidden_layers=1", "student.decoder_layers=1",
            "trainer.max_steps=12", "trainer.eval_steps=12", "dataset.limit=96", "dataset.eval_limit=16", "dataset.max_length=32", *ALONE]  # fmt: skip
    assert launch("distill", [*own, *more, "hydra.run.dir=run"]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert set(report["models"]) == {"teacher", "student", "trivial"}
    assert report["models"]["student"]["scores"]["log_prob"] < 0
    student = tmp_path / "run" / "student"
    model, info = AutoModelForSeq2SeqLM.from_pretrained(student, output_loading_info=True)
    assert not any(info.values())
    tokenizer = AutoTokenizer.from_pretrained(student)
    told = (tmp_path / "run" / "predictions" / "test.student.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in told.splitlines()]
    sources = [("translate: " if family == "T5" else "") + line["source"] for line in lines]
    written = model.generate(**tokenizer(sources, return_tensors="pt", padding=True))
    texts = [text.strip() for text in tokenizer.batch_decode(written, skip_special_tokens=True)]
    assert texts == [line["text"] for line in lines]
    assert len(set(texts)) > 3, "texts that say nothing about their sources"
    inputs, outputs = (
        embeddings().weight for embeddings in (model.get_input_embeddings, model.get_output_embeddings)
    )
    assert model.get_encoder().embed_tokens.weight is model.get_decoder().embed_tokens.weight is inputs
    assert (outputs is inputs) == (family != "MT5")
    weights = sum(weight.numel() for weight in model.parameters())
    assert report["models"]["student"]["parameters"] == weights


def test_a_translator_of_the_hub(options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first command of the README's translation, on a machine that has no network but had one once: its vocabulary lies in
    sentencepiece files."""
    from huggingface_hub import constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    lay_out(tmp_path / "files", "Marian")
    commit = into_hub(tmp_path / "hub", "models", "Helsinki-NLP/opus-mt-en-de", tmp_path / "files")
    own = [option for option in options if not option.startswith(("student", "teacher"))]
    own += ["teacher=opus-mt-en-de", "student=layers", "student.num_hidden_layers=2", "student.decoder_layers=1", "rollout=beam",
            "rollout.num_beams=2", "trainer.max_steps=2", "dataset.limit=16", "dataset.eval_limit=8", *ALONE]  # fmt: skip
    assert launch("distill", [*own, "hydra.run.dir=run"]) == 0
    made_with = json.loads((tmp_path / "run" / "env.json").read_text())["teacher"]
    assert (made_with["path"], made_with["commit"]) == ("Helsinki-NLP/opus-mt-en-de", commit)
    there = {file.name for file in (tmp_path / "run" / "student").iterdir()}
    assert {"source.spm", "target.spm", "vocab.json"} <= there


def test_a_student_with_another_vocabulary(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tokens compared with others of the same number, also by a loss that asks for none; or the remedy that is named does not work."""
    monkeypatch.chdir(tmp_path)
    lay_out(tmp_path / "student", "Bart")
    own = [option for option in options if not option.startswith("student")]
    own += ["student=local", f"student.path={tmp_path / 'student'}", "trainer.max_steps=2", "dataset.eval_limit=16",
            "dataset.truncation=drop", *ALONE]  # fmt: skip
    assert launch("distill", [*own, "loss=uld", "hydra.run.dir=compared"]) == 2
    message = require_one_message(capsys.readouterr().err)
    require_words(message, "different vocabularies", "rollout=teacher loss.soft_label.weight=0")
    assert launch("distill", [*own, "rollout=teacher", "loss.soft_label.weight=0", "hydra.run.dir=run"]) == 0
    assert (tmp_path / "run" / "report.json").is_file()


@pytest.mark.long
def test_a_new_teacher_is_trained_on_the_pairs(distil: Distil, cold_cache: ColdCache) -> None:
    """No checkpoint, no run; or a cold and a warm cache, or a rerun, give another teacher."""
    new = [
        "teacher=transformer",
        "teacher.path=null",
        "teacher.vocab_size=320",
        "teacher.from_scratch.hidden_size=16",
        "teacher.from_scratch.encoder_layers=1",
        "teacher.from_scratch.decoder_layers=1",
        "teacher.from_scratch.num_attention_heads=2",
        "teacher.from_scratch.intermediate_size=32",
        "teacher.trainer.max_steps=12",
        "teacher.trainer.batch_size=16",
        "trainer.max_steps=6",
        "student.allow_same_size=true",
        *ALONE,
    ]
    runs = []
    for name in ("cold", "again"):
        cold_cache(name)
        runs.append(distil(name, *new))
    runs.append(distil("warm", *new))
    assert (
        largest_difference(runs[0], runs[1], ignored=KEY_BIAS)
        == largest_difference(runs[0], runs[2], ignored=KEY_BIAS)
        == 0
    )
    environment = json.loads((runs[0] / "env.json").read_text())
    assert environment["teacher"]["path"] == "the new teacher"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["rollout=beam", "rollout.candidates=9"], ["rollout", "num_beams", "candidates", "9"]),
        (["rollout.num_beams=3"], ["rollout", "num_beams", "source=teacher"]),
        (
            [
                "teacher.from_scratch._target_=kdcli.students.pruning.layers.Layers",
                "teacher.from_scratch.num_hidden_layers=1",
            ],
            ["from_scratch", "path"],
        ),
        (["rollout=beam", "rollout.max_new_tokens=31"], ["rollout.max_new_tokens", "31", "truncated"]),
        (["dataset.max_length=3"], ["pairs", "dataset.max_length", "3"]),
        (["student.hidden_size=15"], ["hidden_size", "15", "even multiple", "num_attention_heads", "2"]),
        (["loss=hidden_states"], ["loss", "hidden_states", "seq2seq"]),
        (["loss=attention"], ["loss", "attention", "seq2seq"]),
        (["loss=relations"], ["loss", "relations", "seq2seq"]),
    ],
)
def test_bad_input(
    distil: Distil, capsys: pytest.CaptureFixture[str], overrides: list[str], words: list[str]
) -> None:
    """Found after the teacher has been trained, or told as a traceback."""
    distil("run", *[f"+{each}" if "from_scratch" in each else each for each in overrides], code=2)
    require_words(require_one_message(capsys.readouterr().err), *words)


@pytest.mark.parametrize("student", ["tiny", "tiny-trimmed", "local"])
def test_a_student_that_is_no_translator(
    options: list[str],
    body: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    student: str,
) -> None:
    """The default student has no decoder, which is found after the teacher has translated everything, in a traceback."""
    monkeypatch.chdir(tmp_path)
    own = [option for option in options if not option.startswith("student")]
    own += [f"student={student}", *([f"student.path={body}"] if student == "local" else [])]
    assert launch("distill", [*own, "rollout=beam", "hydra.run.dir=run"]) == 2
    err = capsys.readouterr().err
    words = ("student", "bert", "seq2seq", "student=translator-tiny", "translator-small")
    require_words(require_one_message(err), *words)
    assert "rollouts" not in err


@pytest.mark.parametrize(
    ("family", "overrides", "words"),
    [
        (
            "Nllb",
            ["dataset.source_language=eng_Latn", "dataset.target_language=spa_Latin"],
            ["dataset.target_language", "spa_Latin", "spa_Latn"],
        ),
        ("Marian", ["dataset.prefix='>>se<< '"], ["dataset.prefix", ">>se<<", ">>es<<", ">>fr<<"]),
    ],
    ids=["Nllb", "Marian"],
)
def test_a_language_that_the_teacher_does_not_know(
    distil: Distil,
    capsys: pytest.CaptureFixture[str],
    family: str,
    overrides: list[str],
    words: list[str],
    tmp_path: Path,
) -> None:
    """Every text begins with the unknown token, and the teacher writes whatever language it likes."""
    lay_out(tmp_path / "teacher", family)
    distil("run", f"teacher.path={tmp_path / 'teacher'}", *overrides, code=2)
    require_words(require_one_message(capsys.readouterr().err), *words)


@pytest.mark.parametrize("short", ["teacher", "student"])
@pytest.mark.parametrize("family", ["Marian", "Bart"])
def test_rows_longer_than_the_positions(
    options: list[str], family: str, short: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """An index error at the first long pair, after the teacher has been trained; or only one of the models is looked at."""
    monkeypatch.chdir(tmp_path)
    for name in ("teacher", "student"):
        lay_out(tmp_path / name, family, max_position_embeddings=64 if name == short else 128)
    own = [option for option in options if not option.startswith(("student", "teacher.path"))]
    own += ["student=local", *(f"{name}.path={tmp_path / name}" for name in ("teacher", "student"))]
    assert launch("distill", [*own, "dataset.max_length=65", *ALONE, "hydra.run.dir=run"]) == 2
    message = require_one_message(capsys.readouterr().err)
    require_words(message, "dataset.max_length", "65", str(tmp_path / short), "64")


def test_a_streamed_teacher_teaches_the_same_student(distil: Distil, cold_cache: ColdCache) -> None:
    """A streamed teacher translates nothing: the evaluation fails after the training, or gives it the score of something else."""
    students = []
    for placement in ("resident", "streamed"):
        cold_cache(placement)
        options = [f"teacher.placement={placement}", "teacher.memory_bound=400MB", "trainer.max_steps=6"]
        students.append(distil(placement, *options, *ALONE))
    assert largest_difference(*students) == 0
    report = json.loads((students[1] / "report.json").read_text())
    assert report["models"]["teacher"]["score"] is None
    assert report["verdict"]["compression"] > 1
    assert "the teacher's BLEU is not known" in report["verdict"]["text"]


class Parrot(LocalTeacher):
    """Writes its source."""

    def write(self, examples, how, seed):
        return [row["source"] for row in examples]


def test_a_teacher_that_copies(distil: Distil, capsys: pytest.CaptureFixture[str]) -> None:
    """The student learns to repeat what it is given, and the control is better."""
    distil("run", f"teacher._target_={__name__}.Parrot", *ALONE, code=2)
    require_words(require_one_message(capsys.readouterr().err), "teacher", "copies", "100%", "32")


def test_swapped_columns(distil: Distil, caplog: pytest.LogCaptureFixture, capsys) -> None:
    """The student learns the other direction."""
    distil("run", *ALONE, "dataset.source=es", "dataset.target=en", "trainer.max_steps=2")
    require_words(caplog.text + capsys.readouterr().err, "dataset.source", "dataset.target", "swapped")


def test_the_lexicon_is_not_copied() -> None:
    """Words that are the same in both languages would count as copies in the tests above."""
    assert not set(LEXICON) & set(LEXICON.values())


@pytest.mark.long
def test_sources_that_only_the_teacher_translates(
    distil: Distil, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cold_cache: ColdCache, capsys
) -> None:
    """Targets that were to be hidden are learnt, also by way of a cache that a run with all targets has left; or they leave the
    control with empty references; more text is not translated."""
    more = tmp_path / "more.csv"
    fresh = [source for source, _ in pairs(60, seed=77, longest=4)]
    more.write_text("en\n" + "\n".join(fresh) + "\n", encoding="utf-8")
    search = [
        "rollout=beam",
        "rollout.num_beams=2",
        "rollout.candidates=2",
        "dataset.eval_limit=16",
    ]
    options = ["dataset.labelled=100", f"dataset.unlabelled={more}"]
    monkeypatch.setattr("kdcli.pipeline.rollouts.PART", 16)  # rows whose answers are kept together
    cold_cache("cold")
    run = distil("run", *options, *search, "measure=null", "trainer.max_steps=4")
    report = json.loads((run / "report.json").read_text())
    rows = written(run)
    assert report["dataset"]["labelled"] == 100
    assert 212 < report["dataset"]["train"] == len(rows) <= 212 + 60
    assert {row["source"] for row in rows} & set(fresh)
    assert all(row["target"] for row in rows)
    assert sum(map(right, rows)) > 0.7 * len(rows)
    cold_cache("warm")
    whole = distil("whole", *search, *ALONE, "trainer.max_steps=2")
    for name in ("after", "again"):
        again = distil(name, *options, *search, *ALONE, "trainer.max_steps=4")
        assert written(again) == rows
        assert largest_difference(run, again, ignored=KEY_BIAS) == 0
    one, other = (json.loads((each / "report.json").read_text()) for each in (run, whole))
    assert one["dataset"]["fingerprint"] != other["dataset"]["fingerprint"]
    distil("bad", *options, code=2)
    require_words(require_one_message(capsys.readouterr().err), "training rows", "no target")


@pytest.mark.parametrize(
    "initializer",
    [
        ["student=layers", "student.num_hidden_layers=1", "student.decoder_layers=1"],
        ["student=pruned", "student.intermediate_size=32", "student.importance=activation"],
        pytest.param(
            ["student=pruned", "student.intermediate_size=32", "student.importance=gradient"],
            marks=pytest.mark.long,
        ),
    ],
)
def test_students_cut_out_of_a_translator(
    options: list[str], initializer: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Initializers that read the data take the target's tokens for the source's."""
    from transformers import AutoModelForSeq2SeqLM

    monkeypatch.chdir(tmp_path)
    others = [option for option in options if not option.startswith("student")]
    more = [
        *ALONE,
        "trainer.max_steps=4",
        "trainer.learning_rate=1e-4",
        "student.allow_same_size=true",
        "hydra.run.dir=run",
    ]
    assert launch("distill", [*others, *initializer, *more]) == 0
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "run" / "student")
    assert model.config.decoder_layers == 1
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["models"]["student"]["score"] > 20
