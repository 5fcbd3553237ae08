"""What a processor runs of an encoder and a decoder that write text: ONNX graphs, or a CTranslate2 model."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from kdcli.errors import ExportError
from kdcli.files import read_json
from kdcli.generation import start_of
from kdcli.models.checkpoint import TOKENIZER_FILES

WEIGHTS = "model.onnx.data"
SHARED = 4096
"""Bytes from which a tensor lies in the file that all graphs share, where it begins at a multiple of so many: a page."""
NEVER = -1e9
"""What the logit of a token gets that is not to be written."""
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
"""By `model_type`: what reads the weights among CTranslate2's converters, and where the architecture has its norms.

Its own converter cannot be called as a whole (4.8.5, transformers 5.23): of BART's family it wants keys that the configs no
longer have; Marian's token that pads it takes for the last of the vocabulary, and its embedding for zero, which of a model
that was trained with tied embeddings it is not; and a tokenizer without a beginning of text makes a file that cannot be
loaded."""


def beside(student: Path, out: Path, model: PreTrainedModel) -> None:
    """Write what a runtime needs besides the weights: config, tokenizer, and which tokens a text begins and ends with.

    A config.json that is there (CTranslate2's) is kept in the student's: each reader looks for its own keys alone.
    """
    for name in TOKENIZER_FILES:
        if (student / name).is_file():
            shutil.copyfile(student / name, out / name)
    own: Any = model.generation_config
    marks = {"decoder_start_token_id": start_of(model), "eos_token_id": ends_of(model)}
    _write(
        out / "generation_config.json", own.to_dict() | marks | {"pad_token_id": model.config.pad_token_id}
    )
    there = _read(out / "config.json") if (out / "config.json").is_file() else {}
    _write(out / "config.json", _read(student / "config.json") | there)


def _read(path: Path) -> dict[str, Any]:
    return dict(read_json(path, dict, "the student is to be trained again"))


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def ends_of(model: PreTrainedModel) -> int | list[int]:
    """The tokens that end a text.

    Raises:
        ExportError: the checkpoint does not say.
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
    """The token that pads, which is never written, unless it is one that ends a text."""
    pad: int | None = model.config.pad_token_id
    ends = ends_of(model)
    return None if pad in (ends if isinstance(ends, list) else [ends]) else pad


def write_onnx(model: PreTrainedModel, out: Path, opset: int, temporary: Path) -> None:
    """Three graphs, named as Optimum and transformers.js have them, over one file of weights (`WEIGHTS`).

    - encoder_model.onnx: input_ids, attention_mask (B, S) -> last_hidden_state (B, S, H)
    - decoder_model.onnx: the start token and those given, input_ids (B, T), encoder_hidden_states, encoder_attention_mask ->
      logits (B, T, C), and the keys and values of each layer, present.N.decoder.key … (B, heads, T, head size) and
      present.N.encoder.key … of what the encoder said
    - decoder_with_past_model.onnx: the last token, input_ids (B, 1), encoder_attention_mask and past_key_values.N.… ->
      logits (B, 1, C), present.N.decoder.…

    The token that pads has a logit of -1e9 more than torch gives it: the likeliest token is one that may be written. Matrices
    that are used transposed stay as they are, so that graphs find the same bytes; the runtime turns them as it loads them.

    Args:
        temporary: an empty directory, for graphs on their way.
    """
    import onnx

    attention = model.config._attn_implementation
    model.set_attn_implementation("eager")  # as of classifiers: no NaN checks in each layer
    known: dict[bytes, int] = {}
    try:
        with (out / WEIGHTS).open("wb") as weights, torch.no_grad():
            for name, (graph, inputs, outputs) in _graphs(model):
                folder = temporary / name
                folder.mkdir()
                traced = folder / name
                torch.onnx.export(
                    graph.eval(),
                    tuple(inputs.values()),
                    str(traced),
                    dynamo=False,
                    opset_version=opset,
                    do_constant_folding=False,
                    input_names=list(inputs),
                    output_names=list(outputs),
                    dynamic_axes={key: outputs.get(key) or _axes(key) for key in (*inputs, *outputs)},
                )
                whole = onnx.load(traced)
                _share(whole, weights, known)
                onnx.save_model(whole, out / name)
                shutil.rmtree(folder)
    finally:
        model.set_attn_implementation(attention)


def _graphs(
    model: PreTrainedModel,
) -> Iterator[tuple[str, tuple[torch.nn.Module, dict[str, Tensor], dict[str, dict[int, str]]]]]:
    """Each graph's name, what it computes, a sample of its inputs, and its outputs with their free axes."""
    ids, mask = torch.ones(2, 5, dtype=torch.long), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    encoder, first, later = _Encoder(model), _Decoder(model), _Decoder(model)
    read = {"input_ids": ids, "attention_mask": mask}
    yield "encoder_model.onnx", (encoder, read, {"last_hidden_state": _axes("input_ids")})
    seen = {
        "encoder_attention_mask": mask,
        "input_ids": torch.ones(2, 3, dtype=torch.long),
        "encoder_hidden_states": encoder(ids, mask),
    }
    _, *cache = first(*seen.values())
    names = [
        f"{layer}.{side}.{what}"
        for layer in range(len(cache) // 4)
        for side in ("decoder", "encoder")
        for what in ("key", "value")
    ]
    written = {f"present.{name}": _axes(f"present.{name}") for name in names}
    yield "decoder_model.onnx", (first, seen, {"logits": _axes("logits")} | written)
    seen = {"encoder_attention_mask": mask, "input_ids": torch.ones(2, 1, dtype=torch.long)}
    seen |= {f"past_key_values.{name}": part for name, part in zip(names, cache, strict=True)}
    own = {name: axes for name, axes in written.items() if "decoder" in name}
    yield "decoder_with_past_model.onnx", (later, seen, {"logits": _axes("logits")} | own)


def _axes(name: str) -> dict[int, str]:
    if name.startswith(("present.", "past_key_values.")):
        side = "encoder_sequence" if ".encoder." in name else "past" if name.startswith("past") else "length"
        return {0: "batch", 2: side}
    return {0: "batch", 1: "encoder_sequence" if name.startswith("encoder_") else "sequence"}


class _Encoder(torch.nn.Module):
    """What the encoder's graph computes."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.encoder = model.get_encoder()

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(B, S) each -> (B, S, H)."""
        return self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state


class _Decoder(torch.nn.Module):
    """What the decoder's graphs compute: of the first tokens, or with past of one more."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        shift = torch.zeros(model.get_output_embeddings().weight.shape[0])
        if (pad := suppress_tokens(model)) is not None:
            shift[pad] = NEVER
        self.register_buffer("shift", shift)

    def forward(self, mask: Tensor, ids: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        """Mask of the source (B, S), target ids (B, T), and what the encoder said, (B, S, H), or four tensors a layer."""
        past = len(rest) > 1
        own, cross = DynamicCache(), DynamicCache()
        for layer in range(len(rest) // 4):
            at = 4 * layer
            own.update(rest[at], rest[at + 1], layer)
            cross.update(rest[at + 2], rest[at + 3], layer)
        cache = EncoderDecoderCache(own, cross)
        # with past only the length is looked at
        hidden = mask[:, :, None].float().expand(-1, -1, self.model.config.hidden_size) if past else rest[0]
        logits = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            attention_mask=mask,
            decoder_input_ids=ids,
            past_key_values=cache,
            use_cache=True,
        ).logits
        found = [logits + self.shift]
        layers: Any = zip(own.layers, cross.layers, strict=True)
        for one, other in layers:
            found += [one.keys, one.values] + ([] if past else [other.keys, other.values])
        return tuple(found)


def _share(whole: Any, weights: Any, known: dict[bytes, int]) -> None:
    """Move a graph's large tensors to a file, each content once.

    Args:
        known: where contents lie, by their hash.
    """
    from onnx import TensorProto, numpy_helper

    for tensor in whole.graph.initializer:
        content = numpy_helper.to_array(tensor).tobytes()
        if len(content) < SHARED:
            continue
        key = hashlib.sha256(content).digest()
        if key not in known:
            weights.write(bytes(-weights.tell() % SHARED))
            known[key] = weights.tell()
            weights.write(content)
        for field in ("raw_data", "float_data", "int32_data", "int64_data", "external_data"):
            tensor.ClearField(field)
        tensor.data_location = TensorProto.EXTERNAL
        place = {"location": WEIGHTS, "offset": known[key], "length": len(content)}
        for name, value in place.items():
            tensor.external_data.add(key=name, value=str(value))


def write_ctranslate2(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out: Path, quantization: str
) -> None:
    """A CTranslate2 model: model.bin, the vocabulary, and a config.json.

    The vocabulary has all tokens at their own numbers, and the decoder begins with the model's own start token. The token that
    pads is kept from being written by its bias.

    Args:
        out: a directory that does not exist.
        quantization: int8: of all matrices, embeddings among them, with a scale per row; float32: none.

    Raises:
        ExportError: CTranslate2 does not know the architecture, or a setting of it.
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
            f"{name} ends a text with any of the tokens {ends}; a CTranslate2 model has one end"
        )
    own = model.config
    twin = copy.deepcopy(model)  # its weights are rounded in place
    try:
        for key, value in norms.items():
            setattr(twin.config, key, value)
        spec = getattr(converters, loader)().get_model_spec(twin)
        if kind == "m2m_100":  # its converter takes the first place for 2, which it is where token 1 pads
            for side, part in ((spec.encoder, twin.get_encoder()), (spec.decoder, twin.get_decoder())):
                side.position_encodings.encodings = part.embed_positions.weights[own.pad_token_id + 1 :]
        tokens = vocabulary(tokenizer, own.vocab_size)
        spec.register_source_vocabulary(tokens)
        spec.register_target_vocabulary(tokens)
        end = tokens[ends[0] if isinstance(ends, list) else ends]
        spec.config.eos_token = end
        spec.config.bos_token = tokenizer.bos_token or end
        spec.config.unk_token = tokenizer.unk_token or end
        spec.config.decoder_start_token = tokens[start_of(model)]
        if hasattr(own, "layer_norm_epsilon"):
            spec.config.layer_norm_epsilon = own.layer_norm_epsilon
        if hasattr(own, "scale_decoder_outputs"):
            spec.decoder.scale_outputs = own.d_model**-0.5 if own.scale_decoder_outputs else OPTIONAL
        if (pad := suppress_tokens(model)) is not None:
            bias = getattr(twin, "final_logits_bias", torch.zeros(1, own.vocab_size))[0]
            bias[pad] = NEVER
            spec.decoder.projection.bias = bias
        spec.validate()
        spec.optimize(quantization=quantization)
        out.mkdir()
        spec.save(str(out))
    except (KeyError, ValueError, AttributeError, NotImplementedError, RuntimeError) as error:
        raise ExportError(f"{name} cannot be converted to CTranslate2: {error}") from error


def vocabulary(tokenizer: PreTrainedTokenizerBase, size: int) -> list[str]:
    """The tokens by number; numbers without one get a name of their own."""
    tokens = [f"<unused {number}>" for number in range(size)]
    for token, number in tokenizer.get_vocab().items():
        if number < size:
            tokens[number] = token
    return tokens
