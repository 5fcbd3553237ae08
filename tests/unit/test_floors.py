"""The architecture: who may import whom."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import kdcli

ROOT = Path(kdcli.__file__).parent
FLOORS = [
    {"errors", "locks", "processes", "signal", "scripts"},
    {"files", "configfiles"},
    {"config", "console", "snippets", "checkpoint"},
    {
        "catalogues",
        "rundir",
        "losses",
        "inside",
        "gguf",
        "rollouts",
        "quantization",
        "endpoint",
        "filters",
        "templates",
    },
    {"tasks", "runtimes"},
    {"models", "data"},
    {"students", "teachers", "hardware", "augment"},
    {"distiller", "measure", "evaluate", "generate", "report", "environment"},
    {"trainer", "preflight"},
    {"commands"},
    {"launch"},
    {"cli"},
    {"__main__"},
]
"""A file imports only from floors below its own; the files of a folder (losses, tasks …) may import their neighbours."""


def part(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
            if node.module == "kdcli":
                names = [f"kdcli.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("kdcli.")}
    return found - {"__version__"}


def floor(name: str) -> int:
    return next(number for number, names in enumerate(FLOORS) if name in names)


def test_a_file_imports_only_from_floors_below_its_own() -> None:
    """An import upwards makes a circle, and a part that cannot be used or tested alone."""
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        if path == ROOT / "__init__.py":
            continue
        own = part(path)
        for other in imports(path) - {own}:
            if floor(other) >= floor(own):
                wrong.append(f"{path.relative_to(ROOT)} imports {other}")
    assert not wrong


def loaded(code: str) -> set[str]:
    out = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(out.stdout.split())


def test_help_imports_nothing_heavy() -> None:
    """`kdcli --help` that loads torch makes every look at the help take seconds."""
    code = "import sys; sys.argv = ['kdcli', '--help']\nfrom kdcli.cli import app\ntry: app()\nexcept SystemExit: pass"
    assert not loaded(code) & {"torch", "transformers", "datasets", "hydra", "pydantic", "numpy"}


def test_config_never_imports_torch() -> None:
    """A typo must be answered before the seconds that torch takes to load."""
    assert "torch" not in loaded(
        "import kdcli.config, kdcli.launch, kdcli.console, kdcli.rundir, kdcli.files"
    )


def test_measure_can_be_imported_without_torch() -> None:
    """The artifact's process would count torch's memory as the artifact's."""
    assert "torch" not in loaded("import kdcli.measure")


def test_each_snippet_is_of_a_runtime_and_a_task() -> None:
    """A file that is named otherwise is laid beside no artifact."""
    from kdcli.commands.export import ELSEWHERE

    runtimes = {path.stem for path in (ROOT / "runtimes").glob("*.py")} - {"__init__", "base"}
    runtimes |= {*ELSEWHERE.values()}
    tasks = {path.stem for path in (ROOT / "tasks").glob("*.py")} | {"encoder"}
    files = [path for path in (ROOT / "snippets").glob("[!_]*") if path.is_file()]
    imported = {name for path in files for name in re.findall(r"^from (\w+) import", path.read_text(), re.M)}
    for path in files:
        runtime, _, task = path.stem.partition("_")
        assert task in tasks, path.name
        assert runtime in runtimes or runtime in imported, path.name


def test_what_runs_an_artifact_has_ten_lines() -> None:
    """An application's author reads them before anything else."""
    from kdcli.commands.export import ELSEWHERE

    runtimes = {path.stem for path in (ROOT / "runtimes").glob("*.py")} | {*ELSEWHERE.values()}
    for path in (ROOT / "snippets").glob("*_*.*"):
        if path.suffix in (".py", ".mjs") and path.stem.partition("_")[0] in runtimes:
            code = [line.strip() for line in path.read_text().splitlines() if line.strip()]
            lines = [line for line in code if not line.startswith(("import ", "from ", '"""', "#", "//"))]
            assert len(lines) <= 10, path.name
