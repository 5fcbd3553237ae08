"""Manages the run directory: who made it, whether a command may continue it, which process holds it, and the records in it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from filelock import Timeout
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from typing_extensions import TypedDict

from kdcli.config import renamed
from kdcli.errors import ConfigError, listed
from kdcli.files import (
    TEMPORARY,
    read_json,
    read_jsonl,
    remove_abandoned,
    replaced,
    require_inside,
    require_name,
    write_text,
)
from kdcli.locks import Lock

logger = logging.getLogger(__name__)
APP = "kdcli"
"""The job name that Hydra records in a run directory of kdcli."""
REPORT = "report.json"
"""The last file that a run writes; a run that has it is finished."""
EXPORT = "export.json"
"""The last file that an export writes."""
EVALUATION = "eval.json"
"""The last file that an evaluation writes."""
METRICS = "metrics.jsonl"
"""The training log, one line per logging step."""
UNQUANTIZED = "unquantized"
"""The folder of the student before its quantization-aware stage, in a run that has such a stage."""
UNTRAINED, TRIVIAL = "untrained", "trivial"
"""The baselines of a report, which are not saved: the student's initialisation, and a model without a neural network."""
BASELINES = (UNTRAINED, TRIVIAL)
SEEDS = "seeds"
"""The folder of the students and controls of further seeds: `SEEDS`/SEED/student."""
UNANSWERED = "unanswered.jsonl"
"""The rows that a remote teacher did not answer, with the reason; no model of the run is trained or scored on them."""
HYDRA = Path(".hydra", "hydra.yaml")
RESTORE = "restore it, or begin a new run in another directory (--out)"
"""The remedy for a damaged record of a run."""
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The parser of Hydra's records, which is ten times as fast in C."""
LARGEST_RECORD = 1_000_000
"""The most bytes of a file in which Hydra recorded a config."""
MOST_INTERPOLATIONS = 30
"""The most interpolations of a recorded config that is not trusted."""
LOCK = ".lock"
TRUST = "KDCLI_TRUST_RUN"
"""The environment variable that carries `--trust-run` to the processes of a launcher. Every command sets or removes it."""
SWEEP = "multirun.yaml"
"""The file that Hydra writes into the directory of a sweep before its jobs start."""
ERROR = "error.json"
LOCK_PATIENCE = 0.5
"""Seconds for which an attempt to lock a run directory is repeated."""
ERROR_LOG = "error.log"
"""The traceback of an unexpected exception."""
_INCIDENTAL = {".hydra", LOCK, ERROR, ERROR_LOG}


class Failure(TypedDict):
    """error.json: why a job of a sweep ended without a result."""

    exit_code: int
    message: str


class _Row(TypedDict):
    id: str


class Metrics(TypedDict):
    """A line of metrics.jsonl; its other keys are numbers."""

    stage: str
    step: int


_held: dict[Path, Lock] = {}
_made: dict[Path, list[Path]] = {}
"""The run directories that this process created, each with the parent folders that it created, innermost first."""


def has_report(run: Path) -> bool:
    """Return whether a run has its report, be it damaged or not."""
    return (run / REPORT).is_file()


def examine(
    run: Path,
    config: Mapping[str, Any],
    is_finished: Callable[[Path], bool] = has_report,
    held: bool = False,
) -> Literal["new", "continue", "finished"]:
    """Return the state of a run directory for a command that wants to write to it. Nothing is changed.

    Args:
        is_finished: whether a run has a report that can be read.
        held: this process holds the directory.

    Raises:
        ConfigError: the directory is in use, holds a run with another config, or was not made by kdcli.
    """
    if not run.exists():
        return "new"
    if not run.is_dir():
        raise ConfigError(f"the run directory {run} is a file; choose another --out")
    app, begun = _app(run / HYDRA), any(map(_is_result, run.iterdir()))
    if app is None and not begun:
        return "new"
    if app is None and (run / HYDRA).is_file():
        raise ConfigError(
            f"{run / HYDRA} is damaged, so it is unknown who made this directory; restore it, or choose another --out"
        )
    if app != APP:
        lacks = f" (it has no {HYDRA}, which a run begins with)" if app is None else ""
        raise ConfigError(f"{run} holds files and was not made by kdcli{lacks}; choose another --out")
    if not held:
        _free(run)
    before = _with_defaults(_resolved(run), config)
    # the measurement does not change what is trained, nor does what is published: a run in which one of them failed may continue with another
    if changed := sorted(
        each for each in _differences(before, config) if each.partition(".")[0] not in ("measure", "hub")
    ):
        raise ConfigError(
            f"{run} holds a run with another config ({', '.join(changed[:5])}{' …' if len(changed) > 5 else ''}) in "
            f"{HYDRA.with_name('config.yaml')}; choose another --out, or the config that it was started with"
        )
    if is_finished(run):
        return "finished"
    for path in run.rglob("*"):
        if path.is_symlink():
            require_inside(run, path, "--out")
    return "continue" if begun else "new"


def _is_result(path: Path) -> bool:
    """Return whether a path in a run directory is a result, and not one of the files that are written before any work."""
    return path.name not in _INCIDENTAL and not (path.name.startswith(".") and path.name.endswith(TEMPORARY))


def examine_sweep(folder: Path) -> None:
    """Refuse a sweep directory that holds other files. Its runs are examined one by one.

    Raises:
        ConfigError: it was not made by kdcli.
    """
    if not folder.exists():
        return
    app = _app(folder / SWEEP) if folder.is_dir() else ""
    if app is None:  # there is none, or the process was killed while Hydra wrote it
        only = {path.name for path in folder.iterdir()} <= {SWEEP}
        app = APP if only or any(_app(each) == APP for each in folder.glob(f"*/{HYDRA}")) else None
    if app != APP:
        raise ConfigError(f"{folder} is there and is no sweep of kdcli; choose another --out")


def make(run: Path) -> None:
    """Create a run directory and its parent folders.

    Raises:
        ConfigError: it cannot be created.
    """
    try:
        if not run.is_dir():
            missing = [folder for folder in (run, *run.parents) if not folder.exists()]
            run.mkdir(parents=True)
            _made[run] = missing
    except OSError as error:
        if run.is_dir():  # another process created it at the same time
            return
        raise ConfigError(f"the run directory {run} cannot be made ({error}); choose another --out") from None


def unmake(sweep: Path) -> None:
    """Remove the directory of a sweep without jobs, if `make` created it."""
    with contextlib.suppress(OSError):
        for folder in _made.pop(sweep, ()):
            (folder / SWEEP).unlink(missing_ok=True)
            folder.rmdir()


def require_run(folder: Path) -> None:
    """Refuse a directory without a report that is no run of `kdcli distill`.

    Raises:
        ConfigError: it is the directory of an evaluation, of an export or of a sweep.
    """
    if has_report(folder):
        return
    if (folder / SWEEP).is_file():
        raise ConfigError(f"{folder} is the directory of a sweep; give the directory of one of its runs")
    recorded = recorded_keys(folder) if (command := _command(folder)) else {}
    of = next((str(recorded[key]) for key in ("run", "artifact", "model") if recorded.get(key)), "")
    if command == "eval" or (folder / EVALUATION).is_file():
        raise ConfigError(
            f"{folder} is the directory of an evaluation (kdcli eval), and no run; give what it scored{of and f': {of}'}"
        )
    if command == "export" or (folder / EXPORT).is_file():
        of = of or (str(folder.parent.parent) if folder.parent.name == "export" else "")
        raise ConfigError(
            f"{folder} is the directory of an export (kdcli export), and no run; give the run whose student it holds{of and f': {of}'}, or score "
            f"its files: kdcli eval {of or 'RUN'} artifact={folder}"
        )


def saved_config(run: Path) -> dict[str, Any]:
    """Return the composed config that a run was started with, with its interpolations resolved.

    Raises:
        ConfigError: there is none, or it reads the environment, which a run must not do unless it is trusted; or another command wrote it.
    """
    require_run(run)
    for key, text in leaves(_recorded(run)):
        if reads := resolvers(text):
            require_trust(run, f"{key} = {text}", f"calls {listed(reads)} here")
    tree = _resolved(run)
    if wrong := [part for part in ("teacher", "student", "dataset") if not isinstance(tree.get(part), dict)]:
        raise ConfigError(
            f"{run / '.hydra' / 'config.yaml'} is damaged ({listed(wrong)}: expected a mapping of keys to values)"
        )
    return tree


def trust(given: bool) -> None:
    """Record whether the code that a run names may be run here, also for the processes of a launcher."""
    if given:
        os.environ[TRUST] = "1"
    else:
        os.environ.pop(TRUST, None)


def require_trust(run: Path, what: str, does: str) -> None:
    """Refuse a recorded value that could do harm, unless the run is trusted.

    Raises:
        ConfigError: the run is not trusted.
    """
    if not os.environ.get(TRUST):
        raise ConfigError(
            f"{run} records {what}, which {does}; give --trust-run if you trust whoever made this run, or give the key on the command line"
        )


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Iterate over the keys and values of plain data at any depth; an empty mapping is a value."""
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from leaves(value, f"{path}.{key}".lstrip("."))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from leaves(value, f"{path}.{index}")
    else:
        yield path, tree


def resolvers(text: Any) -> list[str]:
    """Return the resolver calls in a value, such as `oc.env:HOME`: interpolations that are not the name of another key."""
    calls: list[str] = []
    open_at: list[int] = []
    for match in re.finditer(r"\$\{|[}:]", text if isinstance(text, str) else ""):
        if match[0] == "${":
            open_at.append(match.end())
        elif match[0] == "}" and open_at:
            open_at.pop()
        elif match[0] == ":" and open_at:
            calls.append(str(text)[open_at[-1] : match.start()])
    return calls


def _text(path: Path) -> str:
    """Return the text of a YAML file that Hydra wrote: a mapping, or the list of overrides. Large files are refused, and so are aliases, which can
    expand to gigabytes.

    Raises:
        ConfigError: the file is not such a file.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe may never deliver a byte
            raise ValueError("it is not a regular file")
        with path.open("rb") as stream:
            data = stream.read(LARGEST_RECORD + 1)
        if len(data) > LARGEST_RECORD:
            raise ValueError(f"more than {LARGEST_RECORD:,} bytes")
        text, first = data.decode("utf-8"), None
        for event in yaml.parse(text, Loader=LOADER):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("it has aliases, which kdcli does not write")
            first = event if first is None and isinstance(event, yaml.NodeEvent) else first
        if isinstance(first, yaml.ScalarEvent):
            raise ValueError("it is no mapping of keys to values")
        return text
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is damaged ({error}); {RESTORE}") from None


def _recorded(run: Path) -> dict[str, Any]:
    """`.hydra/config.yaml` of a run, unresolved, under the names of today."""
    path = run / ".hydra" / "config.yaml"
    if not path.is_file() or _app(run / HYDRA) != APP:
        raise ConfigError(
            f"{run} is not a run directory of kdcli (it has no .hydra/config.yaml that kdcli wrote); give the directory of one"
        )
    try:
        tree = OmegaConf.to_container(OmegaConf.create(_text(path)), resolve=False)
    except (ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path} is damaged ({str(error) or type(error).__name__}); {RESTORE}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} is damaged (it is no mapping of keys to values); {RESTORE}")
    return renamed.with_current_names({str(key): value for key, value in tree.items()}, quiet=True)


def recorded_keys(run: Path) -> dict[str, Any]:
    """Return the composed config that a run was started with as it stands in its file, under the names of today. Nothing is resolved, so that it is
    quick, and safe for a run that is not trusted.

    Raises:
        ConfigError: it is missing or damaged.
    """
    path = run / ".hydra" / "config.yaml"
    try:
        tree = yaml.load(_text(path), LOADER)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is damaged ({type(error).__name__}: {error}); {RESTORE}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} is damaged (it is no mapping of keys to values); {RESTORE}")
    return renamed.with_current_names({str(key): value for key, value in tree.items()}, quiet=True)


def _resolved(run: Path) -> dict[str, Any]:
    recorded, path = _recorded(run), run / ".hydra" / "config.yaml"
    # an interpolation can expand to several others, so that a few dozen can expand to gigabytes
    count = sum(value.count("${") for _, value in leaves(recorded) if isinstance(value, str))
    if count > MOST_INTERPOLATIONS:
        require_trust(run, f"{count} interpolations", "may take all memory to resolve")
    try:
        tree = OmegaConf.to_container(OmegaConf.create(recorded), resolve=True)
    except (OmegaConfBaseException, RecursionError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"{path} cannot be resolved ({first}); {RESTORE}") from None
    return {str(key): value for key, value in tree.items()} if isinstance(tree, dict) else {}


def recorded_choice(run: Path) -> tuple[dict[str, str], list[str]]:
    """Return the choice of each config group and the overrides of the command line that a run was started with.

    Raises:
        ConfigError: Hydra's record of it is damaged.
    """
    path = run / HYDRA
    try:
        hydra = yaml.load(_text(path), LOADER)["hydra"]
        choices, words = hydra["runtime"]["choices"], hydra["overrides"]["task"]
    except (ValueError, RecursionError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({type(error).__name__}: {error}); {RESTORE}") from None
    if not isinstance(choices, dict) or not isinstance(words, list):
        raise ConfigError(f"{path} is damaged (no choices, or no words of a command line); {RESTORE}")
    chosen = {str(group): name for group, name in choices.items() if isinstance(name, str)}
    return chosen, [word for word in words if isinstance(word, str)]


def recorded_overrides(run: Path) -> list[str] | None:
    """Return the overrides that Hydra recorded for a job; None: the record is missing or damaged."""
    try:
        words = yaml.load(_text(run / ".hydra" / "overrides.yaml"), LOADER)
    except (ConfigError, ValueError, RecursionError, yaml.YAMLError):
        return None
    return [str(word) for word in words] if isinstance(words, list) else None


def hardware_of(run: Path) -> list[str]:
    """Return the overrides that chose the device of a run, with its budget; none if no device was recorded.

    Raises:
        ConfigError: the record is damaged, or holds a name that cannot be a device.
    """
    if not (run / HYDRA).is_file():
        return []
    choices, words = recorded_choice(run)
    if "hardware" not in choices:
        return []
    name = require_name(choices["hardware"], f"{run / HYDRA}: the choice of hardware")
    return [f"hardware={name}", *(word for word in words if word.lstrip("+").startswith("hardware."))]


def _app(record: Path) -> str | None:
    """Return the job name in Hydra's record, which tells who made a directory; None if there is no complete record."""
    try:
        name = yaml.load(_text(record), LOADER)["hydra"]["job"]["name"]
    except (ConfigError, ValueError, RecursionError, yaml.YAMLError, KeyError, TypeError):
        return None
    return name if isinstance(name, str) else None


def _command(folder: Path) -> str | None:
    """Return the command, eval or export, that Hydra's record of a directory names; None: it is another one, or there is no complete record."""
    try:
        name = yaml.load(_text(folder / HYDRA), LOADER)["hydra"]["job"]["config_name"]
    except (ConfigError, ValueError, RecursionError, yaml.YAMLError, KeyError, TypeError):
        return None
    return name if name in ("eval", "export") else None


def _free(run: Path) -> None:
    if not (run / LOCK).exists():  # no process uses it, and an attempt to lock it would leave a lock file
        return
    _lock(run).release()


def _lock(run: Path) -> Lock:
    """Lock the directory. The attempt is repeated for `LOCK_PATIENCE` seconds, since another process may hold the lock only to test it or to remove the directory.

    Raises:
        ConfigError: another process holds it.
    """
    lock, until = Lock(run / LOCK), time.monotonic() + LOCK_PATIENCE
    while True:
        try:
            lock.acquire(wait=False)
            return lock
        except Timeout:
            if time.monotonic() > until:
                raise ConfigError(
                    f"{run} is in use by another kdcli process; wait for it, or choose another --out"
                ) from None
            time.sleep(0.02)
        except FileNotFoundError:
            make(run)


def _with_defaults(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recorded config with the default of each key, or argument of a class, that the release which recorded it did not have."""
    # the schema takes a third of a second, and most commands that read runs do not need it
    from kdcli.config.check import defaults
    from kdcli.config.components import argument_defaults, locate
    from kdcli.config.schema import COMMANDS

    def filled(tree: Any, default: Any, current: Any) -> Any:
        if not isinstance(tree, Mapping) or not isinstance(default, Mapping | None):
            return tree
        current = current if isinstance(current, Mapping) else {}
        target = tree.get("_target_")
        if target is not None and current.get("_target_") == target and current.keys() - tree.keys():
            default = {**argument_defaults(locate(target)), **(default or {})}
            default = {key: value for key, value in default.items() if key in current}
        if default is None:
            return tree
        inner = {key: filled(value, default.get(key), current.get(key)) for key, value in tree.items()}
        return {**default, **inner}

    before = _read_by_content(before, now)
    schemas = (each for each in COMMANDS.values() if now.keys() <= each.model_fields.keys())
    schema = {key: value for each in [*schemas][:1] for key, value in defaults(each).items()}
    return dict(filled(before, schema, now))


def _read_by_content(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recorded config in which the format and the encoding are found, where the release that recorded it needed both from the user.

    Its groups said csv, jsonl, parquet and UTF-8; env.json tells whether the rows are still the same.
    """
    data, later = before.get("dataset"), now.get("dataset")
    if not isinstance(data, Mapping) or not isinstance(later, Mapping) or "bad_rows" in data:
        return dict(before)
    by_content: dict[str, str | None] = {}
    if later.get("format") == "auto" and data.get("format") in ("csv", "jsonl", "parquet"):
        by_content["format"] = "auto"
    if later.get("encoding", "") is None and data.get("encoding") == "utf-8":
        by_content["encoding"] = None
    return {**before, "dataset": {**data, **by_content}}


def _differences(before: Any, now: Any, path: str = "") -> set[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = set(before) | set(now)
        return {
            line
            for key in keys
            for line in _differences(before.get(key), now.get(key), f"{path}.{key}".lstrip("."))
        }
    return set() if before == now else {path}


def take(
    run: Path, config: Mapping[str, Any], is_finished: Callable[[Path], bool] = has_report
) -> Literal["new", "continue", "finished"]:
    """Lock the directory until this process ends or releases it; returns its state, as `examine` does.

    Raises:
        ConfigError: another process holds it, or it must not be written to. It is not locked then.
    """
    _held[run] = _lock(run)
    try:
        state = examine(run, config, is_finished, held=True)
    except BaseException:
        release(run)
        raise
    (run / ERROR).unlink(missing_ok=True)
    return state


def record(run: Path, files: Mapping[str, str]) -> None:
    """Write `.hydra/`, unless the directory has a complete one, which is never changed.

    Args:
        files: the content of its files by name.
    """
    if _app(run / HYDRA) == APP:
        return
    with replaced(run / HYDRA.parent) as temporary:
        temporary.mkdir()
        for name, text in files.items():
            (temporary / name).write_text(text, encoding="utf-8")


def release(run: Path, remove: bool = False) -> None:
    """Unlock the directory; with `remove`, delete its content, and the directory itself if this process created it."""
    lock = _held.pop(run, None)
    if lock is None:  # another process holds it, or it was released before
        return
    for path in run.iterdir() if remove else ():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()
    (run / LOCK).unlink(missing_ok=True)  # before the release: afterwards it may belong to another process
    lock.release()
    with contextlib.suppress(OSError):  # another process holds it, or uses a parent folder
        for folder in _made.get(run, ()) if remove else ():
            folder.rmdir()


def tidy(run: Path) -> None:
    """Remove the temporary files of a finished run, if it was killed before it removed them."""
    lock = Lock(run / LOCK)
    try:
        lock.acquire(wait=False)
    except (Timeout, OSError):  # another process uses it, or it can only be read
        return
    remove_abandoned(run, deep=True)
    shutil.rmtree(run / "stages", ignore_errors=True)
    (run / LOCK).unlink(missing_ok=True)
    lock.release()


def trained(run: Path) -> bool:
    """Return whether a run directory holds a trained model or a checkpoint."""
    own = ("student", "control", "assistants", UNQUANTIZED, "stages/after")
    return any((run / name).is_dir() for name in own) or any((run / "stages").glob("**/checkpoint-*"))


def unanswered(run: Path) -> set[str]:
    """Return the ids of the rows that the run drops from all splits."""
    remedy = (
        f"it names the rows that must be dropped; restore it, or repeat the run: kdcli distill --rerun {run}"
    )
    return {row["id"] for row in read_jsonl(run / UNANSWERED, _Row, remedy)}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl; damaged ones are dropped, with a warning."""
    return [
        dict(line)
        for line in read_jsonl(path, Metrics)
        if all(isinstance(value, int | float | None) for key, value in line.items() if key != "stage")
    ]


def rewrite_metrics(path: Path, keep: Callable[[dict[str, Any]], bool] = lambda line: True) -> None:
    """Keep only complete lines in metrics.jsonl for which `keep` is true."""
    if path.exists():
        lines = [json.dumps(line) + "\n" for line in read_metrics(path) if keep(line)]
        write_text(path, "".join(lines))


def read_error(job: Path) -> dict[str, Any]:
    """Return why a job of a sweep failed.

    Raises:
        ConfigError: its error.json is damaged.
    """
    return dict(read_json(job / ERROR, Failure, "remove it and start the same sweep again"))
