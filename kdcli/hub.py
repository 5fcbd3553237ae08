"""Finds models and data on the Hugging Face hub and in installed packages."""

from __future__ import annotations

import importlib.metadata
import os
import re
from pathlib import Path
from typing import Literal

from kdcli.errors import ConfigError, DataError, KDError, ModelError, abbreviated, shown
from kdcli.files import user_path

PACKAGE = "package:"
"""The prefix of a path in an installed package: `package:DISTRIBUTION/PATH`."""
HUB_FILES = {
    "model": [
        "*.safetensors",
        "*.safetensors.index.json",
        "*.json",
        "*.txt",
        "*.model",
        "*.spm",
        "*.codes",
        "*.jinja",
        "README.md",  # its front matter names the licence
    ],
    "dataset": [  # also compressed
        "*.parquet",
        "*.arrow",
        "*.csv",
        "*.tsv",
        "*.json",
        "*.jsonl",
        "*.ndjson",
        "*.txt",
        "*.md",
        "*.csv.*",
        "*.tsv.*",
        "*.json.*",
        "*.jsonl.*",
    ],
}
"""The patterns of the files that are fetched from a hub repository; pickles are not among them."""
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
"""The pattern of a repository's name: OWNER/NAME."""
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""The environment variables with the token of the hub; no other place is searched."""
PATIENCE = 10.0
"""Seconds to wait for the hub before the local cache is used."""


def locate_package(path: str) -> Path:
    """Find the file or folder that `package:DISTRIBUTION/PATH` names, without importing the package.

    Raises:
        ConfigError: the package is not installed, or has no such file.
    """
    name, _, inner = path.removeprefix(PACKAGE).partition("/")
    if not re.fullmatch(r"\w([\w.-]{0,98}\w)?", name, re.ASCII):
        raise ConfigError(f"{shown(path)}: expected {PACKAGE}DISTRIBUTION/PATH")
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        # only the files of other packages are needed: their dependencies may take long to build
        remedy = (
            f"pip install 'kdcli[{extra}]'"
            if (extra := _extra_with(name))
            else f"pip install --no-deps {name}"
        )
        raise ConfigError(
            f"the package {name} is needed and is not installed; install it with: {remedy}"
        ) from None
    located = Path(str(distribution.locate_file(inner)))
    if not os.path.exists(located):  # also for a name that the system refuses
        raise ConfigError(
            f"the package {name} {distribution.version} has no {abbreviated(inner)}; correct the path, or install another version"
        )
    return located


def data_path(given: str, what: str = "file", key: str = "the path") -> Path:
    """Return the path of a data file or folder that a config names.

    Args:
        what: file or folder, for the message.
        key: the key whose value it is, for the message.

    Raises:
        ConfigError: the package is not installed, or has no such file.
        DataError: the path does not exist.
    """
    path = locate_package(given) if given.startswith(PACKAGE) else user_path(given)
    if not os.path.lexists(path):
        raise DataError(
            f"the data {what} {abbreviated(given)} does not exist (looked for {abbreviated(str(path.absolute()))}); correct {key}"
        )
    return path


def origin_of(given: str, kind: Literal["model", "dataset"]) -> str:
    """Return where what a path names comes from, in words. Nothing is fetched."""
    if given.startswith(PACKAGE):
        return "an installed package"
    path = user_path(given)
    if os.path.lexists(path):
        return "a local folder" if path.is_dir() else "a local file"
    from huggingface_hub import constants

    stored = Path(constants.HF_HUB_CACHE, f"{kind}s--{given.replace('/', '--')}", "snapshots")
    return (
        f"the hub, {'already in the local cache' if stored.is_dir() else 'fetched when it is first needed'}"
    )


def _extra_with(package: str) -> str | None:
    """Return the extra of kdcli that installs a package."""
    try:
        requires = importlib.metadata.requires("kdcli") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for requirement in requires:
        if match := re.match(rf"{re.escape(package)}\b.*extra == ['\"](\w+)['\"]", requirement):
            return match[1]
    return None


def snapshot(
    repo: str,
    revision: str | None,
    kind: Literal["model", "dataset"],
    code: bool = False,
    weights: bool = True,
    remedy: str | None = None,
) -> tuple[Path, str]:
    """Fetch a hub repository's files, or find them in the local cache; returns their folder and the resolved commit.

    Args:
        repo: OWNER/NAME, or a bare NAME.
        revision: branch, tag or commit; None: the main branch.
        code: also fetch the repository's Python files.
        weights: also fetch the weights.
        remedy: what to give in place of the repository; None: a local copy by its key.

    Raises:
        ModelError, DataError: it does not exist, is gated, or the hub cannot be reached and the cache lacks it.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wrong = ModelError if kind == "model" else DataError
    key = {"model": "teacher.path= or student.path=", "dataset": "dataset=csv dataset.path="}[kind]
    remedy = remedy or f"give a local copy with {key}"
    at = f"{repo} (revision {revision})" if revision else repo
    patterns = HUB_FILES[kind] + (["*.py"] if code else [])
    patterns = [pattern for pattern in patterns if weights or "safetensors" not in pattern]
    problem = "HF_HUB_OFFLINE is set. Connect once to fetch it"
    try:
        if not constants.HF_HUB_OFFLINE:
            HfApi().repo_info(repo, revision=revision, repo_type=kind, timeout=PATIENCE)
            problem = ""
    except HFValidationError:
        pass
    except HfHubHTTPError as error:
        problem = (
            f"the Hugging Face hub says: {str(error).splitlines()[0].rstrip('.')}. Check the name and the revision, set "
            "HF_TOKEN if it is gated or private"
        )
    except Exception as error:  # the HTTP library may raise anything
        problem = f"the Hugging Face hub cannot be reached ({type(error).__name__}). Connect once to fetch it"
    try:
        folder = snapshot_download(
            repo, revision=revision, repo_type=kind, allow_patterns=patterns, local_files_only=bool(problem)
        )
    except HFValidationError:
        raise wrong(
            f"the {kind} {repo} is neither a local path that exists nor a Hugging Face hub id"
        ) from None
    except LocalEntryNotFoundError:
        raise wrong(
            f"the {kind} {at} was not found: it is no local path, the hub cache {constants.HF_HUB_CACHE} does not hold "
            f"it (or not all of it), and {problem}, or {remedy}"
        ) from None
    except Exception as error:
        raise wrong(
            f"the {kind} {at} could not be fetched from the Hugging Face hub ({error}); try again"
        ) from error
    return Path(folder), Path(folder).name


def require_pushable(repo: str) -> None:
    """Refuse to publish into a repository, before anything is trained.

    Raises:
        ConfigError: its name is none, HF_HUB_OFFLINE is set, or there is no token.
    """
    if not REPOSITORY.fullmatch(repo) or ".." in repo or "--" in repo:
        raise ConfigError(f"hub.push_to = {shown(repo)}: expected the name of a repository, OWNER/NAME")
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise ConfigError(f"hub.push_to = {repo}: HF_HUB_OFFLINE is set; unset it, or leave hub.push_to out")
    if _token() is None:
        raise ConfigError(
            f"hub.push_to = {repo}: a token of the Hugging Face hub that may write is needed; set {TOKENS[0]} in the environment, or leave hub.push_to out"
        )


def push(folder: Path, repo: str, private: bool, inside: str = "") -> str:
    """Publish the files of a folder in one commit; the repository is created if it is missing. Return its address.

    Args:
        inside: the folder of the repository that gets them; empty: its root.

    Raises:
        KDError: the hub refuses them, or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=_token() or False)
    try:
        address = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            path_in_repo=inside or None,
            commit_message=f"{inside or 'model'}: by kdcli",
            ignore_patterns=[".*"],
        )
    except Exception as error:  # the HTTP library may raise anything
        target = f" {inside}" if inside else ""
        raise KDError(
            f"{folder} is complete, and could not be published in {repo} ({abbreviated(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)}); "
            f"check {TOKENS[0]} and its rights, and repeat with: hf upload {repo} {folder}{target}"
        ) from None
    return str(address)


def _token() -> str | None:
    return next((value for name in TOKENS if (value := os.environ.get(name))), None)
