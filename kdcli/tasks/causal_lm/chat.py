"""Conversations as a tokenizer's chat template renders them."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from kdcli.errors import DataError, listed

DAY = datetime.date(2024, 7, 26)
"""Today, to chat templates that ask (Llama 3 falls back on this day): what they write must not change overnight."""
_TODAY = (
    "{% macro strftime_now(form) %}{{ form"
    + "".join(f"|replace('%{code}', '{DAY.strftime(f'%{code}')}')" for code in "aAbBdeFjmuyY")
    + f"|replace('%-d', '{DAY.day}')|replace('%-m', '{DAY.month}') }}}}{{% endmacro %}}{{{{ '' }}}}"
)
ANSWER = "kdcli"
"""What an assistant says where only the template around it is looked at."""


def check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """A conversation can be rendered, and its roles can be told apart.

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
            "the chat template renders a user's and an assistant's turn alike: the model could not tell who speaks; repair "
            "the template beside its tokenizer (chat_template.jinja)"
        )


def last_answer(turns: Sequence[Mapping[str, str]]) -> int:
    """The assistant's last turn."""
    return max(place for place, turn in enumerate(turns) if turn["role"] == "assistant")


def closing(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the chat template writes after what the assistant says, without the space at its end."""
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": ANSWER}]
    _, found, after = apply_template(tokenizer, turns).rpartition(ANSWER)
    return after.rstrip() if found else ""


def render(
    tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], close: str, ends: bool = True
) -> tuple[str, list[tuple[int, int]]]:
    """A conversation as the template writes it, up to the assistant's last turn, and where the assistant speaks.

    An earlier turn of the assistant counts only if the template writes it the same with and without what follows (some
    leave out what was thought). An answer that says nothing, which some templates refuse, is the close alone.

    Args:
        close: what closes the assistant's turn.
        ends: the last turn is closed.
    """
    last = last_answer(turns)
    prompt = apply_template(tokenizer, turns[:last], add_generation_prompt=True)
    said = turns[last]["content"].strip()
    whole = apply_template(tokenizer, turns[: last + 1]).rstrip() if said else prompt + close
    whole = whole if ends else whole.removesuffix(close)
    spans = []
    for place, turn in enumerate(turns[:last]):
        if turn["role"] != "assistant":
            continue
        try:
            before = apply_template(tokenizer, turns[:place], add_generation_prompt=True)
        except DataError:  # there is nothing before it, say
            continue
        after = apply_template(tokenizer, turns[: place + 1]).rstrip()
        if whole.startswith(before) and whole.startswith(after) and len(after) > len(before):
            spans.append((len(before), len(after)))
    if said and not (whole.startswith(prompt) and len(whole) > len(prompt)):
        raise DataError(
            "the chat template writes the assistant's last turn in a way that does not begin with its generation prompt: "
            f"{prompt[-60:]!r} is not how {whole[-120:]!r} begins; repair the template (chat_template.jinja)"
        )
    return whole, [*spans, (len(prompt), len(whole))]


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
            f"the chat template refuses a conversation of {roles}: {error}; leave out what it does not take (a system's turn, "
            "say), or use a model whose template does"
        ) from None
