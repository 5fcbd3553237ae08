"""Fake quantization: the grid is the exporter's, gradients pass, and a plain model is left."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from gguf import GGMLQuantizationType, dequantize, quantize
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from support.tiny import bert, decoder, sentences, speller
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from transformers import GPT2Config, GPT2ForSequenceClassification

from kdcli.errors import ConfigError
from kdcli.exporting.targets.base import quietly
from kdcli.exporting.targets.cpu import Cpu
from kdcli.exporting.writers.causal_lm import _blocks
from kdcli.models.quantization import BLOCK, FakeQuantization, Grid


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def shaken(model: nn.Module) -> nn.Module:
    """With weights large enough to tell texts apart."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return model


def written(weight: torch.Tensor, operator: str, precision: str, folder: Path) -> np.ndarray:
    """What ONNX Runtime's quantizers make of a layer's weight, (N, K): the layer asked for each row of an identity, or for
    each of its rows."""
    count, width = weight.shape
    array = weight.numpy()
    if operator == "Gather":
        node, kind, shape = helper.make_node("Gather", ["w", "x"], ["y"]), TensorProto.INT64, ["n"]
        feed = np.arange(count)
    else:
        node, kind, shape = helper.make_node("MatMul", ["x", "w"], ["y"], name="m"), TensorProto.FLOAT, ["n", width]  # fmt: skip
        array, feed = np.ascontiguousarray(array.T), np.eye(width, dtype=np.float32)
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", None])],
        [numpy_helper.from_array(array, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    path = folder / "layer.onnx"
    onnx.save(model, path)
    if precision == "int8":
        quantize_dynamic(path, path, op_types_to_quantize=[operator], per_channel=True, reduce_range=True)
    else:
        quantizer = MatMulNBitsQuantizer(model, block_size=BLOCK, op_types_to_quantize=(operator,))
        with quietly():
            quantizer.process()
        quantizer.model.set_opset_import("", 17)
        quantizer.model.save_model_to_file(str(path))
    if precision == "int8" and operator == "MatMul":  # its activations are rounded as well: read the file
        parts = {part.name: numpy_helper.to_array(part) for part in onnx.load(path).graph.initializer}
        return (parts["w_quantized"].astype(np.float32) * parts["w_scale"]).T
    found = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(["y"], {"x": feed})[0]
    return found if operator == "Gather" else found.T


@pytest.mark.parametrize("shape", [(40, 64), (7, 128), (24, 16), (5, 50)])
@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("operator", ["MatMul", "Gather"])
def test_the_grid_is_the_one_that_onnx_runtime_writes(
    operator: str, precision: str, shape: tuple[int, int], tmp_path: Path
) -> None:
    """Weights that were trained on one grid are rounded once more on another, and what was learnt is lost."""
    weight = matrix(*shape)
    weight[0] = 0  # as of padding
    layer = nn.Embedding(*shape) if operator == "Gather" else nn.Linear(shape[1], shape[0])
    model = nn.Sequential(layer)
    layer.weight.data.copy_(weight)
    FakeQuantization(precision).prepare_for_training(model)  # type: ignore[arg-type]
    rounded = layer.weight.detach()
    assert (rounded - weight).abs().max() > 1e-3
    np.testing.assert_allclose(written(weight, operator, precision, tmp_path), rounded.numpy(), atol=2e-6)
    again = written(rounded, operator, precision, tmp_path)
    np.testing.assert_allclose(again, rounded.numpy(), atol=2e-6)


@pytest.mark.parametrize("shape", [(40, 64), (7, 128), (5, 50)])
@pytest.mark.parametrize("bits", [8, 4])
def test_the_grid_of_a_language_model_is_the_one_that_its_files_have(
    bits: int, shape: tuple[int, int]
) -> None:
    """A scale of the other sign, or one that fp16 does not have, rounds once more what was learnt."""
    weight = matrix(*shape)
    weight[0] = 0
    grid = Grid(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1, block=BLOCK)
    rounded = grid(weight)
    assert (rounded - weight).abs().max() > 1e-3
    assert torch.equal(grid(rounded), rounded)

    def stored(values: torch.Tensor) -> np.ndarray:
        numbers, scales = _blocks(values.numpy(), bits)
        if bits == 4:
            numbers = np.stack([numbers & 15, numbers >> 4], -1).reshape(*scales.shape, BLOCK)
        steps = numbers.astype(np.float32) - 2 ** (bits - 1)
        return (steps * scales[..., None]).reshape(shape[0], -1)[:, : shape[1]]

    # its scales are in fp32: one part in 2,048 away, and now and then a weight falls to the next step
    close = np.isclose(stored(weight), rounded.numpy(), rtol=1e-3, atol=1e-6)
    assert close.mean() > (0.99 if bits == 4 else 0.95)
    np.testing.assert_allclose(stored(rounded), rounded.numpy(), atol=1e-7)
    if shape[1] % BLOCK == 0:
        kind = GGMLQuantizationType.Q4_0 if bits == 4 else GGMLQuantizationType.Q8_0
        again = dequantize(quantize(rounded.numpy(), kind), kind)
        step = np.abs(rounded.numpy()).max() / 127
        np.testing.assert_allclose(again, rounded.numpy(), atol=1e-7 if bits == 4 else 0.6 * step)


def test_a_matrix_that_is_head_and_embeddings_stays_one() -> None:
    """Two that differ after training are stored twice, or one of them is lost."""
    model = decoder(speller())
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    keys, count = set(model.state_dict()), sum(weight.numel() for weight in model.parameters())
    grid = FakeQuantization("int4", writes=True)
    grid.prepare_for_training(model)
    assert sum(weight.numel() for weight in model.parameters()) == count
    ids = torch.randint(0, model.config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0))
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())
    model.eval()
    dressed = model(input_ids=ids).logits
    grid.merge_and_unload(model)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert set(model.state_dict()) == keys
    assert torch.equal(model(input_ids=ids).logits, dressed)
    head = model.get_output_embeddings().weight
    assert torch.equal(Grid(-128, 127, BLOCK)(head), head)
    assert not torch.allclose(Grid(-8, 7, BLOCK)(head), head, atol=1e-4)


def test_activations_are_rounded_as_onnx_runtime_does() -> None:
    """A model that never saw rounded activations is another one on the device."""
    values = 3 * matrix(6, 40) + 1
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"])
    back = helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])
    graph = helper.make_graph(
        [node, back],
        "rounding",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [6, 40])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [6, 40])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(
        session.run(["y"], {"x": values.numpy()})[0], Grid(0, 255)(values).numpy(), atol=1e-5
    )


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_dressed_it_learns_and_undressed_it_is_plain(precision: str, tokenizer) -> None:
    """Gradients that stop at the rounding teach nothing; keys of a parametrization are loaded by nobody else."""
    model = bert(tokenizer, ["bad", "good"])
    keys = set(model.state_dict())
    grid = FakeQuantization(precision)  # type: ignore[arg-type]
    grid.prepare_for_training(model)
    batch = tokenizer(["good film", "a very bad book"], return_tensors="pt", padding=True)
    loss = cross_entropy(model(**batch).logits, torch.tensor([1, 0]))
    loss.backward()
    silent = [name for name, each in model.named_parameters() if each.grad is None or not each.grad.any()]
    assert all("key.bias" in name for name in silent)  # no softmax sees it
    model.eval()
    dressed = model(**batch).logits
    grid.merge_and_unload(model)
    assert set(model.state_dict()) == keys
    assert all(weight.requires_grad for weight in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert type(model.classifier) is nn.Linear
    same = 1e-6 if precision == "int4" else 0.05  # int8 has rounded activations besides
    assert torch.allclose(model(**batch).logits, dressed, atol=same)


def test_it_regains_what_rounding_loses(tokenizer) -> None:
    """A stage that rounds and does not learn is no better than an exporter."""
    texts = [text for text, _ in sentences(256)]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    teacher = shaken(bert(tokenizer, ["bad", "good"]).eval())
    with torch.no_grad():
        wanted = log_softmax(teacher(**batch).logits, -1)

    def lost(model: nn.Module) -> torch.Tensor:
        return kl_div(log_softmax(model(**batch).logits, -1), wanted, log_target=True, reduction="batchmean")

    student = copy.deepcopy(teacher)
    assert lost(student) < 1e-6
    FakeQuantization("int4").prepare_for_training(student)
    rounded = lost(student).item()
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    for _ in range(40):
        optimizer.zero_grad()
        lost(student).backward()
        optimizer.step()
    assert lost(student).item() < 0.3 * rounded


@pytest.mark.parametrize(("precision", "most"), [("int8", 1e-3), ("int4", 1e-4)])
def test_what_is_trained_answers_as_the_artifact_does(
    precision: str, most: float, tokenizer, tmp_path: Path
) -> None:
    """A layer that is rounded in the file and not in training, or otherwise, is learnt around for nothing."""
    model = shaken(bert(tokenizer, ["bad", "good"]).eval())
    texts = [text for text, _ in sentences(64)]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    grid = FakeQuantization(precision)  # type: ignore[arg-type]
    with torch.inference_mode():
        plain = model(**batch).logits
    grid.prepare_for_training(model)
    with torch.no_grad():
        dressed = model(**batch).logits
    grid.merge_and_unload(model)
    file = Cpu([precision]).export(tmp_path, tmp_path, model, [batch], 64)[precision]  # type: ignore[list-item]
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    found = session.run(["logits"], {name: batch[name].numpy() for name in batch})[0]
    away = (dressed - plain).abs().max().item()
    assert away > 5 * most  # or the comparison would say nothing
    np.testing.assert_allclose(found, dressed.numpy(), atol=most)


def test_under_bf16_the_grid_has_all_its_levels() -> None:
    """bf16 tells 256 levels apart only near 0: the training would see a coarser grid than the file has."""
    values = 3 * matrix(6, 40).bfloat16()
    assert torch.equal(Grid(0, 255)(values), Grid(0, 255)(values.float()).bfloat16())


def test_a_layer_that_the_exporter_alone_would_round_is_refused() -> None:
    """GPT-2 keeps its matrices in layers of its own, which the training would leave as they are."""
    config = GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=1)
    with pytest.raises(ConfigError, match="Conv1D"):
        FakeQuantization("int8").prepare_for_training(GPT2ForSequenceClassification(config))


def test_a_missing_torchao_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback about a module that the user never heard of."""
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(ConfigError, match=r"pip install 'kdcli\[quantization\]'"):
        FakeQuantization("int4")
