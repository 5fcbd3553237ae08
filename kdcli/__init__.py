"""kdcli: knowledge distillation of large language models, from the command line."""

from __future__ import annotations

from kdcli.config import renamed

__version__ = "0.1.0"
renamed.install()
