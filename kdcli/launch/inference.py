"""From the command line to a model that predicts or talks: which model is meant, whether it is trusted, and errors as messages."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli import console, processes, rundir
from kdcli.config.check import check_values
from kdcli.config.dataset import Dataset as DatasetConfig
from kdcli.config.paths import user_conf_dir
from kdcli.errors import ConfigError, ExitCode, hide_nothing
from kdcli.files import workplace
from kdcli.inference.paths import locate, require_out
from kdcli.launch.compose import announce_loading, make_importable
from kdcli.launch.hydra_errors import failure_of
from kdcli.launch.replay import replayed_overrides

if TYPE_CHECKING:
    from kdcli.inference.predictor import Predictor


def predict(
    given: str,
    words: Sequence[str],
    out: Path | None = None,
    overwrite: bool = False,
    as_json: bool = False,
    max_new_tokens: int | None = None,
    **trust: Any,
) -> int:
    """`kdcli predict`; returns the exit code.

    Args:
        trust: as for `load`.
    """

    def run() -> int:
        require_out(out, overwrite)
        if not words:
            raise ConfigError(
                "there is nothing to predict for; give a text, a file, or - for the lines of stdin"
            )
        predictor = load(given, **trust)
        from kdcli.commands.predict import predict as command

        return command(predictor, words, out, as_json, max_new_tokens)

    return _with_messages(run)


def chat(
    given: str,
    teacher: bool = False,
    system: str = "",
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    **trust: Any,
) -> int:
    """`kdcli chat`; returns the exit code.

    Args:
        teacher: the run's teacher answers as well.
        trust: as for `load`.
    """

    def run() -> int:
        predictor = load(given, chats=True, **trust)
        from kdcli.commands.chat import Sampling
        from kdcli.commands.chat import chat as command
        from kdcli.inference.subject import open_teacher

        other = open_teacher(predictor.subject, predictor.cfg) if teacher else None
        return command(predictor, other, system, Sampling(max_new_tokens, temperature, seed))

    return _with_messages(run)


def load(
    given: str,
    trust_run: bool = False,
    trust_remote_code: bool = False,
    merge_adapter: bool = False,
    config_dir: Path | None = None,
    chats: bool = False,
) -> Predictor:
    """Load the model that a path or a hub id means.

    Args:
        trust_run: the run's config may name classes and code to run here.
        trust_remote_code: Python files in the model's folder may run.
        merge_adapter: an adapter of PEFT may be merged into its base model.
        config_dir: the user's own folder, in which a run's own task is.
        chats: it must be a language model that continues texts.

    Raises:
        KDError: it cannot be used.
    """
    rundir.trust(trust_run)
    hide_nothing()
    if config_dir is not None:
        os.environ["KDCLI_CONFIG_DIR"] = str(config_dir)
    _, run = locate(given)
    tree = replayed_overrides(run, DatasetConfig, [], "dataset") if run is not None else None
    if folder := user_conf_dir():
        make_importable(folder)
    cfg = check_values(DatasetConfig, tree) if tree is not None else None
    announce_loading()
    from kdcli.inference.predictor import Predictor
    from kdcli.inference.subject import find_subject, open_model

    subject = find_subject(given, trust_remote_code, merge_adapter)
    return Predictor(open_model(subject, cfg, chats), subject, cfg)


def _with_messages(run: Callable[[], int]) -> int:
    """Run a command; every exception becomes one message."""
    console.setup_logging()
    with processes.watched():
        before = processes.children()
        try:
            with workplace():
                return run()
        except KeyboardInterrupt as error:
            processes.end_children(before)
            return processes.exit_code(error)
        except BrokenPipeError:  # the reader of stdout wants no more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return ExitCode.DONE
        except Exception as error:
            failure = failure_of(error)
            console.error(failure.message)
            return failure.exit_code
