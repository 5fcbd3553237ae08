"""Lists config groups and their options, both packaged and the user's own."""

from __future__ import annotations

import os
from pathlib import Path

from hydra.core.override_parser.types import Override

from kdcli import console
from kdcli.config.paths import conf_dir, user_conf_dir
from kdcli.errors import ConfigError, ExitCode, KDError, listed, suggest


def matches_glob(word: Override) -> list[str]:
    """The options of a group, including the user's own, that match a glob pattern."""
    return list(word._value.filter(group_options(word.key_or_group)))  # type: ignore[union-attr]


def config_folders() -> list[Path]:
    return [folder for folder in (conf_dir(), user_conf_dir()) if folder]


def config_groups() -> list[str]:
    return sorted(
        {
            path.name
            for folder in config_folders()
            for path in folder.iterdir()
            if path.is_dir() and any(path.glob("*.yaml"))
        }
    )


def group_options(group: str) -> list[str]:
    return sorted({path.stem for folder in config_folders() for path in (folder / group).glob("*.yaml")})


def list_groups(group: str | None, config_dir: Path | None) -> int:
    """Print the options of one group or of all groups, with the first comment of each file."""
    if config_dir is not None:
        os.environ["KDCLI_CONFIG_DIR"] = str(config_dir)
    try:
        groups = config_groups()
        if group is not None and group not in groups:
            raise ConfigError(
                f"there is no group {group}{suggest(group, groups)}; expected one of {listed(groups)}"
            )
        rows = [
            [*([name] if group is None else []), option, _about(name, option)]
            for name in ([group] if group else groups)
            for option in group_options(name)
        ]
    except KDError as error:
        console.error(error.message)
        return error.exit_code
    console.table("", [*(["group"] if group is None else []), "name", "what it is"], rows)
    return ExitCode.DONE


def _about(group: str, option: str) -> str:
    for folder in config_folders():
        path = folder / group / f"{option}.yaml"
        if path.is_file():
            try:
                lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            except OSError as error:
                return f"cannot be read ({error.strerror})"
            comments = [
                line.lstrip("# ") for line in lines if line.startswith("#") and "@package" not in line
            ]
            return comments[0] if comments else ""
    return ""
