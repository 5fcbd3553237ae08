"""Files for a phone: LiteRT and ExecuTorch say what the student says, by their Python builds."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file
from support.commands import ColdCache, naming, require_words
from support.exporting import ENCODER_SIZES, hide_packages
from support.tiny import bert, full_disk, run_snippet
from test_intel import CONFIGS, SEGMENTS, TEXTS, create, inputs, student

from kdcli.errors import ConfigError, ExportError, StorageError
from kdcli.exporting import snippets
from kdcli.exporting.runtimes import runtime_of
from kdcli.exporting.targets.base import require_task
from kdcli.exporting.targets.mobile import FILES, Mobile, lengths
from kdcli.exporting.writers import litert
from kdcli.measure.models import measure
from kdcli.measure.runtime import runtime_class
from kdcli.measure.spec import MeasureSpec
from kdcli.tasks.causal_lm.task import CausalLM
from kdcli.tasks.seq2seq.task import Seq2Seq

__all__ = ["student"]
ALL = list(FILES)
LENGTHS = [1, 2, 5, 16, 17, 33, 40]


def loaded(file: Path) -> Any:
    runtime = runtime_of(file)
    kind = runtime_class(runtime, "AutoModelForSequenceClassification")
    return kind(MeasureSpec(runtime, str(file), str(file.parent), 40))


def far(model: Any, file: Path, rows: list[dict[str, torch.Tensor]]) -> float:
    """How far a file's logits are from the model's, over how large those are."""
    runs, truth, found = loaded(file), [], []
    for row in rows:
        with torch.inference_mode():
            truth.append(model(**row).logits.numpy().ravel())
        found.append(runs({name: tensor.numpy() for name, tensor in row.items()}).ravel())
    whole = np.concatenate(truth)
    return float(np.linalg.norm(np.concatenate(found) - whole) / np.linalg.norm(whole))


@pytest.fixture
def converter(cold_cache: ColdCache) -> Path:
    """A file that the process which writes LiteRT files runs in place of litert-torch."""
    cold_cache("cache")
    folder = litert.packages_folder()
    for pin in litert.PINS:
        name, _, version = pin.partition("==")
        about = folder / f"{name.replace('-', '_')}-{version}.dist-info" / "METADATA"
        about.parent.mkdir(parents=True)
        about.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return folder / "litert_torch.py"


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback of an import says nothing of what to install."""
    hide_packages(monkeypatch, "ai_edge_litert", "executorch")
    for formats, named in (
        (["litert_int8"], "ai_edge_litert"),
        (["executorch_int8"], "executorch"),
        (ALL, "ai_edge_litert, executorch"),
    ):
        with pytest.raises(ExportError, match=naming(named, "pip install 'kdcli[mobile]'")):
            Mobile(formats).export(tmp_path, tmp_path, create(CONFIGS["Bert"]), [inputs(1, 3, 0, True)], 64)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "package"), [("model.int8.tflite", "ai_edge_litert"), ("model.int8.pte", "executorch")]
)
def test_a_runtime_that_is_missing_is_named(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    """`kdcli eval` of a file that was made elsewhere: a traceback says nothing of what to install."""
    (tmp_path / "away" / package).mkdir(parents=True)
    (tmp_path / "away" / package / "__init__.py").write_text(
        f"raise ModuleNotFoundError('No module named {package}')"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "away"))
    (student / name).write_bytes(b"")
    runtime = runtime_of(student / name)
    assert runtime
    with pytest.raises(ExportError, match=naming(package, "pip install 'kdcli[mobile]'")):
        measure(MeasureSpec(runtime, str(student / name), str(student), 40), TEXTS)


@pytest.mark.parametrize("kind", ["causal_lm", "seq2seq"])
def test_what_writes_text_is_refused_with_the_target_that_takes_it(kind: str) -> None:
    """A language model that is converted for minutes, and then cannot be run."""
    other, task = {
        "causal_lm": ("hardware=laptop", CausalLM()),
        "seq2seq": ("hardware=cpu", Seq2Seq()),
    }[kind]
    with pytest.raises(ConfigError, match=naming("hardware=mobile", kind, other)):
        require_task(Mobile(ALL), "mobile", task, kind)


def test_signatures_double_up_to_the_longest_row() -> None:
    """A row that fits no signature, or a short one that takes the time of the longest."""
    assert lengths(128) == [16, 32, 64, 128]
    assert lengths(48) == [16, 32, 48]
    assert lengths(16) == [16]
    assert lengths(5) == [5]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "signal 11"),
        ("raise NotImplementedError('no lowering of aten.fft\\nand a page of frames')", "no lowering of aten.fft"),
        ("import os; os._exit(3)", "exit code 3"),
    ],
    ids=["crash", "refusal", "silence"],
)  # fmt: skip
def test_a_converter_that_fails_is_told(
    student: Path, tmp_path: Path, converter: Path, code: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A traceback of another process, or an empty file that is taken for a model."""
    converter.write_text(code)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: find("json" if name == "ai_edge_litert" else name, *more),
    )
    model = create(CONFIGS["Bert"])
    wanted = naming("BertForSequenceClassification", "LiteRT", reason)
    with pytest.raises(ExportError, match=wanted) as raised:
        Mobile(["litert_int8"]).export(student, tmp_path / "out", model, [inputs(1, 3, 0, True)], 40)
    assert "a page of frames" not in str(raised.value)
    assert not list((tmp_path / "out").iterdir())


def test_packages_that_cannot_be_fetched_leave_nothing_and_the_command(
    monkeypatch: pytest.MonkeyPatch, cold_cache: ColdCache
) -> None:
    """A half-filled folder would be taken for a whole one the next time."""
    cache = cold_cache()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ExportError, match=naming("No matching distribution", "litert-torch==")) as raised:
        litert.packages()
    assert f"pip install --no-deps --target {litert.packages_folder()} litert-torch" in str(raised.value)
    assert not list((cache / "litert").iterdir())


@pytest.mark.devices
@pytest.mark.parametrize("name", [*CONFIGS, "tags"])
def test_rows_of_any_length_give_the_logits_of_torch(
    name: str, tokenizer, student: Path, tmp_path: Path
) -> None:
    """A length, a mask or a padding that is baked into the file is right for its sample alone; or the lines beside it say
    something else than the file."""
    kind = "token_classification" if name == "tags" else "classification"
    config = CONFIGS["Bert" if name == "tags" else name]
    model = create(config)
    if name == "tags":
        model = transformers.BertForTokenClassification(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    model.save_pretrained(student)
    segments = name in (*SEGMENTS, "tags")
    rows = [inputs(1, length, config.pad_token_id, segments) for length in LENGTHS]
    files = Mobile(ALL).export(student, tmp_path / "out", model, rows, 40)
    assert {each: file.name for each, file in files.items()} == FILES
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert far(model, files["executorch_fp32"], rows) < 1e-4
    assert far(model, files["executorch_int8"], rows) < 0.05
    assert far(model, files["litert_int8"], rows) < 0.05
    values = {"MAX_LENGTH": 40}
    words = ["good", "film", "so", "sad"]
    asked = words if kind == "token_classification" else ["good film so sad"]
    encoded = tokenizer(" ".join(words), return_tensors="pt")
    row = {key: encoded[key] for key in rows[0]}
    with torch.inference_mode():
        logits = model(**row).logits[0]
    for each, runtime in (("litert_int8", "litert"), ("executorch_int8", "executorch")):
        written = snippets.write(tmp_path / "out", runtime, kind, values | {"MODEL": FILES[each]})
        assert [file.suffix for file in written] == [".kt", ".py"]
        lines = [line.split() for line in run_snippet(written[1], *asked)]
        if kind == "token_classification":
            best = logits.argmax(-1)[1:-1].tolist()
            assert lines == [[f"LABEL_{tag}", word] for tag, word in zip(best, words, strict=True)]
        else:
            shares = logits.softmax(-1)
            assert lines[0][1] == f"LABEL_{int(shares.argmax())}"
            assert float(lines[0][0]) == pytest.approx(float(shares.max()), abs=0.05)
        told_of(written[0], tmp_path / "out", 40)


def told_of(code: Path, folder: Path, most: int) -> None:
    """Hold the names in lines of Kotlin to the file that they run: no compiler does it here."""
    text = code.read_text(encoding="utf-8")
    file = folder / re.findall(r'^val MODEL = "(.+)"$', text, re.MULTILINE)[0]
    assert f"val MAX_LENGTH = {most}\n" in text
    quoted = set(re.findall(r'"([a-z_]+)(?:\$size)?"', text))
    runs = loaded(file)
    if file.suffix == ".tflite":
        interpreter = runs.interpreter
        assert list(interpreter.get_signature_list()) == [f"tokens_{size}" for size in lengths(most)]
        for told in interpreter.get_signature_list().values():
            assert set(told["inputs"]) <= quoted
            assert set(told["outputs"]) == {"logits"} <= quoted
        assert "tokens_" in quoted
        for size, runner in runs.runners.items():
            for told in runner.get_input_details().values():
                assert (told["dtype"], told["shape"].tolist()) == (np.int32, [1, size]), "IntArray"
    else:
        told = " ".join(text.split())
        require_words(told, "input_ids", "attention_mask", "token_type_ids")
        assert (
            list(runs.pad_values) == ["input_ids", "attention_mask", "token_type_ids"][: len(runs.pad_values)]
        )
        ids = runs.method.metadata.input_tensor_meta(0)
        assert ids.dtype() == 4, "int64: LongArray"


@pytest.mark.devices
def test_a_file_is_a_quarter_of_the_student_whatever_its_signatures(student: Path, tmp_path: Path) -> None:
    """Weights that each signature stores anew, or embeddings, most of a small student, that stay in floats."""
    config = transformers.BertConfig(**ENCODER_SIZES | {"vocab_size": 8000, "hidden_size": 64})
    model = create(config)
    model.save_pretrained(student)
    files = Mobile(ALL).export(student, tmp_path / "out", model, [inputs(1, 9, 0, True)], 40)
    whole = sum(parameter.nbytes for parameter in model.parameters())
    sizes = {each: file.stat().st_size / whole for each, file in files.items()}
    assert sizes["executorch_fp32"] == pytest.approx(1, abs=0.05)
    assert 0.25 < sizes["executorch_int8"] < 0.35
    assert 0.25 < sizes["litert_int8"] < 0.45


@pytest.mark.devices
def test_a_converter_that_crashes_leaves_the_others(student: Path, tmp_path: Path, converter: Path) -> None:
    """Minutes of work are lost to one file, or it is missing and nobody says so."""
    converter.write_text("import os; os.abort()")
    target, model = Mobile(["litert_int8", "executorch_fp32"]), create(CONFIGS["Bert"])
    files = target.export(student, tmp_path / "out", model, [inputs(1, 9, 0, True)], 40)
    assert files == {"executorch_fp32": tmp_path / "out" / "model.fp32.pte"}
    assert list(target.failed) == ["model.int8.tflite"]
    require_words(target.failed["model.int8.tflite"], "converter", "signal 6")
    assert not (tmp_path / "out" / "model.int8.tflite").exists()


@pytest.mark.devices
def test_what_executorch_refuses_is_told(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of the exporter's frames does not say which model it was."""
    model = create(CONFIGS["Bert"])

    def forward(**batch: torch.Tensor) -> None:
        raise RuntimeError("a kernel of my own\nand a page of frames")

    monkeypatch.setattr(model, "forward", forward)
    with pytest.raises(ExportError, match=naming("BertForSequenceClassification", "ExecuTorch")) as raised:
        Mobile(["executorch_fp32", "executorch_int8"]).export(
            student, tmp_path / "out", model, [inputs(1, 3, 0, True)], 40
        )
    assert len(str(raised.value).splitlines()) <= 2
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.devices
@pytest.mark.parametrize("each", ["litert_int8", "executorch_int8"])
def test_a_file_that_is_cut_off_is_told(tokenizer, student: Path, tmp_path: Path, each: str) -> None:
    """A number for a model that never ran."""
    model = bert(tokenizer, ["bad", "good"]).eval()
    model.save_pretrained(student)
    row = dict(tokenizer("a film", return_tensors="pt"))
    file = Mobile([each]).export(student, tmp_path / "out", model, [row], 40)[each]
    runtime = runtime_of(file)
    assert runtime
    answers = tmp_path / "answers.safetensors"
    spec = MeasureSpec(runtime, str(file), str(file.parent), 40, speed=False, predictions=str(answers))
    measure(spec, TEXTS)
    assert load_file(answers)["logits"].shape == (len(TEXTS), 2)
    for share in (0.9, 0.5, 0.0):
        os.truncate(file, int(file.stat().st_size * share))
        with pytest.raises(ExportError, match=naming(file.name, f"run by {runtime}")):
            measure(spec, TEXTS)


@pytest.mark.devices
@pytest.mark.parametrize("each", ["litert_int8", "executorch_int8"])
def test_a_full_disk_is_told(student: Path, tmp_path: Path, each: str) -> None:
    """A page of the converter's frames, or a file that ends early and is called done."""
    model, row = create(CONFIGS["Bert"]), inputs(1, 9, 0, True)
    model.save_pretrained(student)
    litert.packages()
    with full_disk(5000), pytest.raises(StorageError, match="File too large"):
        Mobile([each]).export(student, tmp_path / "out", model, [row], 16)


@pytest.mark.devices
@pytest.mark.parametrize("each", ["litert_int8", "executorch_int8"])
def test_threads_are_those_that_were_asked_for(student: Path, tmp_path: Path, each: str) -> None:
    """Times of a runtime that takes all processors there are: counted where it runs, in a process of its own."""
    model, row = create(CONFIGS["Bert"]), inputs(1, 9, 0, True)
    model.save_pretrained(student)
    file = Mobile([each]).export(student, tmp_path / "out", model, [row], 16)[each]
    script = (
        "import sys; from pathlib import Path\n"
        "import numpy as np\n"
        "from kdcli.measure.runtime import runtime_class\n"
        "from kdcli.measure.spec import MeasureSpec\n"
        "runtime, file, threads = sys.argv[1:]\n"
        "spec = MeasureSpec(runtime, file, str(Path(file).parent), 16, threads=int(threads))\n"
        "model = runtime_class(runtime, spec.auto)(spec)\n"
        "model({name: np.ones((1, 9), np.int64) for name in model.pad_values})\n"
        "print(len(list(Path('/proc/self/task').iterdir())))\n"
    )
    asked = [sys.executable, "-c", script, str(runtime_of(file)), str(file)]
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    one, three = (
        int(
            subprocess.run([*asked, str(count)], env=alone, capture_output=True, text=True, check=True).stdout
        )
        for count in (1, 3)
    )
    assert three == one + 2


@pytest.mark.devices
def test_its_packages_are_those_of_the_list() -> None:
    """A pin that pip did not follow."""
    found = {
        each.name.partition("-")[0].replace("_", "-").replace(".", "-").lower(): json.dumps(each.name)
        for each in litert.packages().glob("*.dist-info")
    }
    for pin in litert.PINS:
        name, _, version = pin.partition("==")
        assert f"-{version}." in found[name.replace("_", "-").replace(".", "-").lower()]
