"""Defines the errors that a user sees, with the exit code of each. Messages are bounded and free of secrets.

KDError                the job failed                                     FAILED (1)
├── ConfigError        the config or the command line is wrong            REFUSED (2)
├── DataError          the data cannot be used                            REFUSED (2)
├── ModelError         a checkpoint cannot be found or used               REFUSED (2)
├── TeacherError       the teacher does not fit this student or task      REFUSED (2)
├── ExportError        an artifact could not be written or run            REFUSED (2)
├── StorageError       a file system takes no more                        FAILED (1)
├── EndpointError      a remote teacher gives no more answers             FAILED (1)
└── PeerError          another process of the run has ended               FAILED (1)

A message says what was expected, what came, and what to do.
"""

from __future__ import annotations

import difflib
import os
import re
import reprlib
from collections.abc import Iterable
from enum import IntEnum
from itertools import islice
from typing import Any

VALUE = 300
"""The most characters of one value in a message."""
LIST = 800
"""The most characters of a list in a message."""
LINE = 2000
"""The most characters of one line of a message."""
MESSAGE = 5500
"""The most characters of a message."""
WINDOW = 20_000
"""Characters at both ends of a long text that are searched for secrets; fewer than half of them are shown."""
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
SECRET = re.compile(
    r"""(?:(?<![A-Za-z0-9_-])|(?<=\A--)|(?<=[\s'"]--))(?:                                            # not inside a word; as an option
        sk-(?:ant|proj|svcacct|or|live|test)[A-Za-z0-9_-]{12,} | sk-[A-Za-z0-9]{16,}          # OpenAI, Anthropic and others like them
      | (?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{12,}
      | (?:hf|ghp|gho|ghu|ghs|ghr|gsk|npm|r8|pypi)_[A-Za-z0-9]{16,} | github_pat_\w{16,} | glpat-[\w-]{16,} | nvapi-[\w-]{16,}
      | xox[abeoprs]-[A-Za-z0-9-]{10,} | (?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9]) | AIza[\w-]{30,}
      | eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]*                                               # a JSON web token
    )
    | (?i:\b(?:bearer|basic)\s+)[\w.~+/=-]{12,}
    | -----BEGIN[ A-Z]*PRIVATE\ KEY-----.*""",
    re.VERBOSE | re.DOTALL,
)
"""The pattern of API keys, by the prefixes of their issuers."""
_IN_ADDRESS = re.compile(
    r"""(?P<before>\b[a-z][a-z0-9+.-]{0,20}://)[^/?\#\s@'"]*@                                        # USER:PASSWORD@
      | (?P<query>[?&][\w-]*(?:key|token|secret|passw(?:or)?d|sig|signature)=)[^&\#\s'"]+""",
    re.VERBOSE | re.IGNORECASE,
)
_SENSITIVE = r"(?:api[-_]?key|authorization|passw(?:or)?d|secret|(?:access|auth)[-_]?token)"
_ASSIGNED = re.compile(
    rf"""(?P<name>(?:{_SENSITIVE}["']*\s*=|(?<![\w.-])(?:[\w-]*[-_])?{_SENSITIVE}["']*:)\s*["']?)[^\s"',}}\]]+""",
    re.IGNORECASE,
)
HIDDEN = "<secret>"
"""The replacement of a secret in a message."""
SHORTEST = 4
"""The fewest characters of an environment variable's value that messages hide."""
SHORTEST_OF_RESULT = 8
"""The fewest characters of such a value that results hide: a shorter one may be a word of the result itself."""
_from_environment: dict[str, str] = {}


def looks_secret(text: str) -> bool:
    """Return whether a text contains an API key, or an address with a password or key."""
    return bool(SECRET.search(text) or _IN_ADDRESS.search(text))


def hide(value: str, instead: str) -> None:
    """Replace a value of an environment variable in all messages from now on."""
    for form in (value, repr(value)[1:-1], os.path.normpath(value), os.path.expanduser(value)):
        if len(form) >= SHORTEST:
            _from_environment[form] = instead


def hide_nothing() -> None:
    """Clear the replacements of `hide`."""
    _from_environment.clear()


def redacted(text: str) -> str:
    """Remove keys, passwords and values of environment variables from a text for a message."""
    for value in sorted(_from_environment, key=len, reverse=True):
        text = text.replace(value, _from_environment[value])
    text = SECRET.sub(HIDDEN, text)
    text = _IN_ADDRESS.sub(
        lambda match: f"{match['before'] or match['query']}{HIDDEN}{'@' if match['before'] else ''}", text
    )
    return _ASSIGNED.sub(lambda match: match["name"] + HIDDEN, text)


def without_environment(text: str) -> str:
    """Remove values of environment variables from a result. A number and the name of a JSON key are kept, so that JSON remains valid."""
    for value in sorted(_from_environment, key=len, reverse=True):
        if len(value) >= SHORTEST_OF_RESULT and not re.fullmatch(r"[-+.\deE]+", value):
            hidden = _from_environment[value].replace("\\", r"\\")  # as a template of re.sub
            text = re.sub(re.escape(value) + r'(?!\w*":)', hidden, text)
    return text


class _Short(reprlib.Repr):
    """A `repr` of the first items and levels."""

    def repr_str(self, value: str, level: int) -> str:
        """Remove secrets before the text is cut, as its parts cannot be recognized."""
        return super().repr_str(abbreviated(value, len(value) + WINDOW), level)

    def repr_dict(self, value: dict[Any, Any], level: int) -> str:
        """Show the items in their own order."""
        if level <= 0:
            return "{...}"
        items = [
            f"{self.repr1(key, level - 1)}: {self.repr1(value[key], level - 1)}"
            for key in islice(value, self.maxdict)
        ]
        return f"{{{', '.join([*items, *['...'] * (len(value) > self.maxdict)])}}}"


_REPR = _Short()
_REPR.maxlevel, _REPR.maxlist, _REPR.maxtuple, _REPR.maxdict, _REPR.maxset = 4, 10, 10, 10, 10
_REPR.maxstring = _REPR.maxlong = _REPR.maxother = VALUE


def printable(text: str) -> str:
    """Replace terminal escapes, other control characters, overrides of the writing direction and lone surrogates in a text.

    Each of these characters becomes its code, such as `\\u001b`, which is also its escape in JSON. Tabs and line breaks are kept.
    """
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def abbreviated(text: str, limit: int = VALUE) -> str:
    """Shorten a text to `limit` characters and remove secrets; the middle of a longer text is replaced by its number of characters."""
    cut = max(len(text) - 2 * WINDOW, 0)
    text = redacted(f"{text[:WINDOW]}{text[-WINDOW:]}" if cut else text)
    if len(text) <= limit and not cut:
        return text
    shown_length = max(limit - 40, 0)
    head, tail = text[: shown_length - shown_length // 3], text[len(text) - shown_length // 3 :]
    return f"{head} … ({cut + len(text) - len(head) - len(tail):,} characters omitted) … {tail}"


def shown(value: Any, limit: int = VALUE) -> str:
    """Return the abbreviated `repr` of a value for a message, with only the first items and levels of nested values."""
    try:
        return abbreviated(repr(value) if isinstance(value, str) else _REPR.repr(value), limit)
    except (RecursionError, ValueError):  # nested too deeply; an integer of thousands of digits
        return f"<{type(value).__name__} too large to show>"


def listed(values: Iterable[Any], limit: int = LIST) -> str:
    """Join names with commas for a message; names beyond `limit` characters are only counted."""
    values, remaining = list(values), limit
    names: list[str] = []
    for value in values:
        name = abbreviated(value if isinstance(value, str) else shown(value)).replace("\n", "\\n")
        remaining -= len(name) + 2
        if remaining < 0 and names:
            break
        names.append(name)
    return ", ".join(names) + (f" and {len(values) - len(names):,} more" if len(names) < len(values) else "")


def bounded(message: str) -> str:
    """Make a message printable, with lines of at most `LINE` characters and `MESSAGE` characters in total."""
    lines = abbreviated(message, WINDOW).split("\n")
    return abbreviated("\n".join(abbreviated(printable(line), LINE) for line in lines), MESSAGE)


class ExitCode(IntEnum):
    """The exit codes of commands."""

    DONE = 0
    """The command has done its work; of an export, every file keeps its tolerance and its budget."""
    FAILED = 1
    """The job failed after it began, or a file system accepts no more data."""
    REFUSED = 2
    """The config, the command line or the data was found wrong before any training, and nothing was overwritten."""
    MISSED = 3
    """The artifacts are there, but one misses its tolerance or budget, or could not be made or run."""
    HUNG_UP = 129
    """SIGHUP: the terminal was closed. A training saves a checkpoint first, and the same command continues it."""
    INTERRUPTED = 130
    """SIGINT (Ctrl-C). A training saves a checkpoint first, and the same command continues it; a second SIGINT ends it at once."""
    TERMINATED = 143
    """SIGTERM, as from a scheduler. A training saves a checkpoint first, and the same command continues it."""


class KDError(Exception):
    """A failure that is reported in one bounded message, without a traceback."""

    exit_code = ExitCode.FAILED

    def __init__(self, message: str):
        self.message = bounded(message)
        super().__init__(self.message)


class ConfigError(KDError):
    """The config or the command line is wrong."""

    exit_code = ExitCode.REFUSED


class DataError(KDError):
    """The data set is missing, unreadable, or does not hold what the task needs."""

    exit_code = ExitCode.REFUSED


class ModelError(KDError):
    """A checkpoint or tokenizer cannot be found, or its files do not fit together."""

    exit_code = ExitCode.REFUSED


class TeacherError(KDError):
    """The teacher does not fit the task, the student, or is no better than chance."""

    exit_code = ExitCode.REFUSED


class ExportError(KDError):
    """An artifact could not be written, or its own runtime could not run it."""

    exit_code = ExitCode.REFUSED


class StorageError(KDError):
    """A file system is full or does not allow writing; what was written before is kept."""


class EndpointError(KDError):
    """A remote teacher is unavailable for now, or its budget is used up; its answers so far are stored."""


LONGEST_NAME = 100
"""The most characters of a name for which a correction is suggested."""


MOST_ABBREVIATED = 20
"""The most characters of a name that is compared as an abbreviation."""


def nearest(word: str, names: Iterable[str]) -> str | None:
    """Return the known name that a word means: the only one that has the word between signs, the only one whose words it abbreviates (lr:
    learning_rate), or else the most similar one, if it is similar. Case does not matter, and very long names are not compared."""
    if len(word) > LONGEST_NAME:
        return None
    by_fold = {name.casefold(): name for name in names if len(name) <= LONGEST_NAME}
    folded = word.casefold()
    for close in (
        [fold for fold in by_fold if folded in re.split(r"[\W_]+", fold)],
        [fold for fold in by_fold if abbreviates(folded, fold)],
        difflib.get_close_matches(folded, by_fold, n=1),
    ):
        if len(close) == 1:
            return by_fold[close[0]]
    return None


def abbreviates(word: str, name: str) -> bool:
    """Return whether a word consists of the beginnings of the words of a name, which are several, in their order: lr, max_len."""
    word, words = re.sub(r"[\W_]", "", word.casefold()), name.casefold().split("_")
    if not 1 < len(words) <= len(word) <= MOST_ABBREVIATED or "" in words:
        return False
    pattern = "".join(
        "(?:" + "|".join(re.escape(each[:end]) for end in range(len(each), 0, -1)) + ")" for each in words
    )
    return re.fullmatch(pattern, word) is not None


def suggest(word: str, names: Iterable[str]) -> str:
    """Return `; did you mean X?` with the name that is nearest to a word; an empty string: none is near."""
    name = nearest(word, names)
    return "" if name is None else f"; did you mean {name}?"
