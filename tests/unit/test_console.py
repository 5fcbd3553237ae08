"""kdcli.console: what reaches stdout and stderr, in a terminal and in a pipe."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path

import pytest
from rich.console import Console

from kdcli import console
from kdcli.errors import KDError, listed, shown
from kdcli.pipeline.stages import described

LONG = "/home/someone/a/folder/that/is/nested/deeply/enough/to/be/longer/than/a/line/of/eighty/columns.json"


class Terminal(StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """Time that passes when told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """Stdout as a terminal of 80 columns without colour, outside a CI service."""
    monkeypatch.delenv("CI", raising=False)
    stream = Terminal()
    monkeypatch.setattr(
        console, "out", Console(file=stream, width=80, force_terminal=True, color_system=None)
    )
    monkeypatch.setattr(console.out, "is_interactive", True)
    yield stream
    assert "\x1b" not in stream.getvalue()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the stages."""
    clock = Clock()
    monkeypatch.setattr(console, "monotonic", clock)
    return clock


@pytest.fixture
def logs(monkeypatch: pytest.MonkeyPatch) -> Iterator[logging.Logger]:
    """The kdcli logger; loggers, levels and environment variables are put back afterwards."""
    for name in console._NOISY_ENV:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    loggers = [logging.getLogger(name) for name in ("kdcli", *console._NOISY)]
    root = logging.getLogger()
    before = [(logger, logger.level, list(logger.handlers)) for logger in (*loggers, root)]
    yield loggers[0]
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


# --- lines ---


def test_error_is_plain_and_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """A path in an error is broken over two lines, a [label] is swallowed as markup, or stdout gets it."""
    console.error(f"no column [bold]text[/bold] in {LONG}; name it with dataset.text=")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"error: no column [bold]text[/bold] in {LONG}; name it with dataset.text=\n"


def test_warning_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    """A warning ends up among the results that a script reads."""
    console.warn("[b] is left out")
    assert capsys.readouterr() == ("", "warning: [b] is left out\n")


def test_say_in_a_terminal_breaks_at_words_only(terminal: Terminal) -> None:
    """A sentence is cut inside a word at the edge of the terminal, or a path gets a line break of its own."""
    console.say(
        "some words before the path that make it wrap around: " + LONG + " " + "and words after it " * 5
    )
    lines = terminal.getvalue().splitlines()
    assert lines[1] == LONG
    assert max(len(line) for line in lines if LONG not in line) <= 80


def test_forced_colour_leaves_a_pipe_plain() -> None:
    """FORCE_COLOR, which CI services set, fills logs and result files with escape codes and cursor movements."""
    code = (
        "from kdcli import console as c; c.setup_logging(); c.say('a', style='bold'); c.error('b'); "
        "c.table('t', ['x'], [['1']])\n"
        "with c.ProgressStages(['s']) as stages, stages.stage('s', 3) as stage: stage.update(1, {'loss': 0.5})"
    )
    environment = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": "10", "TERM": "xterm-256color"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert "\x1b" not in done.stdout + done.stderr
    assert done.stdout == "a\nt\nx\n1\n"


ESCAPES = "\x1b]0;owned\x07 \x1b[2J \r \x9b31m \u202e \ud800 \x00"


def test_no_text_reaches_the_terminal_as_a_command(
    capsys: pytest.CaptureFixture[str], terminal: Terminal, logs: logging.Logger
) -> None:
    """A label or a path with escape sequences clears the screen, sets its title, or writes backwards over a message."""
    console.setup_logging()
    console.error(ESCAPES)
    console.warn(ESCAPES)
    logs.warning("%s", ESCAPES)
    console.say(ESCAPES)
    console.table("", ["label"], [[f"{ESCAPES}\nerror: forged"]])
    captured = capsys.readouterr().err + terminal.getvalue()
    assert not set(captured) & (set(ESCAPES) - set("]0;owned[2J 31m"))
    assert captured.count(r"\u001b[2J") == 5
    assert "\nerror: forged" not in captured


def test_no_message_is_endless(capsys: pytest.CaptureFixture[str], logs: logging.Logger) -> None:
    """A value of a million characters, or ten thousand problems, fill the terminal and the log."""
    console.setup_logging()
    for text in ("x" * 10**6, "a line of a problem\n" * 10**5):
        for show in (console.error, console.warn, logs.error):
            show(f"begins {text} ends")
            said = capsys.readouterr().err
            assert len(said) < 6000
            assert "begins" in said
            assert said.endswith("ends\n")
            assert "characters omitted" in said


def test_a_stream_that_cannot_write_a_character_gets_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message in an ASCII log, or one with half a character in a path, ends in UnicodeEncodeError."""
    stream = TextIOWrapper(BytesIO(), encoding="ascii")
    monkeypatch.setattr(console, "out", Console(file=stream, soft_wrap=True, markup=False))
    console.say("fünf \ud800")
    stream.flush()
    assert stream.buffer.getvalue() == b"f\\xfcnf \\ud800\n"  # type: ignore[attr-defined]


def test_values_and_lists_in_messages_are_abbreviated() -> None:
    """A message repeats a whole file, or cannot be made: of an integer of 5,000 digits, or of nested lists."""
    nested: list[object] = []
    for _ in range(10**5):
        nested = [nested]
    for value in ("x" * 10**6, 10**5000, nested, {"a": ["b" * 10**5]}, list(range(10**5)), "\x1b" * 10**4):
        assert len(shown(value)) <= 310
        assert len(listed([value] * 1000)) <= 1300
        assert len(KDError(f"{shown(value)} {listed([value] * 1000)}").message) < 2000
    assert shown("short") == "'short'"
    assert listed(["a", "b"]) == "a, b"
    assert listed(map(str, range(10**4))).endswith("180, 181 and 9,818 more")


def test_import_is_light() -> None:
    """`kdcli --help` waits for torch because the console imports it."""
    code = "import kdcli.console, sys; print(sorted({'torch', 'numpy', 'matplotlib', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- logging ---


def test_logs_go_to_stderr_once(logs: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    """Every line comes twice after a second set-up or beside Hydra's handler, which writes to stdout."""
    logging.getLogger().addHandler(logging.StreamHandler(sys.stdout))
    console.setup_logging()
    console.setup_logging()
    logging.getLogger("kdcli.trainer").warning("a [bold]label[/bold] in %s", LONG)
    logging.getLogger("kdcli.trainer").debug("detail")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"warning: a [bold]label[/bold] in {LONG}\n"


def test_verbose_shows_details(logs: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    """verbose changes nothing, or cannot be taken back."""
    console.setup_logging(verbose=True)
    logs.debug("detail")
    console.setup_logging()
    logs.debug("hidden")
    assert capsys.readouterr().err == "DEBUG detail\n"


def test_logs_still_reach_a_file(logs: logging.Logger, tmp_path: Path) -> None:
    """The log file that Hydra keeps in the run directory stays empty."""
    handler = logging.FileHandler(tmp_path / "run.log")
    logging.getLogger().addHandler(handler)
    console.setup_logging()
    logs.warning("kept")
    handler.close()
    assert (tmp_path / "run.log").read_text() == "kept\n"


def test_libraries_are_quiet(logs: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    """A page of warnings of transformers and onnx hides the two lines of ours that matter."""
    console.setup_logging()
    for name in ("transformers.modeling_utils", "onnxscript", "absl"):
        logging.getLogger(name).warning("noise")
    assert capsys.readouterr().err == ""
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "error"


def test_users_own_verbosity_wins(logs: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Someone who debugs with TRANSFORMERS_VERBOSITY=info is silenced by us."""
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    console.setup_logging()
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "info"


# --- tables ---


def test_piped_table_is_aligned_and_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    """A script that reads a table finds cells cut to 80 columns, wrapped, or run together."""
    console.table("runs", ["name", "score"], [[LONG, "9.5 %"], ["[b]", "n/a"], ["c", "100.0 %"]])
    assert capsys.readouterr().out.splitlines() == [
        "runs",
        "name".ljust(len(LONG)) + "    score",
        LONG + "    9.5 %",
        "[b]".ljust(len(LONG)) + "      n/a",
        "c".ljust(len(LONG)) + "  100.0 %",
    ]


def test_table_without_rows_or_title(capsys: pytest.CaptureFixture[str]) -> None:
    """An empty list ends in a traceback, or leaves an empty line where its title would be."""
    console.table("", ["name", "score"], [])
    assert capsys.readouterr().out == "name  score\n"


def test_terminal_table_fits(terminal: Terminal) -> None:
    """Long text pushes a table beyond the terminal, or its numbers are broken over two lines."""
    console.table(
        "[t]", ["name", "score", "why"], [["a" * 60, "+12.5 %", "[i]words[/i] " * 10], ["b", "n/a", ""]]
    )
    lines = terminal.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].strip() == "[t]"
    assert any("+12.5 %" in line for line in lines)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (9.96, "10 s"), (59.6, "1:00"), (3599.7, "1:00:00"), (7384, "2:03:04")],
)
def test_duration(seconds: float, text: str) -> None:
    """Rounding makes 60 s or 1:60 out of a minute."""
    assert console.duration(seconds) == text


# --- stages ---


def test_plain_stages(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """A CI log shows nothing for an hour, or not which stage a run is in."""
    with console.ProgressStages(["teacher", "student"]) as stages:
        stages.skip("teacher", "from the cache")
        with stages.stage("student", total=200) as stage:
            stage.update(0, {"soft_label": 0.5})
            clock.now += 20
            stage.update(50, {"soft_label": 0.4123456}, extra="score .731")
            clock.now += 60
            stage.update(200)
        assert stage.seconds == 80
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "[1/2] teacher: from the cache",
        "[2/2] student: start, 200 steps",
        "[2/2] student: 25%, 50/200, score .731, soft_label 0.4123, eta 1:00",
        "[2/2] student: 100%, 200/200, score .731, soft_label 0.4123, eta 0.0 s",
        "[2/2] student: done in 1:20, score .731, soft_label 0.4123",
    ]


@pytest.mark.parametrize(("step_seconds", "most"), [(0.001, 2), (0.1, 14), (5.0, 70)])
def test_plain_stages_are_sparse(
    clock: Clock, capsys: pytest.CaptureFixture[str], step_seconds: float, most: int
) -> None:
    """A log grows by a line a step, or a run of hours fills it."""
    with console.ProgressStages(["student"]) as stages, stages.stage("student", total=1000) as stage:
        for step in range(1000):
            clock.now += step_seconds
            stage.update(step + 1)
    assert 2 <= len(capsys.readouterr().err.splitlines()) <= most


def test_the_remaining_time_of_a_run(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """An ETA of the first of four stages, which looks like that of the run; or later stages that are expected to be as quick as
    they were thought to be, on a machine that has turned out slower."""
    with console.ProgressStages(["teacher", "student", "control", "evaluate"]) as stages:
        stages.expect({"teacher": 10.0, "student": 100.0, "control": 100.0, "evaluate": 20.0})
        with stages.stage("teacher"):
            clock.now += 20.0
        with stages.stage("student", 100) as stage:
            stage.update(0)
            clock.now += 30.0
            stage.update(10)
        with stages.stage("control", 10):
            pass
        with stages.stage("evaluate", 10) as stage:
            stage.update(0)
            clock.now += 30.0
            stage.update(5)
    lines = capsys.readouterr().err.splitlines()
    [student] = [line for line in lines if line.startswith("[2/4] student: 10%")]
    assert student.endswith("eta 4:30, run 8:30"), (
        "270 s, and twice 120 s: the first stage took twice its time"
    )
    [last] = [line for line in lines if line.startswith("[4/4] evaluate: 50%")]
    assert last.endswith("eta 30 s")


def test_eta_of_a_resumed_stage(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Steps that were done before the run was killed count as speed, and the time to go is far too short."""
    with console.ProgressStages(["student"]) as stages, stages.stage("student", total=1000) as stage:
        stage.update(900)
        clock.now += 50
        stage.update(950)
    assert "95%, 950/1000, eta 50 s" in capsys.readouterr().err


def test_stage_in_parts(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """A stage that runs once a split keeps the steps and the speed of the split before."""
    with console.ProgressStages(["signals"]) as stages:
        for split in ("train", "test"):
            with stages.stage("signals", 10) as stage:
                assert (stage.step, stage.extra) == (0, "")
                clock.now += 3
                stage.update(10, extra=split)
            assert stage.seconds == 3
        assert stage.earlier == 3
    assert "done in 3.0 s, test" in capsys.readouterr().err


@pytest.mark.parametrize(("problem", "word"), [(ValueError, "failed"), (KeyboardInterrupt, "interrupted")])
def test_stage_that_does_not_end_well(
    clock: Clock, capsys: pytest.CaptureFixture[str], problem: type[BaseException], word: str
) -> None:
    """A failure is swallowed, or the log says that the stage was done."""

    def run() -> None:
        with console.ProgressStages(["student"]) as stages, stages.stage("student", 10) as stage:
            stage.update(4)
            raise problem

    with pytest.raises(problem):
        run()
    assert capsys.readouterr().err.splitlines()[-1] == f"[1/1] student: {word} after 0.0 s, 4/10"


def test_quiet_stages(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Eight processes print every line eight times, or the quiet ones do not know how long a stage took."""
    with console.ProgressStages(["a", "b"], quiet=True) as stages:
        stages.skip("a", "cached")
        with stages.stage("b") as stage:
            clock.now += 100
            stage.update(1)
    assert stage.seconds == 100
    assert capsys.readouterr() == ("", "")


def test_unknown_stage_is_refused() -> None:
    """A misspelt stage is shown nowhere."""
    with (
        pytest.raises(KeyError, match="studnet"),
        console.ProgressStages(["student"]) as stages,
        stages.stage("studnet"),
    ):
        pass


IN_A_TERMINAL = """
import logging, sys, time
from kdcli import console
from kdcli.errors import KDError, listed, shown
console.setup_logging()
with console.ProgressStages(["teacher", "student", "control"]) as stages:
    stages.skip("teacher", "cached")
    with stages.stage("student", 100) as stage:
        stage.update(0)
        time.sleep(0.01)
        terms = {f"a_rather_long_name_of_a_term_{i}": 0.5 for i in range(5)}
        stage.update(50, terms, "score .731")
        logging.getLogger("kdcli").warning("a warning")
        time.sleep(0.3)
        if "stop" in sys.argv:
            raise KeyboardInterrupt
    with stages.stage("control"):
        pass
console.say("result")
"""


@pytest.mark.parametrize(
    ("ci", "plain"), [("1", True), ("true", True), ("", False), ("0", False), ("false", False)]
)
def test_ci_is_no_terminal(ci: str, plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CI service that has a terminal fills its log with the frames of a live display."""
    monkeypatch.setenv("CI", ci)
    terminal = Console(force_terminal=True, file=open(os.devnull, "w"))  # noqa: SIM115
    monkeypatch.setattr(terminal.file, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert console._interactive(terminal) is not plain


def test_stages_are_named_by_what_they_do_and_in_what(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """897 steps of a stage that takes rows; or a stage called teacher, which may be tuned, or queried."""
    names = ["first/teacher", "teacher outputs", "student/last", "evaluate"]
    assert [described(name) for name in names] == [
        "tune teacher (first)", "teacher outputs", "train student/last", "evaluate",
    ]  # fmt: skip
    labels = {"teacher": described("teacher")}
    with (
        console.ProgressStages(["teacher"], labels=labels) as stages,
        stages.stage("teacher", 4, "rows") as stage,
    ):
        clock.now += 20
        stage.update(2)
    assert capsys.readouterr().err.splitlines()[:2] == [
        "[1/1] tune teacher: start, 4 rows",
        "[1/1] tune teacher: 50%, 2/4 rows",
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
@pytest.mark.parametrize("stop", [False, True])
def test_stages_leave_the_terminal_sane(stop: bool) -> None:
    """Ctrl-C leaves a terminal without a cursor; a line that wraps makes the display climb up the screen."""
    import pty
    import termios

    main, other = pty.openpty()
    termios.tcsetwinsize(other, (24, 80))
    environment = {
        key: value for key, value in os.environ.items() if key not in ("CI", "COLUMNS", "NO_COLOR")
    }
    environment |= {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", "TTY_COMPATIBLE": "1"}
    command = [sys.executable, "-c", IN_A_TERMINAL, *(["stop"] if stop else [])]
    process = subprocess.Popen(command, stdin=other, stdout=other, stderr=other, env=environment)
    os.close(other)
    shown = b""
    while True:
        try:
            data = os.read(main, 65536)
        except OSError:  # Linux: the other end was closed
            break
        if not data:
            break
        shown += data
    os.close(main)
    assert process.wait() != 0 if stop else process.wait() == 0
    text = shown.decode()
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1
    lines = [
        line for part in text.split("\r") for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", part).splitlines()
    ]
    assert max(map(len, lines)) <= 80
    joined = "\n".join(lines)
    for part in ("✓ teacher  cached", "50%", "50/100, score .731", "warning: a warning", "· control"):
        assert part in joined
    assert re.search("✗ student  interrupted after" if stop else r"✓ student  \d\.\d s", joined)
    assert ("result" in joined) is not stop
