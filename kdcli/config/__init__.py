"""Defines and checks the config, and finds its YAML files. Never imports torch."""

from __future__ import annotations

from kdcli.config.renamed import package_attributes

__getattr__ = package_attributes(__name__)
