"""What a hardware target is."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import yaml
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedModel

from kdcli.config.components import locate
from kdcli.config.paths import conf_dir
from kdcli.errors import ConfigError, ExportError, KDError
from kdcli.files import (
    read_json,
    writing,
)

BESIDE = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json",
    "merges.txt",
)  # fmt: skip
"""What an application needs besides the graph: to make the inputs, and to name the outputs."""


class Target(ABC):
    """Makes the files that a device runs. What runs them, `kdcli.measure.spec` knows by how their names end, and of a folder by
    what it holds."""

    serves: ClassVar[tuple[Literal["classification", "token_classification", "causal_lm", "seq2seq"], ...]]
    """The tasks whose students it can make files of."""
    note: ClassVar[str] = ""
    """What its figures do not tell of themselves, for export.json and whoever reads the table or the card."""
    hint: ClassVar[str] = ""
    """What to type once the files are there, with `{out}` where their folder stands."""

    failed: Mapping[str, str] = MappingProxyType({})
    """Files that `export` could not make beside those that it made, and why."""

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """Where its files and the torch student beside them are run."""
        return "cpu"

    @abstractmethod
    def export(
        self,
        student: Path,
        out: Path,
        model: PreTrainedModel,
        inputs: Sequence[Mapping[str, Tensor]],
        max_length: int,
    ) -> dict[str, Path]:
        """Write the artifacts, and beside them whatever their runtime needs (tokenizer, labels).

        Args:
            student: the student's directory.
            out: an empty directory.
            model: the student, fp32, in eval mode.
            inputs: what it reads of rows of the training split, at least one, (1, L) each.
            max_length: tokens that it will read, at most.

        Returns:
            The files, or folders, by precision.

        Raises:
            ExportError: a package is missing, or the exporter failed.
        """

    def show(self, out: Path, name: str, labels: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:  # noqa: B027
        """Write what people see of a classifier's answers, once the artifacts were run; most targets have nothing to show.

        Args:
            name: the student's.
            labels: their names.
            rows: of the test split: `texts`, one or two; `label`, and `teacher`, a probability for each label.
        """


def copy_beside(student: Path, out: Path, max_length: int) -> None:
    """Write what an application needs besides the model: `BESIDE`, of which the tokenizer cuts off as `cut_off` tells it to."""
    for path in (
        *(student / name for name in BESIDE),
        *student.glob("*.py"),
    ):  # .py: of an architecture of its own
        if path.is_file():
            shutil.copyfile(path, out / path.name)
    cut_off(out, max_length)


def cut_off(folder: Path, max_length: int) -> None:
    """Make a folder's tokenizer.json, if it has one, cut a text off by itself where the student does: an application that forgets to
    would be answered by an error, or by a crash."""
    file, how = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if file.is_file():
        told = read_json(how, dict, "the student is to be trained again") if how.is_file() else {}
        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length, direction=told.get("truncation_side", "right"))
        tokenizer.save(str(file))


@contextlib.contextmanager
def exporting(model: PreTrainedModel, how: str, out: Path) -> Iterator[None]:
    """Exporters let through whatever is raised under them: its first line becomes an ExportError.

    Raises:
        StorageError: the file system of `out`, or that of temporary files, takes no more.
        ExportError
    """
    try:
        with writing(out):
            yield
    except KDError:
        raise
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ExportError(f"{type(model).__name__} cannot be written {how}: {first}") from error


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Exporters and quantizers warn about what they are, and draw bars; an error still comes through."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def require_task(target: Target, hardware: str, kind: str) -> None:
    """Refuse a task whose students a device's target does not take.

    Raises:
        ConfigError: with the devices that do.
    """
    if kind in target.serves:
        return
    names = {
        "classification": "classifiers",
        "token_classification": "token classifiers",
        "causal_lm": "language models",
        "seq2seq": "translators",
    }
    others = [
        f"hardware={path.stem}"
        for path in sorted((conf_dir() / "hardware").glob("*.yaml"))
        if kind in getattr(locate(yaml.safe_load(path.read_text(encoding="utf-8"))["_target_"]), "serves", ())
    ]
    raise ConfigError(
        f"hardware={hardware} makes files of {' and '.join(names[task] for task in target.serves)}, and this run's task "
        f"is {kind}; use {' or '.join(filter(None, [', '.join(others[:-1]), others[-1]]))}"
    )
