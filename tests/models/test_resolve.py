"""Names of models: folders, the home, shipped models and the hub, the last over a real HTTP server on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from taro.core.errors import ConfigError, ModelError
from taro.models.resolve import SHIPPED, compute_device, folder_sha256, model_id, model_name, resolve_model

COMMIT, OLDER = "1" * 40, "2" * 40
REVISIONS = {"main": COMMIT, "v1": OLDER, COMMIT: COMMIT, OLDER: OLDER}


def files_of(commit: str) -> dict[str, bytes]:
    """What the hub has at a commit: a policy's small files, and some that no model needs."""
    folder = resolve_model("sandbox:policy")
    found = {name: (folder / name).read_bytes() for name in ("config.json", "chat_template.jinja", "model.safetensors")}
    return found | {"weights.bin": b"a pickle", "run.py": b"code", "note.json": commit.encode()}


class Hub(BaseHTTPRequestHandler):
    """Answers what huggingface_hub asks for one model, acme/tiny; anything else is not found."""

    protocol_version = "HTTP/1.1"
    asked: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.asked.append(path)
        parts = path.strip("/").split("/")
        if parts[:4] == ["api", "models", "acme", "tiny"] and (
                commit := REVISIONS.get(parts[5] if len(parts) > 5 else "main")):
            files = files_of(commit)
            listed = [{"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                      for name, data in files.items()]
            about = {"_id": "0", "id": "acme/tiny", "sha": commit, "siblings": [{"rfilename": name} for name in files]}
            self.answer(200, json.dumps(listed if parts[4:5] == ["tree"] else about).encode())
        elif parts[:3] == ["acme", "tiny", "resolve"] and parts[4] in files_of(REVISIONS[parts[3]]):
            data = files_of(REVISIONS[parts[3]])[parts[4]]
            tag = hashlib.sha1(data).hexdigest()
            self.answer(200, data, {"X-Repo-Commit": REVISIONS[parts[3]], "ETag": f'"{tag}"'})
        else:
            known = parts[2:4] == ["acme", "tiny"]
            self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"})

    def answer(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        """Sends the status, the headers and, but for HEAD, the data."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@contextmanager
def hub() -> Iterator[tuple[str, list[str]]]:
    """(endpoint, paths that were asked for) of a hub that runs inside the block."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OneHub", (Hub,), {"asked": asked}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


SAY = """
import sys
from taro.core.errors import TaroError
from taro.models.resolve import model_id, model_name, resolve_model
for name in sys.argv[1:]:
    try:
        folder = resolve_model(name)
        print(model_name(folder), (folder / "note.json").read_text(), *sorted(path.name for path in folder.iterdir()))
    except TaroError as error:
        print(f"{type(error).__name__} {error}")
"""


def resolved(names: list[str], cache: Path, **environment: str) -> list[str]:
    """A line a name, from a fresh process: huggingface_hub reads its environment when it is imported."""
    said = subprocess.run([sys.executable, "-c", SAY, *names], capture_output=True, text=True, check=True, cwd=cache,
                          env={**os.environ, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0",
                               "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment})
    return said.stdout.splitlines()


def test_a_model_is_fetched_from_the_hub_once_and_found_in_its_cache(tmp_path: Path) -> None:
    with hub() as (endpoint, asked):
        newest, older, unknown, revision = resolved(
            ["acme/tiny", "acme/tiny@v1", "acme/absent", "acme/tiny@v9"], tmp_path, HF_ENDPOINT=endpoint)
    wanted = "chat_template.jinja config.json model.safetensors note.json"  # neither the pickle nor the code
    assert newest == f"acme/tiny@{COMMIT} {COMMIT} {wanted}" and older == f"acme/tiny@{OLDER} {OLDER} {wanted}"
    assert not any(path.endswith((".bin", ".py")) for path in asked)
    assert unknown.startswith("ModelError acme/absent: no such folder, and the hub does not give a model of that name")
    assert "hf download acme/tiny --revision v9 --local-dir DIR" in revision
    for environment in ({"HF_ENDPOINT": endpoint}, {"HF_HUB_OFFLINE": "1"}):  # nobody listens there any more
        again, never = resolved(["acme/tiny@v1", "acme/other"], tmp_path, **environment)
        assert again == older
        assert "run `hf download acme/other --local-dir DIR` on a machine that has one" in never


def test_a_folder_wins_over_the_hub_and_the_home_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "acme/tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("acme/tiny") == Path("acme/tiny")
    assert resolve_model("~/acme/tiny") == tmp_path / "acme/tiny" == resolve_model(tmp_path / "acme/tiny")
    for name in ("nowhere", "/nowhere/at/all", "../x/y", "a/b/c", "hf://acme/tiny", "", "acme/tiny@", "sandbox"):
        with pytest.raises(ModelError, match=r"no such model folder; expected a folder .* sandbox:NAME, or a hub id"):
            resolve_model(name)


def test_names_and_folders_go_both_ways(tmp_path: Path) -> None:
    for name in SHIPPED:
        assert model_name(resolve_model(f"sandbox:{name}")) == f"sandbox:{name}"
    assert model_name(tmp_path / "policy") == str(tmp_path / "policy")
    cached = tmp_path / "models--acme--tiny" / "snapshots" / COMMIT
    assert (model_name(cached), model_id(cached)) == (f"acme/tiny@{COMMIT}", ("acme/tiny", COMMIT))
    assert model_id(tmp_path / "mine") == ("mine", None), "the folders of a machine stay out of a manifest"


def test_the_digest_of_a_folder_is_of_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = folder_sha256(tmp_path)
    (tmp_path / "README.md").write_text("beside the model")
    assert folder_sha256(tmp_path) == before
    (tmp_path / "config.json").rename(tmp_path / "other.json")
    assert folder_sha256(tmp_path) != before


def test_devices_are_named_one_way() -> None:
    assert compute_device("cpu") == torch.device("cpu")
    assert compute_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("gpu", "cuda:", "cuda:x", "mps", ""):
        with pytest.raises(ConfigError, match=r"expected auto, cpu, cuda or cuda:N"):
            compute_device(name)
    with pytest.raises(ConfigError, match=r"device=cuda:999: torch finds [0-9]+ GPUs here"):
        compute_device("cuda:999")
