"""The figures that need a GPU: `python benchmarks/gpu.py [head offline on_policy]`, by default all; under ten minutes on one GPU.

`head`: the loss of a language model from hidden states and output heads, with its backward pass (8,192 positions x 4,096 x 151,936;
generalised JSD with beta = 0.5). kdcli's chunked head is compared with TRL's ChunkedDivergenceFunction, and with Liger's fused linear
JSD in PyTorch and (on a GPU) in Triton. The loss and the norm of the gradients show that all compute the same. Memory is the peak beyond
the hidden states and the heads.

`offline`: a whole training step on given completions, against TRL's GKDTrainer at lmbda = 0. `on_policy`: a whole step that generates the
completions, against TRL's DistillationTrainer (beta = 1: reverse KL). The models are random, of the sizes of Qwen3-1.7B and Qwen3-0.6B,
so nothing is downloaded; the student has fp32 weights and bf16 autocast, the teacher bf16 weights. Memory is the peak of the process.

TRL and Liger are no dependencies: put them in a folder of their own. A method whose package is missing says so, and so does one that runs
out of memory.

    pip install --no-deps --target /tmp/others trl==1.16.0 liger-kernel==0.8.5
    PYTHONPATH=/tmp/others python benchmarks/gpu.py > table.md

Each run of a method is a process of its own; the methods take turns. A time is the median step of a run but its first ones, and a figure
the median of the turns; a ratio is kdcli's time or memory divided by the other's, the median of each turn's ratio. `--device cpu` runs
the same at tiny sizes, to try the script where there is no GPU; every size is also an option.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        positions, hidden, vocabulary: of the loss head; the vocabulary also of the models.
        teacher, student: the hidden size of each model.
        layers: of both models.
        batch, length: rows of a training step and their tokens, of which 60 % are the completion.
        prompts, written: rows of an on-policy step, and the tokens that are generated for each.
        steps, warm: of each run, and how many of them are left out of the median.
        turns: runs of each method.
        chunk: logits that kdcli's loss head computes at once; 0: as many as it chooses.
    """

    positions: int = 8192
    hidden: int = 4096
    vocabulary: int = 151_936
    teacher: int = 2048
    student: int = 1024
    layers: int = 28
    batch: int = 8
    length: int = 1024
    prompts: int = 8
    written: int = 64
    steps: int = 8
    warm: int = 3
    turns: int = 2
    chunk: int = 0


TINY = Sizes(positions=256, hidden=32, vocabulary=2048, teacher=64, student=32, layers=2, batch=2, length=64, prompts=2,
             written=8, steps=3, warm=1, turns=1)  # fmt: skip
KDCLI = "kdcli"
METHODS = {
    "head": {KDCLI: None, "TRL ChunkedDivergenceFunction": "trl", "Liger LigerFusedLinearJSDLoss (torch)": "liger_kernel",
             "Liger LigerFusedLinearJSD (Triton)": "liger_kernel"},
    "offline": {KDCLI: None, "TRL GKDTrainer": "trl"},
    "on_policy": {KDCLI: None, "TRL DistillationTrainer": "trl"},
}  # fmt: skip
"""The methods of each part, and the package that one needs."""
PRECISIONS = ("bf16 weights", "fp32 weights, bf16 autocast")
PACKAGES = ("kdcli", "torch", "transformers", "accelerate", "triton", "trl", "liger-kernel")
SEED = 0
TOLERANCE = 0.02
"""The relative difference from kdcli's loss and gradients up to which another method computes the same in bf16."""


# ---- what the parent does ----------------------------------------------------------------------------


def measure(part: str, device: str, sizes: Sizes) -> list[str]:
    """Return the lines of one part's table."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in METHODS[part]}
    with tempfile.TemporaryDirectory() as folder:
        if part != "head":
            child("prepare", "", device, sizes, folder)
        for turn in range(sizes.turns):
            for name in list(runs) if turn % 2 == 0 else list(runs)[::-1]:
                runs[name].append(child(part, name, device, sizes, folder))
                print(f"{part}, turn {turn + 1}: {name}: {runs[name][-1]}", file=sys.stderr, flush=True)
    lines = []
    for row in runs[KDCLI][0] if "failed" not in runs[KDCLI][0] else [""]:
        for name, results in runs.items():
            cells = result_cells(
                [run.get(row, run) for run in results], [run.get(row, run) for run in runs[KDCLI]]
            )
            lines.append(f"| {part} | {row} | {name} | {' | '.join(cells)} |")
    return lines


def result_cells(results: list[dict[str, Any]], own: list[dict[str, Any]]) -> list[str]:
    """Return the cells of one method: time, kdcli's time as a share of it, memory, the same of the memory, and what it computed."""
    if failed := next((run["failed"] for run in results if "failed" in run), None):
        return [failed, "", "", "", ""]
    cells = []
    for key, unit in (("seconds", "{:.4g} s"), ("memory", "{:.2f} GB")):
        cells.append(unit.format(statistics.median(run[key] for run in results)))
        pairs = [(run[key], one[key]) for run, one in zip(results, own, strict=True) if key in one]
        cells.append(f"{statistics.median(one / other for other, one in pairs):.2f}" if pairs else "")
    values = {key: results[0][key] for key in ("loss", "gradients") if key in results[0]}
    same = all(
        abs(value - own[0].get(key, value)) <= TOLERANCE * abs(own[0].get(key, value))
        for key, value in values.items()
    )
    shown = ", ".join(f"{key} {value:.5g}" for key, value in values.items())
    return [*cells, shown if same else f"{shown} (another result than kdcli's)"]


def child(part: str, name: str, device: str, sizes: Sizes, folder: str) -> dict[str, Any]:
    """Run one method in a process of its own, which prints its result as JSON in its last line."""
    package = METHODS.get(part, {}).get(name)
    if package and importlib.util.find_spec(package) is None:
        return {"failed": "not installed"}
    if "Triton" in name and device == "cpu":
        return {"failed": "needs a GPU"}
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}  # fmt: skip
    environment["CUDA_VISIBLE_DEVICES"] = (
        "" if device == "cpu" else os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    )
    words = [part, name, device, json.dumps(asdict(sizes)), folder]
    done = subprocess.run(
        [sys.executable, __file__, "--child", *words], env=environment, text=True, capture_output=True
    )
    if done.returncode == 0:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    if "OutOfMemoryError" in done.stderr:
        return {"failed": "out of memory"}
    print(done.stderr[-3000:], file=sys.stderr)
    return {"failed": f"failed: {done.stderr.strip().splitlines()[-1]}" if done.stderr.strip() else "failed"}


def device_name(device: str) -> str:
    """Return the name of the device, and its memory."""
    import torch

    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return f"CPU, {torch.get_num_threads()} threads"


def version(package: str) -> str:
    """Return the version of a package, or that there is none."""
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} not installed"


# ---- what a process of its own does ------------------------------------------------------------------


class Meter:
    """Times the steps of a run and reads its peak memory, of the GPU or of the process."""

    def __init__(self, device: str):
        self.device = device
        self.ticks: list[float] = []
        self.before = 0

    def restart(self) -> None:
        """Begin anew; `peak` counts from what is allocated now."""
        import torch

        from kdcli.memory import restart_peak

        self.ticks.clear()
        if self.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            self.before = restart_peak() or 0

    def tick(self) -> None:
        """Note that a step ended."""
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()
        self.ticks.append(time.perf_counter())

    def peak(self) -> float:
        """Return the peak memory in GB: beyond what was allocated at `restart`, if it was called."""
        import torch

        from kdcli.memory import peak_memory

        peak = torch.cuda.max_memory_allocated() if self.device == "cuda" else peak_memory() or 0
        return (peak - self.before) / 1e9

    def result(self, warm: int) -> dict[str, float]:
        """Return the median seconds of a step, and the peak memory."""
        steps = [after - before for before, after in zip(self.ticks, self.ticks[1:], strict=False)]
        return {"seconds": statistics.median(steps[warm:]), "memory": self.peak()}


def head(name: str, device: str, sizes: Sizes, folder: str) -> dict[str, dict[str, float]]:
    """One loss head in both precisions."""
    from kdcli import signals

    if sizes.chunk:
        signals.CHUNK, signals.GPU_FACTOR = sizes.chunk, 1
    return {precision: _head(name, device, sizes, precision) for precision in PRECISIONS}


def _head(name: str, device: str, sizes: Sizes, precision: str) -> dict[str, float]:
    import torch

    torch.manual_seed(SEED)
    dtype = torch.bfloat16 if precision == PRECISIONS[0] else torch.float32
    shapes = [(sizes.positions, sizes.hidden), (sizes.vocabulary, sizes.hidden)]
    # logits with a standard deviation of 2, which those of language models have
    student = [torch.randn(shape, device=device).to(dtype) for shape in shapes]
    teacher = [torch.randn(shape, device=device).to(dtype) for shape in shapes]
    for hidden, weight in (student, teacher):
        weight.mul_(2 * sizes.hidden**-0.5)
        hidden.requires_grad_(hidden is student[0])
        weight.requires_grad_(weight is student[1])
    loss_of = HEADS[name]
    meter = Meter(device)
    loss = torch.zeros(())
    for step in range(sizes.steps + 1):
        if step == 1:
            meter.restart()
        if step >= 1:
            meter.tick()
        for tensor in student:
            tensor.grad = None
        with torch.autocast(device, torch.bfloat16) if precision == PRECISIONS[1] else nullcontext():
            loss = loss_of(*student, *teacher)
        loss.backward()
    meter.tick()
    norms = [float(tensor.grad.float().norm()) for tensor in student if tensor.grad is not None]
    return meter.result(sizes.warm) | {"loss": float(loss.detach()), "gradients": sum(norms)}


def _kdcli_head(hidden: Any, weight: Any, teacher_hidden: Any, teacher_weight: Any) -> Any:
    from kdcli.losses.jsd import JSD
    from kdcli.signals import Head, HiddenSignal
    from kdcli.training.distiller import by_chunks

    loss, count = JSD(), len(hidden)
    teacher = HiddenSignal(teacher_hidden, Head(teacher_weight))
    return by_chunks(
        HiddenSignal(hidden, Head(weight)),
        teacher.rows,
        lambda outputs, of_teacher, at: loss(outputs, of_teacher, None).sum() / count,
        [],
    )


def _trl_head(hidden: Any, weight: Any, teacher_hidden: Any, teacher_weight: Any) -> Any:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    each, _ = ChunkedDivergenceFunction.apply(hidden, weight, None, teacher_hidden, teacher_weight, None, 0.5)
    return each.mean()


def _liger_torch_head(hidden: Any, weight: Any, teacher_hidden: Any, teacher_weight: Any) -> Any:
    import torch
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    labels = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
    loss = LigerFusedLinearJSDLoss(0.0, 1.0, compiled=hidden.is_cuda)
    return loss(hidden, weight, teacher_hidden, teacher_weight, labels)


def _liger_triton_head(hidden: Any, weight: Any, teacher_hidden: Any, teacher_weight: Any) -> Any:
    from liger_kernel.transformers import LigerFusedLinearJSD

    return LigerFusedLinearJSD(jsd_beta=0.5)(hidden, weight, teacher_hidden, teacher_weight)


HEADS: dict[str, Callable[..., Any]] = dict(
    zip(METHODS["head"], (_kdcli_head, _trl_head, _liger_torch_head, _liger_triton_head), strict=True)
)


def prepare(name: str, device: str, sizes: Sizes, folder: str) -> dict[str, Any]:
    """Write random models and rows of random words: a word is a token."""
    import datasets
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    vocabulary = {"<end>": 0} | {f"w{token}": token for token in range(1, sizes.vocabulary)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", pad_token="<end>")
    for model, width, dtype in (("teacher", sizes.teacher, torch.bfloat16), ("student", sizes.student, torch.float32)):  # fmt: skip
        heads = max(2, min(16, width // 64))
        config = Qwen3Config(
            vocab_size=sizes.vocabulary, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=sizes.layers,
            num_attention_heads=heads, num_key_value_heads=heads // 2, head_dim=min(128, 2 * width // heads),
            max_position_embeddings=4 * sizes.length, tie_word_embeddings=True, bos_token_id=None, eos_token_id=0, pad_token_id=0,
        )  # fmt: skip
        torch.manual_seed(SEED)
        with torch.device(device):
            Qwen3ForCausalLM(config).to(dtype).save_pretrained(f"{folder}/{model}")
        tokenizer.save_pretrained(f"{folder}/{model}")
    draw = torch.Generator().manual_seed(SEED)
    count = max(sizes.batch, sizes.prompts) * sizes.steps
    tokens = torch.randint(1, sizes.vocabulary, (count, sizes.length - 1), generator=draw)
    prompt = int(0.4 * sizes.length)
    texts = [[f"w{token}" for token in row] for row in tokens.tolist()]
    rows = [
        {"id": f"{index:032x}", "prompt": " ".join(words[:prompt]), "completion": " " + " ".join(words[prompt:])}
        for index, words in enumerate(texts)
    ]  # fmt: skip
    datasets.Dataset.from_list(rows).to_parquet(f"{folder}/rows.parquet")
    return {}


def offline(name: str, device: str, sizes: Sizes, folder: str) -> dict[str, dict[str, float]]:
    """A training on given completions; a JSD of beta = 0.5 at temperature 1."""
    meter = Meter(device)
    if name == KDCLI:
        _train_kdcli(meter, sizes, Path(folder), None)
    else:
        _train_gkd(meter, device, sizes, Path(folder))
    return {f"{sizes.batch} x {sizes.length}, JSD": meter.result(sizes.warm)}


def on_policy(name: str, device: str, sizes: Sizes, folder: str) -> dict[str, dict[str, float]]:
    """A training on the student's own completions with the reverse KL at temperature 1."""
    from kdcli.config.rollout import Rollout

    meter = Meter(device)
    if name == KDCLI:
        rollout = Rollout(
            source="student", on_policy_fraction=1, max_new_tokens=sizes.written, batch_size=sizes.prompts
        )
        _train_kdcli(meter, sizes, Path(folder), rollout)
    else:
        _train_on_policy_trl(meter, device, sizes, Path(folder))
    return {f"{sizes.prompts} prompts, {sizes.written} tokens, reverse KL": meter.result(sizes.warm)}


def _train_kdcli(meter: Meter, sizes: Sizes, folder: Path, rollout: Any) -> None:
    """`kdcli.training.trainer.train` of a phase, as `kdcli distill` calls it, with the teacher in every step."""
    import datasets

    from kdcli.config.trainer import Trainer as TrainerConfig
    from kdcli.losses.jsd import JSD
    from kdcli.losses.reverse_kl import ReverseKL
    from kdcli.models.checkpoint import Checkpoint, load_complete, load_tokenizer
    from kdcli.tasks.base import Split
    from kdcli.tasks.causal_lm.task import CausalLM
    from kdcli.teachers.local import LocalTeacher
    from kdcli.training.distiller import Distiller
    from kdcli.training.job import TrainJob
    from kdcli.training.length import Length
    from kdcli.training.trainer import train

    class Clock:
        def update(self, step: int, terms: Any = None, extra: str = "", total: int | None = None) -> None:
            if not extra:
                meter.tick()

    task, batch = CausalLM(), sizes.batch if rollout is None else sizes.prompts
    rows = datasets.Dataset.from_parquet(f"{folder}/rows.parquet")
    source = Checkpoint(folder / "student", "the student")
    student = load_complete(source, task)
    tokenizer = load_tokenizer(source, student)
    teacher = LocalTeacher(batch)
    teacher.open(Checkpoint(folder / "teacher", "the teacher", dtype="bf16"), task, sizes.length, "bf16")
    cfg = TrainerConfig(batch_size=batch, max_steps=sizes.steps, learning_rate=1e-4, precision="bf16", keep="last", logging_steps=1000)  # fmt: skip
    splits = [
        Split(part, task.encode(tokenizer, part, sizes.length)) for part in (rows, rows.select(range(1)))
    ]
    with tempfile.TemporaryDirectory() as out:
        train(TrainJob(
            name="student", folder=Path(out) / "stage", out=Path(out) / "out",
            distiller=Distiller(student, task, {"soft": JSD() if rollout is None else ReverseKL()}, {"soft": 1.0}),
            tokenizer=tokenizer, train=splits[0], validation=splits[1], cfg=cfg, length=Length(sizes.steps), learning_rate=1e-4,
            eval_steps=sizes.steps, seed=SEED, progress=Clock(), max_length=sizes.length, teacher=teacher,
            validation_teacher=teacher, rollout=rollout,
        ))  # fmt: skip


def _stock(meter: Meter, device: str, sizes: Sizes, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What TRL's trainers are given: the models, a clock; and their arguments."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    class OnStep(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            meter.tick()

    models = {
        key: AutoModelForCausalLM.from_pretrained(folder / part, dtype=dtype)
        for key, part, dtype in (("model", "student", torch.float32), ("teacher_model", "teacher", torch.bfloat16))
    }  # fmt: skip
    given = models | {
        "processing_class": AutoTokenizer.from_pretrained(folder / "student"),
        "callbacks": [OnStep()],
    }
    arguments = {
        "output_dir": str(folder / "stock"), "max_steps": sizes.steps, "bf16": True, "learning_rate": 1e-4, "weight_decay": 0.01,
        "max_grad_norm": 1.0, "use_cpu": device == "cpu", "save_strategy": "no", "logging_steps": 1000, "report_to": "none",
        "disable_tqdm": True, "gradient_checkpointing": False, "temperature": 1.0,
    }  # fmt: skip
    return given, arguments


def _train_gkd(meter: Meter, device: str, sizes: Sizes, folder: Path) -> None:
    """TRL's generalised distillation on the same tokens."""
    import datasets
    import torch
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    from kdcli.tasks.causal_lm.task import CausalLM

    given, arguments = _stock(meter, device, sizes, folder)
    rows = datasets.Dataset.from_parquet(f"{folder}/rows.parquet")
    columns = CausalLM().encode(given["processing_class"], rows, sizes.length).columns
    table = datasets.Dataset.from_dict(
        {name: column.reshape(-1, sizes.length) for name, column in columns.items()}
    )

    def collate(features: Any) -> dict[str, torch.Tensor]:
        batch = {name: torch.tensor([feature[name] for feature in features]) for name in table.column_names}
        return batch | {"attention_mask": torch.ones_like(batch["input_ids"])}

    config = GKDConfig(**arguments, per_device_train_batch_size=sizes.batch, lmbda=0.0, beta=0.5)
    trainer = GKDTrainer(**given, args=config, train_dataset=table, data_collator=collate)
    trainer.log = lambda *args, **kwargs: None
    trainer.train()


def _train_on_policy_trl(meter: Meter, device: str, sizes: Sizes, folder: Path) -> None:
    """TRL's on-policy distillation on the same prompts."""
    import datasets
    from trl import DistillationConfig, DistillationTrainer

    given, arguments = _stock(meter, device, sizes, folder)
    rows = datasets.Dataset.from_parquet(f"{folder}/rows.parquet").select_columns(["prompt"])
    config = DistillationConfig(
        **arguments, per_device_train_batch_size=sizes.prompts, max_completion_length=sizes.written, beta=1.0
    )
    trainer = DistillationTrainer(**given, args=config, train_dataset=rows)
    trainer.log = lambda *args, **kwargs: None
    trainer.train()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*METHODS, []], help="default: all")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    for field in fields(Sizes):
        parser.add_argument(f"--{field.name}", type=int)
    options = vars(parser.parse_args())
    device, parts = options.pop("device"), options.pop("parts") or list(METHODS)
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU here; --device cpu runs the script at tiny sizes")
    sizes = Sizes(**asdict(Sizes() if device == "cuda" else TINY) | {key: size for key, size in options.items() if size})  # fmt: skip
    lines = [line for part in parts for line in measure(part, device, sizes)]
    print(f"`python {shlex.join(sys.argv)}` on {device_name(device)}; {', '.join(map(version, PACKAGES))}.\n")
    print(
        "| what | of | method | time | kdcli / this | memory | kdcli / this | computed |\n|---|---|---|---|---|---|---|---|"
    )
    print("\n".join(lines))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    if sys.argv[1:2] == ["--child"]:
        parts = {"head": head, "prepare": prepare, "offline": offline, "on_policy": on_policy}
        part, name, device, sizes, folder = sys.argv[2:]
        print(json.dumps(parts[part](name, device, Sizes(**json.loads(sizes)), folder)))
    else:
        main()
