"""A target and its runtime from the user's own folder, through the real commands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import yaml
from support.documentation import write_parts

FOLDER = Path(__file__).parent.parent / "support" / "board"
"""A user's folder: `hardware/board.yaml`, `my_targets/board.py` and `runtimes/ort.py`."""
QUICK = ["measure.latency_runs=5", "measure.throughput_seconds=0.05", "measure.request_rates=[]"]
Command = Callable[..., CompletedProcess[str]]


@pytest.fixture
def run(small: list[str], kdcli: Command, tmp_path: Path) -> Path:
    """A run that was meant for the board."""
    own = ["--config-dir", str(FOLDER), "hardware=board", "measure=null", "control=false"]
    done = kdcli("distill", *small, *own, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    return tmp_path / "run"


def test_files_for_a_device_of_the_users_own(run: Path, kdcli: Command, tmp_path: Path) -> None:
    """A target whose file nothing runs, or that only the command which made it knows."""
    options = ["--config-dir", str(FOLDER), f"run={run}"]
    done = kdcli("export", *options, *QUICK)
    assert done.returncode == 0, done.stderr
    folder = run / "export" / "board"
    result = json.loads((folder / "export.json").read_text())
    entry = result["artifacts"]["model.ort"]
    assert result["recommended"] == "model.ort"
    assert result["note"] == "run by ONNX Runtime on this computer, not on a board"
    assert result["environment"]["onnxruntime"]
    assert entry["parity"]["agreement"] == 1
    assert entry["parity"]["max_abs_difference"] < 1e-3
    assert entry["peak_memory_bytes"] < result["torch"]["peak_memory_bytes"], "its process holds no torch"
    assert "not on a board" in done.stdout

    done = kdcli("eval", *options, "artifact=model.ort", "measure=null", "format=json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["models"]["model.ort"]["score"] == entry["score"]

    done = kdcli("eval", f"run={run}", "artifact=model.ort", "measure=null")
    assert done.returncode == 2, "without the folder nothing runs the file"
    assert "model.ort" in done.stderr
    assert "*.onnx" in done.stderr


def test_the_target_of_the_documentation(run: Path, kdcli: Command, tmp_path: Path) -> None:
    """The example that users copy does not run, or is run by another runtime than theirs."""
    folder = tmp_path / "own"
    assert {"my_targets/ort.py", "hardware/board.yaml", "runtimes/ort.py"} <= write_parts(folder)
    done = kdcli("export", f"run={run}", "--config-dir", str(folder), "hardware=board", *QUICK)
    assert done.returncode == 0, done.stderr
    result = json.loads((run / "export" / "board" / "export.json").read_text())
    assert result["artifacts"]["model.ort"]["parity"]["agreement"] == 1
    assert result["note"] == "run by ONNX Runtime on this computer, not on the board"


def test_a_recorded_class_is_not_imported_untrusted(run: Path, kdcli: Command, tmp_path: Path) -> None:
    """A run from elsewhere that names a class in its record: export would run code that nobody on this command line named."""
    own = Path(shutil.copytree(run, tmp_path / "copy"))
    record = own / ".hydra" / "hydra.yaml"
    tree = yaml.safe_load(record.read_text())
    tree["hydra"]["runtime"]["choices"]["hardware"] = "cpu"
    tree["hydra"]["overrides"]["task"].append("hardware._target_=evil.Target")
    record.write_text(yaml.safe_dump(tree))
    (tmp_path / "evil.py").write_text("from pathlib import Path\nPath('imported').touch()\n")
    done = kdcli("export", "--config-dir", str(FOLDER), f"run={own}", *QUICK)
    assert done.returncode == 2
    assert "--trust-run" in done.stderr
    assert not (tmp_path / "imported").exists()


@pytest.mark.long
def test_a_task_that_the_device_does_not_serve(kdcli: Command, tmp_path: Path) -> None:
    """Found out after the export, or refused without the devices that do."""
    folder = shutil.copytree(FOLDER, tmp_path / "conf")
    target = folder / "my_targets" / "board.py"
    code = target.read_text()
    for serves, said in (
        ('("AutoModelForCausalLM",)', ["AutoModelForCausalLM", "hardware=cpu"]),
        ("()", ["Board has no `serves`"]),
    ):
        target.write_text(code.replace("serves = CLASSIFIERS", f"serves = {serves}"))
        done = kdcli(
            "distill", "--config-dir", str(folder), "hardware=board", "dataset.limit=200", "smoke=true"
        )
        assert done.returncode == 2
        assert all(each in done.stderr for each in said), done.stderr
