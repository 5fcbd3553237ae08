"""Completion of the command line in bash, zsh and fish: of commands, options, config groups, keys, values and paths.

The script of a shell calls `kdcli completion SHELL --line LINE` for each completion. The answer's first line tells what follows: `words`; `open`,
for words that are not complete yet (`trainer.`, `seed=`); or `files`, where the shell completes paths by itself.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from kdcli.config.groups import config_groups, describe_option, group_options
from kdcli.config.index import Key, all_keys, keys, keys_below
from kdcli.errors import KDError

Candidates = list[tuple[str, str]]
"""Words, each with a description."""
FILES = "files"
"""The description that stands for a path, which the shell completes."""
NOTHING = "nothing"
"""The description that stands for a value of which nothing is known."""
BASH = r"""
_kdcli_complete() {
    local line=${COMP_LINE:0:COMP_POINT} current=${COMP_WORDS[COMP_CWORD]} mode="" typed prefix word
    [[ $current == [=:] ]] && current=""
    typed=${line##*[[:space:]]}
    prefix=${typed%"$current"}  # what stands before the = at which bash cuts words
    COMPREPLY=()
    while IFS= read -r word; do
        if [[ -z $mode ]]; then mode=$word; else COMPREPLY+=("${word#"$prefix"}"); fi
    done < <("$1" completion bash --line "$line" 2>/dev/null)
    if [[ $mode == files ]]; then
        compopt -o filenames 2>/dev/null
        while IFS= read -r word; do COMPREPLY+=("$word"); done < <(compgen -f -- "$current")
    elif [[ $mode == open ]]; then
        compopt -o nospace 2>/dev/null
    fi
}
complete -F _kdcli_complete kdcli
"""
ZSH = r"""#compdef kdcli
_kdcli() {
    local -a lines values displays
    local line mode
    lines=("${(@f)$("${words[1]}" completion zsh --line "${(j: :)words[1,CURRENT-1]} $PREFIX" 2>/dev/null)}")
    mode=${lines[1]}
    shift lines
    if [[ $mode == files ]]; then
        compset -P '*='
        _files
        return
    fi
    for line in "${lines[@]}"; do
        values+=("${line%%$'\t'*}")
        displays+=("${line/$'\t'/  -- }")
    done
    if [[ $mode == open ]]; then
        compadd -S '' -l -d displays -- "${values[@]}"
    else
        compadd -l -d displays -- "${values[@]}"
    fi
}
compdef _kdcli kdcli
"""
FISH = r"""function __kdcli_complete
    set -l words (commandline -opc)
    set -l token (commandline -ct)
    set -l lines ($words[1] completion fish --line "$words $token" 2>/dev/null)
    if test "$lines[1]" = files
        set -l head (string match -r '^.*=' -- $token)
        set -l rest (string replace -r '^.*=' '' -- $token)
        for path in (__fish_complete_path $rest)
            echo "$head$path"
        end
    else
        printf '%s\n' $lines[2..-1]
    end
end
complete -c kdcli -f -a '(__kdcli_complete)'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
"""The script of each shell."""


def answer(shell: str, root: Any, line: str) -> list[str]:
    """The lines that a shell's script reads.

    Args:
        root: the command of the whole program.
        line: the command line up to the cursor.
    """
    try:
        items = candidates(root, line)
    except KDError:  # the command itself reports it
        items = []
    if not items or any(description == FILES for _, description in items):
        return [FILES]
    items = [item for item in items if item[1] != NOTHING]
    mode = "open" if items and all(word.endswith((".", "=")) for word, _ in items) else "words"
    described = [word if shell == "bash" or not text else f"{word}\t{_short(text)}" for word, text in items]
    return [mode, *described]


def candidates(root: Any, line: str) -> Candidates:
    """The words that may stand at the end of a command line."""
    from typer._completion_classes import BashComplete  # its public subclasses read variables of shells

    words = _split(line)
    items = BashComplete(root, {}, "kdcli", "").get_completions(words[1:-1], words[-1])
    return [(item.value, FILES if item.type in ("file", "dir") else item.help or "") for item in items]


def _split(line: str) -> list[str]:
    """The words of a line, the last of which is not complete and may be empty."""
    try:
        words = shlex.split(line)
    except ValueError:  # a quote is open
        words = line.split()
    return [*words, ""] if not line or line[-1].isspace() else words


def override_candidates(command: str, typed: Sequence[str], incomplete: str) -> Candidates:
    """The config groups and keys that begin with a word, or after = the options and values.

    Args:
        command: distill, eval or export.
        typed: the overrides before it, which choose the components.
    """
    known = keys(command, _options(typed))
    sign = re.match(r"[+~]*", incomplete)
    before = sign[0] if sign else ""
    name, equals, value = incomplete[len(before) :].partition("=")
    found = _values(name, value, known) if equals else _names(name, known)
    return [(f"{before}{word}", text) for word, text in found]


def key_candidates(typed: Sequence[str], incomplete: str) -> Candidates:
    """The keys and options that `kdcli keys` takes."""
    name, equals, value = incomplete.partition("=")
    known = all_keys(_options(typed))
    if equals:
        return _options_of(name, value)
    return [
        (word.rstrip("=") if word.rstrip("=") not in config_groups() else word, text)
        for word, text in _names(name, known)
    ]


def group_candidates() -> Candidates:
    """The config groups."""
    return [(group, "") for group in config_groups()]


def _options(typed: Iterable[str]) -> dict[str, str | None]:
    """The options of config groups among overrides, without those that do not exist."""
    pairs = [word.split("=", 1) for word in typed if "=" in word]
    groups = config_groups()
    return {group: option for group, option in pairs if group in groups and option in group_options(group)}


def _names(incomplete: str, known: Sequence[Key]) -> Candidates:
    """The keys and groups that begin with a text, up to their next dot."""
    below = keys_below(incomplete.rpartition(".")[0], known) if "." in incomplete else known
    groups = {key.name for key in known if "." not in key.name} & set(config_groups())
    groups |= (
        {"experiment", "debug"} & set(config_groups()) if any(key.name == "seed" for key in known) else set()
    )
    found = {
        f"{group}=": f"option of the config group {group}"
        for group in sorted(groups)
        if group.startswith(incomplete)
    }
    for key in below:
        name = key.name
        if (
            not name.startswith(incomplete)
            or "NAME" in name[len(incomplete) :]
            or "TERM" in name[len(incomplete) :]
        ):
            continue
        inner, dot, _ = name[len(incomplete) :].partition(".")
        if dot:
            found.setdefault(f"{incomplete}{inner}.", "")
        elif key.is_section:
            found[f"{name}."] = key.meaning
        else:
            found[f"{name}="] = key.meaning
    return list(found.items())


def _values(name: str, value: str, known: Sequence[Key]) -> Candidates:
    """The options of a group or the values of a key; of a list, or a sweep, those of its last item."""
    if name in config_groups():
        return _options_of(name, value)
    key = next((key for key in keys_below(name, known) if key.name == name), None)
    if key is None or key.is_path:
        return [(f"{name}={value}", FILES)]
    before = re.sub(r"[^\[,]*$", "", value)
    return [(f"{name}={before}{each}", key.meaning) for each in key.values] or [
        (f"{name}={value}", key.meaning)
    ]


def _options_of(group: str, value: str) -> Candidates:
    before = re.sub(r"[^\[,]*$", "", value)
    return [(f"{group}={before}{option}", describe_option(group, option)) for option in group_options(group)]


def _short(text: str) -> str:
    """The first sentence, in one line."""
    return text.partition(". ")[0].replace("\n", " ").replace("\t", " ")[:100]

