"""Files and directories from somebody else, each with a canary: what they hold is not run, and what lies outside them is not read."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults.harness import Fence, Outcome, require_clean, run_here
from support.commands import edit, require_words
from support.tiny import bert

from kdcli.exporting import runtimes
from kdcli.exporting.targets.base import Target
from kdcli.exporting.targets.cpu import Cpu
from kdcli.exporting.targets.cuda import Cuda
from kdcli.model_files import SUMS

LENGTH = 32


def mostly_rare(*cases: Any) -> list[Any]:
    """Cases of which the first one runs in `make test` and all run in `make test-faults`."""
    return [cases[0], *(pytest.param(case, marks=pytest.mark.faults) for case in cases[1:])]


class Bomb:
    """What a pickle may do when it is loaded."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


def torch_saved(thing: object) -> bytes:
    stream = io.BytesIO()
    torch.save(thing, stream)
    return stream.getvalue()


@pytest.fixture(scope="module")
def student(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random classifier."""
    folder = tmp_path_factory.mktemp("student")
    bert(tokenizer, ["bad", "good"], hidden=16, layers=1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def export(target: Target, student: Path, folder: Path) -> Path:
    """A real export, with what lies beside the files."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(student).eval()
    inputs = [dict(AutoTokenizer.from_pretrained(student)("a film", return_tensors="pt"))]
    target.export(student, folder, model, inputs, LENGTH)
    return folder


@pytest.fixture(scope="module")
def exported(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program, and a folder in bf16."""
    return export(Cuda(), student, tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="module")
def graphs(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file."""
    return export(Cpu(["fp32"]), student, tmp_path_factory.mktemp("graphs"))


@pytest.fixture
def place(exported: Path, tmp_path: Path) -> Path:
    """A copy of the export that a test may spoil."""
    return Path(shutil.copytree(exported, tmp_path / "exported"))


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def judge(tmp_path: Path, reviews: Path) -> Callable[[Path], Outcome]:
    """Runs `kdcli eval` on an artifact."""

    def run(artifact: Path, *words: str) -> Outcome:
        options = [
            "dataset=csv",
            f"dataset.path={reviews}",
            f"dataset.max_length={LENGTH}",
            "measure=null",
            "dataset.eval_limit=16",
        ]
        return run_here(["eval", f"artifact={artifact}", *options, *words], tmp_path)

    return run


def require_refused(outcome: Outcome, canary: Path, *words: str) -> None:
    """Exit code 2 and one message that names what is wrong; the canary was not touched."""
    require_clean(outcome, codes=[2])
    assert not canary.exists(), f"code was run: {outcome.command}"
    require_words(outcome.err, *words)


# ---- programs of torch.export ------------------------------------------------------------------------


def rewritten(path: Path, change: Callable[[dict[str, bytes]], object]) -> Path:
    """The archive with other members, whose names are those below its root."""
    with zipfile.ZipFile(path) as archive:
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(members)
    writer = torch._C.PyTorchFileWriter(str(path))
    for name, data in members.items():
        if not name.startswith(".data"):
            writer.write_record(name, data, len(data))
    writer.write_end_of_file()
    return path


def program(members: dict[str, bytes], change: Callable[[dict[str, Any]], object]) -> None:
    """Change the program itself."""
    tree = json.loads(members["models/model.json"])
    change(tree)
    members["models/model.json"] = json.dumps(tree).encode()


def pickled_weight(members: dict[str, bytes], canary: Path) -> None:
    config = json.loads(members["data/weights/model_weights_config.json"])
    entry = next(iter(config["config"].values()))
    entry["use_pickle"] = True
    members["data/weights/model_weights_config.json"] = json.dumps(config).encode()
    members[f"data/weights/{entry['path_name']}"] = torch_saved(Bomb(canary))


def pickled_constant(members: dict[str, bytes], canary: Path) -> None:
    config = json.loads(members["data/constants/model_constants_config.json"])
    config["config"]["own"] = {
        "path_name": "opaque_obj_0",
        "is_param": False,
        "use_pickle": True,
        "tensor_meta": None,
    }
    members["data/constants/model_constants_config.json"] = json.dumps(config).encode()
    members["data/constants/opaque_obj_0"] = pickle.dumps(Bomb(canary))


def first(tree: Any, key: str) -> dict[str, Any]:
    """The first object that has a key."""
    values = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    if isinstance(tree, dict) and key in tree:
        return tree
    return next((found for value in values if (found := first(value, key))), {})


def renamed_input(tree: dict[str, Any], name: str) -> None:
    text = json.dumps(tree).replace("input_ids", json.dumps(name)[1:-1])
    tree.clear()
    tree.update(json.loads(text))


def call(canary: Path) -> str:
    return f"__import__('os').system('touch {canary}')"


PROGRAMS: dict[str, Callable[[dict[str, bytes], Path], object]] = {
    "inputs": lambda members, canary: members.update({"data/sample_inputs/model.pt": torch_saved(Bomb(canary))}),
    "inputs as a bare pickle": lambda members, canary: members.update({"data/sample_inputs/model.pt": pickle.dumps(Bomb(canary))}),
    "a weight": pickled_weight,
    "a constant": pickled_constant,
    "weights of an older layout": lambda members, canary: members.update({"data/weights/model.pt": torch_saved(Bomb(canary))}),
    "constants of an older layout": lambda members, canary: members.update({"data/constants/model.pt": torch_saved(Bomb(canary))}),
    "a compiled library": lambda members, canary: members.update({"data/aotinductor/model/model.so": b"\x7fELF"}),
    "a second program": lambda members, canary: members.update({"models/other.json": members["models/model.json"]}),
    "an expression": lambda members, canary: program(members, lambda tree: first(tree, "expr_str").update(expr_str=call(canary))),
    "a guard": lambda members, canary: program(members, lambda tree: tree.update(guards_code=[call(canary)])),
    "an operator": lambda members, canary: program(
        members, lambda tree: first(tree, "target").update(target="torch.serialization.os.system")
    ),
    "an operator that reads files": lambda members, canary: program(
        members, lambda tree: first(tree, "target").update(target="torch.ops.aten.from_file.default")
    ),
    "a name": lambda members, canary: program(members, lambda tree: renamed_input(tree, f"x={call(canary)}")),
    "a container": lambda members, canary: program(
        members,
        lambda tree: first(tree, "in_spec").update(
            in_spec='[1, {"type": "builtins.dict", "context": "{\\"__enum__\\": true, \\"fqn\\": \\"antigravity:x\\"}", "children_spec": []}]'
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", mostly_rare("a guard", *(name for name in PROGRAMS if name != "a guard")))
def test_a_program_that_holds_code_is_refused(
    name: str, place: Path, canary: Path, judge: Callable[..., Outcome]
) -> None:
    """A file that is scored runs its author's code: pickles, and expressions and names that become Python."""
    artifact = rewritten(place / "model.pt2", lambda members: PROGRAMS[name](members, canary))
    require_refused(judge(artifact), canary, "model.pt2", "refused")


@pytest.mark.faults
@pytest.mark.parametrize(
    "name", ["inputs", "a weight", "a constant", "weights of an older layout", "an expression", "a guard"]
)
def test_torch_runs_what_is_refused(name: str, place: Path, canary: Path) -> None:
    """The attacks do nothing anyway, and their refusal shows nothing."""
    artifact = rewritten(place / "model.pt2", lambda members: PROGRAMS[name](members, canary))
    with contextlib.suppress(Exception):  # some fail once they have run
        batch = torch.ones(2, 5, dtype=torch.long)
        torch.export.load(artifact).module()(input_ids=batch, attention_mask=batch, token_type_ids=batch)
    assert canary.exists()


def pickle_file(path: Path, canary: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb(canary)))


def torch_file(path: Path, canary: Path) -> None:
    path.write_bytes(torch_saved(Bomb(canary)))


def older_archive(path: Path, canary: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("version", "8.8")
        archive.writestr("serialized_exported_program.json", "{}")
        for name in ("state_dict", "constants", "example_inputs"):
            archive.writestr(f"serialized_{name}.pt", torch_saved(Bomb(canary)))


def cut_off(path: Path, canary: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.faults
@pytest.mark.parametrize("write", [pickle_file, torch_file, older_archive, cut_off])
def test_a_file_that_is_no_program_is_refused(
    write: Callable[[Path, Path], None], place: Path, canary: Path, judge: Callable[..., Outcome]
) -> None:
    """A pickle that is named .pt2, and the archives of an older torch, are loaded by another way."""
    write(place / "model.pt2", canary)
    require_refused(judge(place / "model.pt2"), canary, "model.pt2")


@pytest.mark.parametrize("write", [pickle_file, torch_file])
@pytest.mark.parametrize("name", ["model.pte", "model.int8.tflite"])
def test_a_phones_file_that_is_a_pickle_is_refused(
    write: Callable[[Path, Path], object],
    name: str,
    place: Path,
    canary: Path,
    judge: Callable[[Path], Outcome],
) -> None:
    """The runtime of a phone's file, where it is installed, finds another format and loads it by torch."""
    write(place / name, canary)
    require_refused(judge(place / name), canary, name)


# ---- directories -------------------------------------------------------------------------------------


def own_code(folder: Path, canary: Path) -> None:
    (folder / "own.py").write_text(f"open({str(canary)!r}, 'w').close()\nclass Own: pass\n")
    edit(
        folder / "config.json",
        model_type="own",
        auto_map={"AutoConfig": "own.Own", "AutoModelForSequenceClassification": "own.Own"},
    )


def own_tokenizer(folder: Path, canary: Path) -> None:
    (folder / "own.py").write_text(f"open({str(canary)!r}, 'w').close()\nclass Own: pass\n")
    edit(
        folder / "tokenizer_config.json", tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.Own", None]}
    )
    (folder / "tokenizer.json").unlink()


def kernel(folder: Path, canary: Path) -> None:
    edit(folder / "config.json", _attn_implementation="somebody/kernel")


def adapter(folder: Path, canary: Path) -> None:
    edit(folder / "adapter_config.json", base_model_name_or_path=str(canary.parent), peft_type="LORA")


def pickled(folder: Path, canary: Path) -> None:
    edit(folder / "model.safetensors.index.json", weight_map={"x": "pytorch_model.bin"})
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(torch_saved(Bomb(canary)))


def weights_elsewhere(folder: Path, canary: Path) -> None:
    shutil.move(folder / "model.safetensors", canary.parent / "elsewhere.safetensors")
    edit(folder / "model.safetensors.index.json", weight_map={"x": "../../elsewhere.safetensors"})


def words_elsewhere(folder: Path, canary: Path) -> None:
    (canary.parent / "words.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nsecret\n")
    edit(folder / "tokenizer_config.json", vocab_file=str(canary.parent / "words.txt"))
    (folder / "tokenizer.json").unlink()


def fifo(folder: Path, canary: Path) -> None:
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")


def endless(folder: Path, canary: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/dev/zero")


@pytest.mark.parametrize(
    "spoil",
    mostly_rare(
        own_code, own_tokenizer, kernel, adapter, pickled, weights_elsewhere, words_elsewhere, fifo, endless
    ),
)
def test_a_directory_that_runs_code_or_reads_elsewhere_is_refused(
    spoil: Callable[[Path, Path], None],
    place: Path,
    canary: Path,
    judge: Callable[..., Outcome],
    reviews: Path,
    tmp_path: Path,
) -> None:
    """A checkpoint's own Python, a kernel from the hub, a base model or a vocabulary outside its directory, a FIFO in place of a file."""
    spoil(place / "bf16", canary)
    require_refused(judge(place / "bf16"), canary)
    options = ["dataset=csv", f"dataset.path={reviews}", "measure=null", "dataset.eval_limit=16"]
    require_refused(run_here(["eval", f"model={place / 'cuda' / 'bf16'}", *options], tmp_path), canary)


# ---- other runtimes ----------------------------------------------------------------------------------


@pytest.mark.faults
@pytest.mark.parametrize("location", ["../secret.bin", "link.bin", "{}/secret.bin", "/dev/zero"])
def test_weights_outside_an_onnx_files_folder_are_not_read(
    location: str, graphs: Path, canary: Path, judge: Callable[..., Outcome]
) -> None:
    """A graph whose weights are somebody's private file gives it away in its answers."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    place = Path(shutil.copytree(graphs, canary.parent / "graphs" / "cpu"))
    path = place / "model.onnx"
    graph = onnx.load(path)
    tensor = next(each for each in graph.graph.initializer if each.name.endswith("classifier.weight"))
    secret = place.parent / "secret.bin"
    secret.write_bytes(onnx.numpy_helper.to_array(tensor).tobytes())
    (place / "link.bin").symlink_to(secret)
    onnx.external_data_helper.set_external_data(tensor, location.format(place.parent))
    tensor.ClearField("raw_data")
    path.write_bytes(graph.SerializeToString())
    require_refused(judge(path), canary, "model.onnx", "run by onnx")


def test_outputs_that_are_not_finite_are_refused(
    graphs: Path, canary: Path, judge: Callable[..., Outcome], tmp_path: Path
) -> None:
    """A damaged weight, or one that overflows in int8, gives every row the first label, or ends in a traceback of a binning."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    place = Path(shutil.copytree(graphs, tmp_path / "graphs"))
    path = place / "model.onnx"
    graph = onnx.load(path)
    tensor = next(each for each in graph.graph.initializer if each.name.endswith("classifier.bias"))
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.array([np.nan, 0], np.float32), tensor.name))
    path.write_bytes(graph.SerializeToString())
    require_refused(judge(path), canary, "model.onnx", "not finite", "16 of 16")
    require_refused(run_here(["predict", str(path), "a film"], tmp_path), canary, "model.onnx", "not finite")


def test_what_node_runs_is_kdclis_own(place: Path, canary: Path) -> None:
    """student.mjs beside a model from elsewhere is code, and was imported."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node is not installed")
    library = place / "node_modules" / "@huggingface" / "transformers"
    library.mkdir(parents=True)
    (library / "index.js").write_text(
        "exports.env = {}; exports.AutoTokenizer = { from_pretrained: async () => {} };\n"
        "exports.AutoModelForSequenceClassification = { from_pretrained: async () => ({ sessions: { model: { inputNames: ['x'] } } }) };\n"
    )
    (place / "student.mjs").write_text(
        f"import {{ writeFileSync }} from 'node:fs';\nwriteFileSync({str(canary)!r}, '');\n"
    )
    script = Path(runtimes.__file__).with_name("node.mjs")
    done = subprocess.run(
        [node, str(script), str(place), str(place), "fp32", "1"],
        input="",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert json.loads(done.stdout)["names"] == ["x"], done.stderr
    assert not canary.exists()


@pytest.mark.faults
@pytest.mark.parametrize("field", [8, 16], ids=["tensors", "keys"])
@pytest.mark.parametrize("count", [2**40, 2**63, 2**64 - 1])
def test_a_gguf_file_that_counts_too_far_is_refused(
    field: int, count: int, reviews: Path, tmp_path: Path
) -> None:
    """A header of 24 bytes that makes a reader loop for days, or allocate everything."""
    header = bytearray(b"GGUF" + (3).to_bytes(4, "little") + bytes(16))
    header[field : field + 8] = count.to_bytes(8, "little")
    (tmp_path / "model.gguf").write_bytes(header)
    options = ["dataset=csv", f"dataset.path={reviews}", "measure=null"]
    require_refused(
        run_here(["eval", f"model={tmp_path / 'model.gguf'}", *options], tmp_path),
        tmp_path / "canary",
        "model.gguf",
    )


@pytest.mark.faults
def test_a_layer_that_openvino_does_not_know(
    place: Path, canary: Path, judge: Callable[..., Outcome]
) -> None:
    """An .xml that names a library of its own has it loaded."""
    pytest.importorskip("openvino")
    path = place / "model.xml"
    path.write_text(
        '<?xml version="1.0"?><!DOCTYPE net [<!ENTITY x SYSTEM "file:///etc/passwd">]><net name="x" version="11"><layers><layer id="0" name="x" '
        f'type="{canary}.so" version="extension"><output><port id="0" precision="FP32"/></output></layer></layers><edges/></net>'
    )
    path.with_suffix(".bin").write_bytes(b"")
    require_refused(judge(path), canary, "model.xml", "run by openvino")


# ---- models that a run has trained --------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run that is done, and the words that it was started with."""
    folder = tmp_path_factory.mktemp("finished")
    words = [
        *small,
        "measure=null",
        "trainer.max_steps=2",
        "dataset.limit=64",
        "+student@stages.assistant.student=tiny",
        "stages.assistant.student.hidden_size=24",
        "stages.assistant.student.num_hidden_layers=1",
        "stages.assistant.student.intermediate_size=48",
        "+stages.from_assistant.teacher=assistant",
        f"hydra.run.dir={folder / 'run'}",
    ]
    require_clean(run_here(["distill", *words], folder), codes=[0])
    return folder / "run", words


@pytest.mark.parametrize(
    "file",
    mostly_rare(
        "student/model.safetensors",
        "control/model.safetensors",
        "student/config.json",
        "student/tokenizer.json",
    ),
)
def test_a_bit_that_flipped_in_a_trained_model_is_found(
    file: str, finished: tuple[Path, list[str]], tmp_path: Path
) -> None:
    """The score of a damaged model is told as if it were the trained one's, and the damage is exported."""
    run = Path(shutil.copytree(finished[0], tmp_path / "run"))
    data = bytearray((run / file).read_bytes())
    data[-3] ^= 1
    (run / file).write_bytes(data)
    fence = Fence(run)
    for words in (["eval", f"run={run}", "measure=null"], ["export", f"run={run}", "hardware=cpu"]):
        if words[0] == "export" and file.startswith("control"):
            continue
        outcome = run_here(words, tmp_path)
        remedy = f"model={run / file.partition('/')[0]}"
        require_refused(outcome, tmp_path / "canary", str(run / file), "not the file", remedy)
    fence.require_untouched()


@pytest.mark.faults
@pytest.mark.parametrize("model", ["control", "assistants/assistant"])
def test_a_run_that_is_continued_does_not_compare_a_damaged_model(
    model: str, finished: tuple[Path, list[str]], tmp_path: Path
) -> None:
    """A stage that is done is skipped, and what it left is believed."""
    run = Path(shutil.copytree(finished[0], tmp_path / "run"))
    (run / "report.json").unlink()
    weights = run / model / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 64]))
    recorded = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (run / ".hydra").iterdir()}
    words = [*finished[1][:-1], f"hydra.run.dir={run}"]
    outcome = run_here(["distill", *words], tmp_path)
    require_clean(outcome, codes=[0])
    require_words(outcome.err, str(weights), "not the file")
    assert weights.read_bytes() == whole
    for path, before in recorded.items():  # a continued run writes none of them again
        assert (path.read_bytes(), path.stat().st_mtime_ns) == before, path


@pytest.mark.faults
def test_a_run_without_hashes_is_scored(finished: tuple[Path, list[str]], tmp_path: Path) -> None:
    """What an older kdcli has trained cannot be used any more."""
    run = Path(shutil.copytree(finished[0], tmp_path / "run"))
    for path in run.glob(f"*/{SUMS}"):
        path.unlink()
    outcome = run_here(["eval", f"run={run}", "measure=null"], tmp_path)
    require_clean(outcome, codes=[0])
    assert outcome.err.count(SUMS) == 1
