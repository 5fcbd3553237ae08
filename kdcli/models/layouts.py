"""Recognises what a path that is no directory of safetensors holds, and words the refusal with what to give instead."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from kdcli.errors import ModelError, listed
from kdcli.model_files import INDEX, WEIGHTS, read_json
from kdcli.models.adapters import CONFIG
from kdcli.models.converted import class_of, convert_pickled

logger = logging.getLogger(__name__)
PICKLED = "pytorch_model.bin"
"""The file of weights that torch.save writes."""
SHARD = re.compile(r".+-\d+-of-\d+\.safetensors")
"""The name of one of several files of weights, which an index lists."""
FRAMEWORKS = {".h5": "from_tf=True", ".msgpack": "from_flax=True"}
"""The suffixes of the weights of TensorFlow and Flax, and the argument with which transformers below version 5 reads them."""
HEADS = "model_head.*", "config_setfit.json"
"""The files of a SetFit model beside its transformer."""
MODULE = re.compile(r"\d+_(?!Transformer|Pooling|Normalize)\w+")
"""A directory of sentence-transformers with weights of its own behind the transformer, such as 2_Dense."""
PATH_KEYS = {"teacher": "teacher.path", "student": "student.path"}
"""The key of a checkpoint's path, where it is not what the messages call the checkpoint."""


def no_config(path: Path, what: str, name: str) -> ModelError:
    """Return the refusal of a path without a config.json. It names the models that lie below the path, or around a file.

    Args:
        what: "teacher", "student" or the key of the path.
    """
    key = PATH_KEYS.get(what, what)
    if path.is_file():
        problem = "is a file, and a directory with a config.json is expected"
        models = [path.parent] if _is_model(path.parent) else []
    else:
        problem = f"has no config.json in {path}: it is no Hugging Face model directory"
        models = next(filter(None, (_models(path, each) for each in ("*.gguf", "*/", "*/*/"))), [])
    if not models:
        return ModelError(f"{name} {problem}; give one that save_pretrained wrote")
    return ModelError(f"{name} {problem}; give {key}={_last(models)}")


def _last(models: list[Path]) -> str:
    """Return the path of the last one of some models, and the names of the others."""
    *others, last = models
    return f"{last} (others: {listed(each.name for each in others)})" if others else str(last)


def _models(folder: Path, pattern: str) -> list[Path]:
    """Return the GGUF files or the model directories that match a pattern; numbers in their names are in numerical order."""
    paths = [path for path in folder.glob(pattern) if path.suffix == ".gguf" or _is_model(path)]
    digits = re.compile(r"(\d+)")
    return sorted(paths, key=lambda path: [(len(part), part) for part in digits.split(str(path))])


def _is_model(folder: Path) -> bool:
    try:
        return (folder / CONFIG).is_file() or (
            (path := folder / "config.json").is_file() and "model_type" in read_json(path, str(folder))
        )
    except (ModelError, OSError):
        return False


def no_safetensors(folder: Path, what: str, name: str, on_hub: bool) -> ModelError:
    """Return the refusal of a directory whose weights have another format, with the way to convert those that are there.

    Args:
        what: "teacher", "student" or the key of the path.
        on_hub: the directory is a snapshot of a hub repository, which may have a conversion.
    """
    if below := [path for path in _models(folder, "*/") if any(path.glob("*.safetensors"))]:
        return ModelError(
            f"{name} has no safetensors in {folder}, and a model lies below it; give {PATH_KEYS.get(what, what)}={_last(below)}"
        )
    hub = f", or look for the hub's conversion among its pull requests: {what}.revision=refs/pr/N"
    return ModelError(
        f"{name} has no safetensors in {folder}. Other formats can run code when they are loaded "
        f"and are not read; {_conversion(folder, what, name)}{hub if on_hub else ''}"
    )


def _conversion(folder: Path, what: str, name: str) -> str:
    """Return how a checkpoint's weights become safetensors, with their names and their head."""
    if (folder / PICKLED).is_file():
        return convert_pickled(folder, PICKLED, WEIGHTS)
    architectures = read_json(folder / "config.json", name).get("architectures")
    names = (
        [each for each in architectures if str(each).isidentifier()]
        if isinstance(architectures, list)
        else []
    )
    load = f"transformers.{[*names, 'AutoModelFor…'][0]}.from_pretrained"
    for suffix, argument in FRAMEWORKS.items():
        if files := sorted(folder.glob(f"*{suffix}")):
            return (
                f"convert {files[0].name} where pip install 'transformers<5' was run, since later versions do not read it: "
                f"{load}({str(folder)!r}, {argument}).save_pretrained(…)"
            )
    if exports := sorted({*folder.glob("*.onnx"), *folder.glob("*/*.onnx")}):
        return (
            f"{exports[0].relative_to(folder)} is an export: give {PATH_KEYS.get(what, what)}= the checkpoint that it was exported "
            "from"
        )
    return f"convert it: {load}(…).save_pretrained(…)"


def require_weight_names(folder: Path, name: str) -> None:
    """Refuse safetensors that transformers does not look for: a variant (model.fp16.safetensors), or several files without their index.

    Raises:
        ModelError
    """
    named = read_json(folder / "config.json", name).get("transformers_weights")
    if named or (folder / WEIGHTS).is_file() or (folder / INDEX).is_file():
        return
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    if any(map(SHARD.fullmatch, files)):
        remedy = (
            f"copy {INDEX} there, which says in which file each weight is, from where the files come from"
        )
    else:
        remedy = f"rename {' or '.join(files[:3])} to {WEIGHTS}"
    raise ModelError(
        f"{name} has neither {WEIGHTS} nor {INDEX} in {folder}, and weights are read by these names; {remedy}"
    )


def missing_model_type(folder: Path) -> str:
    """Return what to write into a config.json without `model_type`, which the first versions of transformers did not write; empty: this is not what it lacks."""
    try:
        config = read_json(folder / "config.json", str(folder))
    except ModelError:  # damaged: transformers says where
        return ""
    if config.get("model_type"):
        return ""
    kind = getattr(getattr(class_of(config), "config_class", None), "model_type", None)
    value = (
        f'"model_type": "{kind}"' if kind else '"model_type" with the name of its architecture (bert, gpt2 …)'
    )
    return f"; write {value} into {folder / 'config.json'}"


def warn_of_unread_heads(folder: Path, name: str) -> None:
    """Warn of the head of a SetFit model, and of layers of sentence-transformers behind the transformer: neither is read."""
    unread = [path.name for pattern in HEADS for path in folder.glob(pattern)]
    unread += [path.name for path in folder.glob("*/") if MODULE.fullmatch(path.name)]
    if unread:
        logger.warning(
            "%s: %s hold what SetFit or sentence-transformers computes behind the transformer, and are not read: the transformer alone is used. If "
            "its predictions are to be learnt, write them into a column of labels",
            name, listed(sorted(unread)),
        )  # fmt: skip
