"""Translations of a program's messages: gettext catalogues (.po, .mo) of a package."""

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
"""A number whose plural is the general one in all languages: 2 and 5 have forms of their own in some."""
LARGEST = 2**28
"""Bytes of a catalogue."""
MAGIC = b"\xde\x12\x04\x95"
"""How a .mo file of little-endian numbers begins."""


def catalogued(
    path: Path, given: str, source_language: str | None, target_language: str
) -> list[tuple[str, list[tuple[str, str]], Counter[str]]]:
    """The pairs of two locales' catalogues under a folder.

    Without a source's locale the source is the text as it stands in the code; so is English where it is not translated.

    Args:
        given: what the user called the folder.

    Returns:
        Of each catalogue where it lies, its pairs of source and target, and how many entries were left out, by reason.

    Raises:
        DataError: there are none of a language, one is damaged, or they hold no pairs.
        ConfigError: babel is not installed.
    """
    if not os.path.isdir(path):
        what = "is no folder" if os.path.lexists(path) else "does not exist"
        raise DataError(
            f"the data folder {abbreviated(given)} {what} (looked for {abbreviated(str(path.absolute()))})"
        )
    files = _catalogues(path)
    if not files:
        raise DataError(f"the data folder {path} has no catalogues LOCALE/LC_MESSAGES/*.po or *.mo")
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
    found: list[tuple[str, list[tuple[str, str]], Counter[str]]] = []
    for place in sorted(files[target or source or ""]):
        dropped: Counter[str] = Counter()
        known = {
            locale: _entries(files[locale][place], dropped)
            for locale in (target, source)
            if locale and place in files[locale]
        }
        table: list[tuple[str, str]] = []
        for key in dict.fromkeys(itertools.chain(*known.values())):
            written = next(entries[key][0] for entries in known.values() if key in entries)
            one, other = (
                known.get(locale or "", {}).get(key, ("", ""))[1] or (written if in_code[side] else "")
                for side, locale in zip(SIDES, (source, target), strict=True)
            )
            if one.strip() and other.strip():
                table.append((one, other))
            else:
                dropped["untranslated"] += 1
        found.append((place, table, dropped))
    if not any(table for _, table, _ in found):
        raise DataError(f"{given}: the {len(found)} catalogues of {target or source} hold no pairs")
    return found


def _catalogues(folder: Path) -> dict[str, dict[str, Path]]:
    """Of each locale its catalogues, by where they lie but for the locale and the suffix; .mo only where there is no .po."""
    files: dict[str, dict[str, Path]] = {}
    for suffix in (".mo", ".po"):
        for file in folder.glob(f"**/LC_MESSAGES/*{suffix}"):
            place = file.parents[2].relative_to(folder) / file.stem
            files.setdefault(file.parents[1].name, {})[str(place)] = file
    return files


def _locale(code: str, there: list[str]) -> str | None:
    """The locale that a code names among those there are: itself, or one of the same language and script (`de` for de_DE and
    deu_Latn), the plainest if they are several."""
    plain = {name.replace("-", "_").casefold(): name for name in there}
    if found := plain.get(code.replace("-", "_").casefold()):
        return found
    tongue = _tongue(code)
    same = sorted(
        (name for name in there if tongue[0] and _tongue(name) == tongue), key=lambda name: (len(name), name)
    )
    if not same:
        return None
    logger.info("%s: the catalogues of %s are taken", code, same[0])
    return same[0]


def _tongue(code: str) -> tuple[str, str]:
    """Language and script of a code; empty if it is none."""
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
"""What a catalogue knows a text by: its context, the text in the code (its singular), and 1 if it is the plural, else 0."""


def _tuple(texts: Any) -> tuple[str, ...]:
    return (texts,) if isinstance(texts, str) else tuple(texts)


def _require_disjoint(raw: bytes) -> None:
    """Refuse a .mo file with strings that share bytes: a small one could otherwise stand for terabytes.

    Raises:
        ValueError, struct.error
    """
    order = "<" if raw[:4] == MAGIC else ">"
    count, *tables = struct.unpack_from(f"{order}3I", raw, 8)
    lengths = [struct.unpack_from(f"{order}{2 * count}I", raw, table)[::2] for table in tables]
    if sum(map(sum, lengths)) > len(raw):
        raise ValueError("its strings are longer than the file")


def _entries(path: Path, dropped: Counter[str]) -> dict[Entry, tuple[str, str]]:
    """The texts in the code that a catalogue knows, and their translations, some of them empty.

    Of an entry with several numbers these are the translations for 1 and for many.

    Args:
        dropped: what is left out is added to it.
    """
    _babel()
    from babel.messages.catalog import Catalog
    from babel.messages.mofile import read_mo
    from babel.messages.pofile import PoFileError, PoFileParser

    class Roomy(Catalog):
        """Headers may promise fewer forms than the entries have: Django's French ones do."""

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
            f"{path}, line {error.lineno + 1}: {str(error).rpartition(' on ')[0]}; it is no whole catalogue"
        ) from None
    except Exception as error:  # babel checks little of what it reads
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
        written, said = _tuple(message.id), _tuple(message.string)
        places = [singular, plural] if len(written) > 1 else [0]
        for number, (text, place) in enumerate(zip(written, places, strict=False)):
            entries[context, written[0], number] = text, said[place] if 0 <= place < len(said) else ""
    return entries
