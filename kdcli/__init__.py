"""kdcli: knowledge distillation of large language models, from the command line and from Python.

    import kdcli

    result = kdcli.distill({"dataset": {"path": "reviews.csv"}}, out="runs/reviews")
    print(result.verdict.text)
    kdcli.load(result.run).predict(["A text."])

The functions are those of `kdcli.api`, which is imported when the first of them is used. `load` returns a `Predictor`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from kdcli.config import renamed
from kdcli.errors import KDError

if TYPE_CHECKING:
    from kdcli.api import Export, Result, distill, evaluate, export, load
    from kdcli.inference.predictor import Predictor

__version__ = "0.1.0"
__all__ = ["Export", "KDError", "Predictor", "Result", "__version__", "distill", "evaluate", "export", "load"]
renamed.install()


def __getattr__(name: str) -> Any:
    """Return a function or class of `kdcli.api`, or the class of what `load` returns."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "kdcli.inference.predictor" if name == "Predictor" else "kdcli.api"
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
