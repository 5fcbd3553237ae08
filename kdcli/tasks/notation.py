"""Decodes values that a file or a table holds as text: in JSON, or in Python's own notation, in which pandas writes lists into csv."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections import Counter
from typing import Any

from kdcli.errors import shown

LONGEST = 2**20
"""The maximum number of characters of a text that is read as Python's notation: its syntax tree takes a hundred times the memory."""
_STRING = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")
_NUMBERS = re.compile(r"\[\s*([-+]?[\d.]\S*(?:\s+[-+]?[\d.]\S*)+)\s*\]")
"""Numbers of numpy, without commas."""
_ARRAY = re.compile(
    r"(?:array|tensor)\((?P<value>.*?)\s*(?:,\s*(?:dtype|device|grad_fn|requires_grad)=.*)?\)", re.DOTALL
)
"""What numpy and torch print for an array that is an element of a list or of a table."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; a key that stands there twice is an error, since its first value would be lost."""
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = Counter(key for key, _ in pairs)
        raise ValueError(f"the key {shown(keys.most_common(1)[0][0])} stands there twice")
    return row


_decode = json.JSONDecoder(object_pairs_hook=_unique).decode


def decode_json(text: str) -> Any:
    """Return what a text in JSON holds.

    Raises:
        ValueError: it is not JSON, is nested too deeply, holds a number of thousands of digits or a key twice.
    """
    try:
        return _decode(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{error}; is the file truncated?") from None


def decode_python(text: str) -> Any:
    """Return what a text in Python's notation, or in numpy's or torch's (['O' 'B-PER'], [0 3], [0.1 0.9], tensor([0, 3])), holds.

    Raises:
        ValueError: it is none, or has more than `LONGEST` characters.
    """
    if len(text) > LONGEST:
        raise ValueError("it is too long")
    text = text.strip()
    if array := _ARRAY.fullmatch(text):
        text = array["value"].strip()
    if text.startswith("[") and text.endswith("]"):
        strings = _STRING.findall(text)
        if len(strings) > 1 and not _STRING.sub("", text)[1:-1].strip():
            return [string[1:-1] for string in strings]
        if "," not in text and (numbers := _NUMBERS.fullmatch(text)):
            return [int(each) if each.lstrip("+-").isdigit() else float(each) for each in numbers[1].split()]
    with warnings.catch_warnings(action="ignore"):  # of escapes in texts that are none of Python's
        try:
            return ast.literal_eval(text)
        except (SyntaxError, TypeError, RecursionError, MemoryError) as error:
            raise ValueError(f"it is not Python's notation ({error})") from None


def decode_notation(text: str) -> Any:
    """Return what a text in JSON or in Python's notation holds.

    Raises:
        ValueError: it is none of both.
    """
    try:
        return decode_json(text)
    except ValueError:
        return decode_python(text)
