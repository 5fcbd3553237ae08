"""Renders conversations by a tokenizer's chat template, and finds the characters that the student learns."""

from __future__ import annotations

import datetime
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from jinja2.exceptions import TemplateRuntimeError, TemplateSyntaxError, UndefinedError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from kdcli.errors import DataError, listed
from kdcli.tasks.causal_lm.chat_limits import bounded_templates
from kdcli.tasks.causal_lm.conversations import (
    KEEP,
    THOUGHTS,
    is_learned,
    split_thought,
    template_turns,
    with_text_arguments,
)

DAY = datetime.date(2024, 7, 26)
"""The date that chat templates read as the current one, so that rendered texts do not change from day to day. (It is the default of Llama 3.)"""
_TODAY = (
    "{% macro strftime_now(form) %}{{ form"
    + "".join(f"|replace('%{code}', '{DAY.strftime(f'%{code}')}')" for code in "aAbBdeFjmuyY")
    + f"|replace('%-d', '{DAY.day}')|replace('%-m', '{DAY.month}') }}}}{{% endmacro %}}{{{{ '' }}}}"
)
ANSWER = "⸨kdcli⸩"
"""The answer of the assistant in a conversation that examines the template alone."""
MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""The tag with which a template marks what the assistant writes."""
OPENED, CLOSED = re.compile(r"<think>\s*\Z"), re.compile(r"<think>\s*</think>\s*\Z")
EMPTY = re.compile(r"\A\s*<think>\s*</think>\s*")
"""A thought that is begun, or that is empty, at the end of a prompt."""
THOUGHT, END_OF_THOUGHT = "<think>\n", "\n</think>\n\n"
TURNS, COUNTED, UNWEIGHTED = "turns", "counted turns", "turns of weight 0"
ROLE, KEY, TOKEN = "role ", "key ", "token "
"""The beginnings of notes on turns of a role, and of keys of turns, that the template does not write; and on special tokens in contents."""
NOTES = {
    "kept": "thoughts are learned that the chat template omits (dataset.thoughts=drop drops them)",
    "unthinking": "answers have no thought, which the generation prompt of the chat template begins: an empty one is learned",
    "thoughts": "the chat template omits thoughts of earlier turns (dataset.thoughts=all writes and learns them)",
    "contents": "the chat template omits contents beside a call",
    "unended": "conversations have no end token that is learned: the student does not learn to stop. Let chat_template.jinja write eos_token behind an answer, "
    "within {% generation %} if it marks answers",
}


class Rendered(NamedTuple):
    """A conversation as text.

    Attributes:
        spans: the counted characters: the index of a turn among those of the assistant, its first character, and the one after its last.
        notes: the numbers of turns and of counted turns, and of what the template omits.
    """

    text: str
    spans: list[tuple[int, int, int]]
    notes: Counter[str]


Turns = Sequence[Mapping[str, Any]]


class Chat:
    """The chat template of a tokenizer.

    Turns are rendered as transformers renders them, but for thoughts that the template leaves out and that are to be learned
    (`dataset.thoughts`). Turns of the assistant are found in the text by the template's own marks ({% generation %}), or by rendering parts
    of the conversation.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self._reads: dict[str, bool] = {}

    def require(self) -> None:
        """Require a template that renders a conversation and distinguishes its roles.

        Raises:
            DataError
        """
        if not self.tokenizer.chat_template:
            raise DataError(
                "the data are conversations, and this model's tokenizer has no chat template; use an instruction-tuned model, "
                "put a chat_template.jinja beside its tokenizer, or use prompt and completion with dataset.chat=false"
            )
        first = {"role": "user", "content": "x"}
        answered = self._apply([first, {"role": "assistant", "content": "y"}], None)
        try:
            repeated = self._apply([first, {"role": "user", "content": "y"}], None)
        except DataError:
            return  # it requires turns that alternate
        if answered == repeated:
            raise DataError(
                "the chat template renders a user's and an assistant's turn alike: the model could not distinguish the speakers; repair "
                "the template beside its tokenizer (chat_template.jinja)"
            )

    @cached_property
    def parts(self) -> bool:
        """Whether the template writes contents only as lists of parts, as those of models of images and text do."""
        turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": ANSWER}]
        for form in (turns, _in_parts(turns)):
            try:
                if ANSWER in apply_template(self.tokenizer, form):
                    return form is not turns
            except DataError:
                continue
        return False

    def _source(self, tools: str | None = None) -> str:
        """Return the template itself.

        Raises:
            DataError: there are several, and none for conversations.
        """
        try:
            return str(self.tokenizer.get_chat_template(tools=json.loads(tools) if tools else None))
        except ValueError as error:
            raise DataError(f"the chat template cannot be used: {error}; name one of them default") from None

    def _marks(self, tools: str | None) -> bool:
        """Return whether the template marks what the assistant writes."""
        return MARKS.search(self._source(tools)) is not None

    # ---- properties of the template -------------------------------------------------------------------------

    @cached_property
    def closing(self) -> str:
        """The text with which the template closes a last turn of the assistant, without white space at its end."""
        _, answer, after = self._example("x", ANSWER).rpartition(ANSWER)
        return after.rstrip() if answer else ""

    @cached_property
    def inner_closing(self) -> str:
        """The same of a turn that others follow: what it shares with that of the last turn, or the token that also closes a user's turn."""
        try:
            text = self._example("x" + ANSWER, ANSWER, "y")
        except DataError:  # of a user's turn without an answer
            return self.closing
        if len(parts := text.split(ANSWER)) != 3:  # it does not write all turns
            return self.closing
        _, of_user, of_answer = parts
        own, last, user = map(self._pieces, (of_answer, self.closing, of_user))
        shared = own[: _shared(own, last)]
        if not shared and last and own[:1] == user[:1]:
            shared = own[:1]
        return "".join(shared).rstrip()

    @cached_property
    def begin_tokens(self) -> list[str]:
        """The token with which the template begins a conversation; empty: it writes none."""
        begin = self.tokenizer.bos_token
        return [begin] if begin and self._example("x", ANSWER).startswith(begin) else []

    @cached_property
    def end_tokens(self) -> list[str]:
        """The special tokens with which the template closes turns of the assistant."""
        pieces = [*self._pieces(self.inner_closing), *self._pieces(self.closing)]
        return [piece for piece in dict.fromkeys(pieces) if piece in self._special]

    @cached_property
    def _special(self) -> set[str]:
        """The special tokens of the tokenizer."""
        added = self.tokenizer.added_tokens_decoder.values()
        return {str(token) for token in added if token.special} | {*self.tokenizer.all_special_tokens}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """The pattern of a special token."""
        tokens = sorted(filter(None, self._special), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, tokens)) or r"(?!)")

    @cached_property
    def header(self) -> str:
        """The text with which the template begins a turn of the assistant."""
        before, after = self._example("x"), self._example("x", add_generation_prompt=True)
        return _unopened(after[len(before) :]) if after.startswith(before) else ""

    @cached_property
    def between(self) -> str:
        """The text between a user's content and the answer to it, without white space around it."""
        return _unopened(self._example(ANSWER, add_generation_prompt=True).rpartition(ANSWER)[2]).strip()

    def _example(self, *contents: str, **options: Any) -> str:
        turns = [
            {"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(contents)
        ]
        return self._apply(turns, None, **options)

    def _pieces(self, text: str) -> list[str]:
        """Return a text as its added tokens, line breaks and what stands between them."""
        added = sorted(self.tokenizer.get_added_vocab(), key=len, reverse=True)
        return [
            piece for piece in re.split(f"({'|'.join(map(re.escape, [*added, chr(10)]))})", text) if piece
        ]

    # ---- rendering ---------------------------------------------------------------------------------------------

    def prompt(self, turns: Turns, tools: str | None = None) -> str:
        """Return the prompt for the last turn of the assistant.

        Args:
            turns, tools: as `CausalLMRows` stores them.
        """
        return self._write(template_turns(turns[: last_answer(turns)]), tools, add_generation_prompt=True)

    def render(
        self, turns: Turns, tools: str | None = None, ends: bool = True, generated: bool = False
    ) -> Rendered:
        """Return a conversation up to the last turn of the assistant.

        An empty answer, which some templates refuse, is rendered as the closing text alone.

        Args:
            turns, tools: as `CausalLMRows` stores them.
            ends: the last turn is closed.
            generated: a model has written the last turn after the prompt, which it follows as it is.

        Raises:
            DataError: the template refuses the conversation, or leaves out what is to be learned.
        """
        stored = turns[: last_answer(turns) + 1]
        ready, notes = template_turns(stored), Counter[str]()
        answers = [index for index, turn in enumerate(stored) if turn["role"] == "assistant"]
        last = answers[-1]
        prompt = self._write(ready[:last], tools, add_generation_prompt=True)
        empty = not stored[last]["content"].strip() and "tool_calls" not in ready[last]
        if generated or empty:
            full_text = text = prompt + stored[last]["content"] * (not empty) + self.closing
        else:
            full_text = self._write(ready, tools)
            self._require_written(ready, full_text, tools)
            self._note_keys(ready, full_text, tools, notes)
            if (thought := _thought(ready[last])) and thought not in full_text[_shared(full_text, prompt) :]:
                ready[last][KEEP] = True
                notes["kept"] += 1
                full_text = self._write(ready, tools)
            text = self._after_prompt(prompt, full_text.rstrip(), ready[last], notes)
        earlier: tuple[list[dict[str, Any]], str, dict[str, Any]] = ready, full_text, {}
        if not text:  # an earlier turn is written in another way once this one follows
            begin, _ = self._search(ready, last, full_text, tools)
            if begin is None:
                raise _another_beginning(prompt, full_text)
            text = prompt + full_text[begin:].rstrip()
            earlier = ready[:last], prompt, {"add_generation_prompt": True}
        text = text if ends else text.removesuffix(self.closing)
        if self._marks(tools) and text == full_text.rstrip() and not any(KEEP in turn for turn in ready):
            spans = self._marked_spans(ready, answers, len(text), tools)
        else:
            spans = dict(self._inner_spans(*earlier, answers[:-1], tools))
            spans[last] = len(prompt), len(text)
        counted = [
            (position, *spans[index])
            for position, index in enumerate(answers)
            if index in spans
            and is_learned(stored[index])
            and _follows(stored, index, text[: spans[index][0]])
        ]
        notes[TURNS], notes[COUNTED] = len(answers), len(counted)
        notes[UNWEIGHTED] = sum(not is_learned(stored[index]) for index in answers)
        learned = text[counted[-1][1] : counted[-1][2]] if counted else ""
        notes["unended"] = int(bool(counted) and not any(token in learned for token in self.end_tokens))
        for token in {token for turn in stored for token in self._pattern.findall(turn["content"])}:
            notes[TOKEN + token] = 1
        _note_unwritten(stored, ready, text, notes)
        return Rendered(text, counted, notes)

    def _write(self, turns: list[dict[str, Any]], tools: str | None, **options: Any) -> str:
        """Return the rendered turns. A turn with `KEEP` has its thought before its answer, even if the template omits it."""
        thinking = {index: turn for index, turn in enumerate(turns) if turn.get(KEEP)}
        marks = {index: f"{ANSWER}{index}." for index in thinking}
        bare = [
            {key: value for key, value in turn.items() if key not in (KEEP, *([THOUGHTS[0]] if index in thinking else ()))}
            | ({"content": marks[index]} if index in thinking else {})
            for index, turn in enumerate(turns)
        ]  # fmt: skip
        text = self._apply(bare, tools, **options)
        for index, turn in thinking.items():
            before, mark, after = text.partition(marks[index])
            if not mark:
                raise DataError(
                    "the chat template omits the content of a turn with a thought; give dataset.thoughts=drop"
                )
            content = turn.get("content", "")
            answer = (split_thought(content) or ("", content))[1]
            text = _unopened(before) + THOUGHT + _thought(turn) + END_OF_THOUGHT + answer + after
        return text

    def _apply(self, turns: list[dict[str, Any]], tools: str | None, **options: Any) -> str:
        """Return the turns as transformers renders them, in the first form that the template reads."""
        given = {"tools": json.loads(tools)} if tools else {}
        *others, last = self._forms(turns)
        for form in others:
            try:
                return apply_template(self.tokenizer, form, **given, **options)
            except DataError:
                continue
        return apply_template(self.tokenizer, last, **given, **options)

    def _forms(self, turns: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        """Return the forms of turns that templates may read: some refuse a turn without a content, some refuse objects as the arguments of calls."""
        forms = [turns]
        if any("tool_calls" in turn for turn in turns):
            full = [{"content": "", **turn} for turn in turns]
            forms = [turns, full, with_text_arguments(full)]
        return [_in_parts(form) for form in forms] if self.parts else forms

    def _require_written(self, turns: list[dict[str, Any]], text: str, tools: str | None) -> None:
        """Require that the template writes calls and tools, and reasoning if it knows none.

        Raises:
            DataError
        """

        def without(key: str) -> str:
            bare = [{"content": "", **{name: turn[name] for name in turn if name != key}} for turn in turns]
            try:
                return self._write(bare, tools)
            except DataError:  # which shows that it is read
                return ""

        if any("tool_calls" in turn for turn in turns) and without("tool_calls") == text:
            raise DataError(
                "the chat template does not write tool_calls, so that the calls of the assistant would not be learned; use a model whose "
                "template writes them, or remove these rows"
            )
        thinking = any(THOUGHTS[0] in turn and not turn.get(KEEP) for turn in turns)
        if thinking and "think" not in self._source(tools) and without(THOUGHTS[0]) == text:
            raise DataError(
                f"the chat template does not write {THOUGHTS[0]}; give dataset.thoughts=all, which writes it in <think> tags before the answer, "
                "or dataset.thoughts=drop, which leaves it out"
            )
        if tools and self._write(turns, None) == text:
            raise DataError(
                "the chat template does not write the tools of the conversation; use a model whose template does, or leave them out "
                "(dataset.context=[])"
            )

    def _note_keys(
        self, turns: list[dict[str, Any]], text: str, tools: str | None, notes: Counter[str]
    ) -> None:
        """Note the further keys of turns that the template does not write, such as a name."""
        own_keys = {"role", "content", "tool_calls", KEEP, *THOUGHTS}
        for key in dict.fromkeys(key for turn in turns for key in turn if key not in own_keys):
            if key not in self._reads:
                bare = [{name: turn[name] for name in turn if name != key} for turn in turns]
                try:
                    self._reads[key] = self._write(bare, tools) != text
                except DataError:
                    self._reads[key] = True
            if not self._reads[key]:
                notes[KEY + key] += sum(key in turn for turn in turns)

    def _after_prompt(self, prompt: str, text: str, turn: Mapping[str, Any], notes: Counter[str]) -> str:
        """Return the text with its last turn after the generation prompt, which may begin a thought, or hold an empty one; empty: the text does not
        begin with the prompt.

        Raises:
            DataError: the prompt holds an empty thought, and the turn has one.
        """
        if text.startswith(prompt) and len(text) > len(prompt):
            return text
        bare = _unopened(prompt)
        if bare == prompt or not text.startswith(bare):
            return ""
        if _thought(turn):
            raise _another_beginning(prompt, text)
        notes["unthinking"] += 1
        opened = OPENED.search(prompt) is not None
        return prompt + END_OF_THOUGHT * opened + EMPTY.sub("", text[len(bare) :])

    # ---- where the turns are -----------------------------------------------------------------------------------

    def _inner_spans(
        self,
        turns: list[dict[str, Any]],
        text: str,
        options: Mapping[str, Any],
        answers: Sequence[int],
        tools: str | None,
    ) -> Iterator[tuple[int, tuple[int, int]]]:
        """Yield the spans of the turns of the assistant before the last one, from the end of the generation prompt to that of the closing text.

        A turn that is rendered identically without the turns after it is found in this way. For other turns (Qwen3 and Phi-3 write the last turn
        in another way) the conversation is rendered with another content.

        Args:
            text: the rendered turns.
            options: with which they are rendered.
        """
        for index in answers:
            try:
                before = self._write(turns[:index], tools, add_generation_prompt=True)
                after = self._write(turns[: index + 1], tools).rstrip()
            except DataError:  # some templates refuse an empty conversation
                before, after = "", ""
            begin = len(before) if before and text.startswith(before) else None
            end = len(after) if len(after) > len(before) and text.startswith(after) else None
            if begin is None or end is None:
                begin, end = self._search(turns, index, text, tools, begin, **options)
            if begin is not None and end is not None and begin < end:
                yield index, (begin, end)

    def _search(
        self,
        turns: list[dict[str, Any]],
        index: int,
        text: str,
        tools: str | None,
        begin: int | None = None,
        **options: Any,
    ) -> tuple[int | None, int | None]:
        """Return the span of a turn whose content is written somewhere in the text; None, None if it is not."""
        before, after = self._around(turns, index, tools, **options)
        if before is None:
            return None, None
        if begin is None:
            own = turns[index - 1].get("content", "") if index else ""
            start = before.rfind(own) + len(own) if own and own in before else 0
            ends = [
                at + len(each)
                for each in (self.header, self.between)
                if each and (at := before.rfind(each, start)) >= 0
            ]
            if not ends or not text.startswith(before[: ends[0]]):
                return None, None
            begin = ends[0]
        end = len(text) - _shared(text[::-1], after[::-1])
        closing = self.inner_closing
        if (at := text.find(closing, end)) >= 0 and (
            "tool_calls" in turns[index] or not text[end:at].strip()
        ):
            end = at + len(closing)
        return begin, end

    def _around(
        self, turns: list[dict[str, Any]], index: int, tools: str | None, **options: Any
    ) -> tuple[str | None, str]:
        """Return the text before and after the content of a turn; None if it is not written."""
        other = {key: value for key, value in turns[index].items() if key not in (THOUGHTS[0], KEEP)}
        other["content"] = ANSWER
        try:
            text = self._write([*turns[:index], other, *turns[index + 1 :]], tools, **options)
        except DataError:
            return None, ""
        before, mark, after = text.rpartition(ANSWER)
        return (before if mark else None), after

    def _marked_spans(
        self, turns: list[dict[str, Any]], answers: Sequence[int], length: int, tools: str | None
    ) -> dict[int, tuple[int, int]]:
        """Return the spans that the template marks, by the turns that hold them.

        Raises:
            DataError: it marks none.
        """
        options = {"tools": json.loads(tools)} if tools else {}
        template = _dated(self._source(tools))
        special = self.tokenizer.special_tokens_map
        render: Any = render_jinja_template
        rendered_spans: list[list[tuple[int, int]]] = [[]]
        for form in self._forms(turns):
            try:
                with bounded_templates():
                    _, rendered_spans = render([form], chat_template=template, return_assistant_tokens_mask=True, **options, **special)  # fmt: skip
            except Exception:  # it refuses the arguments of calls in this form
                continue
            break
        marked = [(begin, min(end, length)) for begin, end in rendered_spans[0] if begin < min(end, length)]
        if not marked:
            raise DataError(
                "the chat template marks what is learned ({% generation %}), and marks nothing of this conversation; repair the template "
                "(chat_template.jinja), or remove the tags"
            )
        if len(marked) == len(answers):
            return dict(zip(answers, marked, strict=True))
        spans: dict[int, tuple[int, int]] = {}
        for index in answers:
            at = len(self._around(turns, index, tools)[0] or "")
            for begin, end in marked:
                if begin <= at <= end:
                    spans[index] = begin, end
        return spans


def last_answer(turns: Turns) -> int:
    """Return the index of the last turn of the assistant."""
    return max(index for index, turn in enumerate(turns) if turn["role"] == "assistant")


def _in_parts(turns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {**turn, "content": [{"type": "text", "text": turn["content"]}]} if "content" in turn else dict(turn)
        for turn in turns
    ]


def _note_unwritten(stored: Turns, ready: Turns, text: str, notes: Counter[str]) -> None:
    """Note the turns, contents and thoughts that the template leaves out."""
    for turn, message in zip(stored, ready, strict=True):
        content = turn["content"].strip()
        if turn["role"] != "assistant":
            if not _is_written(content, text):
                notes[ROLE + turn["role"]] += 1
            continue
        answer = (split_thought(content) or ("", content))[1].strip()
        notes["contents"] += "tool_calls" in message and answer not in text
        notes["thoughts"] += message is not ready[-1] and _thought(message) not in text


def _is_written(content: str, text: str) -> bool:
    """Return whether a text holds a content, as it is or in JSON."""
    return content in text or json.dumps(content)[1:-1] in text


def _follows(turns: Turns, index: int, text: str) -> bool:
    """Return whether the text before an answer holds the turn of the user that it answers."""
    previous = turns[index - 1] if index else None
    return previous is None or previous["role"] != "user" or _is_written(previous["content"].strip(), text)


def _another_beginning(prompt: str, text: str) -> DataError:
    return DataError(
        "the chat template writes the assistant's last turn in a way that does not begin with its generation prompt: "
        f"{prompt[-60:]!r} is not how {text.rstrip()[-120:]!r} begins; repair the template (chat_template.jinja), or leave thoughts out "
        "(dataset.thoughts=drop)"
    )


def _thought(turn: Mapping[str, Any]) -> str:
    """Return the thought of a turn, in a key or at the beginning of its content; empty: it has none."""
    own = turn.get(THOUGHTS[0]) or (split_thought(turn.get("content", "")) or ("", ""))[0]
    return str(own).strip()


def _unopened(prompt: str) -> str:
    """Return a prompt without the thought that it begins, or that it holds at its end."""
    return CLOSED.sub("", OPENED.sub("", prompt))


def _shared(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the number of characters, or of pieces, with which both texts begin."""
    shortest = min(len(first), len(second))
    return next((at for at in range(shortest) if first[at] != second[at]), shortest)


def _dated(template: str) -> str:
    return _TODAY + template if "strftime_now" in template else template


def _is_damaged(error: Exception) -> bool:
    """Return whether a template cannot be compiled, or uses a filter or a name that does not exist, whatever the conversation."""
    if isinstance(error, UndefinedError):
        return str(error).endswith(" is undefined")
    return isinstance(error, TemplateSyntaxError) or type(error) is TemplateRuntimeError


def apply_template(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Mapping[str, Any]], **options: Any
) -> str:
    """Return a conversation as the template renders it; on every day as on `DAY`.

    Args:
        turns: as a chat template reads them.
        options: as for `apply_chat_template`.

    Raises:
        DataError: the template refuses it.
    """
    try:
        own: Any = tokenizer
        template = _dated(own.get_chat_template(tools=options.get("tools")))
        with bounded_templates():
            return str(own.apply_chat_template(turns, chat_template=template, tokenize=False, **options))
    except Exception as error:  # jinja2 raises what the template raises
        roles = listed(turn["role"] for turn in turns) or "no turns"
        remedy = (
            "the template is damaged: repair chat_template.jinja (or the key chat_template of tokenizer_config.json), or use another model"
            if _is_damaged(error)
            else "remove the turns that it does not accept (of the system, for example), or use a model whose template accepts them"
        )
        raise DataError(f"the chat template refuses a conversation of {roles}: {error}; {remedy}") from None
