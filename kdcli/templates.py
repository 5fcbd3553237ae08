"""Jinja templates from a file of the user's: they reach nothing but what they are given, and one that never ends is stopped."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from kdcli.errors import ConfigError

STEPS = 200_000
"""What one rendering may do: iterations of loops, calls and filters, and thousands of characters that they give."""
LARGEST = 1_000_000
"""Characters of a text, items of a list, or a width."""
PRODUCT = 100 * LARGEST
"""Of the lengths of two operands, as `replace` and `join` may multiply them."""
BITS = 10_000
"""Of an integer."""
WIDENS = {"center", "ljust", "rjust", "zfill", "expandtabs", "indent", "batch", "slice"}
"""Methods and filters that make a text or a list as long as a number says."""
_WIDE = re.compile(r"\d{6}|%[^a-zA-Z%]*\*")
"""A width in a format, or one that is an argument."""


class _Counted(NodeTransformer):
    """Has the iterations of loops counted, and what `~` joins measured."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        if node.recursive:
            raise SecurityError("a recursive loop is not supported")
        node.iter = nodes.Filter(node.iter, "counted", [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return nodes.Filter(node, "measured", [], [], None, None, lineno=node.lineno)


class _Bounded(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with a limit to the work and to the size of what is made."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        self.spent = 0
        self.globals.pop("lipsum")
        self.filters = {name: self._limited(name, made) for name, made in self.filters.items()}
        self.filters |= {"counted": self._count, "measured": self._measured}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Counted().visit(super()._parse(source, name, filename))
        return tree

    def _spend(self, steps: int) -> None:
        self.spent += steps
        if self.spent > STEPS:
            raise SecurityError("it does not come to an end, or writes too much")

    def _count(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._spend(1)
            yield item

    def _measured(self, made: Any) -> Any:
        size = len(made) if isinstance(made, str | list | tuple | dict) else 0
        if size > LARGEST:
            raise SecurityError(f"it makes a value of more than {LARGEST:,} characters")
        self._spend(1 + size // 1000)
        return made

    def _require_small(self, name: str, operands: Iterable[Any]) -> None:
        operands = list(operands)
        sizes = sorted(len(each) for each in operands if isinstance(each, str | list | tuple))
        numbers = [each for each in operands if isinstance(each, int)]
        wide = name in WIDENS and any(abs(number) > LARGEST // 10 for number in numbers)
        if wide or (len(sizes) > 1 and sizes[-1] * sizes[-2] > PRODUCT):
            raise SecurityError(f"{name} makes a value of more than {LARGEST:,} characters")
        if name in ("format", "format_map") and any(
            _WIDE.search(each)
            or (isinstance(each, str) and "{" in each and any(n > LARGEST for n in numbers))
            for each in operands[:1]
            if isinstance(each, str)
        ):
            raise SecurityError("a format has a width of six digits or more, or one that is an argument")

    def _limited(self, name: str, made: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(made)
        def limited(*arguments: Any, **named: Any) -> Any:
            self._require_small(name, [*arguments, *named.values()])
            return self._measured(made(*arguments, **named))

        return limited

    def call(__self, __context: Any, __obj: Any, *arguments: Any, **named: Any) -> Any:  # noqa: N805
        inner = getattr(__obj, "__wrapped__", __obj)
        owner = getattr(inner, "__self__", None)
        __self._require_small(getattr(inner, "__name__", ""), [owner, *arguments, *named.values()])
        __self._spend(1)
        return __self._measured(super().call(__context, __obj, *arguments, **named))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operator, unless its result would be too large."""
        numbers = [each for each in (left, right) if isinstance(each, int)]
        texts = [each for each in (left, right) if isinstance(each, str | list | tuple)]
        if operator == "%" and isinstance(left, str) and _WIDE.search(left):
            raise SecurityError("a format has a width of six digits or more, or one that is an argument")
        if operator == "*" and texts and numbers and math.prod([len(texts[0]), *numbers]) > LARGEST:
            raise SecurityError(f"* makes a value of more than {LARGEST:,} characters")
        if len(numbers) == 2 and operator in ("*", "**"):
            bits = left.bit_length() * (right if operator == "**" else 1) + (
                right.bit_length() if operator == "*" else 0
            )
            if bits > BITS:
                raise SecurityError(f"{operator} makes a number of more than {BITS:,} bits")
        return self._measured(super().call_binop(context, operator, left, right))


class Template:
    """A template in a file.

    Raises:
        ConfigError: it is no Jinja.
    """

    def __init__(self, path: Path):
        self.path, self.environment = path, _Bounded()
        try:
            self.template = self.environment.from_string(path.read_text(encoding="utf-8"))
        except Exception as error:  # Jinja's own errors, those of Python's compiler, and of the file
            raise ConfigError(f"the prompt {path} cannot be read: {error}") from None

    def render(self, given: Mapping[str, Any]) -> str:
        """The text for some values.

        Raises:
            ConfigError: it cannot be rendered with them, or does not come to an end.
        """
        self.environment.spent = 0
        parts: list[str] = []
        try:
            for part in self.template.generate(given):
                parts.append(self.environment._measured(part))
        except Exception as error:  # whatever an expression of the template raises
            said = str(error) or type(error).__name__
            raise ConfigError(f"the prompt {self.path}: {said} (known: {', '.join(sorted(given))})") from None
        return "".join(parts)
