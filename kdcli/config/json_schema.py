"""Makes the JSON schema of a config file of `kdcli distill`, by which editors complete and check it: kdcli.schema.json beside this module (make schemas)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from kdcli.config.components import item_annotation, section_of
from kdcli.config.declarations import fields, find_class
from kdcli.config.groups import config_groups, group_options
from kdcli.config.schema import Distill

Node = dict[str, Any]


def config_schema() -> str:
    """Return the schema as text. A file may nest its keys or write them with dots, and chooses an option of a config group by its name."""
    tree: Node = Distill.model_json_schema()
    definitions: dict[str, Node] = tree["$defs"]
    for definition in definitions.values():
        definition.pop("required", None)  # the chosen options have values for all keys
        definition.get("properties", {}).pop("_target_", None)
    properties: dict[str, Node] = tree["properties"]
    for model in _sections(Distill):
        node = tree if model is Distill else definitions[model.__name__]
        cls = find_class(f"{model.__module__}.{model.__name__}")
        for key in fields(cls) if cls is not None else ():
            if key.meaning and key.name in node["properties"]:
                node["properties"][key.name].setdefault("description", key.meaning)
    dotted = {name: node for name, node in _dotted(properties, definitions) if "." in name}
    for group in config_groups():
        options = {"enum": group_options(group)}
        own = [properties[group]] if group in properties else []
        properties[group] = {"anyOf": [options, {"type": ["string", "array", "null"]}, *own]}
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "kdcli distill",
        "type": "object",
        "properties": properties | dotted,
        "patternProperties": {r"^[a-z_]+[./]": {}},
        "additionalProperties": False,
        "$defs": definitions,
    }
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def _sections(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Yield a section and those below it."""
    yield model
    for each in model.model_fields.values():
        inner = section_of(each.annotation) or section_of(item_annotation(each.annotation))
        if inner is not None:
            yield from _sections(inner)


def _dotted(
    properties: Mapping[str, Node], definitions: Mapping[str, Node], above: str = ""
) -> Iterator[tuple[str, Node]]:
    """Yield all keys with dots, each with its schema."""
    for name, node in properties.items():
        key = f"{above}{name}"
        yield key, node
        for option in (node, *node.get("anyOf", ())):
            section = definitions.get(option.get("$ref", "").rpartition("/")[2])
            if section is not None:
                yield from _dotted(section.get("properties", {}), definitions, f"{key}.")
