"""Scores of given tokens by a server, and what is checked of the server first."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from support.commands import naming
from support.endpoint import Odd, Served
from support.scoring import NAME, PROMPT, RECORDED, VLLM, SGLang, requests, resembles
from support.tiny import decoder, documents, exchanges, speller

from kdcli.errors import EndpointError, TeacherError
from kdcli.models.checkpoint import Checkpoint
from kdcli.signals import TopKSignal, concatenate, top_k
from kdcli.tasks.causal_lm.task import CausalLM
from kdcli.teachers.local import LocalTeacher
from kdcli.teachers.remote.limits import Budget
from kdcli.teachers.remote.scorer import TokenScorer
from kdcli.teachers.remote.scoring import ServedModel, SGLangClient, VLLMClient
from kdcli.teachers.remote.top import Top, written_top

K = 16
Connect = Callable[..., TokenScorer]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A random model."""
    folder, tokenizer = tmp_path_factory.mktemp("model"), speller()
    network = decoder(tokenizer)
    with torch.no_grad():
        network.get_input_embeddings().weight.mul_(8)  # else all tokens are nearly as likely
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Checkpoint(folder, "model")


@pytest.fixture
def rows() -> datasets.Dataset:
    """Prompts and completions."""
    pairs = enumerate(exchanges(12))
    return datasets.Dataset.from_list(
        [
            {"id": str(number), "prompt": prompt, "completion": f" {answer}"}
            for number, (prompt, answer) in pairs
        ]
    )


@pytest.fixture
def connect(model: Checkpoint, served: Served, tmp_path: Path) -> Connect:
    """A scorer of a server."""

    def ready(server: VLLM, at_once: int = 1, task: CausalLM | None = None, **options: Any) -> TokenScorer:
        kind = SGLangClient if isinstance(server, SGLang) else VLLMClient
        url = served(lambda body: 404, server).url
        client = kind(url, NAME, None, ledger=tmp_path, backoff=0.01, **options)
        scorer = TokenScorer(client, rows_per_request=at_once)
        scorer.prepare(model, task or CausalLM(), 64, K)
        return scorer

    return ready


def local_outputs(model: Checkpoint, rows: datasets.Dataset, task: CausalLM | None = None) -> TopKSignal:
    """The outputs of the model itself."""
    teacher = LocalTeacher(batch_size=4)
    teacher.open(model, task or CausalLM(), 64, "fp32")
    signal = concatenate(teacher.outputs(list(rows), lambda signal: top_k(signal, K, 1.0)))
    assert isinstance(signal, TopKSignal)
    return signal


def require_same(own: TopKSignal, served: TopKSignal) -> None:
    """Both list the same tokens, with the same log-probabilities but for rounding."""
    assert (own.indices == served.indices).all(-1).float().mean() >= 0.99
    torch.testing.assert_close(own.log_p, served.log_p, atol=1e-4, rtol=0)
    torch.testing.assert_close(own.log_rest.exp(), served.log_rest.exp(), atol=1e-4, rtol=0)
    assert (own.classes, own.temperature) == (served.classes, served.temperature)


@pytest.mark.parametrize("kind", [VLLM, SGLang])
def test_scores_are_those_of_the_model(
    kind: type[VLLM], model: Checkpoint, connect: Connect, rows: datasets.Dataset
) -> None:
    """Scores of the neighbouring position, of tokens beyond the vocabulary, or of another row of the request; a row that is requested again
    because others are requested with it."""
    server = kind(model.path)
    scorer = connect(server, at_once=5)
    scorer.require_server(rows[0], list(rows))
    outputs = scorer.outputs(list(rows))
    require_same(local_outputs(model, rows), concatenate(outputs))
    assert len(server.scored) == len(rows)
    scorer.rows_per_request = 1
    again = scorer.outputs(list(rows)[::-1])
    assert len(server.scored) == len(rows)
    assert torch.equal(again[-1].log_p, outputs[0].log_p)


def test_documents_of_a_row_are_scored_one_by_one(model: Checkpoint, connect: Connect) -> None:
    """A server attends to the document before; the student does not."""
    texts = [text[:40] for text in documents(2)]
    packed = datasets.Dataset.from_list([{"id": "0", "texts": texts, "ends": [True, False]}])
    task = CausalLM()
    task.packs = True
    served = connect(VLLM(model.path), task=task).outputs(list(packed))
    require_same(local_outputs(model, packed, task), served[0])


def test_tokens_beyond_the_students_vocabulary(
    model: Checkpoint, connect: Connect, rows: datasets.Dataset
) -> None:
    """Their mass would be missing, or stand at other tokens."""
    scorer = connect(VLLM(model.path))
    (signal,) = scorer.outputs([rows[0]])
    likely = int(signal.indices[0].max())
    scorer.truncate_vocabulary(likely)
    (fewer,) = scorer.outputs([rows[0]])
    assert int(fewer.indices.max()) < likely
    assert all(len(set(ids)) == K for ids in fewer.indices.tolist())
    torch.testing.assert_close(fewer.log_p.exp().sum(-1) + fewer.log_rest.exp(), torch.ones(len(fewer)))
    assert (fewer.log_p.diff(dim=-1) <= 1e-6).all()


def test_what_was_answered_is_not_asked_again(
    model: Checkpoint, connect: Connect, rows: datasets.Dataset
) -> None:
    """A budget that ends, a server that is restarted: the night is paid twice."""
    failures = [Odd(cut=0.0), Odd(status=503), Odd(cut=0.5)]
    server = VLLM(model.path, before=lambda count: failures.pop() if count >= 3 and failures else None)
    scorer = connect(server, concurrency=1, budget=Budget(requests=8))
    with pytest.raises(EndpointError, match=naming("teacher.budget")):
        scorer.outputs(list(rows))
    assert len(server.scored) == 8 - 3
    scorer.client._spending._budget = Budget()
    scorer.outputs(list(rows))
    assert sorted(map(len, server.scored)) == sorted(
        len(piece[0].prompt) for piece in scorer._pieces(list(rows))
    )


def no_scores(count: int) -> Odd:
    """The answer of a server that knows the protocol, and not `prompt_logprobs`."""
    choice = {"index": 0, "text": "", "finish_reason": "length", "logprobs": None}
    return Odd(data=json.dumps({"choices": [choice], "usage": {}}).encode())


@pytest.mark.parametrize(
    ("server", "words"),
    [
        ({"max_logprobs": 5}, ["--max-logprobs 16", "teacher.top_k = 16", "5"]),
        ({"max_length": 8}, ["--max-model-len", "dataset.max_length"]),
        ({"max_length": 8, "lacks": ("models",)}, ["--max-model-len", "dataset.max_length"]),
        ({"before": no_scores}, ["prompts", "vllm serve"]),
        ({"lacks": ("completions", "tokenize")}, ["teacher.base_url", "404"]),
    ],
)
def test_a_server_that_cannot_do_it(
    server: dict[str, Any], words: list[str], model: Checkpoint, connect: Connect, rows: datasets.Dataset
) -> None:
    """The run would fail in the middle, or learn from half of the tokens."""
    scorer = connect(VLLM(model.path, **server))
    with pytest.raises(TeacherError, match=naming(*words)):
        scorer.require_server(rows[0], list(rows))


@pytest.mark.parametrize("kind", [VLLM, SGLang])
@pytest.mark.parametrize("lacks", [(), ("tokenize",)])
def test_another_tokenizer(
    kind: type[VLLM],
    lacks: tuple[str, ...],
    model: Checkpoint,
    connect: Connect,
    rows: datasets.Dataset,
    tmp_path: Path,
) -> None:
    """The server would score other texts, and its ids mean other tokens."""
    speller(size=300).save_pretrained(tmp_path / "other")
    server = kind(model.path, tokenizer=tmp_path / "other", lacks=lacks)
    with pytest.raises(TeacherError, match=naming("teacher.tokenizer=PATH", "teacher.model")):
        connect(server).require_server(rows[0], list(rows))
    assert not server.scored or lacks


def test_another_model(model: Checkpoint, connect: Connect, rows: datasets.Dataset) -> None:
    """The first of the models that a server has is not the teacher."""
    scorer = connect(VLLM(model.path))
    scorer.client.model = "other"
    with pytest.raises(TeacherError, match=naming("teacher.model = other", NAME)):
        scorer.require_server(rows[0], [])


def test_a_prompt_that_is_cut(model: Checkpoint, connect: Connect, rows: datasets.Dataset) -> None:
    """A server that is told to truncate prompts scores the end of them, as if it were all."""
    server = SGLang(model.path)
    log_p = server.log_p
    server.log_p = lambda prompt: log_p(prompt[-6:])  # type: ignore[method-assign]
    with pytest.raises(TeacherError, match=naming("cuts prompts", "--context-length")):
        connect(server).outputs([rows[0]])


def test_a_top_is_the_same_after_the_ledger() -> None:
    """Bits that are lost, or columns that are swapped."""
    top = Top(np.array([[70000, 3], [1, 2]]), np.array([[-0.5, -1.25], [0.0, -9.0]], np.float32))
    value = json.loads(json.dumps(top.packed()))
    assert all(np.array_equal(a, b) for a, b in zip(top, Top.unpacked(value), strict=True))


def recorded() -> list[dict[str, Any]]:
    """The requests to the real vLLM, and its answers."""
    answers: list[dict[str, Any]] = json.loads(RECORDED.read_text())
    return answers


def test_the_server_of_the_tests_answers_as_vllm(model: Checkpoint) -> None:
    """Tests that pass against a server that nobody runs."""
    server = VLLM(model.path, max_length=1024, name="teacher")
    for answer, (path, body) in zip(recorded(), requests("teacher"), strict=True):
        assert (answer["path"], answer["body"]) == (path, body)
        reply = server(path, body or {})
        assert isinstance(reply, Odd)
        assert reply.status == answer["status"], path
        assert resembles(json.loads(reply.data or b""), answer["reply"]), path


def test_recorded_answers_of_vllm(served: Served, tmp_path: Path) -> None:
    """What vLLM means by its answers, of which the server of the tests is a copy."""
    answers = recorded()

    def replay(path: str, body: dict[str, Any]) -> Odd:
        if (found := next((each for each in answers if (each["body"] or {}) == body), None)) is None:
            return Odd(status=404)
        return Odd(status=found["status"], data=json.dumps(found["reply"]).encode())

    client = VLLMClient(served(lambda body: 404, replay).url, "teacher", None, ledger=tmp_path)
    assert client.models() == [ServedModel("teacher", 1024)]
    tokens = client.tokenize("it was good")
    assert tokens == answers[1]["reply"]["tokens"]
    assert client.probe("it was good") == tokens[1:]
    body = {"rows": [{"prompt": PROMPT, "start": 1, "k": 3}]}
    (top,) = (Top.unpacked(choice) for _, answer in client.query([body]) for choice in answer.choices)
    for ids, log_p, entry in zip(
        top.ids, top.log_p, answers[3]["reply"]["choices"][0]["prompt_logprobs"][1:], strict=True
    ):
        listed = {int(token): each for token, each in entry.items() if each["rank"] <= 3}
        assert set(ids.tolist()) == set(listed)
        assert [listed[token]["rank"] for token in ids.tolist()] == [1, 2, 3]
        assert log_p.tolist() == pytest.approx([listed[token]["logprob"] for token in ids.tolist()])
    written = answers[-1]["reply"]
    tokens = written_top(written, written["choices"][0])
    assert tokens["prompt"] == written["prompt_token_ids"]
    assert tokens["written"] == written["choices"][0]["token_ids"]
    assert Top.unpacked(tokens).ids[:, 0].tolist() == tokens["written"]  # greedily
    assert np.exp(top.log_p).sum(1).max() <= 1 + 1e-6
    for k, prompt, words in [
        (100, PROMPT, ["--max-logprobs 100", "teacher.top_k = 100"]),
        (3, PROMPT * 200, ["--max-model-len 1401", "dataset.max_length"]),
    ]:
        rows = {"rows": [{"prompt": prompt, "start": 1, "k": k}]}
        with pytest.raises(TeacherError, match=naming(*words)):
            list(client.query([rows]))
