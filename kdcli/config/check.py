"""Checks a composed config against the schema, and turns the schema's defaults into plain data for Hydra."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from kdcli.config.components import check_classes, describe_problems, is_mapping, section_of
from kdcli.config.secrets import secrets_in
from kdcli.config.types import Section
from kdcli.errors import ConfigError


def defaults(model: type[BaseModel]) -> dict[str, Any]:
    """Return the defaults of a schema as plain data for Hydra; keys without a default are missing ("???") there."""
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
    schema: type[Section], tree: Mapping[str, Any], describe: Callable[[str], str] = lambda problem: problem
) -> Any:
    """Validate a composed config: first its values, then the arguments of the classes that it names. Returns an instance of `schema`.

    Args:
        describe: completes the description of a problem, which begins with the key.

    Raises:
        ConfigError: it lists every problem, one per line.
    """
    config = check_values(schema, tree, describe)
    check_components(schema, tree, describe)
    return config


def check_values(
    schema: type[Section], tree: Mapping[str, Any], describe: Callable[[str], str] = lambda problem: problem
) -> Any:
    """Run the first part of `check`: keys, types and ranges. It imports none of the classes that the config names, most of which import torch.

    Raises:
        ConfigError: it lists every problem, one per line.
    """
    if secrets := list(secrets_in(tree)):
        raise ConfigError(
            "\n  ".join(
                [
                    "the config holds what must not be written down; leave it out, and let kdcli read it from the environment:",
                    *secrets,
                ]
            )
        )
    problems = [f"{key}: a value is needed; give {key}=…" for key in missing_keys(tree)]
    config = None
    try:
        config = schema.model_validate(tree)
    except ValidationError as error:
        problems += describe_problems("", error, tree, lambda key: _keys_at(schema, key[:-1]), "a key")
    _refuse(problems, describe)
    return config


def check_components(
    schema: type[Section], tree: Mapping[str, Any], describe: Callable[[str], str] = lambda problem: problem
) -> None:
    """Run the second part of `check`: each `_target_` names a class of the required kind that accepts its arguments.

    Raises:
        ConfigError: it lists every problem, one per line.
    """
    _refuse([*check_classes(schema, tree, "")], describe)


def _refuse(problems: Sequence[str], describe: Callable[[str], str]) -> None:
    if problems:
        head = "the config is wrong" if len(problems) == 1 else f"the config has {len(problems)} problems"
        raise ConfigError("\n  ".join([head + ":", *dict.fromkeys(map(describe, problems))]))


def missing_keys(tree: Any, path: str = "") -> Iterable[str]:
    """Yield the keys that need a value and have none ("???" in Hydra)."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from missing_keys(value, f"{path}.{key}".lstrip("."))
    elif tree == "???":
        yield path


def annotation_at(schema: Any, key: Sequence[str]) -> Any:
    """Return the annotation of a key in the schema; None: there is none."""
    for part in key:
        if is_mapping(schema):
            schema = typing.get_args(schema)[1]
        elif (model := section_of(schema)) and part in model.model_fields:
            schema = model.model_fields[part].annotation
        else:
            return None
    return schema


def holds_mapping(schema: type[Section], key: Sequence[str]) -> bool:
    """Return whether the schema has a mapping at a key."""
    annotation = annotation_at(schema, key)
    return section_of(annotation) is not None or is_mapping(annotation)


def _keys_at(schema: type[Section], key: Sequence[str]) -> list[str]:
    """Return the keys of the mapping at a key of the schema."""
    model = section_of(annotation_at(schema, key))
    return [field.alias or name for name, field in model.model_fields.items()] if model else []
