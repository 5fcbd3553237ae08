"""Resolves the paths of checkpoints, hashes them, loads them safely, and checks them against their tokenizer."""

from __future__ import annotations

import functools
import hashlib
import logging
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from kdcli.config.types import CheckpointConfig, Dtype, Quantization
from kdcli.device import to_default_device
from kdcli.errors import ConfigError, ModelError, TeacherError, listed, shown
from kdcli.files import hash_files, user_path
from kdcli.generation import positions_of
from kdcli.hub import PACKAGE, locate_package, snapshot
from kdcli.model_files import read_json, require_body, require_finite, require_folder, weight_files
from kdcli.models.adapters import CONFIG, base_of, is_adapter, merge, require_alone, unmerged
from kdcli.models.converted import named_labels, plain_names, text_model
from kdcli.models.device_map import load_divided
from kdcli.models.dtypes import TORCH, is_fast
from kdcli.models.heads import keep_untied, reinitialize_head
from kdcli.models.layouts import (
    missing_model_type,
    no_config,
    no_safetensors,
    require_weight_names,
    warn_of_unread_heads,
)
from kdcli.models.vocabulary import (
    TOKENIZER_FILES,
    count_ids,
    require_vocabulary,
    set_padding,
    share_padding,
    target_vocabulary,
)
from kdcli.models.weight_only import quantization_options
from kdcli.tasks.base import Task
from kdcli.tasks.labels import order_of

logger = logging.getLogger(__name__)
UNREADABLE = {
    "multi_label_classification": "predicts each label by itself (problem_type is multi_label_classification in its config.json)",
    "regression": "predicts a number, not a label (regression)",
}
"""Kinds of heads whose outputs are not the logits of one softmax."""
MERGE_KEYS = {
    "model": "merge_adapter",
    "student.init_from": "student.merge_adapter",
    "dataset.augment": "teacher.merge_adapter",
}
"""The key that merges an adapter, where it is not `merge_adapter` of the section that names the checkpoint."""
disable_progress_bar()  # the run shows its own progress
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
        dtype: the precision in which its weights are loaded.
        quantization: in which the weights of its linear layers are held; None: in `dtype`.
        divided: whether its weights are divided among GPUs, memory and disk.
    """

    path: Path
    name: str
    commit: str | None = None
    code: bool = False
    dtype: Dtype = "fp32"
    quantization: Quantization | None = None
    divided: bool = False

    @property
    def weights_hash(self) -> str:
        """The sha256 of the weights and the model's config."""
        return hash_files([*weight_files(self.path), self.path / "config.json"])

    @property
    def tokenizer_hash(self) -> str:
        """The sha256 of the tokenizer's files."""
        return hash_files(file for name in TOKENIZER_FILES if (file := self.path / name).is_file())


def find(cfg: CheckpointConfig, what: str) -> Checkpoint:
    """Find the checkpoint that a config names: a local directory, a package's folder, or a hub repository.

    A GGUF file is converted into a directory, an adapter is merged into its base model, weights with foreign prefixes are renamed, and of a
    multimodal model the text decoder is taken.

    Args:
        what: "teacher" or "student", for messages.

    Raises:
        ConfigError: no path is given, or the package is not installed.
        ModelError: the checkpoint cannot be found, has no safetensors, is damaged, or is a GGUF file that cannot be converted.
    """
    folder, commit = _find(cfg, what)
    folder = text_model(folder, f"the {what} {cfg.path}")
    return Checkpoint(folder, cfg.path or "", commit, cfg.trust_remote_code)


def find_tokenizer(cfg: CheckpointConfig, what: str) -> Checkpoint:
    """A checkpoint whose tokenizer and config.json are used, and which need not have weights. Those of a hub repository are not fetched.

    Args:
        what: the config key of the path, for messages.

    Raises:
        ConfigError, ModelError: as `find`.
    """
    path, commit = _locate(cfg, what, weights=False)
    if path.suffix == ".gguf" and path.is_file():
        return find(cfg, what)
    if not (path / "config.json").is_file():
        raise ModelError(
            f"{what} = {cfg.path} has no config.json; give the directory, or the hub id, of the model that the server serves"
        )
    return Checkpoint(path, cfg.path or "", commit, cfg.trust_remote_code)


def _find(cfg: CheckpointConfig, what: str) -> tuple[Path, str | None]:
    """Return a directory that transformers loads, checked, and the hub commit."""
    path, commit = _locate(cfg, what)
    name = f"the {what} {cfg.path}"
    if path.suffix == ".gguf" and path.is_file():
        from kdcli.models.gguf import convert

        path = convert(path)
    if is_adapter(path):
        require_alone(path, name)
        if not cfg.merge_adapter:
            raise unmerged(path, MERGE_KEYS.get(what, f"{what}.merge_adapter"), name)
        path = merge(path, _base_model(path, cfg, what), name, cfg.trust_remote_code)
    if not (path / "config.json").is_file():
        raise no_config(path, what, name)
    if not any(path.glob("*.safetensors")):
        raise no_safetensors(path, what, name, on_hub=bool(commit))
    require_folder(path, name)
    require_weight_names(path, name)
    require_finite(path, name)
    warn_of_unread_heads(path, name)
    return named_labels(plain_names(path, name), name), commit


def _locate(cfg: CheckpointConfig, what: str, weights: bool = True) -> tuple[Path, str | None]:
    """Return the directory or file of a checkpoint, and the hub commit."""
    if not cfg.path:
        raise ModelError(f"{what}.path is not set: give a local directory or a Hugging Face hub id")
    if cfg.path.startswith(PACKAGE):
        return locate_package(cfg.path), None
    if (local := user_path(cfg.path)).exists():
        return local.absolute(), None
    if cfg.path.startswith((".", "/", "~")) or cfg.path.count("/") > 1:
        raise ModelError(
            f"the {what} directory {cfg.path} does not exist (looked for {local.absolute()}); correct the path, or give the id of a hub repository"
        )
    remedy = "give the path of a run, an export or a model" if what == "model" else None
    return snapshot(cfg.path, cfg.revision, "model", cfg.trust_remote_code, weights, remedy)


def _base_model(folder: Path, cfg: CheckpointConfig, what: str) -> Path:
    """Return the directory of an adapter's base model."""
    base, revision = base_of(folder, f"the {what} {cfg.path}")
    own = cfg.model_copy(update={"path": base, "revision": revision, "merge_adapter": False})
    try:
        return _find(own, f"{what}'s base model")[0]
    except ModelError as error:
        raise ModelError(
            f"{error.message}. The {what} {cfg.path} is an adapter of it; write the path of a copy into {folder / CONFIG} (base_model_name_or_path)"
        ) from None


def load_config(source: Checkpoint) -> PreTrainedConfig:
    """Load the model's config.

    Raises:
        ModelError: it cannot be read, or its architecture is not in transformers.
    """
    try:
        config = AutoConfig.from_pretrained(source.path, trust_remote_code=source.code, local_files_only=True)
        text_config = config.get_text_config()
    except Exception as error:  # a damaged file may cause any exception
        raise ModelError(
            f"{source.name}: config.json cannot be used: {_first_line(error).rstrip('.')}{_code(error)}{missing_model_type(source.path)}"
        ) from None
    if not isinstance(text_config, PreTrainedConfig):
        raise ModelError(
            f"{source.name}: config.json cannot be used: a {config.model_type} has no config within its config ({shown(text_config)}); remove it"
        )
    if config.is_encoder_decoder and not _is_encoder_decoder(type(config)):
        raise ModelError(
            f"{source.name}: config.json cannot be used: is_encoder_decoder is true, and a {config.model_type} has no encoder of its own; remove the key"
        )
    return config


def _is_encoder_decoder(kind: type[PreTrainedConfig]) -> bool:
    """Return whether models of an architecture may have an encoder and a decoder."""
    try:
        return bool(kind().is_encoder_decoder)
    except Exception:  # a config that consists of others needs them
        return True


def load_tokenizer(
    source: Checkpoint, model: PreTrainedModel | None = None, max_length: int = 0
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint, checked against the model's config and files.

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
        tokenizer.get_vocab()
        [int(token_id) for token_id in tokenizer.all_special_ids]
    except Exception as error:  # tokenizers raises Exception itself
        files = [name for name in TOKENIZER_FILES if (source.path / name).is_file()]
        raise ModelError(
            f"{source.name}: its tokenizer ({listed(files) or 'no file'}) cannot be loaded: {_first_line(error)}{_code(error)}"
            + ("" if _code(error) else "; put the model's own tokenizer.json beside the weights")
        ) from None
    legacy = source.path / "chat_template.json"  # processors of transformers 4 wrote it
    if not tokenizer.chat_template and legacy.is_file():
        template = read_json(legacy, source.name).get("chat_template")
        tokenizer.chat_template = template if isinstance(template, str) else None
    config = load_config(source)
    require_vocabulary(tokenizer, config, source.path, source.name)
    if max_length > (most := max_input_tokens(tokenizer, config)):
        raise ConfigError(
            f"dataset.max_length = {max_length}: {source.name} can read at most {most} tokens; lower it"
        )
    set_padding(tokenizer, config, source.name)
    if model is not None:
        taken = inspect_inputs(model)
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name in taken]
        share_padding(tokenizer, model)
    return tokenizer


def has_fast_tokenizer(source: Checkpoint) -> bool:
    """Return whether the tokenizer is one of the package tokenizers, which is saved as tokenizer.json."""
    return (source.path / "tokenizer.json").is_file() or bool(load_tokenizer(source).is_fast)


def max_input_tokens(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> int:
    """Return the maximum number of input tokens, by the tokenizer's limit and the number of the model's positions."""
    limits = tokenizer.model_max_length, (positions_of(config) or 0) - first_position(config)
    return min((limit for limit in limits if limit > 0), default=sys.maxsize)  # XLNet says -1: none


def first_position(config: PreTrainedConfig) -> int:
    """Return the position id of the first token: in RoBERTa and similar architectures the padding token's id + 1."""
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
    teacher_ids, student_ids = map(target_vocabulary, (teacher_tokenizer, student_tokenizer))
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
    """Return the number of the student's tokens if the teacher has more (their common ids are those of `same_vocabulary`), else None."""
    teacher_size, student_size = (count_ids(target_vocabulary(tokenizer)) for tokenizer in (teacher, student))
    return student_size if student_size < teacher_size else None


def inspect_inputs(model: PreTrainedModel) -> set[str]:
    """Return the argument names of a model's `forward`."""
    import inspect

    return set(inspect.signature(model.forward).parameters)


def load_model(source: Checkpoint, task: Task) -> tuple[PreTrainedModel, bool]:
    """Load the model for a task in eval mode, with weights of the checkpoint's `dtype`; also return whether it needs a new head.

    Raises:
        ModelError: the weights cannot be loaded (truncated, another architecture …).
    """
    return _load(source, task)


def _load(source: Checkpoint, task: Task, **options: Any) -> tuple[PreTrainedModel, bool]:
    own: dict[str, Any] = {"trust_remote_code": source.code, "local_files_only": True}
    own["dtype"] = TORCH[source.dtype]
    if source.quantization is not None:
        config = options.get("config") or load_config(source)
        own |= quantization_options(source.quantization, task.auto, config)
    options = own | options
    try:
        model, new = task.load(source.path, **options)
        keep_untied(model, source.name)
        return model, new
    except ModelError as error:  # the weights were loaded, and cannot be used for the task
        raise ModelError(f"{source.name}: {error.message}") from None
    except Exception as error:  # safetensors, transformers and torch raise exceptions of their own
        raise ModelError(
            f"{source.name}: the weights in {source.path} cannot be loaded: {_first_line(error)}"
        ) from error


def require_loadable(source: Checkpoint, task: Task, complete: bool = False) -> None:
    """Refuse a checkpoint that cannot be loaded for a task, without reading its weights.

    Checkpoints with their own code are checked when they are loaded, and of quantized weights only whether their kind can be read here.

    Args:
        complete: its head must be in the weights as well.

    Raises:
        ModelError: no model can be built from its config, its weights do not match the config, or they are quantized and a package is missing.
    """
    config = load_config(source)
    if source.code:
        return
    if (quantization := getattr(config, "quantization_config", None)) is not None:
        _require_quantizer(quantization, source.name)
        return
    try:
        model, report = task.from_pretrained(
            source.path, local_files_only=True, device_map="meta", ignore_mismatched_sizes=True
        )
        left_over = require_body(model, report)
        if has_head(source, task) and (other := sorted(report["mismatched_keys"])):
            key, *shapes = other[0]
            raise ModelError(
                f"the shape of {shown(key)} in the weights is another than config.json names ({', '.join(str(tuple(each)) for each in shapes)}); put the "
                "model's own config.json beside the weights"
            )
    except ModelError as error:
        raise ModelError(f"{source.name}: {error.message}") from None
    except Exception as error:
        raise ModelError(
            f"{source.name}: the weights in {source.path} do not fit its config.json: {_first_line(error)}"
        ) from None
    if complete and (missing := report["missing_keys"]):
        raise _incomplete(source, task, missing, _is_output_layer(model, missing))
    if left_over:
        logger.info(
            "%s: %d tensors of its weights are not used by %s (%s%s)", source.name, len(left_over), type(model).__name__, left_over[0],
            " …" if len(left_over) > 1 else "",
        )  # fmt: skip


def _require_quantizer(config: Any, name: str) -> None:
    """Refuse quantized weights that transformers cannot read on this machine.

    Args:
        config: `quantization_config` of the model's config.

    Raises:
        ModelError
    """
    from transformers.quantizers.auto import AutoHfQuantizer

    try:
        if AutoHfQuantizer.supports_quant_method(config):
            quantizer = AutoHfQuantizer.from_config(config, pre_quantized=True)
            quantizer.validate_environment(device_map=None, weights_only=True)
    except Exception as error:  # each kind raises exceptions of its own
        raise ModelError(
            f"{name}: its weights are quantized (quantization_config in its config.json) and cannot be read here: {_first_line(error)}; use the "
            "checkpoint from which they were quantized, or install what is missing"
        ) from None


def skeleton(source: Checkpoint, task: Task) -> PreTrainedModel:
    """Return the model without its weights, on the device "meta", in its dtype.

    Raises:
        ModelError: it cannot be built.
    """
    options: dict[str, Any] = {
        "device_map": "meta",
        "dtype": TORCH[source.dtype],
        "ignore_mismatched_sizes": True,
    }
    own = {"trust_remote_code": source.code, "local_files_only": True}
    try:
        return task.from_pretrained(source.path, **options, **own)[0]
    except Exception as error:
        raise ModelError(f"{source.name}: it cannot be built from its config: {_first_line(error)}") from None


def load_complete(source: Checkpoint, task: Task, **options: Any) -> PreTrainedModel:
    """Load a checkpoint that has all weights.

    Args:
        options: further arguments of transformers.

    Raises:
        ModelError: it cannot be loaded, or lacks weights, which would be random.
    """
    model, new = _load(source, task, **options)
    if new:
        raise _incomplete(source, task)
    return model


def require_complete(source: Checkpoint, task: Task) -> None:
    """Refuse a checkpoint that lacks weights of the model, without reading the others.

    Raises:
        ModelError
    """
    try:
        model, report = task.from_pretrained(source.path, local_files_only=True, device_map="meta")
        require_body(model, report)
    except ModelError as error:
        raise ModelError(f"{source.name}: {error.message}") from None
    except Exception as error:  # as when it is loaded
        raise ModelError(
            f"{source.name}: the weights in {source.path} cannot be loaded: {_first_line(error)}"
        ) from error
    if missing := report["missing_keys"]:
        raise _incomplete(source, task, missing, _is_output_layer(model, missing))


def _incomplete(
    source: Checkpoint, task: Task, names: Collection[str] = (), shared: bool = False
) -> ModelError:
    """Return the refusal of a checkpoint that lacks weights.

    Args:
        names: the missing weights.
        shared: only the output layer is missing, which many models share with their embeddings.
    """
    lacks = f" ({shown(min(names))})" if names else ""
    tie = (
        f'; set "tie_word_embeddings": true in {source.path / "config.json"} if its output layer is that of its embeddings'
        if shared
        else ""
    )
    tune = "" if task.vocabulary else ", or tune it on this task first (teacher.tune=true)"
    return ModelError(
        f"{source.name}: its weights lack a part of the model{lacks}, which would be random{tie}; use a complete checkpoint "
        f"(…{task.head[0]}){tune}"
    )


def _is_output_layer(model: PreTrainedModel, names: Collection[str]) -> bool:
    """Return whether these weights are the matrix of the output layer, and it has the shape of the embeddings."""
    head, words = model.get_output_embeddings(), model.get_input_embeddings()
    own = {name for name, weight in model.named_parameters() if head is not None and weight is head.weight}
    return bool(own) and own == {*names} and head.weight.shape == words.weight.shape


def load_ready(source: Checkpoint, task: Task) -> PreTrainedModel:
    """Load a complete checkpoint in eval mode, on the GPU if there is one, or divided.

    Raises:
        ModelError: as `load_complete`, and as `divide`.
    """
    if source.divided:
        load = functools.partial(load_complete, source, task)
        return load_divided(load, skeleton(source, task), source.name).eval()
    model = load_complete(source, task).eval()
    to_default_device(model)
    return model


def with_new_head(source: Checkpoint, task: Task) -> PreTrainedModel:
    """Return the checkpoint's base model with a new, randomly initialised head for the task's labels; a language model is not changed."""
    if not task.labels:
        return load_complete(source, task)
    config = task.configure(load_config(source))
    model, _ = _load(source, task, config=config, ignore_mismatched_sizes=True)
    own = has_head(source, task)  # of other labels, or of these in another order
    replaced = reinitialize_head(model, source.path, every=own)
    if replaced and not own:  # of another task, and of the same name
        logger.info("%s: its head is that of another task and is not used (%s)", source.name, replaced[0])
    return model


def has_head(source: Checkpoint, task: Task) -> bool:
    """Return whether the checkpoint has a head for this task, by the architecture in its config.json."""
    return any(name.endswith(task.head) for name in load_config(source).architectures or [])


def label_order(config: PreTrainedConfig, labels: Sequence[str], name: str) -> list[int]:
    """Return the indices of the data's labels in the model's labels, as `kdcli.tasks.labels.order_of` returns them.

    Raises:
        TeacherError: the model has another number of labels, or lacks one of the data's, or its outputs are no logits of one softmax.
    """
    own = model_labels(config)
    kind = config.problem_type or ("regression" if len(own) == 1 else None)
    if kind in UNREADABLE:
        raise TeacherError(
            f"{name} {UNREADABLE[kind]}, and this task has one of {len(labels)} labels for each text; use a model of this task, or let "
            "distill tune it anew (teacher.tune=true)"
        )
    return order_of(own, labels, name)


def model_labels(config: PreTrainedConfig) -> list[str]:
    """Return the labels of a model, in the order of its logits."""
    return [str(label) for _, label in sorted((config.id2label or {}).items())]


def parameters(model: PreTrainedModel) -> int:
    """Return the number of weights; shared ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def fast_bf16(precision: str = "auto") -> bool:
    """Return whether to compute in bfloat16: as given, or (auto) if the processor supports it natively.

    The decision depends on the processor's capabilities and on no timing, so that a rerun decides the same.
    """
    if precision != "auto":
        return precision == "bf16"
    return is_fast("bf16")


def stage_seed(seed: int, stage: str) -> int:
    """Return the seed of a stage, from the run's seed and the stage's name."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{stage}".encode()).digest()[:4], "big")


def trainable(source: Checkpoint) -> Checkpoint:
    """Return the same checkpoint with weights in fp32, in which models are fine-tuned and students are cut."""
    return replace(source, dtype="fp32", quantization=None, divided=False)


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
    if isinstance(error, KeyError):  # its text is the key alone
        return f"the key {error} is missing"
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
