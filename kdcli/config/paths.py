"""Where the YAML files of the config lie: the packaged ones and the user's own."""

from __future__ import annotations

import os
from pathlib import Path

from kdcli.errors import ConfigError
from kdcli.files import user_path


def conf_dir() -> Path:
    """The packaged YAML files: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).parent.parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def user_conf_dir() -> Path | None:
    """The user's own YAML files, from KDCLI_CONFIG_DIR.

    Raises:
        ConfigError: it is not a folder, or a file in it has the name of a packaged one.
    """
    given = os.environ.get("KDCLI_CONFIG_DIR")
    if not given:
        return None
    folder = user_path(given).absolute()
    if not folder.is_dir():
        raise ConfigError(f"the config folder {given} does not exist (--config-dir or KDCLI_CONFIG_DIR)")
    for packaged in sorted(conf_dir().rglob("*.yaml")):
        name = packaged.relative_to(conf_dir())
        if (folder / name).exists():
            raise ConfigError(
                f"{folder / name} has the name of a packaged config ({name}); give it another name"
            )
    return folder
