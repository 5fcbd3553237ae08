"""kdcli from Python: the commands as functions, over the same pipeline as the command line.

Every function raises a `KDError` with the message of the command line. None of them needs the main thread, and each leaves `sys.argv`,
signal handlers, environment variables, log handlers and the state of Hydra as they were.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins

from kdcli import console, rundir
from kdcli.console import ProgressStage
from kdcli.errors import ConfigError, ExitCode, KDError
from kdcli.evaluation.results import (
    EvalResult,
    ExportResult,
    Report,
    Verdict,
    read,
    read_export,
    read_report,
)
from kdcli.files import user_path
from kdcli.launch.argv import quote_override
from kdcli.launch.hydra_errors import failure_of
from kdcli.launch.inference import load as load_model
from kdcli.launch.run import Done, call

if TYPE_CHECKING:
    from kdcli.inference.predictor import Predictor

Config = Mapping[str, Any] | str | Path | None
"""The keys of a command: a mapping, nested or with dots (`{"trainer.epochs": 3}`), of which a text at a config group chooses an option
(`{"teacher": "minilm"}`); or the path of a YAML file with them; None: the packaged defaults."""
ENVIRONMENT = ("HYDRA_FULL_ERROR", "KDCLI_CONFIG_DIR", rundir.TRUST)
"""The environment variables that a command sets, for the processes that it starts."""
FILE = "config.yaml"
"""The name of the file into which a mapping is written for a command."""
OnProgress = Callable[[ProgressStage], object]
"""Called whenever a stage begins, advances or ends, with its `name`, `state`, `step`, `total`, `seconds`, `remaining` and `terms`."""


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        run: its directory.
        report: report.json.
    """

    run: Path
    report: Report

    @property
    def student(self) -> Path:
        """The student: a directory that transformers loads."""
        return self.run / "student"

    @property
    def verdict(self) -> Verdict:
        """The comparison of student, control and teacher."""
        return self.report.verdict


@dataclass(frozen=True)
class Export:
    """The files that were made for a device.

    Attributes:
        folder: it holds them.
        report: export.json.
        passed: every file is there and keeps tolerance and budget (the exit code of the command is 0, and not 3).
    """

    folder: Path
    report: ExportResult
    passed: bool


def distill(
    config: Config = None,
    *,
    out: str | Path | None = None,
    config_dir: str | Path | None = None,
    on_progress: OnProgress | None = None,
    quiet: bool = False,
) -> Result:
    """Train a student with a teacher, train the no-teacher baseline, and compare all three, as `kdcli distill`.

    A finished run in `out` is read, and one that was interrupted is continued.

    Args:
        config: the keys of the run.
        out: the run directory; None: a new one below runs/distill.
        config_dir: a folder with YAML files and classes of your own.
        on_progress: called with the stage whose state has changed.
        quiet: print nothing.

    Raises:
        KDError: the run was refused (`exit_code` 2) or failed.
    """
    words = [] if out is None else [_word("hydra.run.dir", out)]
    with _undisturbed(on_progress, quiet):
        done = _call("distill", config, words, config_dir)
        if done.folder is None:
            raise ConfigError("dry_run = true: nothing is trained, and there is no result; leave it out")
        return Result(done.folder, read_report(done.folder))


def evaluate(
    run: str | Path | None = None,
    config: Config = None,
    *,
    model: str | Path | None = None,
    artifact: str | Path | None = None,
    out: str | Path | None = None,
    config_dir: str | Path | None = None,
    trust_run: bool = False,
    on_progress: OnProgress | None = None,
    quiet: bool = False,
) -> EvalResult:
    """Score the models of a run, a checkpoint, or an exported file, as `kdcli eval`.

    Args:
        run: the run directory, whose data set is read unless the config names another one.
        config: the keys of the evaluation, such as `{"split": "validation"}`.
        model: in place of a run: a checkpoint.
        artifact: an exported file or folder.
        out: where eval.json and the predictions are written; None: a new directory below runs/eval.
        trust_run: a run may name classes and code to run here.
        config_dir, on_progress, quiet: as for `distill`.

    Raises:
        KDError: it was refused (`exit_code` 2) or failed.
    """
    given = {"run": run, "model": model, "artifact": artifact, "hydra.run.dir": out}
    words = [_word(key, value) for key, value in given.items() if value is not None]
    with _undisturbed(on_progress, quiet):
        done = _call("eval", config, words, config_dir, trust_run)
        assert done.folder is not None
        return read(done.folder / "eval.json", EvalResult, "evaluate again")


def export(
    run: str | Path,
    hardware: str | None = None,
    config: Config = None,
    *,
    config_dir: str | Path | None = None,
    trust_run: bool = False,
    on_progress: OnProgress | None = None,
    quiet: bool = False,
) -> Export:
    """Export a run's student for a device, and run and check the files there, as `kdcli export`.

    Args:
        run: the run directory.
        hardware: the device; None: that of the run.
        config: the further keys of the export, such as `{"hardware.precisions": ["int8"]}`.
        trust_run, config_dir, on_progress, quiet: as for `evaluate`.

    Raises:
        KDError: it was refused (`exit_code` 2) or failed. A file that misses its tolerance or budget is no error: see `Export.passed`.
    """
    words = [_word("run", run), *([f"hardware={hardware}"] if hardware else [])]
    with _undisturbed(on_progress, quiet):
        done = _call("export", config, words, config_dir, trust_run)
        assert done.folder is not None
        return Export(done.folder, read_export(done.folder), done.status == ExitCode.DONE)


def load(
    run_or_artifact: str | Path,
    *,
    trust_run: bool = False,
    trust_remote_code: bool = False,
    merge_adapter: bool = False,
    config_dir: str | Path | None = None,
) -> Predictor:
    """Load a model that predicts for texts, as `kdcli predict`: `kdcli.load(RUN).predict(["A text."])`.

    Args:
        run_or_artifact: a run directory, whose student is loaded; an exported file or folder, which its own runtime runs; or a model
            directory or a hub id.
        trust_run: the run's config may name classes and code to run here.
        trust_remote_code: Python files in the model's folder may run.
        merge_adapter: an adapter of PEFT may be merged into its base model.
        config_dir: as for `distill`.

    Raises:
        KDError: it cannot be loaded.
    """
    folder = None if config_dir is None else Path(config_dir)
    with _undisturbed(None, quiet=False):
        return load_model(str(run_or_artifact), trust_run, trust_remote_code, merge_adapter, folder)


def _word(key: str, value: str | Path) -> str:
    return f"{key}={quote_override(user_path(value))}"


def _call(
    command: str, config: Config, words: list[str], config_dir: str | Path | None, trust_run: bool = False
) -> Done:
    """Run a command with the keys of a config and further overrides."""
    with tempfile.TemporaryDirectory(prefix="kdcli-") as folder:
        if isinstance(config, Mapping):
            words = [str(_written(config, Path(folder) / FILE)), *words]
        elif config is not None:
            words = [str(config), *words]
        own = None if config_dir is None else Path(config_dir)
        try:
            return call(command, words, config_dir=own, trust_run=trust_run)
        except KDError as error:  # the file is gone when the message is read
            place = rf" \({re.escape(folder)}\S+, line \d+, column \d+\)"
            error.message = re.sub(place, "", error.message).replace(str(Path(folder) / FILE), "the config")
            error.args = (error.message,)
            raise


def _written(config: Mapping[str, Any], file: Path) -> Path:
    """Return a file with the keys of a mapping.

    Raises:
        ConfigError: a value cannot be written as YAML.
    """
    try:
        file.write_text(yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True), encoding="utf-8")
    except yaml.YAMLError as error:
        raise ConfigError(
            f"the config holds what YAML cannot ({str(error).splitlines()[0]}); give plain values"
        ) from None
    return file


def _plain(value: Any) -> Any:
    """Return mappings, sequences and paths as YAML writes them; other values unchanged."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


@contextlib.contextmanager
def _undisturbed(on_progress: OnProgress | None, quiet: bool) -> Iterator[None]:
    """Restore everything that a command changes in this process, and turn every exception into a `KDError`."""
    store = ConfigStore.instance()
    Plugins.instance()  # the first one stores configs of Hydra's own, once: a copy from before would leave the next command without them
    hydra, cfg, repo = GlobalHydra.instance().hydra, HydraConfig.instance().cfg, copy.deepcopy(store.repo)
    environment, path = {key: os.environ.get(key) for key in ENVIRONMENT}, list(sys.path)
    loggers = [logging.getLogger(), logging.getLogger("kdcli")]
    handlers = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    GlobalHydra.instance().clear()
    try:
        with console.observed(on_progress), console.silenced(quiet):
            console.setup_logging()
            yield
    except Exception as error:
        failure = failure_of(error)
        if failure is error:
            raise
        raise failure from error
    finally:
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg, store.repo = hydra, cfg, repo
        for logger, level, own in handlers:
            logger.setLevel(level)
            logger.handlers = own
        sys.path[:] = path
        for key, value in environment.items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value
