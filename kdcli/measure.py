"""Speed and memory of one model, in a process of its own and by its own runtime.

`measure` starts `python -m kdcli.measure` with a specification on stdin. That process loads and runs the model with
nothing else: an ONNX or GGUF file without torch and transformers, so that its peak memory is what the model needs.
This module imports accordingly little.

What is timed is the model alone. Tokenization is left out: it is the same for all models that are compared, takes a
fraction of the time, and is done by other code on most devices.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from kdcli.errors import ExportError, KDError

if TYPE_CHECKING:
    from kdcli.config import Measure
    from kdcli.tasks.base import Task

Texts = Sequence[Sequence[str]]
"""Each row: one text, or a text and its pair."""
Encoded = dict[str, np.ndarray]
"""The model's inputs by name: of one row (L,), of a batch (B, L)."""
Runtime = Literal["torch", "onnx", "llama", "ctranslate2"]
RUNTIMES: dict[str, Runtime] = {".onnx": "onnx", ".gguf": "llama"}
"""What runs a file, by how its name ends."""
FOLDERS: dict[str, Runtime] = {"encoder_model.onnx": "onnx", "model.bin": "ctranslate2"}
"""What runs a folder (of a translator), by a file in it."""
WARM_UP = 10
"""Rows that are run before latency is timed: first calls allocate and plan."""
WARM_UP_TEXTS = 2
"""Translations that are made before: each of them is many calls."""
PASSES = 3
"""Times that each batch is run for throughput, so that its median forgets a hiccup …"""
PATIENCE = 10
"""… unless that takes so many times `throughput_seconds`: the batches of a slow model are long enough by themselves."""


@dataclass(frozen=True)
class MeasureSpec:
    """What to run, and how.

    Attributes:
        path: a model directory (torch; of a translator also onnx, ctranslate2) or a file (onnx, llama).
        tokenizer: the directory of its tokenizer (llama: it has its own; translators get token ids).
        auto: the class of transformers that loads the model.
        special: the tokenizer adds its special tokens (a rendered chat has them already).
        new_tokens: a language model writes so many, for its speed.
        max_length: tokens a row; the rest is cut off.
        threads: of the runtime.
        batch_size: rows a batch, for throughput.
        latency_runs: at most so many rows are run at batch 1.
        throughput_seconds: throughput is measured for about so long, over whole passes.
        max_texts: speed is measured on at most so many rows, evenly spaced among all.
        speed: false: nothing is timed.
        answers: a safetensors file to write with what the model says of all rows, in their order: `logits`, float32
            (N, C), of a token classifier at its counted tokens, or of a GGUF file's counted tokens `log_prob`, float32
            (N,), and `top`, int64 (N,), the likeliest token, and `same_tokens`, bool (prompts,): its own tokenizer cuts
            the prompt into the ids given; of a translator `written`, int64, the tokens of all texts, and `lengths`,
            int64 (N,), how many each has.
        given: tokens that each translation begins with after the model's start token (a language code).
        code: the model directory's own Python files may be run.
    """

    runtime: Runtime
    path: str
    tokenizer: str
    max_length: int
    auto: str = "AutoModelForSequenceClassification"
    special: bool = True
    threads: int = 1
    batch_size: int = 32
    latency_runs: int = 200
    throughput_seconds: float = 2.0
    max_texts: int = 256
    new_tokens: int = 32
    speed: bool = True
    answers: str | None = None
    given: Sequence[int] = ()
    code: bool = False


@dataclass(frozen=True)
class Measurement:
    """What one model needs. What was not measured is None.

    Attributes:
        latency_ms: p50 and p95 of single rows, unpadded, at batch 1; of a language model the time to the first token,
            of a translator that of the whole translation, greedy.
        throughput_per_s: rows a second, in batches of rows of like length, from each batch's median time; of a language
            model tokens a second at batch 1, from the median token's time, of a translator over all those translations.
        peak_memory_bytes: the most that the process held while it loaded and ran the model: Python, the runtime,
            the weights, and the activations of its largest batch.
        load_seconds: to import the runtime and to load the model, the files most likely being in the system's cache.
    """

    latency_ms: dict[str, float | None]
    throughput_per_s: float | None
    peak_memory_bytes: int | None
    load_seconds: float | None


UNKNOWN = Measurement({"p50": None, "p95": None}, None, None, None)


def runtime_of(path: Path) -> Runtime | None:
    """What runs an artifact; None: nothing that is known here."""
    if path.is_dir():
        return next((runtime for name, runtime in FOLDERS.items() if (path / name).is_file()), None)
    return RUNTIMES.get(path.suffix)


def measure(spec: MeasureSpec, prompts: Sequence[Any], rows: Any = None) -> Measurement:
    """Run one model in its own process.

    Args:
        prompts: what it is given of each row, for its speed: `Texts`, of a GGUF file pairs of a text and its token ids, of a
            translator the source's token ids.
        rows: where tokens are asked about (a GGUF file, a token classifier): pairs of token ids and the places of those
            that count.

    Raises:
        ExportError: the runtime could not load or run the model; with the last lines of what it said.
    """
    said = [asdict(spec), [prompts[at] for at in _spaced(len(prompts), spec.max_texts)]]
    if spec.answers:
        said.append(prompts if rows is None else rows)
    threads = str(spec.threads)
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(paths),
    }
    done = subprocess.run(
        [sys.executable, "-P", "-m", "kdcli.measure"],  # -P: no module of the working directory
        input="\n".join(map(json.dumps, said)),
        env=environment,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        last = "\n  ".join(done.stderr.strip().splitlines()[-5:]) or "it said nothing"
        raise ExportError(
            f"{spec.path} could not be run by {spec.runtime} in its own process (exit code {done.returncode}):\n  {last}"
        )
    return Measurement(**json.loads(done.stdout))


def measure_rows(
    cfg: Measure | None,
    runtime: Runtime,
    path: Path,
    tokenizer: Path,
    task: Task,
    prompts: Sequence[Any],
    max_length: int,
    answers: bool = False,
    code: bool = False,
    rows: Any = None,
) -> dict[str, Any]:
    """What one model needs on a split's rows: the fields of `Measurement`, and with `answers` those of `MeasureSpec.answers`.

    Args:
        cfg: how thoroughly; None: nothing is timed.
        prompts, rows: as `measure` takes them; of a translator `Texts`, which are cut into tokens here, where its tokenizer
            is told its languages.

    Raises:
        ExportError: the runtime could not load or run the model.
    """
    if cfg is None and not answers:
        return asdict(UNKNOWN)
    given: list[int] = []
    if _translates(task.auto):
        prompts, given = _source_ids(task, tokenizer, prompts, code)
    with tempfile.TemporaryDirectory(prefix="kdcli-") as folder:
        file = Path(folder) / "answers.safetensors"
        spec = MeasureSpec(
            runtime,
            str(path),
            str(tokenizer),
            max_length,
            task.auto,
            special=not task.chat,
            **(cfg.model_dump(exclude={"generations", "num_beams"}) if cfg else {}),
            speed=cfg is not None,
            answers=str(file) if answers else None,
            given=given,
            code=code,
        )
        found = asdict(measure(spec, prompts, rows))
        if answers:
            from safetensors.numpy import load_file

            found |= load_file(file)
    return found


def _translates(auto: str) -> bool:
    return "Seq2Seq" in auto


def _source_ids(task: Any, folder: Path, texts: Texts, code: bool) -> tuple[list[list[int]], list[int]]:
    """The token ids of each text, and those that each translation begins with."""
    from kdcli.models import Source, load_tokenizer

    tokenizer = load_tokenizer(Source(folder, folder.name, code=code))
    given = task.given(tokenizer)  # first: it tells the tokenizer its languages
    return tokenizer([text for (text,) in texts], verbose=False)["input_ids"] if texts else [], given


# ---- in the process of the model ---------------------------------------------------------------------


class _Torch:
    """A model directory, run eagerly in fp32."""

    def __init__(self, spec: MeasureSpec):
        import inspect

        import torch
        import transformers

        torch.set_num_threads(spec.threads)
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": spec.code}
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(spec.tokenizer, **options)
        auto = getattr(transformers, spec.auto)
        self.model = auto.from_pretrained(
            spec.path, use_safetensors=True, dtype=torch.float32, **options
        ).eval()
        self.max_length, self.special = spec.max_length, spec.special
        self.writes = "CausalLM" in spec.auto
        taken = inspect.signature(self.model.forward).parameters
        fill = {"input_ids": self.tokenizer.pad_token_id, "token_type_ids": self.tokenizer.pad_token_type_id}
        self.pad = {name: fill.get(name, 0) for name in self.tokenizer.model_input_names if name in taken}

    def encode(self, texts: Texts) -> list[Encoded]:
        rows = [
            self.tokenizer(*row, truncation=True, max_length=self.max_length, add_special_tokens=self.special)
            for row in texts
        ]
        return [{name: np.asarray(row[name], np.int64) for name in self.pad} for row in rows]

    def __call__(self, batch: Encoded) -> np.ndarray:
        import torch

        last = {"logits_to_keep": 1} if self.writes else {}
        with torch.inference_mode():
            return self.model(
                **{name: torch.from_numpy(array) for name, array in batch.items()}, **last
            ).logits.numpy()

    def write(self, prompt: Encoded, count: int) -> list[float]:
        """Go on from a prompt, greedily and whatever the end of text says: the seconds of each token after the first."""
        import torch

        seconds = []
        with torch.inference_mode():
            ids = torch.from_numpy(prompt["input_ids"])
            out = self.model(input_ids=ids, use_cache=True, logits_to_keep=1)
            for _ in range(count):
                began = time.perf_counter()
                token = out.logits[:, -1:].argmax(-1)
                out = self.model(
                    input_ids=token, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1
                )
                seconds.append(time.perf_counter() - began)
        return seconds


class _Onnx:
    """An ONNX file, run by ONNX Runtime on the CPU; the tokenizer is tokenizer.json."""

    writes = False

    def __init__(self, spec: MeasureSpec):
        try:
            import onnxruntime
        except ImportError as error:
            raise ExportError(f"{error}: install it with: pip install 'kdcli[cpu]'") from None
        import tokenizers

        folder = Path(spec.tokenizer)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = spec.threads, 1
        self.session = onnxruntime.InferenceSession(spec.path, options, providers=["CPUExecutionProvider"])
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        self.tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(spec.max_length, direction=config.get("truncation_side", "right"))
        token = config.get("pad_token")
        pad_id = (
            self.tokenizer.token_to_id(token["content"] if isinstance(token, dict) else token) if token else 0
        )
        fill = {"input_ids": pad_id, "token_type_ids": config.get("pad_token_type_id", 0)}
        self.pad = {entry.name: fill.get(entry.name, 0) for entry in self.session.get_inputs()}

    def at(self, rows: Sequence[tuple[list[int], list[int]]]) -> np.ndarray:
        """Logits of each row's counted tokens, float32 (N, C); row by row, as `_logits`."""
        found = []
        for ids, places in rows:
            row = np.asarray([ids], np.int64)
            inputs = {
                "input_ids": row,
                "token_type_ids": np.zeros_like(row),
                "attention_mask": np.ones_like(row),
            }
            found.append(self({name: inputs[name] for name in self.pad})[0, places])
        return np.concatenate(found)

    def encode(self, texts: Texts) -> list[Encoded]:
        known = {"input_ids": "ids", "token_type_ids": "type_ids", "attention_mask": "attention_mask"}
        rows = self.tokenizer.encode_batch([row[0] if len(row) == 1 else tuple(row) for row in texts])
        return [{name: np.asarray(getattr(row, known[name]), np.int64) for name in self.pad} for row in rows]

    def __call__(self, batch: Encoded) -> np.ndarray:
        return self.session.run(["logits"], batch)[0]


class _Llama:
    """A GGUF file, run by llama.cpp on the CPU: its server, called within the process, with one slot.

    The server answers with the likeliest tokens of one position at a time, and with the log-probability of the token
    that it wrote, both from the logits before any sampler. So a token's log-probability is had by making the server
    write it: a bias makes it the certain choice. What stands before it is in the server's cache from the last request.
    """

    writes = True
    pad: ClassVar[dict[str, int]] = {"input_ids": 0}
    certain = 1e6
    """The bias of the token that is to be written."""

    def __init__(self, spec: MeasureSpec):
        try:
            import xllamacpp
        except ImportError as error:
            raise ExportError(f"{error}: install it with: pip install 'kdcli[laptop]'") from None
        options = xllamacpp.CommonParams()
        options.model.path = spec.path
        options.n_ctx = spec.max_length + spec.new_tokens + 1
        options.n_parallel, options.n_gpu_layers, options.cache_ram_mib = 1, 0, 0
        options.cpuparams.n_threads = options.cpuparams_batch.n_threads = spec.threads
        options.fit_params = options.warmup = options.ctx_shift = options.ui = False
        options.verbosity = 1  # errors
        self.max_length = spec.max_length
        self.whole: int | None = None
        try:
            self.server = xllamacpp.Server(options)
        except RuntimeError as error:
            raise ExportError(f"llama.cpp cannot load {spec.path}: {error}") from None

    def encode(self, prompts: Sequence[tuple[str, list[int]]]) -> list[Encoded]:
        return [{"input_ids": np.asarray(ids[: self.max_length], np.int64)} for _, ids in prompts]

    def __call__(self, batch: Encoded) -> np.ndarray:
        """Read a prompt and write one token; nothing of it is kept."""
        said = self._ask(batch["input_ids"][0].tolist(), cache_prompt=False)
        return np.asarray([said["usage"]["completion_tokens"]])

    def write(self, prompt: Encoded, count: int) -> list[float]:
        """Go on from a prompt, as `_Torch.write`; by the server's own clock, so that all tokens took the same."""
        ids = prompt["input_ids"][0].tolist()
        spent = self._ask(ids, n_predict=count + 1, ignore_eos=True, cache_prompt=False)["timings"]
        return [spent["predicted_ms"] / 1000 / (spent["predicted_n"] - 1)] * (spent["predicted_n"] - 1)

    def score(self, rows: Sequence[tuple[list[int], list[int]]]) -> dict[str, np.ndarray]:
        """Of each row's counted tokens the log-probability after those before, and the likeliest token there."""
        found = [self._token(ids[:place], ids[place]) for ids, places in rows for place in places]
        return {
            "log_prob": np.asarray([log_prob for log_prob, _ in found], np.float32),
            "top": np.asarray([top for _, top in found], np.int64),
        }

    def same_tokens(self, prompts: Sequence[tuple[str, list[int]]], special: bool) -> np.ndarray:
        """Whether the file's own tokenizer cuts each text into the ids given, bool (N,)."""
        import urllib.request

        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({})
        )  # this machine, whatever the proxy
        found = []
        for text, ids in prompts:
            body = {"content": text, "add_special": special, "parse_special": True}
            request = urllib.request.Request(
                f"{self.server.listening_address}/tokenize",
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
            with opener.open(request) as answer:
                found.append(json.load(answer)["tokens"] == ids)
        return np.asarray(found, bool)

    def _token(self, before: list[int], token: int) -> tuple[float, int]:
        said = self._written(before, token)
        if said is not None:
            return said["logprob"], said["top_logprobs"][0]["id"]
        # a piece of a character, which the server keeps back until it is whole: have another written, and look for it
        if self.whole is None:
            self.whole = next(other for other in range(token) if self._written(before, other))
        for most in (100, 10**6):
            said = self._written(before, self.whole, most)
            listed = {entry["id"]: entry["logprob"] for entry in said["top_logprobs"]} if said else {}
            if token in listed:
                return listed[token], next(iter(listed))
        raise ExportError(f"llama.cpp does not say how likely token {token} is")

    def _written(self, before: list[int], token: int, most: int = 1) -> dict[str, Any] | None:
        """What is said of a token that is written, and the likeliest ones; None of a piece of a character."""
        said = self._ask(before, n_probs=most, logit_bias=[[token, self.certain]])
        found = said["choices"][0]["logprobs"]
        if found is None:
            return None
        entry: dict[str, Any] = found["content"][0]
        if entry["id"] != token or said["usage"]["prompt_tokens"] != len(before):
            raise ExportError(
                f"llama.cpp was to write token {token} after {len(before)} tokens, and wrote {entry['id']} "
                f"after {said['usage']['prompt_tokens']}"
            )
        return entry

    def _ask(self, ids: list[int], **options: Any) -> dict[str, Any]:
        """One greedy request."""
        greedy = {"n_predict": 1, "samplers": ["top_k"], "top_k": 1}
        said: dict[str, Any] = self.server.handle_completions(greedy | options | {"prompt": ids})
        if "error" in said:
            raise ExportError(f"llama.cpp refused a request: {said['error']['message']}")
        return said


class _Greedy:
    """A translator that is asked for one token after the other.

    Attributes:
        begin: the tokens that each text begins with.
        ends: those that it ends with.
        room: tokens that it may have besides those it begins with.
    """

    begin: list[int]
    ends: list[int]
    room: int

    def reading(self, ids: Sequence[int]) -> Callable[[list[int]], Any]:
        """What gives the logits, (C,), after the text so far and further tokens, once it has read a source."""
        raise NotImplementedError

    def __call__(self, ids: Sequence[int]) -> list[int]:
        after, tokens, written = self.reading(ids), self.begin, []
        while True:
            tokens = [int(after(tokens).argmax())]
            written += tokens
            if tokens[0] in self.ends or len(written) == self.room:
                return written


class _TorchTranslator(_Greedy):
    """A model directory, run eagerly in fp32, with a cache of keys and values."""

    def __init__(self, spec: MeasureSpec):
        import torch
        import transformers

        from kdcli.rollouts import start_of

        torch.set_num_threads(spec.threads)
        self.model = getattr(transformers, spec.auto).from_pretrained(
            spec.path,
            use_safetensors=True,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=spec.code,
        )
        self.model.eval()
        config, own = self.model.config, self.model.generation_config
        self.begin = [start_of(self.model), *spec.given]
        self.ends = _listed(config.eos_token_id if own.eos_token_id is None else own.eos_token_id)
        self.barred = [token for token in [config.pad_token_id] if token not in [None, *self.ends]]
        self.room = _room(spec)

    def __call__(self, ids: Sequence[int]) -> list[int]:
        import torch

        with torch.inference_mode():
            return super().__call__(ids)

    def reading(self, ids: Sequence[int]) -> Callable[[list[int]], Any]:
        import torch
        from transformers import DynamicCache, EncoderDecoderCache

        read = self.model.get_encoder()(input_ids=torch.tensor([ids]))
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

        def after(tokens: list[int]) -> torch.Tensor:
            logits: torch.Tensor = self.model(
                encoder_outputs=read,
                decoder_input_ids=torch.tensor([tokens]),
                past_key_values=cache,
                use_cache=True,
            ).logits[0, -1]
            logits[self.barred] = -torch.inf
            return logits

        return after


class _OnnxTranslator(_Greedy):
    """A folder of ONNX graphs, encoder and decoder, run by ONNX Runtime on the CPU, with a cache."""

    def __init__(self, spec: MeasureSpec):
        try:
            import onnxruntime
        except ImportError as error:
            raise ExportError(f"{error}: install it with: pip install 'kdcli[cpu]'") from None
        folder = Path(spec.path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = spec.threads, 1
        self.encoder, self.first, self.later = (
            onnxruntime.InferenceSession(folder / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
            for name in ("encoder_model", "decoder_model", "decoder_with_past_model")
        )
        config = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
        self.begin = [config["decoder_start_token_id"], *spec.given]
        self.ends = _listed(config["eos_token_id"])
        self.room = _room(spec)
        self.named = {
            session: (
                {entry.name for entry in session.get_inputs()},
                [entry.name for entry in session.get_outputs()],
            )
            for session in (self.first, self.later)
        }

    def reading(self, ids: Sequence[int]) -> Callable[[list[int]], Any]:
        row = np.asarray([ids], np.int64)
        mask = np.ones_like(row)
        hidden = self.encoder.run(["last_hidden_state"], {"input_ids": row, "attention_mask": mask})[0]
        known = {"encoder_attention_mask": mask, "encoder_hidden_states": hidden}
        session = self.first

        def after(tokens: list[int]) -> np.ndarray:
            nonlocal session
            inputs, outputs = self.named[session]
            known["input_ids"] = np.asarray([tokens], np.int64)
            found = session.run(outputs, {name: known[name] for name in inputs})
            for name, array in zip(outputs, found, strict=True):
                known[name.replace("present", "past_key_values")] = array
            session = self.later
            return known["logits"][0, -1]

        return after


class _CTranslate2:
    """A folder that CTranslate2 runs on the CPU, greedily."""

    def __init__(self, spec: MeasureSpec):
        try:
            import ctranslate2
        except ImportError as error:
            raise ExportError(f"{error}: install it with: pip install 'kdcli[cpu]'") from None
        self.translator = ctranslate2.Translator(
            spec.path, device="cpu", inter_threads=1, intra_threads=spec.threads
        )
        folder = Path(spec.path)
        shared = folder / "shared_vocabulary.json"
        sides = [folder / f"{side}_vocabulary.json" for side in ("source", "target")]
        files = [shared, shared] if shared.is_file() else sides
        self.source, target = (json.loads(file.read_text(encoding="utf-8")) for file in files)
        self.numbers = {token: number for number, token in enumerate(target)}
        self.given = [target[token] for token in spec.given]
        self.room = _room(spec)

    def __call__(self, ids: Sequence[int]) -> list[int]:
        found = self.translator.translate_batch(
            [[self.source[token] for token in ids]],
            target_prefix=[self.given],
            beam_size=1,
            min_decoding_length=0,
            max_decoding_length=self.room + len(self.given),
            max_input_length=0,  # none: nothing is cut off
            return_end_token=True,
        )[0]
        return [self.numbers[token] for token in found.hypotheses[0][len(self.given) :]]


def _listed(tokens: int | list[int]) -> list[int]:
    return tokens if isinstance(tokens, list) else [tokens]


def _room(spec: MeasureSpec) -> int:
    """Tokens that a translation may have besides those given."""
    return max(1, spec.max_length - len(spec.given))


Model = _Torch | _Onnx | _Llama
Translator = _TorchTranslator | _OnnxTranslator | _CTranslate2
TRANSLATORS: dict[str, type[_TorchTranslator] | type[_OnnxTranslator] | type[_CTranslate2]] = {
    "torch": _TorchTranslator,
    "onnx": _OnnxTranslator,
    "ctranslate2": _CTranslate2,
}
MODELS: dict[str, type[_Torch] | type[_Onnx] | type[_Llama]] = {
    "torch": _Torch,
    "onnx": _Onnx,
    "llama": _Llama,
}


def main() -> None:
    """Read the specification and the rows, run the model, write the measurement."""
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the measurement alone
        spec = MeasureSpec(**json.loads(sys.stdin.readline()))
        began = time.perf_counter()
        kinds: dict[str, Any] = TRANSLATORS if _translates(spec.auto) else MODELS
        model = kinds[spec.runtime](spec)
        seconds = time.perf_counter() - began
        found = UNKNOWN
        prompts = json.loads(sys.stdin.readline())
        if spec.speed:
            speed = _translated if _translates(spec.auto) else _answered
            found = Measurement(*speed(model, prompts, spec), _peak_memory(), seconds)
        if spec.answers:  # read only now: neither the rows nor the answers of all of them belong to the peak
            from safetensors.numpy import save_file

            save_file(_answers(model, prompts, json.loads(sys.stdin.readline()), spec), spec.answers)
    json.dump(asdict(found), sys.stdout)


def _answers(model: Model | Translator, prompts: Any, rows: Any, spec: MeasureSpec) -> dict[str, np.ndarray]:
    """What `MeasureSpec.answers` holds."""
    if isinstance(model, _Greedy | _CTranslate2):
        texts = [model(ids) for ids in rows]
        flat = [token for text in texts for token in text]
        return {
            "written": np.asarray(flat, np.int64),
            "lengths": np.asarray(list(map(len, texts)), np.int64),
        }
    if isinstance(model, _Llama):
        return model.score(rows) | {"same_tokens": model.same_tokens(prompts, spec.special)}
    if isinstance(model, _Onnx) and "TokenClassification" in spec.auto:
        return {"logits": model.at(rows)}
    return {"logits": _logits(model, rows, spec)}


def _answered(model: Model, prompts: Any, spec: MeasureSpec) -> tuple[dict[str, float | None], float]:
    """Latency in milliseconds, and throughput, of a model that answers rows."""
    rows = model.encode(prompts)
    latency = _latency(model, rows, spec.latency_runs)
    if isinstance(model, _Onnx) or not model.writes:
        return latency, _throughput(model, rows, spec)
    return latency, _generated(model, rows, spec)


def _batch(model: Model, rows: Sequence[Encoded]) -> Encoded:
    """Rows padded on the right to the longest."""
    shape = len(rows), max(len(row["input_ids"]) for row in rows)
    batch = {name: np.full(shape, fill, np.int64) for name, fill in model.pad.items()}
    for name, array in batch.items():
        for line, row in zip(array, rows, strict=True):
            line[: len(row[name])] = row[name]
    return batch


def _batches(rows: Sequence[Encoded], size: int) -> list[np.ndarray]:
    """Numbers of rows of like length, so many at a time, short ones first."""
    order = np.argsort([len(row["input_ids"]) for row in rows], kind="stable")
    return [order[start : start + size] for start in range(0, len(order), size)]


def _spaced(count: int, most: int) -> list[int]:
    """At most so many of `count` numbers, evenly spaced."""
    return [int(at) for at in np.linspace(0, count - 1, min(most, count))]


def _latency(model: Model, rows: Sequence[Encoded], runs: int) -> dict[str, float | None]:
    batches = [_batch(model, [rows[at]]) for at in _spaced(len(rows), runs)]
    for batch in batches[:WARM_UP]:
        model(batch)
    p50, p95 = np.percentile([_seconds(model, batch) * 1000 for batch in batches], [50, 95])
    return {"p50": float(p50), "p95": float(p95)}


def _translated(
    model: Translator, sources: Sequence[Sequence[int]], spec: MeasureSpec
) -> tuple[dict[str, float | None], float]:
    """Milliseconds of a translation at batch 1, and tokens a second.

    Of a slow model the first rows must do; they are in no order, so that they are like the others.
    """
    places = np.random.default_rng(0).permutation(_spaced(len(sources), spec.latency_runs))
    for at in places[:WARM_UP_TEXTS]:
        model(sources[at])
    times: list[float] = []
    tokens = 0
    for at in places:
        began = time.perf_counter()
        tokens += len(model(sources[at]))
        times.append(time.perf_counter() - began)
        if sum(times) >= PATIENCE * spec.throughput_seconds:
            break
    p50, p95 = np.percentile(np.asarray(times) * 1000, [50, 95])
    return {"p50": float(p50), "p95": float(p95)}, tokens / sum(times)


def _throughput(model: Model, rows: Sequence[Encoded], spec: MeasureSpec) -> float:
    batches = [_batch(model, [rows[row] for row in numbers]) for numbers in _batches(rows, spec.batch_size)]
    model(batches[-1])  # the largest: what it allocates is not timed
    times: list[list[float]] = [[] for _ in batches]
    began = time.perf_counter()
    while True:
        for batch, found in zip(batches, times, strict=True):
            found.append(_seconds(model, batch))
        spent = (time.perf_counter() - began) / spec.throughput_seconds
        if spent >= PATIENCE or (spent >= 1 and len(times[0]) >= PASSES):
            return len(rows) / sum(map(statistics.median, times))


def _generated(model: _Torch | _Llama, rows: Sequence[Encoded], spec: MeasureSpec) -> float:
    """Tokens a second at batch 1, after the first one: greedily, with a cache of keys and values."""
    seconds: list[float] = []
    began = time.perf_counter()
    for row in rows:
        seconds += model.write({name: array[None] for name, array in row.items()}, spec.new_tokens)
        if (
            time.perf_counter() - began >= spec.throughput_seconds
            and len(seconds) >= PASSES * spec.new_tokens
        ):
            break
    return 1 / statistics.median(seconds)


def _logits(model: _Torch | _Onnx, texts: Texts, spec: MeasureSpec) -> np.ndarray:
    """Logits of all rows, float32 (N, C).

    ONNX files are asked row by row, which takes no longer on a CPU: dynamic int8 takes the range of its activations
    from the whole batch, so that a row's answer in a batch would depend on its neighbours and its padding.
    """
    rows = model.encode(texts)
    out: np.ndarray | None = None
    for numbers in _batches(rows, 1 if spec.runtime == "onnx" else spec.batch_size):
        logits = model(_batch(model, [rows[row] for row in numbers]))
        if out is None:
            out = np.empty((len(rows), logits.shape[1]), np.float32)
        out[numbers] = logits
    return np.empty((0, 0), np.float32) if out is None else out


def _seconds(model: Model, batch: Encoded) -> float:
    began = time.perf_counter()
    model(batch)
    return time.perf_counter() - began


def _peak_memory() -> int | None:
    """The most memory that this process held, in bytes; None where the system does not tell.

    VmHWM and not getrusage where Linux offers it: after fork and exec the latter begins at the parent's peak.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    try:
        main()
    except KDError as error:
        sys.exit(str(error))
