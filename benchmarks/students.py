"""The figures on students of benchmarks/README.md: `python benchmarks/students.py table tweets`, `table clinc FOLDER`,
`floor tweets`, `floor clinc FOLDER`, `sparsity`, `decoders`.

FOLDER holds CLINC150 as train.tsv, val.tsv and test.tsv with the columns text and label. Runs are kept under runs/bench/students and are not made
again. Scores do not depend on what else the machine does, speeds do: leave it alone for `floor` and `sparsity`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

RUNS = Path("runs/bench/students")
SEEDS = range(3)
BIRTHS = {
    "from_config": ["student.births=[from_config,vocabulary]", "trainer.learning_rate=2e-3"],  # 2 layers x 128
    "layers": [
        "student.births=[layers,vocabulary]",
        "student.steps.layers.num_hidden_layers=2",
        "trainer.learning_rate=5e-4",
    ],
    "pruned": [
        "student.births=[layers,width,vocabulary]",
        "student.steps.layers.num_hidden_layers=3",
        "student.steps.width.hidden_size=192",
        "student.steps.width.num_attention_heads=6",
        "student.steps.width.intermediate_size=768",
        "trainer.learning_rate=1e-3",
    ],
}
INSIDE = """
stages:
  inside:
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
        return ["teacher.trainer.epochs=2", "teacher.trainer.freeze=[word_embeddings]"], 8000, 900
    if folder is None:
        sys.exit("clinc: name the folder of train.tsv, val.tsv and test.tsv")
    files = {"path": "train", "validation": "val", "test": "test"}
    return [
        "dataset=csv",
        *(f"dataset.{key}={folder}/{file}.tsv" for key, file in files.items()),
        "dataset.max_length=40",
        "teacher.trainer.epochs=4",
        "teacher.trainer.learning_rate=2e-4",
        "teacher.trainer.freeze=[word_embeddings]",
    ], 4500, 1200


def distil(folder: Path, options: list[str]) -> dict[str, Any]:
    """One run, made if it is not there, and its report."""
    if not (folder / "report.json").is_file():
        command = [sys.executable, "-m", "kdcli", "distill", f"hydra.run.dir={folder}", *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return dict(json.loads((folder / "report.json").read_text()))


def table(name: str, folder: str | None) -> None:
    """Births with and without losses on the inside, with and without text that only the teacher labels, and the control."""
    options, labelled, steps = data(name, folder)
    more = RUNS / "conf" / "experiment"
    more.mkdir(parents=True, exist_ok=True)
    inside_file = INSIDE.replace("FIRST", str(steps // 3)).replace("REST", str(steps - steps // 3))
    (more / f"inside-{name}.yaml").write_text(f"# @package _global_\n{inside_file}")
    reports: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for seed, birth, inside, unlabelled in itertools.product(SEEDS, BIRTHS, (False, True), (False, True)):
        rows = (
            [f"dataset.labelled={labelled}", "dataset.limit=null"]
            if unlabelled
            else [f"dataset.limit={labelled}", "dataset.labelled=null"]
        )
        how = [f"experiment=inside-{name}"] if inside else [f"trainer.max_steps={steps}"]
        control = str(not (inside or unlabelled)).lower()
        called = "-".join([birth, *(["inside"] if inside else []), *(["unlabelled"] if unlabelled else []), str(seed)])
        report = distil(
            RUNS / name / called,
            [
                f"--config-dir={more.parent}",
                *options,
                *rows,
                *how,
                *BIRTHS[birth],
                "student=births",
                "student.steps.vocabulary.min_count=1",  # rows are cut as the teacher cuts them: what is inside can be compared
                f"control={control}",
                "measure=null",
                f"seed={seed}",
            ],
        )
        reports.setdefault((birth, inside, unlabelled), []).append(report)
        print(called, {key: round(model["score"], 4) for key, model in report["models"].items()}, flush=True)
    teacher = [report["models"]["teacher"]["score"] for report in reports["layers", False, True]]
    print(f"\nteacher {100 * statistics.mean(teacher):.1f}")
    print("| birth | parameters | control | answers | + inside | + unlabelled | + both |\n|---|---|---|---|---|---|---|")
    for birth in BIRTHS:
        plain = reports[birth, False, False]
        cells = [mean([report["models"]["control"]["score"] for report in plain])]
        for inside, unlabelled in ((False, False), (True, False), (False, True), (True, True)):
            cells.append(mean([each["models"]["student"]["score"] for each in reports[birth, inside, unlabelled]]))
        size = statistics.mean(each["models"]["student"]["parameters"] for each in reports[birth, True, True])
        print(f"| {birth} | {size / 1e6:.1f} M | {' | '.join(cells)} |")


def mean(scores: list[float]) -> str:
    """The mean in percent, and the lowest and highest of the seeds."""
    return f"{100 * statistics.mean(scores):.1f} ({100 * min(scores):.1f} to {100 * max(scores):.1f})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["table"])
    parser.add_argument("data", choices=["tweets", "clinc"])
    parser.add_argument("folder", nargs="?")
    chosen = parser.parse_args()
    table(chosen.data, chosen.folder)
