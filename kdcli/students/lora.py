"""A student that is a checkpoint with low-rank adapters: few weights are trained, and merged into it at the end."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from kdcli.config.types import Fraction, Weight, Width
from kdcli.errors import ConfigError
from kdcli.students.pretrained import Pretrained


class Lora(Pretrained):
    """The checkpoint of `student.path`, of which only adapters are trained (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

    W + (lora_alpha / r) · B A in place of each chosen W, with A of r rows and B = 0 at first. What is saved is a plain model:
    the adapters are merged into its weights.

    Args:
        r: rank of the adapters.
        lora_alpha: scales them.
        lora_dropout: of what they are given.
        target_modules: the names (or their ends) of the layers that get one; null: all linear layers but the head.
    """

    trains_adapters = True

    def __init__(
        self,
        r: Width = 16,
        lora_alpha: Weight = 32.0,
        lora_dropout: Fraction = 0.0,
        target_modules: list[str] | None = None,
    ):
        try:
            import peft  # noqa: F401
        except ImportError as error:
            raise ConfigError(f"{error}: student=lora needs it; pip install 'kdcli[lora]'") from None
        self.options: dict[str, Any] = {"r": r, "lora_alpha": lora_alpha, "lora_dropout": lora_dropout}
        self.options["target_modules"] = target_modules or "all-linear"

    def prepare_for_training(self, model: PreTrainedModel) -> None:
        """Put the adapters in; all other weights but a new head's stay as they are."""
        from peft import LoraConfig, inject_adapter_in_model

        head = [weight for weight in _head(model) if weight.requires_grad]
        try:
            inject_adapter_in_model(LoraConfig(**self.options), model)
        except ValueError as error:
            raise ConfigError(f"student.target_modules = {self.options['target_modules']}: {error}") from None
        for weight in head:
            weight.requires_grad_(True)

    def merge_and_unload(self, model: PreTrainedModel) -> None:
        """Add the adapters to the weights that they stand beside."""
        from peft.tuners.lora import LoraLayer

        for name, layer in list(model.named_modules()):
            if isinstance(layer, LoraLayer):
                layer.merge()
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, layer.get_base_layer())
        if hasattr(model, "peft_config"):
            del model.peft_config


def _head(model: PreTrainedModel) -> list[Any]:
    """A classifier's head, which is new and must be learnt; a language model's is part of what it knows."""
    if model.get_output_embeddings() is not None:
        return []
    return [
        weight
        for name, part in model.named_children()
        if name != model.base_model_prefix
        for weight in part.parameters()
    ]
