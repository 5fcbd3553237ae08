"""Which text is a label: the tables of docs/endpoints.md, and answers that the page has no place for."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.commands import require_words

from kdcli.errors import TeacherError
from kdcli.teachers.remote.answers import UnparsableShare, described, without_thoughts
from kdcli.teachers.remote.client import Unreadable
from kdcli.teachers.remote.labels import LabelReader
from kdcli.teachers.remote.wire import read_completion

PAGE = Path(__file__).parents[3] / "docs" / "endpoints.md"
LABELS = ["spam", "ham", "not sure"]
TONES = ["positive", "negative", "neutral"]


def choice(text: str, finish: str = "stop", **fields: Any) -> dict[str, Any]:
    return {"text": text, "finish_reason": finish, "logprobs": None} | fields


def label_of(labels: list[str], text: str, finish: str = "stop", **fields: Any) -> str | None:
    reader = LabelReader("m", labels, "one_hot", least_mass=0.1, smoothing=0.1)
    label = reader.label_of(choice(text, finish, **fields))
    return None if label is None else labels[label]


def rows(heading: str) -> Iterator[list[str]]:
    """The rows of the page's first table under a heading, as the texts that they stand for."""
    lines = PAGE.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            return
        cells = re.split(r"(?<!\\)\|", line)[1:-1]
        yield [_unquoted(cell.strip().replace(r"\|", "|")) for cell in cells]


def _unquoted(cell: str) -> str:
    if quoted := re.fullmatch(r"(`+)(.*?)\1", cell):
        return quoted[2].strip().replace(r"\n", "\n")
    return cell


@pytest.mark.parametrize(("text", "label"), list(rows("Labels")))
def test_an_answer_is_read_as_the_page_says(text: str, label: str) -> None:
    """A word in a sentence, or the label of a denial, is learnt as the label; or a plain answer is dropped for its form."""
    assert label_of(LABELS, text) == (None if label == "—" else label)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("4/5", "4"), ("4 out of 5", "4"), ("4 stars", "4"), ("Rating: 4 of 5 stars.", "4"), ("4", "4"), ("**4/5**", "4"),
        ("4/10", None), ("8/10", None), ("4-5", None), ("between 3/5 and 4/5", None), ("not 4/5", None),
    ],
)  # fmt: skip
def test_a_rating_with_its_scale(text: str, label: str | None) -> None:
    """A rating of another scale is read as one of ours; or one of ours is dropped, because it names the scale."""
    assert label_of(["1", "2", "3", "4", "5"], text) == label
    assert label_of(["1 star", "4 stars"], "4 stars") == "4 stars"
    assert label_of(["0", "1"], "0/1") is None, "these are the two labels"
    assert label_of(["yes", "no"], "No answer.") is None


@pytest.mark.parametrize(("text", "finish", "label"), list(rows("Thoughts")))
def test_thoughts_are_read_as_the_page_says(text: str, finish: str, label: str) -> None:
    """Labels are read out of thoughts that do not end; or an answer is lost for the thoughts before it."""
    assert label_of(LABELS, text, finish) == (None if label == "—" else label)


@pytest.mark.parametrize(
    ("labels", "text", "label"),
    [
        (TONES, "This review expresses a positive sentiment.", "positive"),
        (TONES, "The sentiment expressed in the review is negative.", "negative"),
        (TONES, "It has a neutral tone.", "neutral"),
        (TONES, "It is a very positive review.", None),
        (TONES, "It is hardly a positive review.", None),
        (TONES, "This review does not express a positive sentiment.", None),
        (TONES, "It has a positive ending.", None),
        (TONES, "positive 0.95", "positive"),
        (TONES, "Sentiment: positive (confidence 1.0)", "positive"),
        (TONES, "positive;0.3", None),
        (["good", "bad"], "That is a good question.\nLabel: bad", "bad"),
        (["World", "Sports"], "This article belongs to the **World** category.", "World"),
        (["World", "World category"], "It is the World category.", None),
        (["1", "1.5", "2"], "1 0.9", None),
        (["grade 1", "grade 1.5"], "grade 1.5", "grade 1.5"),
        (["toxic", "very toxic", "non-toxic"], "Non-toxic", "non-toxic"),
        (["toxic", "very toxic", "non-toxic"], "non toxic.", "non-toxic"),
        (["toxic", "very toxic", "non-toxic"], "This is very toxic.", "very toxic"),
        (["toxic", "very toxic", "non-toxic"], "not very toxic", None),
        (["toxic", "clean"], "not toxic", None),
        (["spam", "not spam"], "This is not spam.", "not spam"),
        (["spam", "NotSpam"], "not spam", "NotSpam"),
        (["Sci/Tech", "Business"], "sci / tech", "Sci/Tech"),
        (["card_arrival", "card_not_working"], "The intent is card not working.", "card_not_working"),
        (["LABEL_0", "LABEL_1"], "label 1", "LABEL_1"),
        (["0", "1"], '{"label": 1}', "1"),
        (["bad", "good"], '{"class_name": "good", "score": 0.9}', "good"),
        (["bad", "good"], '{"bad": 0.1, "good": 0.9}', None),
        (["0", "1"], "1.0", "1"),
        (["1", "10"], "1.0", "1"),
        (["1", "10"], "1 0", None),
        (["True", "False"], '{"label": true}', "True"),
        (["yes", "no"], "Yes. The premise says so.", "yes"),
        (["yes", "no"], "No, it is not.", None),
        (["bad", "good"], "Good question! I think of it.", None),
        (["bad", "good"], "good\n\nThe text is not bad.", "good"),
        (["bad", "good"], "The wrong label is good", None),
        (["bad", "good"], "good\n\nText: The next one.\nLabel: bad", "good"),
        (["bad", "good"], r"{'label': 'good', 'why': 'C:\\d'}", "good"),
        (["0", "1"], "{'label': 1}", "1"),
        (["Météo", "Sport"], "Me\u0301te\u0301o", "Météo"),
        (["体育", "财经"], "答案：体育", "体育"),
        (["体育", "财经"], "这不是体育", None),
    ],
)
def test_labels_of_all_kinds(labels: list[str], text: str, label: str | None) -> None:
    """Labels that contain each other, numbers and other scripts are taken for one another."""
    assert label_of(labels, text) == label


@pytest.mark.parametrize("depth", [600, 980, 100_000])
def test_answers_that_are_nested_deeply(depth: int) -> None:
    """JSON in JSON that ends the run with a traceback, after answers that were paid for."""
    label_of(LABELS, '{"label": ' * depth + '"good"' + "}" * depth)
    if depth < 900:
        thoughts = json.loads('{"text": ' * depth + '"so"' + "}" * depth)
        choice = {"message": {"content": "good", "reasoning_details": [thoughts]}, "finish_reason": "stop"}
        with pytest.raises(Unreadable):
            read_completion({"choices": [choice]}, str)


@pytest.mark.parametrize(
    "piece",
    ["a:", "<answer>", "{", "the label is ", "'label': '", "- x ", "<think>", "analysis ", " ", "-", ","],
)
@pytest.mark.parametrize("length", [15_000, 200_000])
def test_answers_of_any_length(piece: str, length: int) -> None:
    """A model that repeats itself up to its limit (white space, if it is held to JSON) ends the run with a traceback, or takes minutes to be read."""
    began, repeated = time.process_time(), piece * (length // len(piece))
    for text in repeated, f"so {repeated} x":
        assert label_of(LABELS, text, "length") is None
    assert time.process_time() - began < 5


def test_a_cut_answer_may_begin_a_longer_label() -> None:
    """`toxic` is learnt where the model was about to write `toxic threat`."""
    labels = ["toxic", "toxic threat"]
    assert label_of(labels, "toxic", "length") is None
    assert label_of(labels, "toxic") == "toxic"
    assert label_of(labels, "toxic threat", "length") == "toxic threat"


def test_the_answer_in_the_field_of_thoughts() -> None:
    """A server that returns the JSON as thoughts loses all labels; or a label is read out of thoughts that were cut."""
    assert label_of(LABELS, "", reasoning='{"label": "spam"}') == "spam"
    assert label_of(LABELS, "", "length", reasoning="spam") is None
    assert label_of(LABELS, "", reasoning="It asks for money.\nLabel: spam") is None
    assert label_of(LABELS, "ham", reasoning="spam") == "ham"


@pytest.mark.parametrize(
    ("message", "label"),
    [
        ({"tool_calls": [{"function": {"name": "json_tool_call", "arguments": '{"label": "spam"}'}}]}, "spam"),
        ({"tool_calls": [{"function": {"name": "answer", "arguments": {"label": "spam"}}}]}, "spam"),
        ({"function_call": {"name": "label", "arguments": '{"value": "Spam"}'}}, "spam"),
        ({"tool_calls": [{"function": {"name": "look", "arguments": '{"text": "the spam folder"}'}}]}, None),
        ({"tool_calls": [{"function": {"name": each, "arguments": '{"label": "spam"}'}} for each in "ab"]}, None),
        ({"content": "ham", "tool_calls": [{"function": {"name": "a", "arguments": '{"label": "spam"}'}}]}, "ham"),
    ],
)  # fmt: skip
def test_the_label_in_a_call_of_a_tool(message: dict[str, Any], label: str | None) -> None:
    """A proxy requests structured output as a call of a tool, and every answer is "empty"."""
    [choice] = response({"content": None} | message, "tool_calls").choices
    read = LabelReader("m", LABELS, "one_hot", least_mass=0.1, smoothing=0.1).label_of(choice)
    assert (None if read is None else LABELS[read]) == label
    if label is None:
        require_words(described(choice), "a call of a tool", "finish_reason=tool_calls", '({"')


def response(message: dict[str, Any] | None, finish: str = "stop") -> Any:
    return read_completion({"choices": [{"message": message, "finish_reason": finish}]}, str)


@pytest.mark.parametrize(
    ("message", "text", "reasoning"),
    [
        ({"content": "a"}, "a", ""),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "ab", ""),
        ({"content": ["a", {"type": "output_text", "text": "b"}]}, "ab", ""),
        ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "t"}]}, {"type": "text", "text": "a"}]}, "a", "t"),
        ({"content": "a", "reasoning_content": "t"}, "a", "t"),
        ({"content": "a", "reasoning": "t", "reasoning_details": [{"type": "reasoning.text", "text": "t"}]}, "a", "t"),
        ({"content": None, "reasoning_content": "t"}, "", "t"),
        ({"content": None, "tool_calls": [{}]}, "", ""),
        ({"content": {"label": "a"}}, '{"label": "a"}', ""),
    ],
)  # fmt: skip
def test_the_parts_of_a_message(message: dict[str, Any], text: str, reasoning: str) -> None:
    """Content in parts is no answer; or thoughts are taken for it."""
    answer = response(message)
    assert (answer.status, answer.choices[0]["text"]) == ("answered", text)
    assert answer.choices[0].get("reasoning", "") == reasoning


@pytest.mark.parametrize(
    "whole",
    [
        {"choices": [{"text": "a", "finish_reason": "stop"}]},
        {"choices": [{"message": {"content": "a"}, "index": None, "error": None}], "usage": None},
        {
            "choices": [{"message": {"content": "a"}}],
            "usage": {"prompt_tokens": None, "completion_tokens": None},
        },
    ],
)
def test_responses_of_other_servers(whole: dict[str, Any]) -> None:
    """A field that a server leaves out, or null, makes all of its answers unreadable."""
    answer = read_completion(whole, str)
    assert (answer.status, answer.choices[0]["text"], answer.usage) == ("answered", "a", {})


@pytest.mark.parametrize(
    ("message", "finish", "reason"),
    [
        ({"content": None, "refusal": "not that"}, "stop", "not that"),
        ({"content": [{"type": "refusal", "refusal": "not that"}]}, "stop", "not that"),
        ({"content": ""}, "content_filter", "content_filter"),
        (None, "content_filter", "content_filter"),
        ({"content": "I will not."}, "refusal", "I will not."),
        ({"content": None}, "SAFETY", "SAFETY"),
    ],
)
def test_refusals(message: dict[str, Any] | None, finish: str, reason: str) -> None:
    """What a filter or the model refuses counts as an answer, and nobody learns why."""
    answer = response(message, finish)
    assert (answer.status, answer.reason) == ("refused", reason)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (choice("", "length"), ("empty", "(finish_reason=length)")),
        (choice("", "length", reasoning="hm"), ("inside its thoughts", "(finish_reason=length): hm")),
        (choice("<think>hm", "length"), ("inside its thoughts", "(finish_reason=length): <think>hm")),
        (choice("<think>hm"), ("thoughts", "not end", "(finish_reason=stop)")),
        (choice("<think>hm</think>"), ("thoughts", "no answer", "(finish_reason=stop)")),
        (choice("I would say", "length"), ("I would say", "(cut, finish_reason=length)")),
        (choice("I think so"), ("I think so",)),
    ],
)
def test_why_there_is_no_label(answer: dict[str, Any], words: tuple[str, ...]) -> None:
    """`unanswered.jsonl` has an empty reason."""
    require_words(described(answer), *words)


def test_texts_about_tags_keep_them() -> None:
    """A completion that explains `</think>` loses its beginning."""
    text = "Models write <think> before and </think> after their thoughts."
    assert without_thoughts(choice(text)).text == text


@pytest.mark.parametrize(
    ("most", "texts", "unparsable", "stops"),
    [
        (0.05, 19, 19, False),
        (0.05, 20, 2, False),
        (0.05, 20, 4, True),
        (0.05, 199, 12, False),
        (0.05, 200, 11, True),
        (0.05, 200, 10, False),
        (1.0, 300, 300, False),
        (0.0, 20, 1, True),
    ],
)
def test_the_share_that_stops_a_run(most: float, texts: int, unparsable: int, stops: bool) -> None:
    """A run is stopped by the first bad answer; or everything is paid for before anybody is told."""
    share, message = UnparsableShare("m", most), ""
    bad = ["I would rather not say " * 50]
    try:
        for number in range(texts):
            share.count(1, bad if number >= texts - unparsable else [], lambda cut: "look at teacher.prompt")
    except TeacherError as error:
        message = error.message
    assert bool(message) == stops
    if stops:
        require_words(message, "teacher.max_unparsable", "look at teacher.prompt")
        assert len(message) < 1500


@pytest.mark.parametrize("cut", [True, False])
def test_the_remedy_is_for_what_was_seen(cut: bool) -> None:
    """A user whose answers are cut inside thoughts is told to look at the prompt."""
    share, seen = UnparsableShare("m", 0.05), list[bool]()

    def remedy(mostly_cut: bool) -> str:
        seen.append(mostly_cut)
        return ""

    for _ in range(19):
        share.count(1, ["hm"], remedy, int(cut))
    with pytest.raises(TeacherError):
        share.count(1, ["hm"], remedy, int(cut))
    assert seen == [cut]
