"""Finds secrets in a config, which must not be recorded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from kdcli.config.components import join_key
from kdcli.errors import looks_secret

SENSITIVE = re.compile(
    r"(?:.*[-_])?(?:api[-_]?key|(?:access|secret|private|auth)[-_]?(?:key|token)|secret|authorization|passw(?:or)?d|passphrase|credentials?|"
    r"cookie|token)|key|(?:x[-_])?auth|bearer|pw|pwd",
    re.IGNORECASE,
)
"""Names of parameters and headers whose values are secret."""
KEY_PREFIX = re.compile(
    r"(?:sk|rk|pk|hf|ghp|gho|ghs|github_pat|glpat|xox[abeoprs]|gsk|nvapi|r8)[-_]\S|AKIA|ASIA|AIza|bearer\s",
    re.IGNORECASE,
)
"""Prefixes of API keys that no ordinary value has."""
IN_REQUEST = re.compile(r"teacher\.parameters\.\w*(headers|query)\.")
"""The keys of headers and of parts of an address, whose values are short words."""
RANDOM = re.compile(r"(?=[A-Za-z0-9]*\d)[A-Za-z0-9]{28,}")
"""A word that is randomly generated, longer than the ids of organizations and projects."""


_CASES = re.compile(r"[a-z]\d*(?=[A-Z])")
"""A change from a small to a capital letter. The names of variables have few of them."""


def secret_in(key: str, value: Any) -> str | None:
    """Return the reason why a value must not stand in a config, without the value; None: it may.

    Args:
        key: the key of the value, such as `teacher.parameters.api_key`.
    """
    name, text = key.rpartition(".")[2], str(value)
    remedy = "keep it in an environment variable and give that variable's name: teacher.api_key_env=NAME"
    if value is None or isinstance(value, bool) or text in ("", "null", "???"):
        return None
    if name == "api_key_env":
        words = text.split("_")
        if (
            not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text)
            or KEY_PREFIX.match(text)
            or any(map(_random, words))
            or len(_CASES.findall(text)) > 3
        ):
            return f"{key}: expected the name of an environment variable, such as OPENAI_API_KEY, and this looks like a key; {remedy}"
        return None
    if key.startswith("teacher.") and SENSITIVE.fullmatch(name):
        return f"{key}: a value of that name is a secret, which the run directory would keep; {remedy}"
    if IN_REQUEST.match(key) and RANDOM.search(text):
        return f"{key}: its value looks like a key, which the run directory would keep; {remedy}"
    if looks_secret(text) or (key.startswith("teacher.parameters") and KEY_PREFIX.match(text)):
        return (
            f"{key}: its value looks like a key or a password, which the run directory would keep; {remedy}"
        )
    return None


def _random(word: str) -> bool:
    """Return whether a word looks randomly generated, and not like a part of a name."""
    return len(word) >= 28 or (
        len(word) >= 12 and bool(re.search(r"\d", word)) and bool(re.search("[A-Za-z]{2}", word))
    )


def secrets_in(tree: Any, path: str = "") -> Iterator[str]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            if looks_secret(str(key)):
                yield f"{path}: a key of it looks like a secret, which the run directory would keep; keep it in an environment variable"
            yield from secrets_in(value, join_key(path, key))
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from secrets_in(value, path)
    elif problem := secret_in(path, tree):
        yield problem
