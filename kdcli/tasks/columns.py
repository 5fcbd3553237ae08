"""Finds the tasks that the columns of a data file fit."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from kdcli.errors import DataError
from kdcli.tasks.causal_lm.conversations import is_conversation
from kdcli.tasks.labels import DATE, number_of, read_label
from kdcli.tasks.notation import decode_notation
from kdcli.tasks.token_classification.spans import holds_spans, looks_like_span

MOST_CLASSES, SHARE = 200, 0.2
"""The maximum number of different values of a column that looks like labels, and their maximum share of the rows."""
LONGEST_LABEL = 60
"""The maximum mean number of characters of a label."""
MANY_SCORES = 10
"""The number of different fractions from which on a column looks like scores."""
MOSTLY = 0.95
"""The minimum share of strings in a column of texts: a text of digits may be a number."""
LOOKED_AT = 100
"""The number of values from which the kind of a column is determined."""
CERTAIN, NAMED, LIKELY, POSSIBLE = 3, 2, 1, 0
"""How sure a fit is: no other task has such values; the names or the values of the columns are those of the task; they look so; nothing speaks against it."""
_NO_TEXT = re.compile(rf"{DATE.pattern}|[\d\W]+|[!-ɏ]*\d[!-ɏ]*|https?://\S+|\S+@\S+\.\w+")
"""A value that is no text: a number or a date, an identifier, an address of the web or of a mailbox."""
_CODES = """
aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en eo es et eu fa ff fi fj fo fr fy ga
gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv
mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr
ss st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu afr amh ara asm ast aze bel ben bod bos bre bul
cat ceb ces chi ckb cmn cym cze dan deu dsb dut ekk ell eng epo est eus ewe fao fas fij fil fin fra fre fry ger gla gle glg grc gre grn guj hat hau
haw heb hin hrv hsb hun hye ibo ice ind isl ita jav jpn kan kat kaz khm kin kir kmr kor kur lao lat lav lin lit ltz lug lus mai mal mar mkd mlg mlt
mon mri msa mya nds nep nld nno nob nor npi nso nya oci ori pan pes pol por pus que ron rum run rus san sin slk slv smo sna snd som spa sqi srp sun
swa swe swh tam tat tel tgk tgl tha tir tpi tsn tuk tur uig ukr urd uzb vie wol xho yid yor yue zho zsm zul
"""
LANGUAGES = frozenset(_CODES.split())
"""The codes of ISO 639-1, and those of ISO 639-3 that parallel corpora use. (Other words of three letters, such as bak, neg and raw, are codes as well.)"""
_FIRST = re.compile(r"(?<!^column)1$|(^|[\W_])a$")
"""The end of the name of the first one of two columns. (Columns of a file without a header are called column1, column2 …)"""
LABELS = (
    "label", "labels", "class", "category", "sentiment", "intent", "topic", "rating", "stars", "polarity", "emotion", "cats", "annotations", "target", "y",
)  # fmt: skip
"""The usual names of columns of labels, the most usual first."""
AMBIGUOUS = frozenset({"target", "y"})
"""Names of columns of labels which a column of texts may have as well."""
REJECTED = "rejected"
"""The usual name of the column of the worse answer in preference data, which nothing is to learn."""
TAGS = frozenset({"ner_tags", "tags", "tag", "ner", "word_labels"})
"""The usual names of columns of tags."""
_REGION = re.compile(r"[A-Za-z]{2,4}")


def is_language(name: str) -> bool:
    """Return whether a name is the code of a language, also with a region or a script: de, pt-BR, eng_Latn."""
    code, *rest = re.split("[_-]", name)
    return code in LANGUAGES and len(rest) < 2 and all(map(_REGION.fullmatch, rest))


def _parsed(value: Any) -> Any:
    if isinstance(value, str) and value[:1] == "[":
        try:
            return decode_notation(value)
        except ValueError:
            return value
    return value


def _are_spans(value: Any) -> bool:
    return holds_spans(value) and (isinstance(value, list) or looks_like_span(value))


@dataclass(frozen=True)
class Column:
    """A column of the rows that were examined.

    Attributes:
        values: those that are there.
        filled: the share of the rows that have a value.
    """

    name: str
    values: Sequence[Any]
    filled: float = 1.0

    @property
    def distinct(self) -> int:
        """The number of different values."""
        return len({repr(value) for value in self.values})

    @property
    def length(self) -> float:
        """The mean number of characters of a value."""
        return statistics.fmean(len(str(value)) for value in self.values) if self.values else 0.0

    @property
    def is_list(self) -> bool:
        """Whether the values are lists, also as texts of JSON or Python."""
        return bool(self.values) and all(
            isinstance(_parsed(value), list) for value in self.values[:LOOKED_AT]
        )

    @property
    def is_text(self) -> bool:
        """Whether nearly all values are texts: neither written lists, nor dates, numbers, identifiers, addresses, or always the same."""
        texts = [value for value in self.values if isinstance(value, str)]
        if not texts or len(texts) < MOSTLY * len(self.values) or self.is_list:
            return False
        is_constant = len(self.values) > 1 and self.distinct == 1
        return not is_constant and not all(map(_NO_TEXT.fullmatch, texts[:LOOKED_AT]))

    @property
    def is_turns(self) -> bool:
        """Whether the values are turns of conversations."""
        return bool(self.values) and all(map(is_conversation, self.values[:LOOKED_AT]))

    @property
    def is_spans(self) -> bool:
        """Whether the values are spans of characters; a row may have none."""
        parsed = [_parsed(value) for value in self.values[:LOOKED_AT]]
        return any(parsed) and all(value == [] or _are_spans(value) for value in parsed)

    @property
    def is_mapping(self) -> bool:
        """Whether the values are mappings."""
        return bool(self.values) and all(isinstance(value, dict) for value in self.values[:LOOKED_AT])

    @property
    def is_called_labels(self) -> bool:
        """Whether its name, or a key of its mappings, is a usual one of labels or of tags."""
        keys = [key.lower() for value in self.values[:LOOKED_AT] if isinstance(value, dict) for key in value]
        return not ({*LABELS, *TAGS} - AMBIGUOUS).isdisjoint([self.name.lower(), *keys])

    @property
    def with_label_names(self) -> Column:
        """The same column with the name of the label in place of each mapping or list that holds one label; unchanged if it holds other values."""
        if all(isinstance(value, str | int | float) for value in self.values[:LOOKED_AT]):
            return self
        try:
            labels = [read_label(value, self.name) for value in self.values]
        except DataError:
            return self
        names = [label[0] if isinstance(label, tuple) else label for label in labels if label]
        is_single = all(isinstance(label, tuple) and len(label) <= 1 for label in labels)
        return replace(self, values=names) if is_single else self

    def named_by(self, others: Iterable[Column]) -> Column:
        """Return the column that has a name for each number of this one, as label_text for label; the same column if there is none."""
        values = [*map(str, self.values)]
        if self.filled < 1 or any(number_of(value) is None for value in values):
            return self
        for other in others:
            names = [*map(str, other.values)]
            is_full = other.filled == 1 and len(names) == len(values) and other.looks_like_labels
            pairs = {*zip(values, names, strict=True)} if is_full else set()
            if len(pairs) == len({*values}) == len({*names}) and all(
                number_of(name) is None for name in names
            ):
                return other
        return self

    @property
    def looks_like_scores(self) -> bool:
        """Whether the values are many different numbers, of which some are fractions."""
        numbers = [number_of(str(value)) for value in self.values]
        are_numbers = all(number is not None for number in numbers)
        has_fractions = any(number != number.to_integral_value() for number in numbers if number is not None)
        return self.distinct > MANY_SCORES and are_numbers and has_fractions

    @property
    def looks_like_labels(self) -> bool:
        """Whether few different short values repeat, which are neither dates nor scores."""
        if all(
            isinstance(value, str | date) and DATE.fullmatch(str(value)) for value in self.values[:LOOKED_AT]
        ):
            return False
        few = 2 <= self.distinct <= min(MOST_CLASSES, max(2, SHARE * len(self.values)))
        is_short = self.length <= LONGEST_LABEL and not self.is_list and not self.is_turns
        return few and is_short and not self.is_scores

    @property
    def is_scores(self) -> bool:
        """Whether most values are numbers with a fraction."""
        values = self.values[:LOOKED_AT]
        numbers = [number_of(str(value)) for value in values if isinstance(value, str | float)]
        return sum(number is not None and number % 1 != 0 for number in numbers) > len(values) / 2


@dataclass(frozen=True)
class Fit:
    """A way in which a task reads columns.

    Attributes:
        keys: of `dataset`, with the names of the columns.
        sureness: CERTAIN, NAMED, LIKELY or POSSIBLE.
    """

    keys: Mapping[str, str | bool | None]
    sureness: int = NAMED


def usual_pair(
    columns: Iterable[Column], pairs: Iterable[tuple[str, str]], fits: Callable[[Column, Column], bool]
) -> tuple[str, str] | None:
    """Return the first two columns with names that usually belong to each other, whatever their case.

    Args:
        fits: whether the values of two columns are such as the task reads.
    """
    by_name = {column.name.lower(): column for column in columns}
    for first, second in pairs:
        if first in by_name and second in by_name and fits(by_name[first], by_name[second]):
            return by_name[first].name, by_name[second].name
    return None


def numbered_pairs(columns: Iterable[Column]) -> list[tuple[str, str]]:
    """Return the names of columns that end in 1 and 2, or in a and b, in small letters: question1 and question2, sentence_A and sentence_B; not those of
    longer series, such as option1 to option4."""
    names = {column.name.lower() for column in columns}
    firsts = [name for name in names if _FIRST.search(name)]
    series = [[name[:-1] + end for end in ("23" if name[-1] == "1" else "bc")] for name in firsts]
    return [
        (name, second) for name, (second, third) in zip(firsts, series, strict=True) if third not in names
    ]


def texts_alone(columns: Sequence[Column]) -> list[str]:
    """Return the columns of texts, if none looks like labels or is called so, and none holds lists; not that of rejected answers."""
    if any(column.looks_like_labels or column.is_list or column.is_called_labels for column in columns):
        return []
    return [column.name for column in columns if column.is_text and column.name.lower() != REJECTED]
