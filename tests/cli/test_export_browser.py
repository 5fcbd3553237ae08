"""`kdcli export hardware=browser` as users type it: run in Node, and its page in Chromium without a network."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
from pathlib import Path

import numpy as np
import pytest
from browser import Page, served
from safetensors.numpy import load_file
from support.tiny import texts_of

from kdcli.exporting.runtimes.node import packages
from kdcli.launch.inference import load
from kdcli.launch.run import launch

pytestmark = pytest.mark.devices
QUICK = ["measure.latency_runs=40", "measure.throughput_seconds=0.1", "measure.request_rates=[]"]
FILES = {"model.onnx": "fp32", "model_quantized.onnx": "q8"}


@pytest.fixture(scope="module")
def run(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser") / "run"
    assert launch("distill", [*small, "measure=null", "control=false", f"hydra.run.dir={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    assert (
        launch("export", [f"run={run}", "hardware=browser", "hardware.tolerance.agreement=0.9", *QUICK]) == 0
    )
    return run / "export" / "browser"


@pytest.fixture
def beside_node(exported: Path, tmp_path: Path) -> Path:
    """The folder as its user has it, with the packages of Node where Node looks for them."""
    shutil.copytree(exported, tmp_path / "copy")
    (tmp_path / "node_modules").symlink_to(packages() / "node_modules")
    return tmp_path / "copy"


def shown(folder: Path) -> dict:
    """What the page holds."""
    page = (folder / "index.html").read_text(encoding="utf-8")
    return json.loads(page.split('type="application/json">')[1].split("</script>")[0])


def probabilities(file: Path) -> np.ndarray:
    logits = load_file(file)["logits"]
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


def node(folder: Path, *words: str) -> str:
    done = subprocess.run(["node", *words], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_export_is_run_compared_and_evaluated(run: Path, exported: Path, tmp_path: Path) -> None:
    """A file that transformers.js never ran, or that `kdcli eval` does not take."""
    result = json.loads((exported / "export.json").read_text())
    assert list(result["artifacts"]) == list(FILES)
    student = load_file(run / "predictions" / "test.student.safetensors")["logits"]
    for name, entry in result["artifacts"].items():
        assert (exported / "onnx" / name).stat().st_size == entry["bytes"]
        assert entry["parity"]["same_tokens"] == 1
        assert entry["parity"]["within"]
        assert entry["times_faster"] > 0
        said = load_file(exported / "predictions" / f"test.{name}.safetensors")["logits"]
        assert entry["parity"]["agreement"] == (said.argmax(1) == student.argmax(1)).mean()
    assert result["artifacts"]["model.onnx"]["parity"]["max_abs_difference"] < 1e-4
    words = [f"run={run}", "artifact=onnx/model.onnx", "measure=null", f"hydra.run.dir={tmp_path / 'e'}"]
    assert launch("eval", words) == 0
    scored = json.loads((tmp_path / "e" / "eval.json").read_text())["models"]["model.onnx"]
    assert scored["score"] == result["artifacts"]["model.onnx"]["score"]


@pytest.mark.parametrize("name", FILES)
def test_predict_gives_the_labels_of_transformers_js(run: Path, exported: Path, name: str) -> None:
    """`kdcli predict` that runs the file in another runtime than the page does, or with other labels."""
    labels = json.loads((run / "report.json").read_text())["labels"]
    expected = probabilities(exported / "predictions" / f"test.{name}.safetensors")[:5]
    for answer, row in zip(
        load(str(exported / "onnx" / name)).predict(texts_of(run)[:5]), expected, strict=True
    ):
        assert answer["probabilities"] == pytest.approx(
            dict(zip(labels, row.tolist(), strict=True)), abs=1e-3
        )


def test_the_lines_beside_it_run_it_without_kdcli(beside_node: Path, exported: Path) -> None:
    """A recipe that does not work is worse than none."""
    data = shown(exported)
    line = (beside_node / "run_node.mjs").read_text()
    assert line in (beside_node / "README.md").read_text() + "\n"
    recommended = json.loads((exported / "export.json").read_text())["recommended"]
    assert f'const MODEL = "{recommended}";' in line
    said = probabilities(exported / "predictions" / f"test.{recommended}.safetensors")
    printed = node(beside_node, "run_node.mjs", *data["rows"][0]["texts"]).split()
    best = int(said[0].argmax())
    assert printed[1] == data["labels"][best]
    assert float(printed[0]) == pytest.approx(said[0, best], abs=1e-3)


@pytest.mark.parametrize("name", FILES)
def test_the_pipeline_of_transformers_js_loads_it(beside_node: Path, exported: Path, name: str) -> None:
    """The layout is what others' programs go by."""
    data = shown(exported)
    (beside_node / "pipeline.mjs").write_text(
        f"""import {{ pipeline, env }} from '@huggingface/transformers';
env.allowRemoteModels = false;
const classify = await pipeline('text-classification', {json.dumps(str(beside_node))}, {{ dtype: '{FILES[name]}' }});
console.log(JSON.stringify(await classify({json.dumps(data["rows"][0]["texts"][0])})));
"""
    )
    [answer] = json.loads(node(beside_node, "pipeline.mjs"))
    said = probabilities(exported / "predictions" / f"test.{name}.safetensors")[0]
    assert answer["label"] == data["labels"][int(said.argmax())]
    assert answer["score"] == pytest.approx(said.max(), abs=1e-3)


def test_the_page_answers_without_a_network(run: Path, exported: Path, tmp_path: Path) -> None:
    """A page that fetches its runtime from elsewhere is none where there is no network; or it says what the student does not."""
    data = shown(exported)
    total = json.loads((exported / "export.json").read_text())["test_examples"]
    numbers = np.linspace(0, total - 1, len(data["rows"])).astype(int)
    teacher = probabilities(run / "predictions" / "test.teacher.safetensors")[numbers]
    stored = [[row["teacher"][label] for label in data["labels"]] for row in data["rows"]]
    np.testing.assert_allclose(stored, teacher, atol=1e-5)
    with served(exported) as url, Page(url, tmp_path / "profile") as page:
        for name, dtype in reversed(FILES.items()):
            page.choose(dtype)
            cells = page.rows()
            said = probabilities(exported / "predictions" / f"test.{name}.safetensors")[numbers]
            best = [data["labels"][number] for number in said.argmax(1)]
            for row, (text, _, theirs, ours, _), label, share in zip(
                data["rows"], cells, best, said.max(1), strict=True
            ):
                assert text == row["texts"][0]
                assert theirs.split()[0] == max(row["teacher"], key=row["teacher"].get)
                assert ours.split()[0] == label
                # WebAssembly rounds activations of 8 bits a little otherwise
                assert float(ours.split()[1]) == pytest.approx(100 * share, abs=0.2 if dtype == "fp32" else 3)
            agreed = sum(
                max(row["teacher"], key=row["teacher"].get) == label
                for row, label in zip(data["rows"], best, strict=True)
            )
            summary = page.ask("document.getElementById('summary').textContent")
            assert f"agree on {agreed} of {len(best)};" in summary
            assert statistics.median(float(line[4]) for line in cells) <= 50
        answer = page.ask(
            """new Promise((done) => {
              const box = document.getElementById('text');
              new MutationObserver(() => done(document.getElementById('bars').innerText)).observe(document.getElementById('bars'), { childList: true });
              box.value = 'a superb film'; box.dispatchEvent(new Event('input'));
            })"""
        )
        assert set(data["labels"]) <= set(answer.split())
        elsewhere = page.ask(
            "performance.getEntriesByType('resource').map((each) => each.name).filter((name) => !name.startsWith(location.origin))"
        )
        assert elsewhere == []
