"""Writes a web page that runs the student in the reader's browser, with transformers.js."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from kdcli.config.types import Int
from kdcli.errors import ExportError
from kdcli.exporting.runtimes.node import DTYPES, node, packages
from kdcli.exporting.targets.base import Target
from kdcli.exporting.targets.cpu import Cpu
from kdcli.exporting.writers.causal_lm import TWO_GB

NAMES = {"fp32": "model.onnx", "int8": "model_quantized.onnx"}
PAGE = Path(__file__).parent / "page"
LIBRARY = {
    "@huggingface/transformers/dist": ["transformers.min.js"],
    "onnxruntime-web/dist": ["ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"],
}
"""The files of node_modules that the page loads. They are copied into the folder of the page, so that it needs no network."""


class Browser(Target):
    """Writes the layout of transformers.js: `onnx/model.onnx` (fp32), `onnx/model_quantized.onnx` (int8), config, tokenizer.

    `pipeline('text-classification', FOLDER, {dtype: 'q8'})` of @huggingface/transformers loads it. The files are those of
    `hardware=cpu`. The same folder has `student.mjs`, which truncates long texts as in training (the pipeline
    drops the last special token), and `index.html`, a page with all that it needs (`web/`),
    for any server of static files.

    Here the files are run by transformers.js in Node, which has ONNX Runtime's native build: predictions and tokens are those of a browser;
    WebAssembly is slower.

    Args:
        precisions: which files to make.
        rows: the number of rows of the test split in the page, with the teacher's predictions; everyone who opens the page can read them.
    """

    serves = ("AutoModelForSequenceClassification",)
    packages, extra = Cpu.packages, Cpu.extra
    shows = True
    hint = "the page: python -m http.server --directory {out} 8000, then open http://localhost:8000"

    def __init__(
        self,
        precisions: Annotated[list[Literal["fp32", "int8"]], Field(min_length=1)],
        rows: Annotated[Int, Field(ge=0, le=1000)] = 20,
    ):
        self.precisions, self.rows = precisions, rows

    def refusal(self, model_class: type[PreTrainedModel], config: PreTrainedConfig) -> str | None:
        """Refuse what hardware=cpu refuses."""
        return Cpu([*self.precisions]).refusal(model_class, config)

    def export(
        self,
        student: Path,
        out: Path,
        model: PreTrainedModel,
        inputs: Sequence[Mapping[str, Tensor]],
        max_length: int,
    ) -> dict[str, Path]:
        """Write the files of all precisions, student.mjs, and what the page loads.

        Raises:
            ExportError: onnx, onnxruntime, Node or npm is missing, the packages of Node cannot be downloaded, the architecture cannot be
                written as ONNX, or the model is larger than what a browser loads.
        """
        node()
        library = packages() / "node_modules"
        if sum(parameter.nbytes for parameter in model.parameters()) > TWO_GB:
            raise ExportError("the student is larger than 2 GB, which no browser loads; use hardware=cpu")
        exported = Cpu([*self.precisions], opset=18).export(student, out, model, inputs, max_length)
        (out / "onnx").mkdir()
        files = {
            precision: path.rename(out / "onnx" / NAMES[precision]) for precision, path in exported.items()
        }
        (out / "web").mkdir()
        for folder, names in LIBRARY.items():
            for name in names:
                shutil.copyfile(library / folder / name, out / "web" / name)
        smallest = DTYPES[NAMES["int8" if "int8" in files else "fp32"]]
        _fill(out / "student.mjs", MOST=str(max_length), DTYPE=smallest)
        return files

    def show(self, out: Path, name: str, labels: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the page."""
        count = min(self.rows, len(rows))
        data = {
            "name": name,
            "labels": labels,
            "pairs": len(rows[0]["texts"]) == 2,
            "dtypes": [DTYPES[path.name] for path in sorted((out / "onnx").glob("*.onnx"), reverse=True)],
            "rows": [rows[at] for at in np.linspace(0, len(rows) - 1, count).astype(int)],
        }
        # a text with </script> would end the element that holds it
        _fill(out / "index.html", DATA=json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"))


def _fill(path: Path, **values: str) -> None:
    """Write the file of this name in `PAGE`, with values in place of `%NAME%`."""
    text = (PAGE / path.name).read_text(encoding="utf-8")
    for name, value in values.items():
        text = text.replace(f"%{name}%", value)
    path.write_text(text, encoding="utf-8")
