"""ONNX graphs and CTranslate2 models of translators: they write what the student writes, token by token."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import ctranslate2
import datasets
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from safetensors.numpy import load_file
from support.commands import naming, some
from support.exporting import run_worker
from support.tiny import pairs

from kdcli.errors import ExportError
from kdcli.exporting.artifacts import reproduced_texts
from kdcli.exporting.runtimes import ctranslate2 as ctranslate2_runtime
from kdcli.exporting.runtimes import onnx as onnx_runtime
from kdcli.exporting.runtimes import runtime_of
from kdcli.exporting.runtimes import torch as torch_runtime
from kdcli.exporting.targets.cpu import Cpu
from kdcli.exporting.writers.seq2seq import copy_files, write_ctranslate2
from kdcli.generation import translate
from kdcli.measure.models import measure
from kdcli.measure.runtime import Seq2SeqRuntime
from kdcli.measure.spec import MeasureSpec
from kdcli.measure.worker import Worker
from kdcli.models.checkpoint import Checkpoint, load_tokenizer
from kdcli.students.encoder_decoder import EncoderDecoder, learn_vocabulary

BOTH = ["fp32", "int8"]
LENGTH = 24
PAIRS = pairs(300, longest=4)
BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64, "dropout": 0.0,
    "attention_dropout": 0.0, "bos_token_id": None, "forced_eos_token_id": None, "init_std": 0.15,
}  # fmt: skip
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}
GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Marian": ("Marian", BART | {"scale_embedding": True, "activation_function": "relu"}),
    "Bart": ("Bart", BART),
    "MBart": ("MBart", BART),
    "M2M100": ("M2M100", BART),
    "Pegasus": ("Pegasus", BART),
    "T5": ("T5", T5),
    "T5 1.1": ("T5", T5 | GATED),
    "MT5": ("MT5", T5 | GATED),
    "UMT5": ("UMT5", T5 | GATED),
}
START_AT_END = ("Bart", "MBart", "M2M100")


def create(tokenizer: Any, family: str, steps: int = 40, **changes: Any) -> transformers.PreTrainedModel:
    """A model of a moment's training, so that it ends its texts and its weights are no longer those that they were initialized with."""
    name, shape = FAMILIES[family]
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    own = {"vocab_size": len(tokenizer), "pad_token_id": pad, "eos_token_id": end}
    own |= {"decoder_start_token_id": end if name in START_AT_END else pad}
    own |= {"decoder_vocab_size": len(tokenizer)} if name == "Marian" else {}
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**shape | own | changes)
    model = transformers.AutoModelForSeq2SeqLM.from_config(config).train()
    with torch.no_grad():
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_(0, 0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for start in [number * 32 % 288 for number in range(steps)]:
        sources, targets = (
            tokenizer([pair[side] for pair in PAIRS[start : start + 32]], return_tensors="pt", padding=True)
            for side in (0, 1)
        )
        labels = targets["input_ids"].masked_fill(targets["attention_mask"] == 0, -100)
        model(**sources, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def saved(model: transformers.PreTrainedModel, tokenizer: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def spec(runtime: str, folder: Path, given: Sequence[int] = (), **more: Any) -> MeasureSpec:
    options: dict[str, Any] = {"latency_runs": 4, "throughput_seconds": 0.05} | more
    where = runtime, str(folder), str(folder), LENGTH + len(given), "AutoModelForSeq2SeqLM"
    return MeasureSpec(*where, decoder_prefix=list(given), **options)  # type: ignore[arg-type]


def torch_texts(
    model: transformers.PreTrainedModel, tokenizer: Any, sources: list[list[int]], given: Sequence[int] = ()
) -> list[list[int]]:
    return translate(model, tokenizer, sources, given, max_new_tokens=LENGTH, batch_size=8)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Its tokens that end and pad stand first, as those that `kdcli` learns do."""
    rows = {"source": [source for source, _ in PAIRS], "target": [target for _, target in PAIRS]}
    return learn_vocabulary(datasets.Dataset.from_dict(rows), 330)


@pytest.fixture(scope="module")
def sources(tokenizer: Any) -> list[list[int]]:
    return tokenizer([source for source, _ in pairs(16, seed=3)])["input_ids"]


@pytest.fixture(scope="module")
def student(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    return saved(create(tokenizer, "Marian"), tokenizer, folder)


@pytest.fixture(scope="module")
def files(student: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    model = transformers.MarianMTModel.from_pretrained(student)
    return Cpu(BOTH).export(student, tmp_path_factory.mktemp("out"), model, [], LENGTH)


@pytest.mark.parametrize("family", some(FAMILIES, "Marian", "M2M100", "T5"))
def test_all_runtimes_write_what_torch_writes(
    family: str, tokenizer: Any, sources: list[list[int]], tmp_path: Path
) -> None:
    """A start token, a mask, a position or a scale that is another one, whole layers of norms in the wrong place, or weights that
    an exporter rounded in place: each gives a fluent other text (https://github.com/huggingface/transformers/issues/41430)."""
    model = create(tokenizer, family)
    folder = saved(model, tokenizer, tmp_path / "student")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kept = model.config.to_dict() | {"attention": model.config._attn_implementation}
    (out := tmp_path / "out").mkdir()
    files = Cpu(BOTH).export(folder, out, model, [], LENGTH)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.config.to_dict() | {"attention": model.config._attn_implementation} == kept
    write_ctranslate2(model, tokenizer, whole := tmp_path / "whole", "float32")
    copy_files(folder, whole, model)
    for given in [], [tokenizer.convert_tokens_to_ids("Ġdos")]:
        expected = torch_texts(model, tokenizer, sources, given)
        assert len(set(map(tuple, expected))) > 3, "texts that say nothing about their sources"
        assert any(text[-1] == tokenizer.eos_token_id for text in expected)
        exact: list[Callable[[MeasureSpec], Any]] = [
            torch_runtime.TorchSeq2Seq,
            onnx_runtime.OnnxSeq2Seq,
            ctranslate2_runtime.CTranslate2Seq2Seq,
        ]
        for runtime, place in zip(exact, (folder, files["fp32"], whole), strict=True):
            write = runtime(spec("", place, given))
            assert [write(ids) for ids in sources] == expected, runtime
        rounded = ctranslate2_runtime.CTranslate2Seq2Seq(spec("", files["int8"], given))
        share = reproduced_texts(tokenizer, expected, [rounded(ids) for ids in sources])["agreement"]
        # the tokens of random weights are near ties, which the int8 kernels of processors break differently; unrelated texts share 0.01
        assert share > 0.1
    assert {file.name for file in out.iterdir()} == {"onnx", "ctranslate2"}


def test_threads_are_those_that_were_asked_for(
    student: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times of a runtime that takes all processors there are."""
    asked: list[Any] = []  # by libraries whose threads are those of the other tests as well
    translator = ctranslate2.Translator
    monkeypatch.setattr(
        ctranslate2,
        "Translator",
        lambda *given, **how: asked.append(how) or translator(*given, **how | {"intra_threads": 1}),
    )
    ctranslate2_runtime.CTranslate2Seq2Seq(spec("", files["int8"], threads=3))
    assert [(how["inter_threads"], how["intra_threads"]) for how in asked] == [(1, 3)]
    onnx = onnx_runtime.OnnxSeq2Seq(spec("", files["fp32"], threads=3))
    sessions = [onnx.encoder, onnx.first, onnx.later]
    assert {session.get_session_options().intra_op_num_threads for session in sessions} == {3}
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    torch_runtime.TorchSeq2Seq(spec("", student, threads=3))
    assert asked[1:] == [3]


def test_the_folders_are_whole(student: Path, files: dict[str, Path]) -> None:
    """An application has nothing but the folder: transformers must find tokenizer and config in it, and whoever runs the graphs
    where a text begins and ends."""
    known = json.loads((student / "config.json").read_text())
    for folder in files.values():
        assert transformers.AutoConfig.from_pretrained(folder).model_type == "marian"
        assert transformers.AutoTokenizer.from_pretrained(folder)("dos")["input_ids"]
        said = json.loads((folder / "generation_config.json").read_text())
        assert said["decoder_start_token_id"] == known["decoder_start_token_id"]
        assert said["eos_token_id"] == known["eos_token_id"]
    assert (runtime_of(files["fp32"]), runtime_of(files["int8"])) == ("onnx", "ctranslate2")
    assert runtime_of(student) == "torch"
    size = {name: sum(file.stat().st_size for file in folder.iterdir()) for name, folder in files.items()}
    assert size["int8"] < size["fp32"]


def test_any_batch_and_any_length_give_the_logits_of_torch(student: Path, files: dict[str, Path]) -> None:
    """A shape of the sample, or its mask, that is baked into a graph is right for that sample alone; padding that is seen; an
    operator that runtimes outside Python lack."""
    model = transformers.MarianMTModel.from_pretrained(student).eval()
    pad, start = model.config.pad_token_id, model.config.decoder_start_token_id
    run = {file.stem: onnxruntime.InferenceSession(file) for file in files["fp32"].glob("*.onnx")}
    for file in files["fp32"].glob("*.onnx"):
        graph = onnx.load(file, load_external_data=False)
        assert not {node.domain for node in graph.graph.node} - {"", "ai.onnx"}
        assert [entry.version for entry in graph.opset_import if entry.domain == ""] == [17]
    for rows, read, first in (1, 1, 1), (3, 17, 2), (7, 4, 5):
        ids, mask = torch.randint(3, 300, (rows, read)), torch.ones(rows, read).long()
        ids[-1, max(1, read // 2) :], mask[-1, max(1, read // 2) :] = pad, 0
        target = torch.cat([torch.full((rows, 1), start), torch.randint(3, 300, (rows, first + 2))], 1)
        with torch.inference_mode():
            expected = model(input_ids=ids, attention_mask=mask, decoder_input_ids=target).logits.numpy()
        named = {"encoder_attention_mask": mask.numpy()}
        hidden = run["encoder_model"].run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]
        known = named | {"encoder_hidden_states": hidden, "input_ids": target[:, : first + 1].numpy()}
        logits, session = [], run["decoder_model"]
        for place in range(first + 1, first + 4):
            asked = {entry.name: known[entry.name] for entry in session.get_inputs()}
            names = [entry.name.replace("present", "past_key_values") for entry in session.get_outputs()]
            known |= dict(zip(names, session.run(None, asked), strict=True))
            logits.append(known["logits"])
            session = run["decoder_with_past_model"]
            known["input_ids"] = target[:, place : place + 1].numpy()
        found = np.concatenate(logits, 1)
        assert (found[..., pad] < -1e8).all()
        expected[..., pad] = found[..., pad] = 0
        np.testing.assert_allclose(found, expected, atol=2e-4)


def test_graphs_share_their_weights(tokenizer: Any, tmp_path: Path) -> None:
    """A vocabulary that lies in three graphs, and turned once more, makes the folder thrice as large as the student."""
    model = create(tokenizer, "Marian", steps=0, d_model=128, encoder_ffn_dim=512, decoder_ffn_dim=512)
    folder = saved(model, tokenizer, tmp_path / "student")
    (out := tmp_path / "out").mkdir()
    files = Cpu(["fp32"]).export(folder, out, model, [], LENGTH)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    assert (files["fp32"] / "model.onnx.data").stat().st_size < 1.05 * weights
    assert sum(file.stat().st_size for file in files["fp32"].glob("*.onnx")) < 0.25 * weights


def test_the_padding_token_is_never_written(tokenizer: Any, sources: list[list[int]], tmp_path: Path) -> None:
    """torch is kept from writing it; a runtime that is not would write it wherever it happens to be likeliest."""
    model = create(tokenizer, "Marian")
    model.final_logits_bias[0, tokenizer.pad_token_id] = 50.0
    folder = saved(model, tokenizer, tmp_path / "student")
    (out := tmp_path / "out").mkdir()
    files = Cpu(BOTH).export(folder, out, model, [], LENGTH)
    expected = torch_texts(model, tokenizer, sources)
    assert not any(tokenizer.pad_token_id in text for text in expected)
    assert [onnx_runtime.OnnxSeq2Seq(spec("", files["fp32"]))(ids) for ids in sources] == expected
    rounded = [ctranslate2_runtime.CTranslate2Seq2Seq(spec("", files["int8"]))(ids) for ids in sources]
    assert reproduced_texts(tokenizer, expected, rounded)["agreement"] > 0.5


def test_an_empty_translation_stays_empty(tokenizer: Any, sources: list[list[int]], tmp_path: Path) -> None:
    """CTranslate2 writes at least one token unless it is told otherwise, and would be better or worse than the student by it."""
    model = create(tokenizer, "Marian")
    model.final_logits_bias[0, tokenizer.eos_token_id] = 50.0
    folder = saved(model, tokenizer, tmp_path / "student")
    (out := tmp_path / "out").mkdir()
    files = Cpu(BOTH).export(folder, out, model, [], LENGTH)
    for write in (
        onnx_runtime.OnnxSeq2Seq(spec("", files["fp32"])),
        ctranslate2_runtime.CTranslate2Seq2Seq(spec("", files["int8"])),
    ):
        assert write(sources[0]) == [tokenizer.eos_token_id]


@pytest.mark.parametrize("sides", [1, 2], ids=["one vocabulary", "two vocabularies"])
def test_a_marian_of_the_hub_has_its_vocabulary_in_sentencepiece_files(sides: int, tmp_path: Path) -> None:
    """Opus-MT's models have no tokenizer.json, and their padding token stands last. Some have another vocabulary for targets: its file is
    left behind, or a target's token is looked up among the source's."""
    sentencepiece = pytest.importorskip("sentencepiece")
    (text := tmp_path / "text").write_text("\n".join(f"{source}\n{target}" for source, target in PAIRS))
    (folder := tmp_path / "student").mkdir()
    files: list[str] = []
    for number, side in enumerate(("source", "target")):
        sentencepiece.SentencePieceTrainer.train(
            input=str(text), model_prefix=str(tmp_path / side), vocab_size=50, minloglevel=2
        )
        (tmp_path / f"{side}.model").rename(folder / f"{side}.spm")
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / f"{side}.spm"))
        tokens = {"</s>": 0, "<unk>": 1}
        order = range(pieces.get_piece_size())
        for piece in order if number == 0 else reversed(order):
            tokens.setdefault(pieces.id_to_piece(piece), len(tokens))
        tokens["<pad>"] = len(tokens)
        if number < sides:
            (folder / ["vocab.json", "target_vocab.json"][number]).write_text(json.dumps(tokens))
            files.append(str(folder / ["vocab.json", "target_vocab.json"][number]))
    shape = {"share_encoder_decoder_embeddings": sides == 1, "tie_word_embeddings": sides == 1}
    tokenizer = transformers.MarianTokenizer(
        str(folder / "source.spm"), str(folder / "target.spm"), *files, separate_vocabs=sides == 2
    )
    assert tokenizer.pad_token_id == len(tokens) - 1
    model = create(tokenizer, "Marian", **shape)
    saved(model, tokenizer, folder)
    student = Checkpoint(folder, "student")
    own = load_tokenizer(student, model)
    (out := tmp_path / "out").mkdir()
    files_of = Cpu(BOTH).export(folder, out, model, [], LENGTH)
    sources = own([source for source, _ in PAIRS[:12]])["input_ids"]
    expected = torch_texts(model, own, sources)
    assert [onnx_runtime.OnnxSeq2Seq(spec("", files_of["fp32"]))(ids) for ids in sources] == expected
    rounded = [ctranslate2_runtime.CTranslate2Seq2Seq(spec("", files_of["int8"]))(ids) for ids in sources]
    assert reproduced_texts(own, expected, rounded)["agreement"] > 0.5
    names = {"source.spm", "target.spm", "vocab.json"} | ({"target_vocab.json"} if sides == 2 else set())
    assert names <= {file.name for file in files_of["int8"].iterdir()}
    exported = transformers.AutoTokenizer.from_pretrained(files_of["int8"])
    assert exported(PAIRS[0][0])["input_ids"] == sources[0]
    assert exported(text_target=PAIRS[0][1])["input_ids"] == own(text_target=PAIRS[0][1])["input_ids"]
    before = student.tokenizer_hash
    (folder / Path(files[-1]).name).write_text(json.dumps(tokens | {"more": 60}))
    assert student.tokenizer_hash != before
    smaller = EncoderDecoder(16, 1, 1, 2, 32).over(own)
    assert smaller.config.share_encoder_decoder_embeddings == (sides == 1)


def test_what_ctranslate2_does_not_know_is_named_and_is_there_as_onnx(
    tokenizer: Any, sources: list[list[int]], tmp_path: Path
) -> None:
    """A converter's own message, or a user who gets no file at all."""
    config = transformers.BlenderbotSmallConfig(
        **BART
        | {"vocab_size": len(tokenizer), "decoder_start_token_id": 0, "eos_token_id": 0, "pad_token_id": 2}
    )
    model = transformers.BlenderbotSmallForConditionalGeneration(config).eval()
    folder = saved(model, tokenizer, tmp_path / "student")
    (out := tmp_path / "out").mkdir()
    with pytest.raises(
        ExportError,
        match=naming("BlenderbotSmallForConditionalGeneration", "marian", "hardware.precisions=[fp32]"),
    ):
        Cpu(BOTH).export(folder, out, model, [], LENGTH)
    assert not list(out.iterdir())
    files = Cpu(["fp32"]).export(folder, out, model, [], LENGTH)
    write = onnx_runtime.OnnxSeq2Seq(spec("", files["fp32"]))
    assert [write(ids) for ids in sources] == torch_texts(model, tokenizer, sources)


def test_a_setting_that_ctranslate2_lacks_is_told(tokenizer: Any, tmp_path: Path) -> None:
    """An activation that it does not have, or a second end of text, which it would never stop at."""
    model = create(tokenizer, "Marian", steps=0, activation_function="tanh")
    with pytest.raises(ExportError, match=naming("MarianMTModel", "CTranslate2", "tanh")):
        write_ctranslate2(model, tokenizer, tmp_path / "one", "int8")
    model = create(tokenizer, "Marian", steps=0)
    model.generation_config.eos_token_id = [0, 5]
    with pytest.raises(ExportError, match=naming("CTranslate2", "[0, 5]")):
        write_ctranslate2(model, tokenizer, tmp_path / "two", "int8")
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    with pytest.raises(ExportError, match="eos_token_id"):
        write_ctranslate2(model, tokenizer, tmp_path / "three", "int8")


@pytest.mark.parametrize(("package", "precision"), [("onnx", "fp32"), ("ctranslate2", "int8")])
def test_a_missing_package_is_named_with_its_remedy(
    package: str, precision: str, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A traceback about a module that the user never heard of, or one that is not needed for what was asked."""
    model = transformers.MarianMTModel.from_pretrained(student)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExportError, match=naming(package, "pip install 'kdcli[cpu]'")):
        Cpu([precision]).export(student, tmp_path, model, [], LENGTH)  # type: ignore[list-item]
    other = {"fp32": "int8", "int8": "fp32"}[precision]
    assert Cpu([other]).export(student, tmp_path, model, [], LENGTH)[other].is_dir()  # type: ignore[list-item]


# ---- measured ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("runtime", "precision"), [("onnx", "fp32"), ("ctranslate2", "int8")])
def test_its_process_imports_no_torch(
    runtime: str, precision: str, files: dict[str, Path], sources: list[list[int]], tmp_path: Path
) -> None:
    """Torch alone takes more memory than a small translator: the artifact's peak would be torch's."""
    asked = spec(runtime, files[precision], predictions=str(tmp_path / "texts.safetensors"))
    responses, loaded = run_worker(
        asked, sources, {"method": "memory"}, {"method": "predict", "rows": sources}
    )
    assert {"onnx": "onnxruntime"}.get(runtime, runtime) in loaded
    assert not loaded & {"torch", "transformers", "datasets", "pydantic"}
    began, peak, _ = responses
    assert min(peak, began["import_memory"]) > 0


def test_torch_and_artifacts_are_measured_alike(
    student: Path, files: dict[str, Path], tokenizer: Any, sources: list[list[int]], tmp_path: Path
) -> None:
    """Tokens a second of other texts, or texts that are handed back in another order than their sources."""
    model = transformers.MarianMTModel.from_pretrained(student)
    expected = torch_texts(model, tokenizer, sources)
    file = tmp_path / "texts.safetensors"
    for runtime, folder in ("torch", student), ("onnx", files["fp32"]):
        found = measure(spec(runtime, folder, predictions=str(file)), sources)
        assert 0 < found.latency_ms["p50"] <= found.latency_ms["p95"]
        assert found.throughput_per_s > 0
        assert found.peak_memory_bytes > 0
        said = load_file(file)
        ends = [0, *said["lengths"].cumsum().tolist()]
        assert [said["written"][one:other].tolist() for one, other in pairwise(ends)] == expected


def test_a_slow_translator_is_not_asked_for_every_row() -> None:
    """Two hundred translations by a large teacher take half an hour."""
    calls = []

    class Slow(Seq2SeqRuntime):
        def __init__(self) -> None: ...

        def __call__(self, ids: Sequence[int]) -> list[int]:
            calls.append(ids)
            time.sleep(0.01)
            return [1, 2, 3]

    rows = [[number] for number in range(100)]
    worker = Worker(Slow(), rows, spec("torch", Path(), throughput_seconds=0.005), None)
    turn = worker.latency(list(range(100)))
    assert len(calls) == 5 + 8
    assert min(turn["ms"]) >= 10
    assert turn["rates"] == [pytest.approx(1000 * 3 * 8 / sum(turn["ms"]))], "tokens a second"


def test_what_counts_asreproduced_texts(tokenizer: Any) -> None:
    """A share that counts what comes after the first difference, or beyond the student's own text."""
    one, two = tokenizer(["one dog", "dos gatos"])["input_ids"]
    assert reproduced_texts(tokenizer, [one, two], [one, two]) == {"agreement": 1.0, "same_texts": 1.0}
    other = [one[0], 40, *one[2:], 41]
    found = reproduced_texts(tokenizer, [one, two], [other, two])
    assert found == {"agreement": (1 + len(two)) / (len(one) + len(two)), "same_texts": 0.5}
