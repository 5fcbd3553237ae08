"""Ten lines at most that run an artifact without kdcli, for each runtime, and what they import: an export lays both beside it.

`onnx_causal_lm.py` becomes `run_onnx.py`, and so on; `onnx_encoder.py` is for what has logits and writes nothing; files of other
languages (.mjs, .kt, .swift) likewise. What such a file imports, `from student import …`, is written for each task:
`student_classification.py` becomes `student.py`. A line `NAME = …` gets the value of the artifact at hand, if it has one of that name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ASKED = {
    "classification": '"A text." ["The text that belongs to it."]',
    "token_classification": "One word after the other",
}
"""What the lines for encoders are given, by task."""


def write(folder: Path, runtime: str, kind: str, values: Mapping[str, Any]) -> list[Path]:
    """Write what runs an artifact into its folder, and return the files that are to be run; what they import lies beside them."""
    written = []
    for file in _files(runtime, kind):
        written.append(folder / f"run_{runtime}{file.suffix}")
        _fill(file, written[-1], kind, values)
    return written


def _files(name: str, kind: str) -> list[Path]:
    """Those of a runtime, or of what is imported, for a task."""
    families = [kind, "encoder"] if kind in ASKED else [kind]
    return [file for family in families for file in sorted(HERE.glob(f"{name}_{family}.*"))]


def _fill(file: Path, to: Path, kind: str, values: Mapping[str, Any]) -> None:
    """Write the file with its values, and what it imports."""
    text = file.read_text(encoding="utf-8").replace("ASKED", ASKED.get(kind, ""))
    for name, value in values.items():
        python = file.suffix == ".py" and not isinstance(value, str)
        said = repr(value) if python else json.dumps(value, ensure_ascii=False)
        line = re.compile(rf"^((?:const |val |let )?{name}\b[^=\n]*= ).*?(?=;|  #|$)", re.MULTILINE)
        text = line.sub(partial(_with, said), text)
    to.write_text(text, encoding="utf-8")
    for module in re.findall(r"^from (\w+) import", text, re.MULTILINE):
        for beside in _files(module, kind):
            _fill(beside, to.with_name(f"{module}.py"), kind, values)


def _with(said: str, line: re.Match[str]) -> str:
    return line[1] + said
