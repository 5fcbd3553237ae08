"""What a processor runs of a language model: one ONNX graph, for the prompt and for each further token."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from kdcli.models.checkpoint import TOKENIZER_FILES
from kdcli.models.quantization import BLOCK

BESIDE = ("config.json", "generation_config.json", *TOKENIZER_FILES)
KEEP = "num_logits_to_keep"
OWN = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""
TWO_GB = 2**31 - 2**24
"""Bytes of weights that a protobuf file can hold, less some room for the graph."""


def trace(model: PreTrainedModel, file: Path, opset: int) -> Any:
    """The graph in fp32, with inputs and outputs as Optimum and transformers.js name them.

    - input_ids, position_ids (B, T), attention_mask (B, P + T), past_key_values.N.key, .value (B, heads, P, head size)
    - num_logits_to_keep (), which may be left out: logits of so many last tokens alone; 0: of all
    - logits (B, T, C), present.N.key, .value (B, heads, P + T, head size)

    P is 0 at first. The sample has rows of unlike length and a past, or their numbers would be constants of the graph.

    Args:
        file: where the exporter may write, in an empty directory.
    """
    import onnx
    from onnx import numpy_helper

    attention, graph = model.config._attn_implementation, _Decoder(model).eval()
    model.set_attn_implementation("eager")  # as of classifiers: no NaN checks in each layer
    try:
        with torch.no_grad():
            ids, mask = torch.ones(2, 5, dtype=torch.long), torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
            places = (mask.cumsum(-1) - 1).clamp(min=0)
            _, *past = graph(ids[:, :3], mask[:, :3], places[:, :3], torch.tensor(0))
            parts = [f"{layer}.{what}" for layer in range(len(past) // 2) for what in ("key", "value")]
            inputs = {"input_ids": ids[:, 3:], "attention_mask": mask, "position_ids": places[:, 3:]}
            inputs |= {KEEP: torch.tensor(1)}
            inputs |= {f"past_key_values.{part}": tensor for part, tensor in zip(parts, past, strict=True)}
            outputs = ["logits", *(f"present.{part}" for part in parts)]
            torch.onnx.export(
                graph,
                tuple(inputs.values()),
                str(file),
                dynamo=False,
                opset_version=opset,
                do_constant_folding=False,
                input_names=list(inputs),
                output_names=outputs,
                dynamic_axes={name: _axes(name) for name in (*inputs, *outputs) if name != KEEP},
            )
    finally:
        model.set_attn_implementation(attention)
    whole = onnx.load(file)
    if not any(entry.name == "position_ids" for entry in whole.graph.input):  # BLOOM goes by the mask alone
        shape = list(_axes("position_ids").values())
        whole.graph.input.append(
            onnx.helper.make_tensor_value_info("position_ids", onnx.TensorProto.INT64, shape)
        )
    whole.graph.initializer.append(
        numpy_helper.from_array(np.asarray(0), KEEP)
    )  # what it is where nobody says
    _turn(whole.graph)
    return whole


def _turn(graph: Any) -> None:
    """Store matrices as the one product that reads them does: what it turns itself, a runtime holds twice."""
    from onnx import numpy_helper

    known = {tensor.name: tensor for tensor in graph.initializer}
    reads = Counter(name for node in graph.node for name in node.input)
    for at, node in reversed(list(enumerate(graph.node))):
        if node.op_type == "Transpose" and node.input[0] in known and reads[node.input[0]] == 1:
            tensor = known[node.input[0]]
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
    """What the graph computes."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(
        self, ids: Tensor, mask: Tensor, places: Tensor, keep: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        """Ids and places (B, T), mask (B, P + T), (), two tensors a layer -> logits, and two tensors a layer."""
        cache = DynamicCache()
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        said = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=torch.arange(ids.shape[1])[-keep:],
        )
        layers: Any = cache.layers
        return said.logits, *(part for layer in layers for part in (layer.keys, layer.values))


def blockwise(whole: Any, bits: int) -> Any:
    """A graph like another one, whose constant matrices are rounded: each `BLOCK` weights of a row share a scale in fp32, as in
    GGUF's q8_0 and q4_0 they share one in fp16.

    Products become MatMulNBits, whose activations are rounded to 8 bits by block as they come (accuracy_level 4), and what
    token ids choose rows of becomes GatherBlockQuantized; both are ONNX Runtime's own (com.microsoft). A matrix that is head
    and embeddings is stored once. Head and embeddings keep 8 bits at least, as in llama.cpp's q4_0: every token's probability
    goes through them. Embeddings whose rows are no multiple of `BLOCK` stay as they are.

    Args:
        bits: of a weight, 4 or 8.
    """
    from onnx import helper, numpy_helper

    known = {tensor.name: tensor for tensor in whole.graph.initializer}
    turned = {
        node.output[0]: node.input[0]
        for node in whole.graph.node
        if node.op_type == "Transpose" and node.input[0] in known
    }
    products = {
        node.output[0]: turned.get(node.input[1], node.input[1])
        for node in whole.graph.node
        if node.op_type in ("MatMul", "Gemm") and turned.get(node.input[1], node.input[1]) in known
    }
    head = list(products)[-1]
    nodes, stored = [], {}

    def store(name: str, matrix: np.ndarray, width: int) -> list[str]:
        """The names of a matrix's numbers and scales."""
        names = [f"{name}.int{width}", f"{name}.int{width}.scales"]
        if names[0] not in stored:
            for key, part in zip(names, _blocks(matrix, width), strict=True):
                stored[key] = numpy_helper.from_array(part, key)
        return names

    for node in whole.graph.node:
        if node.output[0] in products:
            name = products[node.output[0]]
            width = 8 if node.output[0] == head else bits
            matrix = numpy_helper.to_array(known[name])
            if (node.input[1] in turned) == any(each.name == "transB" and each.i for each in node.attribute):
                matrix = matrix.T
            sizes = {"N": matrix.shape[0], "K": matrix.shape[1], "bits": width, "block_size": BLOCK}
            product = [f"{node.output[0]}.product"] if node.op_type == "Gemm" else node.output
            inputs = [node.input[0], *store(name, matrix, width)]
            nodes.append(_own("MatMulNBits", inputs, product, **sizes, accuracy_level=4))
            if node.op_type == "Gemm":
                nodes.append(helper.make_node("Add", [product[0], node.input[2]], node.output))
        elif node.op_type == "Gather" and _rows(known.get(node.input[0])):
            matrix = numpy_helper.to_array(known[node.input[0]])
            numbers, scales = store(node.input[0], matrix, 8)
            flat, shape = f"{node.output[0]}.table", f"{node.output[0]}.shape"
            stored[shape] = numpy_helper.from_array(np.asarray(matrix.shape), shape)
            nodes.append(helper.make_node("Reshape", [numbers, shape], [flat]))
            inputs = [flat, node.input[1], scales]
            nodes.append(
                _own("GatherBlockQuantized", inputs, node.output, bits=8, quantize_axis=1, block_size=BLOCK)
            )
        else:
            nodes.append(node)
    read = {name for node in nodes if node.output[0] not in turned for name in node.input}
    nodes = [node for node in nodes if node.output[0] not in turned or node.output[0] in read]
    read |= {name for node in nodes for name in node.input}
    tensors = [tensor for name, tensor in (known | stored).items() if name in read]
    graph = helper.make_graph(nodes, whole.graph.name, whole.graph.input, whole.graph.output, tensors)
    versions = [*whole.opset_import, helper.make_opsetid(OWN, 1)]
    return helper.make_model(graph, opset_imports=versions, ir_version=whole.ir_version)


def _own(kind: str, inputs: list[str], outputs: Any, **attributes: Any) -> Any:
    from onnx import helper

    return helper.make_node(kind, inputs, outputs, domain=OWN, **attributes)


def _rows(tensor: Any) -> bool:
    """Whether it is a matrix whose rows are whole blocks."""
    return tensor is not None and len(tensor.dims) == 2 and tensor.dims[1] % BLOCK == 0


def _blocks(matrix: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """A matrix (N, K) as MatMulNBits has it: uint8 (N, blocks, BLOCK * bits / 8), in 4 bits the even one of two in a byte's
    low half, and float32 scales (N, blocks). The scale puts a block's largest weight at the far end of the range, as q4_0's
    does; what a row lacks to its last block is 0."""
    half = 2 ** (bits - 1)
    rows, width = matrix.shape
    blocks = np.pad(matrix, ((0, 0), (0, -width % BLOCK))).reshape(rows, -1, BLOCK)
    far = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)
    scales = far / -half
    steps = np.rint(blocks / np.where(scales == 0, 1, scales)) + half
    numbers = steps.clip(0, 2 * half - 1).astype(np.uint8)
    if bits == 4:
        numbers = numbers[..., ::2] | numbers[..., 1::2] << 4
    return numbers, scales[..., 0]


def save(whole: Any, file: Path) -> None:
    """Write a graph, above 2 GB with its weights in one file beside it, which then are no longer in the graph."""
    import onnx

    size = sum(len(tensor.raw_data) for tensor in whole.graph.initializer)
    onnx.save_model(whole, file, save_as_external_data=size > TWO_GB, location=f"{file.name}.data")


def beside(student: Path, out: Path) -> None:
    """Write what an application needs besides the graph: `BESIDE`."""
    for name in BESIDE:
        if (student / name).is_file():
            shutil.copyfile(student / name, out / name)
