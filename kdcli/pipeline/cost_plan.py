"""Shows what a run costs, as a table for people and as JSON. It imports no torch."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from kdcli import console
from kdcli.numbers import format_age, format_bytes, format_items
from kdcli.pipeline.memory_plan import MemoryPlan
from kdcli.teachers.remote.limits import Estimate


@dataclass(frozen=True)
class PhaseCost:
    """The cost of one phase of a run.

    Attributes:
        name: its name in the progress.
        rows: the number of rows that it reads.
        steps: the number of optimizer steps; None: it trains nothing.
        at_most: whether it may take fewer rows or steps.
        seconds: its time; None: it is not known before its first steps.
        note: why it takes no time, or on what it depends.
    """

    name: str
    rows: int
    steps: int | None = None
    at_most: bool = False
    seconds: float | None = None
    note: str = ""


@dataclass(frozen=True)
class CostPlan:
    """The cost of a run.

    Attributes:
        splits: the number of rows of each split, and of the labelled training rows.
        memory: what each phase takes; None: no model is loaded to tell it.
        disk: the maximum number of bytes in the run directory and the cache at one time; None: a model's size is not known yet.
        endpoint: the name of a remote teacher; empty: there is none.
        queries: the queries to a remote teacher by their subject: a split, or new prompts.
        timed: whether time and memory are a part of the plan.
    """

    splits: Mapping[str, int]
    phases: Sequence[PhaseCost]
    memory: MemoryPlan | None = None
    disk: int | None = None
    endpoint: str = ""
    queries: Mapping[str, Estimate] = field(default_factory=dict)
    timed: bool = True

    @property
    def seconds(self) -> dict[str, float]:
        """The seconds of each phase whose time is known, by its name."""
        return {phase.name: phase.seconds for phase in self.phases if phase.seconds is not None}

    def lines(self) -> list[str]:
        """Return the plan as text of at most 80 columns, names of phases and requests aside."""
        counts = {name: f"{count:,}" for name, count in self.splits.items()}
        head = "rows: {train} train ({labelled} labelled), {validation} validation, {test} test"
        cells = [("phase", "rows", "steps", "time" if self.timed else "note"), *map(self._cells, self.phases)]
        widths = [max(len(line[column]) for line in cells) for column in range(4)]
        table = [
            "  ".join(
                [
                    line[0].ljust(widths[0]),
                    *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
                ]
            ).rstrip()
            for line in cells
        ]
        return [head.format(**counts), *table, *(self._sums() if self.timed else []), *self._queries()]

    def _cells(self, phase: PhaseCost) -> tuple[str, str, str, str]:
        at_most = "up to " if phase.at_most else ""
        steps = "" if phase.steps is None else f"{at_most}{phase.steps:,}"
        seconds = "?" if phase.seconds is None else f"{at_most}{console.duration(phase.seconds)}"
        return phase.name, f"{phase.rows:,}", steps, phase.note or (seconds if self.timed else "")

    def _sums(self) -> list[str]:
        seconds_of_phases = [phase.seconds for phase in self.phases if phase.seconds is not None]
        unknown = len(self.phases) - len(seconds_of_phases)
        seconds = sum(seconds_of_phases, 0.0)
        total = "time known after the first steps"
        if seconds:
            total = (
                f"up to {console.duration(seconds)}"
                if any(p.at_most for p in self.phases)
                else console.duration(seconds)
            )
            total += (
                f" without {unknown} phase{'s' if unknown > 1 else ''} of unknown time" if unknown else ""
            )
        parts = []
        if self.memory is not None and self.memory.phases:
            parts.append(self.memory.summary)
        if self.disk is not None:
            parts.append(f"up to {format_bytes(self.disk)} of disk")
        return [f"in all: {total}", *([", ".join(parts)] if parts else [])]

    def _queries(self) -> list[str]:
        """Return the queries to a remote teacher by split, and all of them with their cost."""
        if not self.queries:
            return []
        total = sum_estimates(self.queries.values())
        each = [
            f"{name} {estimate.questions:,}" + (f" ({_cost(estimate.cost)})" if total.cost else "")
            for name, estimate in self.queries.items()
        ]
        lines = [f"queries about {', '.join(each)}"] if len(each) > 1 else []
        if {"validation", "test"} <= self.queries.keys():
            lines.append("(the teacher labels every split; dataset.eval_limit lowers validation and test)")
        return [*lines, _estimate_text(total, self.endpoint)]

    def as_json(self) -> dict[str, Any]:
        """Return the plan for machines. Bytes and seconds are null where they are not known."""
        queries = {name: asdict(estimate) for name, estimate in self.queries.items()}
        return {
            "rows": dict(self.splits),
            "phases": [asdict(phase) for phase in self.phases],
            "memory_bytes": None if self.memory is None else self.memory.peak,
            "memory": None if self.memory is None else self.memory.as_json(),
            "disk_bytes": self.disk,
            "endpoint": {"name": self.endpoint, "queries": queries} if queries else None,
        }


def _cost(cost: float | None) -> str:
    """Return an amount of money."""
    return "an unknown amount" if cost is None else f"about {cost:.2f}" if cost >= 0.005 else "less than 0.01"


def sum_estimates(estimates: Iterable[Estimate]) -> Estimate:
    """Return the estimate of all queries together; what is not known of one is not known of all."""
    each = list(estimates)
    completion = [estimate.completion_tokens for estimate in each]
    costs = [estimate.cost for estimate in each]
    return Estimate(
        sum(estimate.questions for estimate in each),
        sum(estimate.in_ledger for estimate in each),
        sum(estimate.prompt_tokens for estimate in each),
        None if None in completion else sum(filter(None, completion)),
        None if None in costs else sum(filter(None, costs)),
        min((estimate.oldest for estimate in each if estimate.in_ledger), default=0.0),
    )


def _estimate_text(estimate: Estimate, name: str) -> str:
    before = ""
    if estimate.in_ledger:
        before = (
            f", of which {estimate.in_ledger:,} are answered in the ledger (the oldest answer: {format_age(time.time() - estimate.oldest)}; "
            "teacher.fresh=true queries again, and kdcli cache clear --kind answers drops all answers)"
        )
    queries = f"{format_items(estimate.questions, 'query', 'queries')} to {name}{before}"
    if (
        estimate.completion_tokens == 0 and estimate.cost is None
    ):  # it writes nothing, and tokens have no price
        return queries
    written = (
        "any number of" if estimate.completion_tokens is None else f"at most {estimate.completion_tokens:,}"
    )
    cost = "their cost is not known (teacher.prices.prompt and .completion, of a million tokens)"
    if estimate.cost is not None:
        cost = f"they cost {_cost(estimate.cost)}"
    return (
        f"{queries}: about {estimate.prompt_tokens:,} prompt tokens and {written} completion tokens; {cost}"
    )
