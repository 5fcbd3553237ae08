"""Lists config groups and their options, both packaged and the user's own."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from kdcli import console
from kdcli.config.groups import config_groups, describe_option, group_options, require_group
from kdcli.config.index import describe_group
from kdcli.errors import ExitCode, KDError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


def matches_glob(word: Override) -> list[str]:
    """Return the options of a group, including the user's own, that match a glob pattern."""
    return list(word._value.filter(group_options(word.key_or_group)))  # type: ignore[union-attr]


def list_groups(group: str | None, config_dir: Path | None, as_json: bool = False) -> int:
    """Print the options of one group or of all groups, with the first comment of each file, and what the group is."""
    if config_dir is not None:
        os.environ["KDCLI_CONFIG_DIR"] = str(config_dir)
    try:
        if group is not None:
            require_group(group)
        rows = [
            [*([name] if group is None else []), option, describe_option(name, option)]
            for name in ([group] if group else config_groups())
            for option in group_options(name)
        ]
    except KDError as error:
        console.error(error.message)
        return error.exit_code
    if as_json:
        names = ("group", "name", "description")
        listed = [dict(zip(names, row if group is None else [group, *row], strict=True)) for row in rows]
        console.say(json.dumps(listed, ensure_ascii=False, indent=2))
        return ExitCode.DONE
    title = f"{group}: {describe_group(group)}" if group else ""
    console.table(title, [*(["group"] if group is None else []), "name", "what it is"], rows)
    console.say(f"next: kdcli distill {group}=NAME" if group else "next: kdcli list GROUP")
    return ExitCode.DONE
