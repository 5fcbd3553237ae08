"""The only module that prints: results to stdout (``out``), logs and progress to stderr (``err``).

A terminal gets colour, a live progress display and word wrap. A pipe or a file gets plain lines that are
never truncated, so that ``kdcli eval ... | grep`` and a CI log both stay readable. The choice is made
at each print and not at import, because streams are redirected later (by pytest, by a launcher).
User text, such as a label called ``[bold]``, is never read as markup, and control characters are printed as their codes, so that
no text reaches the terminal as a command. Errors, warnings and log lines are bounded.
"""

from __future__ import annotations

import logging
import math
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic
from types import TracebackType
from typing import Any, Literal

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from kdcli.errors import bounded, printable, without_environment

out = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
err = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)
_NOISY = (
    "absl",
    "datasets",
    "huggingface_hub",
    "matplotlib",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "torch",
    "torchao",
    "transformers",
)
_NOISY_ENV = {  # these libraries set their log level when they are imported, which happens later
    "DATASETS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "TORCH_LOGS": "-torch.utils._pytree",  # deprecation warnings that are addressed to torchao
    "TRANSFORMERS_VERBOSITY": "error",
}
_LEVEL_STYLES = {
    "DEBUG": "dim",
    "INFO": "cyan",
    "ERROR": "bold red",
    "CRITICAL": "bold red",
}
_NUMBER = re.compile(r"[-+]?[\d.]|n/a$|$")


def _interactive(console: Console) -> bool:
    """Return whether the output goes to a terminal that a person reads; ``FORCE_COLOR`` does not make a log file one."""
    if os.environ.get("CI", "").lower() not in ("", "0", "false", "no"):
        return False
    return console.is_terminal and console.is_interactive and console.file.isatty()


_silent = False
"""Nothing is printed; set by `silenced`."""


@contextmanager
def silenced(wanted: bool = True) -> Iterator[None]:
    """Print nothing until the block ends. Log records still reach the root logger.

    Args:
        wanted: if False, everything is printed as usual.
    """
    global _silent
    before, _silent = _silent, wanted or _silent
    try:
        yield
    finally:
        _silent = before


def _print(console: Console, message: str, head: str = "", head_style: str = "", style: str = "") -> None:
    """Print ``head message``; in a terminal wrapped between words, so that a long path can still be copied."""
    if _silent:
        return
    text = printable(f"{head} {message}" if head else message)
    encoding = getattr(console.file, "encoding", None) or "utf-8"
    text = text.encode(encoding, "backslashreplace").decode(encoding)
    if not _interactive(console):
        print(text, file=console.file, flush=True)
        return
    wrapper = textwrap.TextWrapper(console.width, break_long_words=False, break_on_hyphens=False)
    lines = [wrapper.fill(line) for line in text.split("\n")]
    view = Text("\n".join(lines), style)
    view.stylize(head_style, 0, len(head))
    console.print(view, soft_wrap=True)


def say(message: str, style: str = "") -> None:
    """Print a result to stdout, wrapped at words in a terminal and verbatim in a pipe, without values of environment variables."""
    _print(out, without_environment(message), style=style)


def write(part: str) -> None:
    """Print a part of a result to stdout as it is, without a line break, at once."""
    text = printable(part)
    encoding = getattr(out.file, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), end="", file=out.file, flush=True)


def error(message: str) -> None:
    """Print ``error: message`` to stderr, without markup and without a break inside a word or a path."""
    _print(err, bounded(message), "error:", "bold red")


def warn(message: str) -> None:
    """Print ``warning: message`` to stderr, in the manner of ``error``."""
    _print(err, bounded(message), "warning:", "bold yellow")


class _LogHandler(logging.Handler):
    """``INFO message`` on stderr, and ``warning: message`` as `warn` prints it; above the live display, if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if record.levelno == logging.WARNING:
                warn(self.format(record))
                return
            level = record.levelname
            _print(err, bounded(self.format(record)), level, _LEVEL_STYLES.get(level, ""))
        except Exception:
            self.handleError(record)


def setup_logging(verbose: bool = False) -> None:
    """Send the ``kdcli`` logger to stderr (INFO, or DEBUG if ``verbose``) and quieten the libraries below it.

    May be called again: it never adds a second handler. Records still reach the root logger, so that a log
    file set up there gets them; handlers of the root that write to stdout or stderr (Hydra's does, to stdout)
    are taken off, or every line would come twice. Libraries may report only errors, unless ``verbose``.
    """
    logger = logging.getLogger("kdcli")
    others = int(os.environ.get("RANK", "0")) > 0  # of several processes, the main one speaks
    logger.setLevel(logging.DEBUG if verbose else logging.ERROR if others else logging.INFO)
    logger.handlers = [h for h in logger.handlers if not isinstance(h, _LogHandler)] + [_LogHandler()]
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, logging.StreamHandler) and handler.stream in (sys.stdout, sys.stderr):
            root.removeHandler(handler)
    if verbose:
        return
    for name, value in _NOISY_ENV.items():
        os.environ.setdefault(name, value)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module=rf"{name}(\.|$)")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table to stdout; a column of numbers is right-aligned.

    ``rows`` hold as many cells as there are ``columns``. In a terminal cells wrap to its width; in a pipe the
    same text is aligned with spaces, one line a row whatever its length. Line breaks and control characters are written as codes.
    """
    if _silent:
        return
    rows = [[printable(without_environment(cell)).replace("\n", "\\n") for cell in row] for row in rows]
    right = [all(_NUMBER.match(row[i]) for row in rows) for i in range(len(columns))]
    if _interactive(out):
        heading = Text(title, "bold not italic") if title else None
        view = Table(title=heading, title_justify="left", box=box.SIMPLE_HEAD)
        view.pad_edge, view.show_edge, view.padding = False, False, (0, 1, 0, 0)
        for column, numeric in zip(columns, right, strict=True):
            justify: Literal["left", "right"] = "right" if numeric else "left"
            view.add_column(Text(column), justify=justify, no_wrap=numeric, overflow="fold")
        for row in rows:
            view.add_row(*map(Text, row))
        out.print(view, soft_wrap=False)
        return
    lines = [list(columns), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    if title:
        say(title)
    for line in lines:
        cells = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)]
        say("  ".join(cells).rstrip())


def entry(term: str, lines: Sequence[str]) -> None:
    """Print a term to stdout with indented lines below it, which are wrapped to the width of a terminal, and verbatim in a pipe."""
    say(term, "bold")
    for line in lines:
        width = out.width if _interactive(out) else len(line) + 5
        indented = textwrap.fill(
            printable(line), width, initial_indent="    ", subsequent_indent="    ", break_long_words=False
        )
        say(indented)


def duration(seconds: float) -> str:
    """``0.8 s``, ``12 s``, ``1:05`` (minutes), ``2:03:04`` (hours)."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    hours, minutes = divmod(rounded // 60, 60)
    return f"{hours}:{minutes:02}:{rounded % 60:02}" if hours else f"{minutes}:{rounded % 60:02}"


State = Literal["waiting", "running", "done", "skipped", "failed", "interrupted"]


class ProgressStage:
    """One line of a run's progress. ``ProgressStages.stage`` makes, starts and ends it.

    A stage may have several parts (the splits of a data set, for example); ``seconds`` is the time of the last one.

    Attributes:
        label: what the stage does, for the terminal.
        unit: what its steps are: rows, completions …
    """

    def __init__(self, name: str, notify: Callable[[ProgressStage], None], label: str = "") -> None:
        self.name, self.label, self.unit = name, label or name, ""
        self.state: State = "waiting"
        self.earlier = 0.0  # seconds of the parts before this one
        self._notify = notify
        self._reset(None)

    def _reset(self, total: int | None) -> None:
        self.total, self.step, self.extra = total, 0, ""
        self.terms: dict[str, float] = {}
        self._began = self._ended = monotonic()
        self._first: tuple[int, float] | None = None  # the first update; a resumed stage begins beyond step 0

    def begin(self, total: int | None) -> None:
        """Start the clock for the first part or for a further one."""
        self.earlier += self.seconds
        self.state = "running"
        self._reset(total)

    def end(self, state: State) -> None:
        """Stop the clock."""
        self._ended, self.state = monotonic(), state

    def update(
        self, step: int, terms: Mapping[str, float] | None = None, extra: str = "", total: int | None = None
    ) -> None:
        """Report that ``step`` steps are done; arguments that are not given keep their last values."""
        self.step = step
        self.total = total or self.total
        self.terms = dict(terms) if terms else self.terms
        self.extra = extra or self.extra
        if self._first is None:
            self._first = (step, monotonic())
        self._notify(self)

    @property
    def seconds(self) -> float:
        """Seconds since the last part began, or that it took once it has ended."""
        return (monotonic() if self.state == "running" else self._ended) - self._began

    @property
    def fraction(self) -> float | None:
        """The share of the steps that is done, 0 to 1; None if the number of steps is unknown."""
        return min(self.step / self.total, 1.0) if self.total else None

    @property
    def remaining(self) -> float | None:
        """Seconds until the last step, at the speed since the first update; None before there is a speed."""
        if not self.total or self._first is None or self.step <= self._first[0]:
            return None
        per_step = (monotonic() - self._first[1]) / (self.step - self._first[0])
        return per_step * max(self.total - self.step, 0)

    def timing(self) -> tuple[str, str]:
        """``45%`` and ``eta 1:05``; empty strings before they are known."""
        if not self.total or self.fraction is None:
            return "", ""
        remaining = self.remaining
        eta = "" if remaining is None else f"eta {duration(remaining)}"
        return f"{math.floor(100 * self.fraction)}%", eta

    def figures(self) -> str:
        """``450/1000, score .731, soft_label 0.41, hard_label 0.9``; without the steps once the stage is done."""
        steps = f"{self.step}/{self.total}" if self.total else str(self.step or "")
        steps += f" {self.unit}" if steps and self.unit else ""
        terms = [f"{name} {value:.4g}" for name, value in self.terms.items()]
        return ", ".join(filter(None, ["" if self.state == "done" else steps, self.extra, *terms]))


_observers: list[Callable[[ProgressStage], object]] = []


@contextmanager
def observed(callback: Callable[[ProgressStage], object] | None) -> Iterator[None]:
    """Call a function with each stage that begins, advances, ends or is skipped, until the block ends; None: there is no function."""
    if callback is None:
        yield
        return
    _observers.append(callback)
    try:
        yield
    finally:
        _observers.remove(callback)


def _observe(stage: ProgressStage) -> None:
    for callback in _observers:
        callback(stage)


class ProgressStages:
    """The progress of a run that goes through named stages, on stderr.

    In a terminal: one line per stage, the current one with bar, remaining time and live loss terms. Elsewhere: one
    line when a stage begins, one when it ends, and between them one every 10 s or 10 % (less often if it takes
    hours). ``quiet`` (processes of rank > 0) shows nothing; ``ProgressStage.seconds`` still counts. An exception,
    Ctrl-C included, is shown on its stage's line and raised again, after the terminal is restored.
    """

    def __init__(
        self, names: Sequence[str], *, quiet: bool = False, labels: Mapping[str, str] | None = None
    ) -> None:
        given = labels or {}
        self._stages = {name: ProgressStage(name, self._updated, given.get(name, "")) for name in names}
        self._width = max((len(stage.label) for stage in self._stages.values()), default=0)
        self._live: Live | None = None
        self._quiet = quiet
        self._reported = (0.0, 0.0)  # plain lines: when the last one was printed, and at which fraction
        self._spinner = Spinner("dots", style="cyan")
        self._expected: dict[str, float] = {}

    def expect(self, seconds: Mapping[str, float]) -> None:
        """Set how long stages are expected to take, by their names, so that the remaining time of all of them can be shown."""
        self._expected = dict(seconds)

    def remaining(self, stage: ProgressStage) -> float | None:
        """Return seconds until the end of all stages: of the current one at its own speed, and of the later ones as they are expected to take,
        multiplied by how much longer the earlier ones took than they were expected to. None: not known."""
        later = [each for each in self._stages.values() if each.state == "waiting"]
        own = stage.remaining
        if own is None and stage.name in self._expected:
            own = max(0.0, self._expected[stage.name] * self._pace() - stage.seconds)
        if own is None or not all(each.name in self._expected for each in later):
            return None
        return own + self._pace() * sum(self._expected[each.name] for each in later)

    def _pace(self) -> float:
        """Return the seconds that the finished stages took, as a share of what they were expected to take, between a fifth and five times."""
        done = [
            each for each in self._stages.values() if each.state == "done" and self._expected.get(each.name)
        ]
        expected = sum(self._expected[each.name] for each in done)
        taken = sum(each.earlier + each.seconds for each in done)
        return min(5.0, max(0.2, taken / expected)) if expected else 1.0

    def _timing(self, stage: ProgressStage) -> tuple[str, str]:
        """``45%``, and ``eta 1:05, run 3:20``: of the stage, and of all stages where that is known and others follow."""
        share, eta = stage.timing()
        remaining = self.remaining(stage)
        if remaining is None or not any(each.state == "waiting" for each in self._stages.values()):
            return share, eta
        return share, ", ".join(filter(None, [eta, f"run {duration(remaining)}"]))

    def __enter__(self) -> ProgressStages:
        if not self._quiet and not _silent and _interactive(err):
            self._live = Live(self, console=err, refresh_per_second=8, redirect_stdout=_interactive(out))
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "") -> Iterator[ProgressStage]:
        """Run one stage, of ``total`` steps (or what `unit` names) if their number is known. Raises KeyError for a name that was not announced."""
        stage = self._stages[name]
        stage.unit = unit
        stage.begin(total)
        self._reported = (monotonic(), 0.0)
        unit = unit or "steps"
        self._line(
            stage, f"start, {total} {unit.removesuffix('s') if total == 1 else unit}" if total else "start"
        )
        _observe(stage)
        state: State = "failed"
        try:
            yield stage
            state = "done"
        except KeyboardInterrupt:
            state = "interrupted"
            raise
        finally:
            stage.end(state)
            took = f"{state} {'in' if state == 'done' else 'after'} {duration(stage.seconds)}"
            self._line(stage, ", ".join(filter(None, [took, stage.figures()])))
            _observe(stage)

    def skip(self, name: str, reason: str) -> None:
        """Mark a stage as not needed, for example because its result is cached."""
        stage = self._stages[name]
        stage.state, stage.extra = "skipped", reason
        self._line(stage, reason)
        _observe(stage)

    def _updated(self, stage: ProgressStage) -> None:
        _observe(stage)
        now, fraction = monotonic(), stage.fraction or 0.0
        since, advanced = now - self._reported[0], fraction - self._reported[1]
        if since >= min(max(10.0, stage.seconds / 10), 120.0) or (advanced >= 0.1 and since >= 1.0):
            self._reported = (now, fraction)
            share, eta = self._timing(stage)
            self._line(stage, ", ".join(filter(None, [share, stage.figures(), eta])))

    def _line(self, stage: ProgressStage, message: str) -> None:
        if self._live is None and not self._quiet:
            number = list(self._stages).index(stage.name) + 1
            _print(err, f"[{number}/{len(self._stages)}] {stage.label}: {message}")

    def __rich__(self) -> RenderableType:
        return Group(*(line for stage in self._stages.values() for line in self._view(stage)))

    def _view(self, stage: ProgressStage) -> Iterator[RenderableType]:
        """Yield the lines of one stage, each truncated to the width of the terminal."""
        tick, cross, dot = "✓✗·" if err.encoding.lower().startswith("utf") else "+x."
        name, took = stage.label.ljust(self._width), duration(stage.earlier + stage.seconds)
        if stage.state == "waiting":
            yield _one_line((f"{dot} {name}", "dim"))
        elif stage.state == "skipped":
            yield _one_line((tick, "green"), f" {name}  ", (stage.extra, "dim"))
        elif stage.state == "done":
            yield _one_line((tick, "green"), f" {name}  {took:<8}", (stage.figures(), "dim"))
        elif stage.state == "running":
            share, eta = self._timing(stage)
            bar = ProgressBar(total=stage.total, completed=stage.step, width=24, pulse=not stage.total)
            line = Table.grid(padding=(0, 1))
            line.add_row(self._spinner, Text(name, style="bold"), bar, f"{share:>4}", took, Text(eta, "cyan"))
            yield line
            yield _one_line("  ", (stage.figures(), "dim"))
        else:
            ended = f" {name}  {stage.state} after {took}  "
            yield _one_line((cross, "bold red"), ended, (stage.figures(), "dim"))


def _one_line(*parts: Any) -> Text:
    """Return a line of the live display, which is truncated and not wrapped, so that the display does not jump."""
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")
