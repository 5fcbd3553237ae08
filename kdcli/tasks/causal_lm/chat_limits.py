"""Limits the work of chat templates, which come with a model from elsewhere."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from transformers.utils import chat_template_utils

from kdcli.templates import Bounded

_LOCK = threading.RLock()
_COMPILE: Any = chat_template_utils._compile_jinja_template.__wrapped__
"""transformers' compilation of a template, without its cache."""


class _BoundedChat(Bounded):
    """The sandbox of chat templates: conversations are longer than prompts."""

    steps, largest = 1_000_000, 50_000_000

    def __init__(self, *, extensions: Sequence[Any], **_: Any) -> None:
        super().__init__(extensions=extensions)  # the other options are those of `Bounded`


@functools.lru_cache
def _compiled(source: str) -> Any:
    """Return a template as transformers compiles it, with its functions, in a `_BoundedChat`."""
    utils: Any = chat_template_utils
    original, utils.ImmutableSandboxedEnvironment = utils.ImmutableSandboxedEnvironment, _BoundedChat
    try:
        return _COMPILE(source)
    finally:
        utils.ImmutableSandboxedEnvironment = original


def _compile_bounded(source: str) -> Any:
    """Return a compiled template that has done no work yet."""
    template = _compiled(source)
    template.environment.spent = 0
    return template


@contextmanager
def bounded_templates() -> Iterator[None]:
    """Limit the work of each chat template that transformers renders within this context.

    Raises:
        SecurityError: of Jinja, within the context, if a template exceeds a limit.
    """
    utils: Any = chat_template_utils
    with _LOCK:
        original, utils._compile_jinja_template = utils._compile_jinja_template, _compile_bounded
        try:
            yield
        finally:
            utils._compile_jinja_template = original
