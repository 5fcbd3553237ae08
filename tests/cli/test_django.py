"""The offline translation experiment on Django's catalogues, through the real command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from support.commands import ColdCache

from kdcli.config.dataset import Dataset
from kdcli.data.dataset import load
from kdcli.launch.run import launch


@pytest.mark.long
@pytest.mark.real
def test_djangos_messages_at_reduced_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cold_cache: ColdCache, capsys
) -> None:
    """The recipe of the README composes and does not run; or on its way from the catalogues through cleaning, beam search, cache
    and training a source loses its target."""
    monkeypatch.chdir(tmp_path)
    cold_cache("cache")
    options = ["experiment=translation", "debug=smoke", "measure=null", "rollout.max_new_tokens=64"]
    assert launch("distill", [*options, "hydra.run.dir=run"]) == 0
    report = json.loads(Path("run/report.json").read_text())
    assert (report["task"], report["smoke"]) == ("seq2seq", True)
    assert report["dataset"]["dropped"]["identical"] > 0
    data = load(
        Dataset(
            format="gettext",
            path="package:Django/django",
            target_language="de",
            truncation="drop",
            limit=256,
            eval_limit=64,
        )
    )
    known = {row["source"]: row["target"] for row in data["train"]}
    lines = Path("run/rollouts.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["source"] for line in lines} <= known.keys()
    tests = {(row["source"], row["target"]) for row in data["test"]}
    for name in ("teacher", "control", "student"):
        said = [
            json.loads(line) for line in Path(f"run/predictions/test.{name}.jsonl").read_text().splitlines()
        ]
        assert {(row["source"], row["reference"]) for row in said} <= tests
    assert (
        load_file("run/student/model.safetensors").keys() == load_file("run/control/model.safetensors").keys()
    )
    capsys.readouterr()
    assert launch("eval", ["run=run", "measure=null", "format=json", "hydra.run.dir=scored"]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert scored["models"]["student"]["score"] == pytest.approx(report["models"]["student"]["score"])
