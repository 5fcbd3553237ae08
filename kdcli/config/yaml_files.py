"""Reads YAML config files strictly; errors name file, line and column.

Hydra and OmegaConf read the same files later. They expand aliases without a limit, and raise many kinds of exceptions for malformed
files, so all files that kdcli has not written go through `read_yaml` first.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kdcli.config import renamed
from kdcli.errors import ConfigError, abbreviated, shown

MOST_BYTES = 2**20
"""The most bytes of a file."""
MOST_NODES = 20_000
"""The most values and keys of a file with its aliases expanded, since Hydra copies each of them about ten times."""
MOST_LEVELS = 30
"""The most levels of nested mappings and lists."""
MOST_BITS = 1000
"""The most bits of an integer, since Python refuses to print one of more than 4,300 digits."""
UNUSABLE = re.compile("[\0\ud800-\udfff]")
"""Characters that neither a file name nor UTF-8 text can contain."""
TAGS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")}
"""The YAML tags that a config may use."""
PACKAGE = re.compile(r"[\w$-]+(\.[\w$-]+)*")
Position = tuple[int, int]
"""Line and column, counted from 1."""


class _Loader(yaml.SafeLoader):
    """Loads YAML 1.1 as OmegaConf does: dates are texts and `1e3` is a number. Duplicate keys are refused."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[str, Any] = {}
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:int"):
                what = (
                    f"the key {shown(key.value)}" if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                )
                raise _marked(
                    f"{what} is no text; write a text, in quotes where YAML reads it otherwise", key
                )
            if key.value in seen:
                before = seen[key.value].start_mark.line + 1
                raise _marked(
                    f"the key {shown(key.value)} stands there twice (before: line {before}); remove one", key
                )
            seen[key.value] = key
        return super().construct_mapping(node, deep=deep)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep=deep)
        except yaml.YAMLError:
            raise
        except Exception as error:  # `!!int x` and the like: each constructor raises exceptions of its own
            raise _marked(f"not a value of this type ({abbreviated(str(error))})", node) from None
        if isinstance(value, int) and abs(value) >= 2**MOST_BITS:
            raise _marked(f"an integer of more than {MOST_BITS} bits", node)
        if isinstance(value, str) and UNUSABLE.search(value):
            raise _marked("a text with the character U+0000 or a lone surrogate; remove it", node)
        return value


_FLOAT = re.compile(
    r"""^(?:[-+]?[0-9]+(?:_[0-9]+)*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+(?:_[0-9]+)*(?:[eE][-+]?[0-9]+)
    |\.[0-9]+(?:_[0-9]+)*(?:[eE][-+][0-9]+)?|[-+]?[0-9]+(?:_[0-9]+)*(?::[0-5]?[0-9])+\.[0-9_]*
    |[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}


def _marked(problem: str, at: Any) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, at.start_mark)


@dataclass(frozen=True)
class Document:
    """The content of a YAML file."""

    path: Path
    text: str
    tree: Any
    positions: Mapping[tuple[str, ...], Position]
    """The position of each key; list items have their index as key."""

    def at(self, *key: str) -> str:
        """Return the position of a key as `FILE, line 3, column 5`, or that of the nearest key that contains it."""
        while key and key not in self.positions:
            key = key[:-1]
        line, column = self.positions.get(key, (1, 1))
        return f"{self.path}, line {line}, column {column}"


def read_yaml(path: Path) -> Document:
    """Read the only document of a YAML file.

    Raises:
        ConfigError: it cannot be read, is not YAML, or expands to too many values. The message names line and column.
    """
    text = _text(path)
    try:
        _measure(text)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            positions = dict(_positions(node)) if node is not None else {}
            tree = loader.construct_document(node) if node is not None else None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        problem = ", ".join(filter(None, [error.context, error.problem]))
        if "\\t" in problem:
            problem += ": YAML is indented by spaces; replace the tab"
        raise ConfigError(
            f"{path}, line {line}, column {column}: {problem}; correct the YAML there"
        ) from None
    except yaml.reader.ReaderError as error:
        line, column = _place(text[: error.position])
        raise ConfigError(
            f"{path}, line {line}, column {column}: YAML does not allow the character U+{int(error.character):04X}; remove it"
        ) from None
    return Document(path, text, tree, positions)


def _text(path: Path) -> str:
    """Read the text of a regular file of at most `MOST_BYTES`.

    Raises:
        ConfigError: there is none.
    """
    try:
        if not path.is_file():  # a folder, or a pipe, which may never deliver a byte
            raise ConfigError(f"{path} is not a regular file; a YAML file was expected")
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror or error}); check the path and its permissions"
        ) from None
    if len(data) > MOST_BYTES:
        raise ConfigError(
            f"{path} has more than {MOST_BYTES} bytes, and a config has at most so many; name a YAML file of kdcli"
        )
    if data.startswith((b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf")):
        raise ConfigError(
            f"{path}, line 1, column 1: the file begins with a byte order mark; save it as UTF-8 without one"
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line, column = _place(data[: error.start].decode("utf-8"))
        raise ConfigError(
            f"{path}, line {line}, column {column}: the byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from None


def _place(before: str) -> Position:
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def _measure(text: str) -> None:
    """Refuse a document that must not be built, from the events of the parser alone.

    Raises:
        YAMLError: two documents, a tag that is none of `TAGS`, an alias of itself, too many levels, or too many nodes.
    """
    sizes: dict[str, int] = {}
    opened: list[tuple[str | None, int]] = []  # the anchors of what is open, and the nodes before it
    nodes, documents = 0, 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise _marked("a second document begins here; a config is one: remove the line of ---", event)
        if isinstance(event, yaml.AliasEvent) and event.anchor is not None:
            if event.anchor in {anchor for anchor, _ in opened}:
                raise _marked(f"the alias *{abbreviated(event.anchor)} stands inside of what it names", event)
            nodes += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.NodeEvent):
            nodes += 1
            tag = getattr(event, "tag", None)
            if tag is not None and tag not in TAGS and tag != "!":
                raise _marked(f"the tag {abbreviated(tag)} is not allowed in a config; remove it", event)
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, nodes - 1))
            if len(opened) > MOST_LEVELS:
                raise _marked(f"more than {MOST_LEVELS} levels of mappings and lists", event)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            if anchor is not None:
                sizes[anchor] = nodes - before
        elif isinstance(event, yaml.ScalarEvent) and event.anchor is not None:
            sizes[event.anchor] = 1
        if nodes > MOST_NODES:
            raise _marked(
                f"more than {MOST_NODES} values, aliases written out; a config has at most so many", event
            )


def _positions(node: Any, key: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Position]]:
    yield key, (node.start_mark.line + 1, node.start_mark.column + 1)
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if isinstance(name, yaml.ScalarNode):
                inner = (*key, name.value)
                yield from _positions(value, inner)
                yield inner, (name.start_mark.line + 1, name.start_mark.column + 1)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _positions(value, (*key, str(index)))


@dataclass(frozen=True)
class Option:
    """A file in a config folder, which is one option of a group."""

    document: Document
    package: str
    """The config path that its keys go to, with dots; empty for the top level."""

    @property
    def keys(self) -> Iterator[tuple[str, ...]]:
        """The config paths of its keys."""
        before = tuple(filter(None, self.package.split(".")))
        return ((*before, *key) for key in self.document.positions if key and key[0] != "defaults")

    def at(self, key: Sequence[str]) -> str:
        """Return the position of a config key in the file."""
        return self.document.at(*self._inner(key))

    def value(self, key: Sequence[str]) -> Any:
        """Return the file's value at a config key, also if it comes from an alias or a merge key; None: there is none."""
        value = self.document.tree
        for part in self._inner(key):
            if isinstance(value, dict):
                value = value.get(part)
            else:
                value = value[int(part)] if isinstance(value, list) and part.isdigit() else None
        return value

    def _inner(self, key: Sequence[str]) -> Sequence[str]:
        return key[len(list(filter(None, self.package.split(".")))) :]


def read_options(folders: Sequence[Path], chosen: Iterable[str]) -> list[Option]:
    """Read the files of the first folder that the options name, and those that their defaults lists include.

    Args:
        folders: the user's, then others whose files are not read here, but may stand in defaults lists.
        chosen: options, as GROUP/NAME.

    Raises:
        ConfigError: a file, its header or its defaults list is wrong, or defaults lists include each other in a cycle.
    """
    options: dict[str, Option] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            circle = " -> ".join((*path[path.index(name) :], name))
            raise ConfigError(
                f"{options[name].document.at('defaults')}: the defaults lists include each other ({circle}); remove one of the entries"
            )
        file = _file(folders[0], name)
        if file is None or len(path) > MOST_LEVELS:
            return
        if name not in options:
            options[name] = read_option(file, name)
        for entry, where in _entries(options[name].document, name):
            if not any(_file(folder, entry) for folder in folders) and _checked(entry):
                raise ConfigError(f"{where}: there is no {entry}.yaml; name a file that is there")
            renamed.warn_of_options([entry])
            visit(entry, (*path, name))

    for name in chosen:
        visit(name, ())
    return list(options.values())


def _file(folder: Path, name: str) -> Path | None:
    """Return the path of an option in a folder, whatever its type; None: it does not exist."""
    path = folder / (name if name.endswith(".yaml") else f"{name}.yaml")
    try:
        return path if path.exists() or path.is_symlink() else None
    except (OSError, ValueError):  # a name that no file can have
        return None


def _checked(entry: str) -> bool:
    """Return whether an entry of a defaults list must be a file; options of Hydra's own groups, schemas and old names have none."""
    return not entry.startswith(("hydra/", "schema_")) and entry not in renamed.OPTIONS


def read_option(path: Path, name: str) -> Option:
    """Read one option of a group.

    Args:
        name: GROUP/NAME.

    Raises:
        ConfigError: the file or its header is wrong.
    """
    document = read_yaml(path)
    if document.tree is not None and not isinstance(document.tree, dict):
        kind = type(document.tree).__name__
        raise ConfigError(f"{document.at()}: expected a mapping of keys to values, not one {kind}")
    for key in document.tree or {}:
        if not isinstance(key, str):
            raise ConfigError(f"{document.at(str(key))}: the key {shown(key)} is no text; put it in quotes")
    return Option(document, _package(document, name))


def read_packaged(path: Path, name: str) -> Option:
    """Read a packaged option, which is known to be well-formed, several times as fast as `read_option`; without the positions of its keys."""
    text = path.read_text(encoding="utf-8")
    tree = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    document = Document(path, text, tree, {})
    return Option(document, _package(document, name))


def _package(document: Document, name: str) -> str:
    """Return the package of a file's keys: the one in its header, or that of its group.

    Raises:
        ConfigError: the header is malformed, or on a line where Hydra does not read it.
    """
    package, header = name.rpartition("/")[0].replace("/", "."), True
    group = package
    for number, line in enumerate(document.text[:512].splitlines(), start=1):
        where = f"{document.path}, line {number}, column 1"
        words = line.strip().lstrip("#").split()
        if re.match(r"\s*#\s*@", line) and header:
            if (
                words[0] != "@package"
                or len(words) != 2
                or not PACKAGE.fullmatch(words[1])
                or "\t" in line.strip()
            ):
                raise ConfigError(
                    f"{where}: {shown(line.strip())} is no header; expected # @package _global_, or another package"
                )
            package = words[1]
        elif re.match(r"\s*#\s*@package\b", line):
            raise ConfigError(f"{where}: # @package is read in the first line alone; move it there")
        elif line.strip():
            header = False
    return package.replace("_group_", group).replace("_global_", "").strip(".")


ENTRY = re.compile(r"(?P<words>((optional|override)\s+)*)(?P<name>[^\s@]+)(@(?P<package>[^\s@]*))?")
"""An entry of a defaults list, or its key."""


def _entries(document: Document, name: str) -> Iterator[tuple[str, str]]:
    """Iterate over the options in a file's defaults list, each with its position.

    Raises:
        ConfigError: it is not a list, or an entry is malformed.
    """
    listed = (document.tree or {}).get("defaults")
    if listed is None and "defaults" not in (document.tree or {}):
        return
    if not isinstance(listed, list):
        raise ConfigError(f"{document.at('defaults')}: defaults: expected a list")
    group, override = name.rpartition("/")[0], False
    for index, entry in enumerate(listed):
        where = document.at("defaults", str(index))
        key: Any = entry
        options: list[Any] = [None]
        if isinstance(entry, dict) and len(entry) == 1:
            ((key, value),) = entry.items()
            options = value if isinstance(value, list) else [value]
            if any(not isinstance(option, str | None) for option in options):
                raise ConfigError(
                    f"{where}: {shown(key)}: expected the name of an option, a list of names, or null"
                )
        parsed = ENTRY.fullmatch(key) if isinstance(key, str) else None
        if parsed is None or not parsed["name"]:
            raise ConfigError(
                f"{where}: expected an entry such as `- GROUP: NAME`, `- override /GROUP: NAME` or `- _self_`"
            )
        if override and "override" not in parsed["words"]:
            raise ConfigError(f"{where}: entries with `override` stand at the end; move this one before them")
        override = "override" in parsed["words"]
        if override and not isinstance(entry, dict):
            raise ConfigError(
                f"{where}: expected a group and an option after override: `- override /GROUP: NAME`"
            )
        if parsed["name"] == "_self_" or "optional" in parsed["words"]:
            continue
        base = parsed["name"].lstrip("/") if parsed["name"].startswith("/") else f"{group}/{parsed['name']}"
        for option in options:
            path = base if not isinstance(entry, dict) else f"{base}/{option}"
            if (isinstance(entry, dict) and option is None) or "${" in path or path.endswith("???"):
                continue
            yield path.strip("/"), where
