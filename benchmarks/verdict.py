"""The verdict where the truth is known: `python benchmarks/verdict.py simulated [--count 1000]` and `trained [--count 40]`.

`simulated` judges sets of predictions whose gain is known. `trained` runs `kdcli distill` on small data sets with a teacher that is better than the control, as good,
worse or useless, and compares the verdict, which has a small test split, with the gain on 20,000 further rows. Runs are kept under runs/bench/verdict and are not made again.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT), str(ROOT / "tests")]

from support.simulated import failures, rates, simulate  # noqa: E402

RUNS = Path("runs/bench/verdict")
KINDS = ("better", "equal", "worse", "useless")
CUT = 10
"""Every tenth trained task is cut short, and must end without a judgement."""
TRUTH = 20_000
"""Rows of the large test split."""
MOST_WRONG = 2
"""Judgements of each kind that may be wrong."""


def simulated(count: int, seed: int) -> int:
    """Print how often the verdict is right on simulated predictions."""
    judged = simulate(count, seed)
    for name, (number, total) in rates(judged).items():
        print(f"{name}: {number} of {total} ({100 * number / max(1, total):.1f} %)")
    print("outcomes:", dict(Counter(each.outcome for each in judged)))
    return report(failures(judged))


def report(wrong: list[str]) -> int:
    """Print what is missed."""
    print("\n".join(["MISSED:", *wrong]) if wrong else "all met")
    return 1 if wrong else 0


# ---- trained tasks ------------------------------------------------------------------------------------


def sentences(count: int, classes: int, noise: float, seed: int) -> list[tuple[str, str]]:
    """Distinct texts of words, some of which belong to a class; a share of the labels is wrong. Words of a class occur in others as well."""
    chance = random.Random(seed)
    rows: dict[str, str] = {}
    while len(rows) < count:
        label = chance.randrange(classes)
        words = [f"w{chance.randrange(300)}" for _ in range(chance.randint(4, 12))]
        for _ in range(chance.randint(1, 3)):
            own = label if chance.random() < 0.8 else chance.randrange(classes)
            words.append(f"c{own}x{int(40 * chance.random() ** 2)}")
        chance.shuffle(words)
        wrong = chance.random() < noise
        rows[" ".join(words)] = f"label{chance.randrange(classes) if wrong else label}"
    return list(rows.items())


def write(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("text", "label"), *rows])
    return path


def make_teacher(folder: Path, kind: str, classes: int, labelled: int, noise: float, seed: int) -> Path:
    """A small BERT that is trained on many clean rows (better), on rows like the control's (equal), or on labels most of which are wrong
    (worse, useless)."""
    if (folder / "model.safetensors").is_file():
        return folder
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    words = [f"w{each}" for each in range(300)]
    words += [f"c{label}x{each}" for label in range(classes) for each in range(40)]
    vocabulary = {
        word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])
    }
    inner = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer = BertTokenizerFast(vocab=vocabulary)
    labels = [f"label{label}" for label in range(classes)]
    torch.manual_seed(seed)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
            max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=classes,
            id2label=dict(enumerate(labels)), label2id={name: index for index, name in enumerate(labels)},
        )
    )  # fmt: skip
    count, wrong = {
        "better": (8000, noise / 2), "equal": (labelled, noise), "worse": (labelled, 0.6), "useless": (labelled, 0.9)
    }[kind]  # fmt: skip
    rows = sentences(count, classes, wrong, seed + 1)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    chance = random.Random(seed)
    for _ in range(600):
        batch = chance.sample(rows, 32)
        inputs = tokenizer([text for text, _ in batch], padding=True, return_tensors="pt")
        gold = torch.tensor([labels.index(label) for _, label in batch])
        loss = torch.nn.functional.cross_entropy(model(**inputs).logits, gold)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def train(number: int) -> dict[str, Any] | None:
    """Run one task; None: the pre-flight refused its teacher.

    Returns:
        The verdict, and the gain with its interval on the large test split.
    """
    chance = random.Random(number)
    kind = KINDS[number % len(KINDS)]
    classes, labelled = chance.choice([2, 4]), chance.choice([200, 500, 1500])
    test, noise = chance.choice([150, 400, 1500]), chance.choice([0.0, 0.1, 0.25])
    folder = RUNS / f"{number:02}-{kind}"
    teacher = make_teacher(folder / "teacher", kind, classes, labelled, noise, number)
    files = {
        "path": write(folder / "train.csv", sentences(3 * labelled, classes, noise, 1000 + number)),
        "validation": write(folder / "validation.csv", sentences(400, classes, noise, 2000 + number)),
        "test": write(folder / "test.csv", sentences(test, classes, noise, 3000 + number)),
    }
    truth = write(folder / "truth.csv", sentences(TRUTH, classes, noise, 4000 + number))
    run, cut = folder / "run", number % CUT == CUT - 1
    words = [
        "teacher=local", f"teacher.path={teacher}", "teacher.tune=false", "student=tiny", "student.hidden_size=32", "student.num_hidden_layers=1",
        "student.num_attention_heads=2", "student.intermediate_size=64", "dataset=csv", *(f"dataset.{key}={path}" for key, path in files.items()),
        f"dataset.labelled={labelled}", "dataset.max_length=32", "measure=null", f"seed={number}", *(["trainer.max_steps=20"] if cut else []),
    ]  # fmt: skip
    if not (run / "report.json").is_file():
        done = kdcli("distill", *words, f"hydra.run.dir={run}")
        if done.returncode == 2 and kind in ("worse", "useless") and "pre-flight" in done.stderr:
            return None
        if done.returncode:
            raise SystemExit(f"{run}: {done.stderr}")
    if not (folder / "eval" / "eval.json").is_file():
        done = kdcli(
            "eval", f"run={run}", f"dataset.test={truth}", "measure=null", f"hydra.run.dir={folder / 'eval'}"
        )
        if done.returncode:
            raise SystemExit(f"{run}: {done.stderr}")
    verdict = json.loads((run / "report.json").read_text())["verdict"]
    true = json.loads((folder / "eval" / "eval.json").read_text())["verdict"]
    return {
        "kind": kind,
        "cut": cut,
        "verdict": verdict,
        "gain": true["gain_over_control"],
        "bounds": true["gain_ci95"],
    }


def kdcli(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kdcli", *words], capture_output=True, text=True, check=False
    )


def trained(count: int) -> int:
    """Print the verdict and the truth of each task, and how many judgements are wrong."""
    wrong: Counter[str] = Counter()
    for number in range(count):
        result = train(number)
        if result is None:
            print(f"{number:02} {KINDS[number % len(KINDS)]}: refused before training")
            continue
        outcome, (low, high) = result["verdict"]["outcome"], result["bounds"]
        false = {
            "helped": result["gain"] <= 0,
            "hurt": result["gain"] >= 0,
            # a gain of twice what the test rows can show
            "no_evidence": max(low, -high) > 2 * (result["verdict"]["smallest_gain"] or 1.0),
            "not_enough": False,
        }[outcome]
        wrong[outcome] += false
        if result["cut"] and outcome != "not_enough":
            wrong["a run that was cut short is judged"] += MOST_WRONG + 1
        print(
            f"{number:02} {result['kind']}{', cut short' if result['cut'] else ''}: {outcome}{' (WRONG)' if false else ''}; gain {result['verdict']['gain_over_control']:+.3f}, "
            f"true {result['gain']:+.3f} [{low:+.3f}, {high:+.3f}]; {'; '.join(each['reason'] for each in result['verdict']['missing'])}"
        )
    return report([f"{name}: {number} wrong" for name, number in wrong.items() if number > MOST_WRONG])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["simulated", "trained"])
    parser.add_argument("--count", type=int)
    parser.add_argument("--seed", type=int, default=1, help="of simulated")
    options = parser.parse_args()
    if options.part == "trained":
        return trained(options.count or 40)
    return simulated(options.count or 1000, options.seed)


if __name__ == "__main__":
    sys.exit(main())
