"""Loads, converts and quantizes the checkpoints of teachers and students."""

from __future__ import annotations

from kdcli.config.renamed import package_attributes

__getattr__ = package_attributes(__name__)
