"""Converts texts with spans of characters (doccano, Label Studio, Prodigy, spaCy) to words with tags, and reads lists that a table holds as text."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kdcli.errors import DataError, shown
from kdcli.tasks.notation import decode_notation

START = (
    "start",
    "startoffset",
    "startchar",
    "charstart",
    "startposition",
    "startindex",
    "begin",
    "beginoffset",
    "offset",
)
END = "end", "endoffset", "endchar", "charend", "endposition", "endindex", "exclusiveend", "stop"
TYPE = "label", "labels", "type", "tag", "entitytype", "entitygroup", "entity", "class", "category"
"""The keys of a span in the exports of labelling tools, and of the pipelines of transformers, in lower case and without _."""
LISTS = "entities", "spans", "result", "annotations"
"""The keys of lists of spans."""
CUTS = "spans begin or end inside of a word, which is then tagged entirely"
SPANS = "spans"
COUNTS = {
    "count bytes of UTF-8": lambda text, start, end: (_before(text, start, "utf-8"), _before(text, end, "utf-8")),
    "count units of UTF-16": lambda text, start, end: (_before(text, start, "utf-16-le"), _before(text, end, "utf-16-le")),
    "count from 1": lambda text, start, end: (start - 1, end - 1),
}  # fmt: skip
"""The other ways to count the places of a span, each with a function that returns the characters from and to which a span of a text goes. (An inclusive
end is none: the words that it cuts are the right ones.)"""
SECOND = "texts have the labels of several annotators, of which the first ones are read"


@dataclass(frozen=True)
class Span:
    """Characters `start` to `end` (exclusive) of a text, and their type."""

    start: int
    end: int
    type: str


def literal(value: Any) -> Any:
    """Return the list or mapping that a text is, as JSON, Python or numpy write one; any other value unchanged."""
    if not isinstance(value, str) or value.strip()[:1] not in ("[", "{", "("):
        return value
    try:
        decoded = decode_notation(value.strip())
    except ValueError:
        return value
    return (
        list(decoded)
        if isinstance(decoded, tuple)
        else decoded
        if isinstance(decoded, list | dict)
        else value
    )


def holds_spans(tags: Any) -> bool:
    """Return whether a value has spans, not one tag a word."""
    if isinstance(tags, dict):
        return True
    return (
        isinstance(tags, list)
        and bool(tags)
        and all(isinstance(tag, dict) or _has_places(tag) for tag in tags)
    )


def looks_like_span(value: Any) -> bool:
    """Return whether a value is a span of characters, or holds some, as labelling tools write them."""
    if isinstance(value, dict):
        inner = (value[key] for key in ("points", *LISTS) if key in value)
        return _first(value, START) is not None or any(isinstance(each, list | dict) for each in inner)
    return _has_places(value)


def contains_spans(value: Any) -> bool:
    """Return whether a value contains spans of characters with their types, as labelling tools export them."""
    value = literal(value)
    if not holds_spans(value):
        return False
    try:
        return bool(list(_spans(value, "", "", Counter())))
    except (DataError, TypeError):
        return False


def _has_places(tag: Any) -> bool:
    return isinstance(tag, list | tuple) and len(tag) > 1 and any(isinstance(each, int) for each in tag)


def words_of(text: str) -> list[tuple[int, int]]:
    """Return where the words of a text start and end: runs of letters, digits, marks and _, and each other character by itself. Characters of scripts
    without spaces between words (Chinese, Japanese) are words of their own."""
    words: list[tuple[int, int]] = []
    running = False
    for index, char in enumerate(text):
        if char.isspace():
            running = False
            continue
        runs = char == "_" or unicodedata.category(char)[0] in "LNM"
        alone = (
            not runs or "\u2e80" <= char <= "\u9fff" or "\uf900" <= char <= "\ufaff" or char >= "\U00020000"
        )
        if running and (not alone or unicodedata.category(char)[0] == "M"):
            words[-1] = words[-1][0], index + 1
        else:
            words.append((index, index + 1))
        running = not alone
    return words


def tokens_of(words: Sequence[Any]) -> tuple[list[str], list[tuple[int, int]]] | None:
    """Return the words of a list of {text, start, end}, and where they start and end; None: it is none."""
    tokens = [
        (word["text"], (start, end))
        for word in words
        if isinstance(word, dict)
        and isinstance(word.get("text"), str)
        and isinstance(start := _first(word, START), int)
        and isinstance(end := _first(word, END), int)
    ]
    return (
        None if len(tokens) < len(words) else ([text for text, _ in tokens], [index for _, index in tokens])
    )


def tagged(
    bounds: Sequence[tuple[int, int]], text: str, spans: Any, where: str, notes: Counter[str]
) -> list[str]:
    """Return the tag of each word: B-TYPE and I-TYPE of the words that a span touches, else O.

    Args:
        bounds: where the words start and end in the text.
        text: the text, or "" if only its words are known.
        spans: as a labelling tool exports them.
        notes: counts the decisions, by their description.

    Raises:
        DataError: a span cannot be read, or two overlap.
    """
    tags = ["O"] * len(bounds)
    last: Span | None = None
    for span in sorted(
        set(_spans(spans, text, where, notes)), key=lambda span: (span.start, span.end, span.type)
    ):
        if last is not None and span.start < last.end:
            raise DataError(
                f"{where}: the spans {_shown(last)} and {_shown(span)} overlap, and a word has one tag; remove one of them"
            )
        last = span
        inside = [word for word, (start, end) in enumerate(bounds) if start < span.end and end > span.start]
        notes[SPANS] += 1
        if any(bounds[word][0] < _skip(text, span) for word in inside[:1]) or any(
            bounds[word][1] > span.end for word in inside[-1:]
        ):
            notes[CUTS] += 1
            notes.update(
                way
                for way, places in COUNTS.items()
                if _are_words(bounds, *places(text, span.start, span.end))
            )
        free = [word for word in inside if tags[word] == "O"]
        for index, word in enumerate(free):
            tags[word] = f"{'I' if index else 'B'}-{span.type}"
    return tags


def _before(text: str, units: int, encoding: str) -> int:
    """Return the number of characters in so many bytes of UTF-8, or so many units of two bytes of UTF-16."""
    size = units if encoding == "utf-8" else 2 * units
    return len(text.encode(encoding, "surrogatepass")[:size].decode(encoding, "ignore"))


def _are_words(bounds: Sequence[tuple[int, int]], start: int, end: int) -> bool:
    """Return whether a word begins at one place, and one ends at the other."""
    return any(first == start for first, _ in bounds) and any(last == end for _, last in bounds)


def _skip(text: str, span: Span) -> int:
    """Return the first character of a span that is no white space."""
    inner = text[span.start : span.end]
    return span.start + len(inner) - len(inner.lstrip())


def _shown(span: Span) -> str:
    return f"[{span.start}, {span.end}, {shown(span.type)}]"


def _spans(spans: Any, text: str, where: str, notes: Counter[str]) -> Iterator[Span]:
    """Yield the spans of an export, flat."""
    while isinstance(spans, dict):
        lists = [value for key, value in spans.items() if key in LISTS and isinstance(value, list | dict)]
        if len(lists) != 1:
            raise _unreadable(spans, where)
        spans = lists[0]
    annotations = [span for span in spans if isinstance(span, dict) and isinstance(span.get("result"), list)]
    if annotations:  # of Label Studio: one for each annotator
        valid = [each for each in annotations if not each.get("was_cancelled")]
        notes[SECOND] += len(valid) > 1
        spans = valid[0]["result"] if valid else []
    for span in spans:
        value = span["value"] if isinstance(span, dict) and isinstance(span.get("value"), dict) else span
        if value is not span and _first(value, START) is None:
            continue  # a choice for the text, or a relation
        if isinstance(value, dict) and isinstance(value.get("points"), list):  # of Dataturks
            for point in value["points"]:
                yield _span({**value, **point} if isinstance(point, dict) else point, text, where)
        else:
            yield _span(value, text, where)


def _span(value: Any, text: str, where: str) -> Span:
    """Return a span from [start, end, type] in any order, or from a mapping.

    Raises:
        DataError: it is none, or does not lie in the text.
    """
    if isinstance(value, dict):
        start, end, kind = (_first(value, keys) for keys in (START, END, TYPE))
        if end is None and isinstance(start, int) and isinstance(value.get("length"), int):
            end = start + value["length"]
    elif isinstance(value, list | tuple) and len(value) == 3:
        numbers = [each for each in value if isinstance(each, int)]
        names = [each for each in value if not isinstance(each, int)]
        start, end, kind = (*numbers, *names) if len(numbers) == 2 else (None, None, None)
    else:
        raise _unreadable(value, where)
    if isinstance(kind, list) and len(kind) == 1:
        kind = kind[0]
    if isinstance(kind, int) and not isinstance(kind, bool):  # the id of a label
        kind = str(kind)
    if (
        not isinstance(start, int)
        or not isinstance(end, int)
        or not isinstance(kind, str)
        or not kind.strip()
    ):
        raise _unreadable(value, where)
    quoted = value.get("text") if isinstance(value, dict) else None
    if text and isinstance(quoted, str):
        start, end = _placed(start, end, quoted, text, where)
    if start < 0 or end <= start or (text and end > len(text)):
        of = f" of a text of {len(text)} characters" if text else ""
        raise DataError(
            f"{where}: the span [{start}, {end}, {shown(kind)}]{of} does not lie in it; write places that count characters from 0, with an exclusive end"
        )
    return Span(start, end, kind.strip())


def _placed(start: int, end: int, quoted: str, text: str, where: str) -> tuple[int, int]:
    """Return where a span lies that quotes its text: its end may be inclusive, or its places may count UTF-16 units, as JavaScript does."""
    before, upto = (_before(text, place, "utf-16-le") for place in (start, end))
    for first, last in ((start, end), (start, end + 1), (before, upto)):
        if 0 <= first < last and text[first:last].strip() == quoted.strip():
            return first, last
    raise DataError(
        f"{where}: the span [{start}, {end}] quotes {shown(quoted)}, and the text has {shown(text[max(0, start) : end])} there; are the "
        "spans those of this text?"
    )


def _first(value: dict[str, Any], keys: Sequence[str]) -> Any:
    named = {str(key).replace("_", "").casefold(): each for key, each in value.items() if each is not None}
    return next((named[key] for key in keys if key in named), None)


def _unreadable(value: Any, where: str) -> DataError:
    return DataError(
        f"{where}: {shown(value)} is no span; expected [start, end, type], or a mapping of start, end and label, in characters of the text"
    )
