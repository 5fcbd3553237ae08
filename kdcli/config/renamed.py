"""Supports the names of the previous release: each still works, with one warning that names the new one.

Five tables list them: modules and classes (dotted `_target_`s, and imports in a user's own code), members of classes that
users subclass, options of config groups, and config keys. The next release drops this module and the lines that name it.
"""

from __future__ import annotations

import functools
import importlib
import sys
from abc import update_abstractmethods
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NamedTuple

_TARGETS = "apple browser cpu cuda intel laptop mobile base"
MODULES: dict[str, tuple[str, ...]] = {
    "kdcli.config": ("kdcli.config.types", "kdcli.config.dataset", "kdcli.config.schema"),
    "kdcli.hardware": ("kdcli.exporting.targets",),
    **{f"kdcli.hardware.{name}": (f"kdcli.exporting.targets.{name}",) for name in _TARGETS.split()},
    "kdcli.losses.inside": ("kdcli.losses.features",),
    "kdcli.models": ("kdcli.models.checkpoint",),
    "kdcli.signal": ("kdcli.signals",),
    "kdcli.students.anatomy": ("kdcli.students.pruning.anatomy",),
    "kdcli.students.births": ("kdcli.students.composed",),
    "kdcli.students.cut": ("kdcli.students.pruning.base",),
    "kdcli.students.layers": ("kdcli.students.pruning.layers",),
    "kdcli.students.pruned": ("kdcli.students.pruning.pruned",),
    "kdcli.students.vocabulary": ("kdcli.students.pruning.vocabulary",),
    "kdcli.teachers.openai": ("kdcli.teachers.remote.openai",),
}
"""Old modules, each with the modules that hold its content now."""
CLASSES = {
    "kdcli.config.BirthStep": "kdcli.config.schema.InitializerStep",
    "kdcli.config.Checkpoint": "kdcli.config.types.CheckpointConfig",
    "kdcli.losses.inside.InsideLoss": "kdcli.losses.features.FeatureLoss",
    "kdcli.models.Source": "kdcli.models.checkpoint.Checkpoint",
    "kdcli.signal.Inside": "kdcli.signals.Features",
    "kdcli.students.base.Birth": "kdcli.students.base.StudentInitializer",
    "kdcli.students.births.Births": "kdcli.students.composed.Composed",
    "kdcli.students.cut.Cut": "kdcli.students.pruning.base.PruningInitializer",
}
"""Classes whose name changed, by their old dotted path."""
MEMBERS = {
    "kdcli.losses.base.Loss": {"inside": "features"},
    "kdcli.students.base.StudentInitializer": {
        "born": "initialize",
        "dress": "prepare_for_training",
        "undress": "merge_and_unload",
        "kind": "architecture",
        "of_teacher": "inherits_teacher",
        "adapts": "trains_adapters",
    },
    "kdcli.teachers.base.Teacher": {
        "rows": "outputs",
        "look": "outputs_with_features",
        "narrow": "truncate_vocabulary",
    },
}
"""Renamed methods and attributes that a user's subclass of these classes may define."""
OPTIONS = {"student/births": "student/composed", "loss/inside": "loss/features"}
"""Renamed options of config groups."""


DEFAULT = object()
"""A value in `RenamedKey.values` for which the new key keeps its default."""


class RenamedKey(NamedTuple):
    """A config key that was renamed or removed."""

    old: str
    """The old key with dots; `*` matches any name."""
    new: str | None
    """The new key; None: the key was removed."""
    remedy: str = ""
    """A note for the warning about a key that was removed or has other values now."""
    values: Mapping[Any, Any] = {}
    """The new values of old values that changed."""
    only_of: str | None = None
    """The `_target_` of the mapping, if the key is an argument of that class."""


def _of_dataset(section: str) -> RenamedKey:
    remedy = "cut, refuse or drop; null is what refuse was"
    return RenamedKey(f"{section}.clean.overlong", f"{section}.truncation", remedy, {"refuse": None})


_COMPOSED = "kdcli.students.composed.Composed"
KEYS = (
    RenamedKey("teacher.born", "teacher.from_scratch"),
    RenamedKey("teacher.stand_in", "student.init_from", values={None: DEFAULT}),
    RenamedKey(
        "teacher.together",
        "teacher.n_per_request",
        "null is what true was, and 1 what false was",
        {True: None, False: 1},
        "kdcli.teachers.remote.openai.OpenAITeacher",
    ),
    RenamedKey("student.births", "student.initializers", only_of=_COMPOSED),
    RenamedKey("stages.*.student.births", "stages.*.student.initializers", only_of=_COMPOSED),
    _of_dataset("dataset"),
    _of_dataset("stages.*.dataset"),
    RenamedKey("rollout.by", "rollout.source"),
    RenamedKey("rollout.keep", "rollout.keep_fraction"),
    RenamedKey("rollout.pick", None, "with rollout.candidates above 1 the nearest candidate is learned"),
)
"""Renamed config keys."""
_warned: set[str] = set()


def reset_warnings() -> None:
    """Allow every warning again, at the start of a command."""
    _warned.clear()


def _warn(old: str, new: str, remedy: str = "") -> None:
    """Warn about an old name, once per command."""
    if old not in _warned:
        from kdcli import console

        _warned.add(old)
        note = f" ({remedy})" if remedy else ""
        console.warn(f"{old} is now {new}{note}; the old name still works in this release")


def class_name(dotted: str) -> str:
    """Return the current dotted path of a class."""
    module, _, name = dotted.rpartition(".")
    return CLASSES.get(dotted) or (f"{MODULES[module][0]}.{name}" if module in MODULES else dotted)


def option_name(group: str, name: str) -> str:
    """Return the current name of a group's option."""
    return OPTIONS.get(f"{group}/{name}", f"{group}/{name}").partition("/")[2]


def warn_of_options(chosen: Sequence[str]) -> None:
    """Warn about old options.

    Args:
        chosen: as GROUP/NAME.
    """
    for old in chosen:
        if old in OPTIONS:
            _warn(old.replace("/", "="), OPTIONS[old].replace("/", "="))


def _matches(pattern: str, key: str) -> bool:
    parts, names = pattern.split("."), key.split(".")
    return len(parts) == len(names) and all(
        part in ("*", name) for part, name in zip(parts, names, strict=True)
    )


def _renamed(key: RenamedKey, path: Sequence[str]) -> list[str]:
    """Return the new path of a key, with the names that `*` matched."""
    return [path[at] if part == "*" else part for at, part in enumerate((key.new or "").split("."))]


def key_name(path: str) -> str:
    """Return the current name of a config key; of a removed one the old name."""
    for key in KEYS:
        if key.new and _matches(key.old, path):
            return ".".join(_renamed(key, path.split(".")))
    return path


def addable_override(word: str) -> str:
    """Return an override in a form in which Hydra accepts an old key, which the config does not have."""
    key = word.lstrip("+").partition("=")[0]
    return f"++{word.lstrip('+')}" if any(_matches(each.old, key) for each in KEYS) else word


def with_current_names(tree: Mapping[str, Any], quiet: bool = False) -> dict[str, Any]:
    """Return a copy of a config with current names.

    Args:
        quiet: give no warnings, for a config that an older release recorded.
    """
    new = _with_current_classes(tree, quiet)
    for key in KEYS:
        *above, last = key.old.split(".")
        for path, section in [*_sections(new, above)]:
            if last not in section or key.only_of not in (None, section.get("_target_")):
                continue
            value = section.pop(last)
            if not quiet:
                _warn(
                    ".".join([*path, last]),
                    ".".join(_renamed(key, path)) if key.new else "removed",
                    key.remedy,
                )
            if isinstance(value, str | bool | None):
                value = key.values.get(value, value)
            if key.new is None or value is DEFAULT:
                continue
            *into, name = _renamed(key, path)
            node = new
            for part in into:
                node = node.setdefault(part, {})
            node[name] = value
    return new


def _with_current_classes(value: Any, quiet: bool) -> Any:
    """Return a copy of plain data in which each `_target_` is a current class."""
    if isinstance(value, list):
        return [_with_current_classes(each, quiet) for each in value]
    if not isinstance(value, Mapping):
        return value
    copy = {name: _with_current_classes(inner, quiet) for name, inner in value.items()}
    old = copy.get("_target_")
    if isinstance(old, str) and (new := class_name(old)) != old:
        copy["_target_"] = new
        if not quiet:
            _warn(old, new)
    return copy


def _sections(tree: Any, pattern: Sequence[str]) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Iterate over the mappings at a path with wildcards, each with its actual path."""
    if not isinstance(tree, dict):
        return
    if not pattern:
        yield [], tree
        return
    for name in [*tree] if pattern[0] == "*" else [pattern[0]]:
        for path, section in _sections(tree.get(name), pattern[1:]):
            yield [name, *path], section


def rename_members(cls: type) -> None:
    """Add the current members to a user's class, and to its base classes, that define old ones."""
    names: dict[str, str] = {}
    for base in cls.__mro__:
        names |= MEMBERS.get(f"{base.__module__}.{base.__qualname__}", {})
    for each in reversed(cls.__mro__):
        own = {} if each.__module__.startswith("kdcli.") else vars(each)
        for old, new in names.items():
            if old in own and new not in own:
                setattr(each, new, own[old])
                _warn(f"{old} of {each.__module__}.{each.__qualname__}", new)
        if names:
            update_abstractmethods(each)


def attribute(module: str, name: str) -> Any:
    """Return the current object for a name in an old module.

    Raises:
        AttributeError: the old module had no such name.
    """
    target = CLASSES.get(f"{module}.{name}")
    candidates = [target] if target else [f"{each}.{name}" for each in MODULES.get(module, ())]
    for candidate in candidates if not name.startswith("_") else ():
        into, _, new = candidate.rpartition(".")
        member = getattr(importlib.import_module(into), new, None)
        if member is not None:
            _warn(f"{module}.{name}", candidate)
            return member
    raise AttributeError(f"module {module!r} has no attribute {name!r}")


def package_attributes(package: str) -> Callable[[str], Any]:
    """Return a `__getattr__` for a package that was one module: it finds the classes and types of that module. Names of submodules, which are
    lower-case, are not looked up."""

    def find(name: str) -> Any:
        if name[0].isupper():
            return attribute(package, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find


class _OldModules(MetaPathFinder, Loader):
    """Imports old modules as empty ones, whose attributes are looked up in the current modules."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return the module's specification, if it is one of `MODULES`."""
        if name not in MODULES:
            return None
        return ModuleSpec(name, self, is_package=any(other.startswith(f"{name}.") for other in MODULES))

    def exec_module(self, module: ModuleType) -> None:
        """Look up the module's attributes with `attribute`."""
        vars(module)["__getattr__"] = functools.partial(attribute, module.__name__)


def install() -> None:
    """Make old modules importable, with the lowest precedence."""
    sys.meta_path.append(_OldModules())
