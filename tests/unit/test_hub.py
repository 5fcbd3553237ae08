"""Publishing on the hub, against a server of its protocol on this machine."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.commands import naming

from kdcli.errors import ConfigError
from kdcli.hub import require_pushable

TOKEN = "hf_" + "t" * 20


class HubServer(ThreadingHTTPServer):
    """As much of the hub as a commit needs: all files go into the commit itself."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, bool] = {}
        """The private ones are true."""
        self.files: dict[str, bytes] = {}
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    server: HubServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(401, {"error": "Invalid username or password."})
        elif self.path == "/api/repos/create":
            query = json.loads(body)
            name = f"{query['organization']}/{query['name']}" if query.get("organization") else query["name"]
            self.server.repositories[name] = query.get("private") or query.get("visibility") == "private"
            self._send(200, {"url": f"http://{self.headers['Host']}/{name}", "name": name, "id": "1"})
        elif self.path.endswith("/preupload/main"):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for file in json.loads(body)["files"]
            ]
            self._send(200, {"files": files, "commitOid": "0" * 40})
        elif self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    self.server.files[value["path"]] = base64.b64decode(value["content"])
            url = f"http://{self.headers['Host']}/me/student/commit/{'1' * 40}"
            self._send(200, {"success": True, "commitOid": "1" * 40, "commitUrl": url, "hookOutput": ""})
        else:  # the check of a card's front matter
            self._send(200, {"errors": [], "warnings": []})

    def do_GET(self) -> None:
        self._send(404, {"error": "Not Found"})

    def _send(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *words: Any) -> None:
        """Nothing is logged."""


@pytest.fixture
def server() -> Iterator[HubServer]:
    host = HubServer()
    yield host
    host.shutdown()


def push(server: HubServer, code: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    """Run code in a process whose hub is the server."""
    own = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": token,
    }
    return subprocess.run(
        [sys.executable, "-c", f"from pathlib import Path\nfrom kdcli.hub import push\n{code}"],
        env=os.environ | own, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_folder_is_published(server: HubServer, tmp_path: Path) -> None:
    """A student without its card or its weights on the hub, in a public repository that nobody asked for; locks and temporary files beside it."""
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# A student\n")
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"graph")
    (tmp_path / ".lock").write_text("")
    code = f"for inside in ('', 'cpu'): print(push(Path({str(tmp_path)!r}), 'me/student', True, inside))"
    done = push(server, code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("/me/student")
    assert server.repositories == {"me/student": True}
    names = ["README.md", "model.safetensors", "onnx/model.onnx"]
    for inside in ("", "cpu/"):
        for name in names:
            assert server.files[inside + name] == (tmp_path / name).read_bytes()
    assert len(server.files) == 2 * len(names) + (".gitattributes" in server.files)
    refused = push(server, f"push(Path({str(tmp_path)!r}), 'me/student', True)", token="hf_" + "x" * 20)
    assert refused.returncode == 1
    assert f"hf upload me/student {tmp_path}" in refused.stderr
    assert "x" * 20 not in refused.stderr


@pytest.mark.parametrize(
    ("repo", "environment", "words"),
    [
        ("student", {}, ["hub.push_to", "OWNER/NAME"]),
        ("me/../student", {}, ["hub.push_to", "OWNER/NAME"]),
        ("me/student", {"HF_HUB_OFFLINE": "1"}, ["hub.push_to", "HF_HUB_OFFLINE"]),
        ("me/student", {"HF_TOKEN": ""}, ["hub.push_to", "HF_TOKEN"]),
    ],
)
def test_what_cannot_be_published_is_refused_before_training(
    repo: str, environment: dict[str, str], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour of training that ends with a missing token."""
    for name, value in (
        {"HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN, "HUGGING_FACE_HUB_TOKEN": ""} | environment
    ).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=naming(*words)):
        require_pushable(repo)
