"""A server of the tests that speaks as much of the OpenAI protocol as kdcli asks for, and fails as it is told to; and processes that
ask it."""

from __future__ import annotations

import asyncio
import inspect
import json
import math
import multiprocessing
import os
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from kdcli.teachers.remote.wire import ChatClient


@dataclass(frozen=True)
class Odd:
    """An answer that is not as the protocol promises, or not at once. `choices` is what it should have been."""

    choices: list[dict[str, Any]] = field(default_factory=list)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    data: bytes | None = None
    """The body, in place of the choices'."""
    cut: float | None = None
    """The connection is dropped after this share of what is sent, the headers included; 0: before anything."""
    stall: float | None = None
    """Nothing more comes after this share, until the client goes."""
    pieces: int = 1
    """It comes in so many pieces, 10 ms apart."""
    delay: float = 0.0
    """Seconds before it is sent."""
    twice: bool = False
    """It is sent twice, on the same connection."""


Said = list[dict[str, Any]] | int | Odd
Reply = Callable[[dict[str, Any]], Said | Awaitable[Said]]
"""The choices for a request's body, or an HTTP status, or what is odd about the answer."""

Pages = Callable[[str, dict[str, Any]], Said]
"""As `Reply`, by the path of a request, too."""


class Host:
    """A server on a free port of this machine, in a thread, with `reply` for its model. What it was asked stands in `bodies`, when in
    `times` (seconds of the monotonic clock), and with which key in `keys`.

    Args:
        pages: what it answers to everything but chat completions, by its path and body.
    """

    def __init__(self, reply: Reply, pages: Pages | None = None):
        self.pages = pages
        self.reply, self.bodies, self.keys = reply, list[dict[str, Any]](), list[str | None]()
        self.times: list[float] = []
        self.paid: Counter[str] = Counter()
        """How often the last message of each prompt had a whole and good answer."""
        self.under_way = 0
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=256)
        )
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.under_way += 1
        try:
            line, *head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            method, path, _ = line.split()
            headers = {
                name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head)
            }
            body = json.loads(await reader.readexactly(int(headers.get("content-length", 0))) or b"{}")
            if method == "GET" and self.pages is None:
                await self._send(Odd(status=404), body, None, reader, writer)
                return
            self.times.append(time.monotonic())
            self.keys.append(headers.get("authorization"))
            self.bodies.append(body)
            is_chat = self.pages is None or path.endswith("/chat/completions")
            told = self.reply(body) if is_chat else self.pages(path, body)
            if inspect.isawaitable(told):
                told = await told
            if isinstance(told, int):
                told = Odd(status=told)
            elif isinstance(told, list):
                told = Odd(told)
            await self._send(told, body, headers.get("authorization"), reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # a client that goes
        finally:
            self.under_way -= 1
            writer.close()

    async def _send(
        self, odd: Odd, body: dict[str, Any], key: str | None, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:  # fmt: skip
        data = odd.data
        if data is None and odd.status != 200:
            data = json.dumps({"error": {"message": f"no: {key}"}}).encode()
        elif data is None:
            choices = [
                {"index": number, "finish_reason": "stop"} | one for number, one in enumerate(odd.choices)
            ]
            wrote = 2 * len(choices)
            usage = {"prompt_tokens": 10, "completion_tokens": wrote, "total_tokens": 10 + wrote}
            data = json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": body["model"],
                               "choices": choices, "usage": usage}).encode()  # fmt: skip
        headers = {"Content-Type": "application/json", "Content-Length": str(len(data))} | odd.headers
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        whole = f"HTTP/1.1 {odd.status} So\r\n{head}\r\n".encode() + data
        if odd.delay:
            await asyncio.sleep(odd.delay)
        share = odd.cut if odd.cut is not None else odd.stall
        if share is not None:
            writer.write(whole[: int(share * len(whole))])
            await writer.drain()
            if odd.stall is not None:
                await reader.read()  # until the client goes
            writer.transport.abort()
            return
        if odd.choices and odd.data is None and odd.status == 200:
            self.paid[body["messages"][-1]["content"]] += 1
        size = math.ceil(len(whole) / odd.pieces)
        for start in range(0, len(whole), size):
            writer.write(whole[start : start + size])
            await writer.drain()
            if odd.pieces > 1:
                await asyncio.sleep(0.01)
        if odd.twice:
            writer.write(whole)
            await writer.drain()

    def later(self, seconds: float, do: Callable[[], None]) -> None:
        """Do something while the server goes on; to be called by `reply`."""
        self._loop.call_later(seconds, do)

    def close(self) -> None:
        if self._loop.is_closed():
            return

        async def stop() -> None:
            self._server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


Served = Callable[..., Host]
"""Starts a server that is stopped when the test ends."""


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


def refusing(refuses: Callable[[dict[str, Any]], bool], error: Any, reply: Reply) -> Reply:
    """The replies of a host that refuses some requests (with an error as its API words it, and its status) and answers the others."""
    status = error["code"] if isinstance(error, dict) and isinstance(error.get("code"), int) else 400

    def answer(body: dict[str, Any]) -> Said | Awaitable[Said]:
        return (
            Odd(status=status, data=json.dumps({"error": error}).encode()) if refuses(body) else reply(body)
        )

    return answer


# ---- those that ask -----------------------------------------------------------------------------------


def last(body: dict[str, Any]) -> str:
    """The last message of a request."""
    return body["messages"][-1]["content"]


def question(prompt: str, **parameters: Any) -> dict[str, Any]:
    """A request of one message."""
    return {"messages": [{"role": "user", "content": prompt}], "max_tokens": 8} | parameters


def ask_all(url: str, ledger: Path, prompts: list[str], into: Path, key: str = "-", **options: Any) -> None:
    """Write what prompts are answered, one JSON line each, as it comes."""
    os.environ["KEY_OF_THE_TESTS"] = key
    with into.open("w") as stream:
        endpoint = ChatClient(url, "m", "KEY_OF_THE_TESTS", ledger=ledger, **options)
        for number, answer in endpoint.query(question(prompt) for prompt in prompts):
            texts = [choice["text"] for choice in answer.choices]
            print(json.dumps([prompts[number], answer.status, *texts]), file=stream)


_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["openai.resources.chat.completions", "kdcli.teachers.remote.wire"])


def apart(target: Callable[..., None], *arguments: Any, **options: Any) -> ForkServerProcess:
    """A process that does something of a test; it begins soon, as the libraries are loaded once for all."""
    process = _CONTEXT.Process(target=target, args=arguments, kwargs=options, daemon=True)
    process.start()
    return process
