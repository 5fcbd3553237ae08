"""Spoiled directories of models, as teacher and as student, through the real command: refused in one message before any training, or used."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.harness import SEEDS, Batch, batches, require_clean, run_here, run_process
from safetensors.torch import load_file, save_file
from support.tiny import bert, decoder, pairs, sentences, speller, talk, write_csv, write_pairs

SMALL = [
    "control=false",
    "measure=null",
    "trainer.max_steps=1",
    "trainer.batch_size=4",
    "trainer.precision=fp32",
    "teacher.trainer.precision=fp32",
    "teacher.trainer.max_steps=1",
    "teacher.trainer.batch_size=4",
    "dataset.validation_size=8",
    "dataset.test_size=8",
    "dataset.max_length=16",
    "hydra.run.dir=run",
]
STUDENT = ["student.hidden_size=16", "student.num_hidden_layers=1", "student.intermediate_size=32"]
ODD: list[Any] = [
    None, True, -1, 0, 1, 7, 10**7, 10**12, 2**63, 1e308, 1.5, -0.0, float("nan"), float("inf"), "", "x", "é\u202e\n", "a" * 5000, [], {}, [1], [None],
    {"x": [1]}, ["BertModel"],
]  # fmt: skip
KEYS = (
    "text_config", "decoder", "return_dict", "chunk_size_feed_forward", "is_encoder_decoder", "attn_implementation", "is_decoder", "pad_token_id",
    "rope_parameters", "tie_word_embeddings", "quantization_config", "dtype", "problem_type", "extra_special_tokens", "num_labels", "auto_map",
    "do_sample", "temperature", "num_beams", "length_penalty", "suppress_tokens", "max_length",
)  # fmt: skip
"""Keys that the models here do not have."""
TEXT = (".json", ".txt")
QUICK = 20
"""Seconds within which a model is refused."""


@pytest.fixture(scope="module")
def models(tokenizer, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny real models: what each is used for, and its directory."""
    import datasets

    from kdcli.students.encoder_decoder import EncoderDecoder, learn_vocabulary

    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(teacher, folder / "teacher")
    student = bert(tokenizer, ["bad", "good"], hidden=16, layers=2)
    student.save_pretrained(folder / "student")
    tokenizer.save_pretrained(folder / "student")
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    (folder / "student" / "vocab.txt").write_text("\n".join(words) + "\n")
    letters = speller()
    decoder(letters, hidden=16).save_pretrained(folder / "decoder")
    letters.save_pretrained(folder / "decoder")
    rows = [{"id": str(at), "source": one, "target": other} for at, (one, other) in enumerate(pairs(200))]
    marian = learn_vocabulary(datasets.Dataset.from_list(rows), 330)
    EncoderDecoder(16, 1, 1, 2, 32).over(marian).save_pretrained(folder / "translator")
    marian.save_pretrained(folder / "translator")
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def commands(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The command that uses each of them, without its path."""
    data = tmp_path_factory.mktemp("data")
    reviews = ["dataset=csv", f"dataset.path={write_csv(data / 'reviews.csv', sentences(40))}"]
    dialogues = ["student=layers", "student.num_hidden_layers=1", "loss=forward_kl"]
    translations = write_pairs(data / "pairs.csv", pairs(40))
    return {
        "teacher": [*reviews, *STUDENT, "teacher=local", *SMALL],
        "student": [*reviews, "teacher=local", f"teacher.path={models['teacher']}", "student=local", *SMALL],
        "decoder": [*dialogues, *talk(data, "pairs", 40), "teacher=local", *SMALL],
        "translator": [
            "teacher=local", "student=layers", "student.num_hidden_layers=1", "dataset=csv", f"dataset.path={translations}",
            "dataset.source=en", "dataset.target=es", *SMALL,
        ],
    }  # fmt: skip


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Each value inside a JSON document, by its container and key."""
    found: list[tuple[Any, Any]] = []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(items):
        found += [(tree, key), *places(value)]
    return found


def mutate(path: Path, chance: random.Random) -> None:
    """Another value at a random place of a JSON file."""
    tree = json.loads(path.read_text(encoding="utf-8"))
    for _ in range(chance.choice([1, 1, 1, 3])):
        if found := places(tree):
            container, key = chance.choice(found)
            way = chance.random()
            if isinstance(container, dict) and way < 0.2:
                del container[key]
            elif isinstance(container, dict) and way < 0.4:
                container[chance.choice(KEYS)] = chance.choice(ODD)
            else:
                container[key] = chance.choice(ODD)
    path.write_text(json.dumps(tree), encoding="utf-8")


def retype(path: Path, chance: random.Random) -> None:
    """Another document altogether, or the same one in another encoding."""
    text = path.read_text(encoding="utf-8")
    documents = [
        b"", b"[]", b"null", b"5", b'"x"', b"{}", b"\x00" * 100, b"[" * 200_000, b'{"a":' * 100_000, b'{"vocab_size": 1' + b"0" * 5000 + b"}",
        text.encode("utf-16"), "\ufeff".encode() + text.encode(), "\xe9\n".encode("latin-1") + text.encode(), b"\xff" + text.encode(),
        text.encode() + text.encode(),
    ]  # fmt: skip
    path.write_bytes(chance.choice(documents))


def flip(path: Path, chance: random.Random) -> None:
    """A few bits."""
    data = bytearray(path.read_bytes())
    for _ in range(chance.choice([1, 1, 8, 64])):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def cut(path: Path, chance: random.Random) -> None:
    """The end is gone."""
    data = path.read_bytes()
    path.write_bytes(data[: chance.randrange(len(data))])


def replace(path: Path, chance: random.Random) -> None:
    """No file, or something that is no file."""
    kind = chance.choice(["nothing", "fifo", "folder", "zero", "loop", "dangling", "sparse"])
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "sparse":
        path.touch()
        os.truncate(path, 50 * 2**30)
    elif kind != "nothing":
        path.symlink_to({"zero": "/dev/zero", "loop": path.name, "dangling": "nowhere"}[kind])


def reweigh(path: Path, chance: random.Random) -> None:
    """Another header, or other tensors."""
    kind = chance.choice(["header", "nan", "inf", "huge", "int8", "shape", "less", "more", "half"])
    if kind == "header":
        path.write_bytes(struct.pack("<Q", chance.choice([0, 1, 2**40, 2**63, 10])) + path.read_bytes()[8:])
        return
    tensors = load_file(path)
    name = chance.choice(sorted(tensors))
    if kind == "more":
        tensors |= {
            key.replace(".0.", ".9."): value.clone() for key, value in tensors.items() if ".0." in key
        }
    elif kind == "less":
        del tensors[name]
    elif kind == "shape":
        tensors[name] = torch.zeros([size + 1 for size in tensors[name].shape])
    elif kind == "int8":
        tensors[name] = tensors[name].to(torch.int8)
    elif kind == "half":
        tensors[name] = tensors[name].half()
    else:
        tensors[name].view(-1)[0] = {"nan": torch.nan, "inf": torch.inf, "huge": 3e38}[kind]
    save_file(tensors, path, {"format": "pt"})


def spoil(folder: Path, others: list[Path], chance: random.Random) -> str:
    """Spoil one file of a model's directory; returns what was done."""
    path = chance.choice(sorted(folder.iterdir()))
    ways: list[Callable[[Path, random.Random], None]] = [flip, cut, replace]
    if path.suffix == ".safetensors":
        ways += [reweigh] * 4
    if path.suffix in TEXT:
        ways += [retype]
    if path.suffix == ".json":
        ways += [mutate] * 6
    if like := [
        other / path.name for other in others if (other / path.name).is_file() and other.name != folder.name
    ]:
        ways += [lambda path, chance: path.write_bytes(chance.choice(like).read_bytes())]
    way = chance.choice(ways)
    way(path, chance)
    return f"{path.name} {way.__name__}"


def spoiled(
    batch: Batch,
    models: dict[str, Path],
    commands: dict[str, list[str]],
    run: Callable[..., Any],
    folder: Path,
) -> None:
    """Each case of a batch: a model's directory is spoiled, and used. All failures are reported."""
    failures: list[str] = []
    for name, chance in batch:
        kind = chance.choice(sorted(models))
        work = folder / name.replace("/", "-")
        copy = Path(shutil.copytree(models[kind], work / kind))
        what = spoil(copy, list(models.values()), chance)
        key = "student.path" if kind == "student" else "teacher.path"
        try:
            outcome = run(["distill", *commands[kind], f"{key}={copy}"], work)
            require_clean(outcome)
            assert outcome.code != 2 or not (work / "run").exists(), (
                f"a run directory is left: {outcome.command}\n{outcome.err[-1000:]}"
            )
        except AssertionError as error:
            failures.append(f"case {name} ({kind}: {what}): {error}; caused by {error.__cause__!r}"[:6000])
        shutil.rmtree(work)
    assert not failures, f"{len(failures)} of {batch.count} failed:\n" + "\n\n".join(failures)


@pytest.mark.parametrize("batch", batches(300, quick=5, size=50))
def test_a_spoiled_model_is_refused_in_one_message(
    batch: Batch, models: dict[str, Path], commands: dict[str, list[str]], tmp_path: Path
) -> None:
    """A traceback out of transformers or Rust, a FIFO that is waited for, a terabyte that is allocated, a teacher of half its layers."""
    spoiled(batch, models, commands, run_here, tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize("first", [1000, 1017])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_spoiled_model_in_a_process_of_its_own(
    seed: int, first: int, models: dict[str, Path], commands: dict[str, list[str]], tmp_path: Path
) -> None:
    """What ends a process, such as a signal or a message on another thread, is not seen within one."""
    spoiled(Batch(seed, first, 17), models, commands, run_process, tmp_path)


def rewritten(folder: Path, **values: Any) -> None:
    """Other values in config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def weighed(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Other tensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def not_a_number(tensors: dict[str, torch.Tensor]) -> None:
    next(value for key, value in tensors.items() if "embeddings" in key).view(-1)[0] = torch.nan


def instead(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "NaN": (lambda folder: weighed(folder, not_a_number), "nan"),
    "architectures": (lambda folder: rewritten(folder, architectures=5), "architectures"),
    "latin-1": (lambda folder: (folder / "vocab.txt").write_bytes("é\n".encode("latin-1")), "vocab.txt"),
    "model_max_length": (
        lambda folder: (folder / "tokenizer_config.json").write_text('{"model_max_length": "x"}'), "model_max_length",
    ),
    "zero heads": (lambda folder: rewritten(folder, num_attention_heads=0), "num_attention_heads"),
    "FIFO": (lambda folder: instead(folder / "model.safetensors", os.mkfifo), "model.safetensors"),
    "50 GB": (lambda folder: os.truncate(folder / "model.safetensors", 50 * 2**30), "model.safetensors"),
    "10 million layers": (lambda folder: rewritten(folder, num_hidden_layers=10**7), "num_hidden_layers"),
    "half its depth": (lambda folder: rewritten(folder, num_hidden_layers=1), "leaves out"),
}  # fmt: skip
"""What is wrong with a directory, and what the message names."""


@pytest.mark.parametrize("role", ["teacher", "student"])
@pytest.mark.parametrize(
    "why",
    [
        pytest.param(why, marks=[] if why in ("NaN", "half its depth") else pytest.mark.faults)
        for why in SPOILT
    ],
)
def test_what_is_wrong_with_a_model_is_named(
    why: str, role: str, models: dict[str, Path], commands: dict[str, list[str]], tmp_path: Path
) -> None:
    """A student that cannot be used is found out by its scores, and a teacher by a traceback."""
    copy = Path(shutil.copytree(models["student"], tmp_path / "model"))
    spoil_it, named = SPOILT[why]
    spoil_it(copy)
    outcome = run_here(["distill", *commands[role], f"{role}.path={copy}"], tmp_path)
    require_clean(outcome, codes=[2])
    assert re.search(re.escape(named), outcome.err, re.IGNORECASE), outcome.err
    assert outcome.seconds < QUICK, outcome.command
    assert not (tmp_path / "run").exists()
