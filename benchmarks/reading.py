"""How long reading a data file takes: `python benchmarks/reading.py [CHECKOUT]`.

Writes a csv and a jsonl file of 100,000 rows (14 random words and one of 12 labels), and reads each in processes of one thread with
`kdcli.data.dataset.load`. Prints the user and system time of reading, without imports: medians, interleaved with those of another checkout if
one is given.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
READ = """
import json, sys, time
from kdcli.config.dataset import Dataset
from kdcli.data.dataset import load
path = sys.argv[1]
cfg = Dataset(format=path.rpartition(".")[2], path=path, text="text", label="label")
began = time.process_time()
data = load(cfg)
print(json.dumps([time.process_time() - began, {name: len(data[name]) for name in ("train", "validation", "test")}]))
"""
"""Reads a file, and prints the seconds and the number of rows of each split."""


def write(folder: Path, rows: int) -> list[Path]:
    """Write the two files."""
    source = random.Random(0)
    words = [
        "".join(source.choices("abcdefghijklmnopqrstuvwxyz", k=source.randint(2, 9))) for _ in range(5000)
    ]
    content = [
        {"text": " ".join(source.choices(words, k=14)), "label": f"topic {source.randrange(12)}"}
        for _ in range(rows)
    ]
    table, lines = folder / "rows.csv", folder / "rows.jsonl"
    with table.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, ["text", "label"])
        writer.writeheader()
        writer.writerows(content)
    lines.write_text("".join(f"{json.dumps(row)}\n" for row in content), encoding="utf-8")
    return [table, lines]


def seconds(checkout: Path, path: Path) -> float:
    """Return the time in which a checkout reads a file."""
    variables = {"PYTHONPATH": str(checkout), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path)],
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    took, rows = json.loads(done.stdout.splitlines()[-1])
    if not all(rows.values()):
        raise SystemExit(f"{checkout}: a split of {path.name} is empty ({rows})")
    return float(took)


def main() -> None:
    """Print a line for each file and checkout."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", nargs="?", type=Path, help="another checkout to compare with")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    checkouts = [ROOT, *([given.checkout.resolve()] if given.checkout else [])]
    with tempfile.TemporaryDirectory() as folder:
        for path in write(Path(folder), given.rows):
            times: dict[Path, list[float]] = {checkout: [] for checkout in checkouts}
            for _ in range(given.repeats):
                for checkout in checkouts:
                    times[checkout].append(seconds(checkout, path))
            medians = [statistics.median(each) for each in times.values()]
            ratio = f", beside {medians[1]:.2f} s: {medians[0] / medians[1]:.2f}" if len(medians) > 1 else ""
            print(f"{path.name}: {medians[0]:.2f} s{ratio}", flush=True)


if __name__ == "__main__":
    main()
