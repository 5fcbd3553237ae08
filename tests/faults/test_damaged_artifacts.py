"""Damaged files of every runtime: scored, or refused in one message. A library that ends its process must not end the command."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers
from faults.harness import Batch, batches, require_clean, run_process
from faults.test_model_folders import cut, flip, replace, retype
from support.laptop import random_speaker
from support.tiny import bert, pairs, talk, translator, write_pairs

from kdcli.exporting.targets.base import Target
from kdcli.exporting.targets.cpu import Cpu
from kdcli.exporting.targets.cuda import Cuda
from kdcli.exporting.targets.intel import Intel
from kdcli.exporting.targets.laptop import Laptop
from kdcli.exporting.targets.mobile import Mobile

pytestmark = pytest.mark.faults
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "onnx": ("model.onnx", ("model.onnx", "config.json", "tokenizer.json")),
    "openvino": ("model.int8.xml", ("model.int8.xml", "model.int8.bin")),
    "exported": ("model.pt2", ("model.pt2",)),
    "torch": ("bf16", ("bf16/model.safetensors", "bf16/config.json")),
    "gguf": ("model.f16.gguf", ("model.f16.gguf",)),
    "ctranslate2": ("ctranslate2", ("ctranslate2/model.bin", "ctranslate2/shared_vocabulary.json", "ctranslate2/config.json")),
}  # fmt: skip
"""The artifact of each runtime, and its files."""
MOBILE = {
    "executorch": ("model.fp32.pte", ("model.fp32.pte",)),
    "litert": ("model.int8.tflite", ("model.int8.tflite",)),
}
"""Those of runtimes whose packages `make test-devices` installs."""
WORDS = [b"\xff" * 4, b"\x00" * 4, b"\xff" * 8, b"\x7f\xff\xff\xff", b"\x00\x00\x00\x80", b"{" * 100]


def written(kind: str, tokenizer: transformers.PreTrainedTokenizerBase, folder: Path) -> None:
    """The export of a tiny model, by the target that writes the kind."""
    student = folder / "student"
    if kind == "ctranslate2":
        translator(student)
        target: Target = Cpu(["int8"])
    elif kind == "gguf":
        random_speaker(student)
        target = Laptop(["f16"])
    else:
        bert(tokenizer, ["bad", "good"], hidden=16, layers=1).save_pretrained(student)
        tokenizer.save_pretrained(student)
        targets = {"onnx": Cpu, "openvino": Intel, "executorch": Mobile, "litert": Mobile}
        formats = {
            "onnx": "fp32",
            "openvino": "int8",
            "executorch": "executorch_fp32",
            "litert": "litert_int8",
        }
        target = targets[kind]([formats[kind]]) if kind in targets else Cuda()
    config = transformers.AutoConfig.from_pretrained(student)
    model = getattr(transformers, config.architectures[0]).from_pretrained(student).eval()
    own = transformers.AutoTokenizer.from_pretrained(student)
    inputs = [dict(own("a film", return_tensors="pt"))]
    target.export(student, folder / "export", model, inputs, 64)


@pytest.fixture(scope="module")
def exports(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The whole export of a kind, written when it is first asked for."""
    made: dict[str, Path] = {}

    def export(kind: str) -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            (folder / "export").mkdir()
            written(kind, tokenizer, folder)
            made[kind] = folder / "export"
        return made[kind]

    return export


@pytest.fixture(scope="module")
def data(reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The dataset of each kind of models."""
    folder = tmp_path_factory.mktemp("data")
    file = write_pairs(folder / "pairs.csv", pairs(120))
    translations = ["dataset=csv", f"dataset.path={file}", "dataset.source=en", "dataset.target=es"]
    classified = ["dataset=csv", f"dataset.path={reviews}"]
    own = {"gguf": talk(folder, "messages"), "ctranslate2": translations}
    return {kind: own.get(kind, classified) for kind in KINDS | MOBILE}


def header(path: Path, chance: random.Random) -> None:
    """Other bytes near the beginning, where counts and offsets stand."""
    content = bytearray(path.read_bytes())
    at, word = chance.randrange(min(len(content), 200)), chance.choice(WORDS)
    content[at : at + len(word)] = word
    path.write_bytes(content)


def damage(folder: Path, files: tuple[str, ...], chance: random.Random) -> str:
    """Damage one file; returns what was done."""
    path = folder / chance.choice(files)
    ways: list[Callable[[Path, random.Random], None]] = [flip, cut, replace, header, header]
    ways += [retype] * (path.suffix == ".json")
    way = chance.choice(ways)
    way(path, chance)
    return f"{path.name} {way.__name__}"


@pytest.mark.parametrize("batch", batches(60, quick=0, size=10))
def test_a_damaged_artifact_is_one_message(
    batch: Batch, exports: Callable[[str], Path], data: dict[str, list[str]], tmp_path: Path
) -> None:
    """A segmentation fault in C++, an allocation as large as a file claims, an exception that names no file."""
    require_messages(batch, KINDS, exports, data, tmp_path)


@pytest.mark.devices
@pytest.mark.parametrize("batch", batches(30, quick=0, size=10))
def test_a_damaged_artifact_of_a_phone_is_one_message(
    batch: Batch, exports: Callable[[str], Path], data: dict[str, list[str]], tmp_path: Path
) -> None:
    """As above: offsets of a flat buffer that point anywhere."""
    pytest.importorskip("executorch")
    pytest.importorskip("ai_edge_litert")
    require_messages(batch, MOBILE, exports, data, tmp_path)


def require_messages(
    batch: Batch,
    kinds: dict[str, tuple[str, tuple[str, ...]]],
    exports: Callable[[str], Path],
    data: dict[str, list[str]],
    tmp_path: Path,
) -> None:
    """`kdcli eval` of a damaged copy of an artifact ends in one message, for each case of a batch."""
    failures = []
    for name, chance in batch:
        kind = chance.choice(sorted(kinds))
        artifact, files = kinds[kind]
        work = tmp_path / name.replace("/", "-")
        copy = Path(shutil.copytree(exports(kind), work / "export"))
        what = damage(copy, files, chance)
        words = [*data[kind], "dataset.max_length=64", "dataset.eval_limit=8", "measure=null"]
        try:
            require_clean(run_process(["eval", f"artifact={copy / artifact}", *words], work))
        except AssertionError as error:
            failures.append(f"case {name} ({kind}: {what}): {error}"[:4000])
        shutil.rmtree(work)
    assert not failures, f"{len(failures)} of {batch.count} failed:\n" + "\n\n".join(failures)


@pytest.mark.parametrize(
    ("kind", "file"), [(kind, file) for kind, (_, files) in KINDS.items() for file in files]
)
def test_a_huge_empty_file_is_refused_at_once(
    kind: str, file: str, exports: Callable[[str], Path], data: dict[str, list[str]], tmp_path: Path
) -> None:
    """An interrupted download that reserved its space: 50 GB of zeros are read for minutes, or into the memory."""
    copy = Path(shutil.copytree(exports(kind), tmp_path / "export"))
    os.truncate(copy / file, 0)
    os.truncate(copy / file, 50 * 2**30)
    words = [*data[kind], "dataset.max_length=64", "dataset.eval_limit=8", "measure=null"]
    outcome = run_process(["eval", f"artifact={copy / KINDS[kind][0]}", *words], tmp_path)
    require_clean(outcome, codes=[2])
    assert outcome.seconds < 30
