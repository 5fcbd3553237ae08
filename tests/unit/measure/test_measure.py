"""Speed, memory and logits of a model in its own process."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file
from support.commands import naming
from support.exporting import run_worker
from support.tiny import bert, sentences

from kdcli.config.measure import Measure
from kdcli.errors import ExportError
from kdcli.exporting.runtimes import onnx as onnx_runtime
from kdcli.exporting.runtimes import torch as torch_runtime
from kdcli.exporting.targets.cpu import Cpu
from kdcli.measure.models import measure, measure_checkpoint, measure_file
from kdcli.measure.process import Process, _highest_rate
from kdcli.measure.runtime import EncoderRuntime, Seq2SeqRuntime
from kdcli.measure.spec import UNKNOWN, Encoded, MeasureSpec
from kdcli.measure.worker import Worker
from kdcli.models.checkpoint import Checkpoint
from kdcli.tasks.classification.task import Classification

TEXTS = [[text] for text, _ in sentences(40)]
QUICK = {"latency_runs": 5, "throughput_seconds": 0.01, "batch_sizes": (4, 8)}
LENGTH = 12
TOLD = [{"method": "throughput", "size": 4}, {"method": "memory"}, {"method": "predict", "rows": TEXTS}]
TASK = Classification(["bad", "good"])


@pytest.fixture(scope="module")
def student(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT, as torch and as ONNX, with its tokenizer."""
    folder = tmp_path_factory.mktemp("measure")
    model = bert(tokenizer, ["bad", "good"]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "onnx").mkdir()
    Cpu(["fp32", "int8"]).export(
        folder, folder / "onnx", model, [tokenizer("a film", return_tensors="pt")], LENGTH
    )
    return folder


@pytest.fixture
def spec(student: Path) -> MeasureSpec:
    return MeasureSpec("onnx", str(student / "onnx" / "model.onnx"), str(student / "onnx"), LENGTH, **QUICK)


def expected(folder: Path, tokenizer, texts: list[list[str]]) -> np.ndarray:
    """Logits by the plainest way: one row at a time."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    names = set(tokenizer.model_input_names) & {"input_ids", "attention_mask", "token_type_ids"}
    if model.config.model_type == "distilbert":
        names -= {"token_type_ids"}
    with torch.inference_mode():
        rows = [tokenizer(*row, return_tensors="pt", truncation=True, max_length=LENGTH) for row in texts]
        return np.concatenate([model(**{name: row[name] for name in names}).logits.numpy() for row in rows])


def test_the_process_of_an_onnx_file_imports_no_torch(spec: MeasureSpec, tmp_path: Path) -> None:
    """Torch alone takes more memory than a small student: the artifact's peak would be torch's."""
    spec = replace(spec, predictions=str(tmp_path / "logits.safetensors"))
    responses, loaded = run_worker(spec, TEXTS, *TOLD)
    assert {"onnxruntime", "tokenizers"} <= loaded
    assert not loaded & {"torch", "transformers", "datasets", "pydantic"}
    began, _, memory, _ = responses
    assert min(memory, began["import_memory"]) > 0


def test_torch_and_onnx_give_the_logits_of_all_rows_in_their_order(
    student: Path, spec: MeasureSpec, tokenizer, tmp_path: Path
) -> None:
    """Rows that are sorted by length and not put back, pairs without segment ids, a cut at another place, padding
    that is seen: each makes the artifact's score one of other inputs."""
    texts = [*TEXTS, ["good film", "sad day"], ["a " * 30, "bad " * 30], ["the"], [""], ["Great é book!"]]
    truth = expected(student, tokenizer, texts)
    file = tmp_path / "logits.safetensors"
    torch_spec = replace(spec, runtime="torch", path=str(student), predictions=str(file))
    by_torch = measure(torch_spec, texts)
    np.testing.assert_allclose(load_file(file)["logits"], truth, atol=1e-5)
    by_onnx = measure(replace(spec, predictions=str(file)), texts)
    np.testing.assert_allclose(load_file(file)["logits"], truth, atol=1e-5)
    for found in by_torch, by_onnx:
        assert 0 < found.latency_ms["p50"] <= found.latency_ms["p95"] <= found.latency_ms["p99"]
        assert found.batch_size in (4, 8)
        assert found.throughput_per_s > 0
        assert found.load_seconds > 0
    assert by_onnx.peak_memory_bytes < by_torch.peak_memory_bytes


def test_a_graph_without_segment_ids_gets_none(tokenizer, tmp_path: Path) -> None:
    """A DistilBERT with BERT's tokenizer: ONNX Runtime refuses an input that the graph lacks."""
    config = transformers.DistilBertConfig(
        vocab_size=len(tokenizer), dim=16, n_layers=1, n_heads=2, hidden_dim=32, max_position_embeddings=32
    )
    model = transformers.DistilBertForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (out := tmp_path / "onnx").mkdir()
    sample = {name: torch.ones(1, 1).long() for name in ("input_ids", "attention_mask")}
    file = Cpu(["fp32"]).export(tmp_path, out, model, [sample], LENGTH)["fp32"]
    logits = tmp_path / "logits.safetensors"
    measure(MeasureSpec("onnx", str(file), str(out), LENGTH, speed=False, predictions=str(logits)), TEXTS)
    np.testing.assert_allclose(load_file(logits)["logits"], expected(tmp_path, tokenizer, TEXTS), atol=1e-5)


def test_an_int8_answer_does_not_depend_on_the_other_rows(
    student: Path, spec: MeasureSpec, tmp_path: Path
) -> None:
    """Dynamic int8 takes its scales from the whole batch: a row's label must not change with its neighbours."""
    out = str(tmp_path / "logits.safetensors")
    spec = replace(spec, path=str(student / "onnx" / "model.int8.onnx"), speed=False, predictions=out)
    assert measure(spec, TEXTS) == UNKNOWN
    whole = load_file(out)["logits"]
    measure(spec, TEXTS[:7])
    np.testing.assert_array_equal(load_file(out)["logits"], whole[:7])


def test_the_peak_is_not_inherited_from_the_parent(spec: MeasureSpec) -> None:
    """ru_maxrss starts at the parent's peak after fork and exec: every model then needs what training needed."""
    ballast = np.ones(100_000_000)  # 800 MB
    found = measure(spec, TEXTS)
    assert 1e5 < found.peak_memory_bytes < 100e6
    assert 10e6 < found.import_memory_bytes < 400e6 < ballast.nbytes


def test_a_file_that_cannot_be_run_is_told_with_the_runtimes_own_words(
    spec: MeasureSpec, student: Path, tmp_path: Path
) -> None:
    """A number for a model that never ran, or a failure without its reason."""
    broken = tmp_path / "broken.onnx"
    broken.write_bytes((student / "onnx" / "model.onnx").read_bytes()[:1000])
    with pytest.raises(ExportError, match=naming("broken.onnx", "run by onnx")) as caught:
        measure(replace(spec, path=str(broken)), TEXTS)
    assert "protobuf" in str(caught.value).lower()
    with pytest.raises(ExportError, match=naming("tokenizer_config.json")):
        measure(replace(spec, tokenizer=str(tmp_path)), TEXTS)


def test_no_module_of_the_working_directory_is_imported(
    spec: MeasureSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's tokenizers.py beside the data would be run instead of the package."""
    (tmp_path / "tokenizers.py").write_text("raise RuntimeError('the wrong one')")
    monkeypatch.chdir(tmp_path)
    assert measure(spec, TEXTS).throughput_per_s


def test_rows_of_a_split_are_measured_as_the_config_says(student: Path, tokenizer) -> None:
    """A second text that is dropped on the way, or settings that are read nowhere."""
    texts = [["good film", "sad day"], ["bad", "the"], ["so sweet", "a trip"]]
    columns = {"text": [text for text, _ in texts], "text_pair": [pair for _, pair in texts]}
    rows = datasets.Dataset.from_dict(columns | {"label": [0, 1, 0]})
    cfg = Measure(latency_runs=2, throughput_seconds=0.01)
    found = measure_file(
        cfg,
        "onnx",
        student / "onnx" / "model.onnx",
        student,
        TASK,
        TASK.inputs(rows, tokenizer),
        LENGTH,
    )
    np.testing.assert_allclose(found.pop("logits"), expected(student, tokenizer, texts), atol=1e-5)
    ids = [tokenizer(*row, truncation=True, max_length=LENGTH)["input_ids"] for row in texts]
    assert found.pop("lengths").tolist() == list(map(len, ids))
    assert found.pop("input_ids").tolist() == [token for row in ids for token in row]
    assert set(found) == set(asdict(UNKNOWN))
    assert [name for name, value in found.items() if not value] == [
        *("first_token_ms", "between_tokens_ms", "times_faster", "speedup", "load")
    ]


def test_requests_wait_for_one_another(spec: MeasureSpec) -> None:
    """Times of requests that come one after the other are no times of requests that come when they like."""
    spec = replace(spec, load_seconds=0.2, request_rates=(20, 50_000))
    with Process(spec, TEXTS) as process:
        found = process.load(TEXTS, limit=1000)
        assert process.load(TEXTS, limit=1e-6)["most_requests_per_s"] is None
    slow, fast = found["rates"]
    assert slow["busy"] < 0.9 < fast["busy"] <= 1
    assert slow["latency_ms"]["p95"] < fast["latency_ms"]["p50"]
    assert 20 < found["most_requests_per_s"] < 50_000


def test_the_highest_rate_on_paper_is_that_of_the_queue() -> None:
    """A rate at which the model alone is quick enough, and the queue before it grows without end."""
    served = np.full(100, 10.0)
    least, most = (_highest_rate(served, limit, 200.0) for limit in (11.0, 1000.0))
    assert _highest_rate(served, 9.0, 200.0) is None
    assert 0 < least < most < 100
    # M/D/1 at a load r: the mean wait is r / (2 (1 - r)) of a service, 95 % wait at most about three times that
    rate = _highest_rate(served, 40.0, 2000.0)
    assert 0.5 < rate * 0.01 < 0.8


def test_nothing_is_started_where_nothing_is_asked_for(
    student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """measure=null is for sweeps whose jobs run side by side: they must not pay for a process."""
    monkeypatch.setattr(subprocess, "Popen", None)
    process, found = measure_checkpoint(None, Checkpoint(student, "student"), TASK, TEXTS, LENGTH)
    assert process is None
    assert found == asdict(UNKNOWN)


def test_threads_are_those_that_were_asked_for(
    spec: MeasureSpec, student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times of a runtime, or of a library under it, that takes all processors there are."""
    spec = replace(spec, threads=3)
    with Process(spec, TEXTS) as process:
        process.round([0])  # it has begun
        variables = Path(f"/proc/{process._child.pid}/environ").read_text().split("\0")
        told = dict(variable.split("=", 1) for variable in variables if variable)
        assert {told[f"{name}_NUM_THREADS"] for name in ("OMP", "MKL", "OPENBLAS")} == {"3"}
        assert told["OMP_WAIT_POLICY"] == "passive"
    assert onnx_runtime.OnnxEncoder(spec).session.get_session_options().intra_op_num_threads == 3
    threads: list[int] = []  # torch's are those of the other tests as well
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    torch_runtime.TorchEncoder(replace(spec, runtime="torch", path=str(student)))
    assert threads == [3]


def test_each_turn_runs_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates of the short rows alone; or a hiccup that counts as often as it happens."""

    class Slow(EncoderRuntime):
        calls = 0

        def __init__(self) -> None:
            self.pad_values = {"input_ids": 0}

        def encode(self, prompts: list[list[int]]) -> list[Encoded]:
            return [{"input_ids": np.asarray(ids)} for ids in prompts]

        def __call__(self, batch: dict[str, np.ndarray]) -> np.ndarray:
            self.calls += 1
            time.sleep(0.01)
            return np.zeros((len(batch["input_ids"]), 2), np.float32)

    slow = Slow()
    spec = MeasureSpec("onnx", "", "", LENGTH, throughput_seconds=0.001)
    worker = Worker(slow, [[1] * length for length in range(1, 41)], spec, None)
    rate = worker.throughput(10)
    assert slow.calls == 1 + 4, "the largest batch beforehand, and each once"
    assert 0 < rate < 1000, "40 rows took at least 40 ms"
    worker.throughput(10)
    assert slow.calls == 1 + 4 + 4


def test_a_slow_model_is_not_run_thrice(spec: MeasureSpec) -> None:
    """Three passes of a large teacher take minutes, and are no more exact than one."""
    found = {}
    for seconds in 0.0, 1.0:
        with Process(replace(spec, throughput_seconds=0.1), TEXTS) as process:
            own, turns = process.throughput, []

            def pace(own: Any = own, turns: Any = turns, seconds: float = seconds) -> dict:
                turns.append(own())
                time.sleep(seconds)
                return turns[-1]

            process.throughput = pace
            process.measure()
        found[seconds] = len(turns)
    assert found == {0.0: 3, 1.0: 1}


@pytest.mark.parametrize("length", [None, 2, 9])
def test_rows_that_are_timed_have_the_length_that_was_asked_for(length: int | None) -> None:
    """A latency "at 128 tokens" that is one of short texts; or rows of padding, which some runtimes leave out."""
    seen: list[Encoded] = []

    class Seen(EncoderRuntime):
        def __init__(self) -> None:
            self.pad_values = {"input_ids": 0, "attention_mask": 0}

        def encode(self, prompts: list[list[int]]) -> list[Encoded]:
            return [{"input_ids": np.asarray(ids), "attention_mask": np.ones(len(ids))} for ids in prompts]

        def __call__(self, batch: Encoded) -> np.ndarray:
            seen.append(batch)
            return np.zeros((len(batch["input_ids"]), 2), np.float32)

    spec = MeasureSpec(
        "onnx", "", "", LENGTH, batch_sizes=(2,), sequence_length=length, throughput_seconds=0.01
    )
    prompts = [[2, 7, 3], [2, 7, 8, 9, 3]]
    worker = Worker(Seen(), prompts, spec, None)
    worker.latency([0, 1])
    worker.throughput(2)
    single = [batch["input_ids"][0].tolist() for batch in seen if len(batch["input_ids"]) == 1]
    assert (
        single[:2]
        == {None: prompts, 2: [[2, 7], [2, 7]], 9: [[2, 7, 3] * 3, [2, 7, 8, 9, 3, 2, 7, 8, 9]]}[length]
    )
    whole = [batch for batch in seen if len(batch["input_ids"]) == 2]
    assert {batch["input_ids"].shape[1] for batch in whole} == {length or 5}
    if length:
        assert all(batch["attention_mask"].all() for batch in whole)

    class Translator(Seq2SeqRuntime):
        def __init__(self) -> None: ...

        def __call__(self, inputs: Sequence[int]) -> list[int]:
            return list(inputs)

    translator = Worker(Translator(), prompts, replace(spec, auto="AutoModelForSeq2SeqLM"), None)
    turn = translator.latency([0])
    assert turn["rates"] == [pytest.approx(1000 * (length or 3) / turn["ms"][0])], "tokens a second"


def test_a_long_prompt_does_not_slow_what_follows() -> None:
    """Who reads an answer waits once for its first token, and then from token to token: one mean of both is neither."""

    class Slow:
        def generate(self, prompt: Encoded, count: int, listener: Callable[[int], object]) -> None:
            time.sleep(0.2)
            for token in range(count):
                listener(token)
                time.sleep(0.01)

    spec = MeasureSpec("onnx", "", "", LENGTH, new_tokens=4, throughput_seconds=0.01)
    worker = Worker(Slow(), [], spec, None)
    worker.rows = [{"input_ids": np.ones((1, 3), np.int64)}] * 8
    turns = [worker.stream() for _ in range(3)]
    assert [len(turn["gaps"]) for turn in turns] == [4] * 3, (
        "the prompts of a slow model are not all gone through"
    )
    assert 10 <= np.median(turns[0]["gaps"]) < 100
    assert 10 < turns[0]["rates"][0] < 100
    assert worker.generated == 3, "each turn has a row of its own"


def test_two_models_take_turns(spec: MeasureSpec, student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy while one of them is timed makes the other look fast."""
    with Process(replace(spec, runtime="torch", path=str(student)), TEXTS) as other:
        before = other.measure()
        turns: list[tuple[str, str]] = []
        told = {name: getattr(Process, name) for name in ("round", "throughput")}

        def noted(name: str) -> Callable[..., dict]:
            def call(self: Process, *rows: Any) -> dict:
                found = told[name](self, *rows)
                turns.append((name, self.spec.runtime))
                if name == "throughput":
                    most = 1 if self is other else 2
                    assert 1 <= len(found["rates"]) <= most, "what is known is not sought anew"
                return found

            return call

        for name in told:
            monkeypatch.setattr(Process, name, noted(name))
        found = measure(spec, TEXTS, baseline=other)
    latency, paces = turns[:10], turns[10:]
    assert latency == [("round", "torch"), ("round", "onnx")] * 5
    assert paces == [("throughput", "torch"), ("throughput", "onnx")] * (len(paces) // 2)
    assert before.times_faster is before.speedup is None
    assert found.times_faster > 1
    assert found.speedup > 1
    assert 0.2 < found.cpu_share < 1.5


def test_the_ratio_of_two_models_is_that_of_their_turns(spec: MeasureSpec) -> None:
    """A machine that is half as fast for two turns of three makes a ratio of medians out of different ones; or a slow model is run
    over all rows three times at each batch size, also at those that are far from its best."""

    class Told(Process):
        def __init__(self, *rates: list[float]):
            super().__init__(replace(spec, batch_sizes=[4, 8, 1]), TEXTS)
            self._loaded = {"import_memory": 0, "seconds": 0.0}
            self.turns = iter(rates)

        def round(self, indices: Sequence[int]) -> dict[str, Any]:
            return {"ms": [1.0], "cpu": 0.001, "rates": [1.0]}

        def throughput(self) -> dict[str, Any]:
            return {"rates": next(self.turns)}

        def call(self, method: str, **arguments: Any) -> Any:
            assert method == "memory"

    other = Told([10.0], [5.0], [20.0])
    mine = Told([30.0, 24.0, 23.9], [15.0, 40.0], [50.0, 20.0])
    found = mine.measure(other)
    assert (found.throughput_per_s, found.batch_size) == (30.0, 4), "the median of the better size"
    assert found.speedup == 3.0, "of 3, 3 and 2.5; the medians of each would be 30 / 10"
    assert mine.batch_sizes == [4]


class Noisy(Process):
    """A process whose rows take known times: `factors` of a millisecond, by round."""

    def __init__(self, spec: MeasureSpec, factors: list[float]):
        super().__init__(spec, TEXTS)
        self._loaded = {"import_memory": 0, "seconds": 0.0}
        self.factors, self.rounds = iter(factors), list[Sequence[int]]()

    def round(self, indices: Sequence[int]) -> dict[str, Any]:
        self.rounds.append(indices)
        factor = next(self.factors)
        ms = [factor * (1 + index) for index in indices]
        return {"ms": ms, "cpu": sum(ms) / 1000, "rates": [1.0]}

    def throughput(self) -> dict[str, Any]:
        return {"rates": [float(size) for size in self.batch_sizes]}

    def call(self, method: str, **arguments: Any) -> Any:
        assert method == "memory"


def test_an_adaptive_measurement_ends_when_the_median_is_stable(spec: MeasureSpec) -> None:
    """A quiet machine that is timed as long as a busy one; a busy one whose first rounds are believed; or rounds of different
    rows, whose medians differ whatever the machine does."""
    spec = replace(spec, adaptive=True)
    calm, wild = [1.0, 1.001, 0.999, 1.0, 1.0, 1.0], [1.0, 1.5, 0.8, 1.3, 0.9, 1.1]
    quiet, busy = Noisy(spec, calm), Noisy(spec, wild)
    found = quiet.measure()
    assert len(quiet.rounds) == 3
    assert found.latency_runs == 3 * 32
    low, high = found.latency_p50_ci95_ms
    assert low < found.latency_ms["p50"] < high < 1.03 * low
    assert len({tuple(indices) for indices in quiet.rounds}) == 1
    busy.measure()
    assert len(busy.rounds) == 6
    quiet, busy = Noisy(spec, calm), Noisy(spec, wild)
    own, of_baseline = quiet.measure_both(busy)
    assert len(quiet.rounds) == len(busy.rounds) == 6, "the ratio needs both"
    assert (own.latency_runs, of_baseline.latency_runs) == (6 * 32, 6 * 32)
    assert own.times_faster > 1
    assert of_baseline.times_faster is None
    assert (own.batch_size, of_baseline.batch_size) == (8, 8)


def test_a_number_of_runs_is_kept_in_each_mode() -> None:
    """A key that the user gave, and that the mode overrides; or a mode that changes nothing."""
    quick, full = Measure(mode="quick").settings, Measure().settings
    assert quick["adaptive"]
    assert not full["adaptive"]
    assert quick["max_texts"] < full["max_texts"] == 256
    given = Measure(mode="quick", latency_runs=7, batch_sizes=[4], throughput_seconds=1.5, max_texts=9)
    assert not given.settings["adaptive"]
    assert {key: given.settings[key] for key in given.model_fields_set - {"mode"}} == {
        "latency_runs": 7, "batch_sizes": [4], "throughput_seconds": 1.5, "max_texts": 9,
    }  # fmt: skip


def test_a_split_of_few_rows_is_run_anew(spec: MeasureSpec) -> None:
    """The p99 of three rows is the slowest of three calls."""
    with Process(replace(spec, latency_runs=40), TEXTS[:3]) as process:
        turns = []
        own = process.round
        process.round = lambda places: turns.append(own(places)) or turns[-1]
        process.measure()
    assert sum(len(turn["ms"]) for turn in turns) == 40


def test_a_busy_machine_is_told(
    spec: MeasureSpec,
    student: Path,
    tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A latency that is mostly waiting for the processor is another process's."""
    rows = datasets.Dataset.from_dict({"text": [text for (text,) in TEXTS], "label": [0] * len(TEXTS)})
    inputs = TASK.inputs(rows, tokenizer)
    cfg = Measure(latency_runs=2, throughput_seconds=0.01)
    for least, told in (0.0, False), (2.0, True):
        monkeypatch.setattr("kdcli.measure.models.BUSY", least)
        measure_file(cfg, "onnx", Path(spec.path), student, TASK, inputs, LENGTH)
        assert bool(naming("model.onnx", "processor").search(capsys.readouterr().err)) is told
        measure_checkpoint(cfg, Checkpoint(student, "its student"), TASK, inputs, LENGTH)
        assert bool(naming("its student", "processor").search(capsys.readouterr().err)) is told
