"""Extends Typer: whole sentences, examples and exit codes in the help, and suggestions for misspelt words.

It imports nothing heavy, so that `kdcli --help` is fast.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from kdcli.errors import ExitCode, abbreviated, listed, suggest

PANELS = {
    "Begin": ("init", "check"),
    "Train and measure": ("distill", "eval", "compare"),
    "Use a student": ("predict", "chat", "export"),
    "Look up": ("list", "keys", "doctor", "cache", "completion"),
}
"""The groups in which the help shows the commands."""
EXAMPLE = ("kdcli ", "echo ", "cat ", "eval ", "source ", "  ")
"""The beginning of the lines of an example in a docstring."""
MISSING = {
    "kdcli init": "which data? kdcli init FILE",
    "kdcli predict": "which model? kdcli predict RUN TEXT",
    "kdcli chat": "which model? kdcli chat RUN",
    "kdcli compare": "which runs? kdcli compare RUN RUN",
    "kdcli completion": "which shell? kdcli completion bash, zsh or fish",
}
"""The messages for commands without their first word."""
CODES = "Exit codes: "
"""The beginning of the paragraph of a docstring that lists the meanings of the exit codes, separated by semicolons."""


class Help(NamedTuple):
    """The parts of a command's docstring."""

    paragraphs: list[str]
    examples: list[str]
    codes: list[tuple[str, str]]
    """Exit codes, each with its meaning."""


def split_help(text: str) -> Help:
    """Return the paragraphs of a docstring, each on one line; the lines of its examples, which are paragraphs of commands; and its exit codes."""
    parts = Help([], [], [])
    for part in text.replace("\b\n", "").strip().split("\n\n"):
        lines, line = part.splitlines(), " ".join(part.split())
        if all(each.startswith(EXAMPLE) for each in lines):
            parts.examples.extend(lines)
        elif line.startswith(CODES):
            meanings = re.split(r"[;,] (?=\d)", line.removeprefix(CODES).rstrip("."))
            parts.codes.extend(
                (code, meaning) for code, _, meaning in (each.partition(" ") for each in meanings)
            )
        else:
            parts.paragraphs.append(line)
    return parts


def write_help(parts: Help, formatter: Any) -> None:
    """Write the paragraphs of a docstring, and its examples as they are."""
    for paragraph in parts.paragraphs:
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(paragraph)
    if parts.examples:
        with formatter.section("Examples"):
            for line in parts.examples:
                formatter.write(f"{' ' * formatter.current_indent}{line}\n")


def write_codes(command: Any, formatter: Any) -> None:
    """Write the exit codes of the docstring or of the epilog of a command or a group."""
    codes = [*split_help(command.help or "").codes, *split_help(command.epilog or "").codes]
    if codes:
        with formatter.section("Exit codes"):
            formatter.write_dl(codes)


class Command(TyperCommand):
    """A command whose help has examples and exit codes, and that suggests the intended key for a wrong option."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words of the usage; the name of an argument that has brackets of its own gets no others."""
        pieces = super().collect_usage_pieces(ctx)
        return [re.sub(r"^\[(\[.*)\](\.\.\.)?$", r"\1", piece) for piece in pieces]

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """Write the paragraphs of the docstring, and its examples as they are."""
        write_help(split_help(self.help or ""), formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the exit codes of the docstring or of the epilog."""
        write_codes(self, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the options and arguments; a wrong one ends the command with exit code 2."""
        given = [*args]
        with _one_message(ctx, given):
            return super().parse_args(ctx, args)


class Commands(TyperGroup):
    """A group of commands, which the help shows by topic and in whole sentences."""

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """Write the paragraphs of the docstring, and its examples as they are."""
        write_help(split_help(self.help or ""), formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write each group of commands, with the first paragraph of each docstring."""
        titles = {name: title for title, names in PANELS.items() for name in names}
        names = sorted(
            self.list_commands(ctx), key=lambda name: [*titles].index(name) if name in titles else -1
        )
        groups: dict[str, list[tuple[str, str]]] = {}
        for name in names:
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                paragraphs = split_help(command.help or "").paragraphs
                groups.setdefault(titles.get(name, "Commands"), []).append((name, (paragraphs or [""])[0]))
        for title, rows in groups.items():
            with formatter.section(title):
                formatter.write_dl(rows)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the exit codes of the docstring or of the epilog."""
        write_codes(self, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the options before the command; a wrong one ends it with exit code 2."""
        given = [*args]
        with _one_message(ctx, given):
            return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command; one that does not exist ends with exit code 2 and the nearest one."""
        name = args[0] if args else ""
        if (
            name
            and self.get_command(ctx, name) is None
            and not ctx.resilient_parsing
            and not name.startswith("-")
        ):
            raise _refused(wrong_command(_program(ctx), name, args, self.list_commands(ctx)))
        return super().resolve_command(ctx, args)


class App(typer.Typer):
    """A Typer program with `Command` and `Commands`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            cls=Commands,
            add_completion=False,
            rich_markup_mode=None,
            pretty_exceptions_enable=False,
            **options,
        )

    def command(self, *names: Any, **options: Any) -> Any:
        """Add a command."""
        return super().command(*names, **{"cls": Command, **options})


def _refused(message: str) -> typer.Exit:
    from kdcli import console

    console.error(message)
    return typer.Exit(ExitCode.REFUSED)


@contextmanager
def _one_message(ctx: Any, given: Sequence[str]) -> Iterator[None]:
    """Turn an error of click into one message and exit code 2.

    Args:
        given: the words after the command.
    """
    try:
        yield
    except Exception as error:  # the class is click's, or that of the copy of click in Typer
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if "UsageError" not in kinds or "NoArgsIsHelpError" in kinds or ctx.resilient_parsing:
            raise
        program, command = _program(ctx), ctx.command
        if "NoSuchOption" in kinds:
            option = str(getattr(error, "option_name", ""))
            options = [name for param in command.params for name in param.opts]
            if ctx.parent is None and (after := _having(command.commands, option)):
                name = next((word for word in given if word in after), listed(after))
                message = f"{abbreviated(option)} is an option of {name}; write it after the command: kdcli {name} … {option}"
            else:
                takes_keys = ctx.parent is None or any(param.name == "overrides" for param in command.params)
                config = command.name if command.name in ("eval", "export") else "distill"
                message = wrong_option(program, config if takes_keys else None, option, given, options)
        elif "MissingParameter" in kinds and program in MISSING:
            message = MISSING[program]
        else:
            text = error.format_message().strip()  # type: ignore[attr-defined]
            message = f"{text[:1].lower()}{text[1:].rstrip('.')} (try {program} --help)"
        raise _refused(message) from None


def _program(ctx: Any) -> str:
    """Return the words that start a command: kdcli, kdcli distill, kdcli cache ls."""
    return "kdcli" if ctx.parent is None else f"{_program(ctx.parent)} {ctx.info_name}"


def _having(commands: Mapping[str, Any], option: str) -> list[str]:
    """Return the commands that have an option."""
    return [
        name
        for name, command in commands.items()
        if any(option in param.opts for param in command.params) and not command.hidden
    ]


def wrong_command(program: str, name: str, words: Sequence[str], commands: Sequence[str]) -> str:
    """Return the message for a command that does not exist.

    Args:
        program: the words before it.
    """
    if "=" in name and program == "kdcli":
        line = abbreviated(" ".join(words))
        return (
            f"{abbreviated(name)} is no command; write kdcli distill {line} (kdcli --help lists the commands)"
        )
    meant = suggest(name, commands)
    known = "" if meant else f"known: {', '.join(commands)}; "
    return f"there is no command {abbreviated(name)}{meant} ({known}try {program} --help)"


def wrong_option(
    program: str, config: str | None, option: str, words: Sequence[str], options: Sequence[str]
) -> str:
    """Return the message for an option that does not exist: the config keys that it is the last part of, or the nearest option or key.

    Args:
        program: the words before it, which start the command.
        config: the command whose config keys the command takes; None: it takes none.
        words: the words of the command line after the command.
        options: the options of the command.
    """
    from kdcli.config.index import MOST_SUGGESTED, keys_meant, keys_named

    shown = abbreviated(option)
    if config is None:
        return f"there is no option {shown}{suggest(option, options)} (try {program} --help)"
    name = option.lstrip("-").replace("-", "_")
    candidates = keys_named(name, config)
    if not candidates and not suggest(option, options):
        candidates = keys_meant(name, config)[:MOST_SUGGESTED]
    if not candidates:
        return (
            f"there is no option {shown}{suggest(option, options)} (try {program} --help; config keys are given as KEY=VALUE, and kdcli keys "
            "lists them)"
        )
    value = _value_of(option, words)
    before = "kdcli distill " if program == "kdcli" else ""
    written = [f"{before}{key}={value}" for key in candidates]
    others = f" (or {', or '.join(written[1:])})" if len(written) > 1 else ""
    return f"there is no option {shown}: config keys are given as KEY=VALUE; write {written[0]}{others}"


def _value_of(option: str, words: Sequence[str]) -> str:
    """Return the value that stands after an option, in the same word or in the next."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == option:
            return (
                abbreviated(following)
                if following and "=" not in following and following[0] != "-"
                else "true"
            )
        if word.startswith(f"{option}="):
            return abbreviated(word.partition("=")[2])
    return "…"
