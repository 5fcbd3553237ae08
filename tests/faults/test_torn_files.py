"""Torn files: every file of a run that was killed, and of its cache, is damaged in every way; the same command then ends with the same
weights, or refuses with the file's name and the remedy."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import torch
from faults.harness import Batch, Outcome, batches, require_clean, run_here
from safetensors.torch import load_file
from support.commands import require_words
from support.tiny import language_model_options, speaker, start, talk, wait_for

from kdcli.files import hash_file

Damage = Callable[[bytes], bytes | None]
DAMAGES: dict[str, Damage] = {
    "missing": lambda data: None,
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "without its end": lambda data: data[:-1],
    "garbage": lambda data: random.Random(len(data)).randbytes(len(data)),
    "garbage in the middle": lambda data: (
        data[: len(data) // 2] + b"\x00\xff\x93" + data[len(data) // 2 + 3 :]
    ),
    "null": lambda data: b"null",
    "another type": lambda data: b'[{"a": 1}]\n',
    "another type, too": lambda data: b'{"a": [1]}\n',
}


class Killed:
    """A run that was killed while its control, or its student, was trained; its cache; and what it would have become."""

    def __init__(self, folder: Path, options: list[str], stage: str):
        self.folder, self.options = folder, options
        self.run, self.cache, self.whole = folder / "run", folder / "cache", folder / "whole"
        before = os.environ["KDCLI_CACHE_DIR"]
        os.environ["KDCLI_CACHE_DIR"] = str(self.cache)
        try:
            process = start(self.run, options)
            wait_for(lambda: any((self.run / "stages" / stage).glob("checkpoint-2*/SHA256SUMS")), process)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            shutil.copytree(self.cache, folder / "later")
            require_clean(run_here(["distill", *options, f"hydra.run.dir={self.whole}"], folder), codes=[0])
        finally:
            os.environ["KDCLI_CACHE_DIR"] = before
        shutil.rmtree(self.cache)
        (folder / "later").rename(self.cache)

    def files(self) -> list[Path]:
        """Every file of the run and its cache, but for locks."""
        found = [
            path.relative_to(self.folder)
            for root in (self.run, self.cache)
            for path in root.rglob("*")
            if path.is_file() and ".lock" not in path.name
        ]
        return sorted(found)

    def continued(self, place: Path, torn: dict[Path, Damage], monkeypatch: pytest.MonkeyPatch) -> Outcome:
        """The outcome of the same command on a copy with some files torn."""
        shutil.copytree(self.run, place / "run")
        shutil.copytree(self.cache, place / "cache")
        for path, damage in torn.items():
            data = damage((place / path).read_bytes())
            (place / path).unlink()
            if data is not None:
                (place / path).write_bytes(data)
        monkeypatch.setenv("KDCLI_CACHE_DIR", str(place / "cache"))
        return run_here(["distill", *self.options, f"hydra.run.dir={place / 'run'}"], place)

    def require_same(self, run: Path, why: str) -> None:
        """The run has become what it would have been."""
        for model in ("student", "control"):
            one, other = (load_file(each / model / "model.safetensors") for each in (self.whole, run))
            assert one.keys() == other.keys(), why
            assert all(torch.equal(one[key], other[key]) for key in one), f"{model} is another: {why}"

    def judge(self, outcome: Outcome, place: Path, why: str, torn: Iterable[Path]) -> None:
        """To the bit, or refused with a torn file's name and the remedy."""
        require_clean(outcome, codes=(0, 2))
        if outcome.code == 0:
            self.require_same(place / "run", f"{why}\n{outcome.err}")
            return
        remedies = ("restore it", "start a new run", "choose another", "remove it")
        assert any(each in outcome.err for each in remedies), f"{why}\n{outcome.err}"
        assert any(path.name in outcome.err for path in torn), f"{why}\n{outcome.err}"


@pytest.fixture(scope="module")
def classifier(small: list[str], body: Path, tmp_path_factory: pytest.TempPathFactory) -> Killed:
    """A teacher that is tuned, a student that is finished, and a control with two checkpoints."""
    tuned = [
        f"teacher.path={body}",
        "teacher.trainer.epochs=6",
        "teacher.trainer.learning_rate=0.003",
        "trainer.epochs=2",
        "trainer.eval_steps=10",
        "student.dropout=0.1",
        "measure=null",
    ]
    return Killed(tmp_path_factory.mktemp("torn"), [*small, *tuned], "control")


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    """A language model that learns from its teacher's own answers, of which the top k are stored."""
    folder = tmp_path_factory.mktemp("writer")
    words = [
        *language_model_options(speaker(folder / "teacher")),
        *talk(folder, "pairs"),
        "rollout=teacher",
        "rollout.max_new_tokens=24",
        "rollout.sampling_temperature=0.5",
        "dataset.chat=true",
        "trainer.eval_steps=10",
        "trainer.epochs=6",
        "measure=null",
    ]
    return Killed(folder, words, "student")


def cases(killed: Killed, batch: Batch) -> Iterator[tuple[str, dict[Path, Damage]]]:
    """One or two files and the damage of each; the case's number chooses the first file, so that all files have their turn."""
    files = killed.files()
    order = random.Random(batch.seed).sample(files, len(files))
    for name, draw in batch:
        number = int(name.rpartition("/")[2])
        chosen = [order[number % len(order)], *([draw.choice(files)] if draw.random() < 0.2 else [])]
        damages = {path: draw.choice(list(DAMAGES)) for path in chosen}
        why = f"case {name}: " + ", ".join(f"{path} is {damage}" for path, damage in damages.items())
        yield why, {path: DAMAGES[damage] for path, damage in damages.items()}


def judge_all(killed: Killed, batch: Batch, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Continue the run with each case's torn files, and judge the outcome."""
    for number, (why, torn) in enumerate(cases(killed, batch)):
        place = folder / str(number)
        killed.judge(killed.continued(place, torn, monkeypatch), place, why, torn)
        shutil.rmtree(place)


@pytest.mark.parametrize("batch", batches(75, 1, 25))
def test_a_torn_file_of_a_classifiers_run(
    classifier: Killed, batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that a crash cut short is trained on, ends in a traceback, or can only be mended by starting anew."""
    judge_all(classifier, batch, tmp_path, monkeypatch)


@pytest.mark.faults
@pytest.mark.parametrize("batch", batches(15, quick=0, size=5))
def test_a_torn_file_of_a_writers_run(
    writer: Killed, batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half an answer of the teacher, or half of its stored predictions, is learnt."""
    judge_all(writer, batch, tmp_path, monkeypatch)


def newest(killed: Killed) -> list[Path]:
    """The checkpoints of the stage that was killed, the newest first."""
    found = {
        path.parent for path in killed.files() if path.name == "SHA256SUMS" and "checkpoint-" in str(path)
    }
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)


@pytest.mark.faults
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("which", ["the newest", "the one before", "both"])
def test_a_torn_checkpoint_is_not_used(
    classifier: Killed, damage: str, which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage goes on with torn weights, or without its optimizer's or its random state, and ends with other weights."""
    checkpoints = newest(classifier)
    assert len(checkpoints) == 2
    chosen = {"the newest": checkpoints[:1], "the one before": checkpoints[1:], "both": checkpoints}[which]
    names = (
        "model.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
        "SHA256SUMS",
    )
    name = names[(list(DAMAGES).index(damage) + len(which)) % len(names)]
    torn = {checkpoint / name: DAMAGES[damage] for checkpoint in chosen}
    outcome = classifier.continued(tmp_path, torn, monkeypatch)
    require_clean(outcome, codes=[0])
    assert outcome.err.count("control: checkpoint-") == 1 or which == "the one before", outcome.err
    goes = {"the newest": "goes on from", "both": "begins anew"}
    assert goes.get(which, "") in outcome.err
    classifier.require_same(tmp_path / "run", f"{which}: {name} is {damage}")


@pytest.mark.faults
def test_the_files_of_a_finished_run(
    classifier: Killed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A torn file of a finished run ends eval, export or another distill in a traceback."""
    names = [
        path.relative_to(classifier.whole)
        for path in classifier.whole.rglob("*")
        if path.is_file()
        and path.suffix in (".json", ".jsonl", ".yaml", ".safetensors")
        and "student" not in path.parts
    ]
    draw = random.Random(1)
    for name in sorted(names):
        for damage in draw.sample(list(DAMAGES), 1):
            place = tmp_path / "place"
            shutil.copytree(classifier.whole, place / "run")
            shutil.copytree(classifier.cache, place / "cache")
            monkeypatch.setenv("KDCLI_CACHE_DIR", str(place / "cache"))
            data = DAMAGES[damage]((place / "run" / name).read_bytes())
            (place / "run" / name).unlink()
            if data is not None:
                (place / "run" / name).write_bytes(data)
            why = f"{name} is {damage}"
            require_clean(
                run_here(
                    ["eval", f"run={place / 'run'}", "measure=null", f"hydra.run.dir={place / 'eval'}"], place
                ),
                codes=(0, 2),
            )
            outcome = run_here(["distill", *classifier.options, f"hydra.run.dir={place / 'run'}"], place)
            require_clean(outcome, codes=(0, 2))
            if (
                "is finished" not in outcome.out
            ):  # a finished directory is left alone; eval and export check its models
                classifier.judge(outcome, place, why, [name])
            shutil.rmtree(place)


@pytest.mark.faults
def test_a_torn_record_of_a_remote_teacher_is_named(
    classifier: Killed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """eval and export score rows that the run was to leave out."""
    run = tmp_path / "run"
    shutil.copytree(classifier.whole, run)
    for damage in ("cut", "garbage in the middle", "null", "another type"):
        data = b'{"id": "a", "text": "x"}\n{"id": "b", "text": "y"}\n'
        torn = DAMAGES[damage](data)
        assert torn is not None
        (run / "unanswered.jsonl").write_bytes(torn + b"\n")
        before = hash_file(run / "unanswered.jsonl")
        outcome = run_here(
            ["eval", f"run={run}", "measure=null", f"hydra.run.dir={tmp_path / 'eval'}"], tmp_path
        )
        require_clean(outcome, codes=[2])
        require_words(outcome.err, "unanswered.jsonl", "damaged", f"kdcli distill --rerun {run}")
        assert hash_file(run / "unanswered.jsonl") == before
