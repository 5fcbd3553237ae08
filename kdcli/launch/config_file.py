"""Reads a plain YAML file with the keys of a command line: `kdcli distill kdcli.yaml`.

Each key of the file becomes an override, so that everything that holds for typed overrides holds for it: the record of a run, its
continuation, `--rerun` and sweeps.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcli.config import renamed
from kdcli.config.check import annotation_at
from kdcli.config.components import is_mapping, section_of, union_members
from kdcli.config.groups import config_groups, group_options, no_such_option
from kdcli.config.schema import Distill
from kdcli.config.types import Section
from kdcli.config.yaml_files import Document, read_yaml
from kdcli.errors import ConfigError, shown
from kdcli.files import user_path
from kdcli.launch.argv import parse_overrides, quote_override, require_known_hydra_keys

SUFFIXES = (".yaml", ".yml")
PATHS = ("dataset.path", "dataset.validation", "dataset.test", "dataset.unlabelled", "teacher.path", "student.path")  # fmt: skip
"""The keys whose values may be relative paths."""
_NAME = re.compile(r"[A-Za-z_]\w*")
_SPECIAL = re.compile(r"([\\()\[\]{}:=, \t])")
"""The characters of a mapping's key that Hydra's grammar requires to be escaped."""


@dataclass(frozen=True)
class ConfigFile:
    """The content of a file as overrides.

    Attributes:
        words: each override with its position in the file.
        positions: of every key, with dots.
    """

    words: Sequence[tuple[str, str]]
    positions: Mapping[str, str]

    def overrides(self, typed: Sequence[str]) -> list[str]:
        """Return the overrides of the file, without those whose key is typed as well: typed overrides take precedence."""
        keys = {_key(word) for word in typed}
        return [word for word, _ in self.words if _key(word) not in keys]


def _key(word: str) -> str:
    return word.lstrip("+").partition("=")[0]


def read_config_file(path: Path, schema: type[Section]) -> ConfigFile:
    """Read a file whose keys are those of a command: nested (`trainer: {epochs: 3}`) or with dots (`trainer.epochs: 3`). A text at a config group
    chooses one of its options (`teacher: minilm`).

    Relative paths in it are relative to the working directory, as typed ones are.

    Raises:
        ConfigError: it is no YAML file or no mapping, chooses an option that does not exist, or names a file that lies beside it and not in the
            working directory. The message names line and column.
    """
    document = read_yaml(path)
    tree = document.tree if document.tree is not None else {}
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{document.at()}: expected a mapping of keys to values, not one {type(tree).__name__}"
        )
    if "defaults" in tree:
        raise ConfigError(
            f"{document.at('defaults')}: a file that is named has no defaults list; choose options as keys (teacher: minilm), or put the file into a "
            "config folder (--config-dir)"
        )
    words = list(_overrides(document, schema, (), (), tree)) if tree else []
    for word, where in words:
        try:
            require_known_hydra_keys(parse_overrides([word]))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error.message}") from None
    keys = {".".join(key): document.at(*key) for key in document.positions if key}
    file = ConfigFile(words, keys)
    _require_paths(document, tree)
    return file


def _overrides(
    document: Document, schema: type[Section], key: tuple[str, ...], place: tuple[str, ...], value: Any
) -> Iterator[tuple[str, str]]:
    """Yield the overrides of a key of the file and what is below it.

    Args:
        key: its path in the config.
        place: its path in the file, where a part may be several keys with dots.
    """
    annotation, path, where = annotation_at(schema, key), ".".join(key), document.at(*place)
    is_section = not key or section_of(annotation) is not None
    if (
        isinstance(value, dict)
        and value
        and (is_section or all(_NAME.fullmatch(str(name)) for name in value))
    ):
        for name, inner in value.items():
            if is_section and (not isinstance(name, str) or "" in name.split(".")):
                raise ConfigError(
                    f"{document.at(*place, str(name))}: {shown(name)} is no key; write the name of one (kdcli keys shows all), in quotes if it is a number"
                )
            parts = str(name).split(".") if is_section else [str(name)]
            yield from _overrides(document, schema, (*key, *parts), (*place, str(name)), inner)
    elif len(key) == 1 and path in config_groups():
        if path not in schema.model_fields and schema is not Distill:
            raise ConfigError(
                f"{where}: {path} is no key of this command, but of kdcli distill; remove it, or start that command"
            )
        if value is not None:
            yield _choice(path, value, where), where
    elif value is None and is_section and type(None) not in union_members(annotation):
        return  # a section whose keys are all commented out
    else:
        prefix = "" if _is_composed(schema, key) and not isinstance(value, dict) else "++"
        yield f"{prefix}{path}={_literal(value, where)}", where


def _choice(group: str, value: Any, where: str) -> str:
    """Return the override that chooses an option of a group, or several.

    Raises:
        ConfigError: there is no such option.
    """
    names = value if isinstance(value, list) else [value]
    options = group_options(group)
    for name in names:
        if not isinstance(name, str):
            raise ConfigError(
                f"{where}: {group} = {shown(name)}: expected the name of an option (kdcli list {group} shows them), or a mapping of keys to values"
            )
        if name not in options and f"{group}/{name}" not in renamed.OPTIONS:
            raise ConfigError(f"{where}: {no_such_option(group, name).message}")
    return f"{group}={_literal(names if isinstance(value, list) else value, where)}"


def _is_composed(schema: type[Section], key: Sequence[str]) -> bool:
    """Return whether the composed config always has a key, so that an override need not add it."""
    model: Any = schema
    for name in key:
        field = model.model_fields.get(name) if model is not None else None
        if field is None:
            return False
        inner = section_of(field.annotation)
        has_value = field.is_required() or field.get_default(call_default_factory=True) is not None
        model = inner if inner is not None and has_value and not is_mapping(field.annotation) else None
    return True


def _literal(value: Any, where: str) -> str:
    """Return a value in Hydra's grammar.

    Raises:
        ConfigError: a key of a mapping has a character that the grammar does not allow.
    """
    if isinstance(value, dict):
        items = (
            f"{_literal_key(str(name), where)}: {_literal(inner, where)}" for name, inner in value.items()
        )
        return f"{{{', '.join(items)}}}"
    if isinstance(value, list):
        return f"[{', '.join(_literal(inner, where) for inner in value)}]"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return quote_override(value) if isinstance(value, str) else str(value)


def _literal_key(name: str, where: str) -> str:
    if not name or re.search(r"""[^\w\s\\()\[\]{}:=,/+.$%*@?|-]|[\r\n]""", name):
        raise ConfigError(
            f"{where}: the key {shown(name)} has a character that overrides cannot hold; put this mapping into a YAML file of a config folder "
            "(--config-dir)"
        )
    return _SPECIAL.sub(r"\\\1", name)


def _require_paths(document: Document, tree: Mapping[str, Any]) -> None:
    """Refuse a relative path that leads to nothing from the working directory, and to a file from the folder of the config file.

    Raises:
        ConfigError
    """
    for path in PATHS:
        section, _, name = path.partition(".")
        inner = tree.get(section)
        place = (section, name) if isinstance(inner, dict) and name in inner else (path,)
        value = inner[name] if isinstance(inner, dict) and name in inner else tree.get(path)
        sibling = document.path.parent / str(value)
        if isinstance(value, str) and not user_path(value).exists() and sibling.exists():
            raise ConfigError(
                f"{document.at(*place)}: {path} = {shown(value)} is relative to the working directory, where it does not exist, and lies beside the file; "
                f"write {sibling}, or start kdcli in {document.path.parent}"
            )
