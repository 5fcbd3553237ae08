"""Provides atomic writes, hashes, checked JSON, safe paths and the user's cache folder."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from filelock import Timeout

from kdcli.errors import ConfigError, StorageError, shown
from kdcli.locks import Lock

if TYPE_CHECKING:
    from pydantic import TypeAdapter

logger = logging.getLogger(__name__)
T = TypeVar("T")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
"""The pattern of a name that may be a part of a path."""
RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
"""Names that Windows reserves for devices, with any extension."""
LARGEST_JSON = 2**28
"""The most bytes of a JSON file, or of a line of a JSON Lines file, that is read."""
PARTIAL = ".partial"
"""The suffix of the folder with a model's checkpoints while it is trained in the cache."""
RETENTION_DAYS = 30
"""Days for which unfinished checkpoints in the cache are kept."""


def cache_dir(kind: str) -> Path:
    """Return the folder KDCLI_CACHE_DIR/kind (by default in the user's cache folder), which is created if it is missing.

    Raises:
        ConfigError: it cannot be created.
    """
    folder = cache_folder() / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) and (refused := storage_error(error)):
            raise refused from None
        raise ConfigError(
            f"the cache folder {folder} cannot be made ({error}); set KDCLI_CACHE_DIR"
        ) from None
    return folder


def require_name(name: str, what: str) -> str:
    """Check a name from which a path is built, and return it. The rule is the same on every system, so that runs can be copied.

    Args:
        what: the key or file that the name comes from, for the message.

    Raises:
        ConfigError: the name leaves its folder, is too long, or is not valid on some system.
    """
    if not NAME.fullmatch(name) or ".." in name or name.endswith(".") or RESERVED.fullmatch(name):
        raise ConfigError(
            f"{what}: {shown(name, 100)} cannot be a part of a path; expected 1 to 100 letters (a-z), digits, '_', '-' or '.', that begin with a letter, "
            "a digit or '_', without '..' or a '.' at the end, and no name that Windows reserves (CON, NUL …)"
        )
    return name


def named_path(folder: Path, *names: str, what: str) -> Path:
    """Build a path below a folder from names: paths are made from names in no other way.

    Args:
        what: the key or file that the names come from, for the message.

    Raises:
        ConfigError: `require_name` refuses one of them, or a link on the way leads out of the folder.
    """
    return require_inside(folder, folder.joinpath(*(require_name(name, what) for name in names)), what)


def inner_path(folder: Path, relative: str, what: str) -> Path:
    """Build the path of a file below a folder from a recorded relative path, such as `onnx/model.onnx`.

    Raises:
        ConfigError: the path is absolute, goes up, or leads out of the folder through a link.
    """
    parts = relative.split("/")
    if any(
        part in ("", ".", "..") or "\\" in part or ":" in part or not part.isprintable() for part in parts
    ):
        raise ConfigError(f"{what}: expected the path of a file below {folder}, got {shown(relative, 100)}")
    return require_inside(folder, folder.joinpath(*parts), what)


def require_inside(folder: Path, path: Path, what: str) -> Path:
    """Check that a path does not leave its folder through a link, and return it.

    Raises:
        ConfigError: one does.
    """
    real = Path(os.path.realpath(path))
    if not real.is_relative_to(os.path.realpath(folder)):
        raise ConfigError(
            f"{what}: {path} is a link that leads out of {folder}, to {real}; replace it by a folder"
        )
    return path


def user_path(given: str | Path) -> Path:
    """Return the path that a user gave, with a leading `~` expanded, except that of an unknown user."""
    return Path(os.path.expanduser(given))


def cache_folder() -> Path:
    """Return the folder of the cache."""
    given = os.environ.get("KDCLI_CACHE_DIR")
    if given:
        return user_path(given).absolute()
    return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").absolute() / "kdcli"


def with_weights(path: Path) -> list[Path]:
    """Return a model file and its file of external weights, if any: of a large ONNX file (.data) and of OpenVINO's .xml (.bin)."""
    external = [
        path.with_name(f"{path.name}.data"),
        *([path.with_suffix(".bin")] if path.suffix == ".xml" else []),
    ]
    return [file for file in [path, *external] if file.is_file()]


def size_of(path: Path) -> int:
    """Return the bytes of a model file and its external weights."""
    return sum(file.stat().st_size for file in with_weights(path))


def hash_file(path: Path) -> str:
    """Return the sha256 of a file's content, as hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


as_json = json.JSONEncoder(sort_keys=True, ensure_ascii=False, default=list).encode
"""Plain data as a text that is equal for equal data."""


def digest(*parts: Any) -> str:
    """Return the sha256 of plain data (JSON types, and columns of a data set), as hex."""
    return hashlib.sha256(as_json(parts).encode()).hexdigest()


def hash_files(files: Iterable[Path]) -> str:
    """Return the sha256 over the names and contents of files, in the order of their names."""
    total = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.name):
        total.update(f"{file.name} {hash_file(file)}\n".encode())
    return total.hexdigest()


REFUSED = {
    errno.ENOSPC: r"[Nn]o space left|disk is full|unexpected pos|PytorchStreamWriter failed writing",
    errno.EDQUOT: r"[Qq]uota exceeded",
    errno.EFBIG: r"File too large",
    errno.EROFS: r"[Rr]ead-only file system",
    errno.EACCES: r"[Pp]ermission denied",
    errno.EPERM: r"Operation not permitted",
}
"""The error numbers of a file system that accepts no more data, with the messages of libraries that lose the number."""
PROBE = 1 << 18
"""Bytes that are written to test whether a file system accepts more data."""


def storage_error(error: BaseException, *folders: Path) -> StorageError | None:
    """Return the StorageError for an exception that a full or read-only file system caused: the exception or one of its causes says so, or
    one of the folders accepts no more data now. None: the exception has another cause.

    Args:
        folders: the folders that were written to. The first one that accepts no more is named if the exception names no file.
    """
    cause: tuple[int, str | None] | None = None
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        if isinstance(each, StorageError):
            return each
        if (number := _refusal(each)) is not None:
            # of a copy the first name is that of the source
            file = getattr(each, "filename2", None) or getattr(each, "filename", None)
            cause = number, str(file) if file else cause[1] if cause else None
        each = each.__cause__ or each.__context__
    probed = {path: number for path in folders if (number := _refused(path)) is not None}
    path, number = next(iter(probed.items()), (None, 0))
    if cause is None and path is None:
        return None
    if cause is not None:
        number, file = cause
        path = Path(file) if file else path or (folders[0] if folders else Path(tempfile.gettempdir()))
    assert path is not None
    remedy = "Free some space"
    if number == errno.EDQUOT:
        remedy = "Free some of your quota"
    elif number == errno.EFBIG:
        remedy = "Free some space, or raise the limit on the size of files (ulimit -f),"
    elif number in (errno.EROFS, errno.EACCES, errno.EPERM):
        remedy = "Make it writable, or choose another folder (--out, KDCLI_CACHE_DIR, TMPDIR)"
    return StorageError(
        f"{path} cannot be written: {os.strerror(number)}{_free_space(path)}. {remedy} and start the same command on the same "
        "directory: what is finished is kept"
    )


def read_json(path: Path, kind: type[T], remedy: str) -> T:
    """Read a JSON file and check its type.

    Args:
        kind: the type of the content: a `TypedDict` with the keys that are read, or a plain type such as `dict[str, Any]`. Other keys
            are returned unchecked.
        remedy: what the user can do about a damaged file, for the message.

    Raises:
        ConfigError: it cannot be read, is larger than `LARGEST_JSON`, is not JSON, or is not of type `kind`.
    """
    try:
        if not path.is_file():
            raise OSError("there is no such file" if not path.exists() else "it is not a regular file")
        with path.open("rb") as stream:
            return parse_json(stream.read(LARGEST_JSON + 1), kind)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is damaged ({_first_line(error)}); {remedy}") from None


def read_jsonl(path: Path, kind: type[T], remedy: str | None = None) -> list[T]:
    """Read a JSON Lines file and check its lines; an empty list if there is no file.

    An incomplete last line, left by a process that was killed while it wrote, is dropped.

    Args:
        kind: the type of a line, as for `read_json`.
        remedy: what the user can do about other damaged lines; None: they are dropped, with a warning.

    Raises:
        ConfigError: it cannot be read, or a line is damaged and there is a remedy.
    """
    lines: list[T] = []
    damaged: list[str] = []
    try:
        if not path.exists():
            return lines
        if not path.is_file():
            raise OSError("it is not a regular file")
        with path.open("rb") as stream:
            for number, line in enumerate(iter(lambda: stream.readline(LARGEST_JSON + 1), b""), start=1):
                try:
                    lines.append(parse_json(line, kind))
                except ValueError as error:
                    if line.endswith(b"\n"):
                        damaged.append(f"line {number}: {_first_line(error)}")
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror or error}); check its permissions"
        ) from None
    if damaged and remedy is not None:
        raise ConfigError(f"{path} is damaged ({damaged[0]}); {remedy}")
    if damaged:
        logger.warning("%s: %d damaged lines are dropped (the first is %s)", path, len(damaged), damaged[0])
    return lines


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    import pydantic

    return pydantic.TypeAdapter(kind)


def parse_json(data: bytes, kind: type[T]) -> T:
    """Parse JSON text and check its type, as `read_json` does.

    Raises:
        ValueError: it is not JSON of type `kind`.
    """
    import pydantic

    if len(data) > LARGEST_JSON:
        raise ValueError(f"it has more than {LARGEST_JSON >> 20} MB")
    if not data:
        raise ValueError("it is empty")
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    try:
        _adapter(kind).validate_python(value, strict=True)  # type: ignore[arg-type]
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise ValueError(f"{key}: {first['msg']}" if key else first["msg"]) from None
    return value


def _first_line(error: Exception) -> str:
    lines = str(getattr(error, "strerror", None) or error).splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _refusal(error: BaseException) -> int | None:
    """Return the error number in `REFUSED` that an exception stands for; None: it is another error."""
    if (number := getattr(error, "errno", None)) in REFUSED:
        return int(number)
    text = str(error)
    for number, words in REFUSED.items():
        if f"(os error {number})" in text or f"[Errno {number}]" in text or re.search(words, text):
            return number
    return None


def _refused(path: Path) -> int | None:
    """Return the error number if the file system of a path accepts no more data; None: it does."""
    try:
        with tempfile.TemporaryFile(dir=_nearest(path)) as stream:
            stream.write(bytes(PROBE))
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        return error.errno if error.errno in REFUSED else None
    return None


def _nearest(path: Path) -> Path:
    """Return the nearest existing folder that contains a path."""
    return next(each for each in (path, *path.absolute().parents) if each.is_dir())


def _free_space(path: Path) -> str:
    """Return a note on the free space of the file system of a path, for a message."""
    try:
        usage = shutil.disk_usage(_nearest(path))
    except OSError:
        return ""
    return f" ({usage.free / 1e6:,.1f} MB of {usage.total / 1e6:,.0f} MB are free)"


@contextlib.contextmanager
def writing(*folders: Path) -> Iterator[None]:
    """Turn an exception that a full or read-only file system causes into a `StorageError`, before temporary files are removed.

    Raises:
        StorageError
    """
    try:
        yield
    except Exception as error:
        if refused := storage_error(error, *folders, Path(tempfile.gettempdir())):
            raise refused from error
        raise


def write_text(path: Path, text: str, sync: bool = True) -> None:
    """Write a file atomically: to a temporary file in the same folder, which is then renamed.

    Args:
        sync: as of `replaced`.
    """
    with replaced(path, sync) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any, sync: bool = True) -> None:
    """Write plain data as indented JSON, atomically. NaN is refused, because it is not JSON."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n", sync)


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write plain data as JSON lines, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


TEMPORARY = ".kdcli"
"""The suffix of temporary folders, whose name begins with a dot and the name of the file that they hold."""


def flush(path: Path, deep: bool = True) -> None:
    """Write a file or a folder through to the disk (fsync).

    Args:
        deep: include all files in a folder, and not only its list of names.
    """
    for each in sorted(path.iterdir()) if deep and path.is_dir() else ():
        if not each.is_symlink():
            flush(each)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot sync folders
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replaced(path: Path, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; the file or directory that is written there replaces `path` when the block succeeds.

    After an error the temporary path is removed and `path` is unchanged. If the process is killed, `remove_abandoned` removes the
    temporary path.

    Args:
        sync: write the content through to the disk before the replacement, so that a power failure leaves no partial file. Cache files
            that hold a checksum do not need this: a damaged one is made again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with abandonable(path.name, _temporary_parent(path)) as holder:
        temporary, old = holder / path.name, holder / "old"
        try:
            yield temporary
            if sync:
                flush(temporary)
            if path.is_dir():
                path.rename(old)
            temporary.rename(path)
            if sync:
                flush(path.parent, deep=False)
        finally:
            if old.is_dir() and not path.exists():  # interrupted between the two renames
                old.rename(path)


def _temporary_parent(path: Path) -> Path:
    """Return the folder for the temporary path of a file: its own folder, or for a file deep in the cache the folder of its kind, where
    `clean_cache` finds abandoned ones without reading all folders."""
    base = cache_folder()
    inner = path.relative_to(base).parts if path.is_relative_to(base) else ()
    return path.parent if len(inner) < 3 or path.is_dir() else base / inner[0]


@contextlib.contextmanager
def abandonable(name: str, parent: Path) -> Iterator[Path]:
    """Yield a temporary folder with a lock that this process holds. It is removed at the end or, if this process is killed, by
    `remove_abandoned`."""
    while True:
        holder = Path(tempfile.mkdtemp(prefix=f".{name[:100]}.", suffix=TEMPORARY, dir=parent))
        lock = Lock(holder / ".lock")
        try:
            lock.acquire()
            break
        except FileNotFoundError:  # another process removed it as abandoned before it was locked
            continue
    try:
        yield holder
    finally:
        shutil.rmtree(holder, ignore_errors=True)
        lock.release()


def remove_abandoned(folder: Path, deep: bool = False) -> None:
    """Remove the temporary folders of killed processes in a folder. Those of running processes are kept.

    Args:
        deep: include all folders below it.
    """
    for parent, names, _ in os.walk(folder):
        for name in [each for each in names if each.startswith(".") and each.endswith(TEMPORARY)]:
            names.remove(name)
            _remove_abandoned(Path(parent, name))
        if not deep:
            break


def _remove_abandoned(holder: Path) -> None:
    lock = Lock(holder / ".lock")
    try:
        lock.acquire(wait=False)
    except (Timeout, OSError):  # its owner is running, has just removed it, or is another user
        return
    path = holder.parent / holder.name[1:].removesuffix(TEMPORARY).rpartition(".")[0]
    if (holder / "old").is_dir() and not path.exists():  # killed between the two renames of `replaced`
        (holder / "old").rename(path)
    shutil.rmtree(holder, ignore_errors=True)
    lock.release()


@contextlib.contextmanager
def workplace() -> Iterator[None]:
    """Collect all temporary files of this process, its libraries and its child processes in one folder until the block ends. The folder is
    removed then or, if this process is killed, by the next one."""
    parent, given = Path(tempfile.gettempdir()), os.environ.get("TMPDIR")
    if parent.name.endswith(TEMPORARY):  # the parent process has a workplace
        yield
        return
    remove_abandoned(parent)
    with abandonable("process", parent) as folder:
        tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
        try:
            yield
        finally:
            tempfile.tempdir = str(parent)
            os.environ.pop("TMPDIR")
            if given is not None:
                os.environ["TMPDIR"] = given


def clean_cache() -> None:
    """Remove what killed processes left in the cache: temporary folders, and checkpoints of models that were completed since or were not continued for `RETENTION_DAYS` days."""
    base = cache_folder()
    for kind in base.iterdir() if base.is_dir() else ():
        if kind.is_dir():
            remove_abandoned(kind)
        for partial in kind.glob(f"*{PARTIAL}"):
            lock = Lock(partial.with_suffix(".lock"))
            try:
                lock.acquire(wait=False)
            except (Timeout, OSError):  # it is being trained, or the cache can only be read
                continue
            try:
                old = partial.stat().st_mtime < time.time() - RETENTION_DAYS * 86400
                if old or partial.with_suffix("").is_dir():
                    shutil.rmtree(partial, ignore_errors=True)
            finally:
                lock.release()
