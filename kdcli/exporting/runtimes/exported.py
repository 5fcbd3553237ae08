"""Runs programs of torch.export.

A program is more than weights: torch unpickles some members of the archive, evaluates expressions of its shapes, and generates Python from
its names and guards. So each member, name and expression must be one of those that an export has.
"""

from __future__ import annotations

import io
import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from kdcli.errors import ModelError, shown
from kdcli.measure.runtime import EncoderRuntime
from kdcli.measure.spec import Encoded, MeasureSpec

PROGRAM = "models/model.json"
INPUTS = "data/sample_inputs/model.pt"
CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
MEMBERS = re.compile(
    rf"archive_format|archive_version|byteorder|\.data/\w+|\.format_version|\.storage_alignment|{PROGRAM}|{INPUTS}|{'|'.join(CONFIGS)}"
    r"|data/weights/weight_\d+|data/constants/tensor_\d+"
)
OPERATORS = re.compile(
    r"torch\.ops\.aten\.(?!from_file\b|save\b)\w+\.\w+|torch\.ops\.higher_order\.wrap_with_(autocast|set_grad_enabled)"
    r"|_operator\.(add|sub|mul|floordiv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_|getitem)"
    r"|math\.(ceil|floor|trunc)|torch\.sym_(max|min|not|int|float|ite)"
)
NAME = re.compile(r"[\w.@]*")
"""A name of a node, a weight or a field."""
EXPRESSION = re.compile(
    r"(?:[ ,()\[\]]|-?\d++(?:\.\d++)?|Symbol\('\w++'|(?:Integer|Float|Rational|Mul|Add|Pow|Mod|PythonMod|FloorDiv|CleanDiv|Max|Min)\("
    r"|\b(?:positive|nonnegative|integer|real|precision)=(?:True|False|\d++))*+"
)
GUARD = re.compile(r"(?:L\['\w++'\]\.size\(\)\[\d++\]|\b(?:and|or|not)\b|\d++|[ ()*/%+<>=!-])*+")
METADATA = {"stack_trace", "nn_module_stack", "torch_fn", "source_fn_stack"}
LONGEST = 2000
"""Characters of a name or an expression."""


class ExportedEncoder(EncoderRuntime):
    """A program of torch.export."""

    files = ("*.pt2",)
    packages = ("torch", "tokenizers")

    @classmethod
    def require_safe(cls, path: Path) -> None:
        import torch

        try:
            archive = torch._C.PyTorchFileReader(str(path))
            members = archive.get_all_records()
            if strange := [name for name in members if not MEMBERS.fullmatch(name)]:
                raise _refused(path, f"its member {shown(strange[0])} may hold code")
            for name in CONFIGS:
                for entry in json.loads(archive.get_record(name))["config"].values():
                    if entry["use_pickle"] or f"{Path(name).parent}/{entry['path_name']}" not in members:
                        raise _refused(
                            path, f"{name} names {shown(entry['path_name'])}, which is no plain tensor"
                        )
            torch.load(io.BytesIO(archive.get_record(INPUTS)), weights_only=True)
            _require_plain(json.loads(archive.get_record(PROGRAM)), path)
        except pickle.UnpicklingError:
            raise _refused(path, f"its member {INPUTS!r} is a pickle of other things than tensors") from None
        except (
            RuntimeError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
            EOFError,
        ) as error:
            raise ModelError(
                f"{path} is not a complete program of torch.export ({type(error).__name__}); export it again (kdcli export RUN hardware=cuda)"
            ) from None

    def __init__(self, spec: MeasureSpec):
        import torch
        from torch.export.passes import move_to_device_pass
        from torch.export.pt2_archive._package import load_pt2

        torch.set_num_threads(spec.threads)
        program = load_pt2(spec.path).exported_programs[
            "model"
        ]  # torch.export.load would try older formats, which are pickles
        if spec.device != "cpu":
            program = move_to_device_pass(program, spec.device)
        self.run, self.device = program.module(), spec.device
        super().__init__(spec, program.graph_signature.user_inputs)

    def __call__(self, inputs: Encoded) -> np.ndarray:
        import torch

        tensors = {name: torch.from_numpy(array).to(self.device) for name, array in inputs.items()}
        with torch.inference_mode():
            logits: np.ndarray = self.run(**tensors).cpu().numpy()
        return logits

    def memory(self) -> int | None:
        """Return the peak memory of the GPU, if there is one."""
        import torch

        return torch.cuda.max_memory_allocated() if self.device == "cuda" else None


def _refused(path: Path, why: str) -> ModelError:
    return ModelError(
        f"{path} is refused: {why}, which would be run when it is loaded; export the program with kdcli (kdcli export RUN "
        "hardware=cuda), or ask its author for safetensors"
    )


def _require_plain(tree: Any, path: Path, key: str = "") -> None:
    """Refuse a program with a name, an operator or an expression that an export of a model does not have.

    Args:
        key: under which the part stands.
    """
    if isinstance(tree, dict):
        if tree.keys() & {"as_operator", "as_custom_obj", "__enum__"}:
            raise _refused(path, f"it holds an object of its own under {shown(key)}")
        for name, value in tree.items():
            if not NAME.fullmatch(name) or len(name) > LONGEST:
                raise _refused(path, f"it holds the name {shown(name)}")
            if name == "metadata" and key == "nodes":
                if strange := sorted(value.keys() - METADATA):
                    raise _refused(path, f"it holds the name {shown(strange[0])}")
                continue
            _require_plain(value, path, name)
    elif isinstance(tree, list):
        for value in tree:
            _require_plain(value, path, key)
    elif isinstance(tree, str):
        if key in ("in_spec", "out_spec"):
            _require_spec(json.loads(tree), path)
            return
        pattern = {"target": OPERATORS, "expr_str": EXPRESSION, "guards_code": GUARD}.get(key, NAME)
        if key != "torch_version" and (len(tree) > LONGEST or not pattern.fullmatch(tree)):
            raise _refused(path, f"it holds the {key} {shown(tree)}")


def _require_spec(spec: Any, path: Path) -> None:
    """Refuse inputs and outputs that are not plain containers of tensors."""
    if isinstance(spec, list):
        for each in spec:
            _require_spec(each, path)
    elif isinstance(spec, dict):
        if spec.get("type") not in (None, "builtins.tuple", "builtins.list", "builtins.dict"):
            raise _refused(path, f"it takes or gives a {shown(spec.get('type'))}")
        if isinstance(context := spec.get("context"), str):
            _require_plain(json.loads(context), path, "context")
        _require_spec(spec.get("children_spec", []), path)
