"""Scripts of at most ten lines that run an artifact without kdcli, for each runtime, and the modules that they import. An export writes them
into the folder of the artifact.

`onnx_causal_lm.py` becomes `run_onnx.py`, and so on; files named `encoder` are for all tasks that have logits and generate nothing; files of
other languages (.mjs, .kt, .swift) are treated alike. The modules that a script imports, `from student import …`, are written for each task:
`student_classification.py` becomes `student.py`. A line `NAME = …` gets the value of the artifact, if there is one of that name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from kdcli.config.tasks import spec_of

HERE = Path(__file__).parent


def write(folder: Path, runtime: str, kind: str, values: Mapping[str, Any]) -> list[Path]:
    """Write the scripts that run an artifact into its folder, with the modules that they import.

    Args:
        runtime: the name of its runtime.
        kind: the name of its task.

    Returns:
        The scripts.
    """
    written = []
    for file in _files(runtime, kind):
        written.append(folder / f"run_{runtime}{file.suffix}")
        _fill(file, written[-1], kind, values)
    return written


def _files(name: str, kind: str) -> list[Path]:
    """Return the files of a runtime, or of an imported module, for a task."""
    families = [kind, "encoder"] if spec_of(kind).script_arguments else [kind]
    return [file for family in families for file in sorted(HERE.glob(f"{name}_{family}.*"))]


def _fill(file: Path, to: Path, kind: str, values: Mapping[str, Any]) -> None:
    """Write a file with its values, and the modules that it imports."""
    text = file.read_text(encoding="utf-8").replace("ARGUMENTS", spec_of(kind).script_arguments)
    for name, value in values.items():
        python = file.suffix == ".py" and not isinstance(value, str)
        literal = repr(value) if python else json.dumps(value, ensure_ascii=False)
        line = re.compile(rf"^((?:const |val |let )?{name}\b[^=\n]*= ).*?(?=;|  #|$)", re.MULTILINE)
        text = line.sub(partial(_assign, literal), text)
    to.write_text(text, encoding="utf-8")
    for module in re.findall(r"^from (\w+) import", text, re.MULTILINE):
        for imported in _files(module, kind):
            _fill(imported, to.with_name(f"{module}.py"), kind, values)


def _assign(literal: str, line: re.Match[str]) -> str:
    return line[1] + literal
