"""The memory of a student of 300 million parameters that is trained by two processes: `python benchmarks/sharded.py [fsdp zero1 zero2 zero3]`.

Each training has two steps of random tokens (a batch of 2 x 256) in processes of their own, on gloo where there is no GPU; the peak is what a process
holds beyond its imports.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
SHAPE = {"hidden_size": 1280, "intermediate_size": 3456, "num_hidden_layers": 14, "num_attention_heads": 20, "num_key_value_heads": 10,
         "vocab_size": 32_000, "tie_word_embeddings": True}  # fmt: skip
BATCH, LENGTH = 2, 256


def trainer(name: str, folder: Path) -> dict[str, Any]:
    """Return the keys of a trainer that divides the model in this way."""
    if name == "fsdp":
        return {"fsdp": "full_shard"}
    if name.startswith("zero"):
        file = folder / "deepspeed.json"
        zero = {"stage": int(name[-1]), "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto",
                "stage3_param_persistence_threshold": "auto"}  # fmt: skip
        file.write_text(json.dumps({"zero_optimization": zero}))
        return {"deepspeed": str(file)}
    return {}


def measure(name: str, folder: Path) -> None:
    """Train in this process, and write the planned and the measured peak."""
    from accelerate import PartialState
    from support.peaks import FIRST, Case, peaks
    from transformers import LlamaConfig, LlamaForCausalLM

    world = int(os.environ["WORLD_SIZE"])
    PartialState(cpu=True)
    if world == 1:
        peaks(FIRST)
    case = Case(
        lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)), BATCH, LENGTH, trainer(name, folder), is_decoder=True
    )
    planned, measured = peaks(case, world)
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps([planned, measured]))


def run(name: str) -> tuple[int, int]:
    """Return the planned and the measured peak of the larger process."""
    world = 1 if name == "one" else 2
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
        environment = os.environ | {
            "WORLD_SIZE": str(world),
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        free.close()
        started = [
            subprocess.Popen(
                [sys.executable, __file__, "--measure", name, folder],
                env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(world)
        ]
        codes = [process.wait() for process in started]
        if any(codes):
            sys.exit(f"{name}: a process failed")
        figures = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(world)]
        return tuple(max(column) for column in zip(*figures, strict=True))  # type: ignore[return-value]


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2], Path(sys.argv[3]))
        return
    _, alone = run("one")
    print(f"sharded: one process: {alone / 1e9:.2f} GB", flush=True)
    for name in sys.argv[1:] or ["fsdp", "zero1", "zero2", "zero3"]:
        planned, measured = run(name)
        print(f"sharded: {name}, each of two processes: {measured / 1e9:.2f} GB, {measured / alone:.2f} of one (planned {planned / 1e9:.2f} GB)",
              flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
