"""kdcli as notebooks and schedulers call it."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from support.commands import naming, require_words
from support.hub_server import HubServer

import kdcli

HEAVY = {"torch", "transformers", "datasets", "hydra", "numpy", "pydantic"}


def keys(words: list[str]) -> dict[str, Any]:
    """Overrides as a program writes them."""
    import yaml

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
