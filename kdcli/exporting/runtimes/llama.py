"""llama.cpp on the CPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kdcli.errors import ExportError
from kdcli.measure.runtime import Writes
from kdcli.measure.spec import Encoded, MeasureSpec

GREEDY = {"samplers": ["top_k"], "top_k": 1}


class Writer(Writes):
    """A GGUF file, run by llama.cpp on the CPU: its server, called within the process, with one slot.

    The server answers with the likeliest tokens of one position at a time, and with the log-probability of the token
    that it wrote, both from the logits before any sampler. So a token's log-probability is had by making the server
    write it: a bias makes it the certain choice. What stands before it is in the server's cache from the last request.
    """

    packages, extra = ("xllamacpp",), "laptop"
    certain = 1e6
    """The bias of the token that is to be written."""

    def __init__(self, spec: MeasureSpec):
        import xllamacpp

        self.pad = {"input_ids": 0}
        options = xllamacpp.CommonParams()
        options.model.path = spec.path
        options.n_ctx = spec.max_length + spec.new_tokens + 1
        options.n_parallel, options.n_gpu_layers, options.cache_ram_mib = 1, 0, 0
        options.cpuparams.n_threads = options.cpuparams_batch.n_threads = spec.threads
        options.fit_params = options.warmup = options.ctx_shift = options.ui = False
        options.verbosity = 1  # errors
        self.max_length, self.special = spec.max_length, spec.special
        self.whole: int | None = None
        try:
            self.server = xllamacpp.Server(options)
        except RuntimeError as error:
            raise ExportError(f"llama.cpp cannot load {spec.path}: {error}") from None

    def encode(self, prompts: Sequence[tuple[str, list[int]]]) -> list[Encoded]:
        return [{"input_ids": np.asarray(ids[: self.max_length], np.int64)} for _, ids in prompts]

    def write(self, prompt: Encoded, count: int, told: Callable[[int], object]) -> None:
        """As the other runtimes do; pieces of a character are kept back until it is whole, and the last one alone is told."""

        def heard(part: dict[str, Any]) -> None:  # what is raised here is lost
            refused.extend([part["error"]["message"]] if "error" in part else [])
            for token in part.get("__verbose", {}).get("tokens", ()):
                told(token)

        refused: list[str] = []
        options = {"stream": True, "verbose": True, "return_tokens": True, "cache_prompt": False}
        ids = prompt["input_ids"][0].tolist()
        request = GREEDY | options | {"prompt": ids, "n_predict": count, "ignore_eos": True}
        self.server.handle_completions(request, heard)
        if refused:
            raise ExportError(f"llama.cpp refused a request: {refused[0]}")

    def score(self, rows: Sequence[tuple[list[int], list[int]]]) -> dict[str, np.ndarray]:
        """Of each row's counted tokens the log-probability after those before, and the likeliest token there."""
        found = [self._token(ids[:place], ids[place]) for ids, places in rows for place in places]
        return {
            "log_prob": np.asarray([log_prob for log_prob, _ in found], np.float32),
            "top": np.asarray([top for _, top in found], np.int64),
        }

    def same_tokens(self, prompts: Sequence[tuple[str, list[int]]]) -> np.ndarray:
        """Whether the file's own tokenizer cuts each text into the ids given, bool (N,)."""
        return np.asarray([self._tokens(text) == ids for text, ids in prompts], bool)

    def read(self, text: Sequence[str]) -> Encoded:
        """By the file's own tokenizer."""
        return {"input_ids": np.asarray(self._tokens(text[0])[: self.max_length], np.int64)}

    def _tokens(self, text: str) -> list[int]:
        import urllib.request

        body = {"content": text, "add_special": self.special, "parse_special": True}
        request = urllib.request.Request(
            f"{self.server.listening_address}/tokenize",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        direct = urllib.request.ProxyHandler({})  # this machine, whatever the proxy
        with urllib.request.build_opener(direct).open(request) as answer:
            found: list[int] = json.load(answer)["tokens"]
            return found

    def _token(self, before: list[int], token: int) -> tuple[float, int]:
        said = self._written(before, token)
        if said is not None:
            return said["logprob"], said["top_logprobs"][0]["id"]
        # a piece of a character, which the server keeps back until it is whole: have another written, and look for it
        if self.whole is None:
            self.whole = next(other for other in range(token) if self._written(before, other))
        for most in (100, 10**6):
            said = self._written(before, self.whole, most)
            listed = {entry["id"]: entry["logprob"] for entry in said["top_logprobs"]} if said else {}
            if token in listed:
                return listed[token], next(iter(listed))
        raise ExportError(f"llama.cpp does not say how likely token {token} is")

    def _written(self, before: list[int], token: int, most: int = 1) -> dict[str, Any] | None:
        """What is said of a token that is written, and the likeliest ones; None of a piece of a character."""
        said = self._ask(before, n_probs=most, logit_bias=[[token, self.certain]])
        found = said["choices"][0]["logprobs"]
        if found is None:
            return None
        entry: dict[str, Any] = found["content"][0]
        if entry["id"] != token or said["usage"]["prompt_tokens"] != len(before):
            raise ExportError(
                f"llama.cpp was to write token {token} after {len(before)} tokens, and wrote {entry['id']} "
                f"after {said['usage']['prompt_tokens']}"
            )
        return entry

    def _ask(self, ids: list[int], **options: Any) -> dict[str, Any]:
        """One token."""
        request = GREEDY | options | {"prompt": ids, "n_predict": 1}
        said: dict[str, Any] = self.server.handle_completions(request)
        if "error" in said:
            raise ExportError(f"llama.cpp refused a request: {said['error']['message']}")
        return said
