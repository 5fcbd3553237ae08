"""Completes the command line in bash, zsh and fish: commands, options, config groups, keys, values and paths.

The script of a shell calls `kdcli completion SHELL --line LINE` for each completion. The first line of its output states what follows: `words`; `open`,
for words that are not complete yet (`trainer.`, `seed=`, `runs/`); or `files`, where the shell completes paths by itself.
"""

from __future__ import annotations

import glob
import os
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from kdcli.config.groups import config_groups, describe_option, group_options
from kdcli.config.index import COMMANDS, ConfigKey, all_keys, keys, keys_below
from kdcli.errors import ConfigError, ExitCode, KDError, abbreviated

Candidates = list[tuple[str, str]]
"""Words, each with a description."""
FILES = "files"
"""The description that stands for a path, which the shell completes."""
NOTHING = "nothing"
"""The description that stands for a value without known candidates."""
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
if [[ ${funcstack[1]} == _kdcli ]]; then  # it was read as a function of fpath
    _kdcli "$@"
else
    compdef _kdcli kdcli
fi
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


def complete(shell: str, line: str | None, root: Callable[[], Any]) -> int:
    """Print the script of a shell, or what completes a line; returns the exit code.

    Args:
        line: the command line up to the cursor; None: the script is wanted.
        root: makes the command of the whole program, which is not needed for config keys.

    Raises:
        ConfigError: the shell is another one.
    """
    if shell not in SCRIPTS:
        raise ConfigError(f"{abbreviated(shell)}: expected one of {', '.join(SCRIPTS)}")
    print(SCRIPTS[shell].strip() if line is None else "\n".join(answer(shell, line, root)))
    return ExitCode.DONE


def answer(shell: str, line: str, root: Callable[[], Any]) -> list[str]:
    """Return the lines that a shell's script reads."""
    try:
        items = candidates(line, root)
    except KDError:  # the command itself reports it
        items = []
    if not items or any(description == FILES for _, description in items):
        return [FILES]
    items = [item for item in items if item[1] != NOTHING]
    mode = "open" if items and all(word.endswith((".", "=", "/")) for word, _ in items) else "words"
    described = [word if shell == "bash" or not text else f"{word}\t{_short(text)}" for word, text in items]
    return [mode, *described]


def candidates(line: str, root: Callable[[], Any]) -> Candidates:
    """Return the words that may stand at the end of a command line.

    Typer's own completion is not used: it parses the line first, which imports pydantic, and it takes = for the end of an option.
    """
    _, *words, incomplete = _split(line)
    if words and words[0] in COMMANDS and not incomplete.startswith("-") and not words[-1].startswith("-"):
        typed = [word for word in words[1:] if not word.startswith("-")]
        return override_candidates(words[0], typed, incomplete)
    command, typed, pending = root(), [], None
    for word in words:
        commands = getattr(command, "commands", {})
        if pending is not None:
            pending = None
        elif word in commands:
            command, typed = commands[word], []
        elif word.startswith("-"):
            pending = next((each for each in command.params if word in each.opts and not each.is_flag), None)
        else:
            typed.append(word)
    if pending is not None:
        return _of_parameter(command.name, pending, typed, incomplete)
    if incomplete.startswith("-"):
        shown = [each for each in command.params if each.param_type_name == "option" and not each.hidden]
        items = [(name, each.help or "") for each in shown for name in each.opts]
    elif hasattr(command, "commands"):
        shown = [each for each in command.commands.values() if not each.hidden]
        items = [(each.name, (each.help or "").partition("\n\n")[0]) for each in shown]
    else:
        arguments = [each for each in command.params if each.param_type_name == "argument"]
        at = min(len(typed), len(arguments) - 1)
        if at < 0 or (at < len(typed) and arguments[at].nargs == 1):
            return [(incomplete, NOTHING)]
        return _of_parameter(command.name, arguments[at], typed, incomplete)
    return [(word, text) for word, text in items if word.startswith(incomplete)] or [(incomplete, NOTHING)]


VALUES = {
    "cfg": ("job", "hydra", "all"),
    "info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
    "shell": tuple(SCRIPTS),
    "older_than": ("12h", "7d", "30d"),
    "system": (),
    "temperature": (),
    "seed": (),
    "max_new_tokens": (),
}
"""The values, or examples of them, of options and arguments that take no path, by their names."""


def _of_parameter(command: str, parameter: Any, typed: Sequence[str], incomplete: str) -> Candidates:
    """Return the values of an option or argument: a path, unless its name tells more."""
    name = parameter.name
    if name == "overrides":
        return override_candidates("distill" if command not in COMMANDS else command, typed, incomplete)
    if name == "words":
        return key_candidates(typed, incomplete)
    if name == "keys":
        return data_candidates(incomplete)
    values = _known_values(name)
    if values is None:
        return [(incomplete, FILES)]
    return [item for item in values if item[0].startswith(incomplete)] or [(incomplete, NOTHING)]


def _known_values(name: str) -> Candidates | None:
    """Return the values of an option or argument by its name, each with a description; None: it takes a path."""
    if name == "group":
        return [(group, "") for group in config_groups()]
    if name not in ("kind", "teacher"):
        return [(value, "") for value in VALUES[name]] if name in VALUES else None
    from kdcli.cache_notes import KINDS, entries

    if name == "kind":
        return list(KINDS.items())
    teachers = sorted({entry.note["teacher"] for entry in entries() if entry.note})
    return [(teacher, "") for teacher in teachers if shlex.quote(teacher) == teacher]


def data_candidates(incomplete: str) -> Candidates:
    """Return the keys of the data set that `kdcli init` takes: all but the path, which is its first word."""
    all_keys = [
        key for key in keys("distill") if key.name.startswith("dataset.") and key.name != "dataset.path"
    ]
    name, equals, value = incomplete.partition("=")
    items = _values(name, value, all_keys) if equals else _names(name, all_keys)
    return [(word, text) for word, text in items if word.startswith(incomplete)] or [(incomplete, NOTHING)]


def _split(line: str) -> list[str]:
    """Return the words of a line, the last of which is not complete and may be empty."""
    try:
        words = shlex.split(line)
    except ValueError:  # a quote is open
        words = line.split()
    return [*words, ""] if not line or line[-1].isspace() else words


def override_candidates(command: str, typed: Sequence[str], incomplete: str) -> Candidates:
    """Return the config groups and keys that begin with a word, or after = the options and values.

    Args:
        command: distill, eval or export.
        typed: the overrides before it, which choose the components.
    """
    all_keys = keys(command, _options(typed))
    sign = re.match(r"[+~]*", incomplete)
    before = sign[0] if sign else ""
    name, equals, value = incomplete[len(before) :].partition("=")
    items = _values(name, value, all_keys) if equals else _names(name, all_keys)
    items += _paths(incomplete) if not typed and not equals else []
    return [(f"{before}{word}", text) for word, text in items if word.startswith(incomplete[len(before) :])]


def _paths(incomplete: str) -> Candidates:
    """Return the folders and the YAML files that begin with a text: the first word may be a run or a config."""
    folder, name = os.path.split(incomplete)
    try:
        entries = sorted(Path(folder or ".").glob(f"{glob.escape(name)}*")) if incomplete else []
        return [
            (f"{entry}/" if entry.is_dir() else str(entry), "")
            for entry in entries
            if entry.is_dir() or entry.suffix in (".yaml", ".yml")
        ]
    except (OSError, ValueError):  # a name that no file can have
        return []


def key_candidates(typed: Sequence[str], incomplete: str) -> Candidates:
    """Return the keys and options that `kdcli keys` takes."""
    name, equals, value = incomplete.partition("=")
    if equals:
        items = _options_of(name, value)
        return [(word, text) for word, text in items if word.startswith(incomplete)]
    groups = config_groups()
    names = ((word.rstrip("="), word, text) for word, text in _names(name, all_keys(_options(typed))))
    return [(word if bare in groups else bare, text) for bare, word, text in names]


def _options(typed: Iterable[str]) -> dict[str, str | None]:
    """Return the options of config groups among overrides, without those that do not exist."""
    pairs = [word.split("=", 1) for word in typed if "=" in word]
    groups = config_groups()
    return {group: option for group, option in pairs if group in groups and option in group_options(group)}


def _names(incomplete: str, all_keys: Sequence[ConfigKey]) -> Candidates:
    """Return the keys and groups that begin with a text, up to their next dot."""
    below = keys_below(incomplete.rpartition(".")[0], all_keys) if "." in incomplete else all_keys
    names = {key.name for key in all_keys}
    names |= {"experiment", "debug"} if "trainer" in names else set()  # groups that set keys of others
    groups = names & set(config_groups())
    items = {
        f"{group}=": f"option of the config group {group}"
        for group in sorted(groups)
        if group.startswith(incomplete)
    }
    for key in below:
        name, rest = key.name, key.name[len(incomplete) :]
        if not name.startswith(incomplete) or any(part.isupper() for part in rest.split(".")):
            continue  # a part in capitals stands for a name of the user
        inner, dot, _ = rest.partition(".")
        if dot:
            items.setdefault(f"{incomplete}{inner}.", "")
        elif key.is_section:
            items[f"{name}."] = key.meaning
        else:
            items[f"{name}="] = key.meaning
    return list(items.items())


def _values(name: str, value: str, all_keys: Sequence[ConfigKey]) -> Candidates:
    """Return the options of a group or the values of a key; of a list, or a sweep, those of its last item."""
    if name in config_groups():
        return _options_of(name, value)
    key = next((key for key in keys_below(name, all_keys) if key.name == name), None)
    if key is None or key.is_path:
        return [(f"{name}={value}", FILES)]
    before = re.sub(r"[^\[,]*$", "", value)
    known_values = [(f"{name}={before}{each}", key.meaning) for each in key.values]
    return known_values or [(f"{name}={value}", NOTHING)]


def _options_of(group: str, value: str) -> Candidates:
    before = re.sub(r"[^\[,]*$", "", value)
    return [(f"{group}={before}{option}", describe_option(group, option)) for option in group_options(group)]


def _short(text: str) -> str:
    """Return the first sentence, in one line."""
    return text.partition(". ")[0].replace("\n", " ").replace("\t", " ")[:100]
