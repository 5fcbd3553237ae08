"""Finds the scheme of tags: which tags begin, continue and end an entity of which type, and which mean that a word is in none."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

ROLES = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S", "W": "S"}
"""The roles of the letters of IOB1, IOB2, IOE, BIOES, BILOU, BMES and BMEWO mean: B begins an entity, I continues it, E ends it, and S is one of a single word."""
OUTSIDE = (
    "o", "0", "out", "outside", "none", "null", "nil", "na", "n/a", "nan", "-", "_", "noentity", "nonentity", "notentity", "notag",
    "untagged", "empty", "background", "bg", "other", "others",
)  # fmt: skip
"""The names of tags that usually mean no entity: the first of them in this order does. Case, spaces, - and _ in a name do not count."""
UNTYPED = "entity"
"""The type of entities whose tags have none (B, I, O)."""
_SEPARATOR = "[-‐‑–—_.:/|~ ]"
_LETTERS = "".join(ROLES) + "".join(ROLES).lower()
_SPELLED = {
    **dict.fromkeys(("begin", "beginning", "start"), "B"),
    **dict.fromkeys(("inside", "in", "intermediate", "middle", "cont", "continue", "continuation"), "I"),
    **dict.fromkeys(("end", "last"), "E"),
    **dict.fromkeys(("single", "singleton", "unit", "unique"), "S"),
}
"""Letters that are spelled out (begin_PER, PER-cont)."""
_WRAPPED = re.compile(r"<([^<>]+)>|\[([^\[\]]+)\]|\"([^\"]+)\"|'([^']+)'")
_FORMS = {
    "prefixes": re.compile(rf"(?P<letter>[{_LETTERS}]){_SEPARATOR}(?P<type>.*)"),
    "suffixes": re.compile(rf"(?P<type>.*){_SEPARATOR}(?P<letter>[{_LETTERS}])"),
    "letters": re.compile(rf"(?P<letter>[{_LETTERS}])(?P<type>)"),
    "joined prefixes": re.compile(rf"(?P<letter>[{''.join(ROLES)}])(?P<type>[A-Z].+)"),
}


_WORDS = "|".join(sorted(_SPELLED, key=len, reverse=True))
_SPELLED_FORMS = [
    re.compile(form, re.IGNORECASE)
    for form in (
        rf"(?P<letter>{_WORDS})(?:{_SEPARATOR}(?P<type>.*))?",
        rf"(?P<type>.*){_SEPARATOR}(?P<letter>{_WORDS})",
    )
]
_JOINED = re.compile(rf"[|,;+&#/]\s*[{_LETTERS}]{_SEPARATOR}\S|[|;#]\s*O$")


@dataclass(frozen=True)
class Scheme:
    """Describes how entities are read from tags.

    Attributes:
        form: where the letter stands in a tag (`prefixes`, `suffixes`, `joined prefixes` such as BPER, or `letters` without types); `types`: the tags have no letters, and
            each is the type of an entity.
        letters: those that the tags have (B, I …).
        parts: the role (B, I, E, S, or O for no entity) and the entity type of each tag.
        bare: tags without a letter among tags with letters, except those for no entity: each counts as a type.
    """

    form: str
    letters: tuple[str, ...]
    parts: Mapping[str, tuple[str, str]]
    bare: tuple[str, ...]

    @property
    def types(self) -> list[str]:
        """The entity types, sorted."""
        return sorted({name for role, name in self.parts.values() if role != "O"})

    @property
    def outside(self) -> list[str]:
        """The tags of words that are in no entity."""
        return [tag for tag, (role, _) in self.parts.items() if role == "O"]

    @property
    def joined(self) -> list[str]:
        """The types that hold another tag (PER of B-PER|B-ORG)."""
        return [name for name in self.types if self.letters and _JOINED.search(name)]

    @property
    def standard(self) -> bool:
        """Whether pipelines of transformers group these tags: they know B-TYPE, I-TYPE, TYPE and O."""
        return all(
            tag == "O"
            if role == "O"
            else (tag == f"{role}-{name}" and role in "BI") or (tag == name and "-" not in name)
            for tag, (role, name) in self.parts.items()
        )

    def as_json(self) -> dict[str, Any]:
        """Return the scheme as report.json holds it."""
        return {
            "form": self.form,
            "letters": list(self.letters),
            "outside": self.outside,
            "types": self.types,
        }


def scheme_of(tags: Iterable[str], outside: Iterable[str] = ()) -> Scheme:
    """Find the scheme of tags by their names.

    Tags have letters if all of them do, but for those that mean no entity, or if a type has several letters (B-PER, I-PER). A type such as
    `T-cell` does not have one.

    Args:
        outside: the tags that mean no entity; empty: they are found by their names, or are the only tag without a letter.
    """
    tags = list(tags)
    named = set(outside)
    if short := _shortened(tags):
        scheme = scheme_of(short.values(), (short[tag] for tag in named if tag in short))
        parts = {tag: scheme.parts[each] for tag, each in short.items()}
        left = tuple(tag for tag, each in short.items() if each in scheme.bare)
        return Scheme(scheme.form, scheme.letters, parts, left)
    matches = {
        form: {tag: match for tag in tags if tag not in named and (match := pattern.fullmatch(tag))}
        for form, pattern in _FORMS.items()
    }
    bare: list[str] = []
    for form in sorted(matches, key=lambda form: _evidence(matches[form]), reverse=True):
        matched = matches[form]
        bare = [tag for tag in tags if tag not in matched and tag not in named]
        if _is_scheme(matched, _outside(bare), bare, sure=form != "joined prefixes"):
            break
    else:
        form, matched = "types", {}
        bare = [tag for tag in tags if tag not in named]
    if not named:
        usual = _outside(bare)
        named = set(usual if matched else usual[:1])
        if matched and len(bare) == 1:
            named = set(bare)
        named |= {tag for tag in bare if _key(tag) in map(_key, named)}
    parts = {}
    for tag in tags:
        if tag in named:
            parts[tag] = "O", ""
        elif match := matched.get(tag):
            parts[tag] = ROLES[match["letter"].upper()], match["type"] or UNTYPED
        else:
            parts[tag] = "I", tag
    letters = dict.fromkeys(
        letter for letter in ROLES for match in matched.values() if match["letter"].upper() == letter
    )
    return Scheme(
        form, tuple(letters), parts, tuple(tag for tag in bare if tag not in named) if matched else ()
    )


def _shortened(tags: Sequence[str]) -> dict[str, str]:
    """Return the tags without the brackets or quotes around all of them, and with letters in place of words; {}: they have neither, or are no longer
    different then.

    A type has to begin and to continue by these words: start_time and end_time are types.
    """
    wrapped = [_WRAPPED.fullmatch(tag) for tag in tags]
    if tags and all(wrapped):
        short = {match[0]: match[match.lastindex or 0] for match in wrapped if match}
        return short if len(set(short.values())) == len(tags) else {}
    for pattern in _SPELLED_FORMS:
        matches = {tag: match for tag in tags if (match := pattern.fullmatch(tag))}
        parts = {tag: (_SPELLED[match["letter"].casefold()], match["type"]) for tag, match in matches.items()}
        letters: dict[str, set[str]] = {}
        for letter, name in parts.values():
            letters.setdefault(name, set()).add(letter)
        others = [tag for tag in tags if tag not in parts]
        if any(each >= {"B", "I"} for each in letters.values()) and all(map(is_outside, others)):
            short = {tag: "-".join(filter(None, parts[tag])) if tag in parts else tag for tag in tags}
            return short if len(set(short.values())) == len(tags) else {}
    return {}


def _evidence(matched: Mapping[str, re.Match[str]]) -> tuple[bool, int, int]:
    """Return how well a form fits: letters that begin or continue, tags that match, and few types for them."""
    letters = {match["letter"].upper() for match in matched.values()}
    return bool(letters & {"B", "I"}), len(matched), -len({match["type"] for match in matched.values()})


def _is_scheme(
    matched: Mapping[str, re.Match[str]], outside: Sequence[str], bare: Sequence[str], sure: bool
) -> bool:
    """Return whether tags that match a form have letters.

    Args:
        sure: a sign stands between letter and type. If none does, each type needs several letters.
    """
    letters: dict[str, set[str]] = {}
    for match in matched.values():
        letters.setdefault(match["type"], set()).add(match["letter"].upper())
    if not any(each & {"B", "I"} for each in letters.values()):
        return False
    several = [len(each) > 1 for each in letters.values()]
    others_are_outside = set(bare) <= set(outside)
    return others_are_outside or any(several) if sure else others_are_outside and all(several)


def _key(tag: str) -> str:
    """Return a tag as it is compared with `OUTSIDE`."""
    return re.sub(r"[-_\s]", "", tag).casefold() or tag


def looks_prefixed(tag: str) -> bool:
    """Return whether a tag begins with B or I and a sign, as tags of most schemes do."""
    match = _FORMS["prefixes"].fullmatch(tag)
    return match is not None and match["letter"] in "BI"


def combined(types: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the prefixes of types that share suffixes, and these suffixes: BEG and INS, PER and ORG of BEG-PER, INS-PER, BEG-ORG, INS-ORG. The prefixes
    may be those of an unknown scheme. Both lists are empty if no two prefixes share most of their suffixes."""
    names: dict[str, set[str]] = {}
    for name in types:
        match = re.fullmatch(rf"(?P<first>\w+?){_SEPARATOR}(?P<last>.+)", name)
        if match is None:
            return [], []
        names.setdefault(match["first"], set()).add(match["last"])
    pairs = [pair for pair in itertools.combinations(names, 2) if _are_alike(*(names[part] for part in pair))]
    firsts = sorted({*itertools.chain(*pairs)})
    return firsts, sorted({*itertools.chain(*(names[first] for first in firsts))})


def _are_alike(types: set[str], others: set[str]) -> bool:
    """Return whether two sets share more than one type, and at least half of all their types."""
    return len(types & others) > 1 and 2 * len(types & others) >= len(types | others)


def is_outside(tag: str) -> bool:
    """Return whether a tag by its name means no entity."""
    return _key(tag) in OUTSIDE


def _outside(tags: Sequence[str]) -> list[str]:
    """Return the tags that by their names mean no entity, the most usual name first."""
    return sorted(filter(is_outside, tags), key=lambda tag: (tag != "O", OUTSIDE.index(_key(tag))))


def entities(scheme: Scheme, tags: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the spans in rows of tags, by the rules of CoNLL's `conlleval`.

    A span begins at B and S, after O, after E and S, and where the type changes; it ends before the next one and before O.

    Args:
        scheme: of the tags, in the order of their indices.
        tags: indices, (N,), row after row; a negative one, of a word without a gold tag, is in no entity.
        counts: words of each row, none of them 0.

    Returns:
        For each word that begins a span the index of its type among the sorted types, and the index of its last word; -1 elsewhere.
    """
    import numpy as np

    types = scheme.types
    parts = [*scheme.parts.values(), ("O", "")]
    of = np.where(tags < 0, len(parts) - 1, tags)
    types_of = np.asarray([-1 if role == "O" else types.index(name) for role, name in parts])[of]
    opens, closes = (np.asarray([role in which for role, _ in parts])[of] for which in ("BS", "ES"))
    new = opens | np.roll(closes, 1) | (np.roll(types_of, 1) != types_of)
    new[np.cumsum(counts) - counts] = True
    begin = np.flatnonzero((types_of >= 0) & new)
    starts, ends = np.full((2, len(tags)), -1)
    starts[begin] = types_of[begin]
    ends[begin] = np.flatnonzero((types_of >= 0) & np.append(new[1:], True))
    return starts, ends
