"""What must not change the result, through the real command on models that train in seconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from random import Random

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from support.commands import (
    ColdCache,
    close_weights,
    require_one_message,
    require_words,
    same_weights,
    some,
    weights,
)
from support.tiny import sentences, start, wait_for
from transformers import GPT2Config, GPT2Model

from kdcli.files import hash_files
from kdcli.model_files import SUMS
from kdcli.pipeline.plan import seed_name
from kdcli.tasks.classification.task import Classification
from kdcli.tasks.encoded import tokenizer_key
from kdcli.training.resume import WEIGHTS, checkpoint_folder
from kdcli.training.trainer import _Trainer

Distil = Callable[..., Path]


def test_batch_8x1_is_4x2_is_2x4_accumulated(distil: Distil) -> None:
    """A mean in each micro-batch (TRL#4719) makes the result depend on the memory one has."""
    options = (
        "trainer.batch_size=8",
        "trainer.max_steps=20",
        "student.dropout=0",
        "control=false",
        "dataset.labelled=200",
    )
    whole = distil("8x1", *options)
    for micro in (4, 2):
        assert close_weights(whole, distil(f"{micro}", *options, f"trainer.micro_batch_size={micro}"))


@pytest.mark.skipif(sys.platform != "linux", reason="the path of an open file is read from /proc")
def test_a_checkpoint_is_on_the_disk_before_its_hashes(
    distil: Distil, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a loss of power a checkpoint counts as complete whose weights are an empty file."""
    synced, complete = set(), []
    sync, rename = os.fsync, os.rename

    def record(descriptor: int) -> None:
        synced.add(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    def require_synced(source: Path, target: Path) -> None:
        folder = Path(target).resolve().parent
        if Path(target).name == SUMS and folder.name.startswith("checkpoint-"):
            complete.append(folder)
            files = {path for path in folder.iterdir() if path.is_file()}
            assert {folder, folder.parent, *files} <= synced
            assert WEIGHTS in {path.name for path in files}
        rename(source, target)

    monkeypatch.setattr("os.fsync", record)
    monkeypatch.setattr("os.rename", require_synced)
    distil("run", "trainer.max_steps=4", "trainer.eval_steps=2", "control=false")
    assert complete


def test_trainer_dropout_overrules_the_models_own(distil: Distil) -> None:
    """An option that the model never hears of changes nothing but the report of the config."""
    options = ("trainer.max_steps=5", "control=false")
    without = distil("without", *options, "student.dropout=0")
    assert same_weights(without, distil("overruled", *options, "student.dropout=0.5", "trainer.dropout=0"))
    assert not same_weights(without, distil("dropped", *options, "student.dropout=0", "trainer.dropout=0.5"))


def test_seed_decides_everything(distil: Distil) -> None:
    """Without it no figure of a report can be repeated; with a seed that nothing reads, neither can its spread."""
    one = distil("one", "seed=3", "control=false")
    assert same_weights(one, distil("two", "seed=3", "control=false"))
    assert not same_weights(one, distil("three", "seed=4", "control=false"))


def test_cached_signals_are_the_online_ones(distil: Distil) -> None:
    """A cache that is read by position while the sampler shuffles gives each row another row's signal."""
    online = distil("online", "teacher.cache=false", "control=false", "trainer.max_steps=25")
    assert close_weights(
        online, distil("cached", "teacher.cache=true", "control=false", "trainer.max_steps=25")
    )


def test_cold_and_warm_cache_give_the_same_bits(distil: Distil, body: Path, cold_cache: ColdCache) -> None:
    """A tuned teacher or signals that differ when they come from the cache make a second run another run."""
    cold_cache("cold")
    options = (
        f"teacher.path={body}",
        "teacher.trainer.epochs=8",
        "teacher.trainer.learning_rate=0.003",
        "trainer.epochs=1",
    )
    cold = distil("cold_run", *options, "control=false")
    stages = json.loads((cold / "report.json").read_text())["stages"]
    assert [stage["name"] for stage in stages] == ["teacher", "teacher outputs", "student"]
    warm = distil("warm_run", *options, "control=false")
    assert [stage["name"] for stage in json.loads((warm / "report.json").read_text())["stages"]] == [
        "teacher outputs",
        "student",
    ]
    assert same_weights(cold, warm)


def test_a_split_is_tokenized_once(distil: Distil, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokenizing takes longer than an epoch of a tiny student, and the checks, the pre-flight, each phase and the evaluation need tokens."""
    distil("cold")  # the teacher, which tokenizes for itself, is not run again
    seen: Counter[tuple[object, ...]] = Counter()
    encode = Classification.encode

    def counts(self: Classification, tokenizer, rows, max_length):
        seen[tuple(rows["id"]), max_length, tokenizer_key(tokenizer)] += 1
        return encode(self, tokenizer, rows, max_length)

    monkeypatch.setattr(Classification, "encode", counts)
    distil("warm")
    assert seen
    assert set(seen.values()) == {1}


def test_teacher_is_as_it_was(distil: Distil, teacher: Path) -> None:
    """A teacher in train mode, or inside the optimizer, is not the teacher that the report names."""
    before = hash_files(teacher.iterdir())
    distil("run", "trainer.max_steps=10", "control=false", "teacher.cache=false")
    assert hash_files(teacher.iterdir()) == before


def test_saved_student_is_a_plain_model(distil: Distil) -> None:
    """A student that needs kdcli to be loaded, or holds the losses' parts, cannot be shipped."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    run = distil("run", "trainer.max_steps=4")
    for name in ("student", "control"):
        model, info = AutoModelForSequenceClassification.from_pretrained(run / name, output_loading_info=True)
        assert not any(info.values())
        assert set(weights(run, name)) == set(model.state_dict())
        assert model.config.label2id == {"bad": 0, "good": 1}
        assert AutoTokenizer.from_pretrained(run / name)("a good film")["input_ids"]


def test_control_has_the_same_initialization_and_steps_and_no_teacher(distil: Distil) -> None:
    """A control that is trained for less, or initialized from something else, makes any teacher look good."""
    run = distil("run", "dataset.labelled=100", "trainer.epochs=1")
    report = json.loads((run / "report.json").read_text())
    steps = {stage["name"]: stage["steps"] for stage in report["stages"]}
    assert steps["control"] == steps["student"] > 100 // 16
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    terms = {key for line in lines if line["stage"] == "control" for key in line if key.startswith("loss/")}
    assert terms == {"loss/hard_label"}
    unweighted = distil("no_soft", "dataset.labelled=100", "trainer.epochs=1", "loss.soft_label.weight=1e-9",
                        "loss.hard_label.weight=1", "trainer.max_steps=1", "trainer.warmup=0")  # fmt: skip
    assert weights(unweighted)["bert.embeddings.word_embeddings.weight"].shape == (
        weights(run, "control")["bert.embeddings.word_embeddings.weight"].shape
    )


CONVERGED = [
    "trainer.until=converged",
    "trainer.epochs=8",
    "trainer.min_steps=30",
    "trainer.patience=1",
    "trainer.learning_rate=0.01",
]
"""A few validations until the learning rate falls."""


@pytest.mark.parametrize(
    "length",
    [
        pytest.param(["trainer.epochs=3"], marks=pytest.mark.long, id="fixed"),
        pytest.param(CONVERGED, id="converged"),
    ],
)
@pytest.mark.parametrize("when", some(["in the student", "in the control"], "in the student"))
def test_killed_and_continued_is_uninterrupted(
    distil: Distil, small: list[str], tmp_path: Path, when: str, length: list[str]
) -> None:
    """A resume that loses the optimizer, the data's place, the random state or the validations so far ends with other weights."""
    options = [
        *length,
        "trainer.eval_steps=10",
        "trainer.keep=last",
        "student.dropout=0.1",
        "trainer.token_dropout=0.15",
    ]
    whole = distil("whole", *options)
    killed = tmp_path / "killed"
    process = start(killed, [*small, *options, "measure=null"])
    stage = killed / "stages" / when.split()[-1]
    wait_for(lambda: any(stage.glob("checkpoint-2*/trainer_state.json")), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "report.json").exists()
    distil("killed", *options)
    for model in ("student", "control"):
        assert same_weights(whole, killed, model)
    drop = ("tokens_per_s",)
    logs = [
        [{key: value for key, value in json.loads(line).items() if key not in drop}
         for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (whole, killed)
    ]  # fmt: skip
    assert logs[0] == logs[1]
    training = [json.loads((run / "report.json").read_text())["training"] for run in (whole, killed)]
    assert training[0] == training[1]
    if length is CONVERGED:
        rates = [line["lr"] for line in logs[0] if line["stage"] == "student" and "lr" in line]
        assert rates.count(0.01) > 1, "the learning rate is constant after its warm-up"
        assert training[0]["student"]["stopped"] == "converged"
        assert rates[-1] < 0.005


def test_embeddings_have_their_own_learning_rate_and_tokens_are_dropped(distil: Distil) -> None:
    """Options that nothing reads; or embeddings of the teacher that are overwritten by a few thousand rows."""
    options = ("trainer.max_steps=5", "control=false", "trainer.embedding_learning_rate_factor=null")
    own = distil("own", *options)
    name = "bert.embeddings.word_embeddings.weight"
    tenth = distil("tenth", *options, "trainer.embedding_learning_rate_factor=0.1")
    assert same_weights(own, tenth), "a tenth of the learning rate is the default"
    still = distil("still", *options, "trainer.embedding_learning_rate_factor=0")
    full = distil("full", *options, "trainer.embedding_learning_rate_factor=1")
    moved = [(weights(run)[name] - weights(still)[name]).norm() for run in (own, full)]
    assert 0 < moved[0] < moved[1] / 5
    default = distil("default", *options, "trainer.token_dropout=null")
    assert same_weights(default, distil("dropped", *options, "trainer.token_dropout=0.15"))
    assert not same_weights(own, default)


def test_activations_that_are_computed_again_are_the_same(
    distil: Distil, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout that is drawn anew in the backward pass gives gradients of another model; or nothing is computed again."""
    calls: list[object] = []
    checkpoint = torch.utils.checkpoint.checkpoint

    def counted(*args: object, **kwargs: object) -> object:
        calls.append(args[0])
        return checkpoint(*args, **kwargs)

    options = ("trainer.max_steps=5", "control=false", "student.dropout=0.1")
    kept = distil("kept", *options)
    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", counted)
    monkeypatch.setattr("transformers.modeling_utils.checkpoint", counted)
    again = distil("again", *options, "trainer.gradient_checkpointing=true")
    assert len(calls) == 5
    assert same_weights(kept, again)
    assert "gradient_checkpointing" not in (again / "student" / "config.json").read_text()


COMPILED = """
import sys
import torch
from kdcli.launch.run import launch

status = launch("distill", sys.argv[1:])
assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
sys.exit(status)
"""
"""A run in a process of its own, which fails if nothing was compiled."""


@pytest.mark.long
def test_compiled_layers_and_another_attention_give_the_same_student(
    distil: Distil,
    small: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Keys that change nothing; a saved model whose weights have the names of compiled modules; a refusal after the teacher was tuned."""
    attentions: list[str] = []
    step = _Trainer.training_step

    def stepped(self: _Trainer, *arguments: object) -> torch.Tensor:
        attentions.append(self.job.distiller.student.config._attn_implementation)
        return step(self, *arguments)

    monkeypatch.setattr(_Trainer, "training_step", stepped)
    options = ("trainer.max_steps=3", "control=false")
    usual = distil("usual", *options)
    folder = tmp_path / "compiled"
    words = [*small, *options, "measure=null", "trainer.compile=aot_eager", f"hydra.run.dir={folder}"]
    done = subprocess.run(
        [sys.executable, "-c", COMPILED, *words], text=True, capture_output=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    assert close_weights(usual, folder)
    assert close_weights(usual, distil("eager", *options, "student.attn_implementation=eager"))
    assert attentions == ["sdpa"] * 3 + ["eager"] * 3
    if not torch.cuda.is_available():
        capfd.readouterr()
        distil("flash", *options, "student.attn_implementation=flash_attention_2", code=2)
        distil("graphs", *options, "trainer.compile=cudagraphs", code=2)
        require_words(capfd.readouterr().err, "student.attn_implementation", "GPU", "trainer.compile")


@pytest.mark.long
def test_an_optimizer_by_its_name(distil: Distil, capfd: pytest.CaptureFixture[str]) -> None:
    """A name that changes nothing; or a package that is missed when the teacher has been tuned."""
    options = ("trainer.max_steps=5", "control=false")
    usual = distil("usual", *options)
    assert same_weights(usual, distil("named", *options, "trainer.optimizer=adamw_torch_fused"))
    for name in ("adafactor", "sgd", "adamw_torch_8bit"):
        assert not same_weights(usual, distil(name, *options, f"trainer.optimizer={name}"))
    if find_spec("bitsandbytes") is None:
        distil("missing", *options, "trainer.optimizer=adamw_8bit", code=2)
        require_words(require_one_message(capfd.readouterr().err), "trainer.optimizer", "bitsandbytes")


def test_an_overfitted_training_goes_back_to_its_best_weights(
    distil: Distil, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A learning rate that falls from overfitted weights leaves the best checkpoint as it was at a high learning rate."""
    random = Random(3)
    rows = "".join(f"{text},{random.choice(('bad', 'good'))}\n" for text, _ in sentences(400, seed=11))
    (tmp_path / "noise.csv").write_text("text,label\n" + rows, encoding="utf-8")
    gone_back: list[tuple[int, int]] = []
    go_back = _Trainer._go_back

    def recorded(self: _Trainer, step: int | None) -> None:
        go_back(self, step)
        assert step is not None
        best = load_file(checkpoint_folder(self.job, step) / WEIGHTS)
        own = self.job.distiller.state_dict()
        assert all(torch.equal(own[name], weight) for name, weight in best.items())
        assert {group["lr"] for group in self.optimizer.param_groups} == {0.01, 0.005}  # of the embeddings
        gone_back.append((step, self.state.global_step))

    monkeypatch.setattr(_Trainer, "_go_back", recorded)
    run = distil("run", *CONVERGED, "trainer.min_steps=200", "trainer.eval_steps=10", "trainer.max_steps=400", "loss.soft_label.weight=1e-9",
                 "trainer.token_dropout=0", "trainer.embedding_learning_rate_factor=0.5", "control=false", f"dataset.path={tmp_path / 'noise.csv'}")  # fmt: skip
    [(best, begin)] = gone_back
    assert best < begin
    training = json.loads((run / "report.json").read_text())["training"]["student"]
    assert begin < training["steps"] < 400
    assert training["stopped"] == "converged"


@pytest.mark.long
def test_one_process_is_two_processes(distil: Distil, small: list[str], tmp_path: Path) -> None:
    """Denominators counted by each process alone weigh rows by the process they fall to."""
    options = ["trainer.max_steps=20", "student.dropout=0", "control=false", "dataset.labelled=200"]
    one = distil("one", *options)
    two = tmp_path / "two"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29577", "-m", "kdcli",
               "distill", *small, *options, "measure=null", f"hydra.run.dir={two}"]  # fmt: skip
    done = subprocess.run(
        command, env=os.environ.copy(), text=True, capture_output=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    assert close_weights(one, two)


def test_rerun_repeats_a_run_bit_by_bit(distil: Distil, tmp_path: Path) -> None:
    """A config that is composed anew, not read from the run, follows files that have changed since; or what is made by it is called
    None."""
    from kdcli.launch.compose import display_name
    from kdcli.launch.run import launch
    from kdcli.rundir import saved_config

    run = distil("run", "seed=5", "control=false")
    again = tmp_path / "again"
    assert launch("distill", [f"hydra.run.dir={again}"], rerun=run) == 0
    assert same_weights(run, again)
    one, two = ((made / "student" / "README.md").read_text() for made in (run, again))
    assert "# tiny" in one.splitlines()
    assert one.split("\n# ")[1].splitlines()[0] == two.split("\n# ")[1].splitlines()[0]
    first, *others = (  # what a run that repeats this one reads
        display_name(OmegaConf.load(made / ".hydra" / "hydra.yaml").hydra, saved_config(made))
        for made in (run, again)
    )
    assert others == [first]


def test_student_and_control_begin_with_the_same_new_parts() -> None:
    """Adapters or a head that begin elsewhere: the gain is one of luck."""
    assert seed_name("control/quantized") == "student/quantized"
    assert seed_name("student/control") == "student/control"


def test_a_decoder_can_classify(distil: Distil, tokenizer, tmp_path: Path) -> None:
    """gpt2 and its like name no padding token, and look for the token before it."""
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=64,
        bos_token_id=2,
        eos_token_id=3,
    )
    torch.manual_seed(0)
    GPT2Model(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    words = [f"teacher.path={tmp_path / 'gpt2'}", "trainer.max_steps=4", "teacher.trainer.max_steps=4"]
    run = distil("run", *words, "smoke=true")
    for name in "student", "control":
        assert json.loads((run / name / "config.json").read_text())["pad_token_id"] == tokenizer.pad_token_id
