"""Merges adapters of PEFT (LoRA and others) into their base model, once on each machine."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

from kdcli.errors import ConfigError, KDError, ModelError, listed, shown
from kdcli.files import user_path
from kdcli.model_files import INDEX, read_json
from kdcli.models.converted import convert_pickled, converted, copy_texts, hash_model

logger = logging.getLogger(__name__)
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
CLASSIFIERS = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
}
"""The class that loads an adapter's base model with a new head, by the `task_type` of the adapter, which holds the head's weights."""
HEADS = ("score.weight", "classifier.weight", "out_proj.weight", "logits_proj.weight")
"""The endings of the names of the last matrices of classifiers."""


def is_adapter(folder: Path) -> bool:
    """Return whether a directory holds an adapter of PEFT."""
    return (folder / CONFIG).is_file()


def base_of(folder: Path, name: str) -> tuple[str, str | None]:
    """Return the path or hub id of an adapter's base model, and its revision.

    Raises:
        ModelError: adapter_config.json names none.
    """
    config = read_json(folder / CONFIG, name)
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(base, str) or not base:
        raise ModelError(
            f"{name}: {folder / CONFIG} names no base_model_name_or_path; write the path of its base model there"
        )
    if not user_path(base).exists() and (folder / base).is_dir():
        base = str(folder / base)
    return base, revision if isinstance(revision, str) else None


def unmerged(folder: Path, key: str, name: str) -> ModelError:
    """Return the error for an adapter that is not to be merged.

    Args:
        key: the config key that merges it.
    """
    base, _ = base_of(folder, name)
    return ModelError(
        f"{name} is an adapter (PEFT) of {base}; {key}=true merges it into that model, once on this machine"
    )


def require_alone(folder: Path, name: str) -> None:
    """Refuse a directory that holds a complete model and an adapter.

    Raises:
        ModelError
    """
    if weights := sorted(path.name for path in folder.glob("*.safetensors") if path.name != WEIGHTS):
        raise ModelError(
            f"{name}: {folder} holds an adapter ({CONFIG}) and a whole model ({weights[0]}), and which one is meant is not known; keep one of "
            f"them: without {CONFIG} and {WEIGHTS} it is the model"
        )
    if not (folder / WEIGHTS).is_file():
        pickled = (folder / PICKLED).is_file()
        remedy = (
            convert_pickled(folder, PICKLED, WEIGHTS)
            if pickled
            else "save it with save_pretrained(…, safe_serialization=True)"
        )
        raise ModelError(
            f"{name} is an adapter without {WEIGHTS} in {folder}{f', which has {PICKLED}' if pickled else ''}. Other formats can run code when they "
            f"are loaded and are not read; {remedy}"
        )


def merge(folder: Path, base: Path, name: str, code: bool) -> Path:
    """Return the directory in the cache of the base model with the adapter's weights added, in fp32.

    Args:
        base: the directory of the base model.
        code: whether the base model's Python files may be run.

    Raises:
        ConfigError: peft is not installed.
        ModelError: the adapter cannot be merged, or belongs to another model.
    """
    try:
        import peft
    except ImportError as error:
        raise ConfigError(
            f"{error}: {name} is an adapter, and peft merges it; pip install 'kdcli[lora]'"
        ) from None
    import transformers

    versions = transformers.__version__, peft.__version__
    key = "adapter", hash_model(folder), hash_model(base), *versions
    return converted(lambda out: _write(folder, base, out, name, code), f"merging {name}", *key)


def _write(folder: Path, base: Path, out: Path, name: str, code: bool) -> None:
    """Write the merged model, with the adapter's tokenizer if it has one."""
    from peft import get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    try:
        weights = load_file(folder / WEIGHTS)
        config = _adapter_config(folder, name)
        model = _load_base(base, config, weights, name, code)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft reads what transformers is about to rename
            adapted: Any = get_peft_model(model, config)
            report: Any = set_peft_model_state_dict(adapted, dict(weights))
        if unused := sorted(report.unexpected_keys):
            raise ModelError(
                f"{name}: the base model has no layer for {len(unused)} of its weights ({shown(unused[0])} …): it is an adapter of another model; write the path of that one into {CONFIG} (base_model_name_or_path)"
            )
        if missing := sorted(key for key in report.missing_keys if config.peft_type.lower() in key.lower()):
            raise ModelError(
                f"{name}: it lacks {len(missing)} of its weights ({shown(missing[0])} …); save it again"
            )
        merged = adapted.merge_and_unload(safe_merge=True)
        merged.save_pretrained(out)
    except KDError:
        raise
    except Exception as error:  # peft, safetensors and transformers raise exceptions of their own
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(
            f"{name} cannot be merged into {base}: {first}; merge it yourself (merge_and_unload), and give the path of the result"
        ) from error
    has_tokenizer = any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json"))
    copy_texts(folder if has_tokenizer else base, out, "config.json", CONFIG, INDEX)


def _adapter_config(folder: Path, name: str) -> Any:
    from peft import PeftConfig

    config: Any = PeftConfig.from_pretrained(str(folder))
    if config.is_prompt_learning or config.is_adaption_prompt:
        raise ModelError(
            f"{name}: {config.peft_type.value} adds tokens to each prompt and changes no weight, so it cannot be merged; use an adapter of another "
            "kind (LoRA …), or a whole model"
        )
    if getattr(config, "megatron_config", None):
        raise ModelError(
            f"{name}: {CONFIG} names megatron_config, which would import another package; leave the key out"
        )
    config.inference_mode = True
    return config


def _load_base(base: Path, config: Any, weights: dict[str, Any], name: str, code: bool) -> Any:
    """Return the base model in fp32, with as many labels and tokens as the adapter has."""
    import torch
    import transformers

    options: dict[str, Any] = {
        "dtype": torch.float32,
        "use_safetensors": True,
        "local_files_only": True,
        "trust_remote_code": code,
    }
    own = transformers.AutoConfig.from_pretrained(base, trust_remote_code=code, local_files_only=True)
    if getattr(own, "quantization_config", None) is not None:
        raise ModelError(
            f"{name}: its base model {base} is quantized, and an adapter is merged into plain weights; write the path of the model that is not "
            f"quantized into {CONFIG} (base_model_name_or_path)"
        )
    task = str(getattr(config.task_type, "value", config.task_type))
    if task in CLASSIFIERS:
        heads = [tensor for key, tensor in weights.items() if key.endswith(HEADS) and tensor.ndim == 2]
        if not heads:
            raise ModelError(
                f"{name}: it holds no head for its labels (modules_to_save); its weights: {listed(sorted(weights))}; train it with modules_to_save, or use a whole model"
            )
        if own.num_labels != len(heads[-1]):
            options["num_labels"] = len(heads[-1])
        loader = getattr(transformers, CLASSIFIERS[task])
    else:
        loader = getattr(
            transformers,
            (own.architectures or ["AutoModelForCausalLM"])[0],
            transformers.AutoModelForCausalLM,
        )
    model = loader.from_pretrained(base, ignore_mismatched_sizes=task in CLASSIFIERS, **options)
    embeddings = next(
        (tensor for key, tensor in weights.items() if key.endswith("embed_tokens.weight")), None
    )
    if embeddings is not None and len(embeddings) != model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(embeddings), mean_resizing=False)
    return model
