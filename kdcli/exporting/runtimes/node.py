"""Runs models in transformers.js in Node: the code of a web page, with the native kernels of ONNX Runtime instead of WebAssembly."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from kdcli import processes
from kdcli.errors import ExportError
from kdcli.files import cache_dir, digest, replaced, writing
from kdcli.measure.runtime import EncoderRuntime
from kdcli.measure.spec import Encoded, MeasureSpec, Texts

PACKAGES = {
    "@huggingface/transformers": "4.3.1",
    "@huggingface/jinja": "0.5.11",
    "@huggingface/tokenizers": "0.2.0",
    "sharp": "0.35.5",
}
"""Packages of npm: transformers.js, and those of its dependencies that it does not pin itself."""
REMEDY = "install Node 20 or later: pip install 'kdcli[browser]', or https://nodejs.org"
DTYPES = {"model.onnx": "fp32", "model_quantized.onnx": "q8"}
"""The `dtype` by which transformers.js loads each file."""


def packages() -> Path:
    """Return the folder of the cache whose node_modules holds `PACKAGES`; npm downloads them once.

    Raises:
        ExportError: Node or npm is not installed, or npm cannot download them.
    """
    folder = cache_dir("node") / digest(PACKAGES)[:32]
    if (folder / "node_modules" / ".package-lock.json").is_file():  # npm writes it last
        return folder
    node()
    # without scripts of packages: that of onnxruntime-node downloads CUDA
    command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix"]
    names = [f"{name}@{version}" for name, version in PACKAGES.items()]
    npm = _program("npm")
    if npm is None:
        raise ExportError(f"npm is not installed, which fetches transformers.js; {REMEDY}")
    with replaced(folder) as temporary, writing(temporary.parent):
        temporary.mkdir()
        done = processes.run([npm, *command[1:], str(temporary), *names])
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            errors = [line for line in lines if line.startswith("npm error")] or lines
            first = "\n  ".join(errors[:4])  # the error as an object follows
            raise ExportError(
                f"npm cannot fetch transformers.js (exit code {done.returncode}):\n  {first}\nOnce it can, type: "
                f"{' '.join([*command, str(folder), *names])}"
            )
    return folder


def node() -> str:
    """Return the path of Node.

    Raises:
        ExportError: it is not installed.
    """
    path = _program("node")
    if path is None:
        raise ExportError(f"Node, which executes the files of hardware=browser, is not installed; {REMEDY}")
    return path


def _program(name: str) -> str | None:
    """Return the path of a program: on the PATH, or beside Python, where the extra `browser` installs Node."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


class NodeEncoder(EncoderRuntime):
    """A file in the layout of transformers.js: in the folder `onnx`, with config and tokenizer in the folder above.

    transformers.js tokenizes the texts. A call is one line of JSON in each direction, which takes about a tenth of a millisecond and counts
    as the model's time.
    """

    files = ("onnx/*.onnx",)
    packages = ("tokenizers",)

    @classmethod
    def match(cls, path: Path) -> int:
        """Match as in the base class, except a file whose config is in the same folder: the folder is called `onnx` for another reason."""
        return 0 if (path.parent / "config.json").is_file() else super().match(path)

    @classmethod
    def config_folder(cls, path: Path) -> Path:
        return path.parents[1]

    def __init__(self, spec: MeasureSpec):
        path = Path(spec.path)
        if path.name not in DTYPES:
            raise ExportError(f"transformers.js reads {' and '.join(DTYPES)}, not {path.name}")
        script = Path(__file__).with_suffix(".mjs")
        words = [packages(), path.parent.parent, DTYPES[path.name], spec.threads]
        self.child = subprocess.Popen(
            processes.bound([node(), str(script), *map(str, words)]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        self.max_length, self.seconds = spec.max_length, 0.0
        started = self._read()
        self.import_memory: int = started["held"]
        super().__init__(spec, started["names"])

    def __call__(self, inputs: Encoded) -> np.ndarray:
        flat = {name: array.ravel().tolist() for name, array in inputs.items()}
        answer = self._call("answer", inputs=flat, shape=inputs["input_ids"].shape)
        self.seconds = answer["computed"]
        return np.asarray(answer["logits"], np.float32).reshape(answer["shape"])

    def compute_seconds(self) -> float:
        """Return the CPU time of Node until its last answer, and of this process."""
        return self.seconds + time.process_time()

    def memory(self) -> int:
        """Return the peak memory of Node."""
        return max(0, int(self._call("peak")) - self.import_memory)

    def encode(self, texts: Texts) -> list[Encoded]:
        """Tokenize by transformers.js, and truncate as the student.mjs of an export does."""
        rows = self._call("encode", rows=texts, most=self.max_length)
        return [
            {
                name: np.asarray(row.get(name, [0] * len(row["input_ids"])), np.int64)
                for name in self.pad_values
            }
            for row in rows
        ]

    def _call(self, method: str, **arguments: Any) -> Any:
        assert self.child.stdin
        try:
            self.child.stdin.write(json.dumps({"what": method} | arguments) + "\n")
            self.child.stdin.flush()
        except BrokenPipeError:
            pass  # its stderr has the reason
        return self._read()

    def _read(self) -> Any:
        assert self.child.stdout
        line = self.child.stdout.readline()
        if not line:
            raise ExportError(f"Node ended (exit code {self.child.wait()})")
        return json.loads(line)
