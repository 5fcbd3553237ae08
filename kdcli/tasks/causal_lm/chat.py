"""Conversations as a tokenizer's chat template renders them."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from kdcli.errors import DataError, listed

DAY = datetime.date(2024, 7, 26)
"""The date for chat templates that read today's (Llama 3 falls back on this one), so that rendered texts do not change from day to day."""
_TODAY = (
    "{% macro strftime_now(form) %}{{ form"
    + "".join(f"|replace('%{code}', '{DAY.strftime(f'%{code}')}')" for code in "aAbBdeFjmuyY")
    + f"|replace('%-d', '{DAY.day}')|replace('%-m', '{DAY.month}') }}}}{{% endmacro %}}{{{{ '' }}}}"
)
ANSWER = "kdcli"
"""The answer of an assistant in a conversation of which only the template is examined."""


def check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Require a chat template that renders a conversation and distinguishes its roles.

    Raises:
        DataError
    """
    if not tokenizer.chat_template:
        raise DataError(
            "the data are conversations, and this model's tokenizer has no chat template; use an instruction-tuned model, "
            "put a chat_template.jinja beside its tokenizer, or use prompt and completion with dataset.chat=false"
        )
    first = {"role": "user", "content": "x"}
    answered = apply_template(tokenizer, [first, {"role": "assistant", "content": "y"}])
    try:
        repeated = apply_template(tokenizer, [first, {"role": "user", "content": "y"}])
    except DataError:
        return  # it insists on turns that alternate
    if answered == repeated:
        raise DataError(
            "the chat template renders a user's and an assistant's turn alike: the model could not distinguish the speakers; repair "
            "the template beside its tokenizer (chat_template.jinja)"
        )


def last_answer(turns: Sequence[Mapping[str, str]]) -> int:
    """The index of the last turn of the assistant."""
    return max(index for index, turn in enumerate(turns) if turn["role"] == "assistant")


def closing(tokenizer: PreTrainedTokenizerBase) -> str:
    """The text with which the chat template closes a turn of the assistant, without white space at its end."""
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": ANSWER}]
    _, answer, after = apply_template(tokenizer, turns).rpartition(ANSWER)
    return after.rstrip() if answer else ""


def render(
    tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], close: str, ends: bool = True
) -> tuple[str, list[tuple[int, int]]]:
    """A conversation as the template renders it, up to the last turn of the assistant, and the spans of the assistant's turns.

    An earlier turn of the assistant counts only if the template renders it identically with and without what follows (some templates drop
    reasoning from earlier turns). An empty answer, which some templates refuse, is rendered as the closing text alone.

    Args:
        close: the closing text of a turn.
        ends: the last turn is closed.
    """
    last = last_answer(turns)
    prompt = apply_template(tokenizer, turns[:last], add_generation_prompt=True)
    answer = turns[last]["content"].strip()
    rendered = apply_template(tokenizer, turns[: last + 1]).rstrip() if answer else prompt + close
    rendered = rendered if ends else rendered.removesuffix(close)
    spans = []
    for index, turn in enumerate(turns[:last]):
        if turn["role"] != "assistant":
            continue
        try:
            before = apply_template(tokenizer, turns[:index], add_generation_prompt=True)
        except DataError:  # some templates refuse an empty conversation
            continue
        after = apply_template(tokenizer, turns[: index + 1]).rstrip()
        if rendered.startswith(before) and rendered.startswith(after) and len(after) > len(before):
            spans.append((len(before), len(after)))
    if answer and not (rendered.startswith(prompt) and len(rendered) > len(prompt)):
        raise DataError(
            "the chat template writes the assistant's last turn in a way that does not begin with its generation prompt: "
            f"{prompt[-60:]!r} is not how {rendered[-120:]!r} begins; repair the template (chat_template.jinja)"
        )
    return rendered, [*spans, (len(prompt), len(rendered))]


def apply_template(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], **options: Any) -> str:
    """A conversation as the template renders it; on every day as on `DAY`.

    Args:
        options: as for `apply_chat_template`.

    Raises:
        DataError: the template refuses it.
    """
    try:
        template = tokenizer.get_chat_template()
        if "strftime_now" in template:
            template = _TODAY + template
        return str(tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False, **options))
    except Exception as error:  # jinja2 raises what the template says
        roles = listed(turn["role"] for turn in turns) or "no turns"
        raise DataError(
            f"the chat template refuses a conversation of {roles}: {error}; remove the turns that it does not accept (of the system, "
            "for example), or use a model whose template accepts them"
        ) from None
