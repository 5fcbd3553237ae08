"""Writes the prompts of a remote model: the question about a row, few-shot examples, and requests for new prompts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdcli.config.dataset import Dataset
from kdcli.files import digest
from kdcli.generation import seed_of
from kdcli.tasks.causal_lm.chat import last_answer
from kdcli.tasks.causal_lm.conversations import endpoint_turns
from kdcli.teachers.remote.labels import LabelReader
from kdcli.templates import Template

PROMPTS = Path(__file__).parent / "prompts"
"""The packaged templates, one for each task that a remote teacher supports."""
SEED_PROMPTS, NEW_PROMPTS = 6, 8
"""The training prompts that a request for new prompts shows, and how many it asks for."""
ROUNDS = 4
"""The maximum number of requests for new prompts, as a multiple of the number that suffices if no prompt is repeated."""


class Prompter:
    """Renders the conversation that ends with the question about a row.

    Args:
        template: of the question.
        labels: of a classification task; None for a task that writes text.
        examples: rows that are shown with their gold answers, as earlier turns.
    """

    def __init__(
        self,
        template: Path,
        cfg: Dataset,
        labels: LabelReader | None,
        examples: Sequence[Mapping[str, Any]],
    ):
        self.template, self.labels, self.examples = Template(template), labels, examples
        self.languages = {
            "source_language": cfg.source_language,
            "target_language": cfg.target_language,
            "prefix": cfg.prefix,
        }

    def messages(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the conversation about a row; a row is no example of itself."""
        if "messages" in row:
            return endpoint_turns(row["messages"][: last_answer(row["messages"])])
        turns: list[dict[str, Any]] = []
        for example in self.examples:
            if example["id"] != row["id"]:
                turns.append({"role": "user", "content": self._question(example, not turns)})
                turns.append({"role": "assistant", "content": self._gold_answer(example)})
        return [*turns, {"role": "user", "content": self._question(row, not turns)}]

    def _question(self, row: Mapping[str, Any], first: bool) -> str:
        given: dict[str, Any] = {"first": first} | self.languages
        if self.labels:
            given |= {
                "labels": self.labels.labels,
                "answers": self.labels.answers,
                "lettered": self.labels.lettered,
                "text": row["text"],
                "text_pair": row.get("text_pair"),
            }
        else:
            given |= {key: row[key] for key in ("prompt", "source") if key in row}
        return self.template.render(given).strip()

    def _gold_answer(self, example: Mapping[str, Any]) -> str:
        if self.labels:
            return self.labels.answers[example["label"]]
        return str(example.get("completion") or example.get("target")).strip()


def choose_examples(rows: Iterable[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """Choose few-shot examples: of each label in turn the first row by a hash of the text."""
    by_label: dict[Any, list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: digest(row["id"])):
        by_label.setdefault(row.get("label"), []).append(row)
    queues = [by_label[label] for label in sorted(by_label, key=str)]
    return [
        queue[turn]
        for turn in range(max(map(len, queues), default=0))
        for queue in queues
        if turn < len(queue)
    ][:count]


def draw_seed_prompts(prompts: Sequence[str], count: int, seed: int) -> Iterator[list[str]]:
    """Yield the prompts that each request for new prompts shows, of as many requests as may be needed for `count` new ones."""
    for index in range(ROUNDS * math.ceil(count / NEW_PROMPTS)):
        draw = np.random.default_rng(seed_of(seed, "expand", index))
        chosen = draw.choice(len(prompts), size=min(SEED_PROMPTS, len(prompts)), replace=False)
        yield [prompts[i] for i in chosen.tolist()]


def expansion_request(seeds: Sequence[str]) -> dict[str, Any]:
    """Return the request for prompts like some given ones."""
    text = Template(PROMPTS / "_expand.jinja").render({"seeds": seeds, "count": NEW_PROMPTS}).strip()
    return {
        "messages": [{"role": "user", "content": text}],
        "max_tokens": NEW_PROMPTS * (32 + max(map(len, seeds))),
        "temperature": 1,
    }


def listed_prompts(text: str) -> Iterator[str]:
    """Yield the prompts in a completion: its lines that begin with a hyphen."""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("- "):
            yield " ".join(line.removeprefix("-").split())
