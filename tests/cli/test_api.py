"""kdcli as notebooks and schedulers call it."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import hydra
import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from support.commands import naming, require_words
from support.documentation import REPOSITORY
from support.hub_server import HubServer

import kdcli

HEAVY = {"torch", "transformers", "datasets", "hydra", "numpy", "pydantic"}


def keys(words: list[str]) -> dict[str, Any]:
    """Overrides as a program writes them."""
    return {key: yaml.safe_load(value) for key, value in (word.split("=", 1) for word in words)}


def state() -> tuple[Any, ...]:
    """What a program has besides the calls of kdcli."""
    return (
        list(sys.argv), list(sys.path), os.environ.get("HYDRA_FULL_ERROR"), os.environ.get("KDCLI_CONFIG_DIR"),
        [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        list(logging.getLogger().handlers), GlobalHydra.instance().hydra,
    )  # fmt: skip


def test_importing_kdcli_is_light() -> None:
    """`import kdcli` in a scheduler's process that waits for torch, or needs it."""
    code = "import kdcli, sys; assert callable(kdcli.__getattr__); print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not HEAVY & set(out.split())
    assert (Path(kdcli.__file__).parent / "py.typed").is_file()
    assert set(kdcli.__all__) <= set(dir(kdcli))


def test_a_second_command_in_a_new_process(tmp_path: Path) -> None:
    """The first command takes what Hydra stores once with it, and every later one in the process is refused."""
    code = """
import kdcli
for _ in range(2):
    try:
        kdcli.distill({"dataset": "csv", "dataset.path": "nowhere.csv"}, quiet=True)
    except kdcli.KDError as error:
        print(error)
"""
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    ).stdout
    first, second = out.splitlines()
    require_words(first, "nowhere.csv", "dataset.path")
    assert second == first


def test_a_run_from_python(
    small: list[str],
    hub: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A call that ends the program, prints where nobody reads, leaves its signal handlers or Hydra's state behind, works only once, or only
    in the main thread; a student that is not published, or without its card, or an hour of training that ends with a missing token."""
    config = keys([*small, "trainer.max_steps=4", "trivial_baseline=false"]) | {
        "measure": None,
        "smoke": True,
    }
    config |= {"hub": {"push_to": "me/student", "license": "mit"}}
    stages: list[tuple[str, str]] = []
    results: list[kdcli.Result] = []
    with hydra.initialize(version_base="1.3", config_path=None):  # a program with a config of its own
        before = state()

        def run() -> None:
            results.append(
                kdcli.distill(
                    config,
                    out=tmp_path / "run",
                    quiet=True,
                    on_progress=lambda stage: stages.append((stage.name, stage.state)),
                )
            )

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        result = results[0]
        assert state() == before
        assert hydra.compose(overrides=["+a=1"]) == {"a": 1}
        again = kdcli.distill(config, out=str(tmp_path / "run"), quiet=True)
        scored = kdcli.evaluate(result.run, {"measure": None}, out=tmp_path / "eval", quiet=True)
        with pytest.raises(kdcli.KDError) as refused:
            kdcli.distill(config | {"trainer": {"epohs": 1}}, quiet=True)
        monkeypatch.delenv("HF_TOKEN")
        with pytest.raises(kdcli.KDError, match=naming("hub.push_to", "HF_TOKEN")):
            kdcli.distill(config, out=tmp_path / "other", quiet=True)
        assert state() == before
    assert not (tmp_path / "other").exists()
    assert hub.repositories == {"me/student": True}
    files = [path for path in result.student.iterdir() if path.name in hub.files]
    assert {path.name for path in files} >= {
        "README.md",
        "model.safetensors",
        "config.json",
        "tokenizer.json",
    }
    assert all(hub.files[path.name] == path.read_bytes() for path in files)
    assert "\nlicense: mit\n" in (result.student / "README.md").read_text()
    assert again == result
    assert result.run == tmp_path / "run"
    assert (result.student / "model.safetensors").is_file()
    assert result.verdict.text == result.report.verdict.text
    assert {name for name, _ in stages} >= {"student", "evaluate"}
    assert {state for _, state in stages} <= {"running", "done", "skipped"}
    assert scored.models["student"].score == result.report.models["student"].score
    assert refused.value.exit_code == 2
    require_words(refused.value.message, "trainer.epohs", "epochs")
    assert ".yaml" not in refused.value.message, "the program wrote no file"
    (answer,) = kdcli.load(result.run).predict("A good film.")
    assert answer["label"] in result.report.labels
    with pytest.raises(kdcli.KDError):
        kdcli.load(result.run / "control")
    assert capsys.readouterr().out == ""


def test_an_export_from_python(small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program that the documentation shows does not run; an export from Python that raises for a missed budget, or says that it was kept."""
    monkeypatch.chdir(tmp_path)
    config = keys([*small, "trainer.max_steps=4", "trivial_baseline=false"]) | {
        "measure": None,
        "control": False,
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    quick: dict[str, Any] = {
        "measure": {"latency_runs": 3, "throughput_seconds": 0.05, "max_texts": 8, "request_rates": []},
        "hardware": {"precisions": ["fp32"]},
    }
    page = (REPOSITORY / "docs" / "using.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    for shown, here in {
        '{"dataset": {"path": "tickets.csv"}, "student": "tiny"}': '"small.yaml"',
        'kdcli.export(result.run, "cpu").passed': 'passed = kdcli.export(result.run, "cpu", quick).passed',
    }.items():
        assert program.count(shown) == 1
        program = program.replace(shown, here)
    names: dict[str, Any] = {"quick": quick}
    exec(program, names)
    folder = names["result"].run / "export" / "cpu"
    assert names["passed"] is True
    assert {path.name for path in folder.glob("*.onnx")} == {"model.onnx"}
    assert names["student"].predict(["A text."])[0]["label"] in names["result"].report.labels
    quick["hardware"] |= {"budget": {"max_bytes": 1000}}
    missed = kdcli.export(names["result"].run, config=quick, quiet=True)
    assert (missed.folder, missed.passed) == (folder, False)
    (artifact,) = missed.report.artifacts.values()
    assert artifact.budget["max_bytes"]["met"] is False
