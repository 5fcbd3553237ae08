"""GGUF files: made into plain Hugging Face directories, once on a machine."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import logging
import mmap
import re
import struct
import tempfile
from pathlib import Path
from typing import Any

from kdcli.errors import KDError, ModelError
from kdcli.files import cache_dir, digest, replaced, writing
from kdcli.locks import Lock

logger = logging.getLogger(__name__)
MAGIC = b"GGUF"
DIGITS = b"tokenizer.ggml.pre" + struct.pack("<IQ", 8, 6) + b"smollm"
"""How a file says that its vocabulary was learned from text that was cut at each digit first."""


def convert(path: Path) -> Path:
    """The cache's directory of what a GGUF file holds: weights in fp32, config, tokenizer with its chat template.

    It is made if it is not there, in some twenty seconds for 135 M weights.

    Raises:
        ModelError: the file is not whole, not GGUF, or of a kind that transformers cannot read, or the package gguf
            is missing.
        ConfigError: the cache folder cannot be made.
    """
    import transformers

    try:
        with path.open("rb") as stream:
            if stream.read(len(MAGIC)) != MAGIC:
                raise ModelError(f"{path} is not a GGUF file: it does not begin with {MAGIC.decode()}")
            stream.seek(0)
            made_of = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error})") from None
    folder = cache_dir("converted") / digest(made_of, transformers.__version__)[:32]
    with Lock(folder.with_suffix(".lock")):
        if folder.is_dir():
            return folder
        if importlib.util.find_spec("gguf") is None:
            raise ModelError(
                f"{path}: the package gguf is needed and is not installed; install it with: "
                "pip install 'kdcli[chat]'"
            )
        logger.info("reading %s, which is done once", path.name)
        try:
            with replaced(folder) as temporary, writing(temporary.parent):
                _write(path.absolute(), temporary)
        except KDError:
            raise
        except Exception as error:  # gguf, numpy and transformers each raise their own kinds
            raise ModelError(_explain(path, error)) from error
    return folder


def _write(path: Path, folder: Path) -> None:
    from tokenizers import pre_tokenizers
    from torch import float32
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded: Any  # the model and what transformers says of it
    with tempfile.TemporaryDirectory() as alone, contextlib.redirect_stderr(io.StringIO()):  # a progress bar
        (Path(alone) / "model.gguf").symlink_to(path)  # transformers would mix in what lies beside the file
        tokenizer = AutoTokenizer.from_pretrained(alone, gguf_file="model.gguf")
        loaded = AutoModelForCausalLM.from_pretrained(
            alone, gguf_file="model.gguf", dtype=float32, output_loading_info=True
        )
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise ModelError(f"{path} lacks weights, which would be random: {', '.join(missing[:5])}")
    if _cuts_digits(path):  # transformers cuts as GPT-2 does: "\n\n1" into "\n", "\n", "1"
        cuts = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(cuts))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    # its weights are plain numbers now; transformers would refuse to save them as quantized
    model.hf_quantizer = None
    model.is_quantized = False
    for holder, name in ((model, "quantization_method"), (model.config, "quantization_config")):
        if hasattr(holder, name):
            delattr(holder, name)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _cuts_digits(path: Path) -> bool:
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        return whole.find(DIGITS) >= 0


def _explain(path: Path, error: Exception) -> str:
    from transformers import __version__

    said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if re.search("not supported|Unrecognized config|gguf model_type", said):
        return f"{path}: transformers {__version__} cannot read this kind of model: {said}"
    return (
        f"{path} cannot be read: it is truncated, spoiled, or of a kind that transformers {__version__} does not know "
        f"({type(error).__name__}: {said}); fetch it again"
    )
