"""The JSON schema of a config, which is a file of the package."""

from kdcli.commands.init import SCHEMA
from kdcli.config.json_schema import config_schema


def test_the_shipped_schema_is_current() -> None:
    """An editor marks a new key as wrong (make schemas)."""
    assert SCHEMA.read_text(encoding="utf-8") == config_schema()
