"""Training of one stage by a near-stock transformers.Trainer: data order, denominators, save and resume."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PrinterCallback, TrainerCallback, TrainerState, TrainingArguments
from transformers import Trainer as HFTrainer
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from kdcli import processes
from kdcli.config.schema import Rollout
from kdcli.config.schema import Trainer as TrainerConfig
from kdcli.errors import ConfigError, KDError
from kdcli.files import flush, read_json, replaced
from kdcli.generation import seed_of
from kdcli.model_files import write_sums
from kdcli.models.checkpoint import fast_bf16
from kdcli.tasks.base import Predictions, Task
from kdcli.training.batches import LengthBuckets, micro_batches
from kdcli.training.job import TrainJob
from kdcli.training.resume import (
    REMEDY,
    STATE,
    WEIGHTS,
    TrainState,
    checkpoint_folder,
    encode_text,
    last_checkpoint,
    raw_bytes,
    restoring,
    rewind,
)

SHORT = 128
"""Up to so many tokens a row, attention that keeps its matrix trains faster on a CPU than the fused one, whose backward
pass takes twice as long there (0.76 of a student's step, 0.7 of MiniLM's, without dropout)."""


def require_trackers(cfg: TrainerConfig) -> None:
    """Refuse trackers that transformers does not know, or whose package is missing.

    Raises:
        ConfigError
    """
    try:
        for tracker in get_reporting_integration_callbacks(cfg.report_to):
            tracker()
    except (ValueError, RuntimeError, ImportError) as error:
        raise ConfigError(f"trainer.report_to = {cfg.report_to}: {error}") from None


def train(stage: TrainJob) -> None:
    """Train until the stage's directory is there, from its last whole checkpoint if it has one.

    Raises:
        KDError: the loss is not finite, or the disk is full.
    """
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    cfg = stage.cfg
    micro, accumulate = micro_batches(cfg, world)
    cuda = torch.cuda.is_available()
    stage.folder.mkdir(parents=True, exist_ok=True)
    checkpoint = last_checkpoint(stage)
    arguments = TrainingArguments(
        output_dir=str(stage.folder),
        max_steps=stage.steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulate,
        learning_rate=cfg.learning_rate,
        lr_scheduler_type="constant_with_warmup" if cfg.schedule == "constant" else cfg.schedule,
        warmup_steps=round(cfg.warmup * stage.steps),
        weight_decay=cfg.weight_decay,
        max_grad_norm=cfg.max_grad_norm,
        bf16=fast_bf16(cfg.precision),
        use_cpu=not cuda,
        ddp_backend=None if cuda or world == 1 else "gloo",
        seed=stage.seed,
        eval_strategy="steps",
        eval_steps=stage.eval_steps,
        save_strategy="steps",
        save_steps=stage.eval_steps,
        metric_for_best_model="score",
        greater_is_better=True,
        logging_steps=cfg.logging_steps,
        logging_nan_inf_filter=False,
        report_to=cfg.report_to or "none",
        run_name=f"kdcli-{stage.name}",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=cuda,
        ddp_find_unused_parameters=all(
            loss.features for loss in stage.distiller.losses.values()
        ),  # the head's
    )
    arguments._n_gpu = min(
        1, arguments.n_gpu
    )  # several GPUs are used by several processes, never by DataParallel
    for name, parameter in stage.distiller.named_parameters():
        name = name.replace(".parametrizations.weight.original", ".weight")  # if it is trained rounded
        if any(part in name for part in cfg.freeze):
            parameter.requires_grad_(False)
    for module in stage.distiller.student.modules():
        if "Sinusoidal" in type(module).__name__:  # parameters of Marian that no gradient reaches
            module.requires_grad_(False)
    if cfg.dropout is not None:
        _set_dropout(stage.distiller.student, cfg.dropout)
    with _trackers(stage), processes.deferred(possible=world == 1) as asked:
        trainer = _Trainer(stage, arguments, asked)
        if trainer.is_world_process_zero():
            rewind(stage, checkpoint)
        if checkpoint == checkpoint_folder(stage, stage.steps):
            trainer.restore(checkpoint)
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if cfg.keep == "best" and (best := trainer.state.best_global_step):
            load_model(stage.distiller, str(checkpoint_folder(stage, best) / WEIGHTS))
    trainer.accelerator.wait_for_everyone()  # the best checkpoint, which goes, is read by each process
    if trainer.is_world_process_zero():
        stage.finish(stage.distiller.student)
        stage.distiller.task.prepare_for_saving(stage.distiller.student, stage.tokenizer, stage.max_length)
        with replaced(stage.out) as temporary:
            stage.distiller.student.save_pretrained(temporary)
            stage.tokenizer.save_pretrained(temporary)
            write_sums(temporary)
        shutil.rmtree(stage.folder, ignore_errors=True)


@contextmanager
def _trackers(stage: TrainJob) -> Iterator[None]:
    """Each stage is a run of its own to the trackers, and TensorBoard's files outlive the stage's checkpoints."""
    name = "TENSORBOARD_LOGGING_DIR"
    given = os.environ.get(name)
    if given or stage.metrics is not None:
        folder = Path(given) if given else Path(str(stage.metrics)).parent / "tensorboard"
        os.environ[name] = str(folder / stage.name)
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if given:
            os.environ[name] = given
        for tracker, end in (("wandb", "finish"), ("mlflow", "end_run")):
            if tracker in stage.cfg.report_to:
                getattr(sys.modules[tracker], end)()


def _set_dropout(model: torch.nn.Module, share: float) -> None:
    """Dropout is a module in some architectures, and a number in an attribute in others (BART, Llama)."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = share
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, share)


class _Flow(TrainerCallback):
    """The last step is validated too, so that it can be the best; what is saved is logged first, so that a
    resumed stage logs the same lines; and the progress is shown. A signal ends the training after the checkpoint of the step
    that it came in.

    Args:
        saved: called after each checkpoint.
        asked: whether a signal came.
    """

    def __init__(self, show: Callable[[int], None], saved: Callable[[], None], asked: Callable[[], bool]):
        self.show, self.saved, self.asked = show, saved, asked

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.show(state.global_step)
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_save = True
        control.should_save |= self.asked()
        control.should_log |= control.should_save

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.saved()
        processes.obey()


class _Trainer(HFTrainer):
    """The stock Trainer, but for: the sampler, the denominators, validation, and what a checkpoint holds."""

    def __init__(self, stage: TrainJob, arguments: TrainingArguments, asked: Callable[[], bool]):
        self.stage = stage
        self.task: Task = stage.distiller.task
        self.sums = torch.zeros(len(stage.distiller.names))
        self.tokens, self.since = 0, time.perf_counter()
        self.lengths = stage.train.encoded.lengths
        self.last: dict[str, float] = {}
        super().__init__(
            model=stage.distiller,
            args=arguments,
            train_dataset=stage.train.encoded,
            eval_dataset=stage.validation.encoded,
            data_collator=lambda features: self.task.collate(features, stage.tokenizer),
            callbacks=[_Flow(lambda step: stage.progress.update(step, self.last), stage.saved, asked)],
        )
        self.remove_callback(PrinterCallback)
        self.sums = self.sums.to(self.args.device)

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthBuckets:
        return LengthBuckets(self.stage.train.encoded.lengths, self.stage.cfg.batch_size, self.stage.seed)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro-batches of one step with the teacher's signals, and how many positions each term counts."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        counts = torch.zeros(len(self.stage.distiller.names), device=device)
        for batch in batches:
            raw = raw_bytes(self.stage.train, batch["rows"]) if self.stage.teacher is not None else []
            if self.stage.rollout is not None:
                raw = self._answer(batch, raw, self.stage.rollout)
            if self.stage.teacher is not None:
                batch["teacher"] = self.stage.teacher.outputs_with_features(
                    raw, self.stage.distiller.parts
                ).to(device)
            _, labels = self.task.positions(batch["labels"])
            counts += self.stage.distiller.counts(labels, batch.get("gold"), batch.get("teacher"))
            self.tokens += int(self.lengths[batch["rows"].cpu().numpy()].sum())
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts)
        return batches, counts

    def _answer(self, batch: dict[str, Any], raw: list[dict[str, Any]], how: Rollout) -> list[dict[str, Any]]:
        """Put the student's own answers into some rows of a batch; returns its rows as they are now.

        Which rows, and what is drawn, depends on (seed, row, step) alone: not on how a batch is shared by
        micro-batches and processes. What the student wrote is text to all who read it, as any completion is; where it was cut
        off, no end counts. A row keeps its completion where nothing of the student's counts.
        """
        stage, step = self.stage, self.state.global_step
        seeds = [seed_of(stage.seed, row["id"], step) for row in raw]
        own = [place for place, seed in enumerate(seeds) if seed % 10**6 < how.on_policy_fraction * 10**6]
        if own:
            with self.accelerator.autocast():
                replies = self.task.replies(
                    stage.distiller.student,
                    stage.tokenizer,
                    stage.train.rows.select(batch["rows"][own].tolist()),
                    stage.max_length,
                    max_new_tokens=how.max_new_tokens,
                    batch_size=how.batch_size,
                    temperature=how.sampling_temperature,
                    seeds=[seeds[place] for place in own],
                )
            answered = [
                self.task.with_completion(raw[place], text) | {"ends": whole}
                for place, (text, whole) in zip(own, replies, strict=True)
            ]
            encoded = self.task.encode(
                stage.tokenizer, datasets.Dataset.from_list(answered), stage.max_length
            )
            _, counts = self.task.targets(encoded)
            said = {place: number for number, place in enumerate(own) if counts[number]}
            raw = [
                answered[said[place]] if place in said else row | {"ends": True}
                for place, row in enumerate(raw)
            ]
            features = [stage.train.encoded[row] for row in batch["rows"].tolist()]
            for place, number in said.items():
                features[place] = encoded[number] | {"row": features[place]["row"]}
            own = list(said)
            made = self.task.collate(features, stage.tokenizer)
            batch |= {name: tensor.to(batch["rows"].device) for name, tensor in made.items()}
        dataset = torch.ones(len(raw), dtype=torch.bool, device=batch["labels"].device)
        dataset[own] = False
        batch["gold"] = dataset.repeat_interleave(self.task.counts(batch["labels"]))
        return raw

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """One forward and backward pass; a loss that is not finite stops the run before the weights take it."""
        rows = inputs.pop("rows").repeat_interleave(self.task.counts(inputs["labels"]))
        plain = not torch.cuda.is_available() and inputs["input_ids"].shape[1] <= SHORT
        with sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
            loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            self._not_finite(rows)
        return loss

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The stock loss; the terms are summed for the log on the way."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        self.sums += outputs["terms"]
        return loss

    def _not_finite(self, rows: torch.Tensor) -> None:
        """Say which term, and in which rows: `rows` holds each counted position's."""
        for name, values in self.stage.distiller.values.items():
            bad = (~torch.isfinite(values)).nonzero().flatten().tolist()
            if bad:
                places = (
                    bad if len(values) == len(rows) else range(len(rows))
                )  # a token's row is not known here
                of_rows = dict.fromkeys(int(rows[place]) for place in places)
                examples = self.stage.train.rows.select(list(of_rows)[:3])
                shown = "; ".join(f"{row['id']} {encode_text(row)[:60]!r}" for row in examples)
                raise KDError(
                    f"{self.stage.name}, step {self.state.global_step + 1}: the loss term {name} is not finite for "
                    f"{len(of_rows)} of {len(rows.unique())} examples: {shown}. The weights before this step are in the last "
                    "checkpoint; a lower learning rate or trainer.precision=fp32 often helps"
                )
        raise KDError(
            f"{self.stage.name}, step {self.state.global_step + 1}: the weighted loss is not finite"
        )

    @torch.no_grad()
    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Score and loss terms on the whole validation split, in every process alike."""
        stage, distiller = self.stage, self.stage.distiller
        distiller.eval()
        encoded = stage.validation.encoded
        order = np.argsort(encoded.lengths, kind="stable")
        answers: list[dict[str, torch.Tensor]] = []
        labels: list[torch.Tensor] = []
        rows_of: list[int] = []
        sums = torch.zeros(len(distiller.names), device=self.args.device)
        counts = torch.zeros_like(sums)
        size = 64 if self.task.labels else stage.cfg.micro_batch_size or stage.cfg.batch_size
        for start in range(0, len(order), size):
            batch = self.task.collate(
                [encoded[int(row)] for row in order[start : start + size]], stage.tokenizer
            )
            rows = batch.pop("rows")
            rows_of += self.task.counts(batch["labels"]).tolist()
            inputs = self._prepare_inputs(batch)
            flat = self.task.positions(inputs["labels"])[1]
            if stage.validation_teacher is not None:
                signal = stage.validation_teacher.signals(raw_bytes(stage.validation, rows))
                inputs["teacher"] = signal.to(self.args.device)
            told: Any = inputs.get("teacher")
            count = distiller.counts(flat, teacher=told)
            with self.accelerator.autocast():
                outputs = distiller(**inputs)
            answers.append({key: value.cpu() for key, value in outputs["answers"].items()})
            labels.append(flat.cpu())
            sums += outputs["terms"] * count
            counts += count
        terms = {
            name: float(total / count)
            for name, total, count in zip(distiller.names, sums, counts, strict=True)
            if count
        }
        said = Predictions(
            {key: torch.cat([part[key] for part in answers]).numpy() for key in answers[0]},
            torch.cat(labels).numpy(),
            np.asarray(rows_of),
        )
        with self.accelerator.autocast():
            said = self.task.completed(said, distiller.student, stage.tokenizer, encoded, stage.max_length)
        metrics = {"eval_score": self.task.scores(said)[self.task.metric]}
        metrics["eval_loss"] = sum(distiller.weights[name] * term for name, term in terms.items())
        metrics |= {f"eval_loss/{name}": term for name, term in terms.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """One line of metrics.jsonl, and the trackers."""
        names, weights = self.stage.distiller.names, self.stage.distiller.weights
        steps = self.state.global_step
        if "eval_score" in logs:
            self.stage.progress.update(steps, self.last, f"{self.task.metric} {logs['eval_score']:.3f}")
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
        if self.stage.metrics is not None and self.is_world_process_zero():
            entry = {"stage": self.stage.name, "step": steps, "epoch": self.state.epoch} | line
            with self.stage.metrics.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(entry) + "\n")

    _logged = 0

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """The hashes are written last, when all other files are on the disk; a checkpoint without them is not taken up. Then older ones
        are removed: two stay, the newest, and the best or else the one before.

        A full disk is an OSError to Python and a RuntimeError to torch.
        """
        stage, step = self.stage, self.state.global_step
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()  # each process writes its own random state
            if self.is_world_process_zero():
                if stage.metrics is not None:
                    flush(stage.metrics)
                flush(checkpoint_folder(stage, step))
                flush(stage.folder, deep=False)
                write_sums(checkpoint_folder(stage, step))
                self._remove_older(step)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise KDError(
                f"{self.stage.name}, step {self.state.global_step}: the checkpoint could not be written to {self.args.output_dir} ({error}). Free "
                "some space and start the same command on the same directory: it goes on from the checkpoint before"
            ) from error

    def _remove_older(self, step: int) -> None:
        best = self.state.best_global_step
        older = {
            int(path.name.rpartition("-")[2]): path
            for path in self.stage.folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        }
        del older[step]
        second = best if best in older else max(older, default=None)
        for number, path in older.items():
            if number != second:
                shutil.rmtree(path, ignore_errors=True)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with restoring(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with restoring(checkpoint):
            super()._load_rng_state(checkpoint)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The student and whatever its losses learn; tied weights once."""
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_model(self.stage.distiller, str(folder / WEIGHTS))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with restoring(resume_from_checkpoint):
            load_model(self.stage.distiller, str(Path(resume_from_checkpoint) / WEIGHTS))
        state = read_json(Path(resume_from_checkpoint) / STATE, TrainState, REMEDY)
        self._logged = state["global_step"]

    def restore(self, checkpoint: Path) -> None:
        """Take the state after the last step from its checkpoint: resumed from it, the stock Trainer would take one step more."""
        self.state = TrainerState.load_from_json(str(checkpoint / STATE))
        self.stage.progress.update(self.state.global_step, self.last)
        self._load_from_checkpoint(str(checkpoint))
