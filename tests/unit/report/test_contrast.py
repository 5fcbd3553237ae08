"""The colours of the pages in a light and a dark scheme: the contrast of texts and of marks, after WCAG 2.2 (https://www.w3.org/TR/WCAG22/)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import kdcli

ROOT = Path(kdcli.__file__).parent
REPORT = ROOT / "report" / "templates" / "style.css"
SITE = ROOT.parent / "docs" / "style.css"
BROWSER = ROOT / "exporting" / "targets" / "page" / "index.html"
TEXT, MARK = 4.5, 3.0
"""The least contrast of a text (1.4.3), and of a mark that carries meaning (1.4.11)."""
RULE = re.compile(r"([^{}]+)\{([^{}]*)\}")
HEX = re.compile(r"#(?:[0-9a-fA-F]{6}|[0-9a-fA-F]{3})\b")
MIX = re.compile(
    r"color-mix\(in srgb, var\(--(\w+)\) calc\(var\(--v\) \* (\d+)% \+ (\d+)%\), var\(--(\w+)\)\)"
)
Colour = tuple[float, ...]
SCHEMES = "light", "dark"


def rgb(text: str) -> Colour:
    digits = text.lstrip("#")
    digits = digits if len(digits) == 6 else "".join(2 * digit for digit in digits)
    return tuple(int(digits[start : start + 2], 16) / 255 for start in (0, 2, 4))


def luminance(colour: Colour) -> float:
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: Colour, other: Colour) -> float:
    """The ratio of two colours, 1 to 21."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def palette(scheme: str) -> dict[str, Colour]:
    """The colours of the report in a scheme."""
    css = REPORT.read_text(encoding="utf-8")
    light, dark = css.split("prefers-color-scheme: dark", 1)
    named = re.compile(rf"--(\w+): ({HEX.pattern})")
    colours = {name: rgb(text) for name, text in named.findall(light)}
    return colours if scheme == "light" else colours | {name: rgb(text) for name, text in named.findall(dark)}


def page_palette(scheme: str) -> dict[str, Colour]:
    """The colours of the browser's page in a scheme."""
    pairs = re.findall(
        rf"--(\w+): light-dark\(({HEX.pattern}), ({HEX.pattern})\)", BROWSER.read_text(encoding="utf-8")
    )
    return {name: rgb(pair[SCHEMES.index(scheme)]) for name, *pair in pairs}


def text_pairs(css: str, colours: dict[str, Colour], ink: str) -> dict[str, tuple[Colour, Colour]]:
    """The colour of each rule's text and what may lie behind it, by the rule's selector and the background.

    Args:
        ink: the colour of a text whose rule names none.
    """
    pairs = {}
    for selector, body in RULE.findall(css):
        text = re.search(r"(?<![-\w])color: var\(--(\w+)\)", body)
        behind = re.search(r"background: var\(--(\w+)\)", body)
        mixed = MIX.search(body)
        if mixed:
            name, slope, start, base = mixed.groups()
            share = (int(slope) + int(start)) / 100
            mix = tuple(
                share * a + (1 - share) * b for a, b in zip(colours[name], colours[base], strict=True)
            )
            pairs[f"{selector.strip()} on its darkest cell"] = (colours[text[1] if text else ink], mix)
        elif text and text[1] in colours:
            for name in [behind[1]] if behind else ["page", "card", *(["tint"] if "tint" in colours else [])]:
                pairs[f"{selector.strip()} on {name}"] = (colours[text[1]], colours[name])
    return pairs


@pytest.mark.parametrize("scheme", SCHEMES)
def test_each_text_of_the_report_can_be_read(scheme: str) -> None:
    """A grey text on grey, a white one on a light red, or a number in a full cell of a matrix, in one of the two schemes."""
    pairs = text_pairs(REPORT.read_text(encoding="utf-8"), palette(scheme), "ink")
    assert len(pairs) > 20
    assert not {name: ratio for name, pair in pairs.items() if (ratio := contrast(*pair)) < TEXT}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_each_text_of_the_browser_page_can_be_read(scheme: str) -> None:
    """The same of the page that runs an exported student."""
    pairs = text_pairs(BROWSER.read_text(encoding="utf-8"), page_palette(scheme), "text")
    assert len(pairs) > 12
    assert not {name: ratio for name, pair in pairs.items() if (ratio := contrast(*pair)) < TEXT}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_each_mark_can_be_seen(scheme: str) -> None:
    """A bar, a line or a point that vanishes on its card."""
    colours = palette(scheme)
    marks = [name for name in colours if re.fullmatch(r"term\d+|teacher|control|student|good|bad|open", name)]
    assert len(marks) >= 26
    assert not {name: ratio for name in marks if (ratio := contrast(colours[name], colours["card"])) < MARK}
    hues = HEX.findall(BROWSER.read_text(encoding="utf-8").partition("const HUES")[2].partition("];")[0])
    card = page_palette(scheme)["card"]
    assert len(hues) == 20
    assert not {hue: ratio for hue in hues if (ratio := contrast(rgb(hue), card)) < MARK}


@pytest.mark.parametrize(("scheme", "page"), [("default", "#ffffff"), ("slate", "#0b0c0f")])
def test_the_current_page_of_the_site_can_be_read(scheme: str, page: str) -> None:
    """The page that one is on is the one that its navigation hides."""
    css = SITE.read_text(encoding="utf-8")
    (text,) = re.findall(
        rf'\[data-md-color-scheme="{scheme}"\][^}}]*--md-accent-fg-color: ({HEX.pattern})', css
    )
    tint = (0.1 * a + 0.9 * b for a, b in zip(rgb("#526cfe"), rgb(page), strict=True))
    assert contrast(rgb(text), tuple(tint)) >= TEXT
