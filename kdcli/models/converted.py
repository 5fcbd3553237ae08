"""Converts checkpoints in a layout that transformers does not read as a model of text into plain directories, once on each machine."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kdcli.errors import KDError, ModelError, shown
from kdcli.files import cache_dir, digest, hash_files, replaced, writing
from kdcli.locks import Lock
from kdcli.model_files import INDEX, TEXTS, read_json, weight_files

logger = logging.getLogger(__name__)
WRAPPERS = re.compile(
    r"(^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.|^module\."
)
"""The prefixes that torch.compile, FSDP, DeepSpeed and DDP add to the names of weights."""
SAME = {
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
}
"""Text models of multimodal ones that have no class of their own for language modelling, and the architecture that computes the same for text
alone: the three axes of their positions are equal there."""
CLOSE = {"torch.float32": 1e-4, "torch.float16": 2e-2, "torch.bfloat16": 1e-1}
"""The largest difference between the logits of a multimodal model and those of its text model, relative to the largest logit, by dtype."""


def converted(write: Callable[[Path], None], what: str, *key: str) -> Path:
    """Return the directory in the cache that `write` fills, once on this machine.

    Args:
        what: what is done, for the log.
        key: everything that its content depends on.
    """
    folder = cache_dir("converted") / digest(*key)[:32]
    with Lock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            logger.info("%s, once on this machine", what)
            with replaced(folder) as temporary, writing(temporary.parent):
                temporary.mkdir()
                write(temporary)
    return folder


def hash_model(folder: Path) -> str:
    """Return the hash of all files of a model's directory that are read."""
    return hash_files(path for path in sorted(folder.iterdir()) if path.suffix in {*TEXTS, ".safetensors"})


def copy_texts(folder: Path, out: Path, *without: str) -> None:
    """Copy the config and tokenizer files of a model's directory.

    Args:
        without: names of files that are left out.
    """
    for path in folder.iterdir():
        if path.suffix in {*TEXTS, ".codes"} and path.name not in without and path.is_file():
            shutil.copyfile(path, out / path.name)


# ---- names of weights ----------------------------------------------------------------------------------


def plain_names(folder: Path, name: str) -> Path:
    """Return the directory itself, or a copy whose weights have the names of the plain model: without what torch.compile, FSDP or DDP add, and
    without a prefix that all of them share and that the model's class does not have.

    Raises:
        ModelError: two weights would have one name.
    """
    names = [key for file in weight_files(folder) for key in weight_names(file)]
    if adapter := next((key for key in names if ".lora_A." in key), None):
        raise ModelError(
            f"{name}: the weights hold an adapter that is not merged ({shown(adapter)}); merge it (merge_and_unload()), and save the model again"
        )
    unwrapped = [WRAPPERS.sub("", key) for key in names]
    prefix = _foreign_prefix(unwrapped, read_json(folder / "config.json", name))
    if unwrapped == names and not prefix:
        return folder
    new = dict(zip(names, (key.removeprefix(prefix) for key in unwrapped), strict=True))
    if len(set(new.values())) < len(new):
        raise ModelError(
            f"{name}: the weights {shown(names[0])} … cannot be named as the model's own, since two would have one name; rename them in the file"
        )
    logger.info("%s: its weights are named %s …, and are read as %s …", name, names[0], new[names[0]])
    return converted(
        lambda out: _rename(folder, out, new), f"renaming the weights of {name}", "names", hash_model(folder)
    )


def weight_names(file: Path) -> Iterator[str]:
    """Yield the names of the tensors in a safetensors file."""
    from safetensors import safe_open

    with safe_open(file, "np") as weights:
        yield from weights.keys()


def _foreign_prefix(names: list[str], config: Mapping[str, Any]) -> str:
    """Return the prefix that all names share and that is none of the model's own; empty if there is none."""
    import torch
    import transformers

    model_class = class_of(config)
    first = {key.partition(".")[0] for key in names}
    if model_class is None or len(first) != 1:
        return ""
    outer = f"{first.pop()}."
    own = f"{model_class.base_model_prefix}."
    if outer == own and not any(key.startswith(own + own) for key in names):
        return ""
    try:
        with torch.device("meta"):
            expected = set(model_class(transformers.AutoConfig.for_model(**config)).state_dict())
    except Exception:  # the loader reports what is wrong with the config
        return ""
    expected |= {key.removeprefix(own) for key in expected}
    prefixes, rest = [], names
    for prefix in _shared_prefixes(names):
        rest = [key.removeprefix(prefix) for key in names]
        if expected.intersection(rest):
            prefixes.append(prefix)
    return prefixes[0] if len(prefixes) == 1 and not expected.intersection(names) else ""


def _shared_prefixes(names: list[str]) -> Iterator[str]:
    """`a.`, `a.b.` …: what all names begin with."""
    parts = names[0].split(".")
    for count in range(1, len(parts)):
        prefix = ".".join(parts[:count]) + "."
        if not all(key.startswith(prefix) for key in names):
            return
        yield prefix


def _rename(folder: Path, out: Path, new: Mapping[str, str]) -> None:
    from safetensors.torch import load_file, save_file

    copy_texts(folder, out)
    for file in weight_files(folder):
        save_file(
            {new[key]: tensor for key, tensor in load_file(file).items()}, out / file.name, {"format": "pt"}
        )
    if (out / INDEX).is_file():
        index = read_json(folder / INDEX, str(folder))
        index["weight_map"] = {new.get(key, key): file for key, file in index["weight_map"].items()}
        (out / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def class_of(config: Mapping[str, Any]) -> Any:
    """Return the class of transformers that `architectures` of a config.json names; None if there is none."""
    import transformers

    names = config.get("architectures") or [""]
    model_class = getattr(transformers, names[0], None) if names[0].isidentifier() else None
    return (
        model_class
        if isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)
        else None
    )


# ---- names of labels -----------------------------------------------------------------------------------


def named_labels(folder: Path, name: str) -> Path:
    """Return the directory itself, or a copy whose config.json has `id2label`, if the labels are named by `label2id` alone: transformers then drops
    these names and takes LABEL_0, LABEL_1, …"""
    config = read_json(folder / "config.json", name)
    names = config.get("label2id")
    if (
        config.get("id2label") is not None
        or not isinstance(names, dict)
        or sorted(map(str, names.values())) != sorted(map(str, range(len(names))))
        or all(label == f"LABEL_{index}" for label, index in names.items())
    ):
        return folder
    config["id2label"] = {str(index): label for label, index in names.items()}
    logger.info("%s: its config.json names the labels in label2id alone: %s", name, shown(names))

    def write(out: Path) -> None:
        copy_texts(folder, out, "config.json")
        (out / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        for file in weight_files(folder):
            shutil.copyfile(file, out / file.name)

    return converted(write, f"naming the labels of {name}", "labels", hash_model(folder))


# ---- multimodal models ---------------------------------------------------------------------------------


def text_model(folder: Path, name: str) -> Path:
    """Return the directory itself, or that of the text decoder of a model that reads images or sound as well.

    Raises:
        ModelError: it has no text decoder that transformers has a class for, or that computes the same for text alone.
    """
    config = read_json(folder / "config.json", name)
    model_class = class_of(config)
    others = [key for key in config if re.fullmatch(r"(vision|audio|image)_config", key)]
    if (
        model_class is None
        or not others
        or not isinstance(config.get("text_config"), dict)
        or not model_class.__name__.endswith("ForConditionalGeneration")
        or config.get("is_encoder_decoder")
    ):
        return folder
    logger.info("%s is a %s: its text model alone is used", name, model_class.__name__)
    import transformers

    key = "text model", hash_model(folder), transformers.__version__
    return converted(
        lambda out: _write_text_model(folder, out, model_class, name),
        f"extracting the text model of {name}",
        *key,
    )


def _write_text_model(folder: Path, out: Path, model_class: Any, name: str) -> None:
    """Write the text decoder as a language model of its own, whose logits for text are those of the whole model."""
    import torch
    from transformers import AutoModelForCausalLM

    def wrong(why: str) -> ModelError:
        return ModelError(
            f"{name}: {model_class.__name__} reads images or sound, and its text model cannot be used alone: {why}. Use a language model of text "
            "(…ForCausalLM)"
        )

    try:
        loaded: Any = model_class.from_pretrained(
            folder, dtype="auto", use_safetensors=True, local_files_only=True, output_loading_info=True
        )
        model, report = loaded
        if missing := sorted(report["missing_keys"]):
            raise wrong(f"its weights lack {shown(missing[0])}")
        head, words = model.get_output_embeddings(), model.get_input_embeddings()
        config = _text_config(model.config.get_text_config())
        config.tie_word_embeddings = head.weight is words.weight
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config)
        if not type(empty).__name__.endswith("ForCausalLM"):
            raise wrong(f"transformers has no language model for {config.model_type}")
        prefix = f"{empty.base_model_prefix}."
        weights = {prefix + key: tensor for key, tensor in model.get_decoder().state_dict().items()}
        if not config.tie_word_embeddings:
            weights |= {f"lm_head.{key}": tensor for key, tensor in head.state_dict().items()}
        empty.save_pretrained(out, state_dict=weights)
        copy_texts(folder, out, "config.json", INDEX, "generation_config.json")
        _require_same_logits(model, out, wrong)
    except KDError:
        raise
    except Exception as error:  # transformers raises exceptions of its own
        raise wrong(next(iter(str(error).strip().splitlines()), type(error).__name__)) from error


def _text_config(config: Any) -> Any:
    """Return the config of the text model, as that of an architecture with a class for language modelling."""
    from transformers import AutoConfig

    if config.model_type not in SAME:
        return config
    own = {key: value for key, value in config.to_dict().items() if key not in ("model_type", "rope_scaling")}
    rope = {
        key: value for key, value in (own.get("rope_parameters") or {}).items() if not key.startswith("mrope")
    }
    if rope:
        own["rope_parameters"] = rope | {
            "rope_type": "default" if rope.get("rope_type") == "mrope" else rope.get("rope_type", "default")
        }
    return AutoConfig.for_model(SAME[config.model_type], **own)


def _require_same_logits(model: Any, out: Path, wrong: Callable[[str], ModelError]) -> None:
    """Refuse a text model that does not compute what the multimodal model computes for text alone."""
    import torch
    from transformers import AutoModelForCausalLM

    ids = torch.arange(1, 9)[None] % model.config.get_text_config().vocab_size
    with torch.no_grad():
        expected = model.eval()(input_ids=ids).logits.float()
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            out, dtype=model.dtype, local_files_only=True, output_loading_info=True
        )
        text, report = loaded
        if missing := sorted(report["missing_keys"]):
            raise wrong(f"it lacks {shown(missing[0])}")
        logits = text.eval()(input_ids=ids).logits.float()
    limit = CLOSE.get(str(model.dtype), 1e-4) * float(expected.abs().max().clamp(min=1))
    if logits.shape != expected.shape or not torch.allclose(logits, expected, atol=limit):
        raise wrong("it computes other logits than the whole model does for text")


def convert_pickled(folder: Path, pickled: str, weights: str) -> str:
    """Return the command that writes a file of pickled weights as safetensors, with their names."""
    return (
        f"convert it: in {folder}, python -c 'import torch, safetensors.torch as s; "
        f's.save_file({{k: v.clone() for k, v in torch.load("{pickled}", weights_only=True).items()}}, '
        f'"{weights}", {{"format": "pt"}})\''
    )
