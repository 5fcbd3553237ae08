"""Reads translations of a program's messages: gettext catalogues (.po, .mo) of a package."""

from __future__ import annotations

import gettext
import io
import itertools
import logging
import os
import struct
from collections import Counter
from pathlib import Path
from typing import Any

from kdcli.errors import ConfigError, DataError, abbreviated, listed, suggest
from kdcli.tasks.seq2seq.scripts import SIDES

logger = logging.getLogger(__name__)
PLURAL = 100
"""A number with the general plural form in all languages; 2 and 5 have forms of their own in some."""
LARGEST = 2**28
"""The maximum number of bytes of a catalogue."""
MAGIC = b"\xde\x12\x04\x95"
"""The first bytes of a little-endian .mo file."""


def catalogued(
    path: Path, given: str, source_language: str | None, target_language: str
) -> list[tuple[str, list[tuple[str, str]], Counter[str]]]:
    """Return the pairs of two locales in the catalogues of a folder.

    Without a source locale, the source is the text in the code. The text in the code also stands for English, if there is no English catalogue.

    Args:
        given: the folder as the user wrote it.

    Returns:
        For each catalogue its path, its pairs of source and target, and the number of dropped entries by reason.

    Raises:
        DataError: there is no catalogue of a language, one is damaged, or they have no pairs.
        ConfigError: babel is not installed.
    """
    if not os.path.isdir(path):
        what = "is no folder" if os.path.lexists(path) else "does not exist"
        raise DataError(
            f"the data folder {abbreviated(given)} {what} (looked for {abbreviated(str(path.absolute()))}); correct dataset.path"
        )
    files = _catalogues(path)
    if not files:
        raise DataError(
            f"the data folder {path} has no catalogues LOCALE/LC_MESSAGES/*.po or *.mo; correct dataset.path"
        )
    code = target_language
    source = _locale(source_language, list(files)) if source_language else None
    target = _locale(code, list(files))
    in_code = {"source": source is None or _english(source_language), "target": False}
    in_code["target"] = not in_code["source"] and _english(code)
    if target is None and not in_code["target"]:
        raise DataError(
            f"{given} has no catalogues of dataset.target_language = {code}{suggest(code, files)} (there are: "
            f"{listed(sorted(files))})"
        )
    if source == target:
        raise DataError(
            f"dataset.source_language = {source_language} and dataset.target_language = {code}: both are the catalogues of {target}"
        )
    if source_language and source is None and not _english(source_language):
        logger.warning(
            "%s has no catalogues of dataset.source_language = %s; the source is the text as it stands in the code",
            given,
            source_language,
        )
    catalogues: list[tuple[str, list[tuple[str, str]], Counter[str]]] = []
    for name in sorted(files[target or source or ""]):
        dropped: Counter[str] = Counter()
        entries_of = {
            locale: _entries(files[locale][name], dropped)
            for locale in (target, source)
            if locale and name in files[locale]
        }
        table: list[tuple[str, str]] = []
        for key in dict.fromkeys(itertools.chain(*entries_of.values())):
            written = next(entries[key][0] for entries in entries_of.values() if key in entries)
            source_text, target_text = (
                entries_of.get(locale or "", {}).get(key, ("", ""))[1] or (written if in_code[side] else "")
                for side, locale in zip(SIDES, (source, target), strict=True)
            )
            if source_text.strip() and target_text.strip():
                table.append((source_text, target_text))
            else:
                dropped["untranslated"] += 1
        catalogues.append((name, table, dropped))
    if not any(table for _, table, _ in catalogues):
        raise DataError(
            f"{given}: the {len(catalogues)} catalogues of {target or source} hold no pairs; give another dataset.target_language or dataset.source_language"
        )
    return catalogues


def _catalogues(folder: Path) -> dict[str, dict[str, Path]]:
    """Return the catalogues of each locale by their path without locale and suffix; a .mo file only if there is no .po file."""
    files: dict[str, dict[str, Path]] = {}
    for suffix in (".mo", ".po"):
        for file in folder.glob(f"**/LC_MESSAGES/*{suffix}"):
            name = file.parents[2].relative_to(folder) / file.stem
            files.setdefault(file.parents[1].name, {})[str(name)] = file
    return files


def _locale(code: str, locales: list[str]) -> str | None:
    """Return the locale that a code names: the code itself, or a locale of the same language and script (`de` for de_DE and deu_Latn), the shortest
    one if there are several."""
    plain = {name.replace("-", "_").casefold(): name for name in locales}
    if locale := plain.get(code.replace("-", "_").casefold()):
        return locale
    tongue = _tongue(code)
    same = sorted(
        (name for name in locales if tongue[0] and _tongue(name) == tongue),
        key=lambda name: (len(name), name),
    )
    if not same:
        return None
    logger.info("%s: the catalogues of %s are used", code, same[0])
    return same[0]


def _tongue(code: str) -> tuple[str, str]:
    """Return the language and the script of a code; empty strings if it is not a code."""
    babel = _babel()
    try:
        language, territory, script = babel.parse_locale(code.replace("-", "_"))[:3]
    except ValueError:
        return "", ""
    language = babel.get_global("language_aliases").get(language, language)
    likely = babel.get_global("likely_subtags")
    usual = likely.get(f"{language}_{territory}") or likely.get(language) or "__"
    return language, script or usual.split("_")[1]


def _english(code: str | None) -> bool:
    return _tongue(code or "")[0] == "en"


def _babel() -> Any:
    try:
        import babel.core
    except ImportError as error:
        raise ConfigError(
            f"{error}: dataset.format = gettext needs it; pip install 'kdcli[translation]'"
        ) from None
    return babel.core


Entry = tuple[str | None, str, int]
"""The key of a text in a catalogue: its context, the text in the code (its singular), and 1 for a plural or 0."""


def _tuple(texts: Any) -> tuple[str, ...]:
    return (texts,) if isinstance(texts, str) else tuple(texts)


def _require_disjoint(raw: bytes) -> None:
    """Refuse a .mo file whose strings share bytes: a small file could otherwise expand to terabytes.

    Raises:
        ValueError, struct.error
    """
    order = "<" if raw[:4] == MAGIC else ">"
    count, *tables = struct.unpack_from(f"{order}3I", raw, 8)
    lengths = [struct.unpack_from(f"{order}{2 * count}I", raw, table)[::2] for table in tables]
    if sum(map(sum, lengths)) > len(raw):
        raise ValueError("its strings are longer than the file")


def _entries(path: Path, dropped: Counter[str]) -> dict[Entry, tuple[str, str]]:
    """Return the texts of a catalogue and their translations, some of them empty.

    An entry with plural forms gives the translations for 1 and for many.

    Args:
        dropped: counts the dropped entries by reason.
    """
    _babel()
    from babel.messages.catalog import Catalog
    from babel.messages.mofile import read_mo
    from babel.messages.pofile import PoFileError, PoFileParser

    class Roomy(Catalog):
        """A catalogue whose header may declare fewer forms than its entries have, as in Django's French ones."""

        @property
        def num_plurals(self) -> int:
            return 9

    if not path.is_file():  # nor a pipe, a socket or a device
        raise DataError(f"{path} is no regular file; remove it")
    if path.stat().st_size > LARGEST:
        raise DataError(
            f"{path} has {path.stat().st_size:,} bytes, and a catalogue may have {LARGEST:,}; remove it"
        )
    try:
        raw = path.read_bytes()
        if path.suffix == ".mo":
            _require_disjoint(raw)
            catalog = read_mo(io.BytesIO(raw))
        else:
            catalog = Roomy()
            PoFileParser(catalog, ignore_obsolete=True, abort_invalid=True).parse(io.BytesIO(raw))
        form = gettext.c2py(catalog.plural_expr)
        singular, plural = form(1), form(PLURAL)
    except PoFileError as error:
        raise DataError(
            f"{path}, line {error.lineno + 1}: {str(error).rpartition(' on ')[0]}; it is not a complete catalogue; repair it (msgfmt -c names its faults)"
        ) from None
    except Exception as error:  # babel checks little of its input
        raise DataError(
            f"{path} cannot be read as a catalogue ({type(error).__name__}: {error}); it is damaged: write it anew, or remove it"
        ) from None
    entries: dict[Entry, tuple[str, str]] = {}
    for message in catalog:
        if not message.id:  # the header
            continue
        if message.fuzzy:
            dropped["fuzzy"] += 1
            continue
        context = (
            message.context.decode(errors="backslashreplace")
            if isinstance(message.context, bytes)
            else message.context
        )
        texts, translations = _tuple(message.id), _tuple(message.string)
        forms = [singular, plural] if len(texts) > 1 else [0]
        for number, (text, index) in enumerate(zip(texts, forms, strict=False)):
            translation = translations[index] if 0 <= index < len(translations) else ""
            entries[context, texts[0], number] = text, translation
    return entries
