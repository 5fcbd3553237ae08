"""Checks a composed config against the schema, and gives Hydra the schema's defaults."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from kdcli.config.components import check_classes, describe_problem, is_mapping, section_of
from kdcli.config.secrets import secrets_in
from kdcli.config.types import Section
from kdcli.errors import ConfigError


def defaults(model: type[BaseModel]) -> dict[str, Any]:
    """The defaults of a schema as plain data for Hydra; keys without a default are missing ("???") there."""
    tree: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        key = field.alias or name
        inner = section_of(field.annotation)
        if field.is_required():
            tree[key] = defaults(inner) if inner else {} if is_mapping(field.annotation) else "???"
        else:
            value = field.get_default(call_default_factory=True)
            tree[key] = value.model_dump(by_alias=True) if isinstance(value, BaseModel) else value
    return tree


def check(
    schema: type[Section], tree: Mapping[str, Any], tell: Callable[[str], str] = lambda problem: problem
) -> Any:
    """The composed config as a checked instance of `schema`: its values first, then the arguments of the classes that it names.

    Args:
        tell: what a message says of a problem, which begins with the key.

    Raises:
        ConfigError: with every problem found, one a line.
    """
    config = check_values(schema, tree, tell)
    check_components(schema, tree, tell)
    return config


def check_values(
    schema: type[Section], tree: Mapping[str, Any], tell: Callable[[str], str] = lambda problem: problem
) -> Any:
    """The first part of `check`, which imports no class that the config names (most of them import torch): keys, types and ranges.

    Raises:
        ConfigError: with every problem found, one a line.
    """
    if secrets := list(secrets_in(tree)):
        raise ConfigError("\n  ".join(["the config holds what must not be written down:", *secrets]))
    problems = [f"{key}: a value is needed; give {key}=…" for key in missing_keys(tree)]
    config = None
    try:
        config = schema.model_validate(tree)
    except ValidationError as error:
        problems += [_describe(schema, tree, item) for item in error.errors()]
    _refuse(problems, tell)
    return config


def check_components(
    schema: type[Section], tree: Mapping[str, Any], tell: Callable[[str], str] = lambda problem: problem
) -> None:
    """The second part of `check`: each `_target_` is a class of the kind that is wanted, and takes the arguments beside it.

    Raises:
        ConfigError: with every problem found, one a line.
    """
    _refuse([*check_classes(schema, tree, "")], tell)


def _refuse(problems: Sequence[str], tell: Callable[[str], str]) -> None:
    if problems:
        head = "the config is wrong" if len(problems) == 1 else f"the config has {len(problems)} problems"
        raise ConfigError("\n  ".join([head + ":", *dict.fromkeys(map(tell, problems))]))


def missing_keys(tree: Any, path: str = "") -> Iterable[str]:
    """The keys whose value nobody gave ("???" to Hydra)."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from missing_keys(value, f"{path}.{key}".lstrip("."))
    elif tree == "???":
        yield path


def _schema_at(schema: Any, path: str) -> type[BaseModel] | None:
    """The model that governs the mapping at `path`."""
    return section_of(_annotation_at(schema, [part for part in path.split(".") if part]))


def _annotation_at(schema: Any, key: Sequence[str]) -> Any:
    """What the schema has at a key; None: nothing."""
    for part in key:
        if is_mapping(schema):
            schema = typing.get_args(schema)[1]
        elif (model := section_of(schema)) and part in model.model_fields:
            schema = model.model_fields[part].annotation
        else:
            return None
    return schema


def holds_mapping(schema: type[Section], key: Sequence[str]) -> bool:
    """Whether the schema has a mapping at a key."""
    annotation = _annotation_at(schema, key)
    return section_of(annotation) is not None or is_mapping(annotation)


def _keys(model: type[BaseModel] | None) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()] if model else []


def _describe(schema: type[Section], tree: Mapping[str, Any], item: Any) -> str:
    loc = [str(part) for part in item["loc"]]
    parent = _schema_at(schema, ".".join(loc[:-1]))
    return describe_problem("", item, tree, _keys(parent), "a key")
