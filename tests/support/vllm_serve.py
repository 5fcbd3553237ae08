"""`vllm serve` of the tests (rollout.engine=vllm): the same protocol over a Unix socket, answered by a model of transformers.

KDCLI_TEST_VLLM names a file to which each request is appended; a fault may follow it behind a comma: `stale` (new weights are acknowledged
and not taken), `dies` (the third weights end the server), `old` (there is no page for new weights), `refuses` (the model is not known).
"""

from __future__ import annotations

import argparse
import json
import os
import socketserver
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import torch
from support.endpoint import Odd
from support.scoring import VLLM
from transformers import AutoModelForCausalLM

from kdcli.generation import generate

LOG, _, FAULT = os.environ["KDCLI_TEST_VLLM"].partition(",")


class Server(VLLM):
    """The pages that generation needs."""

    updates = 0

    def health(self, body: dict[str, Any]) -> Odd:
        return Odd(status=200, data=b"")

    def collective_rpc(self, body: dict[str, Any]) -> Odd:
        assert body["method"] == "reload_weights"
        self.updates += 1
        if FAULT == "dies" and self.updates == 3:
            os._exit(1)
        if FAULT != "stale":
            self.model = AutoModelForCausalLM.from_pretrained(body["kwargs"]["weights_path"]).eval()
        return Odd(status=200, data=b'{"results": [null]}')

    def reset_prefix_cache(self, body: dict[str, Any]) -> Odd:
        return Odd(status=200, data=b'{"success": true}')

    def completions(self, body: dict[str, Any]) -> Any:
        if not body.get("return_token_ids"):
            return super().completions(body | {"prompt": [body["prompt"]]})
        [tokens] = generate(
            self.model, self.tokenizer, [body["prompt"]], max_new_tokens=body["max_tokens"], batch_size=1,
            temperature=body["temperature"], seeds=[body.get("seed", 0)], ends=body["stop_token_ids"],
        )  # fmt: skip
        choice = {"index": 0, "text": "", "token_ids": tokens, "prompt_logprobs": None}
        return Odd(status=200, data=json.dumps({"choices": [choice]}).encode())


class Handler(BaseHTTPRequestHandler):
    """Hands requests to the server; no two at a time."""

    model: Server

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        with Path(LOG).open("a") as log:
            log.write(json.dumps({"page": self.path, **body}) + "\n")
        reply = self.model(self.path, body)
        self.send_response(reply.status)
        self.end_headers()
        self.wfile.write(reply.data or b"")

    def log_message(self, *arguments: Any) -> None:
        """Print nothing."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("serve")
    parser.add_argument("model", type=Path)
    for name in ("uds", "served-model-name", "max-model-len", "dtype", "generation-config"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--enforce-eager", action="store_true")
    given = parser.parse_args()
    if FAULT == "refuses":
        sys.exit("ValueError: Model architectures ['Odd'] are not supported for now.")
    assert os.environ["VLLM_SERVER_DEV_MODE"] == "1"
    assert "RANK" not in os.environ
    torch.set_num_threads(1)
    lacks = ("collective_rpc",) if FAULT == "old" else ()
    length = int(given.max_model_len)
    Handler.model = Server(given.model, max_length=length, lacks=lacks, name=given.served_model_name)
    socketserver.UnixStreamServer.request_queue_size = 256
    socketserver.UnixStreamServer(given.uds, Handler).serve_forever()


if __name__ == "__main__":
    main()
