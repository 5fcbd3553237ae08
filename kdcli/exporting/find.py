"""Finds the artifact that a user names, and refuses one that is not what `kdcli export` wrote."""

from __future__ import annotations

from pathlib import Path

from kdcli.errors import ConfigError, ModelError
from kdcli.evaluation.results import read_export
from kdcli.exporting.artifacts import folder_of, require_unchanged
from kdcli.exporting.runtimes import runtime_of
from kdcli.files import require_inside, require_name, user_path
from kdcli.model_files import require_folder
from kdcli.models.checkpoint import Checkpoint
from kdcli.rundir import EXPORT


def find_artifact(name: str, run: Path | None) -> Path:
    """Return the file or folder that a name means.

    Args:
        name: a path, relative to the working directory or to the run, a file of one of the run's exports, or the folder of an export, of
            which the recommended file is meant.

    Raises:
        ConfigError: none of the files in the folder is recommended.
        ModelError: there is no such artifact, it is not what was exported, or it was made of another student than the run's.
    """
    candidates = [user_path(name)]
    if run is not None:
        candidates += [run / name, *sorted(run.glob(f"export/*/{name}"))]
    for path in map(_recommended, candidates):
        if path.is_file() or (path.is_dir() and runtime_of(path)):
            path = path.absolute()
            _require_exported(path, run)
            require_folder(folder_of(path), path.name)
            return path
    raise ModelError(
        f"the artifact {name} does not exist, or is a folder without a model (looked for "
        f"{', '.join(map(str, candidates))}); give the path of a file or folder that kdcli export wrote"
    )


def _recommended(path: Path) -> Path:
    """Return the file or folder that an export recommends, if the path is a folder that `kdcli export` wrote; else the path itself."""
    if not (path / EXPORT).is_file():
        return path
    result = read_export(path)
    if result.recommended is None:
        ran = any(entry.parity for entry in result.artifacts.values())
        reason = (
            "is within its tolerance and budget"
            if ran
            else "was run by the export, so that none is recommended"
        )
        raise ConfigError(f"none of the files in {path} {reason}; name one: {', '.join(result.artifacts)}")
    matches = sorted(path.rglob(require_name(result.recommended, f"{path / EXPORT}: recommended")))
    if not matches:
        raise ModelError(
            f"{result.recommended}, which {path / EXPORT} recommends, is gone; export again: "
            f"kdcli export RUN hardware={result.hardware}"
        )
    return require_inside(path, matches[0], f"{path / EXPORT}: recommended")


def _require_exported(artifact: Path, run: Path | None) -> None:
    """Refuse an artifact that is not what `kdcli export` wrote, or that it made of another student than the run's."""
    record = next((file for each in artifact.parents[:3] if (file := each / EXPORT).is_file()), None)
    if record is None:
        return
    result = read_export(record.parent)
    if (
        run is not None
        and result.student
        and result.student != Checkpoint(run / "student", "student").weights_hash
    ):
        raise ModelError(
            f"{artifact} was made from another student than {run / 'student'}; export that one anew, or leave the run out "
            "and name the data set (dataset=…)"
        )
    if (entry := result.artifacts.get(artifact.name)) is not None:
        require_unchanged(artifact, result.hardware, entry.sha256)
