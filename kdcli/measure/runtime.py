"""Defines the interface of a runtime, which loads an exported file in the process of `kdcli.measure.worker`, and runs it.

The runtimes that kdcli has are the modules of `kdcli/exporting/runtimes`; a user's own are those in the folder `runtimes` of the config folder.
A module has one class for each kind of model that its runtime runs. This module imports as little as possible, because the memory of the
process is measured.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from kdcli.errors import ConfigError
from kdcli.measure.spec import WARM_UP, WARM_UP_TEXTS, Counted, Encoded, MeasureSpec, Texts

PACKAGE = "kdcli.exporting.runtimes"
"""The package of kdcli's own runtimes."""


class Runtime(ABC):
    """A model that a runtime has loaded. It is constructed with a `MeasureSpec`.

    Attributes:
        serves: the auto classes of transformers whose exported models it runs; a task has one of them as `Task.auto`.
        files: patterns of the files that it runs, such as "*.onnx". If several runtimes match, the one with the longest pattern runs the file.
        markers: names of files, one of which a folder must hold to be a model of this runtime.
        weights: patterns of the files in such a folder that count as its size.
        packages: modules that are imported before the model is loaded, so that `import_memory_bytes` covers them.
        extra: the extra of kdcli that installs these packages; empty: they are installed by their own names.
        runs_here: false: the files are only made here, and run on the device.
        batched: its throughput is measured in batches of rows.
        streams: it generates token by token, and a listener gets each one.
        same_work: what it does for a row depends on the architecture of its model alone, and not on the weights.
        warm_up: rows that run before latency is timed.
        import_memory: bytes that a separate process of the runtime holds before it loads the model; None: there is no such process.
    """

    serves: ClassVar[tuple[str, ...]]
    files: ClassVar[tuple[str, ...]] = ()
    markers: ClassVar[tuple[str, ...]] = ()
    weights: ClassVar[tuple[str, ...]] = ()
    packages: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""
    runs_here: ClassVar[bool] = True
    batched: ClassVar[bool] = False
    streams: ClassVar[bool] = False
    same_work: ClassVar[bool] = True
    warm_up: ClassVar[int] = WARM_UP
    import_memory: int | None = None

    @abstractmethod
    def __init__(self, spec: MeasureSpec): ...

    @classmethod
    def match(cls, path: Path) -> int:
        """Return the length of the pattern that a path matches, or of the marker that a folder holds; 0: the runtime does not run it."""
        if path.is_dir():
            return max((len(name) for name in cls.markers if (path / name).is_file()), default=0)
        return max((len(pattern) for pattern in cls.files if path.match(pattern)), default=0)

    @classmethod
    def config_folder(cls, path: Path) -> Path:
        """Return the folder with the config and the tokenizer of a model."""
        return path if path.is_dir() else path.parent

    @classmethod  # noqa: B027
    def require_safe(cls, path: Path) -> None:
        """Refuse a model whose loading would run code of its own; called before its process is started.

        The default accepts all files: ONNX Runtime, OpenVINO, llama.cpp, CTranslate2, LiteRT and ExecuTorch run operators that they know,
        and read no file from another folder.

        Raises:
            ModelError
        """

    def compute_seconds(self) -> float:
        """Return the CPU time of the runtime so far, in all threads, in seconds."""
        return time.process_time()

    def memory(self) -> int | None:
        """Return peak memory on a device or in a process of the runtime's own, in bytes; None: the model is in this process's memory."""
        return None

    @abstractmethod
    def single_rows(self, prompts: Sequence[Any], length: int | None) -> list[Any]:
        """Return the inputs of each prompt alone, as `__call__` takes them.

        Args:
            length: tokens of each row, truncated or repeated; None: its own.
        """

    @abstractmethod
    def __call__(self, inputs: Any) -> Any:
        """Run the model once; the length of the result is the number of rows, or of generated tokens."""

    def start_serving(self, spec: MeasureSpec) -> None:  # noqa: B027
        """Prepare for raw texts, before requests are timed."""

    @abstractmethod
    def respond(self, text: Sequence[str], spec: MeasureSpec) -> None:
        """Compute the model's output for a raw text, with all steps of an application."""

    @abstractmethod
    def predict(self, rows: Any, prompts: Sequence[Any], spec: MeasureSpec) -> dict[str, np.ndarray]:
        """Return the outputs for all rows, as `MeasureSpec.predictions` describes them."""


class EncoderRuntime(Runtime):
    """A sequence or token classifier. By default its texts are tokenized by the tokenizer.json in `MeasureSpec.tokenizer`.

    Args:
        names: the inputs of the model, in its own order.

    Attributes:
        pad_values: the inputs by name, and the value that pads each.
        pads_left: rows end with the class token (XLNet's), and are padded on the left.
        batched_predictions: predictions are made in batches, not row by row. Dynamic int8 takes the range of its activations from
            the whole batch, so that the logits of a row would depend on the other rows and on the padding; on a CPU a batch
            saves no time.
    """

    serves = ("AutoModelForSequenceClassification", "AutoModelForTokenClassification")
    batched = True
    tokenizer: Any
    pad_values: dict[str, int]
    pads_left: bool = False
    batched_predictions: ClassVar[bool] = False

    def __init__(self, spec: MeasureSpec, names: Sequence[str]):
        import tokenizers

        folder = Path(spec.tokenizer)
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        self.tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(spec.max_length, direction=config.get("truncation_side", "right"))
        token = config.get("pad_token")
        pad_id = (
            self.tokenizer.token_to_id(token["content"] if isinstance(token, dict) else token) if token else 0
        )
        fill = {"input_ids": pad_id, "token_type_ids": config.get("pad_token_type_id", 0)}
        self.pad_values = {name: fill.get(name, 0) for name in names}

    @abstractmethod
    def __call__(self, inputs: Encoded) -> np.ndarray:
        """Map inputs (B, L) to logits (B, C), of a token classifier (B, L, C)."""

    def encode(self, texts: Texts) -> list[Encoded]:
        """Return the inputs of each row, (L,), truncated to the most that it may have."""
        fields = {"input_ids": "ids", "token_type_ids": "type_ids", "attention_mask": "attention_mask"}
        rows = self.tokenizer.encode_batch([row[0] if len(row) == 1 else tuple(row) for row in texts])
        return [
            {name: np.asarray(getattr(row, fields[name]), np.int64) for name in self.pad_values}
            for row in rows
        ]

    def batch(self, rows: Sequence[Encoded]) -> Encoded:
        """Return rows, padded to the longest, (B, L)."""
        shape = len(rows), max(len(row["input_ids"]) for row in rows)
        batch = {name: np.full(shape, fill, np.int64) for name, fill in self.pad_values.items()}
        for name, array in batch.items():
            for line, row in zip(array, rows, strict=True):
                tokens = len(row[name])
                line[slice(len(line) - tokens, None) if self.pads_left else slice(tokens)] = row[name]
        return batch

    def padded(self, batch: Encoded, length: int, dtype: type = np.int64) -> Encoded:
        """Return the inputs in the model's own order, with rows padded on the right to this many tokens."""
        rows, tokens = batch["input_ids"].shape
        out: Encoded = {name: np.full((rows, length), fill, dtype) for name, fill in self.pad_values.items()}
        for name, array in out.items():
            array[:, :tokens] = batch[name]
        return out

    def single_rows(self, prompts: Texts, length: int | None) -> list[Encoded]:
        return [self.batch([row]) for row in self.timed_rows(prompts, length)]

    def timed_rows(self, prompts: Texts, length: int | None) -> list[Encoded]:
        """Return the inputs of each prompt, (L,), with the number of tokens that is timed."""
        return [{name: resized(array, length) for name, array in row.items()} for row in self.encode(prompts)]

    def respond(self, text: Sequence[str], spec: MeasureSpec) -> None:
        self(self.batch(self.encode([text])))

    def predict(self, rows: Any, prompts: Sequence[Any], spec: MeasureSpec) -> dict[str, np.ndarray]:
        if spec.auto == "AutoModelForTokenClassification":
            return {"logits": self.token_logits(rows)}
        encoded = self.encode(rows)
        tokens = [np.zeros(0, np.int64), *(row["input_ids"] for row in encoded)]
        return {
            "logits": self._logits(encoded, max(spec.batch_sizes) if self.batched_predictions else 1),
            "input_ids": np.concatenate(tokens),
            "lengths": np.asarray([len(row["input_ids"]) for row in encoded], np.int64),
        }

    def token_logits(self, rows: Sequence[Counted]) -> np.ndarray:
        """Return logits at the counted tokens of each row, float32 (N, C), row by row."""
        logits = []
        for ids, positions in rows:
            row = np.asarray([ids], np.int64)
            inputs = {
                "input_ids": row,
                "token_type_ids": np.zeros_like(row),
                "attention_mask": np.ones_like(row),
            }
            logits.append(self({name: inputs[name] for name in self.pad_values})[0, positions])
        return np.concatenate(logits)

    def _logits(self, rows: Sequence[Encoded], size: int) -> np.ndarray:
        """Return logits of all rows, float32 (N, C)."""
        out: np.ndarray | None = None
        for indices in batches(rows, size):
            logits = self(self.batch([rows[index] for index in indices]))
            if out is None:
                out = np.empty((len(rows), logits.shape[1]), np.float32)
            out[indices] = logits
        return np.empty((0, 0), np.float32) if out is None else out


class CausalLMRuntime(Runtime):
    """A causal language model. Its prompts are pairs of a text and its token ids."""

    serves = ("AutoModelForCausalLM",)
    streams = True

    @abstractmethod
    def encode(self, prompts: Any) -> list[Encoded]:
        """Return the `input_ids` of each prompt, (L,), truncated to the most that it may have."""

    @abstractmethod
    def generate(self, prompt: Encoded, count: int, listener: Callable[[int], object]) -> None:
        """Continue a prompt, (1, L), greedily by this many tokens; an end-of-text token does not end it.

        Args:
            listener: called with each token as soon as it is known, so that it can be timed or shown.
        """

    def reader(self) -> Callable[[list[int]], np.ndarray]:
        """Return a function that reads further token ids of a text, and returns the logits after them, (C,).

        Raises:
            ConfigError: the runtime has none.
        """
        raise ConfigError(
            f"{type(self).__name__} has no `reader`, by which kdcli predict and kdcli chat generate; add the method"
        )

    def complete(
        self,
        prompt: Sequence[int],
        max_new_tokens: int,
        ends: Sequence[int],
        temperature: float = 0.0,
        seed: int = 0,
        listener: Callable[[int], object] | None = None,
    ) -> list[int]:
        """Continue a prompt up to an end token, which is included.

        Args:
            ends: the end tokens.
            temperature, seed: 0: greedy; otherwise tokens are sampled from softmax(logits / temperature).
            listener: called with each token as soon as it is known.
        """
        read, random = self.reader(), np.random.default_rng(seed)
        tokens, written = list(prompt), list[int]()
        while len(written) < max_new_tokens and (not written or written[-1] not in ends):
            logits = np.asarray(read(tokens), np.float64)
            if temperature:  # the largest of logits with Gumbel noise is a sample of their softmax
                logits = logits / temperature + random.gumbel(size=len(logits))
            tokens = [int(logits.argmax())]
            written += tokens
            (listener or _ignore)(tokens[0])
        return written

    @abstractmethod
    def score(self, rows: Sequence[Counted]) -> dict[str, np.ndarray]:
        """`log_prob` of the counted tokens given those before them, float32 (N,), and `top`, the most likely tokens, int64 (N,)."""

    @abstractmethod
    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a text, by the tokenizer of the file."""

    def __call__(self, inputs: Encoded) -> np.ndarray:
        """Read a prompt and generate one token, (1,)."""
        tokens: list[int] = []
        self.generate(inputs, 1, tokens.append)
        return np.asarray(tokens)

    def single_rows(self, prompts: Sequence[Any], length: int | None) -> list[Encoded]:
        return [{"input_ids": resized(row["input_ids"], length)[None]} for row in self.encode(prompts)]

    def respond(self, text: Sequence[str], spec: MeasureSpec) -> None:
        ids = np.asarray(self.tokenize(text[0])[: spec.max_length], np.int64)
        self.generate({"input_ids": ids[None]}, spec.new_tokens, _ignore)

    def predict(self, rows: Any, prompts: Sequence[Any], spec: MeasureSpec) -> dict[str, np.ndarray]:
        return self.score(rows) | {"same_tokens": self.same_tokens(prompts)}

    def same_tokens(self, prompts: Sequence[tuple[str, list[int]]]) -> np.ndarray:
        """Return whether the tokenizer of the file gives the token ids of each text, bool (N,)."""
        return np.asarray([self.tokenize(text) == ids for text, ids in prompts], bool)


class Seq2SeqRuntime(Runtime):
    """An encoder-decoder, which gets the token ids of its sources and generates greedily.

    Attributes:
        begin: token ids that each text begins with.
        ends: token ids that end a text.
        max_new_tokens: tokens of a text, without those that it begins with.
    """

    serves = ("AutoModelForSeq2SeqLM",)
    warm_up = WARM_UP_TEXTS
    same_work = False  # the weights decide when a text ends
    begin: list[int]
    ends: list[int]
    max_new_tokens: int

    def decoder(self, ids: Sequence[int]) -> Callable[[list[int]], Any]:
        """Encode a source. The returned function takes further token ids of the text, and returns the logits after them, (C,)."""
        raise NotImplementedError

    def __call__(self, inputs: Sequence[int]) -> list[int]:
        """Map the token ids of a source to those of the generated text, with its end token."""
        step, tokens, written = self.decoder(inputs), self.begin, []
        while True:
            tokens = [int(step(tokens).argmax())]
            written += tokens
            if tokens[0] in self.ends or len(written) == self.max_new_tokens:
                return written

    def single_rows(self, prompts: Sequence[Any], length: int | None) -> list[list[int]]:
        return [resized(np.asarray(ids), length).tolist() for ids in prompts]

    def start_serving(self, spec: MeasureSpec) -> None:
        from transformers import AutoTokenizer

        self.text_tokenizer = AutoTokenizer.from_pretrained(
            spec.tokenizer, local_files_only=True, trust_remote_code=spec.trust_remote_code
        )

    def respond(self, text: Sequence[str], spec: MeasureSpec) -> None:
        ids = self.text_tokenizer(*text, truncation=True, max_length=spec.max_length)["input_ids"]
        self.text_tokenizer.decode(self(ids), skip_special_tokens=True)

    def predict(self, rows: Any, prompts: Sequence[Any], spec: MeasureSpec) -> dict[str, np.ndarray]:
        texts = [self(ids) for ids in rows]
        return {
            "written": np.asarray([token for text in texts for token in text], np.int64),
            "lengths": np.asarray(list(map(len, texts)), np.int64),
        }


def resized(row: Any, length: int | None) -> Any:
    """Return the values of a row's tokens, (L,), truncated or repeated to this many tokens; None: as they are."""
    return row if length is None else np.resize(row, length)


def batches(rows: Sequence[Encoded], size: int) -> list[np.ndarray]:
    """Return indices of rows of similar length, in batches of this size, short rows first."""
    order = np.argsort([len(row["input_ids"]) for row in rows], kind="stable")
    return [order[start : start + size] for start in range(0, len(order), size)]


def as_list(tokens: int | list[int]) -> list[int]:
    """Return token ids, which a config may give as one number."""
    return tokens if isinstance(tokens, list) else [tokens]


def max_new_tokens(spec: MeasureSpec) -> int:
    """Return tokens that a text may have after its decoder prefix."""
    return max(1, spec.max_length - len(spec.decoder_prefix))


def install_hint(packages: Iterable[str], extra: str) -> str:
    """Return how packages are installed: by an extra of kdcli, or, if there is none, by their own names."""
    names = f"'kdcli[{extra}]'" if extra else " ".join(dict.fromkeys(each.split(".")[0] for each in packages))
    return f"install it with: pip install {names}"


def load_module(name: str) -> ModuleType:
    """Return the module of a runtime.

    Args:
        name: of a module in `PACKAGE`, or the Python file of a user's own runtime.

    Raises:
        ConfigError: the user's file cannot be imported.
    """
    file = Path(name)
    if file.suffix != ".py":
        return importlib.import_module(f"{PACKAGE}.{name}")
    alias = f"kdcli_runtime_{file.stem}"
    loaded = sys.modules.get(alias)
    if loaded is not None and loaded.__file__ == name:
        return loaded
    spec = importlib.util.spec_from_file_location(alias, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file} is no Python file; remove it from runtimes/, or rename it")
    module = importlib.util.module_from_spec(spec)
    sys.modules[alias] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's own file may fail in any way
        del sys.modules[alias]
        raise ConfigError(
            f"{file} cannot be imported ({type(error).__name__}: {error}); correct it, or remove it"
        ) from None
    return module


def runtime_classes(name: str, abstract: bool = False) -> list[type[Runtime]]:
    """Return the runtimes that a module defines.

    Args:
        name: as for `load_module`.
        abstract: also those that lack a method.
    """
    module = load_module(name)
    return [
        each
        for each in vars(module).values()
        if inspect.isclass(each)
        and issubclass(each, Runtime)
        and each.__module__ == module.__name__
        and (abstract or not inspect.isabstract(each))
    ]


def runtime_class(name: str, auto: str) -> type[Runtime]:
    """Return the runtime of a module that runs models of an auto class of transformers.

    Raises:
        ConfigError: there is none.
    """
    runtime = next((each for each in runtime_classes(name) if auto in each.serves), None)
    if runtime is None:
        raise ConfigError(f"the runtime {runtime_name(name)} does not run models of {auto}")
    return runtime


def runtime_name(name: str) -> str:
    """Return the name of a runtime for messages: that of its module, or of the user's file."""
    return Path(name).stem if name.endswith(".py") else name


def _ignore(token: int) -> None:
    """Ignore a token: the listener of generations that are not read."""
