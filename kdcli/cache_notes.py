"""Lists the entries of the cache: what each is, how large, for which teacher and data, and which runs use it. Imports no torch."""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from filelock import Timeout
from typing_extensions import TypedDict

from kdcli.errors import ConfigError
from kdcli.files import PARTIAL, cache_folder, read_json, write_json
from kdcli.locks import Lock
from kdcli.rundir import LOCK

SHORT = 8
"""The letters of an entry's name that tables and messages show."""
KINDS = {
    "answers": "answers of an endpoint, which were paid for",
    "teachers": "a tuned teacher",
    "teacher_outputs": "outputs of a teacher",
    "rollouts": "completions of a teacher",
    "rollout_scores": "how likely a teacher finds completions",
    "checked_texts": "texts that the pre-flight checks",
    "augmented": "copies of texts with replaced words",
    "new_models": "a model of random weights",
    "streamed": "hidden states of a streamed pass",
    "converted": "a checkpoint of another layout, converted",
    "litert": "the environment of a converter",
    "node": "packages of the browser's runtime",
}
"""The folders of the cache, and what is in each."""
NOTE = ".about.json"
"""The suffix of the file that states the use of an entry."""
MOST_NAMED = 20
"""The maximum number of data sets and runs that a note names; later ones replace the first."""
_ENTRY = re.compile(r"[0-9a-f]{32}")


class Note(TypedDict):
    """The use of an entry. `used` is in seconds since the epoch."""

    teacher: str
    data: list[str]
    runs: list[str]
    used: float


@dataclass(frozen=True)
class Entry:
    """A result in the cache.

    Attributes:
        kind: the folder of the cache that it lies in; a key of `KINDS`, unless another version wrote it.
        name: the hash of its key.
        paths: its files and folders, without locks.
        note: None: an earlier version made it, or nothing has a teacher there.
    """

    kind: str
    name: str
    paths: Sequence[Path]
    note: Note | None = field(default=None, compare=False)

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        return sum(_size(path) for path in self.paths)

    @property
    def used(self) -> float:
        """When it was last used, in seconds since the epoch: as its note says, or when it was last written."""
        if self.note is not None:
            return self.note["used"]
        return max((_written(path) for path in self.paths), default=0.0)

    @property
    def locks(self) -> list[Path]:
        """The locks of those that make it, or send requests for it."""
        folder = cache_folder() / self.kind
        return [folder / f"{self.name}.lock", folder / f"{self.name}.sqlite.lock"]


def note_path(path: Path) -> Path:
    """Return the note beside an entry: a folder, or a file."""
    return path.with_name(path.name.partition(".")[0] + NOTE)


def note_use(path: Path, teacher: str, data: str, run: Path) -> None:
    """Record that a run uses an entry. The caller holds the lock of the entry.

    Args:
        path: of the entry.
        teacher, data: as reports call them.
    """
    before = _read(note_path(path))
    data_sets, runs = (list(before[key]) if before else [] for key in ("data", "runs"))
    for names, name in ((data_sets, data), (runs, str(run.absolute()))):
        if name in names:
            names.remove(name)
        names.append(name)
    note: Note = {
        "teacher": teacher,
        "data": data_sets[-MOST_NAMED:],
        "runs": runs[-MOST_NAMED:],
        "used": time.time(),
    }
    write_json(note_path(path), note, sync=False)


def entries() -> list[Entry]:
    """Return all entries of the cache, by kind and then the last used first."""
    base = cache_folder()
    result = []
    for folder in sorted(base.iterdir()) if base.is_dir() else ():
        grouped: dict[str, list[Path]] = {}
        for path in sorted(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else ():
            name = path.name.partition(".")[0]
            if _ENTRY.fullmatch(name) and not path.name.endswith((".lock", ".lease", NOTE)):
                grouped.setdefault(name, []).append(path)
        result += [
            Entry(folder.name, name, paths, _read(folder / f"{name}{NOTE}"))
            for name, paths in grouped.items()
        ]
    return sorted(result, key=lambda entry: (entry.kind, -entry.used))


@contextlib.contextmanager
def unused(chosen: Sequence[Entry]) -> Iterator[None]:
    """Hold entries, so that no run begins to make or to extend them.

    Raises:
        ConfigError: a run uses one of them.
    """
    held: set[Path] = set()
    with contextlib.ExitStack() as stack:
        for entry in chosen:
            runs = [Path(run) for run in (entry.note["runs"] if entry.note else ())]
            locks: list[tuple[Path, Path | None]] = [(path, None) for path in entry.locks]
            for path, run in [*locks, *((run / LOCK, run) for run in runs)]:
                if path not in held and path.exists():  # several entries may be of one run
                    held.add(path)
                    _hold(stack, path, entry, run)
        yield


def _hold(held: contextlib.ExitStack, path: Path, entry: Entry, run: Path | None) -> None:
    lock = Lock(path)
    try:
        lock.acquire(wait=False)
    except Timeout:
        who = f"the run {run}" if run else "a run"
        raise ConfigError(
            f"{entry.kind} {entry.name[:SHORT]} is in use by {who}, and nothing was deleted; wait for it or stop it, or choose other entries with "
            "--teacher, --kind or --older-than"
        ) from None
    except OSError:  # the run directory was removed, or belongs to another user
        return
    held.callback(lock.release)


def delete(entry: Entry) -> None:
    """Delete an entry, which `unused` holds, with its note. Its locks stay, because another process may wait for them."""
    note = cache_folder() / entry.kind / f"{entry.name}{NOTE}"
    for path in [*entry.paths, note]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def is_unfinished(entry: Entry) -> bool:
    """Return whether it holds checkpoints of a training alone, which a later run continues."""
    return all(path.name.endswith(PARTIAL) for path in entry.paths)


def _read(path: Path) -> Note | None:
    """Return a note; None: there is none, or a damaged one, which the next run writes again."""
    if not path.is_file():
        return None
    try:
        return read_json(path, Note, "it is written again")
    except ConfigError:
        return None


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if file.is_file())


def _written(path: Path) -> float:
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    return max(file.lstat().st_mtime for file in files)
