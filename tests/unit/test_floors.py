"""The architecture: who may import whom."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Collection
from graphlib import TopologicalSorter
from pathlib import Path

import kdcli

ROOT = Path(kdcli.__file__).parent
LONGEST_MODULE, LONGEST_FUNCTION = 600, 80
FLOORS = {
    "knows files, messages and config keys, and imports no torch": (
        "errors numbers memory locks processes files hub console templates config rundir cache_notes environment model_files"
    ),
    "knows what a model predicts at which positions, and the loss of that": (
        "device signals features distributed prompts generation text_metrics losses tasks models"
    ),
    "knows where rows, teacher outputs and initial weights come from": "data students teachers",
    "knows how a model is trained, scored, timed, exported and shown": (
        "measure evaluation training exporting report inference"
    ),
    "knows the order of a run's phases": "pipeline",
    "knows the command line": "commands launch api cli __main__",
}
"""What each floor may know, and its parts: a part imports from those before it alone, on its own floor or below."""
PARTS = [part for floor in FLOORS.values() for part in floor.split()]


def modules() -> dict[str, Path]:
    """All modules of the package by name; scripts for users are none."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(["kdcli", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")
        if path.parent.name != "snippets" or path.name == "__init__.py":
            found[name] = path
    return found


def imports(path: Path, known: Collection[str]) -> set[str]:
    """The modules of the package that a module imports anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in known else str(node.module) for name in inner}
    return {name for name in names if name in known} - {"kdcli"}


def test_one_module_asks_whether_there_is_a_gpu() -> None:
    """What runs on another device is to be found and changed in twenty places."""
    asking = {name for name, path in modules().items() if "cuda.is_available" in path.read_text("utf-8")}
    assert asking == {"kdcli.device"}


def test_a_module_imports_only_from_parts_before_its_own() -> None:
    """An import upwards makes a circle, and a part that cannot be used or tested alone."""
    known = modules()
    wrong = []
    for name, path in known.items():
        if name == "kdcli":
            continue
        own = PARTS.index(name.split(".")[1])
        for other in imports(path, known):
            if PARTS.index(other.split(".")[1]) > own:
                wrong.append(f"{name} imports {other}")
    assert not wrong


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Inside a part as well: of two modules in a circle neither can be read without the other."""
    known = modules()
    sorter = TopologicalSorter({name: imports(path, known) for name, path in known.items()})
    sorter.prepare()  # raises CycleError with the circle


def test_modules_and_functions_stay_short() -> None:
    """A module of a thousand lines, or a function of a hundred, is where the next fault hides."""
    long = []
    for name, path in modules().items():
        text = path.read_text(encoding="utf-8")
        if (lines := len(text.splitlines())) > LONGEST_MODULE:
            long.append(f"{name} has {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > LONGEST_FUNCTION:
                    long.append(f"{name}.{node.name} has {lines} lines")
    assert not long


def test_only_the_tasks_know_tasks() -> None:
    """A new task is forgotten at one of thirty places that look at its class or at its name."""
    names = {path.parent.name for path in (ROOT / "tasks").glob("*/task.py")}
    wrong = []
    for name, path in modules().items():
        if name.split(".")[1:2] == ["tasks"]:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and node.value in names:
                wrong.append(f"{name}, line {node.lineno}: {node.value}")
            asks = isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance"
            if asks and re.search(r"\btask$", ast.unparse(node.args[0])):
                wrong.append(f"{name}, line {node.lineno}: {ast.unparse(node)}")
    assert not wrong


PARSERS = {
    "kdcli.files": "the reader of what a run or the cache holds",
    "kdcli.model_files": "the reader of a model's directory: its errors name the model",
    "kdcli.data.sources": "the user's data",
    "kdcli.data.hub": "the user's data",
    "kdcli.models.weights": "the header of a safetensors file",
    "kdcli.teachers.shards": "the header of a safetensors file",
    "kdcli.models.spill": "the first line of a temporary file",
    "kdcli.exporting.runtimes.exported": "records inside a .pt2 archive",
    "kdcli.exporting.runtimes.ctranslate2": "files beside the weights, in the process that measures them: no pydantic there",
    "kdcli.exporting.runtimes.onnx": "files beside the weights, in the process that measures them: no pydantic there",
    "kdcli.measure.runtime": "files beside the weights, in the process that measures them: no pydantic there",
    "kdcli.exporting.writers.litert": "arguments of an own process",
    "kdcli.exporting.writers.llama_cpp": "arguments of an own process",
    "kdcli.measure.worker": "messages of an own process",
    "kdcli.measure.process": "messages of an own process",
    "kdcli.exporting.runtimes.node": "messages of an own process",
    "kdcli.distributed": "messages of the other ranks",
    "kdcli.exporting.runtimes.llama": "a server's answer",
    "kdcli.teachers.remote.stream": "a server's answer, in pieces",
    "kdcli.teachers.remote.wire": "a server's answer",
    "kdcli.training.vllm": "a server's answer",
    "kdcli.teachers.remote.openai": "a column of the rows, checked when they were read",
    "kdcli.tasks.causal_lm.chat": "a column of the rows, checked when they were read",
    "kdcli.tasks.causal_lm.conversations": "a column of the rows, checked when they were read",
    "kdcli.prompts": "the state of a tokenizer in memory",
    "kdcli.students.pruning.vocabulary": "the state of a tokenizer in memory",
}
"""The modules that parse JSON themselves, and what it is."""


def test_the_files_of_a_run_have_one_reader() -> None:
    """A damaged file is a traceback at the one place that reads it otherwise."""
    parsing = {
        name
        for name, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.loads", "json.load")
    }
    assert parsing == set(PARSERS)


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
        "import kdcli.config.check, kdcli.launch.run, kdcli.console, kdcli.rundir, kdcli.files"
    )


def test_measure_can_be_imported_without_torch() -> None:
    """The artifact's process would count torch's memory as the artifact's."""
    assert "torch" not in loaded("import kdcli.measure.worker")


def test_each_snippet_is_of_a_runtime_and_a_task() -> None:
    """A file that is named otherwise is laid beside no artifact."""
    runtimes = {path.stem for path in (ROOT / "exporting/runtimes").glob("*.py")} - {"__init__"}
    tasks = {path.parent.name for path in (ROOT / "tasks").glob("*/task.py")} | {"encoder"}
    files = [path for path in (ROOT / "exporting/snippets").glob("[!_]*") if path.is_file()]
    imported = {name for path in files for name in re.findall(r"^from (\w+) import", path.read_text(), re.M)}
    for path in files:
        runtime, _, task = path.stem.partition("_")
        assert task in tasks, path.name
        assert runtime in runtimes or runtime in imported, path.name


def test_what_runs_an_artifact_has_ten_lines() -> None:
    """An application's author reads them before anything else, and starts them without an argument to see what they take."""
    runtimes = {path.stem for path in (ROOT / "exporting/runtimes").glob("*.py")}
    for path in (ROOT / "exporting/snippets").glob("*_*.*"):
        if path.suffix in (".py", ".mjs") and path.stem.partition("_")[0] in runtimes:
            code = [line.strip() for line in path.read_text().splitlines() if line.strip()]
            lines = [line for line in code if not line.startswith(("import ", "from ", '"""', "#", "//"))]
            assert len(lines) <= 10, path.name
            assert any("usage: " in line and "argv" in line for line in lines), path.name
