"""Finds the folders of the YAML config files: the packaged one and the user's own."""

from __future__ import annotations

import os
from pathlib import Path

from kdcli.errors import ConfigError


def conf_dir() -> Path:
    """Return the folder of the packaged YAML files: in the package of a wheel, next to the package in a checkout."""
    package = Path(__file__).parent.parent
    packaged = package / "conf"
    return packaged if packaged.is_dir() else package.parent / "conf"


def user_conf_dir() -> Path | None:
    """Return the folder of the user's own YAML files, from KDCLI_CONFIG_DIR; None: there is none.

    Raises:
        ConfigError: it is not a folder, or a file in it has the name of a packaged file.
    """
    given = os.environ.get("KDCLI_CONFIG_DIR")
    if not given:
        return None
    folder = Path(os.path.expanduser(given)).absolute()
    if not folder.is_dir():
        raise ConfigError(f"the config folder {given} does not exist (--config-dir or KDCLI_CONFIG_DIR)")
    for packaged in sorted(conf_dir().rglob("*.yaml")):
        name = packaged.relative_to(conf_dir())
        if (folder / name).exists():
            raise ConfigError(
                f"{folder / name} has the name of a packaged config ({name}); give it another name"
            )
    return folder
