"""Reads rows of token classification."""

from __future__ import annotations

import itertools
import logging
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from typing import Any

from kdcli.config.dataset import Dataset as DatasetConfig
from kdcli.errors import DataError, listed, shown, suggest
from kdcli.tasks.labels import INTEGER, label_name
from kdcli.tasks.rows import (
    IGNORE,
    LabelledRows,
    RawSplits,
    Row,
    fold_white_space,
    log_level,
    require_list,
    require_text,
    row_hash,
)
from kdcli.tasks.token_classification.scheme import (
    Scheme,
    combined,
    is_outside,
    looks_prefixed,
    scheme_of,
)
from kdcli.tasks.token_classification.spans import (
    COUNTS,
    CUTS,
    SECOND,
    SPANS,
    holds_spans,
    literal,
    tagged,
    tokens_of,
    words_of,
)

logger = logging.getLogger(__name__)
SENTENCE = re.compile(r"sent(ence)?(id|idx|index|number|num|no|nr)?|sid", re.IGNORECASE)
"""The name, without signs, of a column that numbers the sentences of a table with a word a row."""
ONE_WORD = 0.9
"""The share of rows of one word above which a table has a word a row."""
NEARLY_ALL = 0.9
"""The share of the spans that cut a word from which on another way to count their places explains them."""
BLANKS = "words that are white space or invisible characters are dropped"


def is_blank(word: str) -> bool:
    """Return whether a word has no visible character: white space, zero-width or control characters."""
    return not any(char.isprintable() and not char.isspace() for char in word)


class TokenClassificationRows(LabelledRows):
    """Reads columns words and label: for each word the index of its tag, -100 for a word without a gold tag.

    Rows are duplicates if all characters of their words are equal; rows that differ in case alone stay in one split. Words of
    which `dataset.replace` leaves nothing are dropped with their tags.
    """

    keys = "dataset.words= and dataset.tags="

    def __init__(self, cfg: DatasetConfig):
        super().__init__(cfg)
        folder = cfg.spec.formats.get(cfg.format)
        self.columns = list(folder.columns) if folder else [str(cfg.words), str(cfg.tags)]
        self.notes: Counter[str] = Counter()
        self.blank: str | None = None
        self.untagged: str | None = None
        self.cut: str | None = None

    def column_paths(self, columns: list[str], name: str, nested: bool = False) -> list[list[str]]:
        """Return the paths to words and tags, and before them those to the number of the sentence and to Prodigy's answer, if there is one."""
        paths = super().column_paths(columns, name, nested)
        chosen = self.cfg.sentence
        if chosen is not None and chosen not in columns:
            raise DataError(
                f"{name} has no column {shown(chosen)}{suggest(chosen, columns)} (columns: {listed(columns)}); name the one that numbers "
                "the sentences with dataset.sentence="
            )
        others = [column for column in columns if [column] not in paths]
        numbers = [column for column in others if SENTENCE.fullmatch(re.sub(r"[\W_]", "", column))]
        return [*([column] for column in ([chosen] if chosen else numbers[:1])), *paths]

    def assembled(self, table: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a table; if it has a word a row, those of its sentences.

        Raises:
            DataError: nothing tells where its sentences end, or their words do not follow each other.
        """
        width = len(self.columns)
        accepted = (
            (*(value for value in row[:-width] if value != "accept"), *row[-width:])
            for row in table
            if self._accepts(row[:-width])
        )
        first = next(accepted, None)
        rows = itertools.chain([first] if first is not None else [], accepted)
        if first is None or (len(first) == width and not _is_word(first)):
            yield from rows
            return
        all_rows = list(rows)
        if sum(_is_word(row[-width:]) for row in all_rows) < ONE_WORD * len(all_rows):
            yield from (row[-width:] for row in all_rows)
            return
        runs = list(_runs(all_rows, width))
        numbers = {row[0] for row in all_rows if len(row) > width and isinstance(row[0], Hashable)} - {
            None,
            "",
        }
        if len(runs) == len(all_rows) > 1 or len(runs) == 1 < len(all_rows):
            if not self.has_gold:
                yield from (row[-width:] for row in all_rows)
                return
            raise DataError(
                f"{self.cfg.path}: {len(all_rows)} rows hold a single word each, and no column numbers the sentences; name one with dataset.sentence=; if "
                "blank lines end the sentences, give dataset=conll"
            )
        if len(numbers) < ONE_WORD * len(runs) and numbers:
            raise DataError(
                f"{self.cfg.path}: the words of a sentence do not follow each other ({len(numbers)} sentences in {len(runs)} pieces); sort the rows, or "
                "name the column that numbers the sentences with dataset.sentence="
            )
        if len(runs) < len(all_rows):
            logger.info(
                "%s: each row is a word; its %d rows are %d sentences",
                self.cfg.path,
                len(all_rows),
                len(runs),
            )
        for run in runs:
            yield tuple(map(list, zip(*run, strict=True)))

    def check(self, values: tuple[Any, ...], where: str) -> tuple[Any, ...]:
        """Check words and tags, and return the tags as strings or None."""
        tags = literal(values[1]) if self.has_gold else None
        words = values[0] if holds_spans(tags) else literal(values[0])
        words, tags = self._words_and_tags(words, tags, where)
        if len(tags) != len(words):
            raise DataError(f"{where}: {len(words)} words and {len(tags)} tags; each word needs one")
        checked = []
        for number, (word, tag) in enumerate(zip(words, tags, strict=True), 1):
            word = str(word) if isinstance(word, int) and not isinstance(word, bool) else word
            if isinstance(word, str) and is_blank(word):
                self.notes[BLANKS] += 1
                self.blank = self.blank or f"{where}, word {number}"
            else:
                checked.append(
                    (require_text(word, f"word {number}", where), self._tag(tag, f"{where}, word {number}"))
                )
        if not checked:
            raise DataError(f"{where}: there are no words; remove the row")
        return [word for word, _ in checked], [tag for _, tag in checked]

    def _tag(self, value: Any, where: str) -> str | None:
        """Return the tag of a word; None: it is not known."""
        tag = label_name(value, where)
        if isinstance(value, str) and tag is None:
            self.untagged = self.untagged or where
            return ""
        if tag is None and self.has_gold:
            raise DataError(
                f"{where}: the tag is missing; write O for a word in no entity, or {IGNORE} for one whose tag is not known"
            )
        return None if tag == str(IGNORE) else tag

    def _words_and_tags(self, words: Any, tags: Any, where: str) -> tuple[list[Any], list[Any]]:
        """Return the words and tags of any of the forms that tables and labelling tools write them in."""
        tokens = tokens_of(words) if isinstance(words, list) and words else None
        if tokens is not None:
            words, places = tokens
        elif isinstance(words, str):
            places = words_of(require_text(words, "the text", where))
        if self.has_gold and (tags is None or tags == ""):
            raise DataError(
                f"{where}: the tags are missing; write [] for a text without spans, and O for a word in no entity"
            )
        if isinstance(tags, str):
            tags = split_tags(
                tags, words.split() if isinstance(words, str) else require_list(words, "words", where)
            )
        of_text = isinstance(words, str) or tokens is not None
        if holds_spans(tags) or (tags == [] and of_text):
            if not of_text:
                raise DataError(
                    f"{where}: the tags are spans ({shown(tags, 80)}), and the words are {shown(words, 80)}; write a tag for each word, or, if they are "
                    "spans of characters, name the column of the texts with dataset.words="
                )
            text = words if isinstance(words, str) else ""
            tags = tagged(places, text, tags, where, self.notes)
            self.cut = self.cut or (where if self.notes[CUTS] else None)
            return [text[start:end] for start, end in places] if text else words, tags
        if isinstance(words, str):
            words = (
                [words[start:end] for start, end in places]
                if tags is None and self.notes[SPANS]
                else words.split()
            )
        words = require_list(words, "words", where)
        if isinstance(words[0], list | dict):
            raise DataError(
                f"{where}: word 1 is {shown(words[0], 80)}; expected a list of words, and one of their tags, for each sentence"
            )
        return words, [None] * len(words) if tags is None and not self.has_gold else require_list(
            tags, "tags", where
        )

    def declare(self, sources: RawSplits) -> None:
        """Find the scheme of the tags, and log it.

        Raises:
            DataError: the tags are integers without names, which entities are read from, or several may mean no entity.
        """
        self._fill_outside(sources)
        super().declare(sources)
        if all(map(INTEGER.fullmatch, self.labels)):
            raise DataError(
                f"{self.cfg.path}: the tags are integers ({listed(self.labels)}), and only names tell where an "
                "entity begins; name them in their order: dataset.labels=[O,B-PER,I-PER,…]"
            )
        counts = Counter(
            tag for parts in sources.values() for part in parts for _, tags in part.rows for tag in tags
        )
        if unknown := [tag for tag in self.cfg.outside or () if tag not in self.labels]:
            raise DataError(
                f"{self.cfg.path}: dataset.outside = {shown(unknown[0])} is no tag{suggest(unknown[0], self.labels)} (tags: {listed(self.labels)}); name one of them"
            )
        scheme = scheme_of(self.labels, self.cfg.outside or ())
        self._tell(scheme, counts)
        self._require_places()
        for note in (SECOND, BLANKS):
            if number := self.notes[note]:
                first = f" (the first: {self.blank})" if note == BLANKS else ""
                logger.warning("%s: %d %s%s", self.cfg.path, number, note, first)

    def _require_places(self) -> None:
        """Log how many spans cut a word.

        Raises:
            DataError: they are most spans, and nearly all of them would not if their places were counted in another way.
        """
        cuts, spans = self.notes[CUTS], self.notes[SPANS]
        way, fitting = max(((way, self.notes[way]) for way in COUNTS), key=lambda each: each[1])
        if cuts > spans / 2 and fitting >= NEARLY_ALL * cuts:
            raise DataError(
                f"{self.cut}: {cuts:,} of {spans:,} {CUTS}; {fitting:,} of these do not if their places {way}; write places that count characters from 0, with an "
                "exclusive end, into the column of dataset.tags"
            )
        if cuts:
            level = log_level(cuts, spans)
            logger.log(level, "%s: %d of %d %s (the first: %s)", self.cfg.path, cuts, spans, CUTS, self.cut)

    def _fill_outside(self, sources: RawSplits) -> None:
        """Tag words whose tag is an empty cell O, if no tag means no entity by its name. Otherwise their rows are bad."""
        if self.untagged is None:
            return
        every = list(itertools.chain(*sources.values()))
        names = {tag for part in every for _, tags in part.rows for tag in tags if tag}
        if not (self.cfg.labels or self.cfg.outside or any(map(is_outside, names))):
            logger.warning(
                "%s: words without a tag are tagged O (the first: %s)", self.cfg.path, self.untagged
            )
            for part in every:
                part.rows = [
                    (words, [tag if tag != "" else "O" for tag in tags]) for words, tags in part.rows
                ]
        elif self.cfg.bad_rows == "drop":
            for part in every:
                rows = [row for row in part.rows if "" not in row[1]]
                part.dropped["a word without a tag"] += len(part.rows) - len(rows)
                part.rows = rows
        else:
            raise DataError(
                f"{self.untagged}: the tag is missing; write O for a word in no entity, or {IGNORE} for one whose tag is not known; "
                "dataset.bad_rows=drop leaves such rows out"
            )

    def _tell(self, scheme: Scheme, counts: Counter[str | None]) -> None:
        """Log how entities are read from the tags."""
        path, types = self.cfg.path, listed(scheme.types)
        outside = " and ".join(scheme.outside)
        if len(scheme.bare) > 1 and not outside:
            most = max(scheme.bare, key=lambda tag: counts[tag])
            raise DataError(
                f"{path}: several tags have no {scheme.form.removesuffix('es')} ({listed(scheme.bare)}), and none has a usual name for words "
                f"outside of entities; give it (dataset.outside={most}, which is the most frequent one?)"
            )
        if scheme.bare:
            logger.warning(
                "%s: the tags %s stand without a letter (%s) and count as entity types; if they mean no entity, give 'dataset.outside=[%s]'",
                path,
                listed(scheme.bare),
                ", ".join(scheme.letters),
                ",".join([*scheme.outside, *scheme.bare]),
            )
        if scheme.joined:
            logger.warning(
                "%s: the types %s look like several tags of a word, and each combination counts as a type; write one tag a word if they are nested or "
                "joined",
                path,
                listed(scheme.joined),
            )
        if scheme.form == "types" and (prefixed := list(filter(looks_prefixed, self.labels))):
            logger.warning(
                "%s: all tags count as entity types, because some look like tags with a prefix (%s) and others do not (%s); if these mean no entity, give "
                "'dataset.outside=[%s]'",
                path,
                listed(prefixed),
                others := listed(tag for tag in scheme.types if tag not in prefixed),
                ",".join([*scheme.outside, *others.split(", ")]),
            )
        firsts, lasts = combined(scheme.types) if scheme.form == "types" else ([], [])
        if firsts:
            logger.warning(
                "%s: the tags combine %s with %s, and each combination counts as a type; if these tell the words of an entity apart, write B for its first "
                "word and I for the others (B-PER, I-PER)",
                path,
                listed(firsts),
                listed(lasts),
            )
        segmented = scheme.form == "letters"  # B, M, E and S cut a text into words, and none is outside
        if not outside and not segmented:
            remedy = (
                f"if a tag means no entity, give dataset.outside={max(self.labels, key=lambda tag: counts[tag])}"
                if scheme.form == "types"
                else "write O for the words of no entity, if the file leaves them without a tag"
            )
            logger.warning(
                "%s: no tag is called O or the like, so every word counts as part of an entity (types: %s); %s",
                path, types, remedy,
            )  # fmt: skip
        letters = f"the {scheme.form} {', '.join(scheme.letters)}" if scheme.letters else "no prefixes"
        logger.info(
            "%s: tags with %s; entity types: %s; outside: %s", path, letters, types, outside or "no tag"
        )

    def row(self, values: tuple[Any, ...], where: str) -> Row | None:
        """Make a row whose id is a hash of the words."""
        words, tags = values
        indices = [IGNORE if tag is None else self.index_of(tag, where) for tag in tags]
        replaced = [fold_white_space(self.replaced(word)) for word in words]
        remaining = [(word, index) for word, index in zip(replaced, indices, strict=True) if word]
        words, label = [word for word, _ in remaining], [index for _, index in remaining]
        return {"id": row_hash(words), "words": words, "label": label} if words else None

    def group(self, row: Row) -> str:
        """Return a hash of the case-folded words."""
        return row_hash([word.casefold() for word in row["words"]])


def _is_word(row: tuple[Any, ...]) -> bool:
    """Return whether a row of a table has a single word (and its tag), or is empty."""
    texts = [str(value) for value in row if value is None or isinstance(value, str | int | float)]
    return len(texts) == len(row) and all(len(text.split()) < 2 and literal(text) is text for text in texts)


def _is_empty(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def split_tags(tags: str, words: list[Any]) -> list[str]:
    """Return the tags of a text of tags: between spaces, or between commas."""
    size = len(words)
    spaced, commas = tags.split(), [tag.strip() for tag in tags.split(",")]
    joined = len(spaced) != size or all(tag.endswith(",") for tag in spaced[:-1])
    return commas if len(commas) == size and joined else spaced


def _runs(rows: Iterable[tuple[Any, ...]], width: int) -> Iterator[list[tuple[Any, ...]]]:
    """Yield the last `width` values of the rows of each sentence: a new one begins behind an empty row, and where the number, the first value,
    changes; an empty number continues it."""
    run: list[tuple[Any, ...]] = []
    last: Any = None
    for row in rows:
        number = None if len(row) == width or _is_empty(row[0]) else row[0]
        ends = all(map(_is_empty, row))
        if run and (ends or (number is not None and number != last)):
            yield run
            run = []
        last = last if number is None else number
        run += [] if ends else [row[-width:]]
    if run:
        yield run
