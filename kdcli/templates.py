"""Renders Jinja templates of users and of models in a sandbox: they access only their variables, and their work is limited."""

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
"""The work of one rendering at most: iterations of loops, calls and filters, and thousands of characters that these return."""
LARGEST = 1_000_000
"""The maximum of characters of a text, of items of a list, and of a width."""
PRODUCT = 100 * LARGEST
"""The maximum product of the lengths of two operands, which `replace` and `join` may multiply."""
BITS = 10_000
"""The maximum of bits of an integer."""
WIDENS = {"center", "ljust", "rjust", "zfill", "expandtabs", "indent", "batch", "slice"}
"""Methods and filters whose result has a length that is given as a number."""
_WIDE = re.compile(r"\d{6}|%[^a-zA-Z%]*\*")
"""A width of six digits or more in a format, or one that is an argument."""


class _Counted(NodeTransformer):
    """Inserts the counting of loop iterations and the measuring of the results of `~`."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        if node.recursive:
            raise SecurityError("a recursive loop is not supported")
        node.iter = nodes.Filter(node.iter, "counted", [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return nodes.Filter(node, "measured", [], [], None, None, lineno=node.lineno)


class Bounded(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with limits of the work and of the size of results."""

    steps, largest = STEPS, LARGEST
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, **options: Any) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, **options)
        self.spent = 0
        self.globals.pop("lipsum")
        self.filters = {name: self._limited(name, function) for name, function in self.filters.items()}
        self.filters |= {"counted": self._count, "measured": self._measured}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Counted().visit(super()._parse(source, name, filename))
        return tree

    def _spend(self, steps: int) -> None:
        self.spent += steps
        if self.spent > self.steps:
            raise SecurityError("it does not end, or writes too much")

    def _count(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._spend(1)
            yield item

    def _measured(self, value: Any) -> Any:
        size = len(value) if isinstance(value, str | list | tuple | dict) else 0
        if size > self.largest:
            raise SecurityError(f"it makes a value of more than {self.largest:,} characters")
        self._spend(1 + size // 1000)
        return value

    def _require_small(self, name: str, operands: Iterable[Any]) -> None:
        operands = list(operands)
        sizes = sorted(len(operand) for operand in operands if isinstance(operand, str | list | tuple))
        numbers = [operand for operand in operands if isinstance(operand, int)]
        wide = name in WIDENS and any(abs(number) > self.largest // 10 for number in numbers)
        if wide or (len(sizes) > 1 and sizes[-1] * sizes[-2] > PRODUCT):
            raise SecurityError(f"{name} makes a value of more than {self.largest:,} characters")
        if name in ("format", "format_map") and any(
            _WIDE.search(operand)
            or (isinstance(operand, str) and "{" in operand and any(n > self.largest for n in numbers))
            for operand in operands[:1]
            if isinstance(operand, str)
        ):
            raise SecurityError("a format has a width of six digits or more, or one that is an argument")

    def _limited(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def limited(*args: Any, **kwargs: Any) -> Any:
            self._require_small(name, [*args, *kwargs.values()])
            return self._measured(function(*args, **kwargs))

        return limited

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        inner = getattr(__obj, "__wrapped__", __obj)
        owner = getattr(inner, "__self__", None)
        __self._require_small(getattr(inner, "__name__", ""), [owner, *args, *kwargs.values()])
        __self._spend(1)
        return __self._measured(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Apply an operator, unless its result would be too large."""
        operands = (left, right)
        numbers = [operand for operand in operands if isinstance(operand, int)]
        texts = [operand for operand in operands if isinstance(operand, str | list | tuple)]
        if operator == "%" and isinstance(left, str) and _WIDE.search(left):
            raise SecurityError("a format has a width of six digits or more, or one that is an argument")
        if operator == "*" and texts and numbers and math.prod([len(texts[0]), *numbers]) > self.largest:
            raise SecurityError(f"* makes a value of more than {self.largest:,} characters")
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
        ConfigError: it is not valid Jinja.
    """

    def __init__(self, path: Path):
        self.path, self.environment = path, Bounded(undefined=jinja2.StrictUndefined)
        try:
            self.template = self.environment.from_string(path.read_text(encoding="utf-8"))
        except Exception as error:  # errors of Jinja, of Python's compiler, and of the file
            raise ConfigError(f"the prompt {path} cannot be read: {error}; correct it") from None

    def render(self, given: Mapping[str, Any]) -> str:
        """Return the text with the values of the template's variables.

        Raises:
            ConfigError: it cannot be rendered with them, or exceeds a limit.
        """
        self.environment.spent = 0
        parts: list[str] = []
        try:
            for part in self.template.generate(given):
                parts.append(self.environment._measured(part))
        except Exception as error:  # an expression of the template may raise anything
            message = str(error) or type(error).__name__
            raise ConfigError(
                f"the prompt {self.path}: {message} (known: {', '.join(sorted(given))}); correct it there"
            ) from None
        return "".join(parts)
