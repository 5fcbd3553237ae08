"""The config: its schema, how it is checked, and where its YAML files lie. Never imports torch."""

from __future__ import annotations

from kdcli.config.renamed import package_attributes

__getattr__ = package_attributes(__name__)
