"""Runs models in ONNX Runtime on the CPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdcli.measure.runtime import CausalLMRuntime, EncoderRuntime, Seq2SeqRuntime, as_list, max_new_tokens
from kdcli.measure.spec import Counted, Encoded, MeasureSpec


class OnnxEncoder(EncoderRuntime):
    """A graph with the output `logits`."""

    files = ("*.onnx",)
    packages, extra = ("onnxruntime", "tokenizers"), "cpu"

    def __init__(self, spec: MeasureSpec):
        self.session = _session(Path(spec.path), spec.threads)
        super().__init__(spec, [entry.name for entry in self.session.get_inputs()])

    def __call__(self, inputs: Encoded) -> np.ndarray:
        return self.session.run(["logits"], inputs)[0]


class OnnxCausalLM(CausalLMRuntime):
    """One graph for the prompt and for each further token, with a key/value cache."""

    files = ("*.onnx",)
    packages, extra = ("onnxruntime", "tokenizers"), "cpu"

    def __init__(self, spec: MeasureSpec):
        import tokenizers

        self.session = _session(Path(spec.path), spec.threads)
        self.tokenizer = tokenizers.Tokenizer.from_file(str(Path(spec.tokenizer) / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.max_length, self.add_special_tokens = spec.max_length, spec.add_special_tokens
        self.outputs = [entry.name for entry in self.session.get_outputs()]
        shapes = {entry.name: entry.shape for entry in self.session.get_inputs() if "." in entry.name}
        self.empty = {
            name: np.zeros((1, heads, 0, size), np.float32) for name, (_, heads, _, size) in shapes.items()
        }

    def encode(self, prompts: Sequence[tuple[str, list[int]]]) -> list[Encoded]:
        return [{"input_ids": np.asarray(ids[: self.max_length], np.int64)} for _, ids in prompts]

    def generate(self, prompt: Encoded, count: int, listener: Callable[[int], object]) -> None:
        ids, past = prompt["input_ids"], self.empty
        for _ in range(count):
            logits, past = self._read(ids, past, keep=1)
            ids = logits.argmax(-1)
            listener(int(ids[0, 0]))

    def reader(self) -> Callable[[list[int]], np.ndarray]:
        past = self.empty

        def read(tokens: list[int]) -> np.ndarray:
            nonlocal past
            logits, past = self._read(np.asarray([tokens], np.int64), past, keep=1)
            return logits[0, -1]

        return read

    def score(self, rows: Sequence[Counted]) -> dict[str, np.ndarray]:
        """Return log-probabilities and the most likely tokens. A row is read in two parts, up to the first counted token and from there, so that the cache
        is tested as well."""
        log_prob, top = [np.zeros(0, np.float32)], [np.zeros(0, np.int64)]
        for ids, positions in rows:
            if not positions:
                continue
            row = np.asarray([ids[: positions[-1]]], np.int64)
            first, past = self._read(row[:, : positions[0]], self.empty, keep=1)
            logits = first[0]
            if len(positions) > 1:
                rest, _ = self._read(row[:, positions[0] :], past)
                logits = np.concatenate([logits, rest[0, [at - positions[0] - 1 for at in positions[1:]]]])
            top.append(logits.argmax(-1))
            peak = logits.max(-1)
            total = peak + np.log(np.exp(logits - peak[:, None]).sum(-1))
            log_prob.append(logits[np.arange(len(positions)), [ids[at] for at in positions]] - total)
        return {"log_prob": np.concatenate(log_prob), "top": np.concatenate(top)}

    def tokenize(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=self.add_special_tokens).ids
        return ids

    def _read(self, ids: np.ndarray, past: Encoded, keep: int = 0) -> tuple[np.ndarray, Encoded]:
        """Run further tokens (1, T); return logits (1, T, C), or of the last `keep` of them, and the cache after them."""
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


class OnnxSeq2Seq(Seq2SeqRuntime):
    """A folder with graphs of the encoder and of the decoder, with a key/value cache."""

    markers, weights = ("encoder_model.onnx",), ("*.onnx", "*.onnx.data")
    packages, extra = ("onnxruntime",), "cpu"

    def __init__(self, spec: MeasureSpec):
        folder = Path(spec.path)
        self.encoder, self.first, self.later = (
            _session(folder / f"{name}.onnx", spec.threads)
            for name in ("encoder_model", "decoder_model", "decoder_with_past_model")
        )
        config = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
        self.begin = [config["decoder_start_token_id"], *spec.decoder_prefix]
        self.ends = as_list(config["eos_token_id"])
        self.max_new_tokens = max_new_tokens(spec)
        self.names = {
            session: (
                {entry.name for entry in session.get_inputs()},
                [entry.name for entry in session.get_outputs()],
            )
            for session in (self.first, self.later)
        }

    def decoder(self, ids: Sequence[int]) -> Callable[[list[int]], Any]:
        row = np.asarray([ids], np.int64)
        mask = np.ones_like(row)
        hidden = self.encoder.run(["last_hidden_state"], {"input_ids": row, "attention_mask": mask})[0]
        arrays = {"encoder_attention_mask": mask, "encoder_hidden_states": hidden}
        session = self.first

        def step(tokens: list[int]) -> np.ndarray:
            nonlocal session
            inputs, outputs = self.names[session]
            arrays["input_ids"] = np.asarray([tokens], np.int64)
            results = session.run(outputs, {name: arrays[name] for name in inputs})
            for name, array in zip(outputs, results, strict=True):
                arrays[name.replace("present", "past_key_values")] = array
            session = self.later
            return arrays["logits"][0, -1]

        return step


def _session(path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors: ONNX Runtime warns about each optional input
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
