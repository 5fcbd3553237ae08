"""Encoder-decoders that classify are written as ONNX, and what a target cannot write is refused before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers as of
from support.architectures import MODELS

from kdcli import console
from kdcli.errors import ConfigError
from kdcli.exporting.targets import apple, cuda, intel
from kdcli.exporting.targets.apple import Apple
from kdcli.exporting.targets.base import Target, require_fast_tokenizer, require_writable
from kdcli.exporting.targets.cpu import UNTRACED, UNTRACED_DECODERS, Cpu
from kdcli.exporting.targets.cuda import Cuda
from kdcli.exporting.targets.intel import Intel
from kdcli.exporting.targets.laptop import Laptop
from kdcli.exporting.targets.mobile import UNWRITTEN, Mobile

CLASSIFIER, DECODER, TRANSLATOR = (
    f"AutoModelFor{name}" for name in ("SequenceClassification", "CausalLM", "Seq2SeqLM")
)
END = 3


@pytest.mark.parametrize("kind", ["bart-labels", "t5-labels"])
def test_an_encoder_decoder_that_classifies_gives_the_logits_of_torch(kind: str, tmp_path: Path) -> None:
    """Rows without an end token cannot be traced; and a graph that has the number of end tokens, or the length, of the sample."""
    model = MODELS[kind]()
    files = Cpu(["fp32", "int8"], opset=18).export(
        tmp_path, tmp_path, model, [{"input_ids": torch.zeros(1, 1), "attention_mask": torch.zeros(1, 1)}], 32
    )
    for rows, length, ends in (1, 4, 1), (2, 9, 1), (3, 13, 2):
        ids = torch.randint(4, 40, (rows, length), generator=torch.Generator().manual_seed(length))
        mask = torch.ones_like(ids)
        ids[:, -ends:] = END
        if rows > 1:
            ids[1, 5 - ends : 5], ids[1, 5:], mask[1, 5:] = END, 0, 0
        with torch.no_grad():
            expected = model(input_ids=ids, attention_mask=mask).logits.numpy()
        for name, limit in ("fp32", 1e-4), ("int8", 0.5):
            session = onnxruntime.InferenceSession(files[name], providers=["CPUExecutionProvider"])
            (logits,) = session.run(["logits"], {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
            np.testing.assert_allclose(logits, expected, atol=limit)


@pytest.mark.parametrize(
    ("target", "auto", "config", "refused"),
    [
        (Cpu(), CLASSIFIER, of.BertConfig(), None),
        (Cpu(), CLASSIFIER, of.BartConfig(), None),
        (
            Cpu(),
            CLASSIFIER,
            of.LongformerConfig(),
            r"hardware=cuda writes it, with hardware.precisions=\[bf16\]",
        ),
        (Cpu(), CLASSIFIER, of.MixtralConfig(), None),
        (Cpu(), CLASSIFIER, of.FNetConfig(), "operations that ONNX has not"),
        (Cpu(), DECODER, of.LlamaConfig(), None),
        (Cpu(), DECODER, of.MambaConfig(), "hardware=cuda writes it$"),
        (Cpu(), TRANSLATOR, of.MarianConfig(), None),
        (Cpu(), TRANSLATOR, of.BlenderbotSmallConfig(), r"CTranslate2 .*hardware.precisions=\[fp32\]"),
        (Cpu(["fp32"]), TRANSLATOR, of.BlenderbotSmallConfig(), None),
        (Cuda(), CLASSIFIER, of.T5Config(), r"hardware.precisions=\[bf16\]"),
        (Cuda(["bf16"]), CLASSIFIER, of.T5Config(), None),
        (Cuda(), DECODER, of.MambaConfig(), None),
        (Apple(["fp16"]), CLASSIFIER, of.BartConfig(), "hardware=cpu does"),
        (Mobile(["litert_int8"]), CLASSIFIER, of.BartConfig(), "hardware=cpu does"),
        (Mobile(["litert_int8"]), CLASSIFIER, of.T5Config(), "hardware=cpu does"),
        (Mobile(["executorch_fp32", "executorch_int8"]), CLASSIFIER, of.T5Config(), "hardware=cpu does"),
        (Mobile(["litert_int8", "executorch_int8"]), CLASSIFIER, of.DebertaV2Config(), None),
        (Mobile(["litert_int8"]), CLASSIFIER, of.FNetConfig(), r"litert_int8 .*hardware.precisions=\[bf16\]"),
        (Apple(["fp16"]), CLASSIFIER, of.FNetConfig(), r"hardware=cuda .*hardware.precisions=\[bf16\]"),
        (Apple(["fp16"]), CLASSIFIER, of.BertConfig(), None),
        (Intel(["int8"]), CLASSIFIER, of.LongformerConfig(), r"hardware=cuda .*hardware.precisions=\[bf16\]"),
        (Intel(["int8"]), CLASSIFIER, of.T5Config(), None),
        (Cuda(), CLASSIFIER, of.FNetConfig(), r"hardware.precisions=\[bf16\]"),
        (Cuda(["bf16"]), CLASSIFIER, of.FNetConfig(), None),
        (Cuda(["pt2"]), DECODER, of.LlamaConfig(), r"hardware.precisions=\[bf16\]"),
        (Cpu(["int4"]), TRANSLATOR, of.MarianConfig(), r"hardware.precisions=\[fp32,int8\]"),
        (Laptop(["f16"]), DECODER, of.LlamaConfig(), None),
        (Laptop(["f16"]), DECODER, of.XGLMConfig(), "llama.cpp does not know it"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Target | of.PreTrainedConfig) else None,
)
def test_an_architecture_is_refused_with_the_device_that_writes_it(
    target: Target, auto: str, config: Any, refused: str | None
) -> None:
    """Hours of training, and then an exporter's message about an operator."""
    if refused is None:
        require_writable(target, "here", auto, config, is_chosen=True)
        return
    with pytest.raises(ConfigError, match=refused):
        require_writable(target, "here", auto, config, is_chosen=True)


def test_a_tokenizer_without_a_file_is_refused_with_the_device_that_reads_it() -> None:
    """Files that no runtime can give a text to, and a traceback about a file that is not there."""
    with pytest.raises(ConfigError, match=r"hardware=cuda hardware.precisions=\[bf16\]"):
        require_fast_tokenizer(Cpu(), "cpu", CLASSIFIER, is_fast=False, is_chosen=True)
    require_fast_tokenizer(Cuda(["bf16"]), "cuda", CLASSIFIER, is_fast=False, is_chosen=True)
    require_fast_tokenizer(Cpu(), "cpu", TRANSLATOR, is_fast=False, is_chosen=True)
    require_fast_tokenizer(Cpu(), "cpu", CLASSIFIER, is_fast=True, is_chosen=True)


def test_a_default_device_is_no_reason_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """A student that nobody wants to export cannot be trained."""
    warnings: list[str] = []
    monkeypatch.setattr(console, "warn", warnings.append)
    require_writable(Cpu(), "cpu", DECODER, of.MambaConfig(), is_chosen=False)
    assert "MambaForCausalLM" in warnings[0]


def test_listed_architectures_exist() -> None:
    """A name that transformers has changed, or that was spelled wrongly, refuses nothing: the export fails after the training."""
    unwritten = {*UNWRITTEN, *apple.UNWRITTEN, *cuda.UNWRITTEN, *intel.UNWRITTEN}
    assert {*UNTRACED, *UNTRACED_DECODERS, *unwritten} <= set(of.CONFIG_MAPPING)
