"""ONNX files for a CPU: they answer as the student does, whatever the shape of the batch."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from support.commands import naming, require_words
from support.exporting import ENCODER_SIZES
from support.tiny import bert, sentences
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from kdcli.errors import ExportError
from kdcli.exporting.targets import cpu
from kdcli.exporting.targets.cpu import Cpu
from kdcli.models.quantization import FakeQuantization

CONFIGS = {
    "Bert": transformers.BertConfig(**ENCODER_SIZES),
    "Electra": transformers.ElectraConfig(**ENCODER_SIZES, embedding_size=16),
    "Roberta": transformers.RobertaConfig(**ENCODER_SIZES, type_vocab_size=1, pad_token_id=1),
    "DistilBert": transformers.DistilBertConfig(
        vocab_size=200, dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=66, num_labels=3
    ),
}
BOTH = ["fp32", "int8"]
SEGMENTS = {"Bert", "Electra"}
SHAPES = [(1, 1), (1, 7), (2, 5), (3, 64), (7, 13), (33, 2)]


def create(config: transformers.PreTrainedConfig) -> transformers.PreTrainedModel:
    """A random classifier whose weights are large enough to tell inputs apart."""
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def inputs(rows: int, length: int, pad: int, segments: bool = True) -> dict[str, torch.Tensor]:
    """Random ids; the second row ends in padding."""
    batch = {
        "input_ids": torch.randint(5, 200, (rows, length)),
        "attention_mask": torch.ones(rows, length).long(),
    }
    if segments:
        batch["token_type_ids"] = torch.randint(0, 2, (rows, length))
    if rows > 1:
        batch["attention_mask"][1, max(1, length // 2) :] = 0
        batch["input_ids"][1, max(1, length // 2) :] = pad
    return batch


def ask(file: Path, batch: dict[str, torch.Tensor]) -> np.ndarray:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {name: tensor.numpy() for name, tensor in batch.items()})[0]


def graph(file: Path) -> onnx.GraphProto:
    return onnx.load(file, load_external_data=False).graph


@pytest.mark.parametrize("name", CONFIGS)
def test_any_batch_and_any_length_give_the_logits_of_torch(name: str, tmp_path: Path) -> None:
    """A shape, a mask or a position of the sample that is baked into the graph is right for that sample alone."""
    model = create(CONFIGS[name])
    pad = CONFIGS[name].pad_token_id
    sample = inputs(1, 1, pad, name in SEGMENTS)  # the hardest: every axis is 1, and nothing is padded
    files = Cpu(BOTH).export(tmp_path, tmp_path, model, [sample], 64)
    assert {entry.name for entry in graph(files["fp32"]).input} == set(sample)
    for rows, length in SHAPES:
        batch = inputs(rows, length, pad, name in SEGMENTS)
        with torch.inference_mode():
            expected = model(**batch).logits.numpy()
        np.testing.assert_allclose(ask(files["fp32"], batch), expected, atol=1e-5)
        np.testing.assert_allclose(ask(files["int8"], batch), expected, atol=0.1)


def test_axes_are_free_and_have_names(tmp_path: Path) -> None:
    """Runtimes outside Python find inputs by name, and a fixed axis would refuse another length."""
    file = Cpu(["fp32"]).export(tmp_path, tmp_path, create(CONFIGS["Bert"]), [inputs(2, 3, 0)], 64)["fp32"]
    shapes = {
        entry.name: [axis.dim_param or axis.dim_value for axis in entry.type.tensor_type.shape.dim]
        for entry in [*graph(file).input, *graph(file).output]
    }
    assert shapes == {
        "input_ids": ["batch", "sequence"],
        "attention_mask": ["batch", "sequence"],
        "token_type_ids": ["batch", "sequence"],
        "logits": ["batch", 3],
    }
    assert not (tmp_path / "model.int8.onnx").exists()


@pytest.mark.parametrize("per_channel", [True, False])
def test_int8_is_small_and_does_not_saturate(per_channel: bool, tmp_path: Path) -> None:
    """Unquantized embeddings leave a small student nearly as large as it was; matrices of 8 bits saturate on
    processors without VNNI, which then answer otherwise than the machine that checked the file."""
    config = transformers.BertConfig(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512, num_labels=3
    )
    files = Cpu(BOTH, per_channel=per_channel).export(
        tmp_path, tmp_path, create(config), [inputs(1, 1, 0)], 64
    )
    assert files["int8"].stat().st_size <= 0.3 * files["fp32"].stat().st_size
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph(files["int8"]).initializer}
    nodes = graph(files["int8"]).node
    matrices = [weights[node.input[1]] for node in nodes if node.op_type == "MatMulInteger"]
    assert len(matrices) == 2 * 6 + 2
    assert all(matrix.dtype == np.int8 and np.abs(matrix.astype(int)).max() <= 64 for matrix in matrices)
    assert not {node.domain for node in nodes} - {"", "ai.onnx"}, "an operator that other runtimes lack"


@pytest.mark.parametrize("name", CONFIGS)
def test_int4_holds_what_rounding_in_training_saw(name: str, tmp_path: Path) -> None:
    """A grid that is not the one of the training, or an operator that reads its blocks otherwise, undoes the stage; a width that 32
    does not divide is packed otherwise."""
    model = create(CONFIGS[name])
    grid = FakeQuantization("int4")
    grid.prepare_for_training(model)
    grid.merge_and_unload(model)
    sample = inputs(1, 1, CONFIGS[name].pad_token_id, name in SEGMENTS)
    files = Cpu(["fp32", "int4"]).export(tmp_path, tmp_path, model, [sample], 64)
    kinds = [node.op_type for node in graph(files["int4"]).node]
    tables = sum(isinstance(part, torch.nn.Embedding) for part in model.modules())
    assert kinds.count("GatherBlockQuantized") == tables
    assert kinds.count("MatMulNBits") == sum(isinstance(part, torch.nn.Linear) for part in model.modules())
    assert [entry.version for entry in onnx.load(files["int4"]).opset_import if entry.domain == ""] == [17]
    for rows, length in SHAPES:
        batch = inputs(rows, length, CONFIGS[name].pad_token_id, name in SEGMENTS)
        with torch.inference_mode():
            np.testing.assert_allclose(ask(files["int4"], batch), model(**batch).logits.numpy(), atol=1e-4)


def test_int4_is_half_of_int8_and_not_for_translators(tmp_path: Path) -> None:
    """Embeddings that stay in 8 bits leave a small student nearly as large as int8 is."""
    config = transformers.BertConfig(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512, num_labels=3
    )
    files = Cpu(["int8", "int4"]).export(tmp_path, tmp_path, create(config), [inputs(1, 1, 0)], 64)
    assert files["int4"].stat().st_size <= 0.67 * files["int8"].stat().st_size
    translator = transformers.BartForConditionalGeneration(
        transformers.BartConfig(
            vocab_size=50, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=1,
            decoder_attention_heads=1, encoder_ffn_dim=8, decoder_ffn_dim=8,
        )
    )  # fmt: skip
    refusal = Cpu(["int4"]).refusal(type(translator), translator.config)
    require_words(refusal or "", "int4", "hardware.precisions=[fp32,int8]")


def test_int8_gives_the_labels_of_a_trained_model(teacher: Path, tokenizer, tmp_path: Path) -> None:
    """Rounding that moves labels makes the artifact another model than the one that was evaluated."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(teacher).eval()
    batch = tokenizer([text for text, _ in sentences(300, seed=3)], return_tensors="pt", padding=True)
    files = Cpu(BOTH).export(teacher, tmp_path, model, [batch], 64)
    with torch.inference_mode():
        expected = model(**batch).logits.argmax(1).numpy()
    assert len(set(expected)) == 2
    assert (ask(files["int8"], batch).argmax(1) == expected).mean() >= 0.97


def test_nothing_is_left_behind(
    tokenizer,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
) -> None:
    """Temporary files that are shipped, a student that is no longer what it was, noise in the command's output."""
    model = bert(tokenizer, ["bad", "good"]).eval()
    student, out = tmp_path / "student", tmp_path / "out"
    model.save_pretrained(student)
    tokenizer.save_pretrained(student)
    out.mkdir()
    before = model.config.to_dict() | {"attention": model.config._attn_implementation}
    capfd.readouterr(), caplog.clear(), recwarn.clear()
    files = Cpu(BOTH).export(student, out, model, [inputs(1, 1, 0)], 64)
    assert (*capfd.readouterr(), caplog.text, recwarn.list) == ("", "", "", [])
    assert files == {"fp32": out / "model.onnx", "int8": out / "model.int8.onnx"}
    names = {"model.onnx", "model.int8.onnx", "config.json", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in out.iterdir()} == names
    assert model.config.to_dict() | {"attention": model.config._attn_implementation} == before
    assert not model.training


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("pair", [False, True])
def test_a_long_text_is_cut_off_by_its_own_tokenizer(
    side: str, pair: bool, tokenizer, tmp_path: Path
) -> None:
    """An application that asks for no truncation crashes at the first long text, or reads its other end."""
    student = tmp_path / "student"
    model = bert(tokenizer, ["bad", "good"]).eval()
    tokenizer.save_pretrained(student)
    tokenizer = AutoTokenizer.from_pretrained(student, truncation_side=side)
    tokenizer.backend_tokenizer.enable_padding(length=64)  # as many on the hub have been saved
    for each in (model, tokenizer):
        each.save_pretrained(student)
    words = " ".join(text for text, _ in sentences(20))
    texts = (words, "good film") if pair else (words,)
    expected = tokenizer(*texts, truncation=True, max_length=12)["input_ids"]
    row = dict(tokenizer("a film", return_tensors="pt"))
    Cpu(["fp32"]).export(student, tmp_path, model, [row], 12)
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(*texts).ids == expected
    untouched = AutoTokenizer.from_pretrained(tmp_path)
    assert untouched(words)["input_ids"] == tokenizer(words)["input_ids"], "transformers does as it is told"


def test_what_a_protobuf_cannot_hold_lies_in_one_file_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above 2 GB the exporter writes one file a tensor, and protobuf refuses the rest."""
    monkeypatch.setattr(cpu, "TWO_GB", 1000)
    model, batch = create(CONFIGS["Bert"]), inputs(2, 9, 0)
    files = Cpu(BOTH).export(tmp_path, tmp_path, model, [batch], 64)
    names = {"model.onnx", "model.onnx.data", "model.int8.onnx", "model.int8.onnx.data"}
    assert {path.name for path in tmp_path.iterdir()} == names
    with torch.inference_mode():
        np.testing.assert_allclose(ask(files["fp32"], batch), model(**batch).logits.numpy(), atol=1e-5)


@pytest.mark.parametrize("opset", [14, 20])
def test_the_opset_is_the_one_asked_for(opset: int, tmp_path: Path) -> None:
    """An older runtime refuses a file of a newer opset, whatever is in it."""
    files = Cpu(BOTH, opset=opset).export(tmp_path, tmp_path, create(CONFIGS["Bert"]), [inputs(2, 3, 0)], 64)
    for file in files.values():
        assert [entry.version for entry in onnx.load(file).opset_import if entry.domain == ""] == [opset]
    assert ask(files["int8"], inputs(3, 4, 0)).shape == (3, 3)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnx_ir"])
def test_a_missing_package_is_named_with_its_remedy(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A traceback about a module that the user never heard of."""
    for name in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ExportError, match=naming(package, "pip install 'kdcli[cpu]'")):
        Cpu([*BOTH, "int4"]).export(tmp_path, tmp_path, create(CONFIGS["Bert"]), [inputs(2, 3, 0)], 64)


def test_an_architecture_that_cannot_be_traced_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exporter's own message is a page long and does not name the model."""
    model = create(CONFIGS["Bert"])

    def fail(**_: object) -> None:
        raise RuntimeError("no such operator\nand a page more")

    monkeypatch.setattr(model, "forward", fail)
    wanted = naming("BertForSequenceClassification", "ONNX", "opset 17", "no such operator")
    with pytest.raises(ExportError, match=wanted) as caught:
        Cpu(BOTH).export(tmp_path, tmp_path, model, [inputs(2, 3, 0)], 64)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    assert model.config._attn_implementation == "sdpa"
