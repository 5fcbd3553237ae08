"""Queries a remote teacher behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from kdcli.config.dataset import Dataset
from kdcli.config.rollout import Rollout
from kdcli.config.types import (
    Copies,
    Count,
    Float,
    Fraction,
    Int,
    NonNegative,
    Positive,
    Seconds,
    Section,
    Threads,
    VocabularySize,
)
from kdcli.errors import ConfigError, TeacherError, listed, shown
from kdcli.files import cache_dir, digest, user_path
from kdcli.signals import AnySignal, Signal
from kdcli.tasks.base import Task
from kdcli.tasks.rows import IGNORE
from kdcli.teachers.base import Compress, identity
from kdcli.teachers.remote.answers import (
    UnparsableShare,
    described,
    is_cut,
    without_template,
    without_thoughts,
)
from kdcli.teachers.remote.labels import LETTERS, LabelReader, SoftLabels, clash, label_schema, normalise
from kdcli.teachers.remote.ledger import Answer
from kdcli.teachers.remote.limits import FIRST_TOKENS, JSON_TOKENS, LABEL_TOKENS, Budget, Estimate, Prices
from kdcli.teachers.remote.parameters import SingleAnswerError
from kdcli.teachers.remote.prompting import (
    PROMPTS,
    Prompter,
    choose_examples,
    draw_seed_prompts,
    expansion_request,
    listed_prompts,
)
from kdcli.teachers.remote.protocol import Progress, RemoteTeacher
from kdcli.teachers.remote.scorer import TokenScorer
from kdcli.teachers.remote.scoring import SGLangClient, VLLMClient
from kdcli.teachers.remote.wire import ChatClient

logger = logging.getLogger(__name__)
THINKING_TOKENS = 2048
"""The number of tokens that a message suggests for an answer with thoughts."""
THOUGHTS_OFF = (
    "or turn the model's thoughts off, as its host calls it (++teacher.parameters.reasoning_effort=none, "
    "++teacher.parameters.chat_template_kwargs.enable_thinking=false)"
)
SHOWN = 20
"""The number of answers that the report shows."""
PROBED = 16
"""The number of rows that test whether the first tokens of the labels identify the labels."""
UNCLEAR = 0.01
"""The share of the probability on tokens that begin several labels, or are too short, above which first tokens do not identify the labels."""


class Limits(Section):
    """The most that a run may request and pay; null: no limit."""

    requests: Count | None = None
    """Requests, repeated ones among them."""
    tokens: Count | None = None
    """Tokens of prompts and completions together."""
    money: Positive | None = None
    """The cost by `prices`, in their currency."""


class Money(Section):
    """The price of a million tokens in any currency; null: it is not known."""

    prompt: NonNegative | None = None
    """The price of a million tokens of prompts."""
    completion: NonNegative | None = None
    """The price of a million tokens of completions."""


UNLIMITED, UNKNOWN = Limits(), Money()


class OpenAITeacher(RemoteTeacher):
    """A model that labels texts, or completes prompts, through the OpenAI protocol. Its answers are stored, and none is requested twice.

    The probabilities of labels (classification) are those of each label's first token (`logprobs`), renormalised over the labels; or the
    shares of several answers (`samples`); or a given one for the label that it names (`one_hot`). Rows that the endpoint refuses, and
    answers without a label, are counted and dropped.

    Args:
        base_url: the address of the endpoint, up to and without /chat/completions.
        model: the name of the model at the endpoint.
        api_key_env: the environment variable that holds the API key; null: the endpoint needs none.
        soft_labels: the source of the labels' probabilities; or prompt_logprobs: the server scores the tokens of language models.
        top_logprobs: the number of likeliest tokens that are requested (logprobs).
        least_mass: an answer with less probability on the labels' first tokens has no label (logprobs).
        samples: the number of answers to each text (samples).
        n_per_request: the answers to one prompt that a request asks for at most (`n`); null: all. 1 is for endpoints that ignore `n`.
        smoothing: the probability that all other labels share (one_hot).
        response_format: json_schema: labels are requested as JSON with one of their names, where the endpoint takes such a schema
            (samples, one_hot); null: as text.
        max_unparsable: the share of answers without a label above which the run stops.
        thoughts: whether the thoughts of a model that reasons are a part of the texts that the student learns. Labels are read behind them.
        shots: training rows with their gold answers that precede each question, the same number of each label.
        prompt: a Jinja file in place of the packaged one (kdcli/teachers/remote/prompts).
        parameters: further parameters of each request, which replace those of kdcli; null removes one.
        concurrency: the number of requests that are sent at the same time.
        requests_per_minute, tokens_per_minute: the limits of the endpoint; null: none.
        timeout: seconds in which an answer must arrive.
        retries: how often a request that fails is sent again.
        budget: the most that this process may request and pay; it stops before it exceeds it.
        prices: the price of a million tokens; null: the cost is not known.
        server: the kind of the server that scores given tokens (prompt_logprobs).
        tokenizer: a directory or hub id with the model's tokenizer and config.json; null: that of the student (prompt_logprobs).
        verify: a checkpoint of the model on this machine, with which some answers are compared before the others are requested (prompt_logprobs).
        rows_per_request: the number of rows that a request scores together (prompt_logprobs).
    """

    limitations: ClassVar[Mapping[str, str]] = {
        name: reason
        for name, reason in RemoteTeacher.limitations.items()
        if name not in ("completions", "expansion")
    }
    remedy: ClassVar[str] = (
        "look at its prompt (teacher.prompt), show it examples (teacher.shots=6), or try another teacher.soft_labels"
    )

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key_env: str | None = None,
        soft_labels: SoftLabels = "logprobs",
        top_logprobs: VocabularySize = 20,
        least_mass: Annotated[Float, Field(gt=0, lt=1)] = 0.1,
        samples: Copies = 8,
        n_per_request: Copies | None = None,
        smoothing: Annotated[Float, Field(gt=0, lt=1)] = 0.1,
        response_format: Literal["json_schema"] | None = "json_schema",
        max_unparsable: Fraction = 0.05,
        thoughts: Literal["drop", "keep"] = "drop",
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
        server: Literal["vllm", "sglang"] = "vllm",
        tokenizer: str | None = None,
        verify: str | None = None,
        rows_per_request: Copies = 1,
    ):
        if (prices.prompt is None) != (prices.completion is None):
            raise ConfigError("teacher.prices: give both, prompt and completion, or neither")
        prices_per_million = None
        if prices.prompt is not None and prices.completion is not None:
            prices_per_million = Prices(prices.prompt, prices.completion)
        options: dict[str, Any] = {
            "ledger": cache_dir("answers"),
            "concurrency": concurrency,
            "requests_per_minute": requests_per_minute,
            "tokens_per_minute": tokens_per_minute,
            "timeout": timeout,
            "retries": retries,
            "budget": Budget(**budget.model_dump()),
            "prices": prices_per_million,
        }
        client = ChatClient(base_url, model, api_key_env, given=parameters or (), **options)
        super().__init__(client)
        if soft_labels == "prompt_logprobs":
            kind = SGLangClient if server == "sglang" else VLLMClient
            scoring = kind(base_url, model, api_key_env, **options)
            scoring.share_limits(client)
            self.scorer = TokenScorer(scoring, tokenizer, verify, rows_per_request)
        self.soft_labels, self.top_logprobs, self.n_per_request = soft_labels, top_logprobs, n_per_request
        self.least_mass = least_mass
        self.samples = samples if soft_labels == "samples" else 1
        self.smoothing, self.shots, self.parameters = smoothing, shots, parameters or {}
        self.response_format = response_format if soft_labels != "logprobs" else None
        self.thoughts = thoughts
        self.unparsable = UnparsableShare(self.name, max_unparsable)
        self.file = user_path(prompt) if prompt is not None else None
        if self.file is not None and not self.file.is_file():
            raise ConfigError(
                f"teacher.prompt = {prompt}: there is no such file; give the path of a Jinja file"
            )
        self.predictions: dict[str, np.ndarray] = {}
        self._sampled: list[tuple[str, Mapping[str, Any], list[str]]] = []

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What determines its answers, as far as it can be known."""
        text = self.file.read_text(encoding="utf-8") if self.file is not None else None
        settings = [
            self.soft_labels,
            self.top_logprobs,
            self.least_mass,
            self.samples,
            self.smoothing,
            self.shots,
        ]
        return super().fingerprint | {"parameters": self.parameters, "asked": digest(settings, text)}

    def begin(self, task: Task, cfg: Dataset, gold: Iterable[Mapping[str, Any]]) -> None:
        """Prepare the prompts.

        Raises:
            ConfigError: the template cannot be used.
            TeacherError: there is no template for the task, or there are more labels than letters where letters are needed.
        """
        templates = {path.stem: path for path in PROMPTS.glob("[!_]*.jinja")}
        if cfg.kind not in templates:
            raise TeacherError(
                f"{self.name} supports the tasks {listed(sorted(templates))}, not {cfg.kind}; use a teacher that runs here"
            )
        self.task = task
        self.examples = choose_examples(gold, self.shots) if self.shots else []
        self.labels = LabelReader(self.name, task.labels, self.soft_labels, self.least_mass, self.smoothing)
        self.prompter = Prompter(
            self.file or templates[cfg.kind], cfg, self.labels if task.labels else None, self.examples
        )
        if pair := clash(task.labels, full=self.soft_labels != "logprobs"):
            self._use_letters(f"the labels {shown(pair[0])} and {shown(pair[1])} begin alike")

    def _use_letters(self, reason: str) -> None:
        self.labels.use_letters(reason)
        mapped = ", ".join(
            f"{letter} = {label}" for letter, label in zip(LETTERS, self.task.labels, strict=False)
        )
        logger.warning("%s, so letters are requested instead: %s", reason, mapped)

    # ---- labels ------------------------------------------------------------------------------------------

    def fetch(self, rows: Sequence[Mapping[str, Any]], progress: Progress) -> None:
        """Request the labels of rows.

        Raises:
            TeacherError, EndpointError: as `Client.query`, and if the endpoint returns no log-probabilities.
        """
        if self.soft_labels == "logprobs" and not self.labels.lettered and not self.questions:
            self._probe(rows[:PROBED])
        for row, choices in self._query(rows, self.label_requests, self.samples, progress):
            self._sample(row, [without_thoughts(choice).text or choice["text"] for choice in choices])
            log_p, unparsable = self.labels.read(choices)
            if log_p is None:
                self.unanswered[row["id"]] = {"status": "unparsable", "why": described(choices[0])}
            else:
                self.predictions[row["id"]] = log_p
            answers = 1 if self.soft_labels == "logprobs" else len(choices)
            cut = sum(is_cut(choice) and without_thoughts(choice).text is None for choice in unparsable)
            self.unparsable.count(answers, list(map(described, unparsable)), self._remedy, cut)

    def _remedy(self, cut: bool) -> str:
        """Return what a user can do about answers without a label.

        Args:
            cut: whether the answers are truncated before they begin.
        """
        if cut:
            tokens = self.parameters.get(
                "max_completion_tokens", self.parameters.get("max_tokens", THINKING_TOKENS // 4)
            )
            first = "" if self.soft_labels != "logprobs" else ", with teacher.soft_labels=samples or one_hot"
            return f"give them room (++teacher.parameters.max_tokens={4 * tokens}{first}); {THOUGHTS_OFF}"
        structured = self.soft_labels == "logprobs" or self.response_format is not None
        return f"{self.remedy}{'' if structured else ', or teacher.response_format=json_schema'}"

    def _probe(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Switch to letters where much of the probability is on tokens that begin several labels."""
        ambiguous = [
            self.labels.token_shares(choices[0])[1]
            for _, choices in self._query(rows, self.label_requests, 1, lambda *_: None)
        ]
        self.questions = 0  # these rows are queried again, from the ledger
        if ambiguous and float(np.mean(ambiguous)) > UNCLEAR:
            self._use_letters(
                f"{np.mean(ambiguous):.0%} of {self.name}'s probability is on tokens that do not tell which label they begin"
            )

    def outputs(
        self, examples: Sequence[Mapping[str, Any]], compress: Compress = identity
    ) -> list[AnySignal]:
        """Return the log-probabilities of the labels of rows that were fetched."""
        return [compress(Signal(torch.from_numpy(self.predictions[row["id"]])[None])) for row in examples]

    # ---- completions -------------------------------------------------------------------------------------

    def completions(
        self, rows: Iterable[Mapping[str, Any]], rollout: Rollout, progress: Progress
    ) -> Iterator[tuple[Mapping[str, Any], list[str], int]]:
        """Yield each row with its completions, and the number of those that were truncated at max_new_tokens."""

        def bodies(row: Mapping[str, Any]) -> list[dict[str, Any]]:
            return self.completion_requests(row, rollout)

        for row, choices in self._query(rows, bodies, rollout.answers, progress):
            complete = [self._text(choice) for choice in choices if not is_cut(choice)]
            for choice in choices:
                if self.scorer and "tokens" in choice and not is_cut(choice):
                    self.scorer.keep(self.task.with_completion(row, self._text(choice)), choice["tokens"])
            self._sample(row, [self._text(choice) or choice["text"] for choice in choices])
            self.texts[row["id"]] = self._text(choices[0])
            thoughts = [
                described(choice)
                for choice in choices
                if without_thoughts(choice).text is None and (choice["text"].strip() or "reasoning" in choice)
            ]
            self.unparsable.count(
                len(choices),
                thoughts,
                lambda cut: f"raise rollout.max_new_tokens={rollout.max_new_tokens}; {THOUGHTS_OFF}",
            )
            yield row, complete, len(choices) - len(complete)

    def _text(self, choice: Mapping[str, Any]) -> str:
        """Return the text of a completion, with its thoughts if the student learns them; empty if there is no answer."""
        text = without_thoughts(choice).text or ""
        if text and self.thoughts == "keep":
            thoughts = choice.get("reasoning")
            text = f"<think>\n{thoughts.strip()}\n</think>\n\n{text.strip()}" if thoughts else choice["text"]
        return without_template(text).strip()

    def expand(
        self, prompts: Sequence[str], excluded: Iterable[str], count: int, seed: int, progress: Progress
    ) -> list[str]:
        """Return new prompts in the style of some that are drawn from the given ones (Wang et al. 2023, https://arxiv.org/abs/2212.10560, without its
        classifier); fewer than `count` if the model repeats itself."""
        taken = {normalise(text) for text in itertools.chain(prompts, excluded)}
        new: list[str] = []
        rows = [
            {"id": str(index), "seeds": seeds}
            for index, seeds in enumerate(draw_seed_prompts(prompts, count, seed))
        ]

        def bodies(row: Mapping[str, Any]) -> list[dict[str, Any]]:
            return self._split(expansion_request(row["seeds"]), 1)

        for _, choices in self._query(rows, bodies, 1, lambda *_: None):
            for text in listed_prompts(without_thoughts(choices[0]).text or ""):
                if normalise(text) and normalise(text) not in taken and len(new) < count:
                    taken.add(normalise(text))
                    new.append(text)
            progress(len(new), self.usage)
            if len(new) == count:
                break
        return new

    # ---- requests ----------------------------------------------------------------------------------------

    def label_requests(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the requests for a row's label."""
        body: dict[str, Any] = {"messages": self.prompter.messages(row)}
        if self.soft_labels == "logprobs":
            body |= {"max_tokens": FIRST_TOKENS, "temperature": 0, "logprobs": True}
            return self._split(body | {"top_logprobs": self.top_logprobs}, 1)
        longest = max(map(len, self.task.labels))
        body |= {"max_tokens": LABEL_TOKENS + longest, "temperature": 1 if self.samples > 1 else 0}
        if self.response_format is None or "response_format" in self.parameters:
            return self._split(body, self.samples)
        structured = body | {
            "max_tokens": body["max_tokens"] + JSON_TOKENS,
            "response_format": label_schema(self.labels.answers),
        }
        requests = [self._split(each, self.samples) for each in (structured, body)]
        # an answer in plain text that was paid for before is not paid for again
        return next(filter(self._is_answered, requests), requests[0])

    def _is_answered(self, requests: Sequence[dict[str, Any]]) -> bool:
        """Return whether the ledger has a label for each of the requests."""
        answers = [self.client.ledger.get(self.client.key(body)) for body in requests]
        return all(
            answer is not None and any(self.labels.label_of(choice) is not None for choice in answer.choices)
            for answer in answers
        )

    def completion_requests(self, row: Mapping[str, Any], rollout: Rollout) -> list[dict[str, Any]]:
        """Return the requests for completions of a row's prompt."""
        body = {"messages": self.prompter.messages(row), "max_tokens": rollout.max_new_tokens}
        if row.get("tools"):
            body["tools"] = json.loads(row["tools"])
        if self.scorer:
            body |= self.scorer.client.written(self.scorer.top_k)
        return self._split(body | {"temperature": rollout.sampling_temperature}, rollout.answers)

    def _split(self, body: dict[str, Any], count: int) -> list[dict[str, Any]]:
        """Return the requests that together return `count` answers."""
        starts = range(0, count, most := self.n_per_request or count)
        bodies = [
            body | ({"n": size} if size > 1 else {}) | ({"seed": index} if index else {})
            for index, size in enumerate(min(most, count - start) for start in starts)
        ]
        return [
            {key: value for key, value in (part | self.parameters).items() if value is not None}
            for part in bodies
        ]

    def _query(
        self,
        rows: Iterable[Mapping[str, Any]],
        bodies: Callable[[Mapping[str, Any]], list[dict[str, Any]]],
        count: int,
        progress: Progress,
    ) -> Iterator[tuple[Mapping[str, Any], list[dict[str, Any]]]]:
        """Yield each row with the choices that its requests returned; rows without any are recorded as unanswered.

        Raises:
            TeacherError: as `Client.query`, and if the endpoint ignores `n`.
        """
        rows = iter(rows)
        if count > 1 and self.n_per_request != 1:
            first = list(itertools.islice(rows, 1))
            rows = itertools.chain(first, rows)
            self._find_answers_per_request(first, bodies)
        per_row = math.ceil(count / (most := self.n_per_request or count))
        waiting: list[Mapping[str, Any]] = []

        def requests() -> Iterator[dict[str, Any]]:
            for row in rows:
                waiting.append(row)
                yield from bodies(row)

        parts: list[Answer] = []
        done = several = single = 0
        for _, answer in self.client.query(requests()):
            self.questions += 1
            parts.append(answer)
            if len(parts) < per_row:
                continue
            row = waiting.pop(0)
            answered = [part.choices for part in parts if part.status == "answered"]
            choices = list(itertools.chain.from_iterable(answered))
            ignores_n = bool(answered) and all(len(part) == 1 for part in answered)
            several, single = several + (bool(answered) and not ignores_n), single + ignores_n
            if min(most, count) > 1 and not several and single > 2:
                raise TeacherError(
                    f"{self.name} gives one answer where {count} were requested (n); give teacher.n_per_request=1"
                )
            done += 1
            progress(done, self.usage)
            if choices:
                yield row, choices
            else:
                status = "refused" if any(part.status == "refused" for part in parts) else "unparsable"
                reason = next((part.reason for part in parts if part.reason), "")
                self.unanswered[row["id"]] = {"status": status, "why": reason}
                if status == "unparsable":
                    self.unparsable.count(1, [reason], lambda cut: "check teacher.base_url and teacher.model")
            parts = []

    def _find_answers_per_request(
        self,
        rows: Iterable[Mapping[str, Any]],
        bodies: Callable[[Mapping[str, Any]], list[dict[str, Any]]],
    ) -> None:
        """Request one answer at a time if the endpoint refuses a request for several."""
        try:
            for _ in self.client.query(body for row in rows for body in bodies(row)):
                pass
        except SingleAnswerError as refusal:
            self.n_per_request = 1
            logger.warning("%s; the answers to each prompt are requested one by one", refusal)

    # ---- cost and report ---------------------------------------------------------------------------------

    def estimate(self, rows: Iterable[Mapping[str, Any]], rollout: Rollout) -> Estimate:
        """Return the expected cost, if labels are requested by their names, and if new prompts are as long as those of the rows."""
        bodies = (
            self.label_requests if self.task.labels else lambda row: self.completion_requests(row, rollout)
        )
        return self.client.estimate(body for row in rows for body in bodies(row))

    def describe(self) -> dict[str, Any]:
        """Return the endpoint, the counts of answers and, of a classifier, how its labels were read."""
        described = super().describe() | {"parameters": self.parameters}
        if self.task.labels:
            missing = self.labels.missing
            described |= {
                "soft_labels": self.soft_labels,
                "missing_mass": float(np.mean(missing)) if missing else None,
                "letters": dict(zip(LETTERS, self.task.labels, strict=False))
                if self.labels.lettered
                else None,
                "smoothing": self.smoothing if self.soft_labels != "logprobs" else None,
            }
        return described

    def sampled_answers(self) -> list[dict[str, Any]]:
        """Return some answers: the question, what was written and, of a classifier, the probabilities of the labels."""
        answers = []
        for _, row, texts in sorted(self._sampled, key=lambda sample: sample[0])[:SHOWN]:
            answer: dict[str, Any] = {
                "question": self.prompter.messages(row)[-1]["content"],
                "answers": texts,
            }
            if row["id"] in self.predictions:
                shares = np.exp(self.predictions[row["id"]]).tolist()
                answer["labels"] = dict(zip(self.task.labels, shares, strict=True))
            if row.get("label", IGNORE) != IGNORE:
                answer["gold"] = self.task.labels[row["label"]]
            if row["id"] in self.unanswered:
                answer["dropped"] = self.unanswered[row["id"]]["status"]
            answers.append(answer)
        return answers

    def _sample(self, row: Mapping[str, Any], texts: list[str]) -> None:
        """Keep the rows with the lowest hashes: a random sample that is the same whenever the rows are."""
        self._sampled.append((digest(row["id"]), row, texts))
        if len(self._sampled) > 2 * SHOWN:
            self._sampled = sorted(self._sampled, key=lambda sample: sample[0])[:SHOWN]
