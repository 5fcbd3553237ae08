"""Conversations as chat templates render them: which turns count, and what of a turn is written."""

from __future__ import annotations

import re
import time
from typing import Any

import datasets
import pytest
from support.commands import naming, require_words
from support.pages import table
from support.tiny import CHAT, speller
from transformers import PreTrainedTokenizerFast

from kdcli.errors import DataError
from kdcli.tasks.causal_lm.chat import Chat, Rendered, apply_template
from kdcli.tasks.causal_lm.conversations import read_turns
from kdcli.tasks.causal_lm.task import CausalLM
from kdcli.tasks.rows import IGNORE

Talk = list[dict[str, Any]]
CALL = {"type": "function", "function": {"name": "look", "arguments": '{"of": "song"}'}}
USER, OTHER = {"role": "user", "content": "q1"}, {"role": "user", "content": "q2"}
ONE, TWO = {"role": "assistant", "content": "a1"}, {"role": "assistant", "content": "a2"}
TWICE = [USER, ONE, OTHER, TWO]
SYSTEM = {"role": "system", "content": "be short"}
CALLED = [USER, {**ONE, "tool_calls": [CALL]}, {"role": "tool", "content": "fine"}, TWO]
SILENT = [USER, {**ONE, "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": "fine"}, TWO]

LAST_THINKS = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{% set t = m.reasoning_content or '' %}{% set c = m.content or '' %}"
    "{% if '</think>' in c %}{% set t = c.split('</think>')[0].split('<think>')[-1].strip('\n') %}{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.last %}<think>\n{{ t }}\n</think>\n\n{% endif %}{{ c }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function.name }}:{{ call.function.arguments | tojson }}</call>{% endfor %}"
    "{% else %}{{ m.content }}{% endif %}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""As Qwen3's: the last turn has a thought, earlier ones have none."""
END_OF_TEXT = CHAT.replace("{% if add", "{% if not add_generation_prompt %}<|eot|>{% endif %}{% if add")
"""As Phi-3's: the last turn is followed by the end of the text."""
FORGETS = (
    "{% for m in messages %}{% set c = m.content.split('</think>')[-1] %}<|{{ m.role }}|>{{ c }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)
"""As DeepSeek-R1's: thoughts are left out, and the generation prompt begins one."""
IN_LAST_USER = (
    "{% set last = messages | selectattr('role', 'equalto', 'user') | list | last %}{% for m in messages %}"
    "{% if m.role == 'user' %}[INST] {{ messages[0].content + ' ' if m == last and messages[0].role == 'system' }}{{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}<|end|>{% endif %}{% endfor %}"
)
"""As Mistral's: the instruction of the system stands in the last turn of the user, and nothing before an answer."""
OTHER_END = CHAT.replace(
    "<|end|>\n{% endfor",
    "{{ '<|eot|>' if loop.last and turn['role'] == 'assistant' else '<|end|>' }}\n{% endfor",
)
"""As gpt-oss's: the last answer is closed by another token than earlier ones."""
MARKED = "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>{% endgeneration %}{% else %}{{ m.content }}<|end|>{% endif %}\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
LAST_MARKED = MARKED.replace("{% if m.role == 'assistant' %}", "{% if m.role == 'assistant' and loop.last %}")
PARTS = "{% for m in messages %}<|{{ m.role }}|>{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
"""As Idefics': contents are lists of parts."""
WITH_CALLS = CHAT.replace(
    "<|end|>",
    "{% for call in turn['tool_calls'] or [] %}<call>{{ call.function.name + ':' + call.function.arguments }}</call>{% endfor %}<|end|>",
    1,
)
"""As DeepSeek-V3's: the arguments of a call are JSON."""
LAST_TWO = CHAT.replace("in messages", "in messages[-2:]")
WITH_TOOLS = "{% if tools %}<|system|>{{ tools | tojson }}<|end|>\n{% endif %}" + CHAT

TEMPLATES = {
    "all turns alike (ChatML, Llama 3, Gemma)": CHAT,
    "the last turn has a thought, earlier ones have none (Qwen3)": LAST_THINKS,
    "the last turn is followed by an end of text (Phi-3)": END_OF_TEXT,
    "thoughts are left out, the prompt begins one (DeepSeek-R1)": FORGETS,
    "the last answer is closed by another token (gpt-oss)": OTHER_END,
    "the system's instruction is in the last turn of the user (Mistral)": IN_LAST_USER,
    "marks ({% generation %})": MARKED,
    "marks of the last turn": LAST_MARKED,
    "contents as parts (Idefics, LLaVA)": PARTS,
    "arguments of calls as JSON (DeepSeek-V3)": WITH_CALLS,
    "the last exchange alone": LAST_TWO,
}
"""The rows of the page, by their first cells."""


def tokenizer(template: str) -> PreTrainedTokenizerFast:
    made = speller(template)
    made.add_special_tokens({"additional_special_tokens": ["<|eot|>"]})
    return made


def render(template: str, turns: Talk, **options: Any) -> Rendered:
    return Chat(tokenizer(template)).render(read_turns(turns, "row 1"), **options)


def counted(rendered: Rendered) -> list[str]:
    return [rendered.text[begin:end] for _, begin, end in rendered.spans]


EMPTY = "<think>\n\n</think>\n\n"
WROTE = 'a1<call>look:{"of": "song"}</call><|end|>'


@pytest.mark.parametrize(
    ("kind", "turns", "expected"),
    [
        ('all turns alike (ChatML, Llama 3, Gemma)', TWICE, ["a1<|end|>", "a2<|end|>"]),
        ('all turns alike (ChatML, Llama 3, Gemma)', [ONE, OTHER, TWO], ["a1<|end|>", "a2<|end|>"]),
        ('the last turn has a thought, earlier ones have none (Qwen3)', TWICE, ["a1<|end|>", f"{EMPTY}a2<|end|>"]),
        ('the last turn has a thought, earlier ones have none (Qwen3)', CALLED, [WROTE, f"{EMPTY}a2<|end|>"]),
        ('the last turn has a thought, earlier ones have none (Qwen3)', SILENT, [WROTE[2:], f"{EMPTY}a2<|end|>"]),
        ('the last turn has a thought, earlier ones have none (Qwen3)', CALLED[:2], [EMPTY + WROTE]),
        ('the last turn is followed by an end of text (Phi-3)', TWICE, ["a1<|end|>", "a2<|end|>\n<|eot|>"]),
        ('thoughts are left out, the prompt begins one (DeepSeek-R1)', TWICE, ["a1<|end|>", "\n</think>\n\na2<|end|>"]),
        ("the system's instruction is in the last turn of the user (Mistral)", [SYSTEM, *TWICE], [" a1<|end|>", " a2<|end|>"]),
        ('the last answer is closed by another token (gpt-oss)', TWICE, ["a1<|end|>", "a2<|eot|>"]),
        ('marks ({% generation %})', TWICE, ["a1<|end|>", "a2<|end|>"]),
        ('marks of the last turn', TWICE, ["a2<|end|>"]),
        ('contents as parts (Idefics, LLaVA)', TWICE, ["a1<|end|>", "a2<|end|>"]),
        ('the last exchange alone', TWICE, ["a2<|end|>"]),
        ('arguments of calls as JSON (DeepSeek-V3)', CALLED, [WROTE, "a2<|end|>"]),
        ('all turns alike (ChatML, Llama 3, Gemma)', [USER, {**ONE, "weight": 0}, OTHER, {**TWO, "weight": 1}], ["a2<|end|>"]),
        ('all turns alike (ChatML, Llama 3, Gemma)', [USER, ONE, OTHER, {**TWO, "train": False}], ["a1<|end|>"]),
    ],
)  # fmt: skip
def test_every_answer_counts(kind: str, turns: Talk, expected: list[str]) -> None:
    """Only the last answer of a conversation is learned, in silence, where the template writes it in another way than earlier ones; or the
    words of a user are learned, the end of a turn is not, or a call that stands beside a content."""
    turns = read_turns(turns, "row 1")
    while turns[-1].get("extra") == '{"weight": 0}':
        turns = turns[:-2]
    rendered = Chat(tokenizer(TEMPLATES[kind])).render(turns)
    assert counted(rendered) == expected
    answers = sum(turn["role"] == "assistant" for turn in turns)
    unlearned = sum("weight" in turn.get("extra", "") for turn in turns)
    assert rendered.notes["turns"] == answers
    assert rendered.notes["counted turns"] == len(expected) <= answers - unlearned


@pytest.mark.parametrize(
    "template", [CHAT, LAST_THINKS, END_OF_TEXT, FORGETS, IN_LAST_USER, OTHER_END, MARKED, PARTS]
)
def test_the_last_answer_follows_its_prompt(template: str) -> None:
    """A prompt for rollouts, measurement and endpoints is another text than that before the answer in training."""
    for turns in (TWICE, TWICE[:2], *([[SYSTEM, *TWICE]] if template is not FORGETS else [])):
        chat = Chat(tokenizer(template))
        stored = read_turns(turns, "row 1")
        rendered = chat.render(stored)
        assert rendered.text.startswith(chat.prompt(stored))
        if template is not MARKED:
            assert rendered.spans[-1][1] == len(chat.prompt(stored))


THINKING = [
    USER,
    {**ONE, "content": "<think>\nt1\n</think>\n\na1"},
    OTHER,
    {**TWO, "content": "<think>\nt2\n</think>\n\na2"},
]
REASONING = [USER, {**ONE, "reasoning_content": "t1"}, OTHER, {**TWO, "reasoning_content": "t2"}]


def keep(turns: Talk) -> Talk:
    return [{**turn, "keep_thought": True} if turn["role"] == "assistant" else turn for turn in turns]


@pytest.mark.parametrize("turns", [THINKING, REASONING])
@pytest.mark.parametrize(
    ("template", "kept", "expected"),
    [
        (LAST_THINKS, False, ["a1<|end|>", "<think>\nt2\n</think>\n\na2<|end|>"]),
        (LAST_THINKS, True, ["<think>\nt1\n</think>\n\na1<|end|>", "<think>\nt2\n</think>\n\na2<|end|>"]),
        (FORGETS, False, ["a1<|end|>", "t2\n</think>\n\na2<|end|>"]),
        (FORGETS, True, ["t1\n</think>\n\na1<|end|>", "t2\n</think>\n\na2<|end|>"]),
        (CHAT, True, ["<think>\nt1\n</think>\n\na1<|end|>", "<think>\nt2\n</think>\n\na2<|end|>"]),
    ],
)  # fmt: skip
def test_thoughts(template: str, kept: bool, expected: list[str], turns: Talk) -> None:
    """A thought that is to be learned is left out by the template, or one that an earlier turn shall not have is learned; or nobody is told."""
    rendered = render(template, keep(turns) if kept else turns)
    assert [text.lstrip("\n") if text[2:4] == "a1" else text for text in counted(rendered)] == expected
    assert rendered.notes["thoughts"] == (0 if kept else 1)
    assert rendered.notes["kept"] == (template is FORGETS and not kept)


def test_an_answer_without_the_thought_that_its_prompt_begins() -> None:
    """The student learns the answer after a prompt that it never gets."""
    assert render(FORGETS, TWICE).notes["unthinking"] == 1
    assert render(FORGETS, THINKING).notes["unthinking"] == 0


REFUSED: list[tuple[str, str, Talk, str | None, tuple[str, ...]]] = [
    ("calls are not written", CHAT, CALLED, None, ("template", "not write tool_calls", "remove")),
    ("calls are not written", CHAT, CALLED[:2], None, ("template", "not write tool_calls", "remove")),
    ("reasoning_content is not written", CHAT, REASONING, None, ("not write reasoning_content", "dataset.thoughts=all", "dataset.thoughts=drop")),
    ("tools are not written", CHAT, TWICE, '[{"type": "function", "function": {"name": "look"}}]', ("not write the tools", "dataset.context=[]")),
    ("another beginning than the generation prompt", CHAT.replace("{% if add_generation_prompt %}<|assistant|>{% endif %}", "<|user|>"), TWICE, None, ("repair the template",)),
    ("an empty thought in the generation prompt, and thoughts in the data", FORGETS.replace("<think>\n{%", "<think>\n\n</think>\n\n{%"), THINKING, None, ("dataset.thoughts=drop",)),
    ("marks of nothing", MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "{% generation %}{% endgeneration %}"), TWICE, None, ("{% generation %}", "marks nothing", "chat_template.jinja")),
    ("a role that the template refuses", "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system') }}{% endif %}" + CHAT, [SYSTEM, *TWICE], None, ("system, user", "No system", "remove the turns")),
    ("a damaged template", "{{ m.content }" + CHAT, TWICE, None, ("damaged", "repair", "chat_template.jinja")),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "template", "turns", "tools", "words"), REFUSED)
def test_what_a_template_leaves_out_is_refused(
    kind: str, template: str, turns: Talk, tools: str | None, words: tuple[str, ...]
) -> None:
    """A call, a thought or a tool is dropped in silence, and "I look." is learned without the look."""
    with pytest.raises(DataError, match=naming(*words)):
        render(template, turns, tools=tools)
    row = table("conversations.md", "Chat templates")[kind]
    assert row.startswith("refused")
    assert all(key in " ".join(words) for key in re.findall(r"dataset\.[a-z]+", row))


def test_tools_are_written() -> None:
    """The tools of a row do not reach the template, or not the prompt."""
    chat = Chat(tokenizer(WITH_TOOLS))
    tools = '[{"type": "function", "function": {"name": "look"}}]'
    turns = read_turns(TWICE, "row 1")
    assert chat.render(turns, tools).text.startswith(f"<|system|>{tools}<|end|>\n<|user|>q1")
    assert chat.prompt(turns, tools).startswith(f"<|system|>{tools}<|end|>\n<|user|>q1")


def test_the_log_says_what_counts(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody knows that half of the answers are not learned."""
    task, made = CausalLM(chat=True), tokenizer(LAST_MARKED)
    rows = datasets.Dataset.from_list(
        [{"id": "a", "messages": read_turns(TWICE, "row 1")}, {"id": "b", "messages": read_turns([*TWICE, USER, {**ONE, "weight": 0}, OTHER, TWO], "row 2")}]
    )  # fmt: skip
    encoded = task.encode(made, rows, 128)
    with caplog.at_level("INFO"):
        task.warn_of_truncation(encoded, 128)
    learnt = int((encoded.columns["labels"] != IGNORE).sum())
    counts = f"{learnt} of {encoded.offsets[-1]} tokens"
    require_words(
        caplog.text, "2 of 6 turns", "1 have the weight 0", counts, "3 of 6 turns", "{% generation %}"
    )
    assert made.decode(encoded.columns["labels"][encoded.columns["labels"] != IGNORE]) == "a2<|end|>" * 2


def test_the_page_lists_these_templates() -> None:
    """A page that promises a template which no test renders."""
    rows = table("conversations.md", "Chat templates")
    assert rows.keys() == TEMPLATES.keys() | {kind for kind, *_ in REFUSED}


def test_what_a_template_does_not_write_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """The instruction of a system, the result of a tool or a name is dropped in silence."""
    silent = CHAT.replace("{% for turn in messages %}", "{% for turn in messages if turn['role'] in ['user', 'assistant'] %}")  # fmt: skip
    turns = [SYSTEM, {**USER, "name": "Ann"}, ONE, {"role": "tool", "content": "fine"}, TWO]
    notes = render(silent, turns).notes
    assert {name: notes[name] for name in ("role system", "role tool", "key name")} == dict.fromkeys(
        ("role system", "role tool", "key name"), 1
    )
    assert not any(" " in name and count for name, count in render(CHAT, TWICE).notes.items() if name[:5] in ("role ", "key n"))  # fmt: skip
    task, made = CausalLM(chat=True), tokenizer(silent)
    rows = datasets.Dataset.from_list([{"id": "a", "messages": read_turns(turns, "row 1")}])
    with caplog.at_level("INFO"):
        task.warn_of_truncation(task.encode(made, rows, 128), 128)
    require_words(caplog.text, "1 turns of the role system", "keys of turns: name")


def test_what_a_student_wrote_is_learned_as_it_is() -> None:
    """The tokens of a rollout are rendered in another way than the student wrote them, and it is judged for tokens that it did not write."""
    chat, turns = Chat(tokenizer(LAST_THINKS)), read_turns([USER, {**ONE, "content": " so it"}], "row 1")
    rendered = chat.render(turns, generated=True)
    assert rendered.text == f"{chat.prompt(turns)} so it<|end|>"
    assert chat.render(turns, generated=True, ends=False).text == f"{chat.prompt(turns)} so it"


def test_arguments_keep_their_order() -> None:
    """The student learns to write arguments in the order of the alphabet."""
    arguments = {"when": "now", "city": "x", "a": [1, {"z": 1, "b": 2}]}
    call = {"type": "function", "function": {"name": "look", "arguments": arguments}}
    rendered = render(LAST_THINKS, [USER, {**ONE, "tool_calls": [call]}])
    assert 'look:{"when": "now", "city": "x", "a": [1, {"z": 1, "b": 2}]}' in rendered.text


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 10**10 }}",
        "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% generation %}{{ messages[0].content | center(10**10) }}{% endgeneration %}",
        "{% macro f(n) %}{{ f(n - 1) }}{{ f(n - 1) }}{% endmacro %}{{ f(900) }}",
        "{% set x = 'a' * 60000 %}{{ x.replace('a', x) }}",
    ],
)
def test_a_chat_template_that_does_not_end_is_refused(source: str) -> None:
    """A model from elsewhere whose template takes all time, or all memory, of whoever loads it."""
    tokenizer = speller(CHAT)
    tokenizer.chat_template = source
    began = time.process_time()
    with pytest.raises(DataError, match="chat template"):
        apply_template(tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    assert time.process_time() - began < 10


@pytest.mark.parametrize("broken", ["{{ messages | frobnicate }}", "{{ lost.name }}"])
def test_a_damaged_template_is_to_be_repaired(broken: str) -> None:
    """A user removes turns from data that are sound, because the message names them in place of the template."""
    with pytest.raises(DataError, match=naming("damaged", "repair", "chat_template.jinja")):
        render(broken + CHAT, TWICE)


@pytest.mark.parametrize(
    ("template", "unended"),
    [
        (CHAT, 0),
        (MARKED, 0),
        (END_OF_TEXT, 0),
        (CHAT.replace("<|end|>", ""), 1),
        (MARKED.replace("<|end|>{% endgeneration %}", "{% endgeneration %}<|end|>"), 1),
    ],
)
def test_a_template_without_an_end_token_is_told(
    template: str, unended: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A student that never stops is trained in silence."""
    assert render(template, TWICE).notes["unended"] == unended
    task, made = CausalLM(chat=True), tokenizer(template)
    rows = datasets.Dataset.from_list([{"id": "a", "messages": read_turns(TWICE, "row 1")}])
    task.warn_of_truncation(task.encode(made, rows, 128), 128)
    assert ("eos_token" in caplog.text) == bool(unended)


def test_special_tokens_in_contents_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """The student learns an end token in the middle of an answer, and nobody is told."""
    task, made = CausalLM(chat=True), tokenizer(CHAT)
    turns = [USER, {**ONE, "content": "it <|end|> was <|end|> good"}, OTHER, TWO]
    rows = datasets.Dataset.from_list([{"id": "a", "messages": read_turns(turns, "row 1")}])
    encoded = task.encode(made, rows, 128)
    assert encoded.notes["token <|end|>"] == 1
    task.warn_of_truncation(encoded, 128)
    require_words(caplog.text, "1 conversations", "<|end|>", "dataset.replace")
    assert not any(name.startswith("token ") for name in render(CHAT, TWICE).notes)
