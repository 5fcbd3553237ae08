"""Servers of the tests that score tokens as vLLM and SGLang do, with a model of transformers; and what the real vLLM answered.

`python tests/support/scoring.py URL/v1 NAME` records the answers of a server with 64 likeliest tokens and 1,024 tokens of a prompt.
"""

from __future__ import annotations

import json
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from support.endpoint import Odd, Said
from transformers import AutoModelForCausalLM, AutoTokenizer

NAME = "talker"
"""How the servers call their model."""
RECORDED = Path(__file__).with_name("vllm.json")
"""Requests to vLLM 0.32 with SmolLM2-135M, and its answers."""
PROMPT = [72, 101, 260, 33, 65, 65, 90]
"""Token ids that small vocabularies have, too."""


class VLLM:
    """The pages of a vLLM server but for chat completions.

    Args:
        folder: of the model.
        max_logprobs: the most likeliest tokens that it lists.
        max_length: tokens of a prompt and what is written after it.
        tokenizer: the folder of its tokenizer; None: the model's.
        pages: the names of pages that it lacks.
        before: is called with the number of scored prompts before each request for scores, and may return another answer.

    Attributes:
        scored: the prompts that it has scored, in their order.
    """

    def __init__(
        self,
        folder: Path,
        max_logprobs: int = 64,
        max_length: int = 128,
        tokenizer: Path | None = None,
        lacks: tuple[str, ...] = (),
        before: Callable[[int], Odd | None] = lambda count: None,
        name: str = NAME,
    ):
        self.name = name
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer or folder)
        self.max_logprobs, self.max_length, self.lacks, self.before = max_logprobs, max_length, lacks, before
        self.scored: list[list[int]] = []

    def __call__(self, path: str, body: dict[str, Any]) -> Said:
        if path.endswith("/chat/completions"):
            return self.chat(body)
        page = path.rpartition("/")[2]
        if page in self.lacks:
            return _json({"detail": "Not Found"}, 404)
        if body.get("model", self.name) != self.name:
            return _error(f"The model `{body['model']}` does not exist.", 404, "NotFoundError", "model")
        return getattr(self, page)(body)

    def models(self, body: dict[str, Any]) -> Said:
        model = {
            "id": self.name,
            "object": "model",
            "created": 0,
            "owned_by": "vllm",
            "root": "/models/talker",
        }
        model |= {"parent": None, "max_model_len": self.max_length, "permission": [{"id": "modelperm-0"}]}
        return _json({"object": "list", "data": [model]})

    def tokenize(self, body: dict[str, Any]) -> Said:
        tokens = self.tokenizer(body["prompt"], add_special_tokens=body["add_special_tokens"])["input_ids"]
        counts = {"count": len(tokens), "max_model_len": self.max_length}
        return _json(counts | {"tokens": tokens, "token_strs": None})

    def completions(self, body: dict[str, Any]) -> Said:
        k = body.get("prompt_logprobs")
        if k is not None and k > self.max_logprobs:
            return _error(
                f"Requested prompt logprobs of {k}, which is greater than max allowed: {self.max_logprobs}",
                parameter="prompt_logprobs",
            )
        prompts = body["prompt"]
        if isinstance(prompts, str):
            prompts = [self.tokenizer(prompts, add_special_tokens=body["add_special_tokens"])["input_ids"]]
        elif isinstance(prompts[0], int):
            prompts = [prompts]
        if (longest := max(map(len, prompts))) >= self.max_length:
            return _error(
                f"This model's maximum context length is {self.max_length} tokens. However, your prompt "
                f"contains {longest} input tokens, which exceeds this limit even without any output tokens.",
                parameter="input_tokens",
            )
        if (other := self.before(len(self.scored))) is not None:
            return other
        choices = []
        for index, prompt in enumerate(prompts):
            self.scored.append(prompt)
            choices.append(
                {"index": index, "text": "", "logprobs": None, "finish_reason": "length", "stop_reason": None}
                | {"token_ids": None, "prompt_logprobs": None if k is None else self._entries(prompt, k)}
                | {"prompt_token_ids": None}
            )
        counts = {"prompt_tokens": sum(map(len, prompts)), "completion_tokens": len(prompts)}
        return _json(
            {
                "id": "cmpl-1",
                "object": "text_completion",
                "created": 0,
                "model": self.name,
                "choices": choices,
            }
            | {"usage": counts | {"total_tokens": sum(counts.values())}}
        )

    def chat(self, body: dict[str, Any]) -> Said:
        """A completion of a conversation: the likeliest tokens, a few, with the listed ones if they are asked for."""
        options = {"add_generation_prompt": True, "return_dict": False}
        prompt = self.tokenizer.apply_chat_template(body["messages"], **options)
        written: list[int] = []
        content = []
        while len(written) < body["max_tokens"] and self.tokenizer.eos_token_id not in written:
            values, ids = self.log_p(prompt + written)[-1].topk(body.get("top_logprobs") or 1)
            ends = len(written) > 5 and self.tokenizer.eos_token_id in ids.tolist()
            top = [
                {"token": f"token_id:{i}", "logprob": v, "bytes": list(f"token_id:{i}".encode())}
                for v, i in zip(values.tolist(), ids.tolist(), strict=True)
            ]
            index = ids.tolist().index(self.tokenizer.eos_token_id) if ends else 0
            written.append(int(ids[index]))
            content.append(top[index] | {"top_logprobs": top})
        text = self.tokenizer.decode(written, skip_special_tokens=True)
        finish = "stop" if self.tokenizer.eos_token_id in written else "length"
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
        if body.get("return_token_ids"):
            choice |= {"token_ids": written, "logprobs": {"content": content}}
        counts = {"prompt_tokens": len(prompt), "completion_tokens": len(written)}
        return _json({"choices": [choice], "usage": counts, "prompt_token_ids": prompt})

    def _entries(self, prompt: list[int], k: int) -> list[dict[str, Any] | None]:
        """The k likeliest tokens at each position, and the prompt's own token before them."""
        log_p = self.log_p(prompt)
        entries: list[dict[str, Any] | None] = [None]
        for token, row in zip(prompt[1:], log_p, strict=False):
            values, ids = row.topk(k) if k else (row[:0], torch.empty(0, dtype=torch.int64))
            rank = int((row > row[token]).sum()) + 1
            listed = {token: (float(row[token]), rank)}
            listed |= {int(i): (float(v), n + 1) for n, (i, v) in enumerate(zip(ids, values, strict=True))}
            entries.append(
                {
                    str(i): {"logprob": value, "rank": rank, "decoded_token": self.tokenizer.decode([i])}
                    for i, (value, rank) in listed.items()
                }
            )
        return entries

    @torch.no_grad()
    def log_p(self, prompt: list[int]) -> torch.Tensor:
        """The log-probabilities after each token of a prompt, (N, C)."""
        logits = self.model(input_ids=torch.tensor([prompt])).logits[0]
        return logits.float().log_softmax(-1)


class SGLang(VLLM):
    """The same of an SGLang server."""

    def generate(self, body: dict[str, Any]) -> Said:
        """Scores begin at the token `logprob_start_len`, whose own entry is empty."""
        if "text" in body:  # a probe
            tokens = self.tokenizer(body["text"])["input_ids"]
            return _json(
                {"text": "", "meta_info": {"input_token_logprobs": [[None, i, None] for i in tokens]}}
            )
        if (other := self.before(len(self.scored))) is not None:
            return other
        answers = []
        options = zip(body["input_ids"], body["logprob_start_len"], body["top_logprobs_num"], strict=True)
        for prompt, start, k in options:
            self.scored.append(prompt)
            top: list[Any] = [None]
            for row in self.log_p(prompt)[start:-1]:
                values, ids = row.topk(k)
                top.append([[v, i, None] for v, i in zip(values.tolist(), ids.tolist(), strict=True)])
            meta = {"prompt_tokens": len(prompt), "completion_tokens": 1, "input_top_logprobs": top}
            answers.append(
                {"text": "", "meta_info": meta | {"finish_reason": {"type": "length", "length": 1}}}
            )
        return _json(answers)


def _json(content: Any, status: int = 200) -> Odd:
    return Odd(status=status, data=json.dumps(content).encode())


def _error(
    message: str, status: int = 400, kind: str = "BadRequestError", parameter: str | None = None
) -> Odd:
    return _json({"error": {"message": message, "type": kind, "param": parameter, "code": status}}, status)


def resembles(own: Any, other: Any) -> bool:
    """Whether a JSON value has no key, type or item that another one lacks. Token ids that are keys are one key."""
    if isinstance(own, dict) and isinstance(other, dict):
        own, other = ({re.sub(r"^\d+$", "id", key): value[key] for key in value} for value in (own, other))
        return all(key in other and resembles(own[key], other[key]) for key in own)
    if isinstance(own, list) and isinstance(other, list):
        return all(any(resembles(item, each) for each in other) for item in own)
    return type(own) is type(other)


def requests(name: str) -> list[tuple[str, dict[str, Any] | None]]:
    """The requests that are recorded: path and body (None: GET)."""

    def scores(*prompts: Any, k: int, model: str = name) -> tuple[str, dict[str, Any]]:
        body = {"model": model, "prompt": list(prompts), "max_tokens": 1, "temperature": 0.0}
        return "/v1/completions", body | {"prompt_logprobs": k}

    chat = {"model": name, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "temperature": 0}
    as_ids = {"return_token_ids": True, "return_tokens_as_token_ids": True}
    text = {"model": name, "prompt": "it was good", "add_special_tokens": False}
    return [
        ("/v1/models", None),
        ("/tokenize", text),
        ("/v1/completions", text | {"max_tokens": 1, "prompt_logprobs": 0}),
        scores(PROMPT, k=3),
        scores(PROMPT, PROMPT[2:], k=2),
        scores(PROMPT, k=100),
        scores(PROMPT * 200, k=3),
        scores(PROMPT, k=3, model="other"),
        ("/v1/chat/completions", chat | as_ids | {"logprobs": True, "top_logprobs": 3}),
    ]


def record(url: str, name: str) -> None:
    """Write what a server answers to `RECORDED`."""
    answers = []
    for path, body in requests(name):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            url.removesuffix("/v1") + path, data, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request) as response:
                status, reply = response.status, json.load(response)
        except urllib.error.HTTPError as error:
            status, reply = error.code, json.load(error)
        answers.append({"path": path, "body": body, "status": status, "reply": reply})
    RECORDED.write_text("[" + ",\n".join(map(json.dumps, answers)) + "]\n")


if __name__ == "__main__":
    record(*sys.argv[1:])
