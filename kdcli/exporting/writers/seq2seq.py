"""Writes an encoder-decoder as ONNX graphs, or as a CTranslate2 model."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from kdcli.errors import ExportError
from kdcli.exporting.writers.tracing import trace_onnx, traceable
from kdcli.files import read_json
from kdcli.generation import start_of
from kdcli.models.vocabulary import TOKENIZER_FILES, target_vocabulary

WEIGHTS = "model.onnx.data"
SHARED = 4096
"""The least size in bytes of tensors in the file that all graphs share, and their alignment there: a page."""
NEVER = -1e9
"""The value that is added to the logit of a suppressed token."""
LOADERS = {
    "marian": ("BartLoader", {"normalize_before": False, "normalize_embedding": False}),
    "bart": ("BartLoader", {"normalize_before": False, "normalize_embedding": True}),
    "mbart": ("BartLoader", {"normalize_before": True, "normalize_embedding": True}),
    "pegasus": ("BartLoader", {"normalize_before": True, "normalize_embedding": False}),
    "m2m_100": ("M2M100Loader", {"normalize_before": True, "normalize_embedding": False}),
    "t5": ("T5Loader", {}),
    "mt5": ("T5Loader", {}),
    "umt5": ("UMT5Loader", {}),
}
"""By `model_type`: the class of CTranslate2's converters that reads the weights, and the positions of the architecture's norms.

Its complete converter cannot be used (4.8.5, transformers 5.23). For BART's family it reads keys that the configs no longer have. For
Marian it assumes that the padding token is the last of the vocabulary and that its embedding is zero, which does not hold for a
model that was trained with tied embeddings. For a tokenizer without a begin-of-text token it writes a file that cannot be loaded."""


def copy_files(student: Path, out: Path, model: PreTrainedModel) -> None:
    """Write the files that a runtime needs in addition to the weights: config, tokenizer, and the tokens that a text begins and ends with.

    The keys of an existing config.json (CTranslate2's) are added to the student's; each reader uses its own keys alone.
    """
    for name in TOKENIZER_FILES:
        if (student / name).is_file():
            shutil.copyfile(student / name, out / name)
    own: Any = model.generation_config
    marks = {"decoder_start_token_id": start_of(model), "eos_token_id": ends_of(model)}
    _write(
        out / "generation_config.json", own.to_dict() | marks | {"pad_token_id": model.config.pad_token_id}
    )
    existing = _read(out / "config.json") if (out / "config.json").is_file() else {}
    _write(out / "config.json", _read(student / "config.json") | existing)


def _read(path: Path) -> dict[str, Any]:
    return dict(read_json(path, dict, "the student is to be trained again"))


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def ends_of(model: PreTrainedModel) -> int | list[int]:
    """Return the tokens that end a text.

    Raises:
        ExportError: the checkpoint names none.
    """
    own: Any = model.generation_config
    ends: int | list[int] | None = (
        own.eos_token_id if own.eos_token_id is not None else model.config.eos_token_id
    )
    if ends is None:
        raise ExportError(
            f"{type(model).__name__}: neither its config.json nor its generation_config.json has an eos_token_id, so its "
            "texts would never end; add it"
        )
    return ends


def suppress_tokens(model: PreTrainedModel) -> int | None:
    """Return the padding token, which is never generated; None if it is one that ends a text."""
    pad: int | None = model.config.pad_token_id
    ends = ends_of(model)
    return None if pad in (ends if isinstance(ends, list) else [ends]) else pad


def write_onnx(model: PreTrainedModel, out: Path, opset: int, temporary: Path) -> None:
    """Write three graphs, named as by Optimum and transformers.js, over one file of weights (`WEIGHTS`).

    - encoder_model.onnx: input_ids, attention_mask (B, S) -> last_hidden_state (B, S, H)
    - decoder_model.onnx: the start token and the decoder prefix, input_ids (B, T), encoder_hidden_states, encoder_attention_mask ->
      logits (B, T, C), and the keys and values of each layer, present.N.decoder.key … (B, heads, T, head size) and
      present.N.encoder.key … of the encoder's hidden states
    - decoder_with_past_model.onnx: the last token, input_ids (B, 1), encoder_attention_mask and past_key_values.N.… ->
      logits (B, 1, C), present.N.decoder.…

    -1e9 is added to the logit of the padding token, so that it is never the most likely one. Matrices
    that are used transposed are not transposed here, so that the graphs share their bytes; the runtime transposes them when it loads them.

    Args:
        temporary: an empty directory, for temporary files.
    """
    import onnx

    offsets: dict[bytes, int] = {}
    with (out / WEIGHTS).open("wb") as weights, torch.no_grad(), traceable(model):
        for name, (graph, inputs, outputs) in _graphs(model):
            folder = temporary / name
            folder.mkdir()
            traced = folder / name
            axes = {key: outputs.get(key) or _axes(key) for key in (*inputs, *outputs)}
            trace_onnx(graph, inputs, outputs, axes, traced, opset)
            full = onnx.load(traced)
            _share(full, weights, offsets)
            onnx.save_model(full, out / name)
            shutil.rmtree(folder)


def _graphs(
    model: PreTrainedModel,
) -> Iterator[tuple[str, tuple[torch.nn.Module, dict[str, Tensor], dict[str, dict[int, str]]]]]:
    """Yield the name of each graph, its module, a sample of its inputs, and its outputs with their dynamic axes."""
    ids, mask = torch.ones(2, 5, dtype=torch.long), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    encoder, first, later = _Encoder(model), _Decoder(model), _Decoder(model)
    inputs = {"input_ids": ids, "attention_mask": mask}
    yield "encoder_model.onnx", (encoder, inputs, {"last_hidden_state": _axes("input_ids")})
    inputs = {
        "encoder_attention_mask": mask,
        "input_ids": torch.ones(2, 3, dtype=torch.long),
        "encoder_hidden_states": encoder(ids, mask),
    }
    _, *cache = first(*inputs.values())
    names = [
        f"{layer}.{side}.{what}"
        for layer in range(len(cache) // 4)
        for side in ("decoder", "encoder")
        for what in ("key", "value")
    ]
    outputs = {f"present.{name}": _axes(f"present.{name}") for name in names}
    yield "decoder_model.onnx", (first, inputs, {"logits": _axes("logits")} | outputs)
    inputs = {"encoder_attention_mask": mask, "input_ids": torch.ones(2, 1, dtype=torch.long)}
    inputs |= {f"past_key_values.{name}": part for name, part in zip(names, cache, strict=True)}
    own = {name: axes for name, axes in outputs.items() if "decoder" in name}
    yield "decoder_with_past_model.onnx", (later, inputs, {"logits": _axes("logits")} | own)


def _axes(name: str) -> dict[int, str]:
    if name.startswith(("present.", "past_key_values.")):
        side = "encoder_sequence" if ".encoder." in name else "past" if name.startswith("past") else "length"
        return {0: "batch", 2: side}
    return {0: "batch", 1: "encoder_sequence" if name.startswith("encoder_") else "sequence"}


class _Encoder(torch.nn.Module):
    """The computation of the encoder's graph."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.encoder = model.get_encoder()

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Map inputs, (B, S) each, to hidden states (B, S, H)."""
        return self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state


class _Decoder(torch.nn.Module):
    """The computation of the decoder's graphs: for the first tokens, or with a past for one more."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        shift = torch.zeros(model.get_output_embeddings().weight.shape[0])
        if (pad := suppress_tokens(model)) is not None:
            shift[pad] = NEVER
        self.register_buffer("shift", shift)

    def forward(self, mask: Tensor, ids: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        """Mask of the source (B, S), target ids (B, T), and the encoder's hidden states, (B, S, H), or four tensors per layer."""
        past = len(rest) > 1
        own, cross = DynamicCache(), DynamicCache()
        for layer in range(len(rest) // 4):
            at = 4 * layer
            own.update(rest[at], rest[at + 1], layer)
            cross.update(rest[at + 2], rest[at + 3], layer)
        cache = EncoderDecoderCache(own, cross)
        # with a past only the length matters
        hidden = mask[:, :, None].float().expand(-1, -1, self.model.config.hidden_size) if past else rest[0]
        logits = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            attention_mask=mask,
            decoder_input_ids=ids,
            past_key_values=cache,
            use_cache=True,
        ).logits
        outputs = [logits + self.shift]
        layers: Any = zip(own.layers, cross.layers, strict=True)
        for decoder, encoder in layers:
            outputs += [decoder.keys, decoder.values] + ([] if past else [encoder.keys, encoder.values])
        return tuple(outputs)


def _share(full: Any, weights: Any, offsets: dict[bytes, int]) -> None:
    """Move the large tensors of a graph to a file, equal contents once.

    Args:
        offsets: the offsets of contents in the file, by their hash.
    """
    from onnx import TensorProto, numpy_helper

    for tensor in full.graph.initializer:
        content = numpy_helper.to_array(tensor).tobytes()
        if len(content) < SHARED:
            continue
        key = hashlib.sha256(content).digest()
        if key not in offsets:
            weights.write(bytes(-weights.tell() % SHARED))
            offsets[key] = weights.tell()
            weights.write(content)
        for field in ("raw_data", "float_data", "int32_data", "int64_data", "external_data"):
            tensor.ClearField(field)
        tensor.data_location = TensorProto.EXTERNAL
        location = {"location": WEIGHTS, "offset": offsets[key], "length": len(content)}
        for name, value in location.items():
            tensor.external_data.add(key=name, value=str(value))


def write_ctranslate2(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out: Path, quantization: str
) -> None:
    """Write a CTranslate2 model: model.bin, the vocabulary, and a config.json.

    The vocabulary has all tokens at their own ids, and the decoder begins with the model's own start token. The padding
    token is suppressed by its bias.

    Args:
        out: a directory that does not exist.
        quantization: int8: all matrices, with embeddings, with a scale per row; float32: none.

    Raises:
        ExportError: CTranslate2 does not support the architecture, or one of its settings.
    """
    from ctranslate2.converters import transformers as converters
    from ctranslate2.specs.model_spec import OPTIONAL

    kind, name = model.config.model_type, type(model).__name__
    if kind not in LOADERS:
        raise ExportError(
            f"CTranslate2 does not convert {name} (it does {', '.join(sorted(LOADERS))}); leave it out with "
            "hardware.precisions=[fp32]"
        )
    loader, norms = LOADERS[kind]
    ends = ends_of(model)
    if isinstance(ends, list) and len(ends) > 1:
        raise ExportError(
            f"{name} ends a text with any of the tokens {ends}; a CTranslate2 model has one end; leave it out (hardware.precisions=[fp32])"
        )
    own = model.config
    twin = copy.deepcopy(model)  # its weights are rounded in place
    try:
        for key, value in norms.items():
            setattr(twin.config, key, value)
        spec = getattr(converters, loader)().get_model_spec(twin)
        if (
            kind == "m2m_100"
        ):  # its converter assumes that the first position is 2, which holds if the padding token is 1
            for side, part in ((spec.encoder, twin.get_encoder()), (spec.decoder, twin.get_decoder())):
                side.position_encodings.encodings = part.embed_positions.weights[own.pad_token_id + 1 :]
        rows = len(model.get_output_embeddings().weight)
        tokens = tokens_by_id(target_vocabulary(tokenizer), rows)
        spec.register_source_vocabulary(tokens_by_id(tokenizer.get_vocab(), own.vocab_size))
        spec.register_target_vocabulary(tokens)
        end = tokens[ends[0] if isinstance(ends, list) else ends]
        spec.config.eos_token = end
        spec.config.bos_token = tokenizer.bos_token or end
        spec.config.unk_token = tokenizer.unk_token or end
        spec.config.decoder_start_token = tokens[start_of(model)]
        if (epsilon := getattr(own, "layer_norm_epsilon", None)) is not None:
            spec.config.layer_norm_epsilon = epsilon
        if (scaled := getattr(own, "scale_decoder_outputs", None)) is not None:
            spec.decoder.scale_outputs = own.d_model**-0.5 if scaled else OPTIONAL
        if (pad := suppress_tokens(model)) is not None:
            bias = getattr(twin, "final_logits_bias", torch.zeros(1, rows))[0]
            bias[pad] = NEVER
            spec.decoder.projection.bias = bias
        spec.validate()
        spec.optimize(quantization=quantization)
        out.mkdir()
        spec.save(str(out))
    except (KeyError, ValueError, AttributeError, NotImplementedError, RuntimeError) as error:
        raise ExportError(
            f"{name} cannot be converted to CTranslate2: {error}; leave it out (hardware.precisions=[fp32])"
        ) from error


def tokens_by_id(vocabulary: Mapping[str, int], size: int) -> list[str]:
    """Return the tokens by id; ids without a token get a name of their own."""
    tokens = [f"<unused {index}>" for index in range(size)]
    for token, index in vocabulary.items():
        if index < size:
            tokens[index] = token
    return tokens
