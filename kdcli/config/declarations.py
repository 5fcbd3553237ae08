"""Reads which keys a class declares, with their types, ranges, defaults and meanings, from its source file.

Classes of components import torch, which takes seconds, and Python keeps no docstring of an attribute. So nothing is imported here:
the source is parsed.
"""

from __future__ import annotations

import ast
import functools
import operator
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import cleandoc
from pathlib import Path
from typing import Any

from kdcli.config.paths import user_conf_dir

REQUIRED = "???"
"""The default of a key that needs a value, as in Hydra."""
ROOT = Path(__file__).parents[2]
"""The folder of the package kdcli."""
KINDS = {
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "str": "text",
    "None": "null",
}
"""The words of types, by the names of their annotations."""
ALIASES = {"Location": "path", "Size": "bytes"}
"""The aliases of `kdcli.config.types` that have a word of their own."""
LISTS = ("list", "Sequence", "tuple")
MAPPINGS = ("dict", "Mapping")
OPERATORS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Pow: operator.pow,
}


@dataclass(frozen=True)
class Class:
    """A class in a source file."""

    module: Module
    node: ast.ClassDef

    @property
    def path(self) -> str:
        return f"{self.module.name}.{self.node.name}"

    @property
    def description(self) -> str:
        """The docstring without its list of arguments, on one line a paragraph."""
        text = (ast.get_docstring(self.node) or "").partition("\nArgs:\n")[0]
        return "\n".join(" ".join(part.split()) for part in text.split("\n\n")).strip()

    @property
    def lineage(self) -> list[Class]:
        """The class and its base classes whose source is found, the nearest first."""
        classes = [self]
        for base in self.node.bases:
            cls = self.module.find(base)
            classes += [each for each in cls.lineage if each not in classes] if isinstance(cls, Class) else []
        return classes


@dataclass(frozen=True)
class Alternative:
    """One of the types that an annotation allows.

    Attributes:
        kind: in a word: integer, text, list …
        bounds: the arguments of pydantic's `Field`: ge, gt, le, lt, min_length, max_length.
        choices: the values of a `Literal`.
        items: the alternatives of a list's items or of a mapping's values.
        section: the class that declares the keys of a mapping.
    """

    kind: str
    bounds: tuple[tuple[str, Any], ...] = ()
    choices: tuple[str, ...] = ()
    items: tuple[Alternative, ...] = ()
    section: Class | None = None

    def bounded(self, more: Mapping[str, Any]) -> Alternative:
        """Return the same alternative with further bounds."""
        return replace(self, bounds=tuple({**dict(self.bounds), **more}.items())) if more else self


@dataclass(frozen=True)
class Declaration:
    """A key that a class declares: a field of a section, or an argument of a component's constructor.

    Attributes:
        default: as plain data; `REQUIRED`: it needs a value. A section is a mapping of the defaults that differ from its class's.
        meaning: on one line; empty: it is not documented.
    """

    name: str
    allowed: tuple[Alternative, ...]
    default: Any
    meaning: str


class Module:
    """A parsed source file."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.names: dict[str, ast.expr | ast.ClassDef] = {}
        self.imports: dict[str, tuple[str, str]] = {}
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                self.names[node.name] = node
            elif isinstance(node, ast.ImportFrom) and node.module:
                self.imports |= {each.asname or each.name: (node.module, each.name) for each in node.names}
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
                self.names[node.target.id] = node.value
            elif isinstance(node, ast.Assign):
                self.names |= _assigned(node.targets[0], node.value)

    def find(self, node: ast.expr | str) -> Class | tuple[Module, ast.expr] | None:
        """Return the class that a name stands for, or its value with the module in which it is assigned; None: its source is not found."""
        name = node.id if isinstance(node, ast.Name) else node
        if not isinstance(name, str):
            return None
        if name in self.names:
            value = self.names[name]
            return Class(self, value) if isinstance(value, ast.ClassDef) else (self, value)
        if name in self.imports and (other := source(self.imports[name][0])):
            return other.find(self.imports[name][1])
        return None

    def value(self, node: ast.expr) -> Any:
        """Return a constant expression as plain data. An instance of a class is a mapping of the arguments that it is made with."""
        if isinstance(node, ast.Name) and (assigned := self.find(node)) and not isinstance(assigned, Class):
            return assigned[0].value(assigned[1])
        if isinstance(node, ast.Call):
            return {each.arg: self.value(each.value) for each in node.keywords}
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](self.value(node.left), self.value(node.right))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -self.value(node.operand)
        if isinstance(node, ast.List | ast.Tuple):
            return [self.value(each) for each in node.elts]
        if isinstance(node, ast.Dict):
            return {
                self.value(key): self.value(value)
                for key, value in zip(node.keys, node.values, strict=True)
                if key
            }
        return node.value if isinstance(node, ast.Constant) else ast.unparse(node)

    def allowed(self, node: ast.expr | None) -> tuple[Alternative, ...]:
        """Return the alternatives of an annotation."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node = ast.parse(node.value, mode="eval").body
        if isinstance(node, ast.BinOp):
            return _merged([*self.allowed(node.left), *self.allowed(node.right)])
        if isinstance(node, ast.Subscript):
            return self._generic(_name(node.value), node.slice)
        name = (
            str(node.value)
            if isinstance(node, ast.Constant)
            else node.id
            if isinstance(node, ast.Name)
            else ""
        )
        if name in KINDS:
            return (Alternative(KINDS[name]),)
        declared = self.find(name)
        if isinstance(declared, Class):
            return (Alternative("section", section=declared),)
        allowed = declared[0].allowed(declared[1]) if declared else (Alternative("anything"),)
        return tuple(replace(each, kind=ALIASES.get(name, each.kind)) for each in allowed)

    def _generic(self, name: str, argument: ast.expr) -> tuple[Alternative, ...]:
        parts = argument.elts if isinstance(argument, ast.Tuple) else [argument]
        if name == "Literal":
            return (Alternative("choice", choices=tuple(str(self.value(part)) for part in parts)),)
        if name == "Annotated":
            return self._annotated(parts)
        if name == "tuple" and len(parts) == 2:
            return (Alternative("pair", items=self.allowed(parts[0])),)
        if name in LISTS:
            return (Alternative("list", items=self.allowed(parts[0])),)
        if name in MAPPINGS:
            return (Alternative("mapping", items=self.allowed(parts[-1])),)
        return (Alternative("anything"),)

    def _annotated(self, parts: Sequence[ast.expr]) -> tuple[Alternative, ...]:
        """Return the alternatives of `Annotated[TYPE, Field(…), …]`."""
        allowed = self.allowed(parts[0])
        for part in parts[1:]:
            call = part.func.id if isinstance(part, ast.Call) and isinstance(part.func, ast.Name) else ""
            if call == "Field":
                bounds = bounds_of(self.value(part))
                allowed = tuple(each.bounded(bounds) for each in allowed)
            elif (
                call == "BeforeValidator"
                and isinstance(part, ast.Call)
                and _name(part.args[0]) == "one_is_a_list"
            ):
                allowed = (Alternative("text"), *allowed)
        return allowed


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def bounds_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the bounds among the arguments of pydantic's `Field`."""
    names = ("ge", "gt", "le", "lt", "min_length", "max_length")
    return {name: arguments[name] for name in names if name in arguments}


def _assigned(target: ast.expr, value: ast.expr) -> dict[str, ast.expr | ast.ClassDef]:
    """Return the names of an assignment, each with its value."""
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        pairs = zip(target.elts, value.elts, strict=True)
        return {name: each for left, right in pairs for name, each in _assigned(left, right).items()}
    return {target.id: value} if isinstance(target, ast.Name) else {}


def _merged(alternatives: Sequence[Alternative]) -> tuple[Alternative, ...]:
    """Return the alternatives of a union, in which all choices are one, and null is the last."""
    choices = tuple(choice for each in alternatives for choice in each.choices)
    merged = [each for each in alternatives if not each.choices and each.kind != "null"]
    merged += [Alternative("choice", choices=choices)] if choices else []
    merged += [each for each in alternatives if each.kind == "null"]
    return tuple(merged)


@functools.cache
def source(name: str) -> Module | None:
    """Return the parsed source of a module, as an import would find it; None: there is none that can be parsed."""
    inner = Path(*name.split("."))
    folders = [user_conf_dir(), *map(Path, sys.path)] if name.partition(".")[0] != "kdcli" else [ROOT]
    for folder in filter(None, folders):
        for path in (folder / inner.with_suffix(".py"), folder / inner / "__init__.py"):
            if path.is_file():
                try:
                    return Module(name, path)
                except (OSError, SyntaxError, ValueError):  # an import reports it
                    return None
    return None


def find_class(path: str) -> Class | None:
    """Return the class MODULE.NAME; None: its source is not found."""
    module, _, name = path.rpartition(".")
    declared = (parsed := source(module)) and parsed.find(name) if module else None
    return declared if isinstance(declared, Class) else None


@functools.cache
def fields(cls: Class) -> list[Declaration]:
    """Return the fields of a section, those of its base classes first."""
    by_name: dict[str, Declaration] = {}
    for each in reversed(cls.lineage):
        by_name |= {field.name: field for field in _own_fields(each)}
    return list(by_name.values())


def _own_fields(cls: Class) -> Iterator[Declaration]:
    body = cls.node.body
    for node, after in zip(body, [*body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        if isinstance(node.annotation, ast.Subscript) and _name(node.annotation.value) == "ClassVar":
            continue
        allowed, default, name = cls.module.allowed(node.annotation), REQUIRED, node.target.id
        if node.value is not None:
            default = cls.module.value(node.value)
        if isinstance(node.value, ast.Call) and _name(node.value.func) == "Field":
            arguments: dict[str, Any] = default  # type: ignore[assignment]
            allowed = tuple(
                each if each.kind == "null" else each.bounded(bounds_of(arguments)) for each in allowed
            )
            default, name = arguments.get("default", REQUIRED), arguments.get("alias", name)
        text = after.value if isinstance(after, ast.Expr) else None
        meaning = str(text.value) if isinstance(text, ast.Constant) else ""
        yield Declaration(name, allowed, default, " ".join(meaning.split()))


def arguments(cls: Class) -> list[Declaration]:
    """Return the arguments of a class's constructor, which may be that of a base class."""
    for each in cls.lineage:
        for node in each.node.body:
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                return list(_arguments(cls, each, node.args))
    return []


def _arguments(cls: Class, owner: Class, given: ast.arguments) -> Iterator[Declaration]:
    meanings: dict[str, str] = {}
    for each in reversed(cls.lineage):
        meanings |= described(ast.get_docstring(each.node) or "")
    parameters = given.args[1:]
    defaults = [*[None] * (len(parameters) - len(given.defaults)), *given.defaults]
    for parameter, default in [
        *zip(parameters, defaults, strict=True),
        *zip(given.kwonlyargs, given.kw_defaults, strict=True),
    ]:
        value = REQUIRED if default is None else owner.module.value(default)
        allowed = owner.module.allowed(parameter.annotation)
        yield Declaration(parameter.arg, allowed, value, meanings.get(parameter.arg, ""))


def described(docstring: str) -> dict[str, str]:
    """Return the meaning of each argument in the section Args of a docstring."""
    meanings: dict[str, str] = {}
    names: list[str] = []
    block = cleandoc(docstring).partition("\nArgs:\n")[2]
    for line in block.splitlines():
        if line and not line.startswith(" "):
            break
        if line.startswith("    ") and not line.startswith("     "):
            head, _, text = line.strip().partition(": ")
            names = [name.strip() for name in head.split(",")]
            meanings |= dict.fromkeys(names, text)
        else:
            meanings |= {name: f"{meanings[name]} {line.strip()}".strip() for name in names}
    return meanings
