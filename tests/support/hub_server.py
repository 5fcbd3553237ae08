"""A server of the tests that speaks as much of the hub's protocol as a commit needs."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

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
