"""The manners of the command line: whole sentences, examples and exit codes in the help, and answers to what is misspelt.

It imports nothing heavy, so that `kdcli --help` is fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from kdcli.errors import ExitCode, abbreviated, suggest

DESCRIPTIONS = {
    ExitCode.DONE: "done",
    ExitCode.FAILED: "the job failed after it began; the same command continues it where it can",
    ExitCode.REFUSED: "the command line, the config or the data is wrong; nothing was changed",
    ExitCode.MISSED: "an exported file misses its budget or tolerance, or could not be made or run",
    ExitCode.INTERRUPTED: "interrupted (143: terminated)",
}
"""What each exit code means."""
CODES = (ExitCode.DONE, ExitCode.REFUSED)
"""The exit codes of a command that only shows something."""
CODES_OF_JOBS = (ExitCode.DONE, ExitCode.FAILED, ExitCode.REFUSED, ExitCode.INTERRUPTED)
"""The exit codes of a command that trains or runs models."""
EXIT_CODES = {
    **dict.fromkeys(("distill", "eval", "predict", "chat"), CODES_OF_JOBS),
    "export": tuple(DESCRIPTIONS),
    "doctor": (ExitCode.DONE,),
}
"""The exit codes of commands whose codes are not `CODES`."""
EXAMPLE = ("kdcli ", "eval ", "  ")
"""How the lines of an example in a docstring begin."""


def split_help(text: str) -> tuple[list[str], list[str]]:
    """The paragraphs of a command's docstring, each on one line, and the lines of its examples, which are paragraphs of commands."""
    paragraphs: list[str] = []
    examples: list[str] = []
    for part in text.strip().split("\n\n"):
        lines = part.splitlines()
        if all(line.startswith(EXAMPLE) for line in lines):
            examples += lines
        else:
            paragraphs.append(" ".join(part.split()))
    return paragraphs, examples


class Command(TyperCommand):
    """A command whose help has examples and exit codes, and that answers a wrong option with the key that is meant."""

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """Write the paragraphs of the docstring, and its examples as they are."""
        paragraphs, examples = split_help(self.help or "")
        for paragraph in paragraphs:
            formatter.write_paragraph()
            with formatter.indentation():
                formatter.write_text(paragraph)
        if examples:
            with formatter.section("Examples"):
                for line in examples:
                    formatter.write(f"{' ' * formatter.current_indent}{line}\n")

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the exit codes."""
        with formatter.section("Exit codes"):
            codes = EXIT_CODES.get(self.name or "", CODES)
            formatter.write_dl([(str(int(code)), DESCRIPTIONS[code]) for code in codes])

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the options; one that does not exist ends the command with exit code 2."""
        given = [*args]
        try:
            return super().parse_args(ctx, args)
        except Exception as error:  # the class is click's, or that of the copy of click in Typer
            if type(error).__name__ != "NoSuchOption" or ctx.resilient_parsing:
                raise
            option = str(getattr(error, "option_name", ""))
            known = [name for param in self.params for name in param.opts]
            raise _refused(wrong_option(self.name or "", option, given, known)) from None


class Commands(TyperGroup):
    """The commands, which the help shows in groups and in whole sentences."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write each group of commands (`rich_help_panel`) with the first paragraph of each docstring."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            if command is None or command.hidden:
                continue
            paragraphs, _ = split_help(command.help or "")
            title = command.rich_help_panel if isinstance(command.rich_help_panel, str) else "Commands"
            groups.setdefault(title, []).append((name, paragraphs[0] if paragraphs else ""))
        for title, rows in groups.items():
            with formatter.section(title):
                formatter.write_dl(rows)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command; one that does not exist ends with exit code 2 and the nearest one."""
        name = args[0] if args else ""
        if (
            name
            and self.get_command(ctx, name) is None
            and not ctx.resilient_parsing
            and not name.startswith("-")
        ):
            raise _refused(wrong_command(name, args, self.list_commands(ctx)))
        return super().resolve_command(ctx, args)


def _refused(message: str) -> typer.Exit:
    from kdcli import console

    console.error(message)
    return typer.Exit(ExitCode.REFUSED)


def wrong_command(name: str, words: Sequence[str], known: Sequence[str]) -> str:
    """The message for a command that does not exist."""
    if "=" in name:
        line = abbreviated(" ".join(words))
        return (
            f"{abbreviated(name)} is no command; write kdcli distill {line} (kdcli --help lists the commands)"
        )
    return f"there is no command {abbreviated(name)}{suggest(name, known)} (known: {', '.join(known)}; try kdcli --help)"


def wrong_option(command: str, option: str, words: Sequence[str], known: Sequence[str]) -> str:
    """The message for an option that does not exist: the config keys that it is the last part of, or the nearest option.

    Args:
        words: the words of the command line after the command.
        known: the options of the command.
    """
    from kdcli.config.index import COMMANDS, keys, keys_named

    shown = abbreviated(option)
    if command not in COMMANDS:
        return f"there is no option {shown}{suggest(option, known)} (try kdcli {command} --help)"
    name = option.lstrip("-").replace("-", "_")
    candidates = keys_named(name, command)
    if not candidates and not suggest(option, known):
        parts = {key.name.rpartition(".")[2] for key in keys(command) if not key.is_section}
        nearest = suggest(name, parts).removeprefix("; did you mean ").rstrip("?")
        candidates = keys_named(nearest, command) if nearest else []
    if not candidates:
        return (
            f"there is no option {shown}{suggest(option, known)} (try kdcli {command} --help; config keys are given as KEY=VALUE, and kdcli keys "
            "lists them)"
        )
    value = _value_of(option, words)
    written = [f"{key}={value}" for key in candidates]
    others = f" (or {', or '.join(written[1:])})" if len(written) > 1 else ""
    return f"there is no option {shown}: config keys are given as KEY=VALUE; write {written[0]}{others}"


def _value_of(option: str, words: Sequence[str]) -> str:
    """The value that stands after an option, in the same word or in the next."""
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
