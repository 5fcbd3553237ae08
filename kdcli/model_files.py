"""Checks a model directory before anything in it is loaded, and compares a trained model with the hashes of its saved files."""

from __future__ import annotations

import itertools
import json
import math
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kdcli.errors import ModelError, abbreviated, listed, shown
from kdcli.files import hash_file, write_text

SUMS = "SHA256SUMS"
"""The hashes of a trained model's files, as `sha256sum` writes and checks them."""
NOTE = "kdcli.json"
"""The provenance of a cached model. It is written after the model, for people to read."""
TEXTS = {".json", ".txt", ".jinja", ".model", ".spm", ".py", ".xml"}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
"""All weights in one file, and the list of the files that hold them. The list is not read where there is the one file."""
OBJECTS = (
    "config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    INDEX,
)  # fmt: skip
"""Files that hold a JSON object."""
READ = {*TEXTS, ".safetensors"}
"""The suffixes of the files that are read in a model directory."""
POINTER = b"version https://git-lfs.github.com"
"""The beginning of the text that a clone without Git LFS has in place of a large file."""
LARGEST_TEXT = 512 * 2**20
"""The most bytes of a file of a config, a tokenizer or a graph; the largest tokenizers have about 40 MB."""
MOST_LAYERS = 1000
"""The most layers or experts of a model, since they are built one by one."""
LARGEST_NUMBER = 20_000_000
"""The largest size in a config.json that needs no weights of that size; positions go up to 10,485,760."""
SIZES = re.compile(
    r"(^|_)(size|dim|heads?|hidden|inner|embd?|vocab|model|ff|kv|ctx|positions?|embeddings|rank|labels)$|^d_"
)
LAYERS = re.compile(r"(^|_)(layers?|blocks|experts)$")
POSITIVE = re.compile(
    r"(num_|encoder_|decoder_)?attention_heads|hidden_size|d_model|n_embd|n_heads?|dim|vocab_size"
)
"""The sizes of a config.json that no model has 0 of."""
NUMBERED = re.compile(r"^(.*?\.?)(\d+)\.(.+)$")
"""The name of a weight in a stack of layers: the stack, the layer's index, and the name within the layer."""
BUFFERS = re.compile(
    r"(^|[._])(position_ids|token_type_ids|inv_freq|masked_bias|cached|mask|relative_position_index|num_batches_tracked|version|weights)$"
)
"""The names of tensors that older checkpoints hold in addition to the weights, and that newer models compute."""
SCALE = re.compile(r"\.(scales?|weight_scale\w*|weight\.(absmax|quant_map|scale)|SCB)$")
"""The names of the tensors by which quantized weights are multiplied."""
POOLER = re.compile(r"(^|\.)pooler\.")
DTYPES = "float32", "float16", "bfloat16", "float64"
"""The values of `dtype` in a config.json with which transformers can build a model."""
LARGEST_WEIGHT = 1e9
ATTENTION = re.compile(r"(attn|experts)_implementation")
FLOATS = re.compile(r"B?F\d")
FILE_OF_TOKENIZER = re.compile(r"(_file|^vocab|_spm)$")


def require_folder(folder: Path, name: str) -> None:
    """Refuse a model directory that cannot be loaded, or that would make a loader run code or read files elsewhere.

    Only file names, sizes, JSON files and the headers of the weights are read.

    Args:
        name: what the messages call the model.

    Raises:
        ModelError
    """
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise ModelError(
            f"{name}: {folder} cannot be read ({error.strerror}); check its permissions"
        ) from None
    for path in paths:
        _require_regular(path, name)
    files = {path.name: path for path in paths if path.suffix in READ}
    objects = {file: read_json(files[file], name) for file in OBJECTS if file in files}
    config = objects.get("config.json", {})
    weights = weight_files(folder)
    quantized = "quantization_config" in config
    largest = sum(_elements(path, name, quantized) for path in weights)
    require_config(config, name, max(LARGEST_NUMBER, largest) if weights else math.inf)
    for file in ("config.json", "generation_config.json"):
        _require_token_ids(objects.get(file, {}), name, file)
    _require_tokenizer_config(objects.get("tokenizer_config.json", {}), folder, name)
    if (index := objects.get(INDEX)) is not None and WEIGHTS not in files:
        _require_index(index, folder, name)


def weight_files(folder: Path) -> list[Path]:
    """Return the files of a model directory that transformers reads weights from, by name. Others may lie beside them: the shards of the model from which one file was
    fine-tuned, or the same weights in a layout of their authors' own (consolidated.safetensors).
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    present = sorted(folder.glob("*.safetensors"))
    if not (folder / INDEX).is_file():
        return present
    named = read_json(folder / INDEX, str(folder)).get("weight_map")
    shards = {*map(str, named.values())} if isinstance(named, dict) else set()
    return [path for path in present if path.name in shards] or present


def _require_regular(path: Path, name: str) -> None:
    """Refuse special files: opening a FIFO blocks, and reading a device does not end."""
    try:
        status = path.stat()
    except OSError as error:
        if path.suffix not in READ:
            return
        raise ModelError(
            f"{name}: {path} cannot be read ({error.strerror}); put the model's own file there"
        ) from None
    is_file, is_folder = stat.S_ISREG(status.st_mode), stat.S_ISDIR(status.st_mode)
    if not is_file and (not is_folder or path.suffix in READ):
        raise ModelError(f"{name}: {path} is not a regular file; put the model's own file there")
    if path.suffix in TEXTS and status.st_size > LARGEST_TEXT:
        raise ModelError(
            f"{name}: {path} has {status.st_size:,} bytes, and a file of its kind has at most {LARGEST_TEXT:,}; put the model's own file there"
        )
    if path.suffix in READ and starts_with(path, POINTER):
        raise ModelError(
            f"{name}: {path} is a pointer of Git LFS and not the file itself; run git lfs pull there"
        )


def starts_with(path: Path, start: bytes) -> bool:
    """Return whether a file can be read and begins with these bytes."""
    try:
        with path.open("rb") as file:
            return file.read(len(start)) == start
    except OSError:
        return False


def read_json(path: Path, name: str) -> dict[str, Any]:
    """Read a JSON object from a file of a model directory.

    Raises:
        ModelError
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{name}: {path.name} cannot be used: {_bounded(error)} ({path})") from None
    if not isinstance(content, dict):
        raise ModelError(
            f"{name}: {path.name} cannot be used: it holds {type(content).__name__}, and an object is expected ({path})"
        )
    return content


def _constant(text: str) -> float:
    if text == "NaN":
        raise ValueError("NaN is not a number")
    return float(text)


def _bounded(error: BaseException) -> str:
    return abbreviated(" ".join(str(error).split())) or type(error).__name__


def require_config(config: Mapping[str, Any], name: str, largest: float) -> None:
    """Refuse a config.json whose fields have types that transformers does not take, or sizes that do not fit the weights.

    Args:
        largest: the largest size that is accepted.

    Raises:
        ModelError
    """

    def wrong(key: str, value: object, expected: str) -> ModelError:
        return ModelError(f"{name}: config.json cannot be used: {key} is {shown(value)}, and {expected}")

    names = config.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(each, str) for each in names)):
        raise wrong("architectures", names, "a list of class names is expected")
    kind = config.get("model_type")
    if kind is not None and not isinstance(kind, str):
        raise wrong("model_type", kind, "a string is expected")
    inner = [each for key, each in config.items() if isinstance(each, dict) and key != "quantization_config"]
    for part, key in itertools.product((config, *inner), ("dtype", "torch_dtype")):
        value = part.get(key)
        if value is not None and not (isinstance(value, str) and value.removeprefix("torch.") in DTYPES):
            raise wrong(key, value, f"one of {', '.join(DTYPES)} is expected")
    labels = config.get("id2label")
    if labels is not None:
        if not isinstance(labels, dict) or not all(
            key.isdecimal() and isinstance(label, str | int) for key, label in labels.items()
        ):
            raise wrong("id2label", labels, "an object is expected, with a name for each number")
        if sorted(map(int, labels)) != list(range(len(labels))):
            raise wrong("id2label", labels, "its numbers must count from 0")
        if len(set(labels.values())) < len(labels):
            raise wrong("id2label", labels, "each label needs a name of its own")
    if config.get("return_dict") is False:
        raise wrong("return_dict", False, "outputs are read by name; leave the key out")
    if (chunk := config.get("chunk_size_feed_forward")) not in (None, 0, 1):
        raise wrong(
            "chunk_size_feed_forward",
            chunk,
            "it refuses rows of other lengths and changes no result; leave the key out",
        )
    for key, value in _fields(config):
        if ATTENTION.search(key) and isinstance(value, str) and "/" in value:
            raise wrong(key, value, "code from the hub is not run; leave the key out")
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if "drop" in key and not 0 <= value <= 1:
            raise wrong(key, value, "a probability is expected")
        if POSITIVE.fullmatch(key) and value < 1:
            raise wrong(key, value, "at least 1 is expected")
        if LAYERS.search(key) and value > MOST_LAYERS:
            raise wrong(key, value, f"at most {MOST_LAYERS:,} are loaded")
        if SIZES.search(key) and value > largest:
            raise wrong(key, value, f"the weights have {largest:,.0f} numbers at most")


def _require_token_ids(config: Mapping[str, Any], name: str, file: str) -> None:
    for key, value in config.items():
        if not key.endswith("_token_id") or value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not all(isinstance(each, int) and not isinstance(each, bool) for each in ids):
            raise ModelError(
                f"{name}: {file} cannot be used: {key} is {shown(value)}, and the number of a token is expected"
            )


def _fields(tree: object, key: str = "") -> Iterable[tuple[str, object]]:
    """Iterate over the keys and plain values of a config at any depth."""
    if isinstance(tree, Mapping):
        for each, value in tree.items():
            yield from _fields(value, key if ATTENTION.search(key) else str(each))
    elif isinstance(tree, list):
        for value in tree:
            yield from _fields(value, key)
    else:
        yield key, tree


def _require_tokenizer_config(config: Mapping[str, Any], folder: Path, name: str) -> None:
    def wrong(key: str, expected: str) -> ModelError:
        return ModelError(
            f"{name}: tokenizer_config.json cannot be used: {key} is {shown(config[key])}, and {expected}"
        )

    most = config.get("model_max_length")
    if most is not None and (isinstance(most, bool) or not isinstance(most, int | float)):
        raise wrong("model_max_length", "a number is expected")
    if not isinstance(config.get("tokenizer_class"), str | None):
        raise wrong("tokenizer_class", "the name of a class is expected")
    for key, value in config.items():
        if FILE_OF_TOKENIZER.search(key) and isinstance(value, str):
            path = folder / value
            if _exists(path) and path.parent.resolve() != folder.resolve():
                raise wrong(key, "a file outside the model's directory is not read; leave the key out")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _require_index(index: Mapping[str, Any], folder: Path, name: str) -> None:
    listed = index.get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise ModelError(f"{name}: {INDEX} has no weight_map; put the model's own file there")
    for file in {str(value): None for value in listed.values()}:
        if file != Path(file).name or not _exists(folder / file):
            raise ModelError(
                f"{name}: {INDEX} names {shown(file)}, and a file in {folder} is expected; put the weights there"
            )


def _elements(path: Path, name: str, quantized: bool) -> int:
    """Return the number of elements in a file of weights, from its header.

    Raises:
        ModelError: the file is incomplete, or holds weights that are not floats.
    """
    from safetensors import SafetensorError, safe_open

    total = 0
    try:
        with safe_open(path, "np") as file:
            names = list(file.keys())
            for key in names:
                part = file.get_slice(key)
                total += math.prod(part.get_shape())
                if key.endswith(".weight") and not quantized and not FLOATS.match(part.get_dtype()):
                    raise ModelError(
                        f"{name}: {path.name}: {shown(key)} holds {part.get_dtype()}, and floats are expected; {_without_integers(key, names)}"
                    )
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{name}: {path.name} is not a whole safetensors file ({_bounded(error)})") from None
    return total


def _without_integers(key: str, names: Iterable[str]) -> str:
    """Return what to do about a weight of integers: it is quantized if scales stand beside it, as MLX and bitsandbytes write them."""
    module = key.removesuffix("weight")
    scale = next((each for each in names if each.startswith(module) and SCALE.search(each)), None)
    if scale is None:
        return "save the model in float32"
    return f"the weights are quantized ({shown(scale)} stands beside it): use the checkpoint from which they were quantized"


def tensor_sizes(file: Any) -> Iterable[tuple[str, int]]:
    """Yield the dtype, by its name in the file, and the number of elements of each tensor of an opened safetensors file."""
    for key in file.keys():  # noqa: SIM118  # it is not a mapping
        part = file.get_slice(key)
        yield part.get_dtype(), math.prod(part.get_shape())


def require_finite(folder: Path, name: str) -> None:
    """Refuse weights that are not finite, or so large that results overflow. Stored attention masks may contain infinity.

    Raises:
        ModelError
    """
    import torch
    from safetensors import safe_open

    for path in weight_files(folder):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118
                if "mask" in key or file.get_slice(key).get_dtype() not in ("F64", "F32", "F16", "BF16"):
                    continue
                tensor = file.get_tensor(key)
                if tensor.numel() and not torch.stack(torch.aminmax(tensor)).abs().max() <= LARGEST_WEIGHT:
                    raise ModelError(
                        f"{name}: {path.name}: {shown(key)} holds NaN, infinity or a number beyond {LARGEST_WEIGHT:.0e}: the model was damaged, "
                        "or its training diverged; use another checkpoint"
                    )


def require_body(model: Any, report: Mapping[str, Any]) -> list[str]:
    """Refuse a model whose body is not that of its weights: it would run without some of them, or with random ones. Only the head may be
    new, and with it a pooler, which masked language models lack.

    Args:
        report: the loading info of `from_pretrained` (`output_loading_info=True`).

    Returns:
        The names of the weights that are left over, such as another task's head.

    Raises:
        ModelError
    """
    weights, body = model.state_dict(), _body(model)
    left_over = sorted(key for key in report["unexpected_keys"] if not BUFFERS.search(key))
    unused = [key for key in left_over if _belongs(key, model, weights)]
    missing = sorted(key for key in report["missing_keys"] if key.startswith(body) and not POOLER.search(key))
    if unused:
        raise ModelError(
            f"the weights hold {len(unused)} tensors of the model's body that config.json leaves out ({shown(unused[0])} …): the model would "
            "run without them; put the model's own config.json beside the weights"
        )
    missing += sorted(key for key, *_ in report["mismatched_keys"] if key.startswith(body))
    if missing:
        models = _several(left_over, {key.removeprefix(f"{model.base_model_prefix}.") for key in missing})
        remedy = (
            f"save the one of its models that is meant ({listed(models)}) by itself, without this prefix"
            if models
            else "put the model's own config.json beside the weights"
        )
        raise ModelError(
            f"the weights lack {len(missing)} tensors of the shape that config.json names ({shown(missing[0])} …), which would be random, and only "
            f"the head may be new{_instead(left_over)}; {remedy}"
        )
    return left_over


def _several(left_over: list[str], missing: set[str]) -> list[str]:
    """Return the prefixes of several models of which each has the missing weights, as in a bi-encoder; empty: there are not several."""
    one = min(missing)
    prefixes = {key.removesuffix(one) for key in left_over if key.endswith(f".{one}")}
    return sorted(
        prefix
        for prefix in prefixes
        if len(prefixes) > 1 and sum(f"{prefix}{each}" in left_over for each in missing) > len(missing) / 2
    )


def _instead(left_over: list[str]) -> str:
    return f" (the weights are named {shown(left_over[0])} …)" if left_over else ""


def _body(model: Any) -> tuple[str, ...]:
    """Return how the names of the weights begin that are not the head's."""
    base = model.base_model
    if base is not model:
        return tuple(f"{name}." for name, part in model.named_children() if part is base)
    head = model.get_output_embeddings()
    return tuple(f"{name}." for name, part in model.named_children() if part is not head)


def _belongs(key: str, model: Any, weights: Mapping[str, Any]) -> bool:
    """Return whether a weight that is left over is one of the body's: a layer, or a part of a layer, that the model lacks.

    The name may have the prefix of the body or not, as in the checkpoint of a model with or without a head.
    """
    prefix = f"{model.base_model_prefix}."
    modules = {name for name, _ in model.base_model.named_modules()}
    inner = key.removeprefix(prefix)
    holder, _, last = inner.rpartition(".")
    if POOLER.search(inner) or (
        last == "bias" and not {f"{holder}.weight", f"{prefix}{holder}.weight"} & weights.keys()
    ):
        return False  # the bias without a weight is a mask, which older checkpoints hold
    match = NUMBERED.match(inner)
    parent = holder.rpartition(".")[0] if match is None else match[1].rstrip(".")
    return bool(parent) and parent in modules


def write_sums(folder: Path) -> None:
    """Write the hashes of a saved model's files."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != SUMS)
    write_text(folder / SUMS, "".join(f"{hash_file(path)}  {path.name}\n" for path in files))


def require_unchanged(folder: Path, remedy: str) -> bool:
    """Refuse a trained model whose files differ from the saved ones.

    Args:
        remedy: what the user can do about it, for the message.

    Returns:
        Whether there are hashes; older runs have none.

    Raises:
        ModelError: a file is missing, has another hash, or has none.
    """
    path = folder / SUMS
    if not path.is_file():
        return False
    listed = set()
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        expected, _, file = line.partition("  ")
        if not re.fullmatch(r"[0-9a-f]{64}", expected) or file != Path(file).name:
            raise ModelError(f"{path} is damaged; {remedy}")
        listed.add(file)
        target = folder / file
        actual = hash_file(target) if target.is_file() else None
        if actual != expected:
            holds = f"it has {actual[:12]}…" if actual else "it is gone"
            raise ModelError(
                f"{target} is not the file that was saved: {SUMS} says sha256 {expected[:12]}…, and {holds}; {remedy}"
            )
    read = {each.name for each in folder.iterdir() if each.suffix in {*READ, ".pt", ".pth", ".bin"}}
    if unknown := sorted(read - listed - {NOTE}):
        raise ModelError(f"{path} is damaged: it has no line of {unknown[0]}; {remedy}")
    return True
