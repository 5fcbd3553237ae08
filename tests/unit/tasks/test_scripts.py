"""Which script a language is written in, and which a text is."""

from __future__ import annotations

import pytest

from kdcli.tasks.seq2seq.scripts import Side, fits, script_of

ROWS = [
    {"source": "Open the file %(name)s", "target": "Откройте файл %(name)s"},
    {"source": "Close all windows", "target": "Закройте все окна"},
    {"source": "Save in Firefox", "target": "Сохраните в Firefox"},
]


@pytest.mark.parametrize(
    ("code", "script"),
    [
        ("en", "Latin"), ("deu", "Latin"), ("pt_BR", "Latin"), ("ru", "Cyrillic"), ("rus_Cyrl", "Cyrillic"), ("zh_CN", "Han"),
        ("zho_Hant", "Han"), ("ja", "Kana"), ("kor", "Hangul"), ("ar_AR", "Arabic"), ("fas", "Arabic"), ("hi", "Devanagari"),
        ("sr", None), ("sr-Latn", "Latin"), ("srp_Cyrl", "Cyrillic"), ("uzn", None), ("xx", None), ("", None),
    ],
)  # fmt: skip
def test_the_script_of_a_code(code: str, script: str | None) -> None:
    """Swapped columns are not noticed; or Serbian in Latin letters is taken for the wrong column."""
    assert script_of(code) == script


def test_the_scripts_of_a_column() -> None:
    """Placeholders and names, which both sides have, decide what a column is written in."""
    source, target = (Side(name, ROWS) for name in ("source", "target"))
    assert (source.own, target.own) == (["Latin"], ["Cyrillic"])
    assert fits("Cyrillic", target)
    assert not fits("Cyrillic", source)
    assert fits(None, source)


@pytest.mark.parametrize(
    ("row", "strange"),
    [
        ({"source": "Quit", "target": "Выход"}, False),
        ({"source": "Quit", "target": "Quitter"}, True),
        ({"source": "Open Firefox", "target": "Откройте Firefox"}, False),
        ({"source": "12 %", "target": "12 %"}, False),
    ],
)
def test_a_row_in_another_script(row: dict[str, str], strange: bool) -> None:
    """Rows that somebody left untranslated stay among the pairs; or numbers and names are filtered out."""
    assert Side("target", ROWS).strange(row) == strange
