"""Who writes what the student learns: the teacher once, or the student while it is trained; through the real command."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file
from support.commands import largest_difference, naming, require_one_message, require_words, runner, some
from support.tiny import decoder, exchanges, language_model_options, speaker, speller, talk
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from kdcli.config.check import check
from kdcli.config.measure import Measure
from kdcli.config.schema import Distill
from kdcli.data.dataset import load
from kdcli.errors import ConfigError, KDError
from kdcli.exporting.artifacts import Split, generate_reference
from kdcli.generation import generate, reply, require_room, seed_of
from kdcli.launch.run import launch
from kdcli.measure.models import make_spec
from kdcli.rundir import saved_config
from kdcli.tasks.causal_lm.task import CausalLM
from kdcli.teachers.local import LocalTeacher
from kdcli.training.trainer import _Trainer

Distil = Callable[..., Path]
SHORT = ("control=false", "measure=null", "trainer.max_steps=6", "rollout.max_new_tokens=8")


@pytest.fixture(scope="module")
def voice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speaker(tmp_path_factory.mktemp("models") / "speaker")


@pytest.fixture
def distil(voice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Distil:
    """Runs `kdcli distill` in this process and returns the run directory."""
    monkeypatch.chdir(tmp_path)

    base = language_model_options(voice)
    return runner(tmp_path, lambda form, *overrides: [*base, *talk(tmp_path, form), *SHORT, *overrides])


def write(*arguments: Any, **options: Any) -> list[str]:
    return [text for text, _ in reply(*arguments, **options)]


def logged(run: Path, key: str) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line[key] for line in lines if line["stage"] == "student" and key in line]


# ---- writing -----------------------------------------------------------------------------------------


def test_an_answer_does_not_depend_on_its_neighbours(voice: Path) -> None:
    """Padding on the right, or padding that is attended to, spoils the answers to all but the longest prompt."""
    tokenizer = speller()
    model = AutoModelForCausalLM.from_pretrained(voice)
    prompts = [prompt for prompt, _ in exchanges(9, seed=3)]
    options = {"special": True, "max_length": 64, "max_new_tokens": 12}
    for temperature in (0.0, 0.7):
        seeds = [seed_of(prompt) for prompt in prompts]
        alone = [
            write(model, tokenizer, [prompt], batch_size=1, temperature=temperature, seeds=[seed], **options)[
                0
            ]
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        together = write(
            model, tokenizer, prompts, batch_size=4, temperature=temperature, seeds=seeds, **options
        )
        assert together == alone
        assert len(set(alone)) > 3
        assert sum(map(bool, alone)) > 5


def test_a_checkpoints_own_settings_are_left_out(voice: Path) -> None:
    """Qwen's repetition_penalty of 1.05, say: another distribution than the one that the teacher judges."""
    model = AutoModelForCausalLM.from_pretrained(voice)
    prompts = [prompt for prompt, _ in exchanges(6, seed=3)]
    options = {"special": True, "max_length": 64, "max_new_tokens": 12, "batch_size": 4}
    plain = write(model, speller(), prompts, **options)
    model.generation_config.repetition_penalty = 3.0
    model.generation_config.no_repeat_ngram_size = 1
    assert write(model, speller(), prompts, **options) == plain
    assert model.generation_config.repetition_penalty == 3.0


def test_a_prompt_leaves_positions_for_its_answer(tmp_path: Path) -> None:
    """A GPT-2 that is to write past its last position: IndexError, after all that was trained before."""
    tokenizer = speller()
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer), n_positions=24, n_embd=16, n_layer=1, n_head=2, eos_token_id=None
        )
    )
    long, short = [list(range(4, 64))[:length] for length in (23, 9)]
    options = {"max_new_tokens": 8, "batch_size": 2}
    assert generate(model, tokenizer, [long, short], **options) == generate(
        model, tokenizer, [long[-16:], short], **options
    )
    assert generate(model, tokenizer, [long], **options) != generate(model, tokenizer, [long[:16]], **options)
    cfg = Measure(new_tokens=8, sequence_length=16, generations=1)
    row = {"id": "a", "prompt": "the film was " * 9, "completion": " good"}
    split = Split(CausalLM(), datasets.Dataset.from_list([row]), tokenizer, 24)
    ((ids, places),) = generate_reference(model, split, cfg)
    assert (len(ids), places) == (24, [*range(16, 24)])
    model.config.save_pretrained(tmp_path)
    assert make_spec(cfg, "torch", tmp_path, tmp_path, CausalLM(), [["so"]], 24)[0].max_length == 16
    with pytest.raises(ConfigError, match=naming("measure.sequence_length", "17", "gpt2", "24", "16")):
        require_room(cfg.model_copy(update={"sequence_length": 17}), model.config)


def test_tokens_are_drawn_from_the_softmax() -> None:
    """Noise of the wrong shape, or the temperature on the wrong side, draws from another distribution."""
    tokenizer = speller()
    model = decoder(tokenizer)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(10)
    prompt, _ = exchanges(1)[0]
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    expected = (model(ids).logits[0, -1] / 2.0).softmax(-1)
    texts = write(
        model, tokenizer, [prompt] * 4000, special=True, max_length=64, max_new_tokens=1, batch_size=500,
        temperature=2.0, seeds=range(4000),
    )  # fmt: skip
    found = Counter(texts)
    tokens = [tokenizer.decode([token], skip_special_tokens=True) for token in range(len(tokenizer))]
    unique = [token for token, text in enumerate(tokens) if tokens.count(text) == 1]
    assert expected[unique].max() > 0.05
    for token in sorted(unique, key=lambda token: -expected[token])[:5]:
        share = float(expected[token])
        assert abs(found[tokens[token]] / 4000 - share) < 5 * (share * (1 - share) / 4000) ** 0.5


# ---- rollout=teacher ---------------------------------------------------------------------------------


WHOLE = ("dataset.chat=true", "rollout.max_new_tokens=24", "rollout.sampling_temperature=0.5")


def test_a_teacher_writes_what_the_student_learns(distil: Distil, voice: Path) -> None:
    """A student that is still trained on the data's completions; a control that is trained on the teacher's; an answer that
    was cut off, after which the student learns to stop."""
    run = distil("run", "pairs", "rollout=teacher", "loss.soft_label.weight=0", "control=true", *WHOLE)
    rows = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    cfg = check(Distill, saved_config(run))
    train = load(cfg.dataset)["train"]
    replies = CausalLM(chat=True).replies(
        AutoModelForCausalLM.from_pretrained(voice), speller(), train, 64, max_new_tokens=24, batch_size=16,
        temperature=0.5, seeds=[seed_of(cfg.seed, row["id"]) for row in train],
    )  # fmt: skip
    own = [(row["prompt"], text) for row, (text, whole) in zip(train, replies, strict=True) if whole]
    assert [(row["prompt"], row["completion"]) for row in rows] == own
    assert 40 < len(rows) < len(train) == 88
    told = json.loads((run / "report.json").read_text())["dataset"]["dropped_completions"]
    assert told == {"truncated by rollout.max_new_tokens": 88 - len(rows)}
    assert "dropped completions: truncated by rollout.max_new_tokens" in (run / "report.html").read_text()
    before = distil("before", "pairs", "loss.soft_label.weight=0.0001", "control=true", "dataset.chat=true")
    assert largest_difference(run, before) > 1e-3
    a, b = (load_file(run / "control" / "model.safetensors") for run in (run, before))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_teacher_that_comes_to_no_end(distil: Distil, capsys: pytest.CaptureFixture[str]) -> None:
    """A student that learns to stop in the middle of everything, that is told that it lacks rows, and not why, or that learns short
    answers alone, which nobody hears of."""
    distil("run", "pairs", "rollout=teacher", *WHOLE, "rollout.max_new_tokens=2", code=2)
    message = require_one_message(capsys.readouterr().err)
    require_words(message, "rollout.max_new_tokens", "2", "88 of the teacher's 88 completions")
    run = distil("some", "pairs", "rollout=teacher", *WHOLE, "rollout.max_new_tokens=7")
    (count,) = json.loads((run / "report.json").read_text())["dataset"]["dropped_completions"].values()
    assert 9 <= count < 80
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    require_words("\n".join(warnings), "rollouts", f"{count} of 88 completions", "rollout.max_new_tokens")


def test_what_a_teacher_wrote_is_kept(distil: Distil, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed loses all that was written; a second run pays for it once more, and learns something else."""
    monkeypatch.setattr("kdcli.pipeline.rollouts.PART", 32)
    asked: list[int] = []
    real = LocalTeacher.write

    def dies(self: LocalTeacher, examples, how, seed):
        asked.append(len(examples))
        if len(asked) == 2:
            raise KDError("killed")
        return real(self, examples, how, seed)

    monkeypatch.setattr(LocalTeacher, "write", dies)
    how = ("messages", "rollout=teacher", "rollout.max_new_tokens=24", "rollout.sampling_temperature=0.9")
    distil("first", *how, code=1)
    first = distil("first", *how)
    assert asked == [32, 32, 32, 88 - 64]
    assert largest_difference(first, distil("second", *how)) == 0
    assert len(asked) == 4
    other = distil("other", *how, "rollout.sampling_temperature=1.5")
    assert len(asked) == 7
    assert largest_difference(first, other) > 0


# ---- rollout=student ---------------------------------------------------------------------------------

PLAIN = (
    "{% for turn in messages %}{{ turn['role'] }}: {{ turn['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
ON_POLICY = ("rollout=student", "rollout.on_policy_fraction=0.6")


@pytest.mark.parametrize(("form", "buffer"), some([("pairs", 1), ("messages", 4)], ("messages", 4)))
def test_on_policy_batches_8x1_are_4x2(distil: Distil, form: str, buffer: int) -> None:
    """Answers that depend on how a batch is shared: noise from one stream, rows chosen by their place, a mean taken twice."""
    how = (*ON_POLICY, f"rollout.buffer={buffer}")
    whole = distil("8x1", form, *how)
    assert largest_difference(whole, distil("4x2", form, *how, "trainer.micro_batch_size=4")) < 2e-5
    assert largest_difference(whole, distil("none", form, "teacher.cache=false")) > 1e-4


def test_no_row_on_policy_is_the_data_set(distil: Distil) -> None:
    """A rollout that changes rows, labels or denominators even where the student writes nothing."""
    plain = distil("plain", "pairs", "teacher.cache=false")
    assert (
        largest_difference(plain, distil("none", "pairs", "rollout=student", "rollout.on_policy_fraction=0"))
        == 0
    )


def test_what_the_student_wrote_is_no_gold(distil: Distil) -> None:
    """A cross-entropy with the student's own tokens as labels makes it surer of whatever it says."""
    run = distil("all", "pairs", "rollout=student", "rollout.on_policy_fraction=1", "trainer.logging_steps=1")
    assert set(logged(run, "loss/hard_label")) == {0.0}
    assert min(logged(run, "loss/soft_label")) > 0


@pytest.mark.parametrize("buffer", some([1, 3], 3))
def test_killed_and_resumed_on_policy(distil: Distil, monkeypatch: pytest.MonkeyPatch, buffer: int) -> None:
    """Answers drawn from a global stream of random numbers differ after a kill; those that were written ahead are written anew, by a student that
    has learnt in between; a buffer writes in each step all the same."""
    written: list[int] = []
    writes = _Trainer._generate

    def counts(self, rows, seeds):
        written.append(len(rows))
        return writes(self, rows, seeds)

    monkeypatch.setattr(_Trainer, "_generate", counts)
    how = ("messages", *ON_POLICY, f"rollout.buffer={buffer}", "trainer.eval_steps=2")
    whole = distil("whole", *how)
    assert len(written) == 6 // buffer
    report = json.loads((whole / "report.json").read_text())
    assert report["training"]["student"]["rollout_buffer"] == buffer
    real = _Trainer.training_step

    def dies(self, *args, **kwargs):
        if self.state.global_step == 5:
            raise KDError("killed")
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(_Trainer, "training_step", dies)
        distil("killed", *how, code=1)
    assert largest_difference(whole, distil("killed", *how)) == 0


def test_the_teacher_judges_what_the_student_wrote(distil: Distil, monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher that is asked about the data's completion, while the student is trained on its own; one that judges the end
    of an answer that was cut off."""
    seen: list[str] = []
    ends: Counter[bool | None] = Counter()
    real = LocalTeacher.outputs

    def listens(self, examples, *keep):
        seen.extend(row["completion"] for row in examples)
        ends.update(row.get("ends") for row in examples)
        return real(self, examples, *keep)

    monkeypatch.setattr(LocalTeacher, "outputs", listens)
    distil("run", "pairs", "rollout=student", "rollout.on_policy_fraction=1")
    known = {answer for _, answer in exchanges(120)}
    assert len([text for text in seen if text not in known]) >= 6 * 8 / 2
    assert ends[False] > ends[True] > 0


def test_a_student_that_says_nothing(distil: Distil, voice: Path, tmp_path: Path) -> None:
    """Where no token closes a turn, nothing counts of an answer that says nothing: the run dies of it, or learns from no
    token at all."""
    model = AutoModelForCausalLM.from_pretrained(voice)
    with torch.no_grad():
        model.get_input_embeddings().weight.zero_()  # writes the first token: the end
    model.save_pretrained(tmp_path / "silent")
    speller(PLAIN).save_pretrained(tmp_path / "silent")
    options = (f"teacher.path={tmp_path / 'silent'}", "dataset.chat=true", "trainer.logging_steps=1")
    own = ("rollout=student", "rollout.on_policy_fraction=1", "rollout.sampling_temperature=0")
    run = distil("run", "pairs", *options, *own)
    assert min(logged(run, "loss/hard_label")) > 0


# ---- bad input ---------------------------------------------------------------------------------------


def test_rollouts_need_prompts(distil: Distil, small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A classifier that is to write, or plain text that is to be answered, dies in the middle of a run."""
    for by in ("teacher", "student"):
        assert launch("distill", [*small, f"rollout={by}", "hydra.run.dir=run"]) == 2
        require_words(require_one_message(capsys.readouterr().err), "rollout.source", "classification")
        distil("run", "text", f"rollout={by}", code=2)
        require_words(require_one_message(capsys.readouterr().err), "rollout.source", "no prompts")


def test_who_writes_for_several_steps(distil: Distil, capsys: pytest.CaptureFixture[str]) -> None:
    """A buffer that is never used, because the teacher writes everything before; one whose last completions come from another student."""
    for by, size, words in (
        ("teacher", 2, ["rollout", "buffer", "source=student"]),
        ("student", 65, ["rollout.buffer", "64"]),
        ("student", 0, ["rollout.buffer", "1"]),
    ):
        distil("run", "pairs", f"rollout={by}", f"rollout.buffer={size}", code=2)
        require_words(require_one_message(capsys.readouterr().err), str(size), *words)


def test_several_answers_to_a_prompt(distil: Distil) -> None:
    """The first of several answers is another than the only one; or the same is learnt twice, or what was filtered."""

    def written(folder: str, *overrides: str) -> list[tuple[str, str]]:
        run = distil(folder, "pairs", "rollout=teacher", *WHOLE, "rollout.sampling_temperature=1", *overrides)
        lines = (run / "rollouts.jsonl").read_text().splitlines()
        return [(row["prompt"], row["completion"]) for row in map(json.loads, lines)]

    one, several = written("one"), written("several", "rollout.answers=3")
    assert len(one) < len(several) == len(set(several)) <= 3 * 88
    assert set(one) <= set(several)
    short = written("short", "rollout.answers=3", "rollout.filter.max_length=20")
    assert short == [(prompt, answer) for prompt, answer in several if len(answer) <= 20]
    assert 0 < len(short) < len(several)
