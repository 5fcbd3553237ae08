"""What runs a model in the process of `kdcli.measure`: this package is imported there alone, and imports as little as it can."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

Texts = Sequence[Sequence[str]]
"""Each row: one text, or a text and its pair."""
Encoded = dict[str, np.ndarray]
"""The model's inputs by name: of one row (L,), of a batch (B, L)."""
Counted = tuple[list[int], list[int]]
"""Token ids, and the places of those that count."""


Runtime = Literal[
    "torch", "onnx", "llama", "ctranslate2", "openvino", "exported", "node", "litert", "executorch"
]
"""The modules of this package."""


@dataclass(frozen=True)
class MeasureSpec:
    """What to run, and how.

    Attributes:
        path: a model directory (torch; of a translator also onnx, ctranslate2) or a file.
        tokenizer: the directory of its tokenizer (llama: it has its own; translators get token ids).
        auto: the class of transformers that loads the model.
        special: the tokenizer adds its special tokens (a rendered chat has them already).
        new_tokens: a language model writes so many, for its speed.
        max_length: tokens a row; the rest is cut off.
        threads: of the runtime.
        device: of torch: "cpu" or "cuda".
        dtype: of torch: "float32", or "auto": as the weights are stored.
        batch_sizes: rows a batch: throughput is that of the best of them.
        sequence_length: tokens of each row that is timed, cut or begun again; None: its own.
        latency_runs: so many rows are run at batch 1, some of them anew where there are fewer.
        throughput_seconds: throughput is measured for about so long in all, over whole passes.
        request_rates: requests a second, of raw texts (`kdcli.measure.Load`).
        load_seconds: for about so long each.
        max_texts: speed is measured on at most so many rows, evenly spaced among all.
        speed: false: nothing is timed.
        answers: a safetensors file to write with what the model says of all rows, in their order: `logits`, float32
            (N, C), and `input_ids`, int64, its tokens of all rows, and `lengths`, int64 (N,), how many each has; of a token
            classifier the logits alone, at its counted tokens, or of a language model's counted tokens `log_prob`, float32
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
    device: str = "cpu"
    dtype: str = "float32"
    batch_sizes: Sequence[int] = (1, 8, 32)
    sequence_length: int | None = None
    latency_runs: int = 200
    throughput_seconds: float = 2.0
    request_rates: Sequence[float] = ()
    load_seconds: float = 3.0
    max_texts: int = 256
    new_tokens: int = 32
    speed: bool = True
    answers: str | None = None
    given: Sequence[int] = ()
    code: bool = False


class Runs(ABC):
    """A model that is loaded, and answers. A runtime's module has a `Model` (of a classifier), a `Writer` (of a language model), a
    `Translator`, or several of them, made of a `MeasureSpec`.

    Attributes:
        packages: what is imported before the model is loaded, so that its memory can be told from the model's.
        extra: of kdcli, that installs them.
        held: bytes before the model was loaded, if another process than this one runs it.
    """

    packages: ClassVar[tuple[str, ...]]
    extra: ClassVar[str] = ""
    held: int | None = None

    @classmethod  # noqa: B027
    def require_safe(cls, path: Path) -> None:
        """Refuse a file or folder whose loading would run code of its own; called before its process is started.

        ONNX Runtime, OpenVINO, llama.cpp, CTranslate2, LiteRT and ExecuTorch run operators that they know, and read no file that lies
        elsewhere.

        Raises:
            ModelError
        """

    def computed(self) -> float:
        """Seconds that were computed for it so far, in all threads."""
        return time.process_time()

    def memory(self) -> int | None:
        """The most that it held so far on a device or in a process of its own, in bytes; None: it is in this process's memory."""
        return None


class Answers(Runs):
    """A model that answers rows.

    Attributes:
        pad: the inputs, and what pads each.
    """

    pad: dict[str, int]

    @abstractmethod
    def encode(self, texts: Any) -> list[Encoded]:
        """The inputs of each row, (L,), cut to the most that it may have."""

    def read(self, text: Sequence[str]) -> Encoded:
        """The inputs of one raw text, (L,), as an application makes them."""
        return self.encode([text])[0]

    @abstractmethod
    def __call__(self, batch: Encoded) -> np.ndarray:
        """Inputs (B, L) -> logits (B, C), of a token classifier (B, L, C)."""

    def at(self, rows: Sequence[tuple[list[int], list[int]]]) -> np.ndarray:
        """Logits of each row's counted tokens, float32 (N, C); row by row, whatever the runtime could take."""
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


class Writes(Answers):
    """A language model, which goes on from a prompt."""

    @abstractmethod
    def write(self, prompt: Encoded, count: int, told: Callable[[int], object]) -> None:
        """Go on from a prompt, (1, L), by so many tokens, greedily and whatever the end of text says.

        Args:
            told: called with each token as soon as it is known, so that its time can be taken or its text be shown.
        """

    def __call__(self, batch: Encoded) -> np.ndarray:
        """Read a prompt and write one token, (1,)."""
        said: list[int] = []
        self.write(batch, 1, said.append)
        return np.asarray(said)


class File(Answers):
    """A file of a classifier, of whichever runtime, whose tokenizer is the tokenizer.json in a folder beside it.

    Args:
        names: the model's inputs, in its own order.
    """

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
        self.pad = {name: fill.get(name, 0) for name in names}

    def encode(self, texts: Texts) -> list[Encoded]:
        known = {"input_ids": "ids", "token_type_ids": "type_ids", "attention_mask": "attention_mask"}
        rows = self.tokenizer.encode_batch([row[0] if len(row) == 1 else tuple(row) for row in texts])
        return [{name: np.asarray(getattr(row, known[name]), np.int64) for name in self.pad} for row in rows]

    def padded(self, batch: Encoded, length: int, kind: type = np.int64) -> Encoded:
        """The inputs, in the model's own order, with rows padded on the right to so many tokens."""
        rows, given = batch["input_ids"].shape
        out: Encoded = {name: np.full((rows, length), fill, kind) for name, fill in self.pad.items()}
        for name, array in out.items():
            array[:, :given] = batch[name]
        return out


class Greedy(Runs):
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


def listed(tokens: int | list[int]) -> list[int]:
    """Tokens, which a config may give as one."""
    return tokens if isinstance(tokens, list) else [tokens]


def room(spec: MeasureSpec) -> int:
    """Tokens that a translation may have besides those given."""
    return max(1, spec.max_length - len(spec.given))
