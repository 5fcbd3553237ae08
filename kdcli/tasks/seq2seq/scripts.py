"""Determines the scripts of texts and of languages."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from typing import Any

SIDES = ("source", "target")
"""The columns of a pair."""
OWN = 0.2
"""The least share of the letters of a column for a script to belong to it. Japanese has two scripts, and so has Serbian in some texts."""
ENOUGH = 5000
"""The number of rows from which the scripts of a column are determined."""
SEVERAL = frozenset(
    ["bal", "bs", "ff", "ha", "kaa", "kok", "ks", "kxv", "mni", "pa", "sat", "sd", "shi", "sr", "uz", "vai"]
)
"""Languages that are written in several scripts: their code names the script, or the script is not checked."""
_SCRIPTS = {
    "Latn": "Latin", "Cyrl": "Cyrillic", "Grek": "Greek", "Arab": "Arabic", "Hebr": "Hebrew", "Deva": "Devanagari", "Hans": "Han",
    "Hant": "Han", "Hani": "Han", "Jpan": "Kana", "Kore": "Hangul", "Hang": "Hangul", "Beng": "Bengali", "Gujr": "Gujarati",
    "Guru": "Gurmukhi", "Orya": "Oriya", "Taml": "Tamil", "Telu": "Telugu", "Knda": "Kannada", "Mlym": "Malayalam", "Sinh": "Sinhala",
    "Thai": "Thai", "Laoo": "Lao", "Khmr": "Khmer", "Mymr": "Myanmar", "Tibt": "Tibetan", "Geor": "Georgian", "Armn": "Armenian",
    "Ethi": "Ethiopic",
}  # fmt: skip
_WORD = re.compile(r"[a-z]+|[^\W\d_a-z]+")
"""A run of lower-case letters; Latin ones can occur in Chinese without a space."""
_MARKUP = re.compile(r"%(\([^)]*\))?[a-z]|\{[^}]*\}|<[^>]*>")
"""Placeholders and tags."""


def script_of(code: str) -> str | None:
    """Return the script of a language code (ru, ru_RU, rus_Cyrl, sr-Latn); None if it is unknown."""
    language, *rest = re.split(r"[_-]", code)
    named = [_SCRIPTS[part.capitalize()] for part in rest if part.capitalize() in _SCRIPTS]
    return named[0] if named else _likely_script(language.lower())


@functools.cache
def _likely_script(language: str) -> str | None:
    """Return the script of a language by the likely subtags of Unicode's CLDR (https://www.unicode.org/reports/tr35/#Likely_Subtags)."""
    from babel.core import get_global

    language = get_global("language_aliases").get(language, language).partition("_")[0]
    if language in SEVERAL:
        return None
    subtags = str(get_global("likely_subtags").get(language, "")).split("_")
    return _SCRIPTS.get(subtags[1]) if len(subtags) > 1 else None


@functools.cache
def _script(letter: str) -> str:
    """Return a letter's script, by its name in Unicode: Latin, Cyrillic, Han, Kana …"""
    first = re.split("[ -]", unicodedata.name(unicodedata.normalize("NFKC", letter)[0], ""))[0]
    grouped = {"CJK": "Han", "IDEOGRAPHIC": "Han", "HIRAGANA": "Kana", "KATAKANA": "Kana"}
    return grouped.get(first, first.capitalize())


def _letters(text: str, other: str = "") -> str:
    """Return the letters of one side of a pair, without markup and without the words that the other side has as well, because names belong to no
    language."""
    words, others = (_WORD.findall(_MARKUP.sub(" ", side).casefold()) for side in (text, other))
    shared = set(others)
    return "".join(word for word in words if word not in shared)


def _scripts(letters: Mapping[str, int]) -> Counter[str]:
    """Return the number of letters of each script."""
    scripts: Counter[str] = Counter()
    for letter, count in letters.items():
        scripts[_script(letter)] += count
    return scripts


def fits(script: str | None, side: Side) -> bool:
    return script is None or not side.own or script in side.own


class Side:
    """One side of pairs, and its scripts.

    Attributes:
        name: source or target.
        own: its scripts, the most frequent first.
    """

    def __init__(self, name: str, rows: list[dict[str, Any]]):
        self.name = name
        self.other = SIDES[1 - SIDES.index(name)]
        letters: Counter[str] = Counter()
        for row in rows[:ENOUGH]:  # the rows are shuffled
            letters.update(_letters(row[name], row[self.other]))
        scripts = _scripts(letters)
        self.own = [script for script, count in scripts.most_common() if count >= OWN * scripts.total()]

    def strange(self, row: dict[str, Any]) -> bool:
        """Return whether all letters of a row are in other scripts, or most of those that its other side does not have."""
        text = row[self.name]
        if not self.own or all(
            not character.isalpha() or _script(character) in self.own for character in set(text)
        ):
            return False
        every, rest = (_scripts(Counter(_letters(text, other))) for other in ("", row[self.other]))
        return bool(every) and (not self._of(every) or 2 * self._of(rest) < rest.total())

    def _of(self, scripts: Counter[str]) -> int:
        return sum(scripts[script] for script in self.own)
