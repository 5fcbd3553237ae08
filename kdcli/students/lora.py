"""Trains a student by low-rank adapters of a checkpoint, which are merged after training."""

from __future__ import annotations

from typing import Any, Literal

from transformers import PreTrainedModel

from kdcli.config.types import Fraction, Weight, Width
from kdcli.errors import ConfigError
from kdcli.models.weight_only import dequantized, is_quantized, mark_unquantized
from kdcli.students.pretrained import Pretrained


class Lora(Pretrained):
    """Loads the checkpoint of `student.path` and trains only adapters (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

    Each chosen weight W is replaced by W + (lora_alpha / r) · B A, where A has r rows and B is 0 initially. The saved model is a
    plain one, into whose weights the adapters are merged.

    With `quantization_base` W is quantized while adapters are trained (QLoRA, Dettmers et al. 2023, https://arxiv.org/abs/2305.14314), and so in an eighth
    or a quarter of the memory of fp32. They are merged into the values that W has then, so that the saved model is the one that was trained
    and validated; its weights are floats.

    Args:
        r: the rank of the adapters.
        lora_alpha: the scale of the adapters.
        lora_dropout: the dropout of their inputs.
        target_modules: the names of the layers with an adapter, or the ends of their names; null: all linear layers but the head.
        quantization_base: nf4 or int8; null: the weights are floats.
    """

    trains_adapters = True
    learning_rate = 3e-4

    def __init__(
        self,
        r: Width = 16,
        lora_alpha: Weight = 32.0,
        lora_dropout: Fraction = 0.0,
        target_modules: list[str] | None = None,
        quantization_base: Literal["nf4", "int8"] | None = None,
    ):
        try:
            import peft  # noqa: F401
        except ImportError as error:
            raise ConfigError(f"{error}: student=lora needs it; pip install 'kdcli[lora]'") from None
        self.quantization_base = quantization_base
        self.options: dict[str, Any] = {"r": r, "lora_alpha": lora_alpha, "lora_dropout": lora_dropout}
        self.options["target_modules"] = target_modules or "all-linear"

    def prepare_for_training(self, model: PreTrainedModel) -> None:
        """Insert the adapters and freeze all other weights except those of a new head."""
        from peft import LoraConfig, inject_adapter_in_model

        head = [weight for weight in _head(model) if weight.requires_grad]
        try:
            inject_adapter_in_model(LoraConfig(**self.options), model)
        except ValueError as error:
            raise ConfigError(
                f"student.target_modules = {self.options['target_modules']}: {error}; name modules of the student"
            ) from None
        for weight in head:
            weight.requires_grad_(True)

    def merge_and_unload(self, model: PreTrainedModel) -> None:
        """Add each adapter to the weight of its layer. Quantized weights become floats first."""
        from peft.tuners.lora import LoraLayer

        dtype = model.dtype
        for name, layer in list(model.named_modules()):
            plain: Any = layer
            if isinstance(layer, LoraLayer):
                adapted: Any = layer
                plain = adapted.get_base_layer()
                if is_quantized(plain):
                    plain = dequantized(plain, dtype)
                    plain.weight.data += adapted.get_delta_weight("default").to(dtype)
                else:
                    adapted.merge()
            elif is_quantized(layer) and not name.endswith(".base_layer"):  # without an adapter
                plain = dequantized(layer, dtype)
            if plain is not layer:
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, plain)
        vars(model).pop("peft_config", None)
        if self.quantization_base is not None:
            mark_unquantized(model)


def _head(model: PreTrainedModel) -> list[Any]:
    """Return the weights of a classifier's head, which is trained; a language model's head is pretrained and has none here."""
    if model.get_output_embeddings() is not None:
        return []
    return [
        weight
        for name, part in model.named_children()
        if name != model.base_model_prefix
        for weight in part.parameters()
    ]
