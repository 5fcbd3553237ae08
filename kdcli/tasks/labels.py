"""Reads labels as people write them: the spellings of one label, labels among the names of others, and the order of the logits."""

from __future__ import annotations

import datetime
import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from typing import Any

from kdcli.config.dataset import NO_LABEL
from kdcli.errors import DataError, TeacherError, listed, printable, shown
from kdcli.tasks.notation import decode_notation
from kdcli.tasks.token_classification.scheme import scheme_of
from kdcli.tasks.token_classification.spans import looks_like_span

Label = str | tuple[str, ...] | None
"""A label as it was read: its spelling, those of a list, or None for an empty cell."""
LONGEST_LABEL = 1000
"""The maximum number of characters of a label's name: a longer value is a text."""
MOST_EXACT = 2**53
"""The integer up to which floats are exact: a larger one is not the number of a class."""
INVISIBLE = "\u200b\u2060\ufeff"
"""Characters without width that come with texts copied from pages and files."""
INTEGER = re.compile(r"-?\d+")
WRITTEN = ("[", "{", "(", "array(", "tensor(", "set(", "frozenset(")
"""The beginnings of the lists, sets, tuples, mappings and arrays that Python writes into a cell of a table."""
_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
DATE = re.compile(
    r"(?i:(?:\d{4}(?P<sign>[-/.])\d{1,2}(?P=sign)\d{1,2}|\d{1,2}(?P<between>[-/.])\d{1,2}(?P=between)(?:\d{4}|\d{2})"
    rf"|(?:[a-z]{{3,9}},? )?\d{{1,2}}[ .-]+{_MONTH}[ .,-]+(?:\d{{4}}|\d{{2}})|{_MONTH}\.? \d{{1,2}},? \d{{4}})"
    r"(?:(?:,? |T)\d{1,2}:\d{2}.*)?|\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?)"
)
"""A date in figures or with the name of its month, also with a time, or a time of day."""
_NUMBER = re.compile(r"[+-]?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:[eE][+-]\d{1,3})?")
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*|0|-?[1-9]\d*")
_WORDS = frozenset({"true", "false", "null", "nan", "inf"})
"""Words that Hydra reads as other values than names."""
_TRUTH = {"false": "0", "true": "1"}
_FROZEN = re.compile(r"frozenset\((.*)\)", re.DOTALL)
_QUOTE = re.compile(r'(\\*)("|$)')
LONGEST_OVERRIDE = 700
"""Characters of names that a message lists to be pasted."""


# ---- one label -----------------------------------------------------------------------------------------


def read_label(value: Any, where: str) -> Label:
    """Return a value of the column of labels.

    A list, the text of one, of a set or of a tuple ("['a', 'b']", "{'a', 'b'}", "('a', 'b')"), a mapping of names to 0 and 1, and the choices of Label Studio become the names that they hold.

    Raises:
        DataError: it is no label, or no file and no table can hold its name.
    """
    if isinstance(value, str) and value.startswith(WRITTEN):
        value = _parsed(value)
    if isinstance(value, dict):
        if value and all(isinstance(flag, int | float) and flag in (0, 1) for flag in value.values()):
            value = [name for name, flag in value.items() if flag]
        elif value.keys() == {"choices"}:
            value = value["choices"]
        elif len(value) > 1 and all(isinstance(score, int | float) for score in value.values()):
            raise DataError(
                f"{where}: the label is {shown(value)}, which looks like the scores of all classes; write the class with the highest score, or a row for each "
                "vote and give dataset.duplicates=soft, which keeps their shares"
            )
        elif not looks_like_span(value):
            raise DataError(
                f"{where}: the label is {shown(value)}; expected a name or an integer; if one of its keys holds it, name that with "
                "dataset.label=COLUMN.KEY"
            )
    if isinstance(value, list):
        names = [label_name(each, where) for each in _chosen(value)]
        return tuple(name for name in names if name is not None)
    return label_name(value, where)


def _chosen(values: list[Any]) -> list[Any]:
    """Return the choices in annotations of Label Studio; other values unchanged."""
    names: list[Any] = []
    for value in values:
        results = value.get("result") if isinstance(value, dict) else None
        if not isinstance(results, list):
            return values
        for result in results:
            chosen = result.get("value") if isinstance(result, dict) else None
            if not isinstance(chosen, dict) or not isinstance(chosen.get("choices"), list):
                return values
            names += chosen["choices"]
    return names


def _parsed(text: str) -> Any:
    """Return the list, the set, the tuple or the array that a text writes down as JSON, Python or numpy, or its mapping of choices or of scores; the
    text, if it is none."""
    frozen = _FROZEN.fullmatch(text.strip())
    try:
        value = decode_notation(frozen[1] or "[]" if frozen else text.strip())
    except ValueError:
        return text
    if isinstance(value, set):
        value = sorted(value, key=str)
    elif isinstance(value, tuple):
        value = list(value)
    is_number = isinstance(value, int | float) and text.startswith(("array(", "tensor("))
    is_mapping = isinstance(value, dict) and (
        "choices" in value
        or (len(value) > 1 and all(isinstance(score, int | float) for score in value.values()))
    )
    return value if isinstance(value, list) or is_mapping or is_number else text


def label_name(value: Any, where: str) -> str | None:
    """Return a label as a string: 1.0, which is what a column of integers with gaps becomes, is 1; None is a missing one."""
    if value is None or value != value:  # NaN
        return None
    if isinstance(value, list | dict) and looks_like_span(value):
        raise DataError(
            f"{where}: the labels are spans of characters ({shown(value)}); for entities name the columns of the texts and of the spans with "
            "dataset.words= and dataset.tags=, and leave dataset.text and dataset.label out"
        )
    if isinstance(value, Decimal):
        value = f"{value:f}"
    if isinstance(value, datetime.date | datetime.time):
        value = value.isoformat()
    if not isinstance(value, str | int | float) or (isinstance(value, float) and abs(value) > MOST_EXACT):
        keys = (
            [key for key, each in value.items() if isinstance(each, str | int)]
            if isinstance(value, dict)
            else []
        )
        inner = f"; name the key that holds it, as in dataset.label=COLUMN.0.{keys[0]}" if keys else ""
        raise DataError(f"{where}: the label is {shown(value)}; expected a name or an integer{inner}")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    name = unicodedata.normalize("NFC", str(value).strip().strip(INVISIBLE).strip())
    if len(name) > LONGEST_LABEL or not name.isprintable():
        require_label_name(name, f"{where}: the label")
    return name or None


def require_label_name(name: str, what: str) -> None:
    """Refuse a label's name that no file and no table can hold: it stands in config.json, reports and model cards.

    Raises:
        DataError
    """
    if len(name) > LONGEST_LABEL:
        raise DataError(
            f"{what} {shown(name)} has {len(name):,} characters, and a name may have {LONGEST_LABEL:,}; is dataset.label the right column?"
        )
    if printable(name) != name or set(name) & set("\t\n"):
        raise DataError(
            f"{what} {shown(name)} holds a control character, a line break or half a character; remove it from the data"
        )


def number_of(name: str) -> Decimal | None:
    """Return the number that a label is; None: it is a name, as 007 is one."""
    return Decimal(name) if _NUMBER.fullmatch(name) else None


def canonical(name: str) -> str:
    """Return a number as it is written most briefly (1.0 and +1 are 1), and a name as it is."""
    number = number_of(name)
    if number is None:
        return name
    return str(int(number)) if number == number.to_integral_value() else f"{number.normalize():f}"


def folded(name: str) -> str:
    """Return a label without differences of case, white space, quotes around it and Unicode's composed characters, and of the format of a number."""
    name = " ".join(unicodedata.normalize("NFC", name).split()).casefold()
    quoted = re.fullmatch(r"""b?(['"])(.+)\1""", name)
    return canonical(quoted[2] if quoted else name)


def override(key: str, names: Sequence[str]) -> str:
    """Return a list of names as an override that can be pasted into a shell."""
    if sum(map(len, names)) > LONGEST_OVERRIDE or any("${" in name for name in names):
        return f"{key}=[…]"
    plain = [bool(_PLAIN.fullmatch(name)) and name.casefold() not in _WORDS for name in names]
    written = [
        name
        if bare
        else '"' + _QUOTE.sub(lambda match: match[1] * 2 + match[2].replace('"', r"\""), name) + '"'
        for name, bare in zip(names, plain, strict=True)
    ]
    assignment = f"{key}=[{','.join(written)}]"
    return assignment if all(plain) else shlex.quote(assignment)


def _spaced(name: str) -> str:
    """Return a name with one blank for each hyphen, underscore or white space: not_spam is not-spam."""
    name = folded(name)
    return name if number_of(name) is not None else re.sub(r"[\s_-]+", " ", name)


def _plain_form(name: str) -> str:
    """Return a name with plain characters in place of wide, raised and joined ones, and without those that are not seen: variation selectors, joiners."""
    plain = unicodedata.normalize("NFKC", name)
    return "".join(
        char for char in plain if unicodedata.category(char) != "Cf" and not "\ufe00" <= char <= "\ufe0f"
    )


def in_order(names: Iterable[str]) -> list[str]:
    """Return labels in the order of the logits: numbers by their value, then names by their characters."""

    def key(name: str) -> tuple[int, Decimal, str]:
        number = Decimal(name) if INTEGER.fullmatch(name) else number_of(name)
        return (1, Decimal(0), name) if number is None else (0, number, name)

    return sorted(names, key=key)


def alike(names: Iterable[str]) -> list[list[str]]:
    """Return the names that differ in case, white space, hyphens, underscores, quotes and the forms of a character alone."""
    spellings: dict[str, list[str]] = {}
    for name in names:
        spellings.setdefault(_spaced(_plain_form(name)), []).append(name)
    return [same for same in spellings.values() if len(same) > 1]


# ---- labels among names --------------------------------------------------------------------------------


def matcher(names: Sequence[str]) -> Callable[[str], int | None]:
    """Return a function that returns the index of a label among names: of the same name, of the same number, or of the one name that differs in case,
    white space, hyphens and underscores alone; None: there is none."""
    levels = [
        (spelling, unambiguous([spelling(name) for name in names]))
        for spelling in (str, canonical, folded, _spaced)
    ]

    def index_of(label: str) -> int | None:
        indices = (index.get(spelling(label)) for spelling, index in levels)
        return next((index for index in indices if index is not None), None)

    return index_of


def unambiguous(keys: Sequence[str]) -> dict[str, int]:
    """Return the indices of the keys that occur once."""
    counts = Counter(keys)
    return {key: index for index, key in enumerate(keys) if counts[key] == 1}


def by_place(labels: Iterable[str], names: Sequence[str]) -> dict[str, int]:
    """Return the index of each integer, or of false and true, that stands for a name.

    If there are as many integers as names, they stand for these in their order; otherwise they count from 0, or from 1 where the largest is
    the number of names and none is 0.

    Returns:
        Empty if one of the names is an integer itself.
    """
    if any(map(INTEGER.fullmatch, names)):
        return {}
    numbers = {
        label: int(_TRUTH.get(folded(label), canonical(label)))
        for label in labels
        if INTEGER.fullmatch(_TRUTH.get(folded(label), canonical(label)))
    }
    values = sorted(set(numbers.values()))
    if len(values) == len(names):
        return {label: values.index(number) for label, number in numbers.items()}
    first = int(bool(values) and values[0] >= 1 and values[-1] == len(names))
    return {label: number - first for label, number in numbers.items() if 0 <= number - first < len(names)}


def without_names(own: Sequence[str]) -> bool:
    """Return whether the labels of a model are the default names of transformers (LABEL_0 …), or the integers from 0."""
    return all(re.fullmatch(rf"(?i:label_)?{index}", label) for index, label in enumerate(own))


def order_of(own: Sequence[str], labels: Sequence[str], name: str) -> list[int]:
    """Return the indices of the data's labels in a model's labels: `model_logits[:, order]` are in the data's order.

    Labels match as by `matcher`, and tags also by their role and type. A model whose labels have no names (LABEL_0 …) has the data's
    labels in the data's order.

    Args:
        own: the model's labels, in the order of its logits.
        name: the model's, for messages.

    Raises:
        TeacherError: the model has another number of labels, or lacks one of the data's.
    """
    if len(own) != len(labels):
        raise TeacherError(
            f"{name} has {len(own)} labels ({listed(own)}), the data has {len(labels)} ({listed(labels)}); {_remedy(own, labels)}"
        )
    find = matcher(own)
    order = [find(label) for label in labels]
    missing = [label for label, index in zip(labels, order, strict=True) if index is None]
    if not missing and len(set(order)) == len(own):
        return [index for index in order if index is not None]
    if without_names(own):
        return list(range(len(labels)))
    if tags := _order_of_tags(own, labels):
        return tags
    if not missing or alike(own) or alike(labels):
        raise TeacherError(
            f"{name}: labels that differ in nothing but case or white space cannot be matched ({listed(own)}; the data's: "
            f"{listed(labels)}); name the data's labels as the model does with dataset.labels=[…]"
        )
    raise TeacherError(
        f"{name} does not know the label {shown(missing[0])} (its labels: {listed(own)}); {_remedy(own, labels)}"
    )


def _order_of_tags(own: Sequence[str], labels: Sequence[str]) -> list[int]:
    """Return the order of tags that two schemes write in different ways (B-PER and PER_B, O and NONE); []: they are none, or other ones."""
    schemes = scheme_of(own), scheme_of(labels)
    parts, wanted = (list(scheme.parts.values()) for scheme in schemes)
    if (
        not all(scheme.letters for scheme in schemes)
        or set(parts) != set(wanted)
        or len(set(parts)) < len(own)
    ):
        return []
    return [parts.index(part) for part in wanted]


def _remedy(own: Sequence[str], labels: Sequence[str]) -> str:
    """Return what to do about labels of the data that are not those of a model."""
    anew = "let distill tune it on the data's labels (teacher.tune=true)"
    numbers = [int(canonical(label)) for label in labels if INTEGER.fullmatch(canonical(label))]
    names = [str(index) for index in range(len(own))] if numbers and without_names(own) else own
    find = matcher(names)
    unknown = [label for label in labels if find(label) is None]
    if not unknown:
        return f"if the data lacks some of them, give the model's, in its order: {override('dataset.labels', names)}; or {anew}"
    if len(by_place(labels, own)) == len(labels):
        return f"if {listed(labels, 100)} stand for the model's labels, in its order, give {override('dataset.labels', own)}; or {anew}"
    if len(unknown) < len(labels):
        none = unknown if set(unknown) <= set(NO_LABEL) else [*NO_LABEL, *unknown[:5]]
        drop = f"{override('dataset.no_label', none)} dataset.bad_rows=drop"
        return f"write the data's labels as the model does; or {anew}; or leave the rows of the others out ({drop})"
    if without_names(own):
        return f"name the model's {len(own)} labels, in its order, with dataset.labels=[…], those that the data lacks among them; or {anew}"
    numbered = f"their numbers from 0 and {override('dataset.labels', own)}"
    return f"write the data's labels as the model does (or {numbered}); or {anew}"
