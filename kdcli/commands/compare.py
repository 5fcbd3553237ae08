"""Implements `kdcli compare`, which shows finished runs, sweeps and exported files in one table, and on one page."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from kdcli import console
from kdcli.errors import ConfigError, ExitCode
from kdcli.files import user_path
from kdcli.numbers import format_items
from kdcli.report.comparison import compare as compare_runs
from kdcli.report.tables import comparison_table


def compare(paths: Sequence[Path], out: Path | None, overwrite: bool, as_json: bool) -> int:
    """Compare runs. A table or JSON goes to stdout, the page to `out`.

    Raises:
        ConfigError: a path is no run, sweep or export; or `out` exists and `overwrite` is not given.
    """
    page = None if out is None else user_path(out)
    if page is not None:
        if page.is_dir():
            raise ConfigError(f"--out {page} is a folder; give a file, such as {page / 'compare.html'}")
        if page.exists() and not overwrite:
            raise ConfigError(f"--out {page} exists; give another file, or --overwrite")
    comparison = compare_runs([user_path(path) for path in paths])
    if page is not None:
        from kdcli.report.compare_page import write_comparison

        write_comparison(page, comparison, format_items(len(comparison["runs"]), "run", "runs and files"))
    if as_json:
        console.say(json.dumps(comparison, indent=2, ensure_ascii=False))
    else:
        comparison_table(comparison)
        _end(paths, page, len(comparison["runs"]))
    return ExitCode.DONE


def _end(paths: Sequence[Path], page: Path | None, count: int) -> None:
    """Print where the page is, and the command that usually follows: with another run, or with a page."""
    given = shlex.join(map(str, paths))
    if page is not None:
        console.say(f"page: {page}")
    if count == 1:
        console.say(f"give a second run to compare; next: kdcli compare {given} OTHER")
    elif page is None:
        console.say(f"next: kdcli compare {given} --out compare.html")
