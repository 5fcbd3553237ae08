"""Writes a causal language model as one ONNX graph, for the prompt and for each further token."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from kdcli.exporting.writers.tracing import trace_onnx, traceable
from kdcli.models.quantization import BLOCK
from kdcli.models.vocabulary import TOKENIZER_FILES

COPIED = ("config.json", "generation_config.json", *TOKENIZER_FILES)
KEEP = "num_logits_to_keep"
OWN = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""
TWO_GB = 2**31 - 2**24
"""Bytes of weights that a protobuf file can hold, less some room for the graph."""


def trace(model: PreTrainedModel, file: Path, opset: int) -> Any:
    """Return the graph in fp32, with inputs and outputs as Optimum and transformers.js name them.

    - input_ids, position_ids (B, T), attention_mask (B, P + T), past_key_values.N.key, .value (B, heads, P, head size)
    - num_logits_to_keep (), optional: the number of last tokens whose logits are returned; 0: all
    - logits (B, T, C), present.N.key, .value (B, heads, P + T, head size)

    P is 0 at first. The sample has rows of different length and a past, because otherwise their sizes would be constants of the graph.

    Args:
        file: a temporary file for the exporter, in an empty directory.
    """
    import onnx
    from onnx import numpy_helper

    graph = _Decoder(model).eval()
    with traceable(model), torch.no_grad():
        ids, mask = torch.ones(2, 5, dtype=torch.long), torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        _, *past = graph(ids[:, :3], mask[:, :3], positions[:, :3], torch.tensor(0))
        parts = [f"{layer}.{what}" for layer in range(len(past) // 2) for what in ("key", "value")]
        inputs = {"input_ids": ids[:, 3:], "attention_mask": mask, "position_ids": positions[:, 3:]}
        inputs |= {KEEP: torch.tensor(1)}
        inputs |= {f"past_key_values.{part}": tensor for part, tensor in zip(parts, past, strict=True)}
        outputs = ["logits", *(f"present.{part}" for part in parts)]
        axes = {name: _axes(name) for name in (*inputs, *outputs) if name != KEEP}
        trace_onnx(graph, inputs, outputs, axes, file, opset)
    full = onnx.load(file)
    if not any(entry.name == "position_ids" for entry in full.graph.input):  # BLOOM reads the mask alone
        shape = list(_axes("position_ids").values())
        full.graph.input.append(
            onnx.helper.make_tensor_value_info("position_ids", onnx.TensorProto.INT64, shape)
        )
    full.graph.initializer.append(numpy_helper.from_array(np.asarray(0), KEEP))  # the default
    _transpose_constants(full.graph)
    return full


def _transpose_constants(graph: Any) -> None:
    """Store constant matrices as the one product that reads them needs them. A runtime that transposes a matrix itself holds it twice."""
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    reads = Counter(name for node in graph.node for name in node.input)
    for at, node in reversed(list(enumerate(graph.node))):
        if node.op_type == "Transpose" and node.input[0] in constants and reads[node.input[0]] == 1:
            tensor = constants[node.input[0]]
            matrix = np.ascontiguousarray(numpy_helper.to_array(tensor).T)
            tensor.CopyFrom(numpy_helper.from_array(matrix, node.output[0]))
            del graph.node[at]


def _axes(name: str) -> dict[int, str]:
    where, _, part = name.partition(".")
    length = {
        "attention_mask": "total_sequence_length",
        "past_key_values": "past_sequence_length",
        "present": "total_sequence_length",
        "logits": KEEP,
    }.get(where, "sequence_length")
    return {0: "batch_size", 2 if part else 1: length}


class _Decoder(torch.nn.Module):
    """The computation of the graph."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(
        self, ids: Tensor, mask: Tensor, positions: Tensor, keep: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        """Map ids and positions (B, T), mask (B, P + T), keep () and two tensors per layer to logits and two tensors per layer."""
        cache = DynamicCache()
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        outputs = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=torch.arange(ids.shape[1])[-keep:],
        )
        layers: Any = cache.layers
        return outputs.logits, *(part for layer in layers for part in (layer.keys, layer.values))


def blockwise(full: Any, bits: int) -> Any:
    """Return the graph with quantized constant matrices: each `BLOCK` weights of a row share a scale in fp32; in
    GGUF's q8_0 and q4_0 they share one in fp16.

    Products become MatMulNBits, whose activations are dynamically quantized to 8 bits by block (accuracy_level 4), and look-ups by
    token id become GatherBlockQuantized; both are ONNX Runtime's own operators (com.microsoft). A matrix that is both head
    and embeddings is stored once. Head and embeddings keep at least 8 bits, as in llama.cpp's q4_0, because every token's
    probability depends on them. Embeddings whose row length is no multiple of `BLOCK` are not quantized.

    Args:
        bits: bits of a weight, 4 or 8.
    """
    from onnx import helper, numpy_helper

    constants = {tensor.name: tensor for tensor in full.graph.initializer}
    transposed = {
        node.output[0]: node.input[0]
        for node in full.graph.node
        if node.op_type == "Transpose" and node.input[0] in constants
    }
    products = {
        node.output[0]: transposed.get(node.input[1], node.input[1])
        for node in full.graph.node
        if node.op_type in ("MatMul", "Gemm") and transposed.get(node.input[1], node.input[1]) in constants
    }
    head = list(products)[-1]
    nodes, stored = [], {}

    def store(name: str, matrix: np.ndarray, width: int) -> list[str]:
        """Return the names of a matrix's quantized weights and scales."""
        names = [f"{name}.int{width}", f"{name}.int{width}.scales"]
        if names[0] not in stored:
            for key, part in zip(names, _blocks(matrix, width), strict=True):
                stored[key] = numpy_helper.from_array(part, key)
        return names

    for node in full.graph.node:
        if node.output[0] in products:
            name = products[node.output[0]]
            width = 8 if node.output[0] == head else bits
            matrix = numpy_helper.to_array(constants[name])
            if (node.input[1] in transposed) == any(
                each.name == "transB" and each.i for each in node.attribute
            ):
                matrix = matrix.T
            sizes = {"N": matrix.shape[0], "K": matrix.shape[1], "bits": width, "block_size": BLOCK}
            product = [f"{node.output[0]}.product"] if node.op_type == "Gemm" else node.output
            inputs = [node.input[0], *store(name, matrix, width)]
            nodes.append(_own("MatMulNBits", inputs, product, **sizes, accuracy_level=4))
            if node.op_type == "Gemm":
                nodes.append(helper.make_node("Add", [product[0], node.input[2]], node.output))
        elif node.op_type == "Gather" and _has_full_blocks(constants.get(node.input[0])):
            matrix = numpy_helper.to_array(constants[node.input[0]])
            weights, scales = store(node.input[0], matrix, 8)
            flat, shape = f"{node.output[0]}.table", f"{node.output[0]}.shape"
            stored[shape] = numpy_helper.from_array(np.asarray(matrix.shape), shape)
            nodes.append(helper.make_node("Reshape", [weights, shape], [flat]))
            inputs = [flat, node.input[1], scales]
            nodes.append(
                _own("GatherBlockQuantized", inputs, node.output, bits=8, quantize_axis=1, block_size=BLOCK)
            )
        else:
            nodes.append(node)
    read = {name for node in nodes if node.output[0] not in transposed for name in node.input}
    nodes = [node for node in nodes if node.output[0] not in transposed or node.output[0] in read]
    read |= {name for node in nodes for name in node.input}
    tensors = [tensor for name, tensor in (constants | stored).items() if name in read]
    graph = helper.make_graph(nodes, full.graph.name, full.graph.input, full.graph.output, tensors)
    versions = [*full.opset_import, helper.make_opsetid(OWN, 1)]
    return helper.make_model(graph, opset_imports=versions, ir_version=full.ir_version)


def _own(kind: str, inputs: list[str], outputs: Any, **attributes: Any) -> Any:
    from onnx import helper

    return helper.make_node(kind, inputs, outputs, domain=OWN, **attributes)


def _has_full_blocks(tensor: Any) -> bool:
    """Return whether a tensor is a matrix whose row length is a multiple of `BLOCK`."""
    return tensor is not None and len(tensor.dims) == 2 and tensor.dims[1] % BLOCK == 0


def _blocks(matrix: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a matrix (N, K) in the format of MatMulNBits: uint8 (N, blocks, BLOCK * bits / 8), with 4 bits the even one of two weights in a byte's
    low half, and float32 scales (N, blocks). The scale maps a block's largest weight to the end of the range, as that of q4_0
    does; the last block of a row is padded with 0."""
    half = 2 ** (bits - 1)
    rows, width = matrix.shape
    blocks = np.pad(matrix, ((0, 0), (0, -width % BLOCK))).reshape(rows, -1, BLOCK)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)
    scales = largest / -half
    steps = np.rint(blocks / np.where(scales == 0, 1, scales)) + half
    weights = steps.clip(0, 2 * half - 1).astype(np.uint8)
    if bits == 4:
        weights = weights[..., ::2] | weights[..., 1::2] << 4
    return weights, scales[..., 0]


def save(graph: Any, file: Path) -> None:
    """Write a graph. Above 2 GB its weights are moved from the graph to a second file."""
    import onnx

    size = sum(len(tensor.raw_data) for tensor in graph.graph.initializer)
    onnx.save_model(graph, file, save_as_external_data=size > TWO_GB, location=f"{file.name}.data")


def copy_files(student: Path, out: Path) -> None:
    """Copy the other files that an application needs."""
    for name in COPIED:
        if (student / name).is_file():
            shutil.copyfile(student / name, out / name)
