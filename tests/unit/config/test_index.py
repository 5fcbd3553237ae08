"""The index of keys, which reads sources and imports nothing, agrees with the schema and the classes that it describes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from kdcli.config.check import defaults
from kdcli.config.components import arguments_model, locate, section_of, union_members
from kdcli.config.declarations import REQUIRED, Alternative, Declaration, arguments, fields, find_class
from kdcli.config.groups import config_groups, group_options
from kdcli.config.index import COMMANDS, ConfigKey, all_keys, keys, keys_below, keys_named
from kdcli.config.paths import conf_dir
from kdcli.config.schema import COMMANDS as SCHEMAS
from kdcli.errors import ConfigError

BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
LENGTHS = {
    name: {"text": f"{name[:3]}Length", "string": f"{name[:3]}Length", "mapping": f"{name[:3]}Properties"}
    for name in ("min_length", "max_length")
}


def sections(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A section of the schema and those below it."""
    yield model
    for field in model.model_fields.values():
        for each in union_members(field.annotation):
            if inner := section_of(each) or section_of(next(reversed(getattr(each, "__args__", ())), None)):
                yield from sections(inner)


def declared(alternatives: Sequence[Alternative]) -> set[tuple[str, Any]]:
    """The bounds and choices of a declaration, as JSON schema calls them."""
    found: set[tuple[str, Any]] = set()
    for each in alternatives:
        for name, value in each.bounds:
            found.add(
                (BOUNDS[name] if name in BOUNDS else LENGTHS[name].get(each.kind, f"{name[:3]}Items"), value)
            )
        found |= {("enum", choice) for choice in each.choices} | declared(each.items)
    return found


def required(node: Any) -> set[tuple[str, Any]]:
    """The bounds and choices in a JSON schema, without those of the sections that it refers to."""
    found: set[tuple[str, Any]] = set()
    if not isinstance(node, dict):
        return found
    for name, value in node.items():
        if name == "enum":
            found |= {("enum", str(choice)) for choice in value}
        elif name == "const":
            found.add(("enum", str(value)))
        elif (
            name in BOUNDS or name in LENGTHS
        ):  # as pydantic writes them for a type with a validator of its own
            found.add(
                (BOUNDS.get(name) or LENGTHS[name].get(str(node.get("type")), f"{name[:3]}Items"), value)
            )
        elif name[:3] in ("min", "max", "exc"):
            found.add((name, value))
        elif name in ("anyOf", "prefixItems"):
            found = found.union(*map(required, value))
        elif name in ("items", "additionalProperties"):
            found |= required(value)
    return found - {("minItems", 2), ("maxItems", 2)} if "prefixItems" in node else found


def require_same(own: Sequence[Declaration], model: type[BaseModel]) -> None:
    """Refuse a declaration that pydantic reads otherwise."""
    properties = model.model_json_schema()["properties"]
    assert [each.name for each in own] == [field.alias or name for name, field in model.model_fields.items()]
    plain = defaults(model)
    for each in own:
        assert declared(each.allowed) == required(properties[each.name]), each.name
        if not any(part.section for part in each.allowed):
            expected = plain[each.name] if not isinstance(plain[each.name], dict) else {}
            assert each.default in (expected, REQUIRED), each.name


def test_fields_are_those_of_the_schema() -> None:
    """`kdcli keys` shows another range, choice or default than the one that a run is checked with."""
    for model in {each for schema in SCHEMAS.values() for each in sections(schema)}:
        cls = find_class(f"{model.__module__}.{model.__name__}")
        assert cls is not None
        require_same(fields(cls), model)


def targets(tree: Any) -> Iterator[str]:
    if isinstance(tree, dict):
        yield from (value for key, value in tree.items() if key == "_target_")
        for value in tree.values():
            yield from targets(value)


def test_arguments_are_those_of_the_constructors() -> None:
    """`kdcli keys teacher teacher=openai` shows an argument that the class does not have, or with another range."""
    trees = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in conf_dir().glob("*/*.yaml")]
    for target in sorted({each for tree in trees for each in targets(tree)}):
        cls = find_class(target)
        assert cls is not None, target
        model = arguments_model(locate(target))
        own = arguments(cls)
        assert [each.name for each in own] == [*model.model_fields], target
        schema = model.model_json_schema(mode="validation") if model.model_fields else {"properties": {}}
        for each in own:
            assert declared(each.allowed) == required(schema["properties"][each.name]), (
                f"{target}: {each.name}"
            )
            assert (each.default == REQUIRED) == model.model_fields[each.name].is_required()


def undocumented(known: Sequence[ConfigKey]) -> set[str]:
    """The keys without a meaning that can be understood by itself: of four words at least."""
    return {key.name for key in known if len(key.meaning.split()) < 4}


def test_every_key_is_documented() -> None:
    """A key that no command explains is found by nobody: the fields of all sections, and the arguments of every packaged component."""
    wanting = undocumented(all_keys())
    for group in config_groups():
        for option in group_options(group):
            wanting |= undocumented(keys("distill", {group: option}))
    assert not wanting


def test_the_keys_of_a_chosen_component() -> None:
    """`kdcli keys loss.soft_label loss=jsd` shows the arguments of the loss that was not chosen."""
    chosen = {key.name: key for key in keys_below("loss.soft_label", keys("distill", {"loss": "jsd"}))}
    assert [*chosen] == [f"loss.soft_label.{name}" for name in ("_target_", "weight", "beta", "temperature")]
    beta = chosen["loss.soft_label.beta"]
    assert (beta.type, beta.range, beta.default, beta.option) == (
        "number",
        "above 0, below 1",
        0.5,
        "loss=jsd",
    )
    assert "mixture" in beta.meaning
    teacher = {key.name: key for key in keys("distill", {"teacher": "gemini"})}
    assert teacher["teacher.model"].required
    assert teacher["teacher.soft_labels"].default == "samples"  # gemini's own, over that of openai
    assert teacher["teacher.budget.requests"].type == "integer or null"


def test_the_keys_of_an_experiment() -> None:
    """An experiment chooses options of other groups, whose components have other keys."""
    known = {key.name: key for key in keys("distill", {"experiment": "translation"})}
    assert known["student.encoder_layers"].default == 2
    assert known["student.encoder_layers"].option == "experiment=translation"
    assert known["teacher.from_scratch.decoder_layers"].range == "1 to 1,000"
    typed = {key.name for key in keys("distill", {"experiment": "translation", "student": "tiny"})}
    assert "student.encoder_layers" not in typed


def test_names_of_the_user() -> None:
    """The keys of a stage, or of a loss term of one's own, are refused because their names are in no index."""
    known = keys("distill")
    (rows,) = keys_below("stages.general.rows", known)
    assert rows.choices == ("all", "labelled", "unlabelled")
    (epochs,) = keys_below("stages.general.trainer.epochs", known)
    assert (epochs.name, epochs.type) == ("stages.general.trainer.epochs", "number or null")
    assert keys_below("hardware.tolerances.int8.agreement", known)[0].range == "0 to 1"
    assert keys_below("traner", known) == []
    assert {key.name for key in keys_below("dry", known)} == {"dry_run"}


def test_keys_of_several_commands() -> None:
    """A key with another default in another command is shown with the default of the first."""
    modes = {key.commands: key.default for key in all_keys() if key.name == "measure.mode"}
    assert modes == {("distill",): "quick", ("eval", "export"): "full"}
    assert {key.commands for key in all_keys() if key.name == "run"} == {("eval",), ("export",)}
    assert keys_named("epochs", "distill") == ["trainer.epochs", "teacher.trainer.epochs"]
    assert keys_named("student", "distill") == ["student"]
    assert keys_named("epochs", "eval") == []
    assert set(COMMANDS) == set(SCHEMAS)


def test_a_class_of_the_user_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking at keys runs code, and fails where a package of the class is not installed."""
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "mine.yaml").write_text(
        "# Mine\nsoft_label:\n  _target_: index_mine.Mine\n  scale: 2.0\n"
    )
    (tmp_path / "index_mine.py").write_text(
        "import nowhere_to_be_found\nfrom kdcli.config.types import Fraction\n"
        'class Mine:\n    """Mine.\n\n    Args:\n        scale: its scale.\n        other: a list,\n            of texts.\n    """\n\n'
        "    def __init__(self, scale: 'Fraction' = 1.0, *, other: list[str] | None = None):\n        pass\n"
    )
    monkeypatch.setenv("KDCLI_CONFIG_DIR", str(tmp_path))
    known = {key.name: key for key in keys("distill", {"loss": "mine"})}
    scale, other = known["loss.soft_label.scale"], known["loss.soft_label.other"]
    assert (scale.range, scale.default, scale.meaning) == ("0 to 1", 2.0, "its scale.")
    assert (other.type, other.default, other.meaning) == ("list of texts or null", None, "a list, of texts.")
    assert "index_mine" not in sys.modules


def test_no_such_option() -> None:
    """A typo shows the keys of the default."""
    with pytest.raises(ConfigError, match="soft_hard"):
        keys("distill", {"loss": "soft_had"})
    with pytest.raises(ConfigError, match="teacher"):
        keys("distill", {"teachr": "minilm"})
