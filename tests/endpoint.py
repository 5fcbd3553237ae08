"""A server of the tests that speaks as much of the OpenAI protocol as kdcli asks for, and answers at once."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[[dict[str, Any]], list[dict[str, Any]] | int]
"""The choices for a request's body, or an HTTP status."""


class Host:
    """A server on a free port of this machine, with `reply` for its model. What it was asked stands in `bodies`, the keys in `keys`."""

    def __init__(self, reply: Reply):
        self.reply, self.bodies, self.keys = reply, list[dict[str, Any]](), set[str | None]()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.bodies.append(body)
                outer.keys.add(self.headers.get("Authorization"))
                said = outer.reply(body)
                if isinstance(said, int):
                    self._send(said, {"error": {"message": f"no: {self.headers.get('Authorization')}"}})
                    return
                usage = {
                    "prompt_tokens": 10,
                    "completion_tokens": 2 * len(said),
                    "total_tokens": 10 + 2 * len(said),
                }
                choices = [
                    {"index": number, "finish_reason": "stop"} | one for number, one in enumerate(said)
                ]
                self._send(200, {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"],
                                 "choices": choices, "usage": usage})  # fmt: skip

            def _send(self, status: int, told: dict[str, Any]) -> None:
                data = json.dumps(told).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def said(text: str, finish: str = "stop") -> dict[str, Any]:
    """A choice of one text."""
    return {"message": {"role": "assistant", "content": text}, "finish_reason": finish}


def likely(shares: dict[str, float]) -> dict[str, Any]:
    """A choice with the first token's probabilities, the likeliest of which is written."""
    top = [
        {"token": token, "logprob": math.log(share), "bytes": None}
        for token, share in sorted(shares.items(), key=lambda one: -one[1])
    ]
    return said(top[0]["token"]) | {"logprobs": {"content": [top[0] | {"top_logprobs": top}]}}
