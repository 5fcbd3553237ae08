"""A phone: LiteRT (Android, iOS) and ExecuTorch files of classifiers, run here by the Python builds of both."""

from __future__ import annotations

import copy
import importlib.util
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from kdcli import console
from kdcli.errors import ExportError
from kdcli.hardware import litert
from kdcli.hardware.base import Target, copy_beside
from kdcli.runtimes.executorch import LEAST, NAMES

PACKAGES = {"litert": ("ai_edge_litert",), "executorch": ("executorch", "torchao")}
FILES = {"litert": ("int8", "model.int8.tflite"), "executorch": ("fp32", "model.pte")}
"""What each is called: its precision, and its name."""
SHORTEST = 16
"""Tokens of a LiteRT file's first signature; of 8 (0.05 ms) it would save 0.03 ms."""


class Mobile(Target):
    """`model.int8.tflite`, for LiteRT, and `model.pte`, for ExecuTorch with XNNPACK.

    LiteRT, int8: weights in 8 bits with a scale per output channel, activations quantized as they come, so no
    calibration data is needed. Its shapes are fixed, so the file has a signature `tokens_16`, `tokens_32` … for rows
    padded to so many tokens, which share their weights: a short text takes the time of a short one. Inputs are named as in
    transformers, int32 (1, tokens); the output is `logits`, (1, labels), of a token classifier (1, tokens, labels).

    ExecuTorch, fp32: `forward` takes input_ids, attention_mask, token_type_ids (if the student has them) in that order,
    int64 (1, tokens), of any number from 2 on, and gives the logits.

    Beside them `run.py` and `run_android.kt` show how a LiteRT file is run without kdcli.

    Args:
        formats: which files to make.
    """

    serves = ("classification", "token_classification")

    def __init__(self, formats: Annotated[list[Literal["litert", "executorch"]], Field(min_length=1)]):
        self.formats = formats

    def export(
        self,
        student: Path,
        out: Path,
        model: PreTrainedModel,
        inputs: Sequence[Mapping[str, Tensor]],
        max_length: int,
    ) -> dict[str, Path]:
        """Write the files of all formats. Of the inputs only the names are used; the model is left as it was.

        Raises:
            ExportError: a package is missing and cannot be had, or an exporter refused the architecture.
        """
        needed = [name for each in self.formats for name in PACKAGES[each]]
        if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
            raise ExportError(
                f"no module {', '.join(missing)}: hardware=mobile needs it; install it with: pip install 'kdcli[mobile]'"
            )
        names = [name for name in NAMES if name in inputs[0]]
        files = {}
        for each in self.formats:
            precision, name = FILES[each]
            files[precision] = out / name
            if each == "litert":
                litert.write(student, type(model).__name__, names, lengths(max_length), out / name)
                for snippet, text in (("run.py", RUN), ("run_android.kt", KOTLIN)):
                    (out / snippet).write_text(text, encoding="utf-8")
            else:
                _write_executorch(model, names, max_length, out / name)
        copy_beside(student, out)
        console.say("mobile: the files are run by the Python builds of their runtimes on this machine, not on a phone")
        return files


def lengths(most: int) -> list[int]:
    """16, 32, 64 … below the most tokens that a row may have, and that."""
    doubled = [SHORTEST << times for times in range(most.bit_length())]
    return [*(length for length in doubled if length < most), most]


def _write_executorch(model: PreTrainedModel, names: Sequence[str], max_length: int, path: Path) -> None:
    """The program in fp32, by transformers' exporter, with the fused attention and an open length.

    An open length costs nothing (128 tokens: 4.5 ms, and 10.9 with a fixed one).
    """
    from transformers.exporters import ExecutorchConfig, ExecutorchExporter

    most = max(max_length, LEAST + 1)
    sample = {name: torch.ones(1, most, dtype=torch.long) for name in names}
    length = torch.export.Dim("length", min=LEAST, max=most)
    config = ExecutorchConfig(backend="xnnpack", dynamic_shapes={name: {1: length} for name in names})
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = ExecutorchExporter().export(copy.deepcopy(model), sample, config=config)
            ExecutorchExporter.save_program(made.program, path)
    except Exception as error:  # the exporter lets through whatever the model's code raises under it
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ExportError(f"{type(model).__name__} cannot be written for ExecuTorch: {first}") from error
    finally:
        logging.disable(before)


RUN = '''\
"""python run.py TEXT: needs ai-edge-litert, tokenizers, numpy. Checked with LiteRT's Python build, not on a phone."""
import json
import sys
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from tokenizers import Tokenizer

folder = Path(__file__).parent
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
interpreter = Interpreter(str(folder / "model.int8.tflite"), num_threads=1)
lengths = sorted(int(name.removeprefix("tokens_")) for name in interpreter.get_signature_list())
tokenizer.no_padding()
tokenizer.enable_truncation(lengths[-1])
row = tokenizer.encode(*sys.argv[1:])
length = next(length for length in lengths if length >= len(row.ids))
run = interpreter.get_signature_runner(f"tokens_{length}")
given = {"input_ids": row.ids, "attention_mask": row.attention_mask, "token_type_ids": row.type_ids}
padded = {name: np.array([given[name] + [0] * (length - len(row.ids))], np.int32) for name in run.get_input_details()}
logits = run(**padded)["logits"][0]
labels = json.loads((folder / "config.json").read_text())["id2label"]
print(json.dumps({labels[str(number)]: float(value) for number, value in enumerate(logits)}))
'''
KOTLIN = '''\
// Runs model.int8.tflite on Android. Gradle: implementation("com.google.ai.edge.litert:litert:1.4.0")
// kdcli checked the file with LiteRT's Python build, not on a phone. The ids come from tokenizer.json, for example by
// HuggingFaceTokenizer of ai.djl.android:tokenizer-native; the labels are id2label in config.json.
import java.io.File
import org.tensorflow.lite.Interpreter

class Classifier(model: File, private val labels: Int) : AutoCloseable {
    private val interpreter = Interpreter(model, Interpreter.Options().setNumThreads(1))
    private val lengths = interpreter.signatureKeys.map { it.removePrefix("tokens_").toInt() }.sorted()

    /** The logits of one text, whose ids are no more than the longest signature takes. */
    fun logits(ids: IntArray, segments: IntArray = IntArray(ids.size)): FloatArray {
        val length = lengths.first { it >= ids.size }
        val signature = "tokens_$length"
        val given = mapOf(
            "input_ids" to ids,
            "attention_mask" to IntArray(ids.size) { 1 },
            "token_type_ids" to segments,
        )
        val inputs = interpreter.getSignatureInputs(signature)
            .associateWith { arrayOf(given.getValue(it).copyOf(length)) as Any }
        val logits = arrayOf(FloatArray(labels))
        interpreter.runSignature(inputs, mapOf("logits" to logits as Any), signature)
        return logits[0]
    }

    override fun close() = interpreter.close()
}
'''
