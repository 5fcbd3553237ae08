"""A teacher of one's own: an HTTP service that returns the probabilities of labels."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from kdcli.config.rollout import Rollout
from kdcli.config.types import Threads
from kdcli.files import cache_dir
from kdcli.signals import AnySignal, Signal
from kdcli.teachers.base import Compress, identity
from kdcli.teachers.remote.client import Client, Rejected, Retry
from kdcli.teachers.remote.ledger import Answer
from kdcli.teachers.remote.limits import Estimate
from kdcli.teachers.remote.protocol import Progress, RemoteTeacher


class Service(Client):
    """Posts {"text": …}; the service answers with {"probabilities": {label: share}}."""

    def send(self, body: dict[str, Any]) -> Answer:
        request = urllib.request.Request(
            self.base_url, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return Answer("answered", [json.load(response)])
        except urllib.error.HTTPError as error:
            if error.code == 400:
                raise Rejected(error.reason) from None
            raise Retry(f"{error.code} {error.reason}") from None
        except (OSError, ValueError) as error:
            raise Retry(str(error)) from None


class HttpClassifier(RemoteTeacher):
    """The labels' probabilities of an HTTP service.

    Args:
        url: of the service.
        concurrency: requests in flight.
    """

    def __init__(self, url: str, concurrency: Threads = 4):
        super().__init__(Service(url, "classifier", ledger=cache_dir("answers"), concurrency=concurrency))
        self.log_p: dict[str, torch.Tensor] = {}

    def estimate(self, rows: Iterable[Mapping[str, Any]], rollout: Rollout) -> Estimate:
        return self.client.estimate({"text": row["text"]} for row in rows)

    def fetch(self, rows: Sequence[Mapping[str, Any]], progress: Progress) -> None:
        for index, answer in self.client.query({"text": row["text"]} for row in rows):
            self.questions += 1
            if answer.status == "answered":
                shares = [answer.choices[0]["probabilities"][label] for label in self.task.labels]
                self.log_p[rows[index]["id"]] = torch.tensor(shares).clamp_min(1e-6).log()
            else:
                self.unanswered[rows[index]["id"]] = {"status": answer.status, "why": answer.reason}
            progress(index + 1, self.usage)

    def outputs(
        self, examples: Sequence[Mapping[str, Any]], compress: Compress = identity
    ) -> list[AnySignal]:
        return [compress(Signal(self.log_p[row["id"]][None])) for row in examples]
