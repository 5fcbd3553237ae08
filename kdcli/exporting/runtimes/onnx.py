"""ONNX Runtime on the CPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdcli.measure.runtime import File, Greedy, Writes, listed, room
from kdcli.measure.spec import Encoded, MeasureSpec


class Model(File):
    """A classifier's file."""

    packages, extra = ("onnxruntime", "tokenizers"), "cpu"

    def __init__(self, spec: MeasureSpec):
        self.session = _session(Path(spec.path), spec.threads)
        super().__init__(spec, [entry.name for entry in self.session.get_inputs()])

    def __call__(self, batch: Encoded) -> np.ndarray:
        return self.session.run(["logits"], batch)[0]


class Writer(Writes):
    """A language model's file: one graph for the prompt and for what follows, with a cache of keys and values."""

    packages, extra = ("onnxruntime", "tokenizers"), "cpu"

    def __init__(self, spec: MeasureSpec):
        import tokenizers

        self.session = _session(Path(spec.path), spec.threads)
        self.tokenizer = tokenizers.Tokenizer.from_file(str(Path(spec.tokenizer) / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.max_length, self.special = spec.max_length, spec.special
        self.pad = {"input_ids": 0}
        self.outputs = [entry.name for entry in self.session.get_outputs()]
        shapes = {entry.name: entry.shape for entry in self.session.get_inputs() if "." in entry.name}
        self.empty = {
            name: np.zeros((1, heads, 0, size), np.float32) for name, (_, heads, _, size) in shapes.items()
        }

    def encode(self, prompts: Sequence[tuple[str, list[int]]]) -> list[Encoded]:
        return [{"input_ids": np.asarray(ids[: self.max_length], np.int64)} for _, ids in prompts]

    def write(self, prompt: Encoded, count: int, told: Callable[[int], object]) -> None:
        ids, past = prompt["input_ids"], self.empty
        for _ in range(count):
            logits, past = self._read(ids, past, keep=1)
            ids = logits.argmax(-1)
            told(int(ids[0, 0]))

    def score(self, rows: Sequence[tuple[list[int], list[int]]]) -> dict[str, np.ndarray]:
        """Of each row's counted tokens the log-probability after those before, and the likeliest token there.

        A row is read in two pieces, to the first counted token and from there, so that the cache is asked, too.
        """
        log_prob, top = [np.zeros(0, np.float32)], [np.zeros(0, np.int64)]
        for ids, places in rows:
            if not places:
                continue
            row = np.asarray([ids[: places[-1]]], np.int64)
            first, past = self._read(row[:, : places[0]], self.empty, keep=1)
            logits = first[0]
            if len(places) > 1:
                rest, _ = self._read(row[:, places[0] :], past)
                logits = np.concatenate([logits, rest[0, [place - places[0] - 1 for place in places[1:]]]])
            top.append(logits.argmax(-1))
            peak = logits.max(-1)
            total = peak + np.log(np.exp(logits - peak[:, None]).sum(-1))
            log_prob.append(logits[np.arange(len(places)), [ids[place] for place in places]] - total)
        return {"log_prob": np.concatenate(log_prob), "top": np.concatenate(top)}

    def same_tokens(self, prompts: Sequence[tuple[str, list[int]]]) -> np.ndarray:
        """Whether tokenizer.json cuts each text into the ids given, bool (N,)."""
        return np.asarray([self._tokens(text) == ids for text, ids in prompts], bool)

    def read(self, text: Sequence[str]) -> Encoded:
        """By tokenizer.json."""
        return {"input_ids": np.asarray(self._tokens(text[0])[: self.max_length], np.int64)}

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=self.special).ids
        return ids

    def _read(self, ids: np.ndarray, past: Encoded, keep: int = 0) -> tuple[np.ndarray, Encoded]:
        """Tokens (1, T) after those that were read -> logits (1, T, C), or of the last ones alone, and what is known then."""
        before = next(iter(past.values())).shape[2]
        length = before + ids.shape[1]
        inputs = {
            "input_ids": ids,
            "attention_mask": np.ones((1, length), np.int64),
            "position_ids": np.arange(before, length)[None],
            "num_logits_to_keep": np.asarray(keep),
        }
        logits, *parts = self.session.run(self.outputs, inputs | past)
        return logits, dict(zip(self.empty, parts, strict=True))


class Translator(Greedy):
    """A folder of graphs, encoder and decoder, with a cache of keys and values."""

    packages, extra = ("onnxruntime",), "cpu"

    def __init__(self, spec: MeasureSpec):
        folder = Path(spec.path)
        self.encoder, self.first, self.later = (
            _session(folder / f"{name}.onnx", spec.threads)
            for name in ("encoder_model", "decoder_model", "decoder_with_past_model")
        )
        config = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
        self.begin = [config["decoder_start_token_id"], *spec.given]
        self.ends = listed(config["eos_token_id"])
        self.room = room(spec)
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


def _session(path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors: each optional input is warned of
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
