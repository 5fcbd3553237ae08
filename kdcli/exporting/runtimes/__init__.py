"""Finds the runtimes, one module each, in this folder and in the folder `runtimes` of the user's config folder."""

from __future__ import annotations

import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdcli.measure.runtime import Runtime


def runtimes() -> dict[str, list[type[Runtime]]]:
    """Return the runtimes of each module, by the name under which `MeasureSpec.runtime` refers to it.

    Raises:
        ConfigError: a module of the user's own cannot be imported, has the name of one of kdcli's, or has no runtime that can be used.
    """
    from kdcli.config.paths import user_conf_dir
    from kdcli.errors import ConfigError
    from kdcli.measure.runtime import runtime_classes

    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    folder = user_conf_dir()
    own = sorted((folder / "runtimes").glob("[!_]*.py")) if folder else []
    if taken := [file for file in own if file.stem in names]:
        raise ConfigError(f"{taken[0]} has the name of a runtime of kdcli; give it another name")
    return {name: runtime_classes(name) for name in names} | {str(file): _own_runtimes(file) for file in own}


def _own_runtimes(file: Path) -> list[type[Runtime]]:
    """Return the complete runtimes of a module of the user."""
    from kdcli.config.components import require_kind
    from kdcli.errors import ConfigError
    from kdcli.measure.runtime import Runtime, runtime_classes

    classes = runtime_classes(str(file), abstract=True)
    if not classes:
        raise ConfigError(
            f"{file} has no runtime: a subclass of EncoderRuntime, CausalLMRuntime or Seq2SeqRuntime (kdcli.measure.runtime) was expected"
        )
    for each in classes:
        try:
            require_kind(each, [Runtime])
        except ConfigError as error:
            raise ConfigError(f"{file}: {each.__name__}: {error.message}") from None
        if not each.files and not each.markers:
            raise ConfigError(
                f'{file}: {each.__name__} declares neither `files`, patterns such as ("*.onnx",), nor `markers`, names of files in a folder '
                "that it runs; add one of them"
            )
    return classes


def matching(path: Path) -> dict[str, list[type[Runtime]]]:
    """Return the runtimes that run a file or folder. If several modules match, those of the module with the longest pattern are returned.

    Raises:
        ConfigError: two modules declare the same pattern.
    """
    from kdcli.errors import ConfigError

    matches = {
        name: [(length, each) for each in classes if (length := each.match(path))]
        for name, classes in runtimes().items()
    }
    longest = max((length for pairs in matches.values() for length, _ in pairs), default=0)
    best = {
        name: chosen
        for name, pairs in matches.items()
        if (chosen := [each for length, each in pairs if length == longest])
    }
    if len(best) > 1:
        raise ConfigError(
            f"{path.name}: the runtimes {' and '.join(best)} declare the same files; make one of their patterns longer"
        )
    return best


def runtime_of(path: Path) -> str | None:
    """Return the runtime of a file or folder, as `MeasureSpec.runtime`; None: there is none."""
    return next(iter(matching(path)), None)
