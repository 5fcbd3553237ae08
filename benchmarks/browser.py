"""A headless Chromium without a network but this machine, controlled over a pipe (its DevTools protocol)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Quiet(SimpleHTTPRequestHandler):
    """`python -m http.server`, without log lines."""

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Where a folder is served."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def chromium() -> str | None:
    """Where the browser is; None: it is not installed."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page:
    """A page in a browser of its own; a context manager."""

    def __init__(self, url: str, profile: Path, width: int = 1100, height: int = 860):
        self.url, self.profile, self.size = url, profile, (width, height)
        self.received, self.number = b"", 0

    def __enter__(self) -> Page:
        program = chromium()
        assert program, "Chromium is needed: install the package chromium"
        to_read, self.to = os.pipe()
        self.back, to_write = os.pipe()
        words = [
            program, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={self.profile}",
            "--remote-debugging-pipe", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "about:blank",
        ]  # fmt: skip
        # the browser reads from 3 and writes to 4
        begin = "import os, sys; [os.dup2(int(sys.argv[n]), n + 2) for n in (1, 2)]; os.execv(sys.argv[3], sys.argv[3:])"
        self.child = subprocess.Popen(
            [sys.executable, "-c", begin, str(to_read), str(to_write), *words],
            pass_fds=(to_read, to_write),
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self.session: dict[str, str] = {}
        target = self.tell("Target.createTarget", url="about:blank")["targetId"]
        attached = self.tell("Target.attachToTarget", targetId=target, flatten=True)
        self.session = {"sessionId": attached["sessionId"]}
        width, height = self.size
        self.tell(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.tell("Page.navigate", url=self.url)
        return self

    def __exit__(self, *_: Any) -> None:
        self.child.terminate()
        self.child.wait()
        os.close(self.to)
        os.close(self.back)

    def tell(self, method: str, **params: Any) -> Any:
        """Call a method of the protocol."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params} | self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.received:
                found = os.read(self.back, 1 << 20)
                assert found, "the browser ended"
                self.received += found
            one, _, self.received = self.received.partition(b"\0")
            answer = json.loads(one)
            if answer.get("id") == self.number:
                return answer["result"]

    def ask(self, expression: str) -> Any:
        """The value of an expression in JavaScript, which may be a promise."""
        found = self.tell("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, state: str, seconds: float = 60) -> None:
        """Wait for the page's state."""
        ends = time.monotonic() + seconds
        while (found := self.ask("document.body?.dataset.state")) != state:
            status = self.ask("document.getElementById('status')?.textContent")
            assert found != "failed", status
            assert time.monotonic() < ends, status
            time.sleep(0.1)

    def choose(self, dtype: str) -> None:
        """Have the page of `kdcli export hardware=browser` answer by one of its files, fp32 or q8, and wait for it."""
        self.until("ready")
        if self.ask("document.getElementById('dtype').value") != dtype:
            self.ask(
                f"(() => {{ const s = document.getElementById('dtype'); s.value = '{dtype}'; "
                "document.body.dataset.state = ''; s.dispatchEvent(new Event('change')); })()"
            )
            self.until("ready")

    def rows(self) -> list[list[str]]:
        """The cells of its table: text, label, the teacher's answer, the student's, and its milliseconds."""
        cells: list[list[str]] = self.ask(
            "[...document.querySelectorAll('#rows tr')].map((line) => [...line.cells].map((cell) => cell.innerText))"
        )
        return cells
