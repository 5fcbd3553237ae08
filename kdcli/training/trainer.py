"""Trains one model in one phase with a near-stock transformers.Trainer: data order, denominators, saving and resuming."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from safetensors.torch import save_file, save_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PrinterCallback, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from kdcli import processes
from kdcli.device import has_gpu
from kdcli.distributed import wait_for_everyone
from kdcli.errors import KDError
from kdcli.files import cache_dir, flush, read_json, replaced
from kdcli.generation import Reply, seed_of
from kdcli.model_files import write_sums
from kdcli.models.vocabulary import save_tokenizer
from kdcli.tasks.base import Predictions, Task
from kdcli.training.arguments import require_gradient_checkpointing, trainer_arguments
from kdcli.training.batches import LengthBuckets, TokenDropout
from kdcli.training.distiller import Distiller
from kdcli.training.job import TrainJob
from kdcli.training.length import Validation, validations
from kdcli.training.on_policy import OnPolicy
from kdcli.training.resume import (
    REMEDY,
    STATE,
    WEIGHTS,
    TrainState,
    checkpoint_folder,
    is_complete,
    last_checkpoint,
    raw_rows,
    restoring,
    rewind,
    row_text,
)
from kdcli.training.sharded_trainer import ShardedTrainer
from kdcli.training.sharding import skeleton
from kdcli.training.vllm import VLLM, generation_engine

SHORT = 128
"""Tokens a row up to which unfused attention trains faster on a CPU than fused attention, whose backward pass takes twice as long there
(0.76 of a student's step, 0.7 of MiniLM's, without dropout)."""


def training_attention(input_ids: torch.Tensor) -> AbstractContextManager[None]:
    """Return the attention of a training step on these rows, (B, L): unfused for short rows on a CPU."""
    short = not has_gpu() and input_ids.shape[1] <= SHORT
    return sdpa_kernel(SDPBackend.MATH) if short else nullcontext()


def train(job: TrainJob) -> None:
    """Train a model until its directory exists, from the last complete checkpoint if there is one.

    Raises:
        KDError: the loss is not finite, or the disk is full.
    """
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    job.folder.mkdir(parents=True, exist_ok=True)
    checkpoint = last_checkpoint(job)
    freeze(job.distiller, job.cfg.freeze)
    if job.cfg.dropout is not None:
        set_dropout(job.distiller.student, job.cfg.dropout)
    student = job.distiller.student
    if job.cfg.sharded_by:
        student = skeleton(student)
    if job.cfg.gradient_checkpointing:
        require_gradient_checkpointing(
            type(job.distiller.student), "trainer"
        )  # of code from a checkpoint's folder
        job.distiller.student.gradient_checkpointing_enable({"use_reentrant": False})
    if job.cfg.compile or job.cfg.optimizer.endswith("bit"):
        # torch keeps compiled code in a temporary folder, which would end with this run; the next run of the process would miss it
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir("compiled")))
    if job.cfg.compile:
        for layer in job.distiller.layers:
            layer.compile(backend=job.cfg.compile)
    arguments = trainer_arguments(job, world)
    dtype = torch.bfloat16 if arguments.bf16 else torch.float32
    with (
        _trackers(job),
        generation_engine(job, dtype) as engine,
        processes.deferred(possible=world == 1) as interrupted,
    ):
        trainer = _Trainer(job, arguments, interrupted, engine)
        if trainer.is_world_process_zero():
            rewind(job, checkpoint)
        if checkpoint is not None and is_complete(job, checkpoint):
            trainer.restore(checkpoint)
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if job.cfg.keep == "best" and (best := trainer.state.best_global_step):
            trainer.load_weights(checkpoint_folder(job, best))
        if job.cfg.sharded_by:
            student = trainer.gather_student(student)
    wait_for_everyone(PartialState())  # each process reads the best checkpoint before it is removed
    if trainer.is_world_process_zero():
        if job.cfg.gradient_checkpointing:
            student.gradient_checkpointing_disable()
        job.finish(student)
        job.calibrate(student)
        job.distiller.task.prepare_for_saving(student, job.tokenizer, job.max_length)
        with replaced(job.out) as temporary:
            student.save_pretrained(temporary)
            save_tokenizer(job.tokenizer, temporary)
            write_sums(temporary)
        shutil.rmtree(job.folder, ignore_errors=True)


def freeze(distiller: Distiller, names: Sequence[str]) -> None:
    """Exclude the parameters that trainer.freeze names from training, and those that no gradient reaches."""
    for name, parameter in distiller.named_parameters():
        name = name.replace(".parametrizations.weight.original", ".weight")  # of a quantization-aware phase
        if any(part in name for part in names):
            parameter.requires_grad_(False)
    for module in distiller.student.modules():
        if "Sinusoidal" in type(module).__name__:  # Marian's positions are parameters without a gradient
            module.requires_grad_(False)


@contextmanager
def _trackers(job: TrainJob) -> Iterator[None]:
    """Make each phase a run of its own for the trackers, and keep TensorBoard's files when the checkpoints are removed."""
    name = "TENSORBOARD_LOGGING_DIR"
    given = os.environ.get(name)
    if given or job.metrics is not None:
        folder = Path(given) if given else Path(str(job.metrics)).parent / "tensorboard"
        os.environ[name] = str(folder / job.name)
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if given:
            os.environ[name] = given
        for tracker, end in (("wandb", "finish"), ("mlflow", "end_run")):
            if tracker in job.cfg.report_to:
                getattr(sys.modules[tracker], end)()


def set_dropout(model: torch.nn.Module, probability: float) -> None:
    """Set every dropout probability: a module in some architectures, an attribute in others (BART, Llama)."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = probability
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, probability)


class _Flow(TrainerCallback):
    """Validates the last step too, so that it can be the best; logs before each checkpoint, so that a resumed training logs the same lines;
    and shows the progress. A signal ends the training after the checkpoint of the current step.

    Args:
        show: called with the step.
        total: returns the number of steps, as far as it is known.
        saved: called after each checkpoint.
        interrupted: whether a signal was received.
    """

    def __init__(
        self,
        show: Callable[[int], None],
        total: Callable[[], int],
        saved: Callable[[], None],
        interrupted: Callable[[], bool],
    ):
        self.show, self.total, self.saved, self.interrupted = show, total, saved, interrupted

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.show(state.global_step)
        if state.global_step >= self.total():
            control.should_evaluate = control.should_save = control.should_training_stop = True
        control.should_save |= self.interrupted()
        control.should_log |= control.should_save

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.saved()
        processes.obey()


class _Validated(NamedTuple):
    """What one validation batch gives: the sum and the number of the values of each term, (K,), what the scores need of the outputs and the labels at
    its counted positions, (N, …), and how many of these each row has."""

    sums: torch.Tensor
    counts: torch.Tensor
    outputs: dict[str, torch.Tensor]
    labels: torch.Tensor
    positions: np.ndarray


class _Trainer(ShardedTrainer):
    """The stock Trainer with another sampler, other denominators, another validation, and other checkpoint files."""

    def __init__(
        self,
        job: TrainJob,
        arguments: TrainingArguments,
        interrupted: Callable[[], bool],
        engine: VLLM | None,
    ):
        self.job, self.engine = job, engine
        self.task: Task = job.distiller.task
        self.sums = torch.zeros(len(job.distiller.names))
        self.tokens, self.since = 0, time.perf_counter()
        self.lengths = job.train.encoded.lengths
        self.token_dropout = TokenDropout(job.tokenizer, job.token_dropout)
        self.on_policy = None if job.rollout is None else OnPolicy(job, job.rollout, self._generate)
        self.last: dict[str, float] = {}
        self._curve: list[Validation] = []
        self._lines_read = 0
        super().__init__(
            model=job.distiller,
            args=arguments,
            train_dataset=job.train.encoded,
            eval_dataset=job.validation.encoded,
            data_collator=self._collate,
            callbacks=[_Flow(self._show, self._total, job.saved, interrupted)],
        )
        self.remove_callback(PrinterCallback)
        self.sums = self.sums.to(self.args.device)

    @property
    def curve(self) -> list[Validation]:
        """The validations so far. Each step needs them, and the log grows: it is read again only where it has grown."""
        lines = self.state.log_history
        if len(lines) != self._lines_read:
            self._curve, self._lines_read = validations(lines), len(lines)
        return self._curve

    def _show(self, step: int) -> None:
        self.job.progress.update(step, self.last, total=self._total())

    def _total(self) -> int:
        return self.job.length.total(self.curve)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Return the stock schedule of a training of fixed length; else one that follows the validations."""
        length = self.job.length
        if length.fixed:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            optimizer = optimizer or self.optimizer
            assert optimizer is not None
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda step: length.factor(step, self.curve)
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Return the stock optimizer; the word embeddings may have a learning rate of their own."""
        if self.optimizer is not None:
            return self.optimizer
        optimizer = super().create_optimizer(*args, **kwargs)
        factor = self.job.embedding_learning_rate_factor
        embeddings = self.job.distiller.student.get_input_embeddings().weight
        for group in [] if factor == 1 else list(optimizer.param_groups):
            if any(parameter is embeddings for parameter in group["params"]):
                own = {key: value for key, value in group.items() if key != "params"}
                group["params"] = [other for other in group["params"] if other is not embeddings]
                optimizer.add_param_group(own | {"params": [embeddings], "lr": factor * group["lr"]})
        return optimizer

    def _collate(self, features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the model's inputs, and the labels."""
        return self.task.collate(features, self.job.tokenizer) | self.task.soft_gold(features)

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthBuckets:
        return LengthBuckets(self.job.train.encoded.lengths, self.job.cfg.batch_size, self.job.seed)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Return the micro-batches of one step with the teacher's outputs, and how many positions each term counts, (K,)."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        if self.on_policy is not None:
            self.on_policy.write_ahead(self.state.global_step, self._total())
        counts = torch.zeros(len(self.job.distiller.names), device=device)
        for batch in batches:
            raw = raw_rows(self.job.train, batch["rows"]) if self.job.teacher is not None else []
            if self.on_policy is not None:
                raw = self.on_policy.replace(batch, raw, self.state.global_step)
            if self.job.teacher is not None:
                batch["teacher"] = self.job.teacher.outputs_with_features(raw, self.job.distiller.parts).to(
                    device
                )
            if self.job.token_dropout:
                seeds = [
                    seed_of(self.job.seed, "tokens", int(row), self.state.global_step)
                    for row in batch["rows"]
                ]
                batch["input_ids"] = self.token_dropout(batch["input_ids"], seeds)
            _, labels = self.task.positions(batch["labels"])
            counts += self.job.distiller.counts(labels, batch.get("gold"), batch.get("teacher"))
            self.tokens += int(self.lengths[batch["rows"].cpu().numpy()].sum())
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts)
        return batches, counts

    def _generate(self, rows: Sequence[int], seeds: Sequence[int]) -> list[Reply]:
        """Have the student generate after the prompts of training rows. All processes call it together, some perhaps without a row."""
        job, rollout, engine = self.job, self.job.rollout, self.engine
        assert rollout is not None
        if engine is not None and engine.step != self.state.global_step:
            weights = self.student_weights()
            if self.is_world_process_zero():
                engine.update(job.distiller.student, weights)
            wait_for_everyone(PartialState())
            engine.step = self.state.global_step

        def replies() -> list[Reply]:
            if not rows:
                return []
            with self.accelerator.autocast():
                return self.task.replies(
                    job.distiller.student,
                    job.tokenizer,
                    job.train.rows.select(rows),
                    job.max_length,
                    max_new_tokens=rollout.max_new_tokens,
                    batch_size=rollout.batch_size,
                    temperature=rollout.sampling_temperature,
                    seeds=seeds,
                    **({} if engine is None else {"generator": engine.generate}),
                )

        return self.with_weights(replies)

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Run one forward and backward pass. A loss that is not finite stops the run before the optimizer step."""
        rows = inputs.pop("rows").repeat_interleave(self.task.counts(inputs["labels"]))
        with training_attention(inputs["input_ids"]):
            loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            self._not_finite(rows)
        return loss

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the stock loss; the terms are summed for the log."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        self.sums += outputs["terms"]
        return loss

    def _not_finite(self, rows: torch.Tensor) -> None:
        """Raise an error that names the term and the rows.

        Args:
            rows: the row of each counted position, (N,).
        """
        for name, values in self.job.distiller.values.items():
            bad = (~torch.isfinite(values)).nonzero().flatten().tolist()
            if bad:
                # the rows of a term that runs over tokens or attention rows are not known here
                positions = bad if len(values) == len(rows) else range(len(rows))
                of_rows = dict.fromkeys(int(rows[position]) for position in positions)
                examples = self.job.train.rows.select(list(of_rows)[:3])
                shown = "; ".join(f"{row['id']} {row_text(row)[:60]!r}" for row in examples)
                raise KDError(
                    f"{self.job.name}, step {self.state.global_step + 1}: the loss term {name} is not finite for "
                    f"{len(of_rows)} of {len(rows.unique())} examples: {shown}. The weights before this step are in the last "
                    "checkpoint; a lower learning rate or trainer.precision=fp32 often helps"
                )
        raise KDError(f"{self.job.name}, step {self.state.global_step + 1}: the weighted loss is not finite")

    @torch.no_grad()
    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Compute the score and the loss terms on the whole validation split, of which each process runs a share."""
        job, distiller = self.job, self.job.distiller
        distiller.eval()
        encoded = job.validation.encoded
        order = np.argsort(encoded.lengths, kind="stable")
        size = 64 if self.task.labels else job.cfg.micro_batch_size or job.cfg.batch_size
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        parts = self._shared_out(batches)
        sums = torch.zeros(len(distiller.names))
        counts = torch.zeros_like(sums)
        for part in parts:
            sums += part.sums
            counts += part.counts
        terms = {
            name: float(total / count)
            for name, total, count in zip(distiller.names, sums, counts, strict=True)
            if count
        }
        predictions = Predictions(
            {key: torch.cat([part.outputs[key] for part in parts]).numpy() for key in parts[0].outputs},
            torch.cat([part.labels for part in parts]).numpy(),
            np.concatenate([part.positions for part in parts]),
        )
        if not all(np.isfinite(array).all() for array in predictions.arrays.values()):
            raise KDError(
                f"{job.name}, step {self.state.global_step}: its outputs on the validation rows are not finite; a lower trainer.learning_rate or "
                "trainer.precision=fp32 often helps"
            )
        with self.accelerator.autocast():
            predictions = self.with_weights(
                lambda: self.task.add_texts(
                    predictions, distiller.student, job.tokenizer, encoded, job.max_length
                )
            )
        metrics = {"eval_score": self.task.scores(predictions)[self.task.metric]}
        metrics["eval_loss"] = sum(distiller.weights[name] * term for name, term in terms.items())
        metrics |= {f"eval_loss/{name}": term for name, term in terms.items()}
        broadcast_object_list(shared := [metrics])  # all processes end at the same step
        metrics = shared[0]
        self.log(dict(metrics))
        metrics["eval_best"] = self.curve[-1].rank
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _shared_out(self, batches: Sequence[np.ndarray]) -> list[_Validated]:
        """Run validation batches, each in one process; returns the results of all in their order. With sharded weights all processes make
        the same number of forward passes, so some run the last batch once more."""
        rank, processes, last = self.args.process_index, self.args.world_size, len(batches) - 1
        own: list[tuple[int, _Validated]] = []
        for first in range(0, len(batches), processes):
            part = self._validate(batches[min(first + rank, last)])
            if first + rank <= last:
                own.append((first + rank, part))
        if processes > 1:
            wait_for_everyone(PartialState())
            own = sorted(gather_object(own), key=lambda part: part[0])
        return [part for _, part in own]

    def _validate(self, rows: np.ndarray) -> _Validated:
        """Run one batch of validation rows."""
        job, distiller = self.job, self.job.distiller
        batch = self._collate([job.validation.encoded[int(row)] for row in rows])
        raw = batch.pop("rows")
        positions = self.task.counts(batch["labels"])
        inputs = self._prepare_inputs(batch)
        labels = self.task.positions(inputs["labels"])[1]
        if job.validation_teacher is not None:
            signal = job.validation_teacher.signals(raw_rows(job.validation, raw))
            inputs["teacher"] = signal.to(self.args.device)
        counts = distiller.counts(labels, teacher=inputs.get("teacher"))  # type: ignore[arg-type]
        with self.accelerator.autocast():
            outputs = distiller(**inputs)
        predictions = {key: value.cpu() for key, value in outputs["predictions"].items()}
        return _Validated(
            (outputs["terms"] * counts).cpu(), counts.cpu(), predictions, labels.cpu(), np.asarray(positions)
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Append a line to metrics.jsonl, and log to the trackers."""
        names, weights = self.job.distiller.names, self.job.distiller.weights
        steps = self.state.global_step
        if "eval_score" in logs:
            self.job.progress.update(steps, self.last, f"{self.task.metric} {logs['eval_score']:.3f}")
            line = {key.replace("eval_", "eval/", 1): value for key, value in logs.items()}
        elif "loss" in logs:
            sums = self.sums if self.args.world_size == 1 else self.accelerator.reduce(self.sums)
            terms = dict(zip(names, (sums / max(1, steps - self._logged)).tolist(), strict=True))
            elapsed = time.perf_counter() - self.since
            speed = self.tokens * self.args.world_size / elapsed
            line = {
                "lr": logs.pop("learning_rate"),
                "grad_norm": logs.get("grad_norm", 0.0),
                "tokens_per_s": speed,
            }
            line["loss"] = sum(weights[name] * term for name, term in terms.items())
            line |= {f"loss/{name}": term for name, term in terms.items()}
            line |= {f"weighted/{name}": weights[name] * term for name, term in terms.items()}
            logs |= line
            self.last = terms
            self.sums.zero_()
            self.tokens, self.since, self._logged = 0, time.perf_counter(), steps
        else:
            return
        super().log(logs, start_time)
        if self.job.metrics is not None and self.is_world_process_zero():
            entry = {"stage": self.job.name, "step": steps, "epoch": self.state.epoch} | line
            with self.job.metrics.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(entry) + "\n")

    _logged = 0

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint. Its hashes are written last, when all other files are on the disk: a checkpoint without them is not resumed from.

        Then older checkpoints are removed but for the best one, or else the one before.

        Raises:
            KDError: the disk is full, which is an OSError in Python and a RuntimeError in torch.
        """
        job, step = self.job, self.state.global_step
        if not job.length.fixed and job.length.stable_until(self.curve) == step:
            self._go_back(job.length.decays_from(self.curve))
        try:
            super()._save_checkpoint(model, trial)
            wait_for_everyone(PartialState())  # each process writes its own random state
            if self.is_world_process_zero():
                if job.metrics is not None:
                    flush(job.metrics)
                if self.on_policy is not None:
                    self.on_policy.save(checkpoint_folder(job, step), step)
                flush(checkpoint_folder(job, step))
                flush(job.folder, deep=False)
                write_sums(checkpoint_folder(job, step))
                self._remove_older(step)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise KDError(
                f"{self.job.name}, step {self.state.global_step}: the checkpoint could not be written to {self.args.output_dir} ({error}). Free "
                "some space and start the same command on the same directory: it goes on from the checkpoint before"
            ) from error

    def _go_back(self, step: int | None) -> None:
        """Load the weights and the optimizer's state of an earlier checkpoint. The data order, the step and the learning rate continue."""
        if step is None or step == self.state.global_step:
            return
        optimizer, scheduler = self.optimizer, self.lr_scheduler
        assert optimizer is not None
        assert scheduler is not None
        folder, schedule = checkpoint_folder(self.job, step), scheduler.state_dict()
        self.load_weights(folder)
        self._load_optimizer_and_scheduler(str(folder))
        scheduler.load_state_dict(schedule)
        for group, rate in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
            group["lr"] = rate

    def _remove_older(self, step: int) -> None:
        """Remove all checkpoints but that of a step, and the best one or else the newest before it."""
        best = self.state.best_global_step
        older = {
            int(path.name.rpartition("-")[2]): path
            for path in self.job.folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        }
        del older[step]
        second = best if best in older else max(older, default=None)
        for number, path in older.items():
            if number != second:
                shutil.rmtree(path, ignore_errors=True)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with restoring(checkpoint):
            super()._load_rng_state(checkpoint)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save the student and the parameters of its losses, tied weights once. Of a student with a quantized base only what is trained."""
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        if self.job.distiller.has_quantized_weights:
            save_file(self.job.distiller.trained_weights, str(folder / WEIGHTS))
        else:
            save_model(self.job.distiller, str(folder / WEIGHTS))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.load_weights(Path(resume_from_checkpoint))
        if self.on_policy is not None:
            self.on_policy.load(Path(resume_from_checkpoint))
        state = read_json(Path(resume_from_checkpoint) / STATE, TrainState, REMEDY)
        self._logged = state["global_step"]

    def restore(self, checkpoint: Path) -> None:
        """Load the state after the last step from its checkpoint. The stock Trainer would take one step more if it resumed from it."""
        self.state = TrainerState.load_from_json(str(checkpoint / STATE))
        self.job.progress.update(self.state.global_step, self.last)
        self.job.saved()  # the process before may have ended between the checkpoint and this call
        self.shard()
        self._load_from_checkpoint(str(checkpoint))
