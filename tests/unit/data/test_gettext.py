"""gettext catalogues: entries of two locales become pairs, and damaged or hostile files are refused."""

from __future__ import annotations

import json
import logging
import os
import struct
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from support.commands import naming, require_words
from test_pairs import ASIDE, PAIRS, pairs, read, refused

from kdcli.config.dataset import Dataset
from kdcli.config.paths import conf_dir
from kdcli.data.dataset import Data, load
from kdcli.data.gettext import catalogued
from kdcli.data.splits import SPLITS
from kdcli.errors import ConfigError, DataError

HEADER = 'msgid ""\nmsgstr "Content-Type: text/plain; charset=UTF-8\\nPlural-Forms: nplurals={}; plural={};\\n"\n\n'
TWO = HEADER.format(2, "(n != 1)")


def catalogue(folder: Path, locale: str, text: str, header: str = TWO, name: str = "app.po") -> Path:
    path = folder / "app" / "locale" / locale / "LC_MESSAGES" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(header + text, encoding="utf-8")
    return path


def entries(rows: list[tuple[str, str]]) -> str:
    return "".join(f"msgid {json.dumps(a)}\nmsgstr {json.dumps(b, ensure_ascii=False)}\n\n" for a, b in rows)


def translated(folder: Path, target: str = "de", source: str | None = None, **more: Any) -> Data:
    return read(folder, format="gettext", target_language=target, source_language=source, **{**ASIDE, **more})


SPECIAL = """
#, fuzzy
msgid "a fuzzy one"
msgstr "ein ungefähres"

msgid "an untranslated one"
msgstr ""

#~ msgid "an obsolete one"
#~ msgstr "ein altes"

msgctxt "month"
msgid "May"
msgstr "Mai"

msgctxt "verb"
msgid "May"
msgstr "dürfen"

#, python-format
msgid "%d file"
msgid_plural "%d files"
msgstr[0] "%d Datei"
msgstr[1] "%d Dateien"

msgid "%d half"
msgid_plural "%d halves"
msgstr[0] ""
msgstr[1] "%d Hälften"

msgid ""
"two "
"lines\\n"
msgstr "zwei\\n Zeilen"
"""
TOLD = {
    ("May", "Mai"), ("May", "dürfen"), ("%d file", "%d Datei"), ("%d files", "%d Dateien"), ("%d halves", "%d Hälften"),
    ("two lines", "zwei Zeilen"),
}  # fmt: skip


def test_catalogues(tmp_path: Path) -> None:
    """Guesses and leftovers learnt as translations; a word's two meanings made one; plurals that are lost."""
    catalogue(tmp_path, "de", entries(PAIRS) + SPECIAL)
    catalogue(tmp_path, "fr", entries([("the house", "la maison")]))
    data = translated(tmp_path)
    assert pairs(data) == {*PAIRS, *TOLD}
    assert data.dropped == {"fuzzy": 1, "untranslated": 2}
    assert data.commit is None


def test_binary_catalogues(tmp_path: Path) -> None:
    """Packages that ship .mo alone; both read where both are there, and every row twice; a context that stays bytes."""
    path = catalogue(tmp_path, "de", entries(PAIRS) + SPECIAL)
    plain = translated(tmp_path)
    with path.open("rb") as stream:
        catalog = read_po(stream)
    with path.with_suffix(".mo").open("wb") as stream:
        write_mo(stream, catalog)
    both = translated(tmp_path)
    assert (both.fingerprint, both.dropped) == (plain.fingerprint, plain.dropped)
    path.unlink()
    binary = translated(tmp_path)
    assert pairs(binary) == pairs(plain)


@pytest.mark.parametrize(
    ("forms", "rule", "one", "many"),
    [
        (1, "0", "form 0", "form 0"),
        (3, "(n%10==1 && n%100!=11 ? 0 : n%10>=2 && n%10<=4 && (n%100<12 || n%100>14) ? 1 : 2)", "form 0", "form 2"),
        (6, "n==0 ? 0 : n==1 ? 1 : n==2 ? 2 : n%100>=3 && n%100<=10 ? 3 : n%100>=11 && n%100<=99 ? 4 : 5", "form 1", "form 5"),
        (2, "n != 1", "form 0", "form 1"),
    ],
    ids=["Japanese", "Russian", "Arabic", "a header of fewer forms"],
)  # fmt: skip
def test_plurals_of_other_languages(tmp_path: Path, forms: int, rule: str, one: str, many: str) -> None:
    """ "1 file" taught as Arabic's form for none, and "files" as Russian's for two."""
    there = 3 if rule == "n != 1" else forms  # as Django's French catalogues
    text = 'msgid "a file"\nmsgid_plural "some files"\n'
    text += "".join(f'msgstr[{number}] "form {number}"\n' for number in range(there))
    catalogue(tmp_path, "de", entries(PAIRS) + text, HEADER.format(forms, rule))
    assert pairs(translated(tmp_path)) == {*PAIRS, ("a file", one), ("some files", many)}


def test_translations_as_the_source(tmp_path: Path) -> None:
    """Rows matched by their order and not by their message; English among the Spanish where Spanish lacks a message."""
    spanish = [(source, f"la casa número {number} es roja") for number, (source, _) in enumerate(PAIRS)]
    catalogue(tmp_path, "de", entries([*PAIRS, ("only German", "nur Deutsch")]) + SPECIAL)
    catalogue(
        tmp_path,
        "es",
        entries(spanish[::-1]) + 'msgctxt "verb"\nmsgid "May"\nmsgstr "poder"\n',
        HEADER.format(1, "0"),
    )
    data = translated(tmp_path, source="es")
    expected = {(said, german) for (_, said), (_, german) in zip(spanish, PAIRS, strict=True)}
    assert pairs(data) == {*expected, ("poder", "dürfen")}
    back = translated(tmp_path, "es", source="de")
    assert pairs(back) == {(target, source) for source, target in pairs(data)}


def test_english_is_the_text_in_the_code(tmp_path: Path) -> None:
    """The English catalogue, which is empty as a rule, taken at its word: no pairs at all, or none into English."""
    catalogue(tmp_path, "de", entries(PAIRS))
    assert pairs(translated(tmp_path, source="eng_Latn")) == set(PAIRS)
    catalogue(
        tmp_path, "en", entries([(source, "") for source, _ in PAIRS[1:]] + [(PAIRS[0][0], "THE house")])
    )
    expected = {("THE house", PAIRS[0][1]), *PAIRS[1:]}
    assert pairs(translated(tmp_path, source="en")) == expected
    turned = {(target, source) for source, target in expected}
    assert pairs(translated(tmp_path, "en", source="de")) == turned
    alone = refused(tmp_path, format="gettext", target_language="en")
    require_words(alone, "test", "none", "1 are there")


def test_codes_of_a_locale(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A model that calls German deu_Latn, and catalogues that call it de: one of them would not be understood."""
    chinese = [(source, f"红色的房子 {number}") for number, (source, _) in enumerate(PAIRS)]
    other = [(source, f"紅色的房子 {number}") for number, (source, _) in enumerate(PAIRS)]
    for locale, rows in (("de", PAIRS), ("de_AT", PAIRS[:20]), ("zh_Hans", chinese), ("zh_Hant", other)):
        catalogue(tmp_path, locale, entries(rows))
    for code in ("de", "DE", "de_DE", "deu_Latn", "de-CH"):
        assert pairs(translated(tmp_path, code)) == set(PAIRS)
    assert pairs(translated(tmp_path, "de-at")) == set(PAIRS[:20])
    for code, rows in (("zh_CN", chinese), ("zho_Hans", chinese), ("zh_TW", other), ("zh-hant", other)):
        assert pairs(translated(tmp_path, code)) == set(rows)
    data = translated(tmp_path, "de", source="tlh")
    assert pairs(data) == set(PAIRS)
    require_words(caplog.text, "no catalogues", "dataset.source_language = tlh", "the source is the text")


def test_catalogues_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A typo that gives an empty data set; a locale that one must guess."""
    catalogue(tmp_path, "pt_BR", entries(PAIRS))
    catalogue(tmp_path, "de", entries([(source, "") for source, _ in PAIRS]))
    asked = {"format": "gettext", "target_language": "pt_BT"}
    message = refused(tmp_path, **asked | {"target_language": "pd_BR"})
    require_words(message, "no catalogues", "dataset.target_language = pd_BR", "mean pt_BR?", "de, pt_BR")
    message = refused(tmp_path, **asked | {"target_language": "de"})
    require_words(message, "1 catalogues of de", "no pairs", "dataset.target_language")
    same = {"source_language": "pt", "target_language": "pt_BR"}
    message = refused(tmp_path, **asked | same)
    require_words(message, "dataset.source_language = pt", "dataset.target_language = pt_BR", "both")
    (tmp_path / "none").mkdir()
    message = refused(tmp_path / "none", **asked)
    require_words(message, str(tmp_path / "none"), "no catalogues", "LOCALE/LC_MESSAGES/*.po", "*.mo")
    require_words(refused(tmp_path / "nowhere", **asked), str(tmp_path / "nowhere"), "not exist")
    (tmp_path / "a.po").write_text(TWO)
    require_words(refused(tmp_path / "a.po", **asked), "a.po", "no folder")
    with pytest.raises(ConfigError, match=naming("package no-such-thing", "not installed")):
        load(Dataset(path="package:no-such-thing/x", format="gettext", target_language="de"))
    monkeypatch.setitem(sys.modules, "babel.core", None)
    with pytest.raises(ConfigError, match=naming("gettext", "pip install 'kdcli[translation]'")):
        translated(tmp_path)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda text: text.replace("msgstr", "msgst", 3), ("line 2", "keyword")),
        (lambda text: text + 'msgid "and no more"\n', ("missing", "msgstr", "'and no more'")),
        (lambda text: text.replace("(n != 1)", "(n ~ 1)"), ("damaged",)),
        (lambda text: text.replace("nplurals=2", "nplurals=some"), ("damaged",)),
        (lambda text: text.replace("UTF-8", "ASCII"), ("damaged",)),
        (lambda text: text.replace("UTF-8", "no-such"), ("damaged",)),
    ],
    ids=["keyword", "cut", "rule", "number", "encoding", "unknown encoding"],
)
def test_spoiled_catalogues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Any, words: tuple[str, ...]
) -> None:
    """Half a catalogue read as a whole one, with a warning among the results."""
    path = catalogue(tmp_path, "de", entries([("a first one", "Schlüssel"), *PAIRS]))
    path.write_text(spoil(path.read_text()))
    require_words(refused(tmp_path, format="gettext", target_language="de"), "app.po", *words)
    assert capsys.readouterr().out == ""


def test_spoiled_binary_catalogue(tmp_path: Path) -> None:
    """A download that was cut off ends in a traceback of struct."""
    path = catalogue(tmp_path, "de", "", name="app.mo")
    catalog = Catalog(locale="de")
    for source, target in PAIRS:
        catalog.add(source, target)
    with path.open("wb") as stream:
        write_mo(stream, catalog)
    whole = path.read_bytes()
    assert pairs(translated(tmp_path)) == set(PAIRS)
    for spoiled in (whole[:-100], whole[:2], b"", b"PK" + whole[2:]):
        path.write_bytes(spoiled)
        message = refused(tmp_path, format="gettext", target_language="de")
        require_words(message, "app.mo", "damaged", "write it anew")


@pytest.mark.real
def test_catalogues_of_django(caplog: pytest.LogCaptureFixture) -> None:
    """A new version of Django or Babel, or a rule of ours, that leaves little of the packaged messages."""
    cfg = Dataset.model_validate(yaml.safe_load((conf_dir() / "dataset" / "gettext.yaml").read_text()))
    data = load(cfg)
    found = pairs(data)
    assert 750 < len(found) < 900
    assert data.dropped.keys() <= {"fuzzy", "untranslated", "duplicates", "identical"}
    assert {("Yes", "Ja"), ("May", "Mai"), ("%(size)d bytes", "%(size)d Bytes")} <= found
    for code in ("fr", "ru", "ja", "zh_Hans", "ar", "deu_Latn"):
        other = load(cfg.model_copy(update={"target_language": code, "source_language": "eng_Latn"}))
        assert sum(len(other[split]) for split in SPLITS) > 750
        assert other.dropped.get("wrong script", 0) + other.dropped.get("length ratio", 0) < 10
    spanish = load(cfg.model_copy(update={"source_language": "es"}))
    assert ("enero", "Januar") in {(a.casefold(), b) for a, b in pairs(spanish)}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_reader_itself(tmp_path: Path) -> None:
    """Catalogues of several parts of a program mixed up, or read in the order of the file system, which differs between machines."""
    catalogue(tmp_path, "de", entries([("the door", "die Tür"), ("the gate", "")]), name="b.po")
    catalogue(tmp_path, "de", entries([("the house", "das Haus")]), name="a.po")
    catalogue(tmp_path, "fr", entries([("the house", "la maison")]), name="a.po")
    assert catalogued(tmp_path, "there", None, "de") == [
        ("app/locale/a", [("the house", "das Haus")], Counter()),
        ("app/locale/b", [("the door", "die Tür")], Counter(untranslated=1)),
    ]
    assert catalogued(tmp_path, "there", "fr", "de") == [
        ("app/locale/a", [("la maison", "das Haus")], Counter()),
        ("app/locale/b", [], Counter(untranslated=2)),
    ]
    with pytest.raises(DataError) as caught:
        catalogued(tmp_path, "there", None, "it")
    assert "dataset.target_language" in caught.value.message


def _catalogue(folder: Path, name: str = "app.po") -> Path:
    path = folder / "de" / "LC_MESSAGES" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


HOSTILE_HEADER = (
    'msgid ""\nmsgstr ""\n"Content-Type: text/plain; charset={charset}\\n"\n"Plural-Forms: nplurals=2; plural={plural};\\n"\n\n'
    'msgid "one file"\nmsgid_plural "files"\nmsgstr[0] "eine Datei"\nmsgstr[1] "Dateien"\n'
)


@pytest.mark.parametrize(
    ("plural", "charset"),
    [
        ("n/0", "utf-8"),
        ("n%0", "utf-8"),
        ("__import__('os').mkdir('owned')", "utf-8"),
        ("(" * 400 + "n" + ")" * 400, "utf-8"),
        ("n" + "*n" * 2000, "utf-8"),
        ("n", "zip"),
        ("n", "undefined"),
        ("n", "nowhere"),
    ],
)
def test_hostile_headers_of_catalogues(
    tmp_path: Path, plural: str, charset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The formula for plural forms runs code or divides by zero; the charset is no text encoding."""
    monkeypatch.chdir(tmp_path)
    _catalogue(tmp_path).write_text(HOSTILE_HEADER.format(plural=plural, charset=charset))
    require_words(refused(tmp_path, format="gettext", target_language="de"), "app.po", "damaged")
    assert [path.name for path in tmp_path.iterdir()] == ["de"]


def test_catalogues_that_are_no_files_or_expand(tmp_path: Path) -> None:
    """kdcli waits for a pipe, reads 50 GB of zeros, or decodes a string of megabytes a million times."""
    path = _catalogue(tmp_path, "app.mo")
    os.mkfifo(path)
    require_words(
        refused(tmp_path, format="gettext", target_language="de"), "app.mo", "no regular file", "remove it"
    )
    path.unlink()
    path.write_bytes(struct.pack("<7I", 0x950412DE, 0, 0, 28, 28, 0, 0))
    os.truncate(path, 50 * 2**30)
    require_words(refused(tmp_path, format="gettext", target_language="de"), "app.mo", "bytes")
    count, text = 10**5, b"a" * 10**6
    head = struct.pack("<7I", 0x950412DE, 0, count, 28, 28 + 8 * count, 0, 0)
    path.write_bytes(head + struct.pack("<2I", len(text), 28 + 16 * count) * 2 * count + text + b"\0")
    require_words(refused(tmp_path, format="gettext", target_language="de"), "app.mo", "longer than the file")
