"""Finds the files of a data set, and imports no reader: one file, shards, a folder with splits, a data set saved to disk, parallel text files."""

from __future__ import annotations

import glob
import itertools
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from kdcli.config.dataset import Dataset as DatasetConfig
from kdcli.errors import DataError, abbreviated, listed
from kdcli.files import LARGEST_JSON, user_path
from kdcli.hub import PACKAGE, data_path

logger = logging.getLogger(__name__)
COMPRESSIONS = {
    "gz": (".gz", ".gzip"),
    "bz2": (".bz2",),
    "xz": (".xz",),
    "zst": (".zst", ".zstd"),
    "zip": (".zip",),
}
"""The suffixes of compressed files."""
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
TABLE_SUFFIXES = (".parquet", ".arrow", ".feather")
CSV_SUFFIXES = (".csv", ".tsv", ".tab", ".psv", ".txt")
SUFFIXES_OF_DATA = (*JSON_SUFFIXES, *TABLE_SUFFIXES, *CSV_SUFFIXES)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val", "testa"),
    "test": ("test", "testing", "eval", "evaluation", "testb"),
}
"""The names by which files and folders belong to a split: those of datasets, and those of CoNLL-2003 (eng.testa, eng.testb)."""
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")
"""The name of a shard, which begins with that of its split."""
_DESCRIPTIONS = (
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
    "package.json",
    "metadata.json",
)
_ABOUT = re.compile(r"(readme|licen[cs]e|copying|notice|citation|changelog)\b", re.IGNORECASE)
"""The names of texts that describe a folder."""
NO_CLASS = frozenset({"unsup", "unlabeled", "unlabelled"})
"""The names of folders of texts without a class, beside those of the classes."""
MOST_OF_FILES = 0.9
"""The least share of the files of a data set that are in folders of classes."""
MOST_FILES = 250_000
"""The maximum number of files and folders below the folder of a data set: a folder with more is a whole disk, not a data set."""
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
_SAVED = "state.json"
_SAVED_SPLITS = "dataset_dict.json"


def data_suffix(name: str) -> str:
    """Return the suffix of a file's name, in small letters, without that of a compression."""
    name = name.lower()
    for suffix in itertools.chain(*COMPRESSIONS.values()):
        name = name.removesuffix(suffix)
    return os.path.splitext(name)[1]


def is_hub(cfg: DatasetConfig) -> bool:
    """Return whether a data set is fetched from the hub: by its format if its path is no local folder, or because its path is no local one and has
    the form of an id."""
    path = cfg.path
    if cfg.format == "hub":
        return not os.path.isdir(user_path(path))
    if cfg.format != "auto":
        return False
    return bool(
        HUB_ID.fullmatch(path)
        and not data_suffix(path)
        and not os.path.lexists(user_path(path))
        and not _parallel(cfg, user_path(path))
    )


def require_source(cfg: DatasetConfig, given: str) -> None:
    """Refuse a path that means no local file or folder, if it is to be one.

    Raises:
        ConfigError, DataError
    """
    if is_hub(cfg):
        return
    if given != cfg.path and not os.path.lexists(user_path(given)) and os.path.isdir(user_path(cfg.path)):
        return  # perhaps a split of that folder
    if is_parallel(cfg, given):
        parallel_files(cfg, given, given != cfg.unlabelled)
    elif glob.has_magic(given) and not given.startswith(PACKAGE):
        local_splits(cfg, given)
    else:
        data_path(given, "folder" if cfg.format == "gettext" else "file", key_of(cfg, given))


def key_of(cfg: DatasetConfig, given: str) -> str:
    """Return the key whose value a path is."""
    keys = ("path", "validation", "test", "unlabelled")
    return next((f"dataset.{key}" for key in keys if getattr(cfg, key) == given), "dataset.path")


def is_local_repository(cfg: DatasetConfig, path: Path) -> bool:
    """Return whether a folder is a repository of the hub: by the data set's format, or because its card names the files of its parts, or their
    columns. Its files are those of any folder if a key says how they are read, which the library that reads repositories does not know."""
    if cfg.forces_format or _is_saved(path):
        return False
    if cfg.format == "hub":
        return os.path.isdir(path)
    if any(
        key is not None
        for key in (cfg.encoding, cfg.delimiter, cfg.quote, cfg.escape, cfg.columns, cfg.field)
    ):
        return False
    card = path / "README.md"
    if not card.is_file():
        return False
    with card.open(encoding="utf-8", errors="replace") as stream:
        front = re.match(r"\s*---[ \t]*\n(.*?)\n---", stream.read(2**20), re.DOTALL)
    return bool(front and re.search(r"^(configs|dataset_info):", front[1], re.MULTILINE))


def _is_saved(path: Path) -> bool:
    """Return whether a folder was written by `save_to_disk` of datasets."""
    return any((path / name).is_file() for name in (_SAVED, _SAVED_SPLITS))


def columns_of_folders(given: str, file: Path) -> dict[str, str | None]:
    """Return the columns that the folders between a path and a file name, as Hive and Spark write them: `label=good/part-0.parquet` has the
    value `good` in the column `label`. None is a missing value."""
    path = user_path(given)
    if glob.has_magic(given) and not os.path.lexists(path):
        path = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
    if not file.is_relative_to(path):
        return {}
    named = (part.partition("=") for part in file.relative_to(path).parts[:-1] if "=" in part)
    return {name: None if value == _NO_VALUE else unquote(value) for name, _, value in named}


def split_name(name: str) -> str | None:
    """Return the split that a name means: train, validation or test; None: it means none."""
    words = re.split(r"[-._ /\\]+|(?<=\D)(?=\d)", name.lower())
    return next((split for split, names in SPLIT_NAMES.items() if set(names) & set(words)), None)


def normalized_split(value: Any) -> str:
    """Return a value of a column of splits in the form in which it is compared with the names of splits."""
    return "" if value is None else str(value).strip().lower()


def names_splits(values: Iterable[str]) -> bool:
    """Return whether values of a column name the training split and another one."""
    named = {split for split, names in SPLIT_NAMES.items() if not {*names}.isdisjoint(values)}
    return "train" in named and len(named) > 1


def local_splits(cfg: DatasetConfig, given: str) -> dict[str, list[Path]]:
    """Return the files that a path means, by their splits; a file alone is of the training split.

    Raises:
        DataError: the path does not exist, or there are no files in it.
    """
    path = user_path(given)
    if not given.startswith(PACKAGE) and glob.has_magic(given) and not os.path.lexists(path):
        files = sorted(Path(each) for each in glob.glob(str(path), recursive=True) if os.path.isfile(each))
        if not files:
            raise DataError(
                f"no file matches {abbreviated(given)} (looked for {abbreviated(str(path.absolute()))}); correct {key_of(cfg, given)}"
            )
        return {"train": files}
    path = data_path(given, key=key_of(cfg, given))
    if not os.path.isdir(path):
        return {"train": [path]}
    if (path / _SAVED_SPLITS).is_file():
        names = _names(path / _SAVED_SPLITS, lambda tree: tree["splits"])
        return {split_name(name) or name: _saved(path / name) for name in names}
    if (path / _SAVED).is_file():
        return {"train": _saved(path)}
    if folder := cfg.spec.formats.get(cfg.format):
        files = sorted(
            file
            for file in path.iterdir()
            if (file.suffix.lower() in folder.suffixes or split_name(file.suffix))
            and not _ABOUT.match(file.name)
        )
        _require_no_standoff(path, files)
        if not files:
            raise DataError(
                f"the data folder {path} has no files *{', *'.join(folder.suffixes)}; correct dataset.path, or give another dataset.format"
            )
        return _by_split(path, files)
    splits = _of_folder(path)
    own = {*class_files(cfg, path, [file for files in splits.values() for file in files])}
    return (
        {split: [file for file in files if file in own] for split, files in splits.items()} if own else splits
    )


def class_files(cfg: DatasetConfig, path: Path, files: Sequence[Path]) -> list[Path]:
    """Return the files that hold a text each, in folders that are called like their classes; empty: the folder of a data set has another layout.

    Texts beside such folders are about the data set: aclImdb has a list of addresses there.
    """
    other = cfg.text_pair or cfg.prompt or cfg.messages or cfg.source or cfg.words
    if cfg.format != "auto" or not cfg.label or other or not path.is_dir():
        return []
    texts = [
        file for file in files if file.parent != path and not split_name(file.parent.name) and _is_text(file)
    ]
    folders = {file.parent for file in texts}
    classes = {folder.name for folder in folders if folder.name.lower() not in NO_CLASS}
    is_layout = len(classes) > 1 and len(texts) >= max(2 * len(folders), MOST_OF_FILES * len(files))
    return texts if is_layout and not all(map(_has_columns, texts[:3])) else []


def _has_columns(file: Path) -> bool:
    """Return whether the first lines of a file have equally many fields, between tabs, or of one word each: it is a table, or words with tags."""
    with file.open("rb") as stream:
        lines = [line for line in stream.read(4096).splitlines()[:20] if line.strip()]
    tabs, words = {line.count(b"\t") for line in lines}, {len(line.split()) for line in lines}
    return len(lines) > 2 and any(
        len(each) == 1 and 0 < max(each) - least < 10 for each, least in ((tabs, 0), (words, 1))
    )


def _is_text(file: Path) -> bool:
    """Return whether a file holds a text, by its name. (Files without a suffix in folders such as `label=good` are Spark's parts of a table.)"""
    suffix = data_suffix(file.name)
    return suffix == ".txt" or (not suffix and "=" not in file.parent.name)


def _of_folder(path: Path) -> dict[str, list[Path]]:
    """Return the files with data below a folder, by their splits."""
    everything = _files_below(path)
    _require_no_standoff(path, everything)
    files = [
        file
        for file in everything
        if data_suffix(file.name) in SUFFIXES_OF_DATA and file.name not in _DESCRIPTIONS
    ]
    files = [file for file in files if not _ABOUT.match(file.name)] or files
    if any(data_suffix(file.name) != ".txt" for file in files):  # a text beside tables is a licence
        files = [file for file in files if data_suffix(file.name) != ".txt"]
    files = files or [
        file for file in everything if not file.suffix and not _ABOUT.match(file.name)
    ]  # part-00000
    if not files:
        raise DataError(
            f"the data folder {path} has no files of data (*{', *'.join(SUFFIXES_OF_DATA)}, also compressed); it holds "
            f"{listed(file.name for file in everything) or 'no files'}"
        )
    kinds = sorted({data_suffix(file.name) for file in files})
    if len(kinds) > 1 and set(kinds) - {*JSON_SUFFIXES} and set(kinds) - {".csv", ".tsv", ".tab"}:
        splits = _by_split(path, files)
        remedy = f"choose some: dataset.path='{path}/*{kinds[0]}'"
        if "train" in splits and len(splits) == len(files):  # a file for each split
            keys = {split: "path" if split == "train" else split for split in SPLIT_NAMES if split in splits}
            remedy = "name them: " + " ".join(
                f"dataset.{key}={splits[split][0]}" for split, key in keys.items()
            )
        raise DataError(
            f"the data folder {path} has files of several formats (*{', *'.join(kinds)}); {remedy}"
        )
    return _by_split(path, files)


def data_files(path: Path) -> list[Path]:
    """Return the files in a folder that are not about its data, as a README is."""
    return sorted(
        file
        for file in path.iterdir()
        if not file.name.startswith((".", "_")) and not _ABOUT.match(file.name)
    )


def _files_below(path: Path) -> list[Path]:
    """Return the files below a folder, in order, without those whose name, or that of a folder around them, begins with a dot or an underscore.

    Raises:
        DataError: there are more than `MOST_FILES`.
    """
    files: list[Path] = []
    count = 0
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        count += len(folders) + len(names)
        if count > MOST_FILES:
            raise DataError(
                f"the data folder {path} has more than {MOST_FILES:,} files and folders below it; name those of the data set, as in "
                f"dataset.path='{path}/*.jsonl'"
            )
        files += [Path(folder, name) for name in names if not name.startswith((".", "_"))]
    return sorted(file for file in files if file.is_file())


def _require_no_standoff(path: Path, files: Iterable[Path]) -> None:
    """Refuse a folder of brat: texts, whose spans and types are in files *.ann of the same name."""
    names = {file.name for file in files}
    if any(name.endswith(".ann") for name in names) or any(
        (path / f"{name.removesuffix('.txt')}.ann").is_file() for name in names if name.endswith(".txt")
    ):
        raise DataError(
            f"the data folder {path} holds annotations of brat (*.ann beside *.txt); write them as CoNLL (brat's tools/anntoconll.py), and give that "
            "file with dataset=conll dataset.path="
        )


def _by_split(path: Path, files: list[Path]) -> dict[str, list[Path]]:
    """Return files below a folder by the splits that their names, or those of the folders around them, mean; all of train if none is of train.

    If files are of train by their names, files of no split are not read (such as the sample_submission.csv of a competition); `datasets` does the same.
    """
    splits: dict[str, list[Path]] = {}
    unassigned: list[Path] = []
    for file in files:
        relative = file.relative_to(path)
        shard = _SHARD.match(relative.name)
        name = split_name(relative.name) or split_name(_plain_folders(relative)) or (shard and shard[1])
        (splits.setdefault(name, []) if name else unassigned).append(file)
    if "train" not in splits:
        return splits | {"train": unassigned} if unassigned else {"train": files}
    if unassigned:
        logger.warning(
            "%s: files whose names contain no split are not read beside %s: %s; to read one, name it with dataset.path= or dataset.test=",
            path, listed(file.name for file in splits["train"]), listed(file.name for file in unassigned),
        )  # fmt: skip
    return splits


def _plain_folders(file: Path) -> str:
    """Return the folders around a file without those that name the value of a column, apart from `split=test`."""
    folders = (re.sub("^split=", "", part, flags=re.IGNORECASE) for part in file.parts[:-1])
    return "/".join(part for part in folders if "=" not in part)


def _saved(path: Path) -> list[Path]:
    """Return the Arrow files of a data set that `save_to_disk` of datasets wrote."""
    names = _names(path / _SAVED, lambda tree: [file["filename"] for file in tree["_data_files"]])
    return [path / name for name in names]


def _names(path: Path, read: Callable[[Any], Iterable[Any]]) -> list[str]:
    """Return names of files or folders in a description, each of the folder that the description is in."""
    try:
        if os.path.getsize(path) > LARGEST_JSON:
            raise ValueError("it is too large")
        names = list(read(json.loads(path.read_bytes())))
        if not names or any(
            not isinstance(name, str) or name != os.path.basename(name) or name in ("", ".", "..")
            for name in names
        ):
            raise ValueError("it names no files of its folder")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path} is damaged ({type(error).__name__}: {error}); save the data set anew"
        ) from None
    return names


# ---- parallel text files


def parallel_files(cfg: DatasetConfig, given: str, targets: bool = True) -> tuple[Path, Path]:
    """Return the files of sources and of targets.

    Args:
        targets: there are files of targets; without them both paths are that of the sources.

    Raises:
        DataError: there are none.
    """
    path = user_path(given)
    if not targets:
        path = data_path(given if os.path.lexists(path) else f"{given}.{cfg.source}", key=key_of(cfg, given))
        return path, path
    pair = _parallel(cfg, path)
    if pair is None:
        raise DataError(
            f"no parallel text files {abbreviated(given)}.{cfg.source} and {abbreviated(given)}.{cfg.target} (looked for "
            f"{abbreviated(str(user_path(given).absolute()))}.{cfg.source}); dataset.source= and dataset.target= are the endings of their names"
        )
    return pair


def parallel_splits(cfg: DatasetConfig, given: str) -> dict[str, list[Path]]:
    """Return the files of sources and of targets of each split of a folder: train.en and train.de, dev.en and dev.de."""
    path = user_path(given)
    if not os.path.isdir(path):
        return {}
    pairs = {
        split: next(filter(None, (_parallel(cfg, path / name) for name in names)), None)
        for split, names in SPLIT_NAMES.items()
    }
    return {split: list(pair) for split, pair in pairs.items() if pair} if pairs["train"] else {}


def is_parallel(cfg: DatasetConfig, given: str) -> bool:
    """Return whether the data are two text files, line by line."""
    if cfg.format == "parallel":
        return True
    return cfg.format == "auto" and _parallel(cfg, user_path(given)) is not None


def _parallel(cfg: DatasetConfig, path: Path) -> tuple[Path, Path] | None:
    """Return the files whose names are those of the columns of sources and targets, or end so: train.en and train.de for `train` (or for
    one of the two), src-train.txt and tgt-train.txt, en.txt and de.txt for their folder, or the only pair of a folder."""
    source, target = cfg.source, cfg.target
    if not source or not target or glob.has_magic(str(path)):
        return None
    if os.path.isfile(path):  # a word of its name is the side
        words = list(re.finditer(rf"(?<![^\W_]){re.escape(source)}(?![^\W_])", path.name))
        if words:
            start, end = words[-1].span()
            other = path.with_name(path.name[:start] + target + path.name[end:])
            if os.path.isfile(other):
                return path, other
    base = str(path)
    for ending in (f".{source}", f".{target}"):
        if base.lower().endswith(ending.lower()):
            base = base[: -len(ending)]
            break
    pairs = [
        tuple(_existing(f"{base}{stem}{side}{text}") for side in (source, target))
        for stem in (".", "/", "/train.", "_", "-")
        for text in ("", ".txt")
    ]
    if os.path.isdir(path):
        own = _pairs_in(path, source, target)
        pairs += own if len(own) == 1 else []
    return next(((one, other) for one, other in pairs if one and other), None)


def _pairs_in(path: Path, source: str, target: str) -> list[tuple[Path | None, ...]]:
    """Return the pairs of a folder, whatever their names begin with, as those of OPUS: Tatoeba.de-en.en and Tatoeba.de-en.de."""
    bases = {re.sub(rf"\.{re.escape(source)}(\.(gz|zst|bz2|xz))?$", "", file.name) for file in path.iterdir()}
    pairs = [tuple(_existing(f"{path / base}.{side}") for side in (source, target)) for base in sorted(bases)]
    return [pair for pair in pairs if all(pair)]


def _existing(name: str) -> Path | None:
    return next(
        (
            Path(name + ending)
            for ending in ("", ".gz", ".zst", ".bz2", ".xz")
            if os.path.isfile(name + ending)
        ),
        None,
    )
