"""Runtimes: which one runs a file or folder, and what a module of the user's own may declare."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.commands import naming

from kdcli.errors import ConfigError
from kdcli.exporting.artifacts import bytes_of, folder_of, runs_here, runtime_for
from kdcli.exporting.runtimes import runtime_of, runtimes
from kdcli.measure.runtime import CausalLMRuntime, EncoderRuntime, Seq2SeqRuntime, install_hint
from kdcli.tasks.causal_lm.task import CausalLM
from kdcli.tasks.classification.task import Classification
from kdcli.tasks.seq2seq.task import Seq2Seq

FILES = {
    "model.onnx": "onnx", "onnx/model.onnx": "node", "model.gguf": "llama", "model.xml": "openvino", "model.pt2": "exported",
    "model.tflite": "litert", "model.pte": "executorch", "model.bin": None,
}  # fmt: skip
FOLDERS = {
    "encoder_model.onnx": "onnx", "model.bin": "ctranslate2", "model.safetensors": "torch", "model.safetensors.index.json": "torch",
    "Manifest.json": "coreml", "config.json": None,
}  # fmt: skip
RUNTIME = """
from kdcli.measure.runtime import EncoderRuntime

class Own(EncoderRuntime):
    files = ("{}",)

    def __call__(self, inputs): ...
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a user's own runtimes."""
    folder = tmp_path / "conf" / "runtimes"
    folder.mkdir(parents=True)
    monkeypatch.setenv("KDCLI_CONFIG_DIR", str(folder.parent))
    return folder


def test_what_runs_a_file_or_folder(tmp_path: Path) -> None:
    """A file that another runtime loads: a browser's file without its tokenizer, or a folder as a file."""
    assert {name: runtime_of(tmp_path / name) for name in FILES} == FILES
    for number, (marker, runtime) in enumerate(FOLDERS.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / marker).write_bytes(b"12345")
        assert runtime_of(folder) == runtime, marker
        assert runs_here(folder) is (runtime not in (None, "coreml"))
    assert folder_of(tmp_path / "onnx" / "model.onnx") == tmp_path
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "config.json").touch()
    assert runtime_of(tmp_path / "onnx" / "model.onnx") == "onnx", "files of hardware=onnx"
    assert bytes_of(tmp_path / "0") == 5


def test_every_runtime_declares_what_it_runs() -> None:
    """A runtime that no file leads to, or that is for no task."""
    for name, kinds in runtimes().items():
        assert kinds, name
        for kind in kinds:
            assert kind.files or kind.markers, kind
            assert kind.serves
            assert issubclass(kind, EncoderRuntime | CausalLMRuntime | Seq2SeqRuntime)


def test_an_artifact_of_another_task_is_refused_with_what_is_expected(tmp_path: Path) -> None:
    """A language model's file is loaded for minutes, and its logits are read as labels."""
    assert runtime_for(tmp_path / "a.onnx", CausalLM())[1].__name__ == "OnnxCausalLM"
    for name, task, expected in (
        ("a.gguf", Classification(), ["*.pte", "*.onnx", "model.safetensors"]),
        ("a.xml", CausalLM(), ["*.gguf"]),
        ("a.onnx", Seq2Seq(), ["folder", "model.bin"]),
    ):
        with pytest.raises(ConfigError, match=naming(name, task.auto, *expected)):
            runtime_for(tmp_path / name, task)
    (tmp_path / "a.mlpackage").mkdir()
    (tmp_path / "a.mlpackage" / "Manifest.json").touch()
    with pytest.raises(ConfigError, match=naming("runs", "a.mlpackage")):
        runtime_for(tmp_path / "a.mlpackage", Classification())


def test_a_runtime_of_the_users_own_is_found(own: Path) -> None:
    """A file of the user's own that only an edited package would run; the longer of two patterns is meant."""
    (own / "board.py").write_text(RUNTIME.format("*.board.onnx"))
    assert runtime_of(Path("model.board.onnx")) == str(own / "board.py")
    assert runtime_of(Path("model.onnx")) == "onnx"


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("board", RUNTIME.format("*.onnx"), ["model.onnx", "same files"]),
        ("onnx", RUNTIME.format("*.board"), ["name of a runtime"]),
        ("board", "import nowhere_at_all", ["imported", "ModuleNotFoundError", "'nowhere_at_all'"]),
        ("board", "files = ('*.onnx',)", ["no runtime", "EncoderRuntime"]),
        ("board", RUNTIME.format("*.b").replace("__call__", "call"), ["Own", "__call__", "logits"]),
        ("board", RUNTIME.format("*.b").replace("files", "suffix"), ["Own", "`files`"]),
        ("board", "raise SystemExit(3)", ["imported", "SystemExit"]),
    ],
)
def test_a_runtime_that_cannot_be_used_is_named(own: Path, name: str, code: str, words: list[str]) -> None:
    """A traceback, or a file that takes the place of a packaged runtime unseen."""
    (own / f"{name}.py").write_text(code)
    with pytest.raises(ConfigError, match=naming(str(own / f"{name}.py"), *words)):
        runtime_of(Path("model.onnx"))


def test_what_installs_a_package() -> None:
    """A user's own runtime has no extra of kdcli."""
    assert install_hint(["onnx"], "cpu") == "install it with: pip install 'kdcli[cpu]'"
    assert (
        install_hint(["tflite_runtime.interpreter", "numpy"], "")
        == "install it with: pip install tflite_runtime numpy"
    )
