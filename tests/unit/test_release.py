"""Tests what the release workflow does to the README before it builds the distributions."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(([^)]+)\)")


def test_the_readme_of_a_release_has_absolute_links(tmp_path: Path) -> None:
    """A page at the package index whose picture is missing and whose links lead nowhere."""
    workflow = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())
    steps = [step["run"] for step in workflow["jobs"]["build"]["steps"] if "run" in step]
    [script] = [step for step in steps if "README.md" in step]
    assert steps.index(script) < steps.index("make dist")
    shutil.copy(ROOT / "README.md", tmp_path)
    variables = {
        "GITHUB_SERVER_URL": "https://example.org",
        "GITHUB_REPOSITORY": "owner/kdcli",
        "GITHUB_REF_NAME": "v1.2.3",
    }
    subprocess.run(["bash", "-ec", script], cwd=tmp_path, env=os.environ | variables, check=True)
    before, after = (
        LINK.findall((folder / "README.md").read_text(encoding="utf-8")) for folder in (ROOT, tmp_path)
    )
    assert len(after) == len(before) > 20
    for link, absolute in zip(before, after, strict=True):
        if "://" in link:
            assert absolute == link
            continue
        kind = "raw" if link.endswith(".png") else "blob"
        assert absolute == f"https://example.org/owner/kdcli/{kind}/v1.2.3/{link}"
        assert (ROOT / link.partition("#")[0]).is_file(), link
