"""Converts GGUF files into plain Hugging Face directories, once on each machine."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import io
import mmap
import re
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdcli.errors import KDError, ModelError
from kdcli.models.converted import converted

MAGIC = b"GGUF"
DIGITS = b"tokenizer.ggml.pre" + struct.pack("<IQ", 8, 6) + b"smollm"
"""The metadata of a file whose vocabulary was learned from text that was split at each digit first."""


def convert(path: Path) -> Path:
    """Return the directory in the cache with the contents of a GGUF file: weights in fp32, config, tokenizer with its chat template.

    The first conversion takes about ten seconds for 135 M weights.

    Raises:
        ModelError: the file is incomplete, is not GGUF, or has an architecture that transformers cannot read, or the package
            gguf is missing.
        ConfigError: the cache folder cannot be created.
    """
    import transformers

    try:
        with path.open("rb") as stream:
            if stream.read(len(MAGIC)) != MAGIC:
                raise ModelError(
                    f"{path} is not a GGUF file: it does not begin with {MAGIC.decode()}; download it again"
                )
            stream.seek(0)
            content_hash = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error}); check its permissions") from None

    def write(folder: Path) -> None:
        if importlib.util.find_spec("gguf") is None:
            raise ModelError(
                f"{path}: the package gguf is needed and is not installed; install it with: "
                "pip install 'kdcli[chat]'"
            )
        try:
            _write(path.absolute(), folder)
        except KDError:
            raise
        except Exception as error:  # gguf, numpy and transformers raise exceptions of their own
            raise ModelError(_explain(path, error)) from error

    return converted(write, f"converting {path.name}", content_hash, transformers.__version__)


@contextlib.contextmanager
def _parsing_once() -> Iterator[None]:
    """Cache the parsed file and the map of its weights' names. transformers parses the file for the config, for the tokenizer and for the weights, and
    builds the map for each module, which takes more than half of the time of a conversion."""
    import gguf

    originals = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    for name, original in originals.items():
        setattr(gguf, name, functools.cache(original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(gguf, name, original)


def _write(path: Path, folder: Path) -> None:
    from tokenizers import pre_tokenizers
    from torch import float32
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from kdcli.models.weight_only import mark_unquantized

    loaded: Any  # the model and its loading report
    with (
        tempfile.TemporaryDirectory() as link_folder,
        _parsing_once(),
        contextlib.redirect_stderr(io.StringIO()),
    ):  # a progress bar
        (Path(link_folder) / "model.gguf").symlink_to(
            path
        )  # transformers would also read other files of its folder
        tokenizer = AutoTokenizer.from_pretrained(link_folder, gguf_file="model.gguf")
        loaded = AutoModelForCausalLM.from_pretrained(
            link_folder, gguf_file="model.gguf", dtype=float32, output_loading_info=True
        )
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{path} lacks weights, which would be random: {', '.join(missing[:5])}; download it again"
        )
    if _splits_digits(path):  # transformers splits as GPT-2 does: "\n\n1" into "\n", "\n", "1"
        steps = [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    # its weights are fp32 now; transformers refuses to save a model that is marked as quantized
    mark_unquantized(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _splits_digits(path: Path) -> bool:
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(DIGITS) >= 0


def _explain(path: Path, error: Exception) -> str:
    from transformers import __version__

    message = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if re.search("not supported|Unrecognized config|gguf model_type", message):
        return f"{path}: transformers {__version__} cannot read this kind of model: {message}; give the Hugging Face checkpoint in place of the GGUF file"
    return (
        f"{path} cannot be read: it is truncated, damaged, or of a kind that transformers {__version__} does not support "
        f"({type(error).__name__}: {message}); fetch it again"
    )
