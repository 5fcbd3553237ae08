"""The likeliest tokens at the positions of a text, as servers report them and as the ledger keeps them."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

LOWEST = -9999.0
"""What endpoints write for a log-probability that is not finite."""
Position = list[tuple[float, int]]
"""The listed tokens of a position: log-probability and id."""
TOKEN_ID = "token_id:"
"""The prefix of a token that is reported by its id (vLLM: `return_tokens_as_token_ids`)."""


class Top(NamedTuple):
    """The likeliest tokens of some positions, the likeliest first."""

    ids: np.ndarray
    """uint32, (N, k)."""
    log_p: np.ndarray
    """fp32, (N, k), at temperature 1."""

    @classmethod
    def of(cls, positions: Sequence[Position | None], k: int) -> Top:
        """Return the k likeliest of the listed tokens.

        Raises:
            ValueError: fewer are listed.
        """
        ids, log_p = np.empty((len(positions), k), np.uint32), np.empty((len(positions), k), np.float32)
        for index, position in enumerate(positions):
            best = sorted(position or (), key=lambda each: -each[0])[:k]
            if len(best) < k:
                raise ValueError(f"it lists {len(best)} tokens")
            ids[index] = [token for _, token in best]
            log_p[index] = [finite(value) for value, _ in best]
        return cls(ids, log_p)

    def packed(self) -> dict[str, Any]:
        """Return it as a JSON value, which the ledger keeps."""
        data = self.ids.astype("<u4").tobytes() + self.log_p.astype("<f4").tobytes()
        return {"shape": list(self.ids.shape), "top": base64.b64encode(zlib.compress(data, 1)).decode()}

    @classmethod
    def unpacked(cls, value: Mapping[str, Any]) -> Top:
        """Return the inverse of `packed`."""
        data, (count, k) = zlib.decompress(base64.b64decode(value["top"])), value["shape"]
        ids = np.frombuffer(data, "<u4", count * k).reshape(count, k)
        return cls(ids, np.frombuffer(data, "<f4", offset=ids.nbytes).reshape(count, k))


def finite(value: Any) -> float:
    """Return a log-probability that JSON can hold."""
    return max(float(value), LOWEST) if math.isfinite(float(value)) else LOWEST


def token_logprobs(logprobs: Any) -> list[dict[str, Any]]:
    """Return the tokens of a completion with their log-probabilities, as a chat completion lists them; empty if there are none. Some hosts answer a chat
    with the lists of the older completions: `tokens`, `token_logprobs` and `top_logprobs`, which maps tokens.

    Raises:
        TypeError, ValueError: it has another structure than the API specifies.
    """
    if not isinstance(logprobs, Mapping):
        return []
    if content := logprobs.get("content"):
        return content
    tokens, values = logprobs.get("tokens") or [], logprobs.get("token_logprobs") or []
    tops = logprobs.get("top_logprobs") or [{}] * len(tokens)
    return [
        {
            "token": token,
            "logprob": LOWEST if value is None else value,
            "top_logprobs": [{"token": other, "logprob": p} for other, p in (top or {}).items()],
        }
        for token, value, top in zip(tokens, values, tops, strict=True)
    ]


def written_top(response: Mapping[str, Any], choice: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tokens of a completion with the likeliest ones at each, as a JSON value: `prompt` and `written` (token ids) and a packed `Top`.
    Empty if the server does not report tokens by their ids, or if a token may be in its list only because it was written.

    Raises:
        KeyError, TypeError, ValueError: it has another structure than the API specifies.
    """
    prompt, written = response.get("prompt_token_ids"), choice.get("token_ids")
    content = (choice.get("logprobs") or {}).get("content") or ()
    if not prompt or not written or len(content) != len(written):
        return {}
    if any(not token["token"].startswith(TOKEN_ID) for token in content):
        return {}
    positions: list[Position | None] = [
        [(top["logprob"], int(top["token"].removeprefix(TOKEN_ID))) for top in token["top_logprobs"]]
        for token in content
    ]
    for token, position in zip(written, positions, strict=True):
        if token == min(position or [(0.0, token)])[1]:  # it may stand in the place of a likelier one
            return {}
    k = min(len(position or ()) for position in positions)
    return {"prompt": prompt, "written": written, **Top.of(positions, k).packed()}
