"""Conversations in the shapes in which people store them: what is read of each, and what is refused with which remedy."""

from __future__ import annotations

import csv
import datetime
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from support.commands import naming, require_words
from support.pages import table
from support.tiny import write_jsonl

from kdcli.config.dataset import Dataset
from kdcli.data.dataset import load
from kdcli.errors import DataError
from kdcli.tasks.causal_lm.conversations import endpoint_turns, extra_of, read_turns

CALL = {"name": "look", "arguments": {"of": "song"}}
TOOL = {"type": "function", "function": CALL}
PLAIN = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
CALLED = [
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "", "tool_calls": [TOOL]},
    {"role": "tool", "content": "fine"},
    {"role": "assistant", "content": "a"},
]
SHAPES: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    'role and content (OpenAI, TRL)': (PLAIN, PLAIN),
    'from and value (ShareGPT)': ([{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], PLAIN),
    'function_call and observation (ShareGPT of LLaMA-Factory)': (
        [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": json.dumps(CALL)},
            {"from": "observation", "value": "fine"},
            {"from": "gpt", "value": "a"},
        ],
        CALLED,
    ),
    'other names of roles (User, model, bot)': ([{"role": "User", "content": "q"}, {"role": "model", "content": "a"}], PLAIN),
    'role and parts (Gemini)': (
        [{"role": "user", "parts": [{"text": "q"}]}, {"role": "model", "parts": [{"text": "a"}]}],
        PLAIN,
    ),
    'a key for each role ({"user": "…"})': ([{"user": "q"}, {"assistant": "a"}], PLAIN),
    'speaker and text': ([{"speaker": "human", "text": "q"}, {"speaker": "bot", "text": "a"}], PLAIN),
    'a key for each role in one object': ([{"assistant": "a", "system": None, "user": "q"}], PLAIN),
    'type and content (LangChain)': ([{"type": "human", "content": "q"}, {"type": "ai", "content": "a"}], PLAIN),
    "author.role and content.parts (ChatGPT's export)": (
        [{"author": {"role": name}, "content": {"content_type": "text", "parts": [text]}} for name, text in (("user", "q"), ("assistant", "a"))],
        PLAIN,
    ),
    'a list of texts': (["q", "a"], PLAIN),
    'content as parts of text': (
        [
            {"role": "user", "content": [{"type": "text", "text": "q"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "a", "image_url": None}]},
        ],
        PLAIN,
    ),
    'several parts of text': (
        [
            {"role": "user", "content": ["q", {"type": "input_text", "text": "r"}]},
            {"role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
        ],
        [{"role": "user", "content": "qr"}, PLAIN[1]],
    ),
    'parts of thinking': (
        [
            PLAIN[0],
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "t"}, {"type": "text", "text": "a"}]},
        ],
        [PLAIN[0], {**PLAIN[1], "reasoning_content": "t"}],
    ),
    'parts of tool_use (Anthropic)': (
        [
            PLAIN[0],
            {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "tool_use", "id": "1", "name": "look", "input": {"of": "song"}}]},
        ],
        [PLAIN[0], {**PLAIN[1], "tool_calls": [TOOL]}],
    ),
    'null content beside a call': (
        [
            PLAIN[0],
            {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "look", "arguments": '{"of": "song"}'}}]},
            {"role": "tool", "content": "fine"},
            PLAIN[1],
        ],
        CALLED,
    ),
    'a call without a content': (
        [PLAIN[0], {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "fine"}, PLAIN[1]],
        CALLED,
    ),
    'function_call (OpenAI, older)': (
        [
            PLAIN[0],
            {"role": "assistant", "content": None, "function_call": {"name": "look", "arguments": '{"of": "song"}'}},
            {"role": "function", "content": "fine"},
            PLAIN[1],
        ],
        CALLED,
    ),
    'nulls in the columns of a table': (
        [
            PLAIN[0] | {"tool_calls": None},
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "look", "arguments": {"of": "song", "at": None}}}]},
            {"role": "tool", "content": "fine", "tool_calls": None},
            PLAIN[1] | {"tool_calls": []},
        ],
        CALLED,
    ),
    'a result of a tool that is an object': (
        [CALLED[0], CALLED[1], {"role": "tool", "content": {"n": 1}}, CALLED[3]],
        [CALLED[0], CALLED[1], {"role": "tool", "content": '{"n": 1}'}, CALLED[3]],
    ),
    'reasoning, thinking or reasoning_content': (
        [PLAIN[0], {**PLAIN[1], "reasoning": "t"}],
        [PLAIN[0], {**PLAIN[1], "reasoning_content": "t"}],
    ),
    'weight 0 or 1 (OpenAI)': (
        [PLAIN[0], {**PLAIN[1], "weight": 0}, PLAIN[0], {**PLAIN[1], "weight": 1}],
        [PLAIN[0], {**PLAIN[1], "weight": 0}, *PLAIN],
    ),
    'train, training or loss: false (axolotl, ms-swift)': (
        [PLAIN[0], {**PLAIN[1], "train": False}, PLAIN[0], {**PLAIN[1], "train": True}],
        [PLAIN[0], {**PLAIN[1], "weight": 0}, *PLAIN],
    ),
    'name, tool_call_id and other keys': ([{**PLAIN[0], "name": "Ann"}, PLAIN[1]], [{**PLAIN[0], "name": "Ann"}, PLAIN[1]]),
    "a part of tool_result (Anthropic)": (
        [*CALLED[:2], {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "fine"}]}, PLAIN[1]],
        [*CALLED[:2], {"role": "tool", "content": "fine", "tool_call_id": "1"}, PLAIN[1]],
    ),
    "content null and a refusal (OpenAI)": (
        [PLAIN[0], {"role": "assistant", "content": None, "refusal": "a"}],
        PLAIN,
    ),
    'an empty turn of the system': ([{"role": "system", "content": ""}, *PLAIN], PLAIN),
    'turns after the last answer': ([*PLAIN, {"role": "user", "content": "thanks"}], PLAIN),
    'a column of roles and one of contents': ({"role": ["user", "assistant"], "content": ["q", "a"]}, PLAIN),
    'an object that holds the turns': ({"messages": PLAIN}, PLAIN),
    'pairs of a role and a content': ([["user", "q"], ["assistant", "a"]], PLAIN),
    'pairs of a prompt and its answer': ([["q", "a"], ["r", "b"]], [*PLAIN, {"role": "user", "content": "r"}, {"role": "assistant", "content": "b"}]),
    'a prompt and its answer in an object': ([{"prompt": "q", "response": "a"}], PLAIN),
    'a list in a list': ([PLAIN], PLAIN),
    'a transcript (Human: … Assistant: …)': ("\n\nHuman: q\n\nAssistant: a", PLAIN),
    'a transcript with ### before the names (Guanaco)': ("### Human: q### Assistant: a", PLAIN),
    'texts that begin with a name': (["User: q", "Assistant: a"], PLAIN),
    'sender or author and text': ([{"sender": "user", "text": "q"}, {"author": "bot", "text": "a"}], PLAIN),
    'parts as JSON in a text': (
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": json.dumps([{"type": "text", "text": "a"}])}],
        PLAIN,
    ),
    'masked: true (torchtune), loss_mask: 0, trainable: false': (
        [PLAIN[0], {**PLAIN[1], "masked": True}, PLAIN[0], {**PLAIN[1], "loss_mask": 0}, PLAIN[0], {**PLAIN[1], "masked": False}],
        [PLAIN[0], {**PLAIN[1], "weight": 0}, PLAIN[0], {**PLAIN[1], "weight": 0}, *PLAIN],
    ),
    'a turn of thoughts before its answer': (
        [PLAIN[0], {"role": "thought", "content": "t"}, PLAIN[1]],
        [PLAIN[0], {**PLAIN[1], "reasoning_content": "t"}],
    ),
    'channels (gpt-oss)': (
        [PLAIN[0], *({"role": "assistant", "channel": each, "content": text} for each, text in (("analysis", "t"), ("analysis", "u"), ("final", "a")))],
        [PLAIN[0], {**PLAIN[1], "reasoning_content": "t\nu"}],
    ),
    'JSON in a text': (json.dumps(PLAIN), PLAIN),
    'a list of JSON texts': ([json.dumps(turn) for turn in PLAIN], PLAIN),
    "Python's notation (pandas)": (str(PLAIN), PLAIN),
    "Python's notation of an array (numpy)": ("[{'role': 'user', 'content': 'q'}\n {'role': 'assistant', 'content': 'a'}]", PLAIN),
}  # fmt: skip


def full(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Stored turns with their further keys beside the others."""
    return [{"role": turn["role"], "content": turn["content"], **extra_of(turn)} for turn in turns]


def first(path: Path, **keys: Any) -> list[dict[str, Any]]:
    """The turns of the first row of a file with a row for each split."""
    data = load(Dataset(path=str(path), test_size=1, validation_size=1, **keys))
    return full(data["train"][0]["messages"])


@pytest.mark.parametrize("shape", list(SHAPES))
def test_shapes_of_conversations(shape: str, tmp_path: Path) -> None:
    """A call, a thought or a weight is dropped in silence, or a file that every other tool reads is refused."""
    value, expected = SHAPES[shape]
    text = json.dumps(value)
    rows = [{"talk": json.loads(text.replace("q", f"q{number}", 1))} for number in range(3)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    turns = first(path, format="jsonl", messages="talk")
    numbered = re.compile(r'"q(\d)')
    assert json.loads(numbered.sub('"q', json.dumps(turns))) == expected


@pytest.mark.parametrize("form", [json.dumps, str])
def test_conversations_in_csv(form: Any, tmp_path: Path) -> None:
    """pandas writes a list of turns into csv in Python's notation, which is no JSON."""
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as stream:
        rows = [[form([{**PLAIN[0], "content": f'it\'s "{n}"'}, PLAIN[1]])] for n in range(3)]
        csv.writer(stream).writerows([["messages"], *rows])
    turns = first(tmp_path / "rows.csv", format="csv", messages="messages")
    assert re.fullmatch('it\'s "[0-2]"', turns[0]["content"])
    assert turns[1:] == PLAIN[1:]


@pytest.mark.parametrize(
    "text",
    ['[{"question": "r", "answer": "b"}]', '[{"author": "r", "text": "b"}]', "Human: r\n\nAssistant: b"],
)
def test_completions_that_only_look_like_turns(text: str, tmp_path: Path) -> None:
    """An answer in JSON, or about a conversation, becomes turns of its own."""
    assert pairs(tmp_path, {"prompt": "q", "completion": text})["completion"] == text


REFUSED: dict[str, tuple[Any, list[str]]] = {
    'a text': ("hello", ["row 1", "the messages", "'hello'", '{"role": …']),
    'a chat that a template has rendered': ("<|im_start|>user\nq<|im_end|>", ["row 1", "dataset.text="]),
    'a turn without a role': ([{"content": "q"}], ["row 1", "message 1", '{"role": …']),
    'no turn of the assistant': (PLAIN[:1], ["row 1", "assistant", "roles: user"]),
    'a picture or a sound': (
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, PLAIN[1]],
        ["row 1", "message 1", "'image_url'", "remove the row"],
    ),
    'a number as content': ([{"role": "user", "content": 5}, PLAIN[1]], ["row 1", "content of message 1", "5"]),
    'an empty answer': ([PLAIN[0], {"role": "assistant", "content": ""}], ["row 1", "content of message 2", "empty"]),
    'a null content without a call': ([{"role": "user", "content": None}, PLAIN[1]], ["row 1", "content of message 1", "None"]),
    'a weight between 0 and 1': ([PLAIN[0], {**PLAIN[1], "weight": 0.5}], ["row 1", "weight of message 2", "0.5"]),
    'weight 0 in all answers': ([PLAIN[0], {**PLAIN[1], "weight": 0}], ["row 1", "assistant", "weight 0"]),
    'a call without a name': ([PLAIN[0], {**PLAIN[1], "tool_calls": ["look"]}], ["row 1", "call of message 2", "'look'", '{"name": …']),
}  # fmt: skip


@pytest.mark.parametrize("shape", list(REFUSED))
def test_conversations_that_are_refused(shape: str) -> None:
    """A traceback, or a message that does not say what is wrong with which turn."""
    from kdcli.tasks.causal_lm.conversations import require_answer

    value, words = REFUSED[shape]
    with pytest.raises(DataError, match=naming(*words)):
        require_answer(read_turns(value, "row 1"), "row 1")


# ---- prompts and completions --------------------------------------------------------------------------


def pairs(folder: Path, row: dict[str, Any], **keys: Any) -> dict[str, Any]:
    """The first training row of a file of rows like this one."""
    rows = [json.loads(json.dumps(row).replace('"q', f'"q{number}')) for number in range(3)]
    path = write_jsonl(folder / "rows.jsonl", rows)
    names = {"prompt": "prompt", "completion": "completion"} | keys
    data = load(Dataset(path=str(path), format="jsonl", test_size=1, validation_size=1, **names))
    found = data["train"][0]
    if "messages" in found:
        found["messages"] = full(found["messages"])
    return json.loads(re.sub(r'"q\d', '"q', json.dumps(found)))


UNLEARNED = {**PLAIN[1], "weight": 0}
PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]] = {
    'lists of turns (TRL)': ({"prompt": PLAIN[:1], "completion": PLAIN[1:]}, {}, PLAIN),
    'answers in the prompt': (
        {"prompt": [*PLAIN, PLAIN[0]], "completion": PLAIN[1:]}, {}, [PLAIN[0], UNLEARNED, *PLAIN],
    ),
    'turns as prompt, a text as completion': ({"prompt": PLAIN[:1], "completion": "a"}, {}, PLAIN),
    'one turn as completion (OpenAI)': ({"prompt": PLAIN[:1], "completion": PLAIN[1]}, {}, PLAIN),
    'lists of turns as JSON': ({"prompt": json.dumps(PLAIN[:1]), "completion": json.dumps(PLAIN[1:])}, {}, PLAIN),
    'prompt, chosen and rejected (DPO)': ({"prompt": PLAIN[:1], "chosen": PLAIN[1:], "rejected": PLAIN[1:]}, {"completion": "chosen"}, PLAIN),
    'chosen is the whole conversation': ({"prompt": "q", "chosen": PLAIN, "rejected": PLAIN}, {"completion": "chosen"}, PLAIN),
    'chosen alone': ({"chosen": PLAIN, "rejected": PLAIN}, {"prompt": None, "completion": None, "messages": "chosen"}, PLAIN),
    'a column system': (
        {"prompt": "q", "completion": "a", "system": "s"}, {"chat": True},
        [{"role": "system", "content": "s"}, *PLAIN],
    ),
    'a column history': (
        {"prompt": "q", "completion": "a", "history": [["q", "a"]]}, {"chat": True}, [*PLAIN, *PLAIN],
    ),
    'a column system beside messages': (
        {"talk": PLAIN, "system": "s"}, {"prompt": None, "completion": None, "messages": "talk"},
        [{"role": "system", "content": "s"}, *PLAIN],
    ),
    'an instruction of the system in parts (Gemini, Anthropic)': (
        {"contents": PLAIN, "systemInstruction": {"parts": [{"text": "s"}]}}, {"prompt": None, "completion": None, "messages": "contents"},
        [{"role": "system", "content": "s"}, *PLAIN],
    ),
}  # fmt: skip


@pytest.mark.parametrize("shape", list(PAIRS))
def test_prompts_and_completions_of_turns(shape: str, tmp_path: Path) -> None:
    """The lists of TRL are refused; the answers of a prompt are learned; the instruction of the system is dropped in silence."""
    row, keys, expected = PAIRS[shape]
    assert pairs(tmp_path, row, **keys)["messages"] == expected


@pytest.mark.parametrize(("column", "answer"), [("input", "output"), ("context", "response")])
def test_the_input_of_an_instruction(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, column: str, answer: str
) -> None:
    """Half of the prompt is in a column of its own, which nobody reads (Alpaca, Dolly)."""
    row = {"instruction": "q: Translate.", column: "der Hund", answer: "the dog", "category": "closed_qa"}
    names = {"prompt": "instruction", "completion": answer}
    with caplog.at_level(logging.INFO):
        read = pairs(tmp_path, row, **names)
    assert (read["prompt"], read["completion"]) == ("q: Translate.\n\nder Hund", "the dog")
    require_words(caplog.text, column, "dataset.context=[]", "not read: category")
    assert pairs(tmp_path, row | {column: ""}, **names)["prompt"] == "q: Translate."
    assert pairs(tmp_path, row, context=[], **names)["prompt"] == "q: Translate."


def test_tools_are_a_column(tmp_path: Path) -> None:
    """The tools that a conversation may use are in a column beside it, as objects or as JSON, under one of two names."""
    function = {"name": "look", "description": "", "parameters": {"type": "object", "properties": {}}}
    tool = {"type": "function", "function": function}
    for value in ([tool], json.dumps([tool]), [function], [json.dumps(tool)]):
        for column in ("tools", "functions"):
            row = {"talk": PLAIN, column: value}
            read = pairs(tmp_path, row, prompt=None, completion=None, messages="talk")
            assert json.loads(read["tools"]) == [tool]
    with pytest.raises(DataError, match=naming("the tools", "'look'", "dataset.context=[]")):
        pairs(tmp_path, {"talk": PLAIN, "tools": "look"}, prompt=None, completion=None, messages="talk")


def test_a_completion_begins_with_the_assistant(tmp_path: Path) -> None:
    """The whole conversation is taken for the answer to its prompt, and the user's words are learned."""
    with pytest.raises(DataError, match=naming("the completion", "dataset.messages")):
        pairs(tmp_path, {"prompt": "q", "completion": [{"role": "user", "content": "else"}, PLAIN[1]]})


def test_texts_among_turns(tmp_path: Path) -> None:
    """A file in which some prompts are turns and others are texts."""
    rows = [
        {"prompt": PLAIN[:1], "completion": PLAIN[1:]},
        *({"prompt": f"q{n}", "completion": "a"} for n in range(2)),
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    sizes = {"test_size": 1, "validation_size": 1}
    data = load(Dataset(path=str(path), format="jsonl", prompt="prompt", completion="completion", **sizes))
    assert all(full(row["messages"])[1] == PLAIN[1] for split in data.splits.values() for row in split)


def test_the_key_for_conversations_is_named(tmp_path: Path) -> None:
    """A user of a file of conversations is asked for texts and labels."""
    path = write_jsonl(tmp_path / "rows.jsonl", [{"conversations": PLAIN}])
    with pytest.raises(DataError, match=naming("dataset.messages=conversations")):
        load(Dataset(path=str(path), format="jsonl"))


def test_the_column_of_a_system_needs_turns(tmp_path: Path) -> None:
    """An instruction that stands beside texts without roles is dropped in silence."""
    with pytest.raises(DataError, match=naming("system", "dataset.chat=true", "dataset.context=[]")):
        pairs(tmp_path, {"prompt": "q", "completion": "a", "system": "s"})


def test_a_column_that_is_no_instruction(tmp_path: Path) -> None:
    """A column that happens to be called system ends in a message without the key that leaves it out; blank ones are turns."""
    talk = {"prompt": None, "completion": None, "messages": "talk"}
    with pytest.raises(DataError, match=naming("the system", "True", "dataset.context=[]")):
        pairs(tmp_path, {"talk": PLAIN, "system": True}, **talk)
    assert pairs(tmp_path, {"talk": PLAIN, "system": " "}, **talk)["messages"] == PLAIN
    assert pairs(tmp_path, {"talk": PLAIN, "system": True}, context=["tools"], **talk)["messages"] == PLAIN


def test_a_context_that_is_not_read_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Half of the prompt is left out, and its user does not learn which key reads it."""
    row = {"prompt": "q", "context": "der Hund", "completion": "the dog"}
    assert pairs(tmp_path, row)["prompt"] == "q"
    require_words(caplog.text, "the column context", "dataset.context=[input]")
    caplog.clear()
    for key in ("input", "context"):
        assert pairs(tmp_path, row, context=[key])["prompt"] == "q\n\nder Hund"
    assert pairs(tmp_path, row, context=[])["prompt"] == "q"
    assert "WARNING" not in caplog.text


@pytest.mark.parametrize("column", ["image", "images", "audio", "videos"])
def test_pictures_and_sounds_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture, column: str) -> None:
    """A model of texts learns to describe pictures that it does not get."""
    pairs(tmp_path, {"talk": PLAIN, column: ["a.bin"]}, prompt=None, completion=None, messages="talk")
    require_words(caplog.text, "WARNING", f"columns: {column}", "remove such rows")


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        ({"role": {"kind": "user"}, "content": "q"}, ("the role of message 1", "'kind'")),
        ({"author": {"name": "Ann"}, "content": "q"}, ("the author of message 1", "'name'")),
    ],
)
def test_turns_have_no_columns(turn: dict[str, Any], words: tuple[str, ...]) -> None:
    """The remedy names a column, and a turn has none; or a role that is no text ends in a traceback."""
    with pytest.raises(DataError, match=naming("row 1", *words)) as caught:
        read_turns([turn, PLAIN[1]], "row 1")
    assert "COLUMN" not in caught.value.message


@pytest.mark.parametrize(
    ("value", "remedy", "other"),
    [
        ({"kind": "assistant", "content": "a"}, "COLUMN.content", "COLUMN.kind"),
        ({"model": "m", "value": "a"}, "COLUMN.value", "COLUMN.model"),
        ({"first": "a", "second": "b"}, "COLUMN.first or COLUMN.second", "COLUMN.content"),
        (["a b", "c"], "COLUMN.0", "join"),
        (["a", "b", "c"], "join them", "COLUMN"),
    ],
)
def test_the_remedy_names_the_text_within_a_value(
    tmp_path: Path, value: Any, remedy: str, other: str
) -> None:
    """Following the remedy, its user trains on roles or on the first word of each answer."""
    with pytest.raises(DataError, match=naming("the completion", remedy)) as caught:
        pairs(tmp_path, {"prompt": "q", "completion": value})
    assert other not in caught.value.message


@pytest.mark.parametrize(
    ("columns", "keys"),
    [
        (("question", "answer"), "dataset.prompt=question dataset.completion=answer"),
        (("id", "Instruction", "Response"), "dataset.prompt=Instruction dataset.completion=Response"),
        (("prompt", "chosen", "rejected"), "dataset.prompt=prompt dataset.completion=chosen"),
        (("source", "target"), "dataset.source=source dataset.target=target"),
        (("id", "en", "es"), "dataset.source=en dataset.target=es"),
        (("id", "translation"), "dataset.source=translation.LANGUAGE"),
        (("age", "sex"), None),
    ],
)
def test_the_keys_for_pairs_are_named(tmp_path: Path, columns: tuple[str, ...], keys: str | None) -> None:
    """A user of pairs is asked for texts and labels, or is told to take the target for the text."""
    path = write_jsonl(tmp_path / "rows.jsonl", [dict.fromkeys(columns, "a")])
    with pytest.raises(DataError, match=naming("no column 'text'")) as caught:
        load(Dataset(path=str(path), format="jsonl"))
    message = caught.value.message
    if keys is None:
        assert "dataset.source" not in message
    else:
        require_words(message, keys)
        assert "did you mean" not in message


def test_preference_data_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Answers that people rejected, or that are labelled as bad, are taken for good ones."""
    with caplog.at_level(logging.INFO):
        pairs(tmp_path, {"prompt": "q", "completion": "a", "label": True})
    require_words(caplog.text, "the column label", "remove the bad ones")


THOUGHT = {"role": "assistant", "content": "<think>\nt\n</think>\n\na"}


def test_thoughts_are_dropped_by_a_key(tmp_path: Path) -> None:
    """A thought stays in the content, in the key, or in a completion."""
    talk = {"prompt": None, "completion": None, "messages": "talk", "thoughts": "drop"}
    for turn in (THOUGHT, {**PLAIN[1], "reasoning_content": "t"}):
        assert pairs(tmp_path, {"talk": [PLAIN[0], turn]}, **talk)["messages"] == PLAIN
    row = {"prompt": "q", "completion": THOUGHT["content"]}
    for chat in (True, False):
        assert pairs(tmp_path, row, chat=chat, thoughts="drop")["completion"] == "a"
    bare = {"talk": [PLAIN[0], {"role": "assistant", "content": "<think>t</think>"}]}
    with pytest.raises(DataError, match=naming("a thought", "dataset.thoughts=drop", "remove the row")):
        pairs(tmp_path, bare, **talk)


@pytest.mark.parametrize("key", ["tool_calls", "name"])
def test_values_that_are_nested_deeply(key: str) -> None:
    """JSON that the parser reads and that the next function cannot follow: a traceback."""
    nested = json.loads('{"name": ' * 900 + '"x"' + "}" * 900)
    with pytest.raises(DataError, match=naming("row 1")):
        read_turns([PLAIN[0], {**PLAIN[1], key: nested}], "row 1")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[{'a': " * 300, "[" + "9" * 10_000 + "]", "['\\d', __import__('os')]"]
)
def test_hostile_texts(text: str) -> None:
    """A text that is nested too deeply, or that is code, ends the process or is run."""
    with pytest.raises(DataError, match=naming("row 1", "messages", '{"role": …')):
        read_turns(text, "row 1")


def test_dates_in_turns() -> None:
    """A table of turns with time stamps (WildChat) ends in a traceback."""
    turns = read_turns([{**PLAIN[0], "timestamp": datetime.datetime(2024, 7, 26)}, PLAIN[1]], "row 1")
    assert extra_of(turns[0]) == {"timestamp": "2024-07-26 00:00:00"}


def test_plain_conversations_keep_their_ids(tmp_path: Path) -> None:
    """Stored teacher outputs, rollouts and answers of endpoints are found by the ids of rows; other ids make them anew."""
    path = write_jsonl(tmp_path / "rows.jsonl", [{"messages": PLAIN}, *({"messages": [{**PLAIN[0], "content": f"{n}"}, PLAIN[1]]} for n in range(2))])  # fmt: skip
    splits = load(
        Dataset(path=str(path), format="jsonl", messages="messages", test_size=1, validation_size=1)
    )
    rows = [row for split in splits.splits.values() for row in split]
    assert {row["id"] for row in rows if row["messages"][0]["content"] == "q"} == {
        "439b500fb47b406955aa934b0e5543ca"
    }
    assert all(row["messages"][0].keys() == {"role", "content"} for row in rows)


def test_turns_for_an_endpoint() -> None:
    """An endpoint gets the weights and thoughts of the data, or calls whose arguments are no JSON, which it refuses."""
    turns = read_turns([*CALLED[:2], {"role": "tool", "tool_call_id": "1", "content": "fine"}, {**PLAIN[1], "weight": 0}], "row 1")  # fmt: skip
    sent = endpoint_turns(turns)
    assert sent[1]["tool_calls"] == [
        {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"of": "song"}'}}
    ]
    assert sent[2]["tool_call_id"] == "1"
    assert sent[3] == PLAIN[1]


def test_calls_of_several_turns_for_an_endpoint() -> None:
    """Calls of two turns have one id, or a result names none: the endpoint refuses the conversation, or takes one result for the other."""
    sent = endpoint_turns(read_turns([*CALLED, *CALLED], "row 1"))
    ids = [call["id"] for turn in sent for call in turn.get("tool_calls", ())]
    assert ids == ["call_0", "call_1"]
    assert [turn["tool_call_id"] for turn in sent if turn["role"] == "tool"] == ids
    assert [turn["content"] for turn in sent] == [turn["content"] for turn in [*CALLED, *CALLED]]


def test_rows_that_are_arrays_of_turns(tmp_path: Path) -> None:
    """The remedy names the turns as if they were columns."""
    rows = [[{**PLAIN[0], "content": f"q{number}"}, PLAIN[1]] for number in range(3)]
    for text in ("".join(json.dumps(row) + "\n" for row in rows), json.dumps(rows)):
        (tmp_path / "rows.json").write_text(text)
        assert first(tmp_path / "rows.json", messages="talk")[1:] == PLAIN[1:]


def test_the_page_lists_these_shapes() -> None:
    """A page that promises a shape which no test reads."""
    rows = table("conversations.md", "Shapes of conversations")
    assert rows.keys() == SHAPES.keys() | REFUSED.keys()
    assert all(rows[name].startswith("read") for name in SHAPES)
    assert all(rows[name].startswith("refused") for name in REFUSED)
    others = {
        "instruction, input and output (Alpaca)", "instruction, context and response (Dolly)", "a column tools or functions", "a column system without dataset.chat", "tools that are no list",
        "a completion that begins with another turn of the user", "question, context and answer", "pictures and sounds",
    }  # fmt: skip
    rows = table("conversations.md", "Prompts and completions")
    assert rows.keys() == PAIRS.keys() | others
    assert all(rows[name].startswith("read") for name in PAIRS)


@pytest.mark.parametrize("keys", [{"thoughts": "drop"}, {"context": ["tools"]}])
def test_keys_of_conversations_need_turns(keys: dict[str, Any]) -> None:
    """A key that does nothing to plain text."""
    with pytest.raises(ValueError, match=naming(next(iter(keys)), "plain text", "dataset.messages")):
        Dataset(path="text.txt", format="txt", **keys)


def test_the_page_lists_the_values_of_thoughts() -> None:
    """A value that nobody finds, or that is none any more."""
    values = Dataset.model_fields["thoughts"].annotation.__args__  # type: ignore[union-attr]
    assert [name.split("`")[1] for name in table("conversations.md", "Thoughts")] == list(values)


@pytest.mark.parametrize(
    ("end", "marker"),
    [
        ("\n\n###\n\n", "###"), (" ->", "->"), ("\n\nAssistant:", "Assistant:"), ("\n### Response:\n", "### Response:"),
        ("?", ""), ("", ""), (" Is it good or bad?", ""), ("\nCategory:", ""), (" of the AI:", ""),
    ],
)  # fmt: skip
def test_prompts_with_the_markers_of_another_template(
    end: str, marker: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A student of chat learns `Human: … Assistant:` inside of each turn of the user; or usual prompts are warned of."""
    rows = [{"prompt": f"what is {number}{end}", "completion": f"it is {number}"} for number in range(40)]
    keys = {
        "path": str(write_jsonl(tmp_path / "a.jsonl", rows)),
        "prompt": "prompt",
        "completion": "completion",
    }
    load(Dataset.model_validate(keys | {"chat": False}))
    assert "template" not in caplog.text
    load(Dataset.model_validate(keys | {"chat": True}))
    if marker:
        require_words(caplog.text, repr(marker), "dataset.chat=false")
    else:
        assert "template" not in caplog.text
