"""Checks the arguments of classes that a config names by `_target_`, and builds instances of them."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, create_model

from kdcli.config.renamed import rename_members
from kdcli.config.types import Component, refuse_boolean
from kdcli.errors import ConfigError, abbreviated, listed, shown, suggest


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the pydantic model in an annotation such as `Model` or `Model | None`; None: there is none."""
    models = (
        each for each in union_members(annotation) if inspect.isclass(each) and issubclass(each, BaseModel)
    )
    return next(models, None)


def is_mapping(annotation: Any) -> bool:
    return typing.get_origin(annotation) is dict


def check_classes(annotation: Any, value: Any, path: str) -> Iterator[str]:
    """Yield problems with the components in a value at any depth. A class is accepted only where the annotation expects one.

    Args:
        annotation: the annotation of the key or the constructor's parameter; None: it is unknown.
    """
    if isinstance(value, Mapping):
        model = section_of(annotation)
        if model and issubclass(model, Component):
            yield from check_component(model, [], value, path)
        elif model:  # the model refuses unknown keys
            for name, field in model.model_fields.items():
                yield from check_classes(
                    field.annotation, value.get(field.alias or name), join_key(path, name)
                )
        elif "_target_" in value and (kinds := classes_of(annotation)):
            yield from check_component(Component, kinds, value, path)
        elif "_target_" in value:
            yield (
                f"{path}._target_: a class is built only where a component is expected, and {path} takes a plain value; "
                "leave _target_ out"
            )
        else:
            for key, inner in value.items():
                yield from check_classes(item_annotation(annotation), inner, join_key(path, key))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from check_classes(item_annotation(annotation), inner, join_key(path, index))


def check_component(
    model: type[Component], kinds: Sequence[type], node: Mapping[str, Any], path: str
) -> Iterator[str]:
    """Yield problems with one component.

    Args:
        model: the schema of the keys that belong to kdcli. Its `kind` is the required base class, if `kinds` is None.
        kinds: base classes, one of which the component must have; None: `kind` of the model.
    """
    target = node.get("_target_")
    if not isinstance(target, str) or target == "???":
        if kinds:  # otherwise the schema reports it
            yield f"{path}._target_ = {shown(target)}: expected the name of a class, MODULE.NAME"
        return
    try:
        cls = locate(target)
        require_kind(cls, kinds or [locate(model.kind)])
    except ConfigError as error:
        yield f"{path}._target_ = {target}: {error}"
        return
    own, hints = (
        {field.alias or name: field for name, field in model.model_fields.items()},
        constructor_hints(cls),
    )
    arguments = {key: value for key, value in node.items() if key not in own}
    signature = arguments_model(
        cls,
        [
            key
            for key, value in arguments.items()
            if mentions_class(value) and not is_checked_by_model(hints.get(key))
        ],
    )
    try:
        signature.model_validate(arguments)
    except ValidationError as error:
        parameters = [*own, *signature.model_fields]
        yield from describe_problems(path, error, arguments, lambda _: parameters, f"an argument of {target}")
    for key, value in node.items():
        annotation = own[key].annotation if key in own else hints.get(key)
        yield from check_classes(annotation, value, join_key(path, key))


def join_key(path: str, key: Any) -> str:
    return f"{path}.{key}".lstrip(".")


def union_members(annotation: Any) -> list[Any]:
    """Return the alternatives of a union, or the annotation itself."""
    if typing.get_origin(annotation) is Annotated:
        return union_members(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return [option for each in typing.get_args(annotation) for option in union_members(each)]
    return [annotation]


def classes_of(annotation: Any) -> list[type]:
    """Return the classes of which an annotation expects an instance; `object` and abstract types such as Mapping do not count."""
    return [
        option
        for option in union_members(annotation)
        if inspect.isclass(option)
        and option.__module__ not in ("builtins", "typing", "collections.abc")
        and not issubclass(option, BaseModel)
    ]


def item_annotation(annotation: Any) -> Any:
    """Return the annotation of a mapping's values or a list's items; None: it is unknown."""
    for option in union_members(annotation):
        if arguments := [each for each in typing.get_args(option) if each is not Ellipsis]:
            return arguments[-1]
    return None


def is_checked_by_model(annotation: Any) -> bool:
    """Return whether pydantic validates values of this annotation with a model, also in a list or a mapping."""
    return section_of(annotation) is not None or any(map(is_checked_by_model, typing.get_args(annotation)))


def mentions_class(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "_target_" in value or any(map(mentions_class, value.values()))
    return isinstance(value, list | tuple) and any(map(mentions_class, value))


def require_kind(cls: type, kinds: Sequence[type]) -> None:
    """Refuse a class that does not inherit from one of the given classes; registration with an abstract class is not enough.

    Raises:
        ConfigError: it does not, or it is abstract.
    """
    if not any(kind in cls.__mro__ for kind in kinds):
        names = " or ".join(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds)
        raise ConfigError(f"expected a subclass of {names}")
    if inspect.isabstract(cls):
        abstract: frozenset[str] = cls.__abstractmethods__  # type: ignore[attr-defined]
        missing = ", ".join(_describe_hook(name, cls) for name in sorted(abstract))
        raise ConfigError(f"it is abstract: it lacks {missing}; implement it, or name another class")


def _describe_hook(name: str, cls: type) -> str:
    """Describe a method that a subclass must implement: its name, what it returns, and the first sentence of its docstring."""
    member: Any = inspect.getattr_static(cls, name)
    function: Any = member.fget if isinstance(member, property) else member
    returns = getattr(function, "__annotations__", {}).get("return", "Any")
    summary = (inspect.getdoc(function) or "").partition("\n\n")[0].replace("\n", " ")
    return f"{name} -> {returns} ({summary.partition('. ')[0].rstrip('.')})"


def import_named(module: str) -> types.ModuleType:
    """Import a module that a config names. If the user has a config folder, the working directory is searched last, for this import
    alone."""
    here = str(Path.cwd())
    added = bool(os.environ.get("KDCLI_CONFIG_DIR")) and here not in sys.path
    if added:
        sys.path.append(here)
    try:
        return importlib.import_module(module)
    finally:
        if added:
            sys.path.remove(here)


def locate(target: str) -> type:
    """Import the class that a dotted path names.

    Raises:
        ConfigError: the module cannot be imported, or has no such class.
    """
    module, _, name = target.rpartition(".")
    try:
        cls = getattr(import_named(module), name, None)
    except (Exception, SystemExit) as error:  # the user's own module may fail in any way
        raise ConfigError(
            f"cannot be imported ({type(error).__name__}: {error}); correct the path, or install its package"
        ) from None
    if cls is None:
        raise ConfigError(f"the module {module} has no {name}; name one of its classes")
    if not inspect.isclass(cls):
        raise ConfigError("it is no class; name one, as MODULE.CLASS")
    rename_members(cls)
    return cls


def constructor_hints(target: type) -> dict[str, Any]:
    """Return the annotations of the constructor's parameters; empty if they cannot be evaluated."""
    try:
        return typing.get_type_hints(target.__init__, include_extras=True)  # type: ignore[misc]
    except (
        NameError,
        AttributeError,
        TypeError,
    ):  # annotations for type checkers alone: names are checked, types are not
        return {}


def arguments_model(target: type, components: Sequence[str] = ()) -> type[BaseModel]:
    """Return a pydantic model of the constructor's parameters, which validates its arguments.

    Args:
        components: parameters whose values are mappings with a `_target_`, which are checked separately.
    """
    hints = constructor_hints(target)
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(target).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        default = ... if parameter.default is parameter.empty else parameter.default
        annotation = Any if name in components else hints.get(name, Any)
        if annotation in (int, float):
            annotation = Annotated[annotation, BeforeValidator(refuse_boolean)]
        fields[name] = (annotation, default)
    return create_model(
        "Arguments",
        __config__=ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=()),
        **fields,
    )


def argument_defaults(target: type) -> dict[str, Any]:
    """Return the default values of the constructor's arguments, as a config holds them."""
    model = arguments_model(target)
    given = {name: field.default for name, field in model.model_fields.items() if not field.is_required()}
    return model.model_construct(**given).model_dump(include=set(given), warnings=False)


def build(component: Component, kind: type) -> Any:
    """Build an instance of the component's class. Components among its arguments are built first, where the constructor's annotation
    expects one.

    Raises:
        ConfigError: the class is not a subclass of `kind`.
    """
    target = locate(component.target)
    try:
        require_kind(target, [kind])
    except ConfigError as error:
        raise ConfigError(f"_target_ = {component.target}: {error}") from None
    hints = constructor_hints(target)
    arguments = {name: _built(hints.get(name), value) for name, value in component.arguments.items()}
    checked = arguments_model(target).model_validate(arguments)
    return target(**{name: getattr(checked, name) for name in arguments})


def _built(annotation: Any, value: Any) -> Any:
    """Return a value in which the components that the annotation expects are built."""
    if is_checked_by_model(annotation):
        return value
    if isinstance(value, Mapping):
        if "_target_" in value and (kinds := classes_of(annotation)):
            inner = Component.model_validate(value)
            bases = locate(inner.target).__mro__
            return build(inner, next((kind for kind in kinds if kind in bases), kinds[0]))
        return {key: _built(item_annotation(annotation), inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_built(item_annotation(annotation), inner) for inner in value]
    return value


def describe_problems(
    path: str,
    error: ValidationError,
    tree: Any,
    allowed_keys: Callable[[Sequence[str]], list[str]],
    what: str,
) -> Iterator[str]:
    """Yield a line for each wrong value of a config.

    pydantic reports an error for each alternative of a union, and puts its own name of the alternative into the path. Here a value has one line,
    with all that is expected; of a list, or a mapping, that is nearly right the line of the wrong item.

    Args:
        path: of the tree in the config.
        allowed_keys: returns the keys that are allowed at a key.
        what: what the keys are, for messages.
    """
    groups: dict[tuple[str, ...], list[Any]] = {}
    for item in error.errors():
        groups.setdefault(_keys_of(item, tree), []).append(item)
    unions = {keys for keys, items in groups.items() if any(len(keys) < len(item["loc"]) for item in items)}
    for keys, items in groups.items():
        if keys in unions and any(other != keys and other[: len(keys)] == keys for other in groups):
            continue
        where = abbreviated(".".join(filter(None, [path, *keys]))) or "the config"
        if items[0]["type"] == "extra_forbidden":
            names = allowed_keys(keys)
            yield f"{where}: not {what}{suggest(keys[-1], names) or f' (known: {listed(sorted(names))})'}"
        elif items[0]["type"] == "missing":
            yield f"{where}: a value is needed; give {where}=…"
        else:
            value = items[0].get("input")
            given = "" if isinstance(value, Mapping | BaseModel) else f" = {shown(value)}"
            messages = list(dict.fromkeys(map(_expected, items)))
            others = [message.removeprefix("expected ") for message in messages[1:]]
            is_section = value is None and messages == ["expected a mapping of keys to values"]
            remedy = f"; ~{where} restores its defaults" if is_section else ""
            yield f"{where}{given}: {', or '.join([messages[0], *others])}{remedy}"


def _keys_of(item: Any, tree: Any) -> tuple[str, ...]:
    """Return the path of a problem, without pydantic's names of the alternatives of a union."""
    keys, node = [], tree
    for place, part in enumerate(item["loc"]):
        last = place == len(item["loc"]) - 1
        if (isinstance(node, Mapping) and part in node) or (
            isinstance(node, list | tuple) and isinstance(part, int) and part < len(node)
        ):
            node = node[part]
        elif not (last and item["type"] == "missing"):
            continue
        keys.append(str(part))
    return tuple(keys)


def _expected(item: Any) -> str:
    """Return what a value must be."""
    message = item["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    message = re.sub(r"^(?:String|List|Tuple|Dictionary|Set) should have", "expected", message)
    message = message.replace(" after validation, not ", ", not ")
    message = re.sub(r"valid dictionary( or instance of \w+)?", "mapping of keys to values", message)
    message = message.replace("'str' instances are not allowed as a Sequence value", "expected a list")
    return message.replace("an instance of Sequence", "a list").replace("a valid tuple", "a list")
