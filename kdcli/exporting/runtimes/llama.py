"""Runs models in llama.cpp on the CPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kdcli.errors import ExportError
from kdcli.measure.runtime import CausalLMRuntime
from kdcli.measure.spec import Counted, Encoded, MeasureSpec

GREEDY = {"samplers": ["top_k"], "top_k": 1}


class LlamaCausalLM(CausalLMRuntime):
    """A GGUF file, run by the server of llama.cpp, which is called within the process and has one slot.

    The server returns the most likely tokens of one position at a time, and the log-probability of the token that it generated, both from the
    logits before any sampler. So the log-probability of a given token is obtained by forcing the server to generate it, with a bias.
    The tokens before it are in the server's cache from the previous request.
    """

    files = ("*.gguf",)
    packages, extra = ("xllamacpp",), "laptop"
    bias = 1e6
    """The logit bias of a forced token."""

    def __init__(self, spec: MeasureSpec):
        import xllamacpp

        options = xllamacpp.CommonParams()
        options.model.path = spec.path
        options.n_ctx = spec.max_length + spec.new_tokens + 1
        options.n_parallel, options.n_gpu_layers, options.cache_ram_mib = 1, 0, 0
        options.cpuparams.n_threads = options.cpuparams_batch.n_threads = spec.threads
        options.fit_params = options.warmup = options.ctx_shift = options.ui = False
        options.verbosity = 1  # errors
        self.max_length, self.add_special_tokens = spec.max_length, spec.add_special_tokens
        self.printable: int | None = None
        try:
            self.server = xllamacpp.Server(options)
        except RuntimeError as error:
            raise ExportError(
                f"llama.cpp cannot load {spec.path}: {error}; export it again, or update xllamacpp"
            ) from None

    def encode(self, prompts: Sequence[tuple[str, list[int]]]) -> list[Encoded]:
        return [{"input_ids": np.asarray(ids[: self.max_length], np.int64)} for _, ids in prompts]

    def generate(self, prompt: Encoded, count: int, listener: Callable[[int], object]) -> None:
        """Continue a prompt, as in the base class. The server holds back the parts of a character until it is complete, and sends the last one alone."""
        ids = prompt["input_ids"][0].tolist()
        self._stream(
            GREEDY | {"prompt": ids, "n_predict": count, "ignore_eos": True, "cache_prompt": False}, listener
        )

    def complete(
        self,
        prompt: Sequence[int],
        max_new_tokens: int,
        ends: Sequence[int],
        temperature: float = 0.0,
        seed: int = 0,
        listener: Callable[[int], object] | None = None,
    ) -> list[int]:
        """Continue a prompt, as in the base class. The server does not send the end token that it stops at."""
        written: list[int] = []

        def receive(token: int) -> None:
            if not written or written[-1] not in ends:
                written.append(token)
                if listener is not None:
                    listener(token)

        sampled = {"samplers": ["temperature"], "temperature": temperature, "seed": seed % 2**32}
        request = {
            "prompt": list(prompt),
            "n_predict": max_new_tokens,
            **(sampled if temperature else GREEDY),
        }
        self._stream(request, receive)
        stopped = len(written) < max_new_tokens and (not written or written[-1] not in ends)
        return [*written, *(list(ends)[:1] if stopped else [])]

    def _stream(self, request: dict[str, Any], listener: Callable[[int], object]) -> None:
        """Generate, and hand over each token."""

        def receive(part: dict[str, Any]) -> None:  # exceptions raised here are lost
            refused.extend([part["error"]["message"]] if "error" in part else [])
            for token in part.get("__verbose", {}).get("tokens", ()):
                listener(token)

        refused: list[str] = []
        options = {"stream": True, "verbose": True, "return_tokens": True}
        self.server.handle_completions(request | options, receive)
        if refused:
            raise ExportError(f"llama.cpp refused a request: {refused[0]}")

    def score(self, rows: Sequence[Counted]) -> dict[str, np.ndarray]:
        scores = [self._score_token(ids[:at], ids[at]) for ids, positions in rows for at in positions]
        return {
            "log_prob": np.asarray([log_prob for log_prob, _ in scores], np.float32),
            "top": np.asarray([top for _, top in scores], np.int64),
        }

    def tokenize(self, text: str) -> list[int]:
        import urllib.request

        body = {"content": text, "add_special": self.add_special_tokens, "parse_special": True}
        request = urllib.request.Request(
            f"{self.server.listening_address}/tokenize",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        direct = urllib.request.ProxyHandler({})  # this machine is reached without the proxy
        with urllib.request.build_opener(direct).open(request) as answer:
            ids: list[int] = json.load(answer)["tokens"]
            return ids

    def _score_token(self, before: list[int], token: int) -> tuple[float, int]:
        """Return the log-probability of a token after others, and the most likely token there."""
        entry = self._force(before, token)
        if entry is not None:
            return entry["logprob"], entry["top_logprobs"][0]["id"]
        # the server holds back a part of a character: another token is forced, and this token is among the likely ones
        if self.printable is None:
            self.printable = next(other for other in range(token) if self._force(before, other))
        for count in (100, 10**6):
            entry = self._force(before, self.printable, count)
            likely = {each["id"]: each["logprob"] for each in entry["top_logprobs"]} if entry else {}
            if token in likely:
                return likely[token], next(iter(likely))
        raise ExportError(f"llama.cpp does not return the log-probability of token {token}")

    def _force(self, before: list[int], token: int, count: int = 1) -> dict[str, Any] | None:
        """Return the log-probability of a token that the server is forced to generate, and of the `count` most likely ones; None for a part of a
        character."""
        answer = self._request(before, n_probs=count, logit_bias=[[token, self.bias]])
        logprobs = answer["choices"][0]["logprobs"]
        if logprobs is None:
            return None
        entry: dict[str, Any] = logprobs["content"][0]
        if entry["id"] != token or answer["usage"]["prompt_tokens"] != len(before):
            raise ExportError(
                f"llama.cpp was forced to generate token {token} after {len(before)} tokens, and generated {entry['id']} "
                f"after {answer['usage']['prompt_tokens']}"
            )
        return entry

    def _request(self, ids: list[int], **options: Any) -> dict[str, Any]:
        """Generate one token."""
        request = GREEDY | options | {"prompt": ids, "n_predict": 1}
        answer: dict[str, Any] = self.server.handle_completions(request)
        if "error" in answer:
            raise ExportError(f"llama.cpp refused a request: {answer['error']['message']}")
        return answer
