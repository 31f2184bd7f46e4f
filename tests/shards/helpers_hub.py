"""What a hub on loopback holds, for the tests; `helpers_hub_server` serves it.

Every request is written down (`calls`), bytes of large files are counted, faults can be scripted (`fault`)."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

__all__ = ["READER", "SIGNATURE", "WRITER", "Blob", "LoopbackHub", "RefusedCallError", "Repo", "use_hub"]

READER, WRITER = "hf_reader_token_of_the_test", "hf_writer_token_of_the_test"
SIGNATURE = "secret-signature-of-the-test"
LFS_SUFFIXES = (".tar", ".parquet")
Action = Callable[[Any], bool]
"""what a scripted fault does with the handler of a request; True where it has answered it"""


@dataclass(frozen=True)
class Blob:
    """A file of a commit: its size, git's sha1 over it, and the sha256 of a large one."""

    size: int
    oid: str
    lfs: str | None


@dataclass
class Repo:
    """A data set's history: trees by commit, commits by branch or tag."""

    name: str
    private: bool = True
    gated: bool = False
    trees: dict[str, dict[str, Blob]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def resolve(self, revision: str) -> str | None:
        """The commit of a branch, a tag or a commit."""
        commit = self.refs.get(revision, revision)
        return commit if commit in self.trees else None

    def commit(self, tree: dict[str, Blob], branch: str = "main") -> str:
        """A new commit on top of a branch."""
        text = json.dumps([self.name, len(self.trees), sorted((name, blob.oid) for name, blob in tree.items())])
        commit = hashlib.sha1(text.encode()).hexdigest()
        self.trees[commit], self.refs[branch] = tree, commit
        return commit

    @property
    def files(self) -> dict[str, Blob]:
        """Those of the main branch."""
        return self.trees[self.refs["main"]]


class RefusedCallError(Exception):
    """An answer that is an error: status, the hub's error code, its message."""


class LoopbackHub:
    """What the hub holds and what was asked of it; `url` and `cdn` are its two origins."""

    def __init__(self, *, page: int = 1000) -> None:
        self.url = self.cdn = ""
        self.repos: dict[str, Repo] = {}
        self.buckets: dict[str, dict[str, Blob]] = {}
        self.objects: dict[str, bytes] = {}
        self.small: dict[str, bytes] = {}
        self.calls: list[str] = []
        self.uploaded = self.served = 0
        self.page, self.expired = page, False
        self.xet: Path | None = None
        self.known: dict[str, Path] = {}
        self.commits_seen: list[int] = []
        self.watch: Callable[[int], None] = lambda total: None
        self._faults: list[list[Any]] = []
        self.lock = threading.RLock()

    def add_repo(self, name: str, files: dict[str, bytes], *, private: bool = True, gated: bool = False) -> Repo:
        """A repository with one commit of `files` above the first, empty one."""
        repo = self.repos[name] = Repo(name, private, gated)
        repo.commit({".gitattributes": self.blob(".gitattributes", b"*.tar filter=lfs\n")})
        if files:
            self.add_commit(repo, files)
        return repo

    def add_commit(self, repo: Repo, files: dict[str, bytes], branch: str = "main") -> str:
        """A commit with `files` added to those of the branch."""
        return repo.commit({**repo.files, **{name: self.blob(name, data) for name, data in files.items()}}, branch)

    def add_bucket(self, name: str, files: dict[str, bytes]) -> None:
        """A bucket: all its files are kept as large ones."""
        self.buckets[name] = {path: self.blob(f"{path}.tar", data) for path, data in files.items()}

    def blob(self, name: str, data: bytes) -> Blob:
        """Keeps the bytes of a file and gives what a tree says of it."""
        oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        if not self.large(name, len(data)):
            self.small[oid] = data
            return Blob(len(data), oid, None)
        sha256 = hashlib.sha256(data).hexdigest()
        self.objects[sha256] = data
        return Blob(len(data), hashlib.sha1(sha256.encode()).hexdigest(), sha256)

    @staticmethod
    def large(name: str, size: int) -> bool:
        """Whether a file is kept as a large one."""
        return name.endswith(LFS_SUFFIXES) or size > 10 << 20

    def bytes_of(self, blob: Blob) -> bytes:
        """The content of a file."""
        return self.small[blob.oid] if blob.lfs is None else self.objects[blob.lfs]

    def fault(self, pattern: str, action: Action, *, times: int = 1) -> None:
        """The next `times` requests whose `METHOD /path` matches get `action` first."""
        self._faults.append([re.compile(pattern), action, times])

    def faulty(self, handler: Any, call: str) -> bool:
        """Runs the first fault that matches; whether it has answered."""
        with self.lock:
            found = next((one for one in self._faults if one[2] > 0 and one[0].search(call)), None)
            if found is None:
                return False
            found[2] -= 1
        return bool(found[1](handler))

    def count(self, pattern: str) -> int:
        """How many requests matched."""
        return sum(1 for call in self.calls if re.search(pattern, call))

    def clear_faults(self) -> None:
        """No fault is left."""
        self._faults, self.watch = [], lambda total: None

    def forget(self) -> None:
        """Starts the counts anew."""
        self.calls, self.uploaded, self.served = [], 0, 0


def use_hub(monkeypatch: pytest.MonkeyPatch, hub: LoopbackHub, token: str | None = READER) -> None:
    """Points the client of this process at a hub, as HF_ENDPOINT, HF_TOKEN and HF_HUB_DISABLE_XET do at its start."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    else:
        monkeypatch.delenv("HF_TOKEN", raising=False)
