"""Publishing on the hub, against a server of its protocol on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.commands import naming
from support.hub_server import TOKEN, HubServer

from kdcli.errors import ConfigError
from kdcli.hub import require_pushable


@pytest.fixture
def server() -> Iterator[HubServer]:
    host = HubServer()
    yield host
    host.shutdown()
    host.server_close()


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
