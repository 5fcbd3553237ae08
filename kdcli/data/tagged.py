"""Reads files with one word and its tag per line (CoNLL), with any separator and any columns."""

from __future__ import annotations

import csv
import itertools
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from kdcli.config.dataset import Dataset as DatasetConfig
from kdcli.data.raw_rows import BadRows, holds_names
from kdcli.errors import DataError, listed, shown, suggest
from kdcli.tasks.rows import RowSchema
from kdcli.tasks.token_classification.rows import SENTENCE, TokenClassificationRows, is_blank
from kdcli.tasks.token_classification.scheme import is_outside, scheme_of

logger = logging.getLogger(__name__)
SAME = 0.9
"""The least share of lines that a separator cuts into the same number of fields."""
MOST = 0.5
"""The least share of lines of the same number of fields, among them a tag, in a file whose other lines are bad rows."""
LONGEST_SENTENCE = 200
"""The maximum number of words of a sentence. A file of one longer sentence has no blank lines between its sentences."""
MOST_TAGS = 300
"""The maximum number of different values in a column of tags; UD has 17, the largest sets of entity types about 100."""
ID = re.compile(r"\d+")
NUMBERED = re.compile(r"\d$")
"""The end of a value that numbers a word and occurs once in a file."""
PART = re.compile(r"\d+[-.]\d+")
"""CoNLL-U: the number of a token that is written again as several words, and of a word that is not in the text."""
BRACKETS = re.compile(r"(\((?P<opens>[\w-]+))?\*?(?P<closes>\))?")
"""A tag of CoNLL-2012: (PERSON* begins an entity, *) ends it, (PERSON) is one of a single word."""
WORDS = "words", "word", "token", "tokens", "form", "text"
TAGS = "tags", "tag", "ner_tag", "ner_tags", "ner", "nertag", "label", "labels", "entity", "bio", "iob", "ne"
"""The names of columns, in lower case."""
LANGUAGE = re.compile(r"([a-z]{2,3}(-[a-z]+)?):(?=.)")
"""The prefix of each word in the files of WikiANN (en:Rick)."""
CHUNKS = frozenset(
    {"NP", "VP", "PP", "ADJP", "ADVP", "SBAR", "PRT", "CONJP", "INTJ", "LST", "UCP", "NC", "PC", "VC"}
)
"""The types of chunks (CoNLL-2000), whose column is read as tags only if there is no other one."""
DOUBLED = re.compile(r'"(?:[^"]|"")*""(?:[^"]|"")*"')
"""A field whose quotes a csv writer doubled and put between quotes."""
LIKE_TAG = re.compile(r"[A-Za-z][-_]\S+|\S+[-_][A-Za-z]")
"""A value that looks like a letter of a scheme with a type."""
BOUNDARY = re.compile(r"\s*-DOCSTART-.*")
END = re.compile(r"\s*(EOS|</?s>|<eos>|[-=*_]{3,})\s*")
"""The lines that end a sentence in place of a blank line (MeCab's EOS), in a file of words with tags."""
MARK = re.compile(r"#|(%+|/{2,}|;{2,}|-{2,}|<!--|\*{2,})(\s|$)")
"""The beginnings of comments. Those that begin with # are left out; the others are bad rows."""
UNIVERSAL = "[id,words,lemma,tags,xpos,feats,head,deprel,deps,misc]"
"""The columns of CoNLL-U, with the parts of speech as tags."""


@dataclass
class Line:
    """A line and its fields."""

    number: int
    text: str
    fields: list[str]


Groups = list[list[Line]]
"""The lines between blank lines."""


class Tagged(NamedTuple):
    """A word with its tag, and the number of its line."""

    word: str
    tag: str | None
    line: int


@dataclass(frozen=True)
class Layout:
    """Describes how lines are read.

    Attributes:
        size: the number of fields that most lines have.
        word, tag, sentence: the indices of the columns; None: there is none.
        number: the index of the column that numbers the words, if there is one. The last columns may then be more in some sentences.
        columns_are: a description of the columns, for a message.
        kind: the index of the column of the entity types, if that of the tags has letters alone.
    """

    size: int
    word: int
    tag: int | None
    sentence: int | None
    number: int | None
    columns_are: str
    kind: int | None = None

    def values(self, line: Line) -> tuple[str, str | None, str | None]:
        """Return the word, the tag and the number of the sentence. Fields beyond `size` belong to the word, and a missing one is an empty word."""
        fields, more = line.fields, len(line.fields) - self.size
        if more > 0 and self.number is None:
            end = self.word + more + 1
            fields = [*fields[: self.word], " ".join(fields[self.word : end]), *fields[end:]]
        elif more < 0:
            fields = [*fields[: self.word], "", *fields[self.word :]]
        tag, sentence = (None if index is None else fields[index] for index in (self.tag, self.sentence))
        if self.kind is not None and tag is not None and not is_outside(tag):
            tag = f"{tag}-{fields[self.kind]}"
        return fields[self.word], tag, sentence


def tagged_sentences(
    schema: RowSchema, path: Path, lines: Iterable[str], bad: BadRows
) -> Iterator[tuple[Any, ...]]:
    """Yield sentences: a line for each word, and a blank line between sentences. Lines that begin with # and are no words are comments.

    Args:
        bad: records the sentences with a line that lacks a field.

    Raises:
        DataError: a line lacks a field, no column is that of the words or of the tags, or sentences do not end.
    """
    groups, comments = _groups(lines, len(schema.columns) > 1)
    if not groups:
        return
    joint = _cut_sentences(groups)
    separator, ragged = (joint, False) if joint else _cut(schema, path, groups)
    sure = [[line for line in group if not MARK.match(line.text)] for group in groups]
    sure = [group for group in sure if group] or groups
    names, header = _names(schema, path, comments, list(itertools.chain(*sure)))
    if header is not None:
        groups, sure = (
            [[line for line in group if line is not header] for group in each] for each in (groups, sure)
        )
    if not any(sure):
        return
    endless = len(groups) == 1 and names is None
    sure = _by_numbers(sure) if endless else [group for group in sure if group]
    layout = _layout(schema, path, sure, names, ragged)
    tags = {layout.values(line)[1] for line in itertools.chain(*sure) if len(line.fields) == layout.size}
    words = [[line for line in group if _is_word(line, layout, tags)] for group in groups]
    word_lines = {line.number for line in itertools.chain(*words)}
    for line in itertools.chain(*groups):
        if line.number not in word_lines and not line.text.startswith("#"):
            bad.add(
                f"{path}, line {line.number}: expected a word and its tag among {layout.size} columns, as most lines have, got {shown(line.text.strip())}"
            )
    words = _by_numbers(words) if endless else words
    count = sum(map(len, groups)) - sum(map(len, words)) + len(comments)
    between = {"\t": "tabs", "\t+": "tabs", " ": "white space"}.get(separator, separator)
    more = "; the first line is a header" if header is not None else ""
    more += f"; comment lines skipped: {count}" if count else ""
    logger.info("%s: %s between %d columns, %s%s", path.name, between, layout.size, layout.columns_are, more)
    sentences = _sentences(path, words, layout, tags, bad)
    if len(sentences) == 1 and len(sentences[0]) > LONGEST_SENTENCE:
        raise DataError(
            f"{path} has {len(sentences[0])} words and no blank line between sentences; add blank lines, or name the column that numbers the "
            "sentences with dataset.columns= and dataset.sentence="
        )
    for sentence in sentences:
        words_of, tags_of, numbers = map(list, zip(*sentence, strict=True))
        bad.at(numbers[0], numbers[-1])
        yield (words_of, tags_of)[: len(schema.columns)]


def looks_tagged(cfg: DatasetConfig, path: Path, lines: Sequence[str], is_text: bool) -> bool:
    """Return whether the first lines of a file are words with tags that have letters, or of which the most frequent one means no entity.

    Args:
        cfg: how the lines are read, with the format conll.
        is_text: the file is called a text. Other files may be tables, and need blank lines between sentences.
    """
    if not is_text and len(_groups(lines, True)[0]) < 2:
        return False
    try:
        sentences = list(tagged_sentences(TokenClassificationRows(cfg), path, lines, BadRows("drop")))
    except DataError:
        return False
    tags = Counter(tag for _, own in sentences for tag in own)
    if len(sentences) < 2 or tags.total() < MOST * sum(bool(line.strip()) for line in lines):
        return False
    (often, _), *_ = tags.most_common(1)
    return (is_outside(often) or _is_scheme(tags)) and len(tags) <= MOST_TAGS


def _groups(lines: Iterable[str], needs_tags: bool) -> tuple[Groups, list[str]]:
    """Return the lines between blank lines, and the comments that name columns (CoNLL-U Plus). Lines of nothing but separators are blank, which a
    spreadsheet writes, and so are lines that end a sentence in another way."""
    texts = [line.rstrip("\r\n").removeprefix("\ufeff") for line in lines]
    first = next((text for text in texts if text.strip() and not text.startswith("#")), "")
    separators = "".join(sign for sign in ",;|" if needs_tags and sign in first)
    groups: Groups = [[]]
    names = []
    for number, text in enumerate(texts, 1):
        if re.match(r"#\s*global\.columns\s*=", text):
            names.append(text.partition("=")[2])
        elif (
            text.strip().strip(separators)
            and not BOUNDARY.fullmatch(text)
            and not (needs_tags and END.fullmatch(text))
        ):
            groups[-1].append(Line(number, text, []))
        elif groups[-1]:
            groups.append([])
    return [group for group in groups if group], names


def _cut_sentences(groups: Groups) -> str:
    """Cut lines that are sentences, of words joined to their tags (EU/B-ORG rejects/O) or of all words before all tags, into lines of words; also cut lines
    of one such word. Return what joins them; "": they are none of these."""
    lines = list(itertools.chain(*groups))
    halves = [[half.split() for half in line.text.split("\t")] for line in lines]
    if all(len(half) == 2 and len(half[0]) == len(half[1]) for half in halves) and any(
        len(half[0]) > 1 for half in halves
    ):
        groups[:] = [
            [Line(line.number, "\t".join(pair), list(pair)) for pair in zip(*half, strict=True)]
            for line, half in zip(lines, halves, strict=True)
        ]
        return "\t"
    pairs = [line.text.split() for line in lines]
    for joint in "|/":
        counts = [pair.count(joint) for pair in itertools.chain(*pairs)]
        are_words = len(counts) == len(lines) and _is_scheme(pair.rpartition("/")[2] for (pair,) in pairs)
        if min(counts) > 0 and (are_words or len(counts) >= 2 * len(lines)):
            cut = [
                [Line(line.number, pair, pair.rsplit(joint, min(counts))) for pair in each]
                for line, each in zip(lines, pairs, strict=True)
            ]
            every = itertools.chain(*cut)
            groups[:] = [list(itertools.islice(every, len(own))) for own in groups] if are_words else cut
            return joint
    return ""


def _cut(schema: RowSchema, path: Path, groups: Groups) -> tuple[str, bool]:
    """Cut the lines into fields by the separator that gives most of them the same number, and return it, and whether lines may have more fields.

    Raises:
        DataError: no separator does.
    """
    every = list(itertools.chain(*groups))
    sure = [line.text for line in every if not MARK.match(line.text)] or [line.text for line in every]
    needed = len(schema.columns)
    ways = (
        [schema.cfg.delimiter] if schema.cfg.delimiter else ["\t", "\t+", *_joined(sure), " ", "|", ",", ";"]
    )
    for least, share in itertools.product(sorted({2, needed}, reverse=True), (SAME, 0.0, MOST)):
        for way in ways:
            cut = _cutter(way)
            fields = list(map(cut, sure))
            sizes = Counter(map(len, fields))
            size, count = sizes.most_common(1)[0] if sizes else (least, 0)
            ragged = share == 0 and min(sizes) >= least and _is_scheme([each[-1] for each in fields])
            numbered = share == 0 and min(sizes) > 5 and any(map(str.isdigit, fields[0][:4]))
            most = size >= least and share > 0 and count >= share * len(sure)
            if share == MOST and most:
                columns = zip(*(each for each in fields if len(each) == size), strict=True)
                most = any(map(_is_scheme, columns))
            if most or ragged or numbered:
                for line in every:
                    line.fields = cut(line.text)
                    if len(line.fields) < least:
                        line.fields = _cutter(" ")(line.text)
                return way, not most
    short = next((line for line in every if len(_cutter(" ")(line.text)) < needed), every[0])
    raise DataError(
        f"{path}, line {short.number}: expected a word and its tag, got {shown(short.text.strip())}; give a word a line, and a blank line between "
        "sentences; if another character than a tab or a space stands between word and tag, name it with dataset.delimiter="
    )


def _joined(texts: Sequence[str]) -> list[str]:
    """Return the sign that stands behind the first word of most lines, before a space (EU, B-ORG)."""
    firsts = [text.split()[0] for text in texts if text.strip()]
    return [sign for sign in ",;:" if sum(first[1:].endswith(sign) for first in firsts) >= SAME * len(firsts)]


def _cutter(way: str) -> Callable[[str], list[str]]:
    """Return the function that cuts a line at a separator."""

    def by_space(text: str) -> list[str]:
        return re.split(r"[ \t]+", text.strip(" \t"))

    def by_tabs(text: str) -> list[str]:
        parts = [part.strip(" ") for part in re.split(way, text)]
        while len(parts) > 2 and not parts[-1]:
            del parts[-1]
        return [part[1:-1].replace('""', '"') if DOUBLED.fullmatch(part) else part for part in parts]

    def by_character(text: str) -> list[str]:
        return [part.strip() for part in next(csv.reader([text], delimiter=way), [])]

    return {" ": by_space, "\t": by_tabs, "\t+": by_tabs}.get(way, by_character)


def _names(
    schema: RowSchema, path: Path, comments: Sequence[str], lines: Sequence[Line]
) -> tuple[list[str] | None, Line | None]:
    """Return the names of the columns, if they have some: those configured, of a header or of a comment; and the line of the header.

    A first line whose value in a column is the only one that is no tag is a header with other names, unless the value looks like a misspelt tag.
    """
    cfg, first = schema.cfg, lines[0]
    lower = {name.casefold() for name in first.fields}
    chosen = [name for name in (cfg.words, cfg.tags, cfg.sentence) if name]
    named = bool(lower & set(WORDS)) and bool(lower & set(TAGS))
    named |= bool(chosen) and set(chosen) <= set(first.fields)
    columns = list(
        zip(*(line.fields for line in lines if len(line.fields) == len(first.fields)), strict=True)
    )
    header = (
        named
        or (cfg.columns is not None and holds_names(cfg.columns, first.fields))
        or any(
            column[0] not in column[1:]
            and not LIKE_TAG.fullmatch(column[0])
            and _is_scheme(column[1:])
            and not _is_scheme(column)
            for column in columns
        )
    )
    names = cfg.columns or (first.fields if named else comments[0].split() if comments else None)
    if names is None and chosen:
        raise DataError(
            f"{path} has no header with the column {shown(chosen[0])}; name all its columns in order with dataset.columns=[…], or leave "
            "dataset.words, dataset.tags and dataset.sentence out"
        )
    if names is not None and len(names) != len(first.fields):
        raise DataError(
            f"{path}: {len(names)} columns have names ({listed(names)}), and line {first.number} has {len(first.fields)} fields "
            f"({shown(first.text.strip())}); name all columns in order with dataset.columns=[…]"
        )
    return names, first if header else None


def _layout(schema: RowSchema, path: Path, groups: Groups, names: list[str] | None, ragged: bool) -> Layout:
    """Return which columns hold the words and the tags: those of the names, or those whose values look like it.

    Args:
        ragged: lines may have more fields than the columns.
    """
    lines = list(itertools.chain(*groups))
    needs_tags = len(schema.columns) > 1
    sizes = Counter(len(line.fields) for line in lines)
    size = sizes.most_common(1)[0][0]
    if ragged:
        size = min(sizes)
    before: Layout | None = schema.decided.get("layout")
    if names is None and before is not None and before.size == size:
        return replace(before, tag=before.tag if needs_tags else None)
    number = next(
        (column for column in range(min(4, size - 1 - needs_tags)) if _counts(groups, column)), None
    )
    if names is not None:
        return _named_layout(schema, path, names, needs_tags, number)
    columns = list(zip(*(line.fields[:size] for line in lines if len(line.fields) >= size), strict=True))
    start = 0 if number is None else number + 1
    columns_are = f" (column {start} numbers the words)" if start else ""
    if not needs_tags:
        spaced = sum(" " in line.fields[start] for line in lines)
        if spaced > len(lines) / 2:
            raise DataError(
                f"{path}: most lines hold several words; expected a word a line, and a blank line between sentences"
            )
        return Layout(size, start, None, None, number, f"words of column {start + 1}{columns_are}")
    schemes = [column for column in range(size) if _is_scheme(columns[column])]
    schemes.sort(key=lambda column: set(scheme_of(set(columns[column])).types) <= CHUNKS)
    brackets = [column for column in range(start + 1, size) if _is_brackets(columns[column])]
    tag = next(iter([*schemes, *brackets]), None)
    tag = _plain(path, columns, start) if tag is None else tag
    word = start
    while word + 1 < size and word != tag != word + 1 and _is_number(columns[word]):
        word += 1
    if tag == word:  # the tag stands first
        others = [column for column in range(size) if column != tag and column + 1 != start]
        word = max(others, key=lambda column: len(set(columns[column])))
    if rest := [str(column + 1) for column in schemes if column != tag]:
        columns_are += f" (column {' and '.join(rest)} could be tags as well: choose with dataset.columns=)"
    kind = _types(columns, tag, word)
    types = f" and {kind + 1}" if kind is not None else ""
    columns_are = f"words of column {word + 1}, tags of column {tag + 1}{types}{columns_are}"
    schema.decided["layout"] = layout = Layout(size, word, tag, None, number, columns_are, kind)
    return layout


def _types(columns: Sequence[Sequence[str]], tag: int, word: int) -> int | None:
    """Return the column of the entity types beside one of letters alone (spaCy's ent_iob_ and ent_type_): it has one value outside of entities, and
    others within them."""
    if scheme_of(set(columns[tag])).form != "letters":
        return None
    for column, values in enumerate(columns):
        pairs = {(is_outside(letter), value) for letter, value in zip(columns[tag], values, strict=True)}
        none = {value for outside, value in pairs if outside}
        kinds = {value for outside, value in pairs if not outside}
        is_plain = scheme_of(set(values)).form == "types"  # and no predicted letters
        if column not in (tag, word) and is_plain and len(none) == 1 and kinds and not none & kinds:
            return column
    return None


def _named_layout(
    schema: RowSchema, path: Path, names: list[str], needs_tags: bool, number: int | None
) -> Layout:
    """Return the layout of columns with names: those that the config names, or those of the usual names."""
    cfg = schema.cfg
    word = _named(path, names, cfg.words, WORDS)
    tag = _named(path, names, cfg.tags, TAGS) if needs_tags else None
    numbers = [column for column, name in enumerate(names) if SENTENCE.fullmatch(re.sub(r"[\W_]", "", name))]
    sentence = _named(path, names, cfg.sentence, ("sentence",)) if cfg.sentence else next(iter(numbers), None)
    columns_are = f"words of the column {names[word]}" + (
        f", tags of {names[tag]}" if tag is not None else ""
    )
    return Layout(len(names), word, tag, sentence, number, columns_are)


def _named(path: Path, names: list[str], chosen: str | None, usual: Sequence[str]) -> int:
    """Return the index of the column that the config names, or that is called as usual."""
    key = usual[0]
    if chosen is not None and chosen not in names:
        raise DataError(
            f"{path} has no column {shown(chosen)}{suggest(chosen, names)} (columns: {listed(names)}); name it with dataset.{key}="
        )
    lower = [name.casefold() for name in names]
    indices = (
        [names.index(chosen)]
        if chosen is not None
        else [lower.index(name) for name in usual if name in lower]
    )
    if not indices:
        raise DataError(
            f"{path}: none of its columns ({listed(names)}) is called {key}; name it with dataset.{key}="
        )
    return indices[0]


def _by_numbers(groups: Groups) -> Groups:
    """Return lines without blank lines between them, as sentences: where a column that numbers the words begins again, or that numbers the sentences
    changes."""
    lines = groups[0]
    for column in range(min([3, *(len(line.fields) - 2 for line in lines)])):
        values = [line.fields[column] for line in lines]
        if not all(map(ID.fullmatch, values)):
            continue
        numbers = list(map(int, values))
        pairs = list(itertools.pairwise(numbers))
        begins = [number <= 1 for _, number in pairs]
        if not all(number == last + 1 or number <= 1 for last, number in pairs) or not any(begins):
            begins = [number != last for last, number in pairs]
            if len(set(numbers)) != sum(begins) + 1 or sum(begins) * 2 > len(lines):
                continue
        cuts = [0, *(index for index, new in enumerate(begins, 1) if new), len(lines)]
        return [lines[first:last] for first, last in itertools.pairwise(cuts)]
    return groups


def _counts(groups: Groups, column: int) -> bool:
    """Return whether a column numbers the words of each sentence, from 0 or 1."""
    for group in groups:
        values = [line.fields[column] if len(line.fields) > column else "" for line in group]
        numbers = [value for value in values if not PART.fullmatch(value)]
        if not numbers or not all(map(ID.fullmatch, numbers)):
            return False
        first = int(numbers[0])
        if first > 1 or list(map(int, numbers)) != list(range(first, first + len(numbers))):
            return False
    return True


def _is_scheme(values: Iterable[str]) -> bool:
    """Return whether all values of a column are tags with letters, or mean no entity."""
    scheme = scheme_of(set(values))
    return bool(scheme.letters) and not scheme.bare


def _is_number(values: Sequence[str]) -> bool:
    """Return whether a column numbers something (7, 2.7, doc1-7), or is the same in all lines, and so is none of words."""
    different = set(values)
    ids = len(different) == len(values) and all(map(NUMBERED.search, values))
    return ids or len(different) == 1 or all(map(ID.fullmatch, values))


def _is_brackets(values: Sequence[str]) -> bool:
    return any(value.startswith("(") for value in values) and all(map(BRACKETS.fullmatch, values))


def _plain(path: Path, columns: Sequence[Sequence[str]], start: int) -> int:
    """Return the column of tags without letters: the last one that has several values; the first one if by its values it is that of the tags.

    Raises:
        DataError: none is.
    """
    behind = [column for column in range(len(columns)) if column != start]
    last = next((column for column in reversed(behind) if len(set(columns[column])) > 1), behind[-1])
    sizes = [len(set(values)) for values in columns]
    often = [Counter(values).most_common(1)[0][0] for values in columns]
    if (
        start == 0
        and not is_outside(often[last])
        and (is_outside(often[0]) or 5 * sizes[0] < sizes[last] > 50)
    ):
        return 0
    if len(columns) == 10 and start == 1:
        raise DataError(
            f"{path} is CoNLL-U, and no column holds tags such as B-PER; name the one to read as tags: dataset.columns={UNIVERSAL} reads the parts "
            "of speech"
        )
    if sizes[last] > MOST_TAGS:
        raise DataError(
            f"{path}: no column looks like tags (column {last + 1} has {sizes[last]:,} different values, such as {shown(columns[last][0])}); name all "
            "columns in order with dataset.columns=[…], the words as words and the tags as tags"
        )
    return last


def _is_word(line: Line, layout: Layout, tags: set[str | None]) -> bool:
    """Return whether a line is no comment: one that begins as a comment is a word if it has as many fields as most lines, and the tag of another line."""
    if not MARK.match(line.text):
        return True
    if layout.tag is None:
        return len(line.fields) == layout.size and not re.match(r"#\s", line.text)
    if len(line.fields) != layout.size:
        return False
    is_plain = not line.text.startswith("#") and not _is_scheme(map(str, tags))
    return is_plain or _is_tag(layout.values(line)[1], tags)


def _is_tag(value: str | None, tags: set[str | None]) -> bool:
    """Return whether a value is one of the tags of other lines, or of their scheme."""
    return value in tags or (value is not None and _is_scheme({str(tag) for tag in tags} | {value}))


def _sentences(
    path: Path, groups: Groups, layout: Layout, tags: set[str | None], bad: BadRows
) -> list[list[Tagged]]:
    """Return the words, tags and line numbers of each sentence, without words that have no visible character.

    Args:
        tags: those of lines with as many fields as most.
    """
    sentences: list[list[Tagged]] = []
    blank: list[int] = []
    spoiled: set[int] = set()
    last = None
    for group in groups:
        sentences.append([])
        for line in group:
            lacks = layout.size - len(line.fields)
            other = lacks < 0 and layout.number is None and not _is_tag(layout.values(line)[1], tags)
            if other or lacks > 1 or (lacks == 1 and not line.text[:1].isspace()):
                bad.add(
                    f"{path}, line {line.number}: expected a word and its tag among {layout.size} columns, as most lines have, got {shown(line.text.strip())}"
                )
                spoiled.add(len(sentences))
                continue
            word, tag, sentence = layout.values(line)
            if sentence and sentence != last and sentences[-1]:
                sentences.append([])
            last = sentence or last
            if is_blank(word):
                blank.append(line.number)
            elif layout.number is None or not PART.fullmatch(line.fields[layout.number]):
                sentences[-1].append(Tagged(word, tag, line.number))
    if blank:
        logger.warning(
            "%s: %d words are white space or invisible characters, and are dropped (line %s)",
            path.name,
            len(blank),
            listed(map(str, blank), 60),
        )
    sentences = [
        sentence for number, sentence in enumerate(sentences, 1) if sentence and number not in spoiled
    ]
    prefixes = {(LANGUAGE.match(word) or [""])[0] for sentence in sentences for word, _, _ in sentence}
    if len(prefixes) == 1 and (prefix := prefixes.pop()):
        logger.info("%s: each word begins with %s, which is removed", path.name, prefix)
        sentences = [
            [each._replace(word=each.word.removeprefix(prefix)) for each in sentence]
            for sentence in sentences
        ]
    values = [str(tag) for sentence in sentences for _, tag, _ in sentence]
    return [_opened(sentence) for sentence in sentences] if _is_brackets(values) else sentences


def _opened(sentence: list[Tagged]) -> list[Tagged]:
    """Return a sentence whose brackets (CoNLL-2012) are rewritten as tags with B and I."""
    opened = []
    kind = ""
    for each in sentence:
        match = BRACKETS.fullmatch(each.tag or "")
        assert match is not None
        opens = match["opens"] or ""
        kind = opens or kind
        opened.append(each._replace(tag=f"{'B' if opens else 'I'}-{kind}" if kind else "O"))
        kind = "" if match["closes"] else kind
    return opened
