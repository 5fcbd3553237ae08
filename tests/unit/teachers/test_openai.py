"""What is made of a model's answers, without a server."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from support.commands import ColdCache, naming

from kdcli.config.dataset import Dataset
from kdcli.config.rollout import Rollout
from kdcli.errors import TeacherError
from kdcli.tasks.causal_lm.task import CausalLM
from kdcli.tasks.classification.task import Classification
from kdcli.teachers.remote.labels import clash
from kdcli.teachers.remote.ledger import Answer
from kdcli.teachers.remote.openai import OpenAITeacher
from kdcli.teachers.remote.wire import read_completion

URL = "http://127.0.0.1:1/v1"
ROW = {"id": "1", "text": "so it is", "label": 0}


@pytest.fixture(autouse=True)
def own_cache(cold_cache: ColdCache) -> None:
    cold_cache()


def teacher(labels: list[str], gold: list[dict[str, Any]] | None = None, **options: Any) -> OpenAITeacher:
    found = OpenAITeacher(URL, "m", **options)
    found.begin(Classification(labels), Dataset(path="x"), gold or [])
    return found


def choice(*tokens: dict[str, float]) -> dict[str, Any]:
    """The tokens that were likeliest at each place."""
    logprobs = [
        {
            "token": next(iter(top)),
            "logprob": 0.0,
            "top": [{"token": t, "logprob": math.log(p)} for t, p in top.items()],
        }
        for top in tokens
    ]
    return {
        "text": "".join(next(iter(top)) for top in tokens),
        "finish_reason": "length",
        "logprobs": logprobs,
    }


def shares(log_p: np.ndarray | None) -> list[float]:
    assert log_p is not None
    return [round(share, 3) for share in np.exp(log_p).tolist()]


def test_tokens_become_labels() -> None:
    """Spellings of a label that are not added up, or tokens of other words that are."""
    labels = teacher(["negative", "irony", "fine"]).labels
    tops = {" Neg": 0.3, "negative": 0.1, "**fine": 0.2, "I": 0.2, "The": 0.1, "fines": 0.05}
    log_p, unparsable = labels.read([choice({"\n": 1.0}, tops)])
    assert not unparsable
    # irony is not listed: at most the least listed, and what is left
    assert shares(log_p) == [round(0.4 / 0.65, 3), round(0.05 / 0.65, 3), round(0.2 / 0.65, 3)]
    assert labels.missing == [pytest.approx(0.4)]
    assert labels.token_shares(choice(tops))[1] == pytest.approx(0.2)  # I: irony, or not


def test_no_log_probabilities() -> None:
    """A host that gives none: everything would be certain."""
    with pytest.raises(TeacherError, match="teacher.soft_labels=samples"):
        teacher(["a", "b"]).labels.read([{"text": "a", "finish_reason": "length", "logprobs": None}])


def reported(tokens: list[str], text: str, encoded: bool = False) -> dict[str, Any]:
    """A completion as a server reports it, each token of which is likelier than the alternative `Ġbad`."""

    def listed(token: str, share: float) -> dict[str, Any]:
        data = list(token.replace("Ġ", " ").encode()) if encoded else None
        return {"token": token, "logprob": math.log(share), "bytes": data}

    content = [
        listed(token, 0.8) | {"top_logprobs": [listed(token, 0.8), listed("Ġbad", 0.2)]} for token in tokens
    ]
    choice = {"message": {"content": text}, "finish_reason": "stop", "logprobs": {"content": content}}
    return read_completion({"choices": [choice]}, str).choices[0]


def test_tokens_in_the_lists_of_older_completions() -> None:
    """A host answers a chat with `tokens` and `token_logprobs`, and is said to give no log-probabilities."""
    logprobs = {
        "tokens": ["good", "</s>"],
        "token_logprobs": [math.log(0.8), None],
        "top_logprobs": [{"good": math.log(0.8), "bad": math.log(0.2)}, None],
    }
    choice = {"message": {"content": "good"}, "finish_reason": "stop", "logprobs": logprobs}
    log_p, unparsable = teacher(["good", "bad"]).labels.read(
        [read_completion({"choices": [choice]}, str).choices[0]]
    )
    assert not unparsable
    assert shares(log_p) == [0.8, 0.2]


@pytest.mark.parametrize(
    ("labels", "tokens", "text", "encoded"),
    [
        (["good", "bad"], ["Ġgood"], "good", False),
        (["good", "bad"], ["good"], "good", False),
        (["good", "bad"], ["Ċ", "Ġgood"], "\n good", False),
        (["good", "bad"], ["Ġgood"], "good", True),
        (["été", "bad"], ["Ã©tÃ©"], "été", False),
        (["été", "bad"], ["Ġété"], " été", True),
    ],
)
def test_tokens_in_the_form_of_a_vocabulary(
    labels: list[str], tokens: list[str], text: str, encoded: bool
) -> None:
    """A server reports tokens as `Ġgood`, and all of its answers are unparsable."""
    log_p, unparsable = teacher(labels).labels.read([reported(tokens, text, encoded)])
    assert not unparsable
    assert shares(log_p) == [0.8, 0.2]


def test_a_letter_that_vocabularies_use_for_spaces() -> None:
    """A label in Maltese loses its first letter."""
    log_p, _ = teacher(["Ġurnata", "bad"]).labels.read([reported(["Ġurnata"], "Ġurnata")])
    assert shares(log_p) == [1.0, 0.0]


def test_tokens_that_are_not_text() -> None:
    """A server reports `token_id:101` for `good`, and a user reads that `good` is unparsable, with a remedy for sentences."""
    labels = teacher(["good", "bad"]).labels
    with pytest.raises(TeacherError, match=naming("token_id:101", "teacher.soft_labels=samples", "one_hot")):
        labels.read([choice({"token_id:101": 0.9, "token_id:7": 0.1}) | {"text": "good"}])
    labels.read([choice({"good": 0.9, "bad": 0.1})])
    odd = choice({"token_id:101": 0.9, "token_id:7": 0.1}) | {"text": "good"}
    assert labels.read([odd]) == (None, [odd])


@pytest.mark.parametrize(
    ("thoughts", "answer", "probabilities"),
    [
        (["<think>", "bad", "</think>", "\n\n"], {"good": 0.9, "bad": 0.1}, [0.9, 0.1]),
        (["<think>", "good", "."], {"good": 0.9}, None),
        ([], {"<think>": 0.99, "good": 0.005}, None),
    ],
)
def test_the_first_token_is_behind_the_thoughts(
    thoughts: list[str], answer: dict[str, float], probabilities: list[float] | None
) -> None:
    """The label is read out of the first token of a thought."""
    labels = teacher(["good", "bad"]).labels
    log_p, unparsable = labels.read([choice(*({token: 1.0} for token in thoughts), answer)])
    assert len(unparsable) == (probabilities is None)
    assert (log_p is None) if probabilities is None else (shares(log_p) == probabilities)


def test_letters() -> None:
    """A word that begins with the letter counts as the letter."""
    labels = teacher(["5", "51"]).labels
    assert labels.lettered
    log_p, _ = labels.read([choice({"A": 0.5, " b": 0.25, "Both": 0.2})])
    assert shares(log_p) == [round(2 / 3, 3), round(1 / 3, 3)]
    with pytest.raises(TeacherError, match=naming("27 labels", "letters", "teacher.soft_labels=samples")):
        teacher([f"no {number}" for number in range(27)])


@pytest.mark.parametrize(
    ("labels", "full", "pair"),
    [
        (["good", "bad"], False, None),
        (["negative", "neutral"], False, None),
        (["very good", "very bad"], False, ("very good", "very bad")),
        (["very good", "very bad"], True, None),
        (["1", "10"], False, ("1", "10")),
        (["1", "10"], True, None),
        (["-1", "1"], True, ("-1", "1")),
        (["a", "?"], True, ("a", "?")),
    ],
)
def test_clash(labels: list[str], full: bool, pair: tuple[str, str] | None) -> None:
    """Labels that one token cannot tell apart."""
    assert clash(labels, full) == pair


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("good", 0), (" Good.\n", 0), ("Label: **bad**", 1), ("not good", 2), ("It is not good!", 2), ("goods", None),
        ("good or bad", None), ("It is not bad", None), ("", None),
    ],
)  # fmt: skip
def test_text_becomes_a_label(text: str, label: int | None) -> None:
    """An answer that names several labels, or none, is taken for one."""
    assert teacher(["good", "bad", "not good"], soft_labels="one_hot").labels.label_in(text) == label


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("A", 0), ("b", 1), (" **B**\n", 1), ("B: 0", 1), ("C) 1", 2), ("B\nA text in between.", None), ("B\nNeither.", 1),
        ("Letter: B", 1), ("This is a negative text.", None), ("A negative text.", None), ("A or B", None), ("A/B", None), ("D", None),
        ("Both", None), ("", None),
    ],
)  # fmt: skip
def test_text_becomes_a_letter(text: str, label: int | None) -> None:
    """The article of a sentence is taken for the label of the letter A."""
    labels = teacher(["-1", "0", "1"], soft_labels="samples").labels
    assert labels.lettered
    assert labels.label_in(text) == label


def test_parameters() -> None:
    """A host that calls a parameter otherwise, or does not take it, cannot be used."""
    found = teacher(
        ["good", "bad"], parameters={"max_tokens": None, "max_completion_tokens": 9, "temperature": 0.5}
    )
    (body,) = found.label_requests(ROW)
    assert body.keys() == {"messages", "max_completion_tokens", "temperature", "logprobs", "top_logprobs"}
    assert (body["temperature"], body["top_logprobs"]) == (0.5, 20)


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ({"soft_labels": "one_hot"}, ["good", "bad"]),
        ({"soft_labels": "samples"}, ["good", "bad"]),
        ({"soft_labels": "one_hot", "response_format": None}, None),
        ({"soft_labels": "one_hot", "parameters": {"response_format": None}}, None),
        ({"soft_labels": "logprobs"}, None),
    ],
)
def test_structured_output(options: dict[str, Any], sent: list[str] | None) -> None:
    """Labels are requested as text where the host could be held to them; or a schema is sent whose first token is a brace."""
    (body,) = teacher(["good", "bad"], **options).label_requests(ROW)
    schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
    assert (schema and schema["properties"]["label"]["enum"]) == sent


@pytest.mark.parametrize(("text", "again"), [("good", False), ("I would rather not say", True)])
def test_an_answer_in_plain_text_is_not_paid_for_again(text: str, again: bool) -> None:
    """What an earlier version was answered is requested again, as JSON; or an answer without a label is final."""
    found = teacher(["good", "bad"], soft_labels="one_hot")
    plain = teacher(["good", "bad"], soft_labels="one_hot", response_format=None).label_requests(ROW)
    answer = Answer("answered", [{"text": text, "finish_reason": "stop", "logprobs": None}])
    found.client.ledger.append(found.client.key(plain[0]), answer)
    assert (found.label_requests(ROW) != plain) == again


@pytest.mark.parametrize(
    ("thoughts", "text", "reasoning", "learnt"),
    [
        ("drop", "<think>\nhm\n</think>\n\nIt is.", "", "It is."),
        ("keep", "<think>\nhm\n</think>\n\nIt is.", "", "<think>\nhm\n</think>\n\nIt is."),
        ("drop", "It is.", "hm", "It is."),
        ("keep", "It is.", "hm", "<think>\nhm\n</think>\n\nIt is."),
        ("keep", "<think>hm", "", ""),
        ("drop", "", "hm", ""),
        ("drop", "It is.<|im_end|>", "", "It is."),
        ("drop", "It is.<|eot_id|>\n", "", "It is."),
        ("drop", "It is.</s></s>", "", "It is."),
        ("drop", "It is.<｜end▁of▁sentence｜>", "", "It is."),
        ("drop", "It is.<end_of_turn>\n<start_of_turn>user\nMore?<end_of_turn>", "", "It is."),
        ("drop", "It is.<|im_end|>\n<|im_start|>user\nMore?", "", "It is."),
        ("drop", "<|im_start|>assistant\nIt is.<|im_end|>", "", "It is."),
        ("keep", "<think>\nhm\n</think>\n\nIt is.<|im_end|>", "", "<think>\nhm\n</think>\n\nIt is."),
        ("drop", "Strike it: <s>old</s>", "", "Strike it: <s>old</s>"),
        ("drop", "ChatML ends turns with <|im_end|>, Llama 3 with <|eot_id|>.", "",
         "ChatML ends turns with <|im_end|>, Llama 3 with <|eot_id|>."),
    ],
)  # fmt: skip
def test_thoughts_of_completions(thoughts: str, text: str, reasoning: str, learnt: str) -> None:
    """The student learns to think aloud, unasked; or what one wants it to learn is dropped."""
    found = teacher(["a", "b"], thoughts=thoughts)
    assert (
        found._text({"text": text, "finish_reason": "stop", "logprobs": None, "reasoning": reasoning})
        == learnt
    )


def test_examples_are_balanced_and_never_the_question() -> None:
    """All examples have the same label; or a row finds its own answer among them."""
    gold = [{"id": str(n), "text": f"text {n}", "label": int(n > 1)} for n in range(12)]
    found = teacher(["good", "bad"], gold, shots=4)
    assert sorted(row["label"] for row in found.examples) == [0, 0, 1, 1]
    turns = found.prompter.messages(found.examples[0])
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 3 + ["user"]
    assert found.examples[0]["text"] in turns[-1]["content"]
    assert not any(found.examples[0]["text"] in turn["content"] for turn in turns[:-1])
    assert "Which of these" in turns[0]["content"]
    assert "Which of these" not in turns[-1]["content"]


def test_examples_of_answers() -> None:
    """Prompts with their completions as earlier turns."""
    found = OpenAITeacher(URL, "m", shots=1)
    rows = [
        {"id": "1", "prompt": "one ", "completion": " two"},
        {"id": "2", "prompt": "three", "completion": "four"},
    ]
    found.begin(CausalLM(), Dataset(path="x", prompt="prompt", completion="completion"), rows[:1])
    assert [turn["content"] for turn in found.prompter.messages(rows[1])] == ["one", "two", "three"]


def test_calls_and_tools_are_sent() -> None:
    """The teacher is asked about a conversation whose calls and tools it is not shown."""
    found = OpenAITeacher(URL, "m")
    found.begin(CausalLM(), Dataset(path="x", messages="messages"), [])
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "it"}}}
    turns = [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": "", "extra": json.dumps({"tool_calls": [call]})},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "It is 4."},
    ]
    tools = [{"type": "function", "function": {"name": "look"}}]
    (body,) = found.completion_requests(
        {"id": "1", "messages": turns, "tools": json.dumps(tools)}, Rollout(source="teacher")
    )
    assert body["tools"] == tools
    assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "tool"]
    assert body["messages"][1]["tool_calls"][0]["function"] == {"name": "look", "arguments": '{"at": "it"}'}


def test_what_cannot_be_asked() -> None:
    """A task that has no prompt."""
    with pytest.raises(TeacherError, match="not token_classification"):
        OpenAITeacher(URL, "m").begin(Classification(["a"]), Dataset(path="x", words="w", tags="t"), [])


@pytest.mark.parametrize(
    ("most", "sizes"), [(None, [8]), (1, [None] * 8), (3, [3, 3, 2]), (7, [7, None]), (100, [8])]
)
def test_answers_per_request(most: int | None, sizes: list[int | None]) -> None:
    """A host that gives three answers a request at most gives three of eight; or the same answer comes from several requests."""
    bodies = teacher(["a", "b"], n_per_request=most)._split({"messages": []}, 8)
    assert [body.get("n") for body in bodies] == sizes
    assert [body.get("seed") for body in bodies] == [None, *range(1, len(sizes))]
