"""ONNX Runtime on the CPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdcli.runtimes.base import Encoded, File, Greedy, MeasureSpec, listed, room


class Model(File):
    """A classifier's file."""

    packages, extra = ("onnxruntime", "tokenizers"), "cpu"

    def __init__(self, spec: MeasureSpec):
        self.session = _session(Path(spec.path), spec.threads)
        super().__init__(spec, [entry.name for entry in self.session.get_inputs()])

    def __call__(self, batch: Encoded) -> np.ndarray:
        return self.session.run(["logits"], batch)[0]


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
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
