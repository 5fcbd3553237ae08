"""`kdcli export hardware=mobile` as users type it: both files are run by the Python builds of their runtimes, and it is said so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.tiny import run_snippet, texts_of

from kdcli.launch.inference import load
from kdcli.launch.run import launch

pytestmark = pytest.mark.devices
FILES = {"model.int8.tflite": "litert", "model.fp32.pte": "executorch", "model.int8.pte": "executorch"}
QUICK = ["measure.latency_runs=40", "measure.throughput_seconds=0.1", "measure.request_rates=[50]"]


@pytest.fixture(scope="module")
def run(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mobile") / "run"
    assert launch("distill", [*small, "measure=null", "control=false", f"hydra.run.dir={folder}"]) == 0
    return folder


def test_export_is_run_compared_and_evaluated(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that its runtime never ran; a figure of this computer that is taken for a phone's; lines that do not work; a file that
    `kdcli eval` does not take."""
    words = [f"run={run}", "hardware=mobile", "hardware.tolerance.agreement=0.9", *QUICK]
    assert launch("export", words) == 0
    assert "on this computer, not on a phone" in " ".join(capsys.readouterr().out.split())
    folder = run / "export" / "mobile"
    result = json.loads((folder / "export.json").read_text())
    assert set(result["artifacts"]) == set(FILES)
    assert "not on a phone" in result["note"]
    assert "not on a phone" in (folder / "README.md").read_text()
    assert sorted(file.name for file in folder.glob("run_*.py")) == ["run_executorch.py", "run_litert.py"]
    assert len(list(folder.glob("*.kt"))) == 2
    student = load_file(run / "predictions" / "test.student.safetensors")["logits"]
    labels = json.loads((run / "report.json").read_text())["labels"]
    said = {}
    for name, entry in result["artifacts"].items():
        assert entry["bytes"] == (folder / name).stat().st_size
        assert entry["parity"]["same_tokens"] == 1
        assert entry["times_faster"] > 0
        assert entry["load"]["rates"][0]["requests_per_s"] == 50
        said[name] = load_file(folder / "predictions" / f"test.{name}.safetensors")["logits"]
        assert entry["parity"]["agreement"] == (said[name].argmax(1) == student.argmax(1)).mean()
    assert result["artifacts"]["model.fp32.pte"]["parity"]["max_abs_difference"] < 1e-4
    for runtime in ("litert", "executorch"):
        text = (folder / f"run_{runtime}.py").read_text()
        (name,) = (name for name in FILES if f'MODEL = "{name}"' in text)
        probability, label = run_snippet(folder / f"run_{runtime}.py", texts_of(run)[3])[0].split(maxsplit=1)
        shares = np.exp(said[name][3] - said[name][3].max())
        assert label == labels[int(said[name][3].argmax())]
        assert float(probability) == pytest.approx(shares.max() / shares.sum(), abs=1e-3)
    for name in FILES:
        words = [f"run={run}", f"artifact={folder / name}", "measure=null", "split=validation"]
        assert launch("eval", [*words, f"hydra.run.dir={tmp_path / name}"]) == 0
        scored = json.loads((tmp_path / name / "eval.json").read_text())
        assert (scored["split"], list(scored["models"])) == ("validation", [name])
        predictions = load(str(folder / name)).predict(texts_of(run)[:5])
        assert [each["label"] for each in predictions] == [labels[best] for best in said[name][:5].argmax(1)]
