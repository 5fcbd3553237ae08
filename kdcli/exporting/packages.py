"""Lists the packages that make and run exported files."""

from __future__ import annotations

from kdcli.exporting.runtimes import runtimes
from kdcli.exporting.targets.base import Target, required_modules


def required_packages(target: Target | None = None) -> list[str]:
    """Return the packages that all runtimes and kdcli's own targets declare, and those of a target, by name."""
    modules = required_modules() | set(target.packages if target else ())
    modules |= {name for kinds in runtimes().values() for kind in kinds for name in kind.packages}
    return sorted({name.partition(".")[0] for name in modules})
