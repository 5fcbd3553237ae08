"""Formats numbers for people: units, significant digits, intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

_MAX_TEXT = 4000  # characters of one text on the page


def format_number(value: Any) -> float | None:
    """Return the value if it is a finite number, else None."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _scaled(value: Any, base: str, units: Sequence[str], plain: str) -> str:
    number = format_number(value)
    if number is None:
        return "n/a"
    for power in range(len(units), 0, -1):
        if abs(number) >= 999.5 * 1000 ** (power - 1):
            scaled = number / 1000**power
            return f"{scaled:.{0 if scaled >= 99.95 else 1}f}{base}{units[power - 1]}"
    return plain.format(number)


def format_count(value: Any) -> str:
    return _scaled(value, "", ("k", "M", "B", "T"), "{:.0f}")


def format_items(count: int, name: str, plural: str = "") -> str:
    """Return a number with what it counts: ``1 row``, ``1,200 rows``."""
    return f"{count:,} {name if count == 1 else plural or f'{name}s'}"


def format_bytes(value: Any) -> str:
    return _scaled(value, " ", ("kB", "MB", "GB", "TB"), "{:.0f} B")


def format_milliseconds(value: Any) -> str:
    number = format_number(value)
    if number is None:
        return "n/a"
    return f"{number:.2f} ms" if number < 1 else f"{number:.1f} ms" if number < 100 else f"{number:,.0f} ms"


def format_rate(value: Any) -> str:
    number = format_number(value)
    return "n/a" if number is None else f"{number:.1f}" if number < 100 else f"{number:,.0f}"


def format_share(value: Any) -> str:
    """Return a retention in percent, rounded down below 1: what was lost must not be rounded away."""
    number = format_number(value)
    if number is None:
        return "n/a"
    percent = 100 * number
    if 0 < percent < 0.1:
        return "under 0.1 %"
    return f"{math.floor(10 * percent + 1e-6) / 10 if percent < 100 else percent:,.1f} %"


def format_age(seconds: float) -> str:
    """``3 days``, ``2 hours``, ``under a minute``; a time that goes back to 1970 is not known."""
    if seconds > 40 * 365 * 86400:
        return "its age is not known"
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count:,} {unit}{'s' if count > 1 else ''} old"
    return "under a minute old"


def format_significant(value: float, digits: int) -> str:
    """Return a figure of at least 1 as ``14.2``, ``1.23k``, ``45.6M``."""
    if not value < 999e12:
        return "over 999T"
    rounded = float(f"{value:.{digits - 1}e}")
    power = max(0, math.floor(math.log10(rounded)) // 3)
    scaled = rounded / 1000**power
    return (
        f"{scaled:.{max(0, digits - 1 - math.floor(math.log10(scaled)))}f}{('', 'k', 'M', 'B', 'T')[power]}"
    )


def format_apart(*values: float, digits: int = 2) -> list[str]:
    """Format figures to compare, with enough decimals that different figures look different and none but 0 looks like 0."""
    for more in range(digits, digits + 4):
        rounded = [round(value, more) for value in values]
        if len(set(rounded)) == len(set(values)) and all(
            r for r, v in zip(rounded, values, strict=True) if v
        ):
            break
    return [f"{value:.{more}f}" for value in values]


def format_pair(bounds: Any) -> tuple[float | None, float | None]:
    low, high = bounds or (None, None)
    return format_number(low), format_number(high)


def format_times(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:,.0f}"


def truncate_text(value: Any) -> str:
    """Truncate a text to what the page shows."""
    plain = str(value or "").encode(errors="replace").decode().strip()
    return plain if len(plain) <= _MAX_TEXT else plain[:_MAX_TEXT].rstrip() + " …"
