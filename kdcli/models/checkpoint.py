"""Checkpoints: resolving their path, hashing them, loading them safely, and checking them against their tokenizer."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from kdcli.config.types import CheckpointConfig
from kdcli.errors import ConfigError, ModelError, shown
from kdcli.files import hash_files, user_path
from kdcli.generation import positions_of
from kdcli.hub import PACKAGE, locate_package, snapshot
from kdcli.model_files import require_finite, require_folder
from kdcli.tasks.base import Task
from kdcli.tasks.labels import order_of

disable_progress_bar()  # the run has its own
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model",
    "source.spm", "target.spm",
)  # fmt: skip
SHIFTED = (
    "roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "longformer", "mpnet", "xmod", "esm",
    "data2vec-text", "ibert", "luke", "lilt", "markuplm", "layoutlmv3",
)  # fmt: skip
"""The `model_type` of architectures whose position ids begin at padding_idx + 1."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on this machine.

    Attributes:
        path: its directory.
        name: the path or the hub id that the user gave.
        commit: the hub commit; None if it is not from the hub.
        code: whether its Python files may be run.
    """

    path: Path
    name: str
    commit: str | None = None
    code: bool = False

    @property
    def weights_hash(self) -> str:
        """The sha256 of the weights and the model's config."""
        return hash_files([*self.path.glob("*.safetensors"), self.path / "config.json"])

    @property
    def tokenizer_hash(self) -> str:
        """The sha256 of the tokenizer's files."""
        return hash_files(file for name in TOKENIZER_FILES if (file := self.path / name).is_file())


def find(cfg: CheckpointConfig, what: str) -> Checkpoint:
    """The checkpoint that a config names: a local directory, a package's folder, or a hub repository.

    A GGUF file is converted into a directory.

    Args:
        what: "teacher" or "student", for messages.

    Raises:
        ConfigError: no path is given, or the package is not installed.
        ModelError: it cannot be found, has no safetensors, is damaged, or is a GGUF file that cannot be converted.
    """
    if not cfg.path:
        raise ModelError(f"{what}.path is not set: give a local directory or a Hugging Face hub id")
    commit = None
    if cfg.path.startswith(PACKAGE):
        path = locate_package(cfg.path)
    elif (local := user_path(cfg.path)).exists():
        path = local.absolute()
    elif cfg.path.startswith((".", "/", "~")) or cfg.path.count("/") > 1:
        raise ModelError(f"the {what} directory {cfg.path} does not exist (looked for {local.absolute()})")
    else:
        path, commit = snapshot(cfg.path, cfg.revision, "model", cfg.trust_remote_code)
    if path.suffix == ".gguf" and path.is_file():
        from kdcli.models.gguf import convert

        path = convert(path)
    if not (path / "config.json").is_file():
        raise ModelError(
            f"the {what} {cfg.path} has no config.json in {path}: it is no Hugging Face model directory"
        )
    if not any(path.glob("*.safetensors")):
        raise ModelError(
            f"the {what} {cfg.path} has no safetensors in {path}. Other formats can run code when they are loaded "
            "and are not read; convert it: AutoModel.from_pretrained(…).save_pretrained(…)"
            + (
                f", or look for the hub's conversion among its pull requests: {what}.revision=refs/pr/N"
                if commit
                else ""
            )
        )
    name = f"the {what} {cfg.path}"
    require_folder(path, name)
    require_finite(path, name)
    return Checkpoint(path, cfg.path, commit, cfg.trust_remote_code)


def load_config(source: Checkpoint) -> PreTrainedConfig:
    """The model's config.

    Raises:
        ModelError: it cannot be read, or its architecture is not in transformers.
    """
    try:
        return AutoConfig.from_pretrained(source.path, trust_remote_code=source.code, local_files_only=True)
    except Exception as error:  # a damaged file may cause any exception
        raise ModelError(
            f"{source.name}: config.json cannot be used: {_first_line(error)}{_code(error)}"
        ) from None


def load_tokenizer(
    source: Checkpoint, model: PreTrainedModel | None = None, max_length: int = 0
) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, checked against the model's config and files.

    Args:
        model: restricts the tokenizer's outputs to the arguments of this model's `forward`.
        max_length: the maximum number of tokens of a row; the model must have positions for them.

    Raises:
        ModelError: there is no tokenizer, or it is that of another model.
        ConfigError: the rows may be longer than the model's maximum.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source.path, trust_remote_code=source.code, local_files_only=True
        )
        vocabulary = tokenizer.get_vocab()
        special = tokenizer.all_special_ids
    except Exception as error:  # tokenizers raises Exception itself
        raise ModelError(
            f"{source.name}: its tokenizer cannot be loaded: {_first_line(error)}{_code(error)}"
        ) from None
    config = load_config(source)
    rows = config.get_text_config().vocab_size
    if not vocabulary.keys() - set(tokenizer.all_special_tokens):  # transformers makes an empty one up
        raise ModelError(
            f"{source.name}: there are no tokenizer files (tokenizer.json …) in {source.path}; put them there"
        )
    if len(names := {token_id: token for token, token_id in vocabulary.items()}) < len(vocabulary):
        token, token_id = next((token, i) for token, i in vocabulary.items() if names[i] != token)
        raise ModelError(
            f"{source.name}: its tokenizer gives {shown(token)} and {shown(names[token_id])} the same id, {token_id}: it is damaged. Put the right "
            "tokenizer files beside the weights"
        )
    highest = max([*vocabulary.values(), *special])
    if highest >= rows:
        raise ModelError(
            f"{source.name}: its tokenizer has token ids up to {highest}, its embeddings have {rows} rows: "
            "this is another model's tokenizer. Put the right tokenizer files beside the weights"
        )
    if max_length > (most := max_input_tokens(tokenizer, config)):
        raise ConfigError(
            f"dataset.max_length = {max_length}: {source.name} can read at most {most} tokens; lower it"
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ModelError(
                f"{source.name}: its tokenizer has neither a padding nor an end-of-text token; name one in tokenizer_config.json "
                '("eos_token": …)'
            )
        # decoders often have none; padding is masked by position, not by token
        tokenizer.pad_token = names.get(config.pad_token_id, tokenizer.eos_token)
    if config.pad_token_id is not None and config.pad_token_id != tokenizer.pad_token_id:
        raise ModelError(
            f"{source.name}: its config.json pads with token {config.pad_token_id}, its tokenizer with "
            f"{tokenizer.pad_token_id}: this is another model's tokenizer. Put the right files beside the weights"
        )
    if (listed := source.path / "vocab.txt").is_file():
        try:
            lines = listed.read_text(encoding="utf-8").split("\n")
        except ValueError as error:
            raise ModelError(f"{source.name}: {listed} is not UTF-8 ({error}); save it as UTF-8") from None
        wrong = next((i for i, token in enumerate(lines) if token and vocabulary.get(token) != i), None)
        if wrong is not None:
            raise ModelError(
                f"{source.name}: vocab.txt says that token {wrong} is {shown(lines[wrong])}, tokenizer.json says "
                f"{vocabulary.get(lines[wrong])}: they are of two models. Put the right tokenizer files beside the weights"
            )
    if model is not None:
        taken = inspect_inputs(model)
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name in taken]
        if type(model).__name__.endswith("ForSequenceClassification") and model.config.pad_token_id is None:
            # a decoder looks for the token before the padding
            model.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer


def max_input_tokens(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> int:
    """The maximum number of input tokens, by the tokenizer's limit and the number of the model's positions."""
    limits = tokenizer.model_max_length, (positions_of(config) or 0) - first_position(config)
    return min((limit for limit in limits if limit > 0), default=sys.maxsize)  # XLNet says -1: none


def first_position(config: PreTrainedConfig) -> int:
    """The position id of the first token: in RoBERTa and similar architectures the padding token's id + 1."""
    inner = config.get_text_config()
    return (inner.pad_token_id or 0) + 1 if inner.model_type in SHIFTED else 0


def same_vocabulary(
    teacher: str,
    teacher_tokenizer: PreTrainedTokenizerBase,
    student: str,
    student_tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Check that both models use the same id for the same token.

    Raises:
        ModelError: they do not; a loss over their vocabularies would compare different tokens.
    """
    teacher_ids, student_ids = teacher_tokenizer.get_vocab(), student_tokenizer.get_vocab()
    used = set(teacher_ids.values())
    wrong = next((token for token, i in student_ids.items() if teacher_ids.get(token, i) != i), None)
    wrong = wrong or next(
        (token for token, i in student_ids.items() if token not in teacher_ids and i in used), None
    )
    if wrong is not None:
        raise ModelError(
            f"{student} and {teacher} have different vocabularies: {shown(wrong)} is token {student_ids[wrong]} of the student and "
            f"{teacher_ids.get(wrong, 'unknown')} of the teacher, so their probabilities cannot be compared. Use a student of "
            "the teacher's family (its tokenizer), or one that is initialised from the teacher (student=layers)"
        )


def shared_token_count(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> int | None:
    """The number of the student's tokens if the teacher has more (their common ids are those of `same_vocabulary`), else None."""
    teacher_size, student_size = (max(tokenizer.get_vocab().values()) + 1 for tokenizer in (teacher, student))
    return student_size if student_size < teacher_size else None


def inspect_inputs(model: PreTrainedModel) -> set[str]:
    """The argument names of a model's `forward`."""
    import inspect

    return set(inspect.signature(model.forward).parameters)


def load_model(source: Checkpoint, task: Task) -> tuple[PreTrainedModel, bool]:
    """The model for a task in fp32 and eval mode, and whether it needs a new head.

    Raises:
        ModelError: the weights cannot be loaded (truncated, another architecture …).
    """
    return _load(source, task)


def _load(source: Checkpoint, task: Task, **options: Any) -> tuple[PreTrainedModel, bool]:
    try:
        return task.load(source.path, trust_remote_code=source.code, local_files_only=True, **options)
    except ModelError as error:  # they were loaded and cannot be used for the task
        raise ModelError(f"{source.name}: {error.message}") from None
    except Exception as error:  # safetensors, transformers and torch raise exceptions of their own
        raise ModelError(
            f"{source.name}: the weights in {source.path} cannot be loaded: {_first_line(error)}"
        ) from error


def require_loadable(source: Checkpoint, task: Task) -> None:
    """Refuse a checkpoint that cannot be loaded for a task, without reading its weights.

    Checkpoints with their own code or with quantized weights are checked when they are loaded.

    Raises:
        ModelError: no model can be built from its config, or its weights do not match the config.
    """
    config = load_config(source)
    if source.code or getattr(config, "quantization_config", None) is not None:
        return
    try:
        Task.load(
            task,
            source.path,
            local_files_only=True,
            device_map="meta",
            ignore_mismatched_sizes=not has_head(source, task),
        )
    except ModelError as error:
        raise ModelError(f"{source.name}: {error.message}") from None
    except Exception as error:
        raise ModelError(
            f"{source.name}: the weights in {source.path} do not fit its config.json: {_first_line(error)}"
        ) from None


def load_complete(source: Checkpoint, task: Task) -> PreTrainedModel:
    """The model of a checkpoint that has all weights.

    Raises:
        ModelError: it cannot be loaded, or lacks weights, which would be random.
    """
    model, new = load_model(source, task)
    if new:
        raise ModelError(
            f"{source.name}: its weights lack a part of the model, which would be random; use a complete checkpoint "
            f"(…{task.head[0]}), or tune it on this task first (teacher.tune=true)"
        )
    return model


def load_ready(source: Checkpoint, task: Task) -> PreTrainedModel:
    """A complete checkpoint in eval mode, on the GPU if there is one.

    Raises:
        ModelError: as `load_complete`.
    """
    model = load_complete(source, task).eval()
    if torch.cuda.is_available():
        torch.nn.Module.cuda(model)
    return model


def with_new_head(source: Checkpoint, task: Task) -> PreTrainedModel:
    """The checkpoint's base model with a new, randomly initialised head for the task's labels; a language model is not changed."""
    if not task.labels:
        return load_complete(source, task)
    config = task.configure(load_config(source))
    model, _ = _load(source, task, config=config, ignore_mismatched_sizes=True)
    if has_head(source, task):  # of other labels, or of these in another order
        for name, part in model.named_children():
            if name != model.base_model_prefix:
                for layer in part.modules():
                    if isinstance(layer, torch.nn.Linear):
                        layer.reset_parameters()
    return model


def has_head(source: Checkpoint, task: Task) -> bool:
    """Whether the checkpoint has a head for this task, by the architecture in its config.json."""
    return any(name.endswith(task.head) for name in load_config(source).architectures or [])


def label_order(config: PreTrainedConfig, labels: Sequence[str], name: str) -> list[int]:
    """The indices of the data's labels in the model's labels, as `kdcli.tasks.labels.order_of` returns them.

    Raises:
        TeacherError: the model has another number of labels, or lacks one of the data's.
    """
    return order_of(model_labels(config), labels, name)


def model_labels(config: PreTrainedConfig) -> list[str]:
    """The labels of a model, in the order of its logits."""
    return [str(label) for _, label in sorted((config.id2label or {}).items())]


def parameters(model: PreTrainedModel) -> int:
    """The number of weights; shared ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def fast_bf16(precision: str = "auto") -> bool:
    """Whether to compute in bfloat16: as given, or (auto) if the processor supports it natively.

    The decision depends on the processor's capabilities and on no timing, so that a rerun decides the same.
    """
    if precision != "auto":
        return precision == "bf16"
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def stage_seed(seed: int, stage: str) -> int:
    """The seed of a stage, from the run's seed and the stage's name."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{stage}".encode()).digest()[:4], "big")


def seed_everything(seed: int) -> None:
    """Seed torch and numpy in this process."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)


def _code(error: BaseException) -> str:
    return (
        " trust_remote_code=true runs it: only if you trust its author"
        if "trust_remote_code" in str(error)
        else ""
    )


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
