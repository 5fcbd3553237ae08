"""What runs a model in the process of `kdcli.measure.worker`: this package is imported there alone, and imports as little as it can."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from kdcli.measure.spec import Encoded, MeasureSpec, Texts


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
