"""transformers.js in Node: what a page runs, by ONNX Runtime's native kernels in place of those in WebAssembly."""

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
from kdcli.measure.runtime import File
from kdcli.measure.spec import Encoded, MeasureSpec, Texts

PACKAGES = {
    "@huggingface/transformers": "4.3.1",
    "@huggingface/jinja": "0.5.11",
    "@huggingface/tokenizers": "0.2.0",
    "sharp": "0.35.5",
}
"""From npm: transformers.js, and of what it needs all that it does not pin itself."""
REMEDY = "install Node 20 or later: pip install 'kdcli[browser]', or https://nodejs.org"
DTYPES = {"model.onnx": "fp32", "model_quantized.onnx": "q8"}
"""What transformers.js calls the files."""


def packages() -> Path:
    """The folder of the cache whose node_modules has `PACKAGES`: npm fetches them, once.

    Raises:
        ExportError: Node or npm is not installed, or npm cannot fetch them.
    """
    folder = cache_dir("node") / digest(PACKAGES)[:32]
    if (folder / "node_modules" / ".package-lock.json").is_file():  # npm writes it last
        return folder
    node()
    # no package's own scripts: onnxruntime-node's fetches CUDA
    command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix"]
    names = [f"{name}@{version}" for name, version in PACKAGES.items()]
    npm = _program("npm")
    if npm is None:
        raise ExportError(f"npm is not installed, which fetches transformers.js; {REMEDY}")
    with replaced(folder) as temporary, writing(temporary.parent):
        temporary.mkdir()
        done = processes.run([npm, *command[1:], str(temporary), *names])
        if done.returncode:
            last = "\n  ".join(done.stderr.strip().splitlines()[-5:])
            raise ExportError(
                f"npm cannot fetch transformers.js (exit code {done.returncode}):\n  {last}\nOnce it can, type: "
                f"{' '.join([*command, str(folder), *names])}"
            )
    return folder


def node() -> str:
    """Where Node is.

    Raises:
        ExportError: it is not installed.
    """
    found = _program("node")
    if found is None:
        raise ExportError(f"Node is not installed, which runs what a browser runs; {REMEDY}")
    return found


def _program(name: str) -> str | None:
    """Where a program is, on the path or beside Python, where the extra `browser` puts Node."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


class Model(File):
    """A classifier's file in the layout of transformers.js: in `onnx/`, beside config and tokenizer.

    Texts are cut into tokens there too. A call is a line of JSON each way, about a tenth of a millisecond, which counts as
    the model's.
    """

    packages = ("tokenizers",)
    tokenizes = True

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
        self.most, self.seconds = spec.max_length, 0.0
        started = self._read()
        self.held: int = started["held"]
        super().__init__(spec, started["names"])

    def __call__(self, batch: Encoded) -> np.ndarray:
        flat = {name: array.ravel().tolist() for name, array in batch.items()}
        said = self._tell("answer", inputs=flat, shape=batch["input_ids"].shape)
        self.seconds = said["computed"]
        return np.asarray(said["logits"], np.float32).reshape(said["shape"])

    def computed(self) -> float:
        """Node's, until its last answer, and this process's."""
        return self.seconds + time.process_time()

    def memory(self) -> int:
        """Node's; this process only hands on."""
        return max(0, int(self._tell("peak")) - self.held)

    def encode(self, texts: Texts) -> list[Encoded]:
        """By the tokenizer of transformers.js, and cut as the student.mjs of an export does."""
        rows = self._tell("encode", rows=texts, most=self.most)
        return [
            {name: np.asarray(row.get(name, [0] * len(row["input_ids"])), np.int64) for name in self.pad}
            for row in rows
        ]

    def _tell(self, what: str, **how: Any) -> Any:
        assert self.child.stdin
        try:
            self.child.stdin.write(json.dumps({"what": what} | how) + "\n")
            self.child.stdin.flush()
        except BrokenPipeError:
            pass  # what it said last tells why
        return self._read()

    def _read(self) -> Any:
        assert self.child.stdout
        line = self.child.stdout.readline()
        if not line:
            raise ExportError(f"Node ended (exit code {self.child.wait()})")
        return json.loads(line)
