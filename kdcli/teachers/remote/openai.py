"""A remote teacher behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import itertools
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from kdcli.config.dataset import Dataset
from kdcli.config.schema import Rollout
from kdcli.config.types import (
    Copies,
    Count,
    Float,
    Int,
    NonNegative,
    Positive,
    Seconds,
    Section,
    Threads,
    VocabularySize,
)
from kdcli.errors import ConfigError, TeacherError, shown
from kdcli.files import cache_dir, digest, user_path
from kdcli.generation import seed_of
from kdcli.signals import AnySignal, Signal
from kdcli.tasks.base import Task
from kdcli.tasks.rows import IGNORE
from kdcli.teachers.base import Compress, identity
from kdcli.teachers.remote.ledger import Answer
from kdcli.teachers.remote.limits import Budget, Estimate, Prices
from kdcli.teachers.remote.protocol import Progress, RemoteTeacher
from kdcli.teachers.remote.wire import ChatClient
from kdcli.templates import Template

logger = logging.getLogger(__name__)
PROMPTS = Path(__file__).parent / "prompts"
"""The packaged prompts, one a task."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LEADS = re.compile(r"[\W_]*(?:\w+:[\W_]*)?([A-Z])(?=[ \t]*(?:[^\w \t]|$))")
"""An answer that is a letter, whatever its reasons: no word follows it, of which it would be the article."""
FIRST_TOKENS = 4
"""Tokens that are asked for where a label's first one is looked for: some models begin with a space, a line or a quote."""
LABEL_TOKENS = 16
"""Tokens that a written label may have, beside its own characters."""
SHOWN = 20
"""Answers that the report shows."""
PROBED = 16
"""Rows of which it is looked at whether the labels' first tokens tell the labels apart."""
UNCLEAR = 0.01
"""They do not, if more than this share of the probability is on tokens that begin several labels, or are …"""
SHORT = 3
"""… shorter than so many characters and no whole label: a token `I` begins `I think` as well as `irony`."""
LEAST = 1e-6
"""The probability of a label that the host does not list."""
SEEDS, NEW = 6, 8
"""Training prompts that one request for further prompts shows, and how many it asks for."""
ROUNDS = 4
"""Requests for further prompts, at most so many times as would do if all that comes were new."""


class Limits(Section):
    """What a run may ask for and pay; null: no limit."""

    requests: Count | None = None
    tokens: Count | None = None
    money: Positive | None = None


class Money(Section):
    """What a million tokens cost, in any currency; null: nobody knows."""

    prompt: NonNegative | None = None
    completion: NonNegative | None = None


UNLIMITED, UNKNOWN = Limits(), Money()


class OpenAITeacher(RemoteTeacher):
    """A model that labels texts, or answers prompts, through the OpenAI protocol. Every answer is kept and never asked for again.

    Labels (classification) have the probabilities that the host gives the first token of each (`logprobs`), renormalised over the
    labels; or the shares of several answers (`samples`); or there is one label and a stated rest (`one_hot`). What the host
    refuses, and answers that are none, are counted and left out.

    Args:
        base_url: up to and without /chat/completions.
        model: its name there.
        api_key_env: the environment variable that holds the key; null: the server wants none.
        soft_labels: where the probabilities of the labels come from.
        top_logprobs: the likeliest tokens that the host is asked for (logprobs).
        least_mass: with less probability on the labels' first tokens together, an answer is none (logprobs).
        samples: answers to each text (samples).
        n_per_request: the answers to one prompt that a request asks for at most (`n`); null: all. 1 is for hosts that ignore `n`.
        smoothing: the probability that all other labels share (one_hot).
        shots: training rows with their gold answers that precede each question, of each label the same number.
        prompt: a Jinja file in place of the packaged one (kdcli/prompts).
        parameters: further parameters of each request, over those of kdcli; null takes one away.
        concurrency: requests at the same time.
        requests_per_minute, tokens_per_minute: the host's limits; null: none.
        timeout: seconds that an answer may take.
        retries: of one request.
        budget: what this process may ask for and pay; it stops before it is passed.
        prices: of a million tokens; null: what it costs is not known.
    """

    limitations: ClassVar[Mapping[str, str]] = {
        name: reason
        for name, reason in RemoteTeacher.limitations.items()
        if name not in ("completions", "expansion")
    }

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key_env: str | None = None,
        soft_labels: Literal["logprobs", "samples", "one_hot"] = "logprobs",
        top_logprobs: VocabularySize = 20,
        least_mass: Annotated[Float, Field(gt=0, lt=1)] = 0.1,
        samples: Copies = 8,
        n_per_request: Copies | None = None,
        smoothing: Annotated[Float, Field(gt=0, lt=1)] = 0.1,
        shots: Annotated[Int, Field(ge=0, le=1000)] = 0,
        prompt: str | None = None,
        parameters: dict[str, Any] | None = None,
        concurrency: Threads = 8,
        requests_per_minute: Positive | None = None,
        tokens_per_minute: Positive | None = None,
        timeout: Seconds = 60.0,
        retries: Annotated[Int, Field(ge=0, le=1000)] = 8,
        budget: Limits = UNLIMITED,
        prices: Money = UNKNOWN,
    ):
        if (prices.prompt is None) != (prices.completion is None):
            raise ConfigError("teacher.prices: give both, prompt and completion, or neither")
        known = None
        if prices.prompt is not None and prices.completion is not None:
            known = Prices(prices.prompt, prices.completion)
        self.client = ChatClient(
            base_url,
            model,
            api_key_env,
            ledger=cache_dir("answers"),
            concurrency=concurrency,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            timeout=timeout,
            retries=retries,
            budget=Budget(**budget.model_dump()),
            prices=known,
        )
        self.usage = self.client.usage
        self.soft_labels, self.top_logprobs, self.n_per_request = soft_labels, top_logprobs, n_per_request
        self.least_mass = least_mass
        self.samples = samples if soft_labels == "samples" else 1
        self.smoothing, self.shots, self.parameters = smoothing, shots, parameters or {}
        self.file = user_path(prompt) if prompt is not None else None
        if self.file is not None and not self.file.is_file():
            raise ConfigError(f"teacher.prompt = {prompt}: there is no such file")
        self.lettered = False
        self.examples: list[Mapping[str, Any]] = []
        self.predictions: dict[str, np.ndarray] = {}
        self.texts: dict[str, str] = {}
        self.sampled: list[tuple[str, Mapping[str, Any], list[str]]] = []
        self.unanswered: dict[str, dict[str, str]] = {}
        self.missing: list[float] = []
        self.questions = 0
        self.dropped = Counter()

    @property
    def name(self) -> str:
        """The model and the host."""
        return f"{self.client.model} at {self.client.base_url.partition('://')[2].partition('/')[0]}"

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What determines its answers, as far as one can know."""
        text = self.file.read_text(encoding="utf-8") if self.file is not None else None
        how = [self.soft_labels, self.top_logprobs, self.least_mass, self.samples, self.smoothing, self.shots]
        return {
            "base_url": self.client.base_url,
            "model": self.client.model,
            "parameters": self.parameters,
            "asked": digest(how, text),
        }

    # ---- questions ---------------------------------------------------------------------------------------

    def begin(self, task: Task, cfg: Dataset, gold: Iterable[Mapping[str, Any]]) -> None:
        """Get ready to ask.

        Args:
            gold: the training rows with a gold label, or a reference, of which some are shown to it.

        Raises:
            ConfigError: the prompt cannot be used.
        """
        if not (PROMPTS / f"{cfg.kind}.jinja").is_file():
            raise TeacherError(
                f"{self.name} can be asked for the labels of whole texts (classification), for answers (causal_lm) and translations (seq2seq), "
                f"not for {cfg.kind}; use a teacher that runs here"
            )
        self.task = task
        self.languages = {
            "source_language": cfg.source_language, "target_language": cfg.target_language, "prefix": cfg.prefix
        }  # fmt: skip
        path = self.file or PROMPTS / f"{cfg.kind}.jinja"
        self.template = Template(path)
        self.words = [_plain(label) for label in task.labels]
        self.lettered = False
        if clash := _clash(task.labels, whole=self.soft_labels != "logprobs"):
            self._use_letters(f"the labels {shown(clash[0])} and {shown(clash[1])} begin alike")
        self.examples = self._chosen(gold) if self.shots else []

    def _chosen(self, gold: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The rows that are shown: of each label in turn the first by a hash of the text."""
        rows = sorted(gold, key=lambda row: digest(row["id"]))
        by_label: dict[Any, list[Mapping[str, Any]]] = {}
        for row in rows:
            by_label.setdefault(row.get("label"), []).append(row)
        queues = [by_label[label] for label in sorted(by_label, key=str)]
        return [
            queue[turn]
            for turn in range(max(map(len, queues), default=0))
            for queue in queues
            if turn < len(queue)
        ][: self.shots]

    def _use_letters(self, why: str) -> None:
        labels = self.task.labels
        if len(labels) > len(LETTERS):
            raise TeacherError(
                f"{why} to {self.name}, and {len(labels)} labels are more than there are letters to ask for instead; give "
                "teacher.soft_labels=samples, or one_hot"
            )
        self.lettered, self.words = True, [letter.casefold() for letter in LETTERS[: len(labels)]]
        mapped = ", ".join(f"{letter} = {label}" for letter, label in zip(LETTERS, labels, strict=False))
        logger.warning("%s, so it is asked for letters instead: %s", why, mapped)

    def _answer(self, label: int) -> str:
        return LETTERS[label] if self.lettered else self.task.labels[label]

    def _question(self, row: Mapping[str, Any], first: bool) -> str:
        given: dict[str, Any] = {"first": first} | self.languages
        if self.task.labels:
            answers = [self._answer(number) for number in range(len(self.task.labels))]
            given |= {"labels": self.task.labels, "answers": answers, "lettered": self.lettered}
            given |= {"text": row["text"], "text_pair": row.get("text_pair")}
        else:
            given |= {key: row[key] for key in ("prompt", "source") if key in row}
        return self.template.render(given).strip()

    def messages(self, row: Mapping[str, Any]) -> list[dict[str, str]]:
        """The conversation that ends with the question; a row is no example of itself."""
        if "messages" in row:
            turns = [{"role": turn["role"], "content": turn["content"]} for turn in row["messages"]]
            last = max(number for number, turn in enumerate(turns) if turn["role"] == "assistant")
            return turns[:last]
        turns = []
        for example in self.examples:
            if example["id"] != row["id"]:
                answer = (
                    self._answer(example["label"])
                    if self.task.labels
                    else str(example.get("completion") or example.get("target")).strip()
                )
                turns.append({"role": "user", "content": self._question(example, not turns)})
                turns.append({"role": "assistant", "content": answer})
        return [*turns, {"role": "user", "content": self._question(row, not turns)}]

    def _labelling(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The requests that ask for a row's label."""
        body: dict[str, Any] = {"messages": self.messages(row)}
        if self.soft_labels == "logprobs":
            body |= {"max_tokens": FIRST_TOKENS, "temperature": 0, "logprobs": True}
            return self._repeated(body | {"top_logprobs": self.top_logprobs}, 1)
        longest = max(map(len, self.task.labels))
        body |= {"max_tokens": LABEL_TOKENS + longest, "temperature": 1 if self.samples > 1 else 0}
        return self._repeated(body, self.samples)

    def _answering(self, row: Mapping[str, Any], how: Rollout) -> list[dict[str, Any]]:
        """The requests that ask for answers to a row's prompt."""
        body = {"messages": self.messages(row), "max_tokens": how.max_new_tokens}
        return self._repeated(body | {"temperature": how.sampling_temperature}, how.answers)

    def _repeated(self, body: dict[str, Any], count: int) -> list[dict[str, Any]]:
        """The requests that bring so many answers."""
        starts = range(0, count, most := self.n_per_request or count)
        bodies = [
            body | ({"n": size} if size > 1 else {}) | ({"seed": number} if number else {})
            for number, size in enumerate(min(most, count - start) for start in starts)
        ]
        return [
            {key: value for key, value in (each | self.parameters).items() if value is not None}
            for each in bodies
        ]

    def _ask(
        self,
        rows: Iterable[Mapping[str, Any]],
        bodies: Callable[[Mapping[str, Any]], list[dict[str, Any]]],
        wanted: int,
        progress: Progress,
    ) -> Iterator[tuple[Mapping[str, Any], list[dict[str, Any]]]]:
        """Each row with the choices that came for it; rows with none are noted as unanswered."""
        each = math.ceil(wanted / (most := self.n_per_request or wanted))
        waiting: list[Mapping[str, Any]] = []

        def asked() -> Iterator[dict[str, Any]]:
            for row in rows:
                waiting.append(row)
                yield from bodies(row)

        parts: list[Answer] = []
        done = several = single = 0
        for _, answer in self.client.query(asked()):
            self.questions += 1
            parts.append(answer)
            if len(parts) < each:
                continue
            row = waiting.pop(0)
            answered = [part.choices for part in parts if part.status == "answered"]
            choices = list(itertools.chain.from_iterable(answered))
            ignored = bool(answered) and all(len(part) == 1 for part in answered)  # n, that is
            several, single = several + (bool(answered) and not ignored), single + ignored
            if min(most, wanted) > 1 and not several and single > 2:
                raise TeacherError(
                    f"{self.name} gives one answer where {wanted} were asked for (n); give teacher.n_per_request=1"
                )
            done += 1
            progress(done, self.client.usage)
            if choices:
                yield row, choices
            else:
                status = "refused" if any(part.status == "refused" for part in parts) else "unparsable"
                self._without(row, status, next((part.reason for part in parts if part.reason), ""))
            parts = []

    def _remember(self, row: Mapping[str, Any], texts: list[str]) -> None:
        """Keep the rows with the lowest hashes: a random sample that is the same whenever the rows are."""
        self.sampled.append((digest(row["id"]), row, texts))
        if len(self.sampled) > 2 * SHOWN:
            self.sampled = sorted(self.sampled, key=lambda one: one[0])[:SHOWN]

    def _without(self, row: Mapping[str, Any], status: str, why: str) -> None:
        self.unanswered[row["id"]] = {"status": status, "why": why}

    # ---- labels ------------------------------------------------------------------------------------------

    def fetch(self, rows: Sequence[Mapping[str, Any]], progress: Progress) -> None:
        """Ask for the labels of rows.

        Args:
            progress: called with the number of rows that are done.

        Raises:
            TeacherError, EndpointError: as `Client.query`, and if the host gives no log-probabilities.
        """
        if self.soft_labels == "logprobs" and not self.lettered and not self.questions:
            self._probe(rows[:PROBED])
        wanted = self.samples
        for row, choices in self._ask(rows, self._labelling, wanted, progress):
            self._remember(row, [choice["text"] for choice in choices])
            if self.soft_labels == "logprobs":
                self._from_tokens(row, choices[0])
            else:
                self._from_texts(row, choices)

    def _probe(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Ask for letters where tokens that begin several labels get a part of the probability."""
        found = [
            self._shares(choices[0]) for _, choices in self._ask(rows, self._labelling, 1, lambda *_: None)
        ]
        self.questions = 0  # they are asked again, of the ledger
        unclear = [share for _, share, _ in found]
        if unclear and float(np.mean(unclear)) > UNCLEAR:
            self._use_letters(
                f"{np.mean(unclear):.0%} of {self.name}'s probability is on tokens that do not tell which label they begin"
            )

    def _shares(self, choice: Mapping[str, Any]) -> tuple[np.ndarray, float, float]:
        """The probability of each label's first token, (C,), 0 of those not listed; of tokens that may begin a label, and do not tell which;
        and the most that a token has that is not listed.

        Raises:
            TeacherError: there are no log-probabilities.
        """
        tokens = choice["logprobs"]
        if not tokens or not tokens[0]["top"]:
            raise TeacherError(
                f"{self.name} gives no log-probabilities; give teacher.soft_labels=samples (the shares of several answers), or one_hot"
            )
        token = next((token for token in tokens if _plain(token["token"])), tokens[0])
        shares, unclear = np.zeros(len(self.words)), 0.0
        for top in token["top"]:
            begun, share = _plain(top["token"]), math.exp(top["logprob"])
            fits = [number for number, word in enumerate(self.words) if begun and word.startswith(begun)]
            if len(fits) == 1 and (len(begun) >= SHORT or begun == self.words[fits[0]]):
                shares[fits[0]] += share
            elif fits:
                unclear += share
        listed = [math.exp(top["logprob"]) for top in token["top"]]
        return shares, unclear, max(LEAST, min(*listed, 1 - sum(listed)))

    def _from_tokens(self, row: Mapping[str, Any], choice: Mapping[str, Any]) -> None:
        shares, _, rest = self._shares(choice)
        mass = float(shares.sum())
        if mass < self.least_mass:
            self._without(row, "unparsable", choice["text"])
            return
        self.missing.append(max(0.0, 1 - mass))
        self._say(row, np.where(shares > 0, shares, min(rest, float(shares[shares > 0].min()))))

    def _from_texts(self, row: Mapping[str, Any], choices: Sequence[Mapping[str, Any]]) -> None:
        found = [label for choice in choices if (label := self._label_in(choice["text"])) is not None]
        if not found:
            self._without(row, "unparsable", choices[0]["text"])
            return
        counts = np.bincount(found, minlength=len(self.words)).astype(float)
        if self.soft_labels == "samples":
            self._say(row, counts + self.smoothing)  # what was never drawn is not impossible
        else:
            others = self.smoothing / (len(self.words) - 1)
            self._say(row, np.where(counts > 0, 1 - self.smoothing, others))

    def _label_in(self, text: str) -> int | None:
        """The label that a text is, or the only one that stands in it; a letter, which may be a word as well, only where it leads."""
        written = _plain(text)
        if written in self.words:
            return self.words.index(written)
        if self.lettered:
            letters = {letter.casefold() for letter in re.findall(r"(?<!\w)[A-Z](?!\w)", text)} & {
                *self.words
            }
            leads = LEADS.match(text)
            return self.words.index(letters.pop()) if leads and letters == {leads[1].casefold()} else None
        found = [
            number
            for number, word in enumerate(self.words)
            if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", written)
        ]
        longest = [n for n in found if not any(n != m and self.words[n] in self.words[m] for m in found)]
        return longest[0] if len(longest) == 1 else None

    def _say(self, row: Mapping[str, Any], shares: np.ndarray) -> None:
        self.predictions[row["id"]] = np.log(shares / shares.sum()).astype(np.float32)

    def outputs(
        self, examples: Sequence[Mapping[str, Any]], compress: Compress = identity
    ) -> list[AnySignal]:
        """The log-probabilities of the labels of rows that were fetched."""
        return [compress(Signal(torch.from_numpy(self.predictions[row["id"]])[None])) for row in examples]

    # ---- answers -----------------------------------------------------------------------------------------

    def completions(
        self, rows: Iterable[Mapping[str, Any]], how: Rollout, progress: Progress
    ) -> Iterator[tuple[Mapping[str, Any], list[str], int]]:
        """Each row with the answers to its prompt, and how many were cut off by max_new_tokens, which are not among them."""

        def bodies(row: Mapping[str, Any]) -> list[dict[str, Any]]:
            return self._answering(row, how)

        for row, choices in self._ask(rows, bodies, how.answers, progress):
            whole = [choice["text"].strip() for choice in choices if choice["finish_reason"] != "length"]
            self._remember(row, [choice["text"] for choice in choices])
            self.texts[row["id"]] = choices[0]["text"].strip()
            yield row, whole, len(choices) - len(whole)

    def expand(
        self, texts: Sequence[str], others: Iterable[str], count: int, seed: int, progress: Progress
    ) -> list[str]:
        """So many further prompts (fewer, if it repeats itself), made up after some that are drawn from the given ones (Wang et al. 2023,
        https://arxiv.org/abs/2212.10560, without its classifier).

        Args:
            others: what must not be made up again: prompts of the other splits.
        """
        known = {_plain(text) for text in itertools.chain(texts, others)}
        found: list[str] = []
        rows = [
            {"id": str(number), "seeds": seeds}
            for number, seeds in enumerate(self._seeds(texts, count, seed))
        ]
        for _, choices in self._ask(rows, self._expanding, 1, lambda *_: None):
            for line in choices[0]["text"].splitlines():
                text = " ".join(line.strip().removeprefix("-").split())
                if (
                    line.strip().startswith("- ")
                    and _plain(text)
                    and _plain(text) not in known
                    and len(found) < count
                ):
                    known.add(_plain(text))
                    found.append(text)
            progress(len(found), self.client.usage)
            if len(found) == count:
                break
        return found

    def _seeds(self, texts: Sequence[str], count: int, seed: int) -> Iterator[list[str]]:
        for number in range(ROUNDS * math.ceil(count / NEW)):
            draw = np.random.default_rng(seed_of(seed, "expand", number))
            places = draw.choice(len(texts), size=min(SEEDS, len(texts)), replace=False)
            yield [texts[place] for place in places.tolist()]

    def _expanding(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        text = Template(PROMPTS / "expand.jinja").render({"seeds": row["seeds"], "count": NEW}).strip()
        longest = max(map(len, row["seeds"]))
        body = {
            "messages": [{"role": "user", "content": text}],
            "max_tokens": NEW * (32 + longest),
            "temperature": 1,
        }
        return self._repeated(body, 1)

    # ---- what it costs, and what came of it -----------------------------------------------------------------

    def estimate(self, rows: Iterable[Mapping[str, Any]], how: Rollout) -> Estimate:
        """What asking about rows will take, if labels are asked for by their words, and as if each prompt that is to be made up were as long
        as these."""
        bodies = self._labelling if self.task.labels else lambda row: self._answering(row, how)
        return self.client.estimate(body for row in rows for body in bodies(row))

    def describe(self) -> dict[str, Any]:
        """What the report says of it."""
        counts = Counter(each["status"] for each in self.unanswered.values())
        found: dict[str, Any] = {
            "base_url": self.client.base_url,
            "model": self.client.model,
            "parameters": self.parameters,
            "questions": self.questions,
            "refused": counts["refused"],
            "unparsable": counts["unparsable"],
            "shots": len(self.examples),
        }
        if self.task.labels:
            found |= {
                "soft_labels": self.soft_labels,
                "missing_mass": None,
                "asked_for": None,
                "smoothing": None,
            }
            if self.missing:
                found["missing_mass"] = float(np.mean(self.missing))
            if self.soft_labels != "logprobs":
                found["smoothing"] = self.smoothing
            if self.lettered:
                found["asked_for"] = dict(zip(LETTERS, self.task.labels, strict=False))
        return found

    def sampled_answers(self) -> list[dict[str, Any]]:
        """Some answers: the question, what was written and, of a classifier, what that amounts to."""
        found = []
        for _, row, texts in sorted(self.sampled, key=lambda one: one[0])[:SHOWN]:
            one: dict[str, Any] = {"question": self.messages(row)[-1]["content"], "answers": texts}
            if row["id"] in self.predictions:
                shares = np.exp(self.predictions[row["id"]]).tolist()
                one["labels"] = dict(zip(self.task.labels, shares, strict=True))
            if row.get("label", IGNORE) != IGNORE:
                one["gold"] = self.task.labels[row["label"]]
            if row["id"] in self.unanswered:
                one["left_out"] = self.unanswered[row["id"]]["status"]
            found.append(one)
        return found


def _plain(text: str) -> str:
    """A word without case, and without what stands around its letters."""
    return re.sub(r"^[\W_]+|[\W_]+$", "", text).casefold()


def _begins(one: str, other: str) -> bool:
    return bool(one) and (one.startswith(other) or other.startswith(one))


def _clash(labels: Sequence[str], whole: bool) -> tuple[str, str] | None:
    """Two labels that cannot be told apart: no first token can where one begins with the other, or both with the same word.

    Args:
        whole: the whole label is looked at.
    """
    words = [_plain(label) for label in labels]
    heads = words if whole else [word.partition(" ")[0] for word in words]
    for number, other in itertools.combinations(range(len(words)), 2):
        alike = not whole and _begins(words[number], words[other])
        if alike or heads[number] == heads[other] or "" in (words[number], words[other]):
            return labels[number], labels[other]
    return None
