"""The errors that a user is told, with the exit code of each, and how a message is bounded and kept free of secrets.

KDError                the job failed                                     FAILED (1)
├── ConfigError        the config or the command line is wrong            REFUSED (2)
├── DataError          the data cannot be used                            REFUSED (2)
├── ModelError         a checkpoint cannot be found or used               REFUSED (2)
├── TeacherError       the teacher does not fit this student or task      REFUSED (2)
├── ExportError        an artifact could not be written or run            REFUSED (2)
├── StorageError       a file system takes no more                        FAILED (1)
└── EndpointError      a remote teacher gives no more answers             FAILED (1)

A message says what was expected, what came, and what to do.
"""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable
from enum import IntEnum
from itertools import islice
from typing import Any

VALUE = 300
"""Characters of one value in a message."""
LIST = 800
"""Characters of a list in a message."""
LINE = 2000
"""Characters of one line of a message."""
MESSAGE = 5500
"""Characters of a message."""
WINDOW = 20_000
"""Characters at the beginning and at the end of a long text that are looked at: less than half of these is shown."""
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
SECRET = re.compile(
    r"""(?<![A-Za-z0-9_-])(?:
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
"""What a key looks like: the prefixes by which their issuers mark them."""
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
"""What a message shows in place of a secret."""
SHORTEST = 4
"""Characters of the shortest value of the environment that messages hide."""
_from_environment: dict[str, str] = {}


def looks_secret(text: str) -> bool:
    """Whether there is a key, or an address with a password or a key, in a text."""
    return bool(SECRET.search(text) or _IN_ADDRESS.search(text))


def hide(value: str, instead: str) -> None:
    """Have messages show something else where a value of the environment stands."""
    if len(value) >= SHORTEST:
        _from_environment[value] = instead
        _from_environment[repr(value)[1:-1]] = instead


def hide_nothing() -> None:
    """Forget the values of `hide`."""
    _from_environment.clear()


def redacted(text: str) -> str:
    """A text for a message, without keys, passwords and values that were read from the environment."""
    for value in sorted(_from_environment, key=len, reverse=True):
        text = text.replace(value, _from_environment[value])
    text = SECRET.sub(HIDDEN, text)
    text = _IN_ADDRESS.sub(
        lambda found: f"{found['before'] or found['query']}{HIDDEN}{'@' if found['before'] else ''}", text
    )
    return _ASSIGNED.sub(lambda found: found["name"] + HIDDEN, text)


class _Short(reprlib.Repr):
    """`repr` of the first items and levels."""

    def repr_dict(self, value: dict[Any, Any], level: int) -> str:
        """The items in their order."""
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
    """Text without terminal escapes, other control characters, overrides of the writing direction and lone surrogates.

    Each of these characters is written as its code, such as `\\u001b`, which is also its escape in JSON. Tabs and line breaks stay.
    """
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def abbreviated(text: str, limit: int = VALUE) -> str:
    """A text of at most `limit` characters, without secrets: the middle of a longer one is replaced by how many characters it has."""
    cut = max(len(text) - 2 * WINDOW, 0)
    text = redacted(f"{text[:WINDOW]}{text[-WINDOW:]}" if cut else text)
    if len(text) <= limit and not cut:
        return text
    kept = max(limit - 40, 0)
    head, tail = text[: kept - kept // 3], text[len(text) - kept // 3 :]
    return f"{head} … ({cut + len(text) - len(head) - len(tail):,} characters left out) … {tail}"


def shown(value: Any, limit: int = VALUE) -> str:
    """A value for a message: its `repr`, abbreviated; of what is nested only the first items and levels."""
    try:
        return abbreviated(repr(value) if isinstance(value, str) else _REPR.repr(value), limit)
    except (RecursionError, ValueError):  # nested too deeply; an integer of thousands of digits
        return f"<{type(value).__name__} too large to show>"


def listed(values: Iterable[Any], limit: int = LIST) -> str:
    """Names for a message, separated by commas; those beyond `limit` characters are counted, not written."""
    values, room = list(values), limit
    names: list[str] = []
    for value in values:
        name = abbreviated(value if isinstance(value, str) else shown(value)).replace("\n", "\\n")
        room -= len(name) + 2
        if room < 0 and names:
            break
        names.append(name)
    return ", ".join(names) + (f" and {len(values) - len(names):,} more" if len(names) < len(values) else "")


def bounded(message: str) -> str:
    """A message that a terminal and a log can take: printable, with lines of at most `LINE` characters, `MESSAGE` in all."""
    lines = abbreviated(message, WINDOW).split("\n")
    return abbreviated("\n".join(abbreviated(printable(line), LINE) for line in lines), MESSAGE)


class ExitCode(IntEnum):
    """What a command returns to the shell."""

    DONE = 0
    FAILED = 1
    """The job failed after it had begun, or a file system takes no more."""
    REFUSED = 2
    """The config, the command line or the data was found wrong before any training, and nothing was overwritten."""
    MISSED = 3
    """The artifacts are there, but one misses its tolerance or budget, or could not be made or run."""
    HUNG_UP = 129
    """SIGHUP."""
    INTERRUPTED = 130
    """SIGINT."""
    TERMINATED = 143
    """SIGTERM."""


class KDError(Exception):
    """A failure that the user is told in one bounded message, without a traceback."""

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
    """A teacher that one can only ask gives no more answers for now, or its budget is used up; what was answered is kept."""


LONGEST_NAME = 100
"""Characters of a name that somebody may have typed wrongly."""


def suggest(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?` when something known is close, else an empty string; names too long to be typed are not compared."""
    if len(word) > LONGEST_NAME:
        return ""
    close = difflib.get_close_matches(word, [name for name in known if len(name) <= LONGEST_NAME], n=1)
    return f"; did you mean {close[0]}?" if close else ""
