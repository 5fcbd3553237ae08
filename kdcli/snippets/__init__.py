"""Some ten lines that run an artifact without kdcli, one file for each runtime and task, which an export lays beside it.

`onnx_classification.py` becomes `run_onnx.py`, and so on; files of other languages (.mjs, .kt, .swift) likewise. A line
`NAME = …` gets the value of the artifact at hand, if it has one of that name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def write(folder: Path, runtime: str, kind: str, values: Mapping[str, Any]) -> list[Path]:
    """Write what runs an artifact into its folder, and return the files."""
    written = []
    for file in sorted(HERE.glob(f"{runtime}_{kind}.*")):
        text = file.read_text(encoding="utf-8")
        for name, value in values.items():
            python = file.suffix == ".py" and not isinstance(value, str)
            said = repr(value) if python else json.dumps(value, ensure_ascii=False)
            line = re.compile(rf"^((?:const |val |let )?{name}\b[^=\n]*= )[^;\n]*", re.MULTILINE)
            text = line.sub(partial(_with, said), text)
        written.append(folder / f"run_{runtime}{file.suffix}")
        written[-1].write_text(text, encoding="utf-8")
    return written


def _with(said: str, line: re.Match[str]) -> str:
    return line[1] + said
