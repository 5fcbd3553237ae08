"""Decides how long a model is trained: for a fixed number of steps, or until its validation curve stops improving.

Until convergence the learning rate is constant after its warm-up, and falls to 0 over the last steps (warmup-stable-decay, Hu et al. 2024,
https://arxiv.org/abs/2404.06395, section 4): the step at which it begins to fall need not be known in advance, so the length can follow the curve.
A training that has begun to overfit goes back to its best weights before the learning rate falls.
Everything here is a function of the config and of the validations so far. A training that continues from a checkpoint therefore ends
as one that was not interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from kdcli.config.tasks import TaskSpec
from kdcli.config.trainer import Trainer as TrainerConfig
from kdcli.config.types import MOST_STEPS
from kdcli.errors import ConfigError

SMOOTHED = 3
"""The number of validations whose mean is compared: a single one depends on the last batches."""
LOSS_TOLERANCE, SCORE_TOLERANCE = 0.005, 0.001
"""The least improvement that counts: of the loss as a share of it, of the score as a difference."""
SHORTEST, LONGEST = 50, 250
"""The bounds of the steps between two validations, if an epoch is shorter or longer."""
LAST_PART = 0.25
"""The share of the steps of a fixed length at its end. The curve is flat if the loss improves there by less than `REMAINING`."""
REMAINING = 0.02
"""The share of the loss below which an improvement over `LAST_PART` counts as flat."""
TIE = 1e-7
"""The weight of the validation loss, which decides between validations with the same score."""
FEWEST = 4
"""The least number of validations that show whether a curve is flat."""
Stopped = Literal["converged", "bound", "steps"]


class Validation(NamedTuple):
    """One validation during training."""

    step: int
    loss: float
    score: float

    @property
    def rank(self) -> float:
        """What orders validations: the score, and of equal scores the lower loss."""
        return self.score - TIE * self.loss


def validations(lines: Iterable[Mapping[str, Any]], prefix: str = "eval_") -> list[Validation]:
    """Return the validations among the lines of a log, in their order.

    Args:
        prefix: the prefix of the keys: `eval_` in the Trainer's log, `eval/` in metrics.jsonl.
    """
    loss, score = f"{prefix}loss", f"{prefix}score"
    return [Validation(line["step"], line[loss], line[score]) for line in lines if score in line]


@dataclass(frozen=True)
class Length:
    """The length and the learning-rate schedule of one training.

    Attributes:
        bound: the most optimizer steps; with `fixed`, their number.
        fixed: whether the training takes exactly `bound` steps.
        min_steps: the least number of steps.
        patience: the number of validations without an improvement after which the learning rate begins to fall.
        warmup: the number of steps over which the learning rate rises from 0.
        decay: the share of all steps over which the learning rate falls.
    """

    bound: int
    fixed: bool = True
    min_steps: int = 1
    patience: int = 1
    warmup: int = 0
    decay: float = 0.0

    @classmethod
    def of(cls, cfg: TrainerConfig, rows: int, task: TaskSpec, bound: int | None = None) -> Length:
        """Return the length of a training on so many rows.

        Args:
            bound: replaces the bound that the config and the rows give.

        Raises:
            ConfigError: there are more steps than are possible.
        """
        bound = planned_steps(cfg, rows, task) if bound is None else bound
        if cfg.is_fixed:
            return cls(bound, warmup=round(cfg.warmup * bound))
        min_steps = min(cfg.min_steps, bound)
        return cls(bound, False, min_steps, cfg.patience, round(cfg.warmup * min_steps), cfg.decay)

    @property
    def _latest(self) -> int:
        """The step at which the learning rate begins to fall at the latest."""
        return max(1, math.floor(self.bound * (1 - self.decay)))

    def stable_until(self, curve: Sequence[Validation]) -> int | None:
        """Return the step at which the learning rate begins to fall; None: the curve still improves."""
        best_loss, best_score, since = math.inf, -math.inf, 0
        for index, validation in enumerate(curve):
            window = curve[max(0, index + 1 - SMOOTHED) : index + 1]
            loss = sum(each.loss for each in window) / len(window)
            score = sum(each.score for each in window) / len(window)
            improved = (
                loss < best_loss - LOSS_TOLERANCE * abs(best_loss) or score > best_score + SCORE_TOLERANCE
            )
            since = 0 if improved or not index else since + 1
            if improved or not index:
                best_loss, best_score = min(best_loss, loss), max(best_score, score)
            enough = validation.step >= math.floor(self.min_steps * (1 - self.decay))
            if validation.step >= self._latest:
                return None
            if since >= self.patience and enough:
                return validation.step
        return None

    def decays_from(self, curve: Sequence[Validation]) -> int | None:
        """Return the step whose weights the decay starts from: that of the best validation, if both the loss and the score have become worse since,
        else the last step before. None: the curve still improves."""
        begin = self.stable_until(curve)
        if begin is None:
            return None
        stable = [each for each in curve if each.step <= begin]
        best = max(stable, key=lambda each: each.rank)
        return best.step if best.loss < stable[-1].loss else begin

    def total(self, curve: Sequence[Validation]) -> int:
        """Return the number of optimizer steps, as far as it is known after these validations: at most `bound`."""
        begin = None if self.fixed else self.stable_until(curve)
        source = self.decays_from(curve)
        if begin is None or source is None:
            return self.bound
        stable = max(source, self.min_steps * (1 - self.decay))
        return min(self.bound, begin + max(1, math.ceil(stable * self.decay / (1 - self.decay))))

    def factor(self, step: int, curve: Sequence[Validation]) -> float:
        """Return the learning rate of a step, counted from 0, as a share of `trainer.learning_rate`."""
        if step < self.warmup:
            return step / self.warmup
        begin, end = self.stable_until(curve), self.total(curve)
        begin = self._latest if begin is None else begin
        return 1.0 if step < begin else max(0.0, (end - step) / max(1, end - begin))

    def stopped(self, curve: Sequence[Validation]) -> Stopped:
        """Return why the training ended."""
        if self.fixed:
            return "steps"
        return "bound" if self.stable_until(curve) is None else "converged"

    def is_flat(self, curve: Sequence[Validation]) -> bool:
        """Return whether more steps promise no improvement: the training converged, its curve no longer improved, or the best validation came before
        its last part. With fewer than `FEWEST` validations this is unknown, and the curve counts as still improving."""
        if self.stopped(curve) == "converged":
            return True
        if len(curve) < FEWEST:
            return False
        begin = curve[-1].step * (1 - LAST_PART)
        before = [each for each in curve if each.step <= begin] or [curve[0]]
        after = [each for each in curve if each.step > begin]
        earlier = min(each.loss for each in before)
        improved = min(each.loss for each in after) < earlier - REMAINING * abs(earlier)
        better = max(each.score for each in after) > max(each.score for each in before) + SCORE_TOLERANCE
        return not (improved and better)


def planned_steps(cfg: TrainerConfig, rows: int, task: TaskSpec) -> int:
    """Return the number of optimizer steps for a number of rows, or the maximum number.

    Raises:
        ConfigError: there are more than `trainer.max_steps` may be.
    """
    epoch = rows // cfg.batch_size
    if cfg.max_steps:
        return cfg.max_steps
    most = cfg.max_epochs or task.max_epochs
    steps = max(1, math.ceil((cfg.epochs or most) * epoch))
    if cfg.epochs is None:
        steps = max(steps, cfg.min_steps)
    if steps > MOST_STEPS:
        key, value = ("epochs", cfg.epochs) if cfg.epochs else ("max_epochs", most)
        raise ConfigError(
            f"trainer.{key} = {value:g}: over {rows} rows in batches of {cfg.batch_size} these are {steps} optimizer steps, and at "
            f"most {MOST_STEPS} are possible; lower trainer.{key}, or give trainer.max_steps"
        )
    return steps


def eval_steps(cfg: TrainerConfig, rows: int) -> int:
    """Return the optimizer steps between two validations: by default those of an epoch; until convergence neither few nor many."""
    epoch = max(1, rows // cfg.batch_size)
    return cfg.eval_steps or (epoch if cfg.is_fixed else min(max(epoch, SHORTEST), LONGEST))
