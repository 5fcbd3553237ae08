"""Guesses the encoding of a text file from its bytes.

charset_normalizer was tested on sentences in the encodings below: it confuses Western with Central European code pages, and Japanese with
Korean ones. This module compares fewer encodings, by the characters of texts in their languages.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from dataclasses import dataclass

MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""The byte order marks, with the encodings that skip them. The mark of UTF-32 begins with that of UTF-16."""
SAMPLE = 2**16
"""The number of bytes of lines outside of ASCII that are compared."""
EXPECTED = 0.6
"""The least share of usual characters among those outside of ASCII, for a guess."""
KANA = 0.15
"""The least share of kana in Japanese text: Chinese text and Western quotes decode to kanji as well."""
_MARKS_OF_TEXT = "‘’‚“”„–—…€£§°·•«»‹›¿¡©®™\xa0"
_LATIN = "äöüßàâáãåæçéèêëíìîïñóòôõøœúùûÿžš"
_CENTRAL = "áâăäąćčçďđéęěíîľłńňóôőöřśšşťúůűüýźžżß"
_FINAL = "ךםןףץ"
"""The Hebrew letters that only end a word."""
_CYRILLIC = re.compile("[\u0401-\u045f\u0490\u0491№]")


@dataclass(frozen=True)
class Guess:
    """An encoding, and a word of the file that shows it.

    Attributes:
        certain: whether a byte order mark or the bytes themselves prove it; false: it is only likely.
    """

    encoding: str
    certain: bool = True
    example: str = ""


def _letters(letters: str) -> Callable[[str], bool]:
    return set(letters + letters.upper() + _MARKS_OF_TEXT).__contains__


def _between(first: str, last: str) -> Callable[[str], bool]:
    return lambda character: first <= character <= last or character in _MARKS_OF_TEXT


def _lead(encoding: str, first: int, last: int) -> Callable[[str], bool]:
    """Return characters of which the first byte in a double-byte encoding is in a range: its table begins with the common ones."""

    def usual(character: str) -> bool:
        try:
            code = character.encode(encoding)
        except UnicodeEncodeError:
            return False
        return first <= code[0] <= last or character in "、。，！？：；「」『』（）《》…—"

    return usual


def _is_kana(character: str) -> bool:
    return "\u3041" <= character <= "\u30fc"


_CANDIDATES: dict[str, Callable[[str], bool]] = {
    "cp932": lambda character: _is_kana(character) or _lead("shift_jis", 0x81, 0x98)(character),
    "euc_jp": lambda character: _is_kana(character) or _lead("euc_jp", 0xA1, 0xCF)(character),
    "cp949": _lead("euc_kr", 0xB0, 0xC8),
    "gb18030": _lead("gb2312", 0xB0, 0xD7),
    "big5": _lead("big5", 0xA4, 0xC6),
    "cp1252": _letters(_LATIN),
    "cp1255": _between("\u05d0", "\u05ea"),
    "cp1251": lambda character: bool(_CYRILLIC.match(character)) or character in _MARKS_OF_TEXT,
    "koi8_r": lambda character: bool(_CYRILLIC.match(character)),
    "cp1250": _letters(_CENTRAL),
    "iso8859_2": _letters(_CENTRAL),
    "cp1254": _letters("çğıiöşüâîû"),
    "cp1253": _between("\u0386", "\u03ce"),
    "cp1256": _between("\u060c", "\u0652"),
    "cp874": _between("\u0e01", "\u0e5b"),
    "cp1257": _letters("āčēģīķļņšūžąęėįųõäöü"),
    "cp866": lambda character: bool(_CYRILLIC.match(character)),
    "iso8859_5": lambda character: bool(_CYRILLIC.match(character)),
    "mac_roman": _letters(_LATIN),
    "cp850": _letters(_LATIN),
}
"""Encodings, the more common ones first among those whose texts look alike, with the characters that are usual in them."""

_LATIN_SCRIPT = {"cp1252", "cp1250", "iso8859_2", "cp1254", "cp1257", "mac_roman", "cp850"}
_RUN = re.compile(r"(?<![A-Za-z])[^\x00-\x7f]{3,}(?![A-Za-z])")
_OUTSIDE = re.compile(r"(?=(?P<character>[^\x00-\x7f])(?P<after>.)?)(?<=(?P<before>.))?", re.DOTALL)


def mark_of(head: bytes) -> str | None:
    """Return the encoding that a byte order mark at the beginning of a file tells."""
    return next((encoding for mark, encoding in MARKS.items() if head.startswith(mark)), None)


def without_mark(head: bytes) -> str | None:
    """Recognize UTF-16 or UTF-32 without a byte order mark, by the places of the zero bytes of its ASCII characters."""
    if len(head) < 8 or b"\0" not in head:
        return None
    quarters = [head[index : len(head) // 4 * 4 : 4].count(0) / (len(head) // 4) for index in range(4)]
    if min(quarters) > 0.5:  # a hole
        return None
    for encoding, zeros in (("utf-32-le", (1, 2, 3)), ("utf-32-be", (0, 1, 2))):
        if all(quarters[index] > 0.9 for index in zeros):
            return encoding
    even, odd = (quarters[0] + quarters[2]) / 2, (quarters[1] + quarters[3]) / 2
    for encoding, most, fewest in (("utf-16-le", odd, even), ("utf-16-be", even, odd)):
        if most > 0.05 and fewest < most / 10:
            return encoding
    return None


def is_damaged_utf8(sample: bytes) -> bool:
    """Return whether text that does not decode is UTF-8 all the same: it has more characters of several bytes than wrong bytes, or only its last
    character is cut off."""
    text = sample.decode("utf-8", "surrogateescape")
    wrong = len(re.findall("[\udc80-\udcff]", text))
    right = len(re.findall("[^\0-\x7f\udc80-\udcff]", text))
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)
        return True
    except UnicodeDecodeError:
        return right >= wrong


def guessed(sample: bytes) -> Guess | None:
    """Return the most likely encoding of text that is not UTF-8; None: no encoding makes usual text of it."""
    best, score = None, EXPECTED
    for encoding, is_usual in _CANDIDATES.items():
        try:
            text = sample.decode(encoding)
        except UnicodeDecodeError:
            continue
        if (own := _usual_share(text, encoding, is_usual)) > score:
            best, score = Guess(encoding, False, _example(text)), own
    return best


def _usual_share(text: str, encoding: str, is_usual: Callable[[str], bool]) -> float:
    """Return the share of the characters outside of ASCII that are usual.

    A character is unusual where no text has it: a capital after a small letter, a low quote or a sign within a word, a final letter before another letter, letters of two scripts in
    one word, or a Latin word in which all letters have accents.
    """
    others = list(_OUTSIDE.finditer(text))
    if not others:
        return 0.0
    if encoding in ("cp932", "euc_jp") and sum(map(_is_kana, map(_character, others))) < KANA * len(others):
        return 0.0
    long_runs = {index for run in _RUN.finditer(text) for index in range(*run.span())}
    usual = 0
    for match in others:
        before, after, character = match["before"] or " ", match["after"] or " ", _character(match)
        if character.isalpha():
            ascii_letters = [each for each in (before, after) if each.isascii() and each.isalpha()]
            in_run = match.start() in long_runs
            strange = in_run if encoding in _LATIN_SCRIPT else bool(ascii_letters)
            strange |= character.isupper() and before.islower()
            strange |= character in _FINAL and after.isalpha()
        else:
            within = before.isalpha() and after.isalpha() and character not in "’‘–—…·"
            strange = within or (character in "‚„" and before.isalpha())
        usual += is_usual(character) and not strange
    return usual / len(others)


def _character(match: re.Match[str]) -> str:
    return match["character"]


def _example(text: str) -> str:
    """Return a short piece of text around the first character outside of ASCII."""
    match = re.search(r"[^\s,;|\"]{0,15}[^\x00-\x7f][^\s,;|\"]{0,15}", text)
    return match[0] if match else ""
