"""The interface of remote teachers: models behind an API, which have no checkpoint on this machine."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from kdcli.config.dataset import Dataset
from kdcli.config.rollout import Rollout
from kdcli.config.schema import Distill
from kdcli.errors import ConfigError, TeacherError
from kdcli.models.checkpoint import Checkpoint
from kdcli.tasks.base import Task
from kdcli.teachers.base import Teacher
from kdcli.teachers.remote.client import Client
from kdcli.teachers.remote.limits import Estimate, Usage
from kdcli.teachers.remote.scorer import TokenScorer

Progress = Callable[[int, Usage], None]
"""A function that is called with the number of finished rows and the usage so far."""
_NO_WEIGHTS = "a remote teacher has no checkpoint here"
_LABELS_ONLY = "it returns labels and writes no text"
SCORED = "outputs on given text", "token outputs"
"""The limitations that a server which scores given tokens does not have."""


class RemoteTeacher(Teacher):
    """A teacher that is queried over a network, where each request may cost money.

    The pipeline calls `begin` once and `estimate` before the first request. It then calls `fetch` and `outputs` for a task with
    labels, or `completions` for a task that writes text. All requests go through the client, which stores each answer in a ledger
    before it is used, so that a run that is killed and continued pays for nothing twice.

    The constructor sends nothing.

    Args:
        client: sends the requests.

    Attributes:
        limitations: what this kind of teacher cannot do, and why; the keys are those of `requirements`. A subclass that can do
            more removes entries.
        remedy: what a user can do about labels that are no better than chance.
        unanswered: the rows without an answer by id, each with `status` (refused or unparsable) and `why`. They are dropped from
            training and from the comparison.
        billed: the part of the usage of this process that the bill has.
        questions: the answers that were received, from the ledger too.
        examples: the training rows that each request shows with their gold answers.
        texts: the first completion of each row by id, for a task that writes text.
    """

    limitations: ClassVar[Mapping[str, str]] = {
        "checkpoint": _NO_WEIGHTS,
        "tuning": _NO_WEIGHTS,
        "uncached": "every answer is paid for and stays in the ledger",
        "features": f"a term reads the teacher's features, and {_NO_WEIGHTS}",
        "stage datasets": f"a stage has its own data set, and {_NO_WEIGHTS}",
        "student rollouts": "it would be queried about every token that a student writes",
        "likelihoods": "it does not report how likely its completions are",
        "beam search": "it does not search; give rollout=teacher",
        "candidates": "give rollout.answers: all are learned",
        "outputs on given text": (
            "it reports nothing about tokens that it has not written; give rollout=teacher, and loss.soft_label.weight=0; or, with a server "
            "that scores prompts, teacher=vllm teacher.soft_labels=prompt_logprobs, or teacher=sglang"
        ),
        "token outputs": (
            "a term reads the teacher's outputs for each token, and this one returns only text; give loss.soft_label.weight=0; or, with a server "
            "that scores prompts, teacher=vllm teacher.soft_labels=prompt_logprobs, or teacher=sglang"
        ),
        "completions": _LABELS_ONLY,
        "expansion": _LABELS_ONLY,
    }
    remedy: ClassVar[str] = "try another teacher"
    scorer: TokenScorer | None = None
    """Gives outputs at given tokens; None: it cannot."""

    def __init__(self, client: Client):
        self.client = client
        self.unanswered: dict[str, dict[str, str]] = {}
        self.questions = 0
        self.billed: dict[str, float] = {}
        self.examples: Sequence[Mapping[str, Any]] = ()
        self.texts: dict[str, str] = {}

    @property
    def usage(self) -> Usage:
        """The requests and the cost of this process."""
        return self.client.usage

    @property
    def name(self) -> str:
        """What the report and the messages call it: the model and the host."""
        host = self.client.base_url.partition("://")[2].partition("/")[0]
        return f"{self.client.model} at {host}"

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What determines its answers, as JSON values; a run is continued only with the same fingerprint."""
        return {"base_url": self.client.base_url, "model": self.client.model}

    def begin(self, task: Task, cfg: Dataset, gold: Iterable[Mapping[str, Any]]) -> None:
        """Prepare requests for a task; no request is sent.

        Args:
            gold: the training rows with a gold label or a reference.

        Raises:
            ConfigError, TeacherError: it cannot be used for this task.
        """
        self.task = task

    @abstractmethod
    def estimate(self, rows: Iterable[Mapping[str, Any]], rollout: Rollout) -> Estimate:
        """Return the cost of querying about rows; no request is sent."""

    @abstractmethod
    def fetch(self, rows: Sequence[Mapping[str, Any]], progress: Progress) -> None:
        """Query about the labels of rows. Afterwards `outputs` has each of them, or `unanswered` says why not.

        Raises:
            TeacherError: the service refuses all requests.
            EndpointError: the budget is used up, or the service gave no answer after all retries.
        """

    def completions(
        self, rows: Iterable[Mapping[str, Any]], rollout: Rollout, progress: Progress
    ) -> Iterator[tuple[Mapping[str, Any], list[str], int]]:
        """Yield each row with its completions, and the number of completions that were truncated, which are not among them.

        Raises:
            TeacherError: this kind of teacher writes no text.
        """
        raise TeacherError(f"{self.name} writes no text; use a teacher that does (teacher=openai)")

    def expand(
        self, prompts: Sequence[str], excluded: Iterable[str], count: int, seed: int, progress: Progress
    ) -> list[str]:
        """Return at most `count` new prompts in the style of some given ones.

        Args:
            excluded: prompts that must not be among them.

        Raises:
            TeacherError: this kind of teacher writes no text.
        """
        raise TeacherError(f"{self.name} writes no text; use a teacher that does (teacher=openai)")

    def describe(self) -> dict[str, Any]:
        """Return what the report shows, as JSON values."""
        counts = Counter(row["status"] for row in self.unanswered.values())
        return {
            "base_url": self.client.base_url,
            "model": self.client.model,
            "parameters": {},
            "questions": self.questions,
            "refused": counts["refused"],
            "unparsable": counts["unparsable"],
            "shots": len(self.examples),
        }

    def sampled_answers(self) -> list[dict[str, Any]]:
        """Return some answers for the report, each with `question`, `answers` and, of a row with labels, `labels` and `gold`."""
        return []

    def open(self, source: Checkpoint, task: Task, max_length: int, precision: str) -> None:
        """Do nothing: `begin` prepares it."""

    def require_supported(self, cfg: Distill, *, writes: bool, outputs: bool, features: bool) -> None:
        """Refuse a config that needs what this teacher cannot do (`limitations`).

        Args:
            writes: the task's models write text.
            outputs: a loss term reads the teacher's outputs.
            features: a loss term reads the teacher's features.

        Raises:
            ConfigError
        """
        for name, key in requirements(cfg, writes=writes, outputs=outputs, features=features).items():
            if name in self.limitations and not (self.scorer and name in SCORED):
                raise ConfigError(f"{key}: {self.name} cannot be the teacher: {self.limitations[name]}")


def requirements(cfg: Distill, *, writes: bool, outputs: bool, features: bool) -> dict[str, str]:
    """Return what a run needs from its teacher beyond labels for its rows, each with the config key that causes it."""
    teacher, rollout = cfg.teacher, cfg.rollout
    given = {
        "checkpoint": (
            teacher.path or teacher.others or teacher.from_scratch,
            "teacher.path, teacher.others, teacher.from_scratch",
        ),
        "tuning": (teacher.tune, "teacher.tune"),
        "uncached": (not teacher.cache, "teacher.cache"),
        "features": (features, "loss"),
        "stage datasets": (any(stage.dataset for stage in cfg.stages.values()), "stages"),
        "student rollouts": (rollout.source == "student", "rollout.source"),
        "likelihoods": (rollout.keep_fraction < 1, "rollout.keep_fraction"),
        "beam search": (rollout.num_beams > 1, "rollout.num_beams"),
        "candidates": (rollout.candidates > 1, "rollout.candidates"),
        "outputs on given text": (writes and rollout.source == "dataset", "rollout.source"),
        "token outputs": (writes and outputs, "loss"),
        "completions": (rollout.source == "teacher", "rollout.source"),
        "expansion": (rollout.expand, "rollout.expand"),
    }
    return {name: key for name, (needed, key) in given.items() if needed}
