"""A push to a hub in a process of its own, killed with SIGKILL at a request or at a byte, and pushed again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

from tests.shards.helpers_hub import WRITER, LoopbackHub

__all__ = ["kill_once", "plain_push"]

NAMES = [*(f"{kind}-{n:06d}.{ext}" for n in range(3) for kind in ("paths/paths", "features/a/features")
           for ext in ("tar", "json")), "README.md", "manifest.json"]
CHILD = """
import hashlib, json, sys
from pathlib import Path
from taro.shards.transfer import hub_target
from taro.shards.transfer.target import Outgoing
root, names, a_commit = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
hub_target.COMMIT_FILES = a_commit
data = {name: (root / name).read_bytes() for name in names}
sent = [Outgoing(name, root / name, len(data[name]), hashlib.sha256(data[name]).hexdigest()) for name in names]
target = hub_target.HubTarget("hf://datasets/team/set", jobs=2)
target.have()
target.send(sent, (), lambda files, size: None)
"""


def write_files(root: Path, seed: int) -> dict[str, bytes]:
    """Files of a set, 2 MB of shards; the card is one that the hub's check passes."""
    draw = np.random.default_rng(seed)
    found = {}
    for name in NAMES:
        found[name] = (draw.bytes(350_000) if name.endswith(".tar") else
                       f"---\nlicense: other\n---\n{seed}".encode() if name == "README.md" else f"[{seed}]".encode())
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(found[name])
    return found


def plain_push(hub: LoopbackHub, root: Path, a_commit: int) -> subprocess.Popen[bytes]:
    """Starts a push of the files below `root`, in commits of `a_commit` files."""
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": WRITER, "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    return subprocess.Popen([sys.executable, "-c", CHILD, str(root), json.dumps(NAMES), str(a_commit)],
                            env=environment, stderr=subprocess.PIPE)


def kill_once(hub: LoopbackHub, root: Path, seed: int) -> str:
    """One push, killed where the seed says, and one after it; returns where it was killed. AssertionError where the
    main branch holds what it should not."""
    draw = np.random.default_rng(seed)
    a_commit = int(draw.choice([4, 400]))
    data, old = write_files(root, seed), _tree(hub)
    by_call, at_call, at_byte = draw.random() < 0.5, int(draw.integers(1, 30)), int(draw.integers(2_100_000))
    hub.forget()
    started = threading.Event()
    child: list[subprocess.Popen[bytes]] = []

    def kill(_: Any = None) -> bool:
        started.wait()
        child[0].kill()
        return False

    if not by_call:
        hub.watch = lambda total: kill() and None if total >= at_byte else None
    else:
        hub.fault(".", lambda handler: len(hub.calls) >= at_call and kill(), times=10_000)
    child.append(plain_push(hub, root, a_commit))
    started.set()
    _, said = child[0].communicate()
    hub.clear_faults()
    killed = child[0].returncode == -9
    assert killed or child[0].returncode == 0, said.decode()
    there = _tree(hub)
    whole = there == data
    assert whole or there == old or "manifest.json" not in there, "half of a set under a final name"
    first = hub.uploaded
    again = plain_push(hub, root, a_commit)
    _, said = again.communicate()
    assert again.returncode == 0, said.decode()
    assert _tree(hub) == data
    shards = sum(len(one) for name, one in data.items() if name.endswith(".tar"))
    assert hub.uploaded - first <= shards - max(first - 2 * 350_000, 0), "what had arrived was sent again"
    where = f"request {at_call}" if by_call else f"byte {at_byte:,}"
    return f"{where} of commits of {a_commit}: " + ("killed" if killed else "finished before")


def _tree(hub: LoopbackHub) -> dict[str, bytes]:
    repo = hub.repos.get("team/set")
    return {} if repo is None else {name: hub.bytes_of(blob) for name, blob in repo.files.items()
                                    if name != ".gitattributes"}
