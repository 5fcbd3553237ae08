"""Defines the interface of a target, which makes the files of a device."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import shutil
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
import transformers
import yaml
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from kdcli import console
from kdcli.config.components import locate
from kdcli.config.paths import conf_dir
from kdcli.errors import ConfigError, ExportError, KDError
from kdcli.files import read_json, writing
from kdcli.measure.runtime import install_hint
from kdcli.models.vocabulary import TOKENIZER_FILES
from kdcli.tasks.base import Task

CLASSIFIERS = ("AutoModelForSequenceClassification", "AutoModelForTokenClassification")
GENERATORS = ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM")
COPIED = ("config.json", *TOKENIZER_FILES)
"""The files that an application needs in addition to the graph, to make the inputs and to name the outputs."""


class Target(ABC):
    """Makes the files of a device. The runtime that runs a file is found by the file's name, the runtime of a folder by the files in it
    (`kdcli.measure.runtime.Runtime`).

    Attributes:
        serves: the auto classes of transformers whose models it exports; a task has one of them as `Task.auto`.
        packages: the modules that it needs.
        extra: the extra of kdcli that installs them; empty: they are installed by their own names.
        caveat: what its measurements, and so its budget, do not show. It stands in export.json, the table and the model card.
        hint: what to type when the files are made; `{out}` stands for their folder.
        shows: whether it presents predictions of the teacher (`show`).
        failed: the files that `export` could not make, and why.
    """

    serves: ClassVar[tuple[str, ...]] = ()
    packages: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""
    caveat: ClassVar[str] = ""
    hint: ClassVar[str] = ""
    shows: ClassVar[bool] = False
    failed: Mapping[str, str] = MappingProxyType({})

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """The device on which its files, and the torch student for comparison, run."""
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
        """Write the artifacts, and the other files that their runtime needs (tokenizer, labels).

        Args:
            student: the student's directory.
            out: an empty directory.
            model: the student, fp32, in eval mode.
            inputs: its inputs for rows of the training split, at least one row, (1, L) each.
            max_length: tokens of the longest row.

        Returns:
            The files, or folders, by precision.

        Raises:
            ExportError: a package is missing, or the exporter failed.
        """

    def refusal(self, model_class: type[PreTrainedModel], config: PreTrainedConfig) -> str | None:
        """Return why models of an architecture cannot be written, as far as that is known before the export, and what to do; None: they can.

        Args:
            model_class: the student's class in transformers.
            config: of that architecture; its sizes need not be the student's.
        """
        return None

    @property
    def reads_text(self) -> bool:
        """Whether its files of classifiers are run with the student's tokenizer.json, which tokenizers written in Python lack."""
        return True

    def precision_of(self, quantization: str) -> str:
        """Return the precision of files whose weights are rounded as `student.quantization` rounds them in training."""
        return quantization

    def show(self, out: Path, name: str, labels: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        """Write a presentation of predictions, after the artifacts were run; called if `shows`.

        Args:
            name: the student's.
            labels: their names.
            rows: of the test split: `texts`, one or two; `label`, and `teacher`, a probability for each label.
        """
        raise NotImplementedError

    def require_packages(self, *names: str) -> None:
        """Refuse to export without modules.

        Args:
            names: the modules; none: all of `packages`.

        Raises:
            ExportError: modules are missing; with what installs them.
        """
        missing = [name for name in names or self.packages if importlib.util.find_spec(name) is None]
        if missing:
            raise ExportError(
                f"no module {', '.join(missing)}: {type(self).__name__} needs {'it' if len(missing) == 1 else 'them'}; "
                f"{install_hint(missing, self.extra)}"
            )


def copy_tokenizer(student: Path, out: Path, max_length: int) -> None:
    """Copy the other files that an application needs, with a tokenizer that truncates by itself."""
    for path in (
        *(student / name for name in COPIED),
        *student.glob("*.py"),
    ):  # .py: of an architecture of its own
        if path.is_file():
            shutil.copyfile(path, out / path.name)
    enable_truncation(out, max_length)


def enable_truncation(folder: Path, max_length: int) -> None:
    """Have the tokenizer.json in a folder, if there is one, truncate texts as the student does. An application that forgets to truncate would
    get an error, or crash."""
    file, config_file = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if file.is_file():
        config = (
            read_json(config_file, dict, "the student is to be trained again")
            if config_file.is_file()
            else {}
        )
        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length, direction=config.get("truncation_side", "right"))
        tokenizer.save(str(file))


def sample_batch(model: PreTrainedModel, names: Iterable[str]) -> dict[str, Tensor]:
    """Return inputs to trace a classifier with, (2, 5): the second row is padded, and each row has one end token, whose output encoder-decoders
    classify."""
    batch = {name: torch.zeros(2, 5, dtype=torch.long) for name in names}
    batch["attention_mask"] = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    end = model.config.eos_token_id if model.config.is_encoder_decoder else None
    batch["input_ids"] += 1 if end != 1 else 2
    if end is not None:
        batch["input_ids"][[0, 1], [4, 2]] = end
    return batch


@contextlib.contextmanager
def exporting(model: PreTrainedModel, what: str, out: Path) -> Iterator[None]:
    """Turn any exception of an exporter into an ExportError with its first line.

    Args:
        what: what the model is written as, for the message.

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
        raise ExportError(
            f"{type(model).__name__} cannot be written {what}: {first}; leave this precision out (hardware.precisions), or choose another hardware"
        ) from error


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Suppress the warnings and progress bars of exporters and quantizers; errors are still raised."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def require_task(target: Target, hardware: str, task: type[Task] | Task, name: str) -> None:
    """Refuse a task whose models a target does not export.

    Args:
        hardware: the name of the device.
        name: the name of the task.

    Raises:
        ConfigError: with the devices that do.
    """
    if not target.serves:
        raise ConfigError(
            f"hardware={hardware}: {type(target).__name__} has no `serves`; declare it, a tuple of the auto classes of transformers whose models the "
            'target exports, such as "AutoModelForSequenceClassification"'
        )
    if task.auto in target.serves:
        return
    others = [
        f"hardware={device}" for device, each in _packaged_targets().items() if task.auto in each.serves
    ]
    remedy = (
        f"use {' or '.join(filter(None, [', '.join(others[:-1]), others[-1]]))}"
        if others
        else "write a target of your own that does"
    )
    raise ConfigError(
        f"hardware={hardware} exports models of {' and '.join(target.serves)}, and those of this run's task, {name}, are of {task.auto}; {remedy}"
    )


def require_writable(
    target: Target, hardware: str, auto: str, config: PreTrainedConfig, is_chosen: bool
) -> None:
    """Refuse a student whose architecture a target does not write.

    Args:
        hardware: the name of the device.
        auto: the class of transformers that loads the student.
        config: of the student's architecture.
        is_chosen: whether the user chose the device; if it is the default, an unsupported architecture is logged and not refused.

    Raises:
        ConfigError
    """
    model_class = getattr(transformers, auto)._model_mapping.get(type(config), None)
    reason = None if model_class is None else target.refusal(model_class, config)
    if reason is None:
        return
    message = f"hardware={hardware} cannot write the student, a {model_class.__name__}: {reason}"
    if is_chosen:
        raise ConfigError(message)
    console.warn(f"{message}. It is trained all the same, since hardware={hardware} is a default")


def require_fast_tokenizer(target: Target, hardware: str, auto: str, is_fast: bool, is_chosen: bool) -> None:
    """Refuse a classifier without a tokenizer.json, if the target's files are run with it.

    Args:
        is_fast: whether the student's tokenizer has a tokenizer.json.
        hardware, auto, is_chosen: as for `require_writable`.

    Raises:
        ConfigError
    """
    if is_fast or auto not in CLASSIFIERS or not target.reads_text:
        return
    problem = (
        f"hardware={hardware} runs files with tokenizer.json, and the student's tokenizer has none, because it is written in Python "
        "(BERTweet's, PhoBERT's)"
    )
    if is_chosen:
        raise ConfigError(
            f"{problem}; give hardware=cuda hardware.precisions=[bf16], a directory that transformers runs"
        )
    console.warn(f"{problem}. It is trained all the same, since hardware={hardware} is a default")


def _packaged_targets() -> dict[str, type[Target]]:
    """Return the targets of kdcli's own devices; a device that is another name of one is left out."""
    targets: dict[str, type[Target]] = {}
    for path in sorted((conf_dir() / "hardware").glob("*.yaml")):
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        if "_target_" in config:
            targets[path.stem] = locate(config["_target_"])
    return targets


def required_modules() -> set[str]:
    """Return the modules that kdcli's own targets need."""
    return {name for target in _packaged_targets().values() for name in target.packages}
