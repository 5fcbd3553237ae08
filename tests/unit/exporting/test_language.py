"""ONNX graphs of language models: one for the prompt and each further token, which says what torch says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from safetensors.numpy import load_file
from support.architectures import MODELS, UNCUT, VOCABULARY
from support.commands import naming, some
from support.exporting import run_worker
from support.tiny import exchanges, speaker, speller

from kdcli.errors import ExportError
from kdcli.exporting.runtimes import runtime_of
from kdcli.exporting.runtimes import torch as torch_runtime
from kdcli.exporting.runtimes.onnx import OnnxCausalLM
from kdcli.exporting.targets.cpu import Cpu
from kdcli.exporting.writers import causal_lm as language
from kdcli.generation import generate
from kdcli.measure.models import measure
from kdcli.measure.spec import MeasureSpec

ALL = ["fp32", "int8", "int4"]
FAMILIES = ("llama", "mistral", "smollm3", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "gpt2", "bloom")
TEXTS = [prompt for prompt, _ in exchanges(6, seed=3)]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with tied embeddings that has learnt most of `exchanges`."""
    return speaker(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def model(student: Path) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(student).eval()


@pytest.fixture(scope="module")
def files(
    student: Path, model: transformers.PreTrainedModel, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    return Cpu().export(student, tmp_path_factory.mktemp("out"), model, [], 64)


@pytest.fixture(scope="module")
def asked(student: Path) -> tuple[list[list[Any]], list[list[list[int]]]]:
    """Prompts with their ids, and rows: of the first every token but the first counts, of the others some, of one none."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(student)
    ids = [tokenizer(text).input_ids for text in TEXTS]
    rows = [[row, [*range(1 + number, len(row), 1 + number)]] for number, row in enumerate(ids)]
    rows[-1][1] = []
    return [list(pair) for pair in zip(TEXTS, ids, strict=True)], rows


def spec(file: Path, **more: Any) -> MeasureSpec:
    options: dict[str, Any] = {"latency_runs": 2, "throughput_seconds": 0.01, "new_tokens": 4} | more
    return MeasureSpec("onnx", str(file), str(file.parent), 64, "AutoModelForCausalLM", **options)


def expected(
    model: transformers.PreTrainedModel, rows: list[list[list[int]]]
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probability of each counted token, and the likeliest token there."""
    log_prob, top = [], []
    for ids, places in rows:
        with torch.no_grad():
            said = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        log_prob += [said[place - 1, ids[place]].item() for place in places]
        top += [said[place - 1].argmax().item() for place in places]
    return np.asarray(log_prob), np.asarray(top)


def logits(session: onnxruntime.InferenceSession, ids: Any, mask: Any, steps: list[int]) -> np.ndarray:
    """(B, L, C), of so many tokens at a time."""
    past = {
        entry.name: np.zeros((len(ids), entry.shape[1], 0, entry.shape[3]), np.float32)
        for entry in session.get_inputs()
        if entry.name.startswith("past_key_values.")
    }
    places, at, found = np.maximum(mask.cumsum(-1) - 1, 0), 0, []
    for step in steps:
        inputs = {"input_ids": ids[:, at : at + step], "attention_mask": mask[:, : at + step]}
        inputs |= {"position_ids": places[:, at : at + step]} | past
        said, *parts = session.run(None, inputs)
        past = dict(zip(past, parts, strict=True))
        found.append(said)
        at += step
    return np.concatenate(found, 1)


@pytest.mark.parametrize("family", some(FAMILIES, "llama", "gemma3", "gpt2", "qwen3"))
def test_any_batch_and_any_pieces_give_the_logits_of_torch(family: str, tmp_path: Path) -> None:
    """A length, a past or a mask of the sample that is a constant of the graph is right for that sample alone; padding on the
    left that is seen; positions that begin anew after the prompt; a window that forgets too much; a graph that refuses positions."""
    model = (MODELS | UNCUT)[family](**{"n_embd" if family == "gpt2" else "hidden_size": 64})
    model.save_pretrained(tmp_path / "student")
    kept = model.config.to_dict() | {"attention": model.config._attn_implementation}
    (out := tmp_path / "out").mkdir()
    files = Cpu(ALL, opset=18).export(tmp_path / "student", out, model, [], 40)
    assert model.config.to_dict() | {"attention": model.config._attn_implementation} == kept
    sessions = {precision: onnxruntime.InferenceSession(file) for precision, file in files.items()}
    for rows, steps in (1, [1, 1, 1]), (3, [7, 1, 3, 1]), (2, [12, 5]):
        ids = torch.randint(4, VOCABULARY, (rows, sum(steps)), generator=torch.Generator().manual_seed(rows))
        mask = torch.ones_like(ids)
        mask[0, : steps[0] // 2] = 0
        places = (mask.cumsum(-1) - 1).clamp(min=0)
        with torch.no_grad():
            truth = model(input_ids=ids, attention_mask=mask, position_ids=places).logits.numpy()
        seen = mask.bool().numpy()
        said = {name: logits(run, ids.numpy(), mask.numpy(), steps)[seen] for name, run in sessions.items()}
        np.testing.assert_allclose(said["fp32"], truth[seen], atol=2e-4)
        assert np.corrcoef(said["int8"].ravel(), truth[seen].ravel())[0, 1] > 0.995
        assert np.corrcoef(said["int4"].ravel(), truth[seen].ravel())[0, 1] > 0.8
    sizes = [file.stat().st_size for file in files.values()]
    assert sizes == sorted(sizes, reverse=True)


def test_names_and_axes_are_those_that_others_look_for(files: dict[str, Path]) -> None:
    """transformers.js and Optimum find the cache by its names, and transformers.js the batch by its axis'."""
    for file in files.values():
        graph = onnx.load(file).graph
        axes = {
            entry.name: [each.dim_param or each.dim_value for each in entry.type.tensor_type.shape.dim]
            for entry in (*graph.input, *graph.output)
        }
        rows = ["batch_size", "sequence_length"]
        cache = ["batch_size", 2, "past_sequence_length", 16]
        assert [entry.name for entry in graph.input][:4] == [
            "input_ids", "attention_mask", "position_ids", "num_logits_to_keep",
        ]  # fmt: skip
        assert [entry.name for entry in graph.output][:3] == ["logits", "present.0.key", "present.0.value"]
        assert axes["input_ids"] == axes["position_ids"] == rows
        assert axes["logits"] == ["batch_size", "num_logits_to_keep", 340]
        assert axes["attention_mask"] == ["batch_size", "total_sequence_length"]
        assert axes["past_key_values.1.value"] == cache
        assert axes["present.1.value"][:2] + axes["present.1.value"][3:] == cache[:2] + cache[3:]
    assert {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"} <= {
        path.name for path in files["fp32"].parent.iterdir()
    }


def test_last_logits_alone_where_they_are_asked_for(files: dict[str, Path]) -> None:
    """A prompt's logits are most of the work where the vocabulary is large and the model small, and one row of them is read; who does
    not know of the input must get them all."""
    ids = np.arange(4, 16)[None].repeat(2, 0)
    for file in files.values():
        session = onnxruntime.InferenceSession(file)
        assert "num_logits_to_keep" not in [entry.name for entry in session.get_inputs()]
        whole = logits(session, ids, np.ones_like(ids), [12])
        past = {name: np.zeros((2, 2, 0, 16), np.float32) for name in OnnxCausalLM(spec(file)).empty}
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(12)[None]}
        inputs["position_ids"] = inputs["position_ids"].repeat(2, 0)
        for keep in 0, 1, 5:
            (said,) = session.run(["logits"], inputs | past | {"num_logits_to_keep": np.asarray(keep)})
            np.testing.assert_allclose(said, whole[:, -keep:], atol=1e-4)


def written(writer: Any, ids: list[int], count: int) -> list[int]:
    """What a runtime tells of, token by token."""
    told: list[int] = []
    writer.generate({"input_ids": np.asarray([ids])}, count, told.append)
    assert len(told) == count
    return told


def test_what_is_streamed_is_torch_s_greedy_text(
    student: Path, model: transformers.PreTrainedModel, files: dict[str, Path], asked: Any
) -> None:
    """A cache that is right for a prompt and wrong for what follows, or times of tokens that nobody would be shown."""
    prompts, _ = asked
    tokenizer = transformers.AutoTokenizer.from_pretrained(student)
    texts = generate(model, tokenizer, [ids for _, ids in prompts], max_new_tokens=12, batch_size=1)
    assert len({tuple(text) for text in texts}) > 1
    as_torch = replace(spec(files["fp32"]), runtime="torch", path=str(student), tokenizer=str(student))
    for writer in OnnxCausalLM(spec(files["fp32"])), torch_runtime.TorchCausalLM(as_torch):
        told = [written(writer, ids, 12) for _, ids in prompts]
        assert [text[: len(held)] for text, held in zip(told, texts, strict=True)] == texts


def test_the_runtime_says_of_each_token_what_torch_says(
    model: transformers.PreTrainedModel, files: dict[str, Path], asked: Any, tmp_path: Path
) -> None:
    """Of a neighbouring position, or of rows in another order: the artifact's score would be another metric than the student's."""
    prompts, rows = asked
    truth, top = expected(model, rows)
    worst = {}
    for precision, file in files.items():
        assert runtime_of(file) == "onnx"
        found = measure(spec(file, predictions=str(tmp_path / "answers")), prompts, rows)
        said = load_file(tmp_path / "answers")
        assert said["same_tokens"].tolist() == [True] * len(prompts)
        assert said["log_prob"].dtype == np.float32
        worst[precision] = np.abs(said["log_prob"] - truth).max()
        assert (said["top"] == top).mean() >= {"fp32": 1, "int8": 0.9, "int4": 0.7}[precision]
        assert 0 < found.latency_ms["p50"] <= found.latency_ms["p95"]
        assert found.throughput_per_s > 0
        assert found.batch_size is None
        assert found.first_token_ms == {name: found.latency_ms[name] for name in ("p50", "p95")}
        assert 0 < found.between_tokens_ms["p50"] <= found.between_tokens_ms["p95"]
    assert worst["fp32"] < 1e-4 < worst["int8"] < worst["int4"]


def test_head_and_embeddings_are_stored_once(
    files: dict[str, Path], model: transformers.PreTrainedModel
) -> None:
    """A vocabulary is a fifth of a small model: twice, and once more in fp32, it is most of the file."""
    weights = sum(parameter.numel() for parameter in model.parameters())
    stored = {}
    for precision, file in files.items():
        graph = onnx.load(file).graph
        stored[precision] = sum(len(tensor.raw_data) for tensor in graph.initializer)
        assert sum(list(tensor.dims)[:1] == [340] for tensor in graph.initializer) == (
            1 if precision == "fp32" else 2
        )
    assert stored["fp32"] < 4 * weights * 1.05
    assert stored["int8"] < 1.2 * weights * 1.05
    kinds = [node.op_type for node in onnx.load(files["int4"]).graph.node]
    assert kinds.count("MatMulNBits") == 2 * 7 + 1
    assert kinds.count("GatherBlockQuantized") == 1


def test_blocks_are_what_the_operators_read(tmp_path: Path) -> None:
    """Halves of a byte that are swapped, or a scale of the wrong sign, are seen in no shape."""
    matrix = np.random.default_rng(0).normal(size=(5, 80)).astype(np.float32)
    matrix[2, :32] = 0
    for bits, error in (8, 0.02), (4, 0.3):
        numbers, scales = language._blocks(matrix, bits)
        assert numbers.shape == (5, 3, 4 * bits)
        node = onnx.helper.make_node(
            "MatMulNBits", ["x", "b", "s"], ["y"], domain=language.OWN, N=5, K=80, bits=bits, block_size=32
        )
        kind = onnx.TensorProto.FLOAT
        graph = onnx.helper.make_graph(
            [node],
            "product",
            [onnx.helper.make_tensor_value_info("x", kind, ["rows", 80])],
            [onnx.helper.make_tensor_value_info("y", kind, ["rows", 5])],
            [onnx.numpy_helper.from_array(part, name) for name, part in (("b", numbers), ("s", scales))],
        )
        versions = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid(language.OWN, 1)]
        whole = onnx.helper.make_model(graph, opset_imports=versions, ir_version=8)
        language.save(whole, tmp_path / "product.onnx")
        session = onnxruntime.InferenceSession(tmp_path / "product.onnx")
        found = session.run(None, {"x": np.eye(80, dtype=np.float32)})[0].T
        np.testing.assert_allclose(found, matrix, atol=error)
        assert (found[2, :32] == 0).all()


def test_above_two_gigabytes_the_weights_lie_beside(
    student: Path, model: transformers.PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A protobuf file cannot hold more, and says so only when it is written."""
    monkeypatch.setattr(language, "TWO_GB", 60_000)
    files = Cpu(ALL).export(student, tmp_path, model, [], 64)
    assert (tmp_path / "model.onnx.data").stat().st_size > 4 * 30_000
    assert not (tmp_path / "model.int4.onnx.data").exists()
    assert files["fp32"].stat().st_size < 120_000
    for file in files.values():
        written(OnnxCausalLM(spec(file)), [5, 6], 3)


def test_fp32_has_standard_operators_of_the_opset_asked_for(
    student: Path, model: transformers.PreTrainedModel, tmp_path: Path
) -> None:
    """A runtime that reads older operators alone, or none of ONNX Runtime's own, cannot load the file."""
    files = Cpu(["fp32"], opset=14).export(student, tmp_path, model, [], 64)
    graph = onnx.load(files["fp32"])
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", 14)]
    assert not {node.domain for node in graph.graph.node} - {"", "ai.onnx"}
    written(OnnxCausalLM(spec(files["fp32"])), [5, 6], 3)


def test_its_process_imports_no_torch(files: dict[str, Path], asked: Any, tmp_path: Path) -> None:
    """Torch alone takes more memory than a small student: the file's peak would be torch's."""
    prompts, rows = asked
    worker = spec(files["int4"], predictions=str(tmp_path / "answers"))
    responses, loaded = run_worker(worker, prompts, {"method": "memory"}, {"method": "predict", "rows": rows})
    assert {"onnxruntime", "tokenizers"} <= loaded
    assert not loaded & {"torch", "transformers", "datasets", "pydantic", "onnx"}
    began, peak, _ = responses
    assert min(peak, began["import_memory"]) > 0


def test_a_tokenizer_that_cuts_elsewhere_is_found_out(
    student: Path, model: transformers.PreTrainedModel, asked: Any, tmp_path: Path
) -> None:
    """All figures are taken on the student's own token ids: a file beside that reads other tokens would pass, and fail its users."""
    files = Cpu(["int8"]).export(student, tmp_path, model, [], 64)
    speller(size=280).save_pretrained(tmp_path)
    measure(spec(files["int8"], predictions=str(tmp_path / "answers"), speed=False), *asked)
    assert not load_file(tmp_path / "answers")["same_tokens"].all()


def test_a_file_that_cannot_be_run_is_told(files: dict[str, Path], asked: Any, tmp_path: Path) -> None:
    """A number for a model that never ran."""
    broken = files["fp32"].parent / "broken.onnx"
    broken.write_bytes(files["fp32"].read_bytes()[:50_000])
    with pytest.raises(ExportError, match=naming("broken.onnx", "run by onnx")):
        measure(spec(broken), *asked)
    broken.unlink()


def test_an_architecture_without_such_a_cache_is_refused_by_name(tmp_path: Path) -> None:
    """A traceback from within the exporter."""
    shape = {"vocab_size": 40, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 2}
    model = transformers.MambaForCausalLM(transformers.MambaConfig(**shape)).eval()
    with pytest.raises(ExportError, match=naming("MambaForCausalLM", "ONNX")) as caught:
        Cpu(["fp32"]).export(tmp_path, tmp_path, model, [], 64)
    assert "\n" not in str(caught.value)
