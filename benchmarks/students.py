"""The figures on students of benchmarks/README.md: `python benchmarks/students.py table tweets`, `table clinc FOLDER`,
`floor tweets`, `floor clinc FOLDER`, `trimmed`, `decoders`, `sparsity`, `rounded verses FILE`, `anyone CLINC AUSTEN VERSES`
(`benchmarks/anyone.py`; `--only NAME …` takes some of its data sets).

FOLDER holds CLINC150 as train.tsv, val.tsv and test.tsv with the columns text and label, FILE verses as `translation.py` takes them. Runs are kept under runs/bench/students and are not made
again. Scores do not depend on what else the machine does, speeds do: leave it alone for `floor` and `sparsity`. `--seeds 1 2` takes those alone.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import random
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

KDCLI = [sys.executable, "-m", "kdcli"]
RUNS = Path("runs/bench/students")
SEEDS: Sequence[int] = range(3)
INITIALIZERS = {
    "from_config": [
        "student.initializers=[from_config,vocabulary]",
        "trainer.learning_rate=2e-3",
        "trainer.embedding_learning_rate_factor=1",
        "trainer.token_dropout=0",
    ],  # 2 layers x 128
    "layers": [
        "student.initializers=[layers,vocabulary]",
        "student.steps.layers.num_hidden_layers=2",
        "trainer.learning_rate=5e-4",
    ],
    "pruned": [
        "student.initializers=[layers,width,vocabulary]",
        "student.steps.layers.num_hidden_layers=3",
        "student.steps.width.hidden_size=192",
        "student.steps.width.num_attention_heads=6",
        "student.steps.width.intermediate_size=768",
        "trainer.learning_rate=1e-3",
    ],
}
SMALL = [
    "student.initializers=[layers,width,vocabulary]",
    "student.steps.layers.num_hidden_layers=2",
    "student.steps.width.intermediate_size=768",
    "student.steps.vocabulary.min_count=2",
    "trainer.learning_rate=5e-4",
]
BEST = {"tweets": [*SMALL, "trainer.epochs=2"], "clinc": [*SMALL, "trainer.epochs=4"]}
"""What `floor` takes: two layers with half of their feed-forward units, over the words of the data."""
WRITER = [
    "student=smollm2-30m",
    "student.hidden_size=192",
    "student.num_hidden_layers=6",
    "student.intermediate_size=512",
    "trainer.epochs=4",
    "trainer.learning_rate=2e-3",
]
"""A language model of 12 M parameters."""
FEATURES = """
stages:
  features:
    loss:
      hidden_states: {_target_: kdcli.losses.hidden_states.HiddenStates, weight: 1.0, layer_mapping: uniform}
      relations: {_target_: kdcli.losses.relations.Relations, weight: 1.0}
    trainer: {max_steps: FIRST}
  answers:
    trainer: {max_steps: REST}
"""


def data(name: str, folder: str | None) -> tuple[list[str], int, int]:
    """A data set's options, how many of its rows are labelled, and the optimizer steps of each student."""
    if name == "tweets":
        sizes = [
            "dataset.limit=12000",
            "dataset.labelled=8000",
            "dataset.test_size=4000",
            "dataset.validation_size=2000",
        ]
        return [*sizes, "teacher.trainer.epochs=2", "teacher.trainer.freeze=[word_embeddings]"], 8000, 900
    if folder is None:
        sys.exit("clinc: name the folder of train.tsv, val.tsv and test.tsv")
    files = {"path": "train", "validation": "val", "test": "test"}
    return (
        [
            "dataset=csv",
            *(f"dataset.{key}={folder}/{file}.tsv" for key, file in files.items()),
            "dataset.max_length=40",
            "teacher.trainer.epochs=4",
            "teacher.trainer.learning_rate=2e-4",
            "teacher.trainer.freeze=[word_embeddings]",
        ],
        4500,
        1200,
    )


def distil(folder: Path, options: list[str]) -> dict[str, Any]:
    """One run, made if it is not there, and its report."""
    if not (folder / "report.json").is_file():
        command = [*KDCLI, "distill", f"hydra.run.dir={folder}", *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return dict(json.loads((folder / "report.json").read_text()))


def table(name: str, folder: str | None) -> None:
    """Compares initialisers with and without feature losses, with and without text that only the teacher labels, and the control."""
    options, labelled, steps = data(name, folder)
    more = RUNS / "conf" / "experiment"
    more.mkdir(parents=True, exist_ok=True)
    features_file = FEATURES.replace("FIRST", str(steps // 3)).replace("REST", str(steps - steps // 3))
    (more / f"features-{name}.yaml").write_text(f"# @package _global_\n{features_file}")
    reports: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for seed, initializer, features, unlabelled in itertools.product(
        SEEDS, INITIALIZERS, (False, True), (False, True)
    ):
        rows = (
            [f"dataset.labelled={labelled}", "dataset.limit=null"]
            if unlabelled
            else [f"dataset.limit={labelled}", "dataset.labelled=null"]
        )
        recipe = [f"experiment=features-{name}"] if features else [f"trainer.max_steps={steps}"]
        control = str(not (features or unlabelled)).lower()
        called = "-".join(
            [
                initializer,
                *(["features"] if features else []),
                *(["unlabelled"] if unlabelled else []),
                str(seed),
            ]
        )
        report = distil(
            RUNS / name / called,
            [
                f"--config-dir={more.parent}",
                *options,
                *rows,
                *recipe,
                *INITIALIZERS[initializer],
                "student=composed",
                "student.steps.vocabulary.min_count=1",  # rows have the tokens of the teacher, so that features can be compared
                f"control={control}",
                "measure=null",
                f"seed={seed}",
            ],
        )
        reports.setdefault((initializer, features, unlabelled), []).append(report)
        print(called, {key: round(model["score"], 4) for key, model in report["models"].items()}, flush=True)
    teacher = [report["models"]["teacher"]["score"] for report in reports["layers", False, True]]
    print(f"\nteacher {100 * statistics.mean(teacher):.1f}")
    print(
        "| initialiser | parameters | control | answers | + features | + unlabelled | + both |\n|---|---|---|---|---|---|---|"
    )
    for initializer in INITIALIZERS:
        plain = reports[initializer, False, False]
        cells = [mean([report["models"]["control"]["score"] for report in plain])]
        for features, unlabelled in ((False, False), (True, False), (False, True), (True, True)):
            cells.append(
                mean(
                    [
                        each["models"]["student"]["score"]
                        for each in reports[initializer, features, unlabelled]
                    ]
                )
            )
        size = statistics.mean(
            each["models"]["student"]["parameters"] for each in reports[initializer, True, True]
        )
        print(f"| {initializer} | {size / 1e6:.1f} M | {' | '.join(cells)} |")


def mean(scores: list[float]) -> str:
    """The mean in percent, and the lowest and highest of the seeds."""
    return f"{100 * statistics.mean(scores):.1f} ({100 * min(scores):.1f} to {100 * max(scores):.1f})"


def floor(name: str, folder: str | None) -> None:
    """A student as an exported int8 file, beside its teacher: bytes, accuracy, throughput on one thread."""
    options, labelled, _ = data(name, folder)
    runs = [RUNS / f"{name}-floor" / str(seed) for seed in SEEDS]
    rows = [f"dataset.labelled={labelled}", "dataset.limit=null"]
    for seed, run in zip(SEEDS, runs, strict=True):
        distil(
            run,
            [
                *options,
                *rows,
                *BEST[name],
                "student=composed",
                "control=false",
                "measure=null",
                f"seed={seed}",
            ],
        )
    for seed, run in zip(SEEDS, runs, strict=True):
        found = exported(run)["artifacts"]["model.int8.onnx"]
        again = subprocess.run(
            [*KDCLI, "eval", f"run={run}", "format=json"], check=True, capture_output=True, text=True
        )
        teacher = json.loads(again.stdout)["models"]["teacher"]
        print(
            f"floor: {name} seed {seed}: teacher {teacher['score']:.4f}, {teacher['bytes'] / 1e6:.1f} MB; int8 student {found['score']:.4f} "
            f"({found['score'] / teacher['score']:.1%} of it; at least 97 %), {found['bytes'] / 1e6:.2f} MB (1 / "
            f"{teacher['bytes'] / found['bytes']:.1f}; at most 1 / 10), {found['throughput_per_s'] / teacher['throughput_per_s']:.1f} "
            "times its throughput (at least 10)",
            flush=True,
        )


def exported(run: Path) -> dict[str, Any]:
    """What `kdcli export` says of a run."""
    subprocess.run([*KDCLI, "export", f"run={run}", "hardware.tolerance.agreement=0", "hardware.tolerance.score_drop=1"], check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    return dict(json.loads((run / "export/cpu/export.json").read_text()))


def trimmed() -> None:
    """tiny-trimmed beside tiny, in the default run."""
    scores: dict[str, list[float]] = {"tiny": [], "tiny-trimmed": []}
    sizes: dict[str, int] = {}
    for seed, student in itertools.product(SEEDS, scores):
        report = distil(
            RUNS / student / str(seed),
            [f"student={student}", "control=false", "measure=null", f"seed={seed}"],
        )
        scores[student].append(report["models"]["student"]["score"])
        sizes[student] = report["models"]["student"]["bytes"]
        print(
            f"trimmed: {student} seed {seed}: {scores[student][-1]:.4f}, {sizes[student] / 1e6:.2f} MB",
            flush=True,
        )
    for seed in SEEDS:
        before, after = trimmed_after(RUNS / "tiny" / str(seed))
        print(f"trimmed: tiny seed {seed}, when it has learned: {before:.4f} -> {after:.4f}", flush=True)
    one, other = (statistics.mean(scores[student]) for student in scores)
    print(
        f"trimmed: {sizes['tiny-trimmed'] / sizes['tiny']:.2f} of the bytes (at most 0.5), score {100 * (other - one):+.2f} points (0.2)"
    )


def trimmed_after(run: Path) -> tuple[float, float]:
    """The test accuracy of a run's student, and of the same weights over the tokens that tiny-trimmed has."""
    from kdcli.config.check import check
    from kdcli.config.schema import Distill
    from kdcli.data.dataset import load
    from kdcli.evaluation.predict import open_checkpoint
    from kdcli.models.checkpoint import Checkpoint
    from kdcli.rundir import saved_config
    from kdcli.students.pruning.vocabulary import Vocabulary
    from kdcli.tasks import task_of

    dataset = check(Distill, saved_config(run)).dataset
    data = load(dataset)
    task = task_of(dataset, data.labels)
    whole = open_checkpoint(Checkpoint(run / "student", "student"), task, dataset.max_length)
    scores = []
    for model, tokenizer in (whole, Vocabulary(min_count=2).cut(*whole, task, data["train"])):
        predictions = task.predict(
            model.eval(), tokenizer, task.encode(tokenizer, data["test"], dataset.max_length)
        )
        scores.append(float(task.scores(predictions)["accuracy"]))
    return scores[0], scores[1]


def decoders() -> None:
    """SmolLM2-135M at 60 % of its parameters, pruned in width or without half of its layers, after the same training."""
    found: dict[str, list[float]] = {}
    shapes = {
        "pruned": [],
        "layers": ["student=layers", "~student.intermediate_size", "student.num_hidden_layers=15"],
    }
    for seed, (name, options) in itertools.product(SEEDS, shapes.items()):
        report = distil(
            RUNS / f"decoder-{name}" / str(seed),
            [
                "experiment=minitron",
                *options,
                "trainer.epochs=1",
                "control=false",
                "measure=null",
                f"seed={seed}",
            ],
        )
        student = report["models"]["student"]
        found.setdefault(name, []).append(student["scores"]["perplexity"])
        print(
            f"decoders: {name} seed {seed}: {student['parameters'] / 1e6:.1f} M of {report['models']['teacher']['parameters'] / 1e6:.1f} M, "
            f"held-out perplexity {found[name][-1]:.2f}",
            flush=True,
        )
    print(
        f"decoders: {json.dumps({name: round(statistics.mean(values), 2) for name, values in found.items()})}"
    )


def sparsity() -> None:
    """The default student with the smallest of each matrix's weights at 0, by `kdcli export`; and a sparse kernel alone."""
    import shutil
    import time

    import torch
    from safetensors.torch import load_file, save_file

    whole = RUNS / "tiny" / "0"
    distil(whole, ["student=tiny", "control=false", "measure=null", "seed=0"])
    for share in (0.0, 0.5, 0.7, 0.9):
        run = RUNS / "sparse" / f"{share:.0%}"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(whole, run, ignore=shutil.ignore_patterns("export"))
        weights = load_file(run / "student" / "model.safetensors")
        for name, weight in weights.items():
            if weight.dim() == 2 and "embeddings" not in name:
                weight[weight.abs() < weight.abs().flatten().quantile(share)] = 0
        save_file(weights, run / "student" / "model.safetensors", metadata={"format": "pt"})
        found = exported(run)["artifacts"]["model.int8.onnx"]
        print(
            f"sparsity: {share:.0%} at 0: accuracy {found['score']:.4f}, int8 file {found['bytes'] / 1e6:.2f} MB, p50 "
            f"{found['latency_ms']['p50']:.3f} ms, {found['throughput_per_s']:.0f} rows/s",
            flush=True,
        )
    torch.set_num_threads(1)
    dense, x = torch.randn(512, 128), torch.randn(128, 32 * 16)
    for share in (0.5, 0.9, 0.98):
        zeros = torch.where(torch.rand_like(dense) < share, 0, dense)
        sparse = zeros.to_sparse_csr()
        times: dict[str, list[float]] = {"dense": [], "sparse": []}
        for _ in range(300):
            for name, matrix in (("dense", zeros), ("sparse", sparse)):
                began = time.perf_counter()
                matrix @ x
                times[name].append(time.perf_counter() - began)
        ratio = statistics.median(times["dense"]) / statistics.median(times["sparse"])
        print(
            f"sparsity: a CSR kernel (torch) with {share:.0%} at 0: {ratio:.2f} times the speed of the dense one, fp32"
        )


def rounded(file: str) -> None:
    """A language model that SmolLM2-135M teaches on verses in English, its last epoch in int4; and rounded after training."""
    from translation import TEST, VALIDATION

    folder = RUNS / "verses"
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for line in Path(file).read_text(encoding="utf-8").splitlines():
        english, _, verse = line.split("\t")
        book = verse.rpartition(" ")[0]
        rows["test" if book in TEST else "validation" if book in VALIDATION else "train"].append(english)
    random.Random(0).shuffle(rows["train"])
    for split, most in {"train": 8000, "validation": 400, "test": 600}.items():
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([["text"], *([verse] for verse in rows[split][:most])])
    options = [
        "dataset=csv",
        f"dataset.path={folder}/train.csv",
        *(f"dataset.{split}={folder}/{split}.csv" for split in ("validation", "test")),
        *("dataset.text=text", "dataset.label=null", "dataset.max_length=96"),
        *("teacher=smollm2-135m", "teacher.tune=false"),
        *("loss=forward_kl", "loss.hard_label.weight=0.25", "trainer.batch_size=16"),
        *(*WRITER, "student.quantization=int4", "control=false", "measure=null"),
    ]
    for seed in SEEDS:
        run = RUNS / "rounded" / str(seed)
        distil(run, [*options, f"seed={seed}"])
        command = ["export", f"run={run}", "hardware.precisions=[fp32,int4]", "measure.request_rates=[]"]
        subprocess.run([*KDCLI, *command], check=False, stdout=subprocess.DEVNULL)
        quantization = json.loads((run / "export/cpu/export.json").read_text())["quantization"]
        scores = {how: entry["score"] for how, entry in quantization["artifacts"]["model.int4.onnx"].items()}
        print(
            f"rounded: seed {seed}: perplexity {math.exp(-quantization['score']):.2f} in fp32; of a token's probability the file in int4 keeps "
            + ", ".join(
                f"{math.exp(score - quantization['score']):.1%} {how}" for how, score in scores.items()
            ),
            flush=True,
        )


RECIPES: dict[str, list[str]] = {
    "default": [],
    "layers": ["student=layers"],
    "two epochs": [
        "teacher.trainer.epochs=1",
        "trainer.epochs=2",
        "trainer.learning_rate=1e-3",
        "trainer.embedding_learning_rate_factor=1",
        "trainer.token_dropout=0",
        "student.dropout=0",
        "student.calibrate=false",
    ],  # the default until 2026-11
}


def anyone(sources: Sequence[str], only: Sequence[str], recipes: Sequence[str]) -> None:
    """What the default command makes of data that it was not chosen on, beside an earlier recipe."""
    from anyone import data_sets

    sets = data_sets(RUNS / "anyone" / "data", sources)
    print(
        "| data | recipe | seed | steps | teacher | control | student | of the teacher | calibration error | verdict |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for (name, options), recipe, seed in itertools.product(sets.items(), recipes, SEEDS):
        if only and name not in only:
            continue
        run = RUNS / "anyone" / f"{name}-{recipe.replace(' ', '-')}-{seed}"
        report = distil(run, [*options, *RECIPES[recipe], f"seed={seed}", "measure=null"])
        models, verdict = report["models"], report["verdict"]
        scores = [f"{100 * models[model]['score']:.1f}" for model in ("teacher", "control", "student")]
        error = models["student"].get("calibration", {}).get("ece")
        print(
            f"| {name} | {recipe} | {seed} | {report['training']['student']['steps']} | {' | '.join(scores)} | {verdict['retention']:.1%} | "
            f"{'' if error is None else f'{error:.3f}'} | {verdict['outcome']} |",
            flush=True,
        )


if __name__ == "__main__":
    every = {
        "table": table,
        "floor": floor,
        "trimmed": trimmed,
        "decoders": decoders,
        "sparsity": sparsity,
        "rounded": rounded,
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=[*every, "anyone"])
    parser.add_argument(
        "data", nargs="*", help="tweets, clinc FOLDER or verses FILE; the three sources of anyone"
    )
    parser.add_argument("--only", nargs="+", default=[], help="data sets of anyone")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=[*RECIPES], help="recipes of anyone")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    chosen = parser.parse_args()
    SEEDS = chosen.seeds
    given, folder = ([*chosen.data, None, None] if chosen.data else ["tweets", None])[:2]
    if chosen.what == "anyone":
        anyone(chosen.data, chosen.only, chosen.recipes)
    elif chosen.what in ("table", "floor"):
        every[chosen.what](given, folder)
    elif chosen.what == "rounded":
        rounded(folder or sys.exit("rounded verses: name the file"))
    else:
        every[chosen.what]()
