"""Indexes all config keys: type, range, default, choices and meaning of each, and of the arguments of the chosen components.

`kdcli keys`, completion, the answers to wrong options and the documentation read it. It comes from the sources of the schema and of the
components' classes (`kdcli.config.declarations`) and from the YAML files (`kdcli.config.groups`), without importing torch or pydantic.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kdcli.config.declarations import (
    REQUIRED,
    Alternative,
    Class,
    Declaration,
    arguments,
    fields,
    find_class,
)
from kdcli.config.groups import Choice, choose, config_groups, group_options
from kdcli.errors import ConfigError, abbreviated, abbreviates, nearest

SCHEMA = "kdcli.config.schema"
COMMANDS = {"distill": f"{SCHEMA}.Distill", "eval": f"{SCHEMA}.Eval", "export": f"{SCHEMA}.Export"}
"""The commands that have a config, each with the class of its schema."""
PLACEHOLDERS = {"loss": "TERM"}
"""What stands for a name that the user chooses in a mapping; NAME elsewhere."""
ABOUT = {
    "debug": "Rehearsals of a run.",
    "experiment": "Published recipes: each chooses options of other groups and sets keys of them.",
    "recipe": "What is chosen along with the data set of the same name.",
}
"""The config groups that set keys of others."""
MOST_SUGGESTED = 2
"""The most keys that a message suggests."""
EXACT = 10_000_000
"""Powers of ten are written out below it."""


@dataclass(frozen=True)
class ConfigKey:
    """One key of a config.

    Attributes:
        name: with dots; a part in capitals (stages.NAME.rows) stands for a name that the user chooses.
        commands: the commands that have it, with all that follows: a key whose default differs has an entry for each.
        group: its first part, if it has several or is a section; else empty.
        type: in words.
        range: in words; empty: all values of the type.
        default: plain data, as the schema and the chosen options set it; None if it is `required`.
        required: it has no default.
        choices: the values that are allowed, or some of them if `type` names further types.
        meaning: what it does, on one line.
        option: the option (loss=jsd) that sets its default, or whose class has it as an argument; empty: the schema alone.
        target: the class that takes it as an argument; empty: it is a key of kdcli's schema.
    """

    name: str
    commands: tuple[str, ...]
    group: str
    type: str
    range: str
    default: Any
    required: bool
    choices: tuple[str, ...]
    meaning: str
    option: str = ""
    target: str = ""

    @property
    def is_section(self) -> bool:
        """Whether it is a mapping, whose keys have entries of their own."""
        return self.type.startswith("section")

    @property
    def values(self) -> list[str]:
        """The values that completion offers; of a key with free values none, and not null alone."""
        words = self.type.split(" or ")
        choices = [*(["true", "false"] if "boolean" in words else []), *self.choices]
        return [*choices, "null"] if choices and "null" in words else choices

    @property
    def is_path(self) -> bool:
        """Whether its value may be a path."""
        return "path" in self.type.split(" or ")

    def as_json(self) -> dict[str, Any]:
        """Return all attributes as plain data."""
        return asdict(self)


OF_HYDRA = (
    ConfigKey("hydra.run.dir", tuple(COMMANDS), "hydra", "path", "", "runs/COMMAND/DATE-TIME", False, (),
        "The run directory. The same command on the same directory continues a run that was interrupted."),
    ConfigKey("hydra.sweep.dir", tuple(COMMANDS), "hydra", "path", "", "runs/sweeps/DATE-TIME", False, (),
        "The directory of a sweep (-m), with one run directory for each job."),
    ConfigKey("hydra.sweep.subdir", tuple(COMMANDS), "hydra", "text", "", "${hydra:job.num}", False, (),
        "The name of each job's run directory in the directory of a sweep."),
    ConfigKey("hydra/launcher", tuple(COMMANDS), "hydra", "choice", "", "basic", False, ("basic", "joblib", "submitit_local", "submitit_slurm"),
        "What starts the jobs of a sweep: one after the other (basic), side by side (joblib; pip install 'kdcli[sweep]'), or on a cluster."),
)  # fmt: skip
"""The keys of Hydra that a user may set."""


def keys(command: str, options: Mapping[str, str | None] | None = None) -> list[ConfigKey]:
    """Return the keys of a command, with the arguments of the chosen components, in the order of the schema.

    Of a stage's `trainer`, `dataset`, `student` and `loss`, whose keys are those of the run, only the keys that the options set are there;
    `keys_below` has all.

    Args:
        options: options of config groups that are chosen in place of the command's defaults (`loss: jsd`).

    Raises:
        ConfigError: there is no such option, or a file of the user's is wrong.
    """
    schema = find_class(COMMANDS[command])
    assert schema is not None
    walk = _Walk(command, choose(command, options or {}))
    return [*walk.section(schema, "", walk.choice.values, {}), *OF_HYDRA]


def all_keys(options: Mapping[str, str | None] | None = None) -> list[ConfigKey]:
    """Return the keys of all commands. Keys that are equal in several commands are one, which names these commands.

    Raises:
        ConfigError: there is no such option, or a file of the user's is wrong.
    """
    merged: dict[tuple[Any, ...], ConfigKey] = {}
    for command in COMMANDS:
        for key in keys(command, options):
            content = {name: value for name, value in asdict(key).items() if name != "commands"}
            same = tuple(map(repr, content.values()))
            before = merged[same].commands if same in merged else ()
            merged[same] = ConfigKey(
                commands=(*before, *(each for each in key.commands if each not in before)), **content
            )
    names = list(dict.fromkeys(key.name for key in merged.values()))
    return sorted(merged.values(), key=lambda key: names.index(key.name))


def keys_below(prefix: str, candidates: Sequence[ConfigKey]) -> list[ConfigKey]:
    """Return the keys that a prefix matches: the key itself and those below it, or else those whose name begins with it.

    A name that the user chooses (stages.general.rows, loss.my_term.weight) matches its placeholder, and below a stage the keys are those
    of the run's own sections.
    """
    inner = re.fullmatch(r"(stages\.[^.]+)\.((?:trainer|dataset|student|loss)(?:\..*)?)", prefix)
    if inner:
        there = [key for key in keys_below(inner[2], candidates) if "distill" in key.commands]
        renamed = [_renamed(key, f"{inner[1]}.{key.name}") for key in there]
        own = [key for key in candidates if f"{key.name}.".startswith(f"{prefix}.")]
        return list({key.name: key for key in [*renamed, *own]}.values())
    parts = prefix.rstrip(".").split(".")
    below = [
        _renamed(key, ".".join([*parts, *names[len(parts) :]]))
        for key in candidates
        if _matches(names := key.name.split("."), parts)
    ]
    return below or [key for key in candidates if key.name.startswith(prefix)]


def _matches(names: Sequence[str], parts: Sequence[str]) -> bool:
    return len(names) >= len(parts) and all(
        name == part or name.isupper() for name, part in zip(names, parts, strict=False)
    )


def _renamed(key: ConfigKey, name: str) -> ConfigKey:
    return ConfigKey(**{**{each: getattr(key, each) for each in key.__dataclass_fields__}, "name": name})


def keys_named(name: str, command: str) -> list[str]:
    """Return the keys of a command whose last part is a name, the likeliest first: epochs is trainer.epochs and teacher.trainer.epochs. A config group
    is a key, too.
    """
    groups = config_groups()
    names = {key.name for key in keys(command) if not key.is_section or key.name in groups}
    return _named(name, names)


def _named(name: str, names: Iterable[str]) -> list[str]:
    return sorted((key for key in names if name in (key, key.rpartition(".")[2])), key=_likelihood)


def _likelihood(key: str) -> tuple[int, bool, str]:
    """Return what sorts keys of the same name: those of the run before those of its parts, and those of the training first."""
    return key.count("."), not key.startswith("trainer."), key


def similar_keys(name: str, names: Iterable[str]) -> list[str]:
    """Return the keys that a misspelt or abbreviated name means, the likeliest first: the nearest key, or those whose last part is the nearest one to
    the name (lr: trainer.learning_rate and teacher.trainer.learning_rate)."""
    names = set(names)
    section, _, last = name.replace("-", "_").rpartition(".")
    inside = {key for key in names if not section or key.startswith(f"{section}.")}
    parts = {key: key.rpartition(".")[2] for key in sorted(inside, key=_likelihood)}
    abbreviated_parts = (part for part in parts.values() if abbreviates(last, part))
    if part := next(abbreviated_parts, None) or nearest(last, set(parts.values())):
        return _named(part, inside)
    complete = nearest(name, names)
    return [] if complete is None else [complete]


def keys_meant(name: str, command: str) -> list[str]:
    """Return the keys of a command whose last part is a name, or else those that the misspelt or abbreviated name means, the likeliest first."""
    return keys_named(name, command) or similar_keys(
        name, (key.name for key in keys(command) if not key.is_section)
    )


def suggest_keys(name: str, names: Iterable[str]) -> str:
    """Return `; did you mean X?` with the keys that a misspelt or abbreviated name means; an empty string: there is none."""
    similar = similar_keys(name, names)
    return f"; did you mean {' or '.join(similar[:MOST_SUGGESTED])}?" if similar else ""


def describe_group(group: str) -> str:
    """Return what a config group is, in sentences."""
    sections = (key for command in COMMANDS for key in keys(command) if key.name == group)
    return ABOUT.get(group) or next(
        (f"{key.meaning} Its keys: kdcli keys {group} {group}=NAME." for key in sections), ""
    )


def no_such_key(prefix: str, candidates: Sequence[ConfigKey]) -> ConfigError:
    """Return the error for a name that is no key and begins none, with the options that have it, or the nearest key."""
    group = prefix.partition(".")[0]
    if prefix in config_groups():
        return ConfigError(
            f"{prefix} is a config group, and its options set keys of others; look at kdcli list {prefix}"
        )
    having = [
        f"{group}={option}"
        for option in (group_options(group) if "." in prefix and group in config_groups() else ())
        if any(key.name == prefix for key in keys("distill", {group: option}))
    ]
    if having:
        return ConfigError(
            f"{abbreviated(prefix)} is a key of {', '.join(having)}; name one of them: kdcli keys {abbreviated(prefix)} {having[0]}"
        )
    names = list(dict.fromkeys(key.name for key in candidates))
    return ConfigError(
        f"{abbreviated(prefix)}: there is no such key{suggest_keys(prefix, names)} (look it up with kdcli keys)"
    )


@dataclass(frozen=True)
class _Walk:
    """Walks through a schema, and through the classes that the chosen options name.

    Attributes:
        choice: the values of the chosen options.
    """

    command: str
    choice: Choice

    def section(self, cls: Class, path: str, values: Any, defaults: Any) -> Iterator[ConfigKey]:
        """Yield the keys of a section.

        Args:
            values: those that the chosen options set there.
            defaults: those with which the schema makes the section, where they differ from its class's.
        """
        own = fields(cls)
        yield from self._declared(own, path, values, defaults, "")
        target = values.get("_target_") if isinstance(values, dict) else None
        if any(field.name == "_target_" for field in own) and (component_class := find_class(str(target))):
            declared = [
                each for each in arguments(component_class) if each.name not in {field.name for field in own}
            ]
            yield from self._declared(declared, path, values, {}, component_class.path)

    def _declared(
        self, declared: Iterable[Declaration], path: str, values: Any, defaults: Any, target: str
    ) -> Iterator[ConfigKey]:
        inherited = set(_stage_sections()) if path.startswith("stages.") and path.count(".") == 1 else set()
        for each in declared:
            name = f"{path}.{each.name}".lstrip(".")
            value = values.get(each.name, None) if isinstance(values, dict) else None
            given = isinstance(values, dict) and each.name in values
            default = (
                defaults[each.name] if isinstance(defaults, dict) and each.name in defaults else each.default
            )
            yield self._key(each, name, value if given else default, target)
            inner = self._below(each, name, value, default)
            yield from (key for key in inner if key.option) if each.name in inherited else inner

    def _below(self, declared: Declaration, name: str, value: Any, default: Any) -> Iterator[ConfigKey]:
        """Yield the keys below a declared key."""
        for cls in (alternative.section for alternative in declared.allowed):
            if cls is not None:
                yield from self.section(cls, name, value, default)
        for item in (item for alternative in declared.allowed for item in alternative.items):
            if item.section is not None:
                yield from self._named(item.section, name, value, PLACEHOLDERS.get(declared.name, "NAME"))

    def _named(self, cls: Class, path: str, values: Any, placeholder: str) -> Iterator[ConfigKey]:
        """Yield the keys of the sections in a mapping: of each that the options have there if it has components, or else of a placeholder."""
        declared = fields(cls)
        several = any(
            field.name == "_target_" or any(each.section for each in field.allowed) for field in declared
        )
        named = dict(values) if isinstance(values, dict) and values and several else {placeholder: {}}
        for name, inner in named.items():
            yield from self.section(cls, f"{path}.{name}", inner, {})

    def _key(self, declared: Declaration, name: str, default: Any, target: str) -> ConfigKey:
        sections = [each.section for each in declared.allowed if each.section is not None]
        meaning = declared.meaning or (sections[0].description if sections else "")
        shown = None if (sections and default is not None) or default == REQUIRED else default
        words = [describe_type(each) for each in declared.allowed]
        group = name.partition(".")[0] if "." in name or sections else ""
        return ConfigKey(
            name=name,
            commands=(self.command,),
            group=group,
            type=" or ".join(dict.fromkeys(words)),
            range=describe_range(declared.allowed),
            default=shown,
            required=default == REQUIRED and not sections,
            choices=tuple(choice for each in declared.allowed for choice in _choices(each)),
            meaning=meaning,
            option=self.choice.origins.get(name, self._option_of(name) if target else ""),
            target=target,
        )

    def _option_of(self, name: str) -> str:
        """Return the option that names the class of a component's argument."""
        path = name
        while path := path.rpartition(".")[0]:
            if f"{path}._target_" in self.choice.origins:
                return self.choice.origins[f"{path}._target_"]
        return ""


@functools.cache
def _stage_sections() -> list[str]:
    """Return the sections that a stage inherits from the run."""
    run, stage = (find_class(f"{SCHEMA}.{name}") for name in ("Distill", "StageConfig"))
    assert run is not None
    assert stage is not None
    names = {field.name for field in fields(run)}
    return [
        field.name
        for field in fields(stage)
        if field.name in names and any(each.section or each.items for each in field.allowed)
    ]


def _choices(alternative: Alternative) -> tuple[str, ...]:
    """Return the choices of a value, or of a list's items."""
    return alternative.choices + tuple(choice for item in alternative.items for choice in _choices(item))


def describe_type(alternative: Alternative) -> str:
    """Return a type in words: integer, list of texts, mapping of names to numbers …"""
    if alternative.kind == "mapping":
        if any(item.section for item in alternative.items):
            return "sections by name"
        return f"mapping of names to {_plural(alternative.items)}"
    if alternative.kind == "pair":
        return f"pair of {_plural(alternative.items)}"
    if alternative.kind == "list":
        return f"list of {_plural(alternative.items)}"
    if alternative.kind == "text" and dict(alternative.bounds).get("max_length") == 1:
        return "character"
    return alternative.kind


def _plural(items: Sequence[Alternative]) -> str:
    words = [describe_type(item) for item in items]
    plural = {"anything": "any values", "bytes": "sizes"}
    return " or ".join(
        plural.get(word) or re.sub(r"^\w+", lambda match: f"{match[0]}s", word)
        for word in dict.fromkeys(words)
    )


def describe_range(allowed: Sequence[Alternative]) -> str:
    """Return the range of a value in words: `1 to 100`, `above 0, at most 1e6`; empty if there is none."""
    return " or ".join(dict.fromkeys(filter(None, map(_range, allowed))))


def _range(alternative: Alternative) -> str:
    bounds = dict(alternative.bounds)
    if alternative.kind == "integer" and "lt" in bounds:
        bounds["le"] = bounds.pop("lt") - 1
    items = describe_range(alternative.items)
    parts = [f"each {items}"] if items else []
    if bounds.get("min_length") and bounds.get("max_length") != 1:
        parts.append(f"at least {bounds['min_length']} {'item' if bounds['min_length'] == 1 else 'items'}")
    if "ge" in bounds and "le" in bounds and "gt" not in bounds and "lt" not in bounds:
        return ", ".join([f"{_number(bounds['ge'])} to {_number(bounds['le'])}", *parts])
    lower = {"ge": "at least", "gt": "above"}
    upper = {"le": "at most", "lt": "below"}
    ends = [
        [f"{word} {_number(bounds[name])}" for name, word in words.items() if name in bounds]
        for words in (lower, upper)
    ]
    return ", ".join([*(end[-1] for end in ends if end), *parts])


def _number(value: float) -> str:
    """Return a bound: powers of ten from 1e7 on as such, and all others with thousands separators."""
    if abs(value) >= EXACT and (power := re.fullmatch(r"(-?1)\.0+e\+0*(\d+)", f"{value:e}")):
        return f"{power[1]}e{power[2]}"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:g}"
