"""The figures on translation of benchmarks/README.md: `python benchmarks/translation.py bible FILE` (hours), `writing RUN`.

FILE holds verse pairs, English and Spanish, and the verse's name in a third column, without a header. RUN is a run with
rollout=beam: `writing` times how its teacher translates training sources, beside `generate` called in the data's order. Runs are kept under
runs/bench/translation and are not made again.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

KDCLI = [sys.executable, "-m", "kdcli"]
RUNS = Path("runs/bench/translation")
TEST = {"Ruth", "II Samuel", "Romans"}
VALIDATION = {"Ezra", "Galatians", "Ephesians"}
LABELLED, SOURCES = 10000, 20000
"""Pairs whose translation is known, which the teacher and the control learn from, and sources that the teacher translates."""
TEACHER = [
    "teacher=transformer",
    "teacher.vocab_size=4000",
    "teacher.from_scratch.encoder_layers=5",
    "teacher.from_scratch.decoder_layers=2",
    "teacher.trainer.epochs=18",
    "teacher.trainer.batch_size=64",
    "teacher.trainer.eval_steps=468",
]
STUDENT = [
    "student=translator-small",
    "student.encoder_layers=3",
    "student.intermediate_size=448",
    "rollout=beam",
    "rollout.num_beams=4",
    "loss.soft_label.weight=0",
    "loss.hard_label.weight=1",
    "loss.hard_label.label_smoothing=0.1",
    "trainer.epochs=10",
    "trainer.batch_size=64",
    "trainer.learning_rate=2e-3",
    "trainer.eval_steps=624",
]


def books(file: Path) -> list[str]:
    """Write the training, validation and test books as files; the options that name them."""
    folder = RUNS / "data"
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[list[str]]] = {"train": [], "validation": [], "test": []}
    for line in file.read_text(encoding="utf-8").splitlines():
        english, spanish, verse = line.split("\t")
        book = verse.rpartition(" ")[0]
        split = "test" if book in TEST else "validation" if book in VALIDATION else "train"
        rows[split].append([english, spanish])
    for split, found in rows.items():
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([["en", "es"], *found])
        print(f"bible: {split}: {len(found)} verses")
    return [
        "dataset=csv",
        f"dataset.path={folder}/train.csv",
        *(f"dataset.{split}={folder}/{split}.csv" for split in ("validation", "test")),
        "dataset.source=en",
        "dataset.target=es",
        "dataset.max_length=128",
        "dataset.truncation=drop",
        f"dataset.limit={SOURCES}",
        f"dataset.labelled={LABELLED}",
    ]


def bible(file: Path) -> None:
    """A teacher trained on some of the pairs, its translations of all training sources, and a student with a control."""
    run = RUNS / "bible"
    options = books(file)
    began = time.perf_counter()
    if not (run / "report.json").is_file():
        command = [*KDCLI, "distill", f"hydra.run.dir={run}", *TEACHER, *options, *STUDENT]
        subprocess.run(command, check=True)
        print(f"bible: {(time.perf_counter() - began) / 3600:.2f} h")
    report: dict[str, Any] = json.loads((run / "report.json").read_text())
    models, verdict = report["models"], report["verdict"]
    for name, model in models.items():
        scores = model["scores"]
        print(
            f"bible: {name}: BLEU {scores['bleu']:.2f} greedy, {scores['bleu_beam']:.2f} with {report['beams']} beams, chrF {scores['chrf']:.1f}, "
            f"{model['parameters'] / 1e6:.1f} M parameters, {model['throughput_per_s']:.0f} tokens/s"
        )
    gain, bounds = verdict["gain_over_control"], verdict["gain_ci95"]
    share = models["student"]["score"] / models["teacher"]["scores"]["bleu_beam"]
    print(
        f"bible: gain {gain:+.2f} [{bounds[0]:.2f}, {bounds[1]:.2f}], p {verdict['gain_p']:.4f} (at least +1, p < 0.05); student, greedy / teacher, "
        f"beams {share:.1%} (at least 90 %); parameters beside the embeddings 1 / {beside(run, 'teacher') / beside(run, 'student'):.1f} (1 / 4)"
    )
    if not (run / "export/cpu/export.json").is_file():
        subprocess.run([*KDCLI, "export", f"run={run}"], check=False)
    exported = json.loads((run / "export/cpu/export.json").read_text())
    student = exported["torch"]
    for name, found in exported["artifacts"].items():
        print(
            f"bible: {name}: BLEU {found['score']:.2f} ({found['score'] - student['score']:+.2f}; within 0.3), {found['bytes'] / 1e6:.1f} MB, "
            f"{found['throughput_per_s'] / student['throughput_per_s']:.1f} times the torch student's tokens/s (int8: at least 4)"
        )


def beside(run: Path, name: str) -> int:
    """A model's parameters without its embeddings and the head that shares their matrix."""
    from transformers import AutoModelForSeq2SeqLM

    report = json.loads((run / "report.json").read_text())
    model = AutoModelForSeq2SeqLM.from_pretrained(report["models"][name].get("path") or run / name)
    words = model.get_input_embeddings().weight
    return sum(
        weight.numel()
        for key, weight in model.named_parameters()
        if weight is not words and "embed_positions" not in key
    )


def writing(run: Path) -> None:
    """Sentences a second of the teacher's beam search: `kdcli.generation.translate`, and `generate` in the data's order, in turns."""
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    from kdcli.generation import translate
    from kdcli.models.checkpoint import fast_bf16

    path = json.loads((run / "report.json").read_text())["models"]["teacher"]["path"]
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSeq2SeqLM.from_pretrained(path).eval()
    lines = (run / "rollouts.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["source"] for line in lines[:512]]
    how = {"num_beams": 5, "max_new_tokens": 127}
    times: dict[str, list[float]] = {"kdcli": [], "generate": []}
    bf16 = torch.autocast("cpu", torch.bfloat16, enabled=fast_bf16())
    for _ in range(3):
        with bf16:
            began = time.perf_counter()
            translate(model, tokenizer, tokenizer(texts)["input_ids"], [], batch_size=32, **how)
            times["kdcli"].append(time.perf_counter() - began)
        began = time.perf_counter()
        with bf16:
            for start in range(0, len(texts), 32):
                batch = tokenizer(texts[start : start + 32], return_tensors="pt", padding=True)
                model.generate(**batch, do_sample=False, length_penalty=1.0, **how)
        times["generate"].append(time.perf_counter() - began)
    speeds = {name: len(texts) / statistics.median(each) for name, each in times.items()}
    print(
        f"writing: kdcli {speeds['kdcli']:.1f}, generate in the data's order {speeds['generate']:.1f} sentences/s: "
        f"{speeds['kdcli'] / speeds['generate']:.2f} times (at least 2)"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["bible", "writing"])
    parser.add_argument("path", type=Path)
    chosen = parser.parse_args()
    {"bible": bible, "writing": writing}[chosen.what](chosen.path)
