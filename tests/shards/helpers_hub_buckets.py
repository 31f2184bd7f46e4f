"""The calls of a hub's buckets, and Xet: the real hf_xet keeps files in a folder in place of its servers.

A file that came by Xet is read back out of that folder by hf_xet itself. In a commit it is named by its sha256 alone,
which only Xet's servers could find; so a test says which files it sends (`known`), and what is read back under the Xet
hash of each is checked to be its bytes."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from tests.shards.helpers_hub import SIGNATURE, Blob, LoopbackHub, RefusedCallError

__all__ = ["batch", "paths_info", "receive_known", "resolve", "tree", "xet_token"]

FOREVER = 4_102_444_800


def _bucket(one: Any, name: str) -> dict[str, Blob]:
    """The files of a bucket, if the token may."""
    if name not in one.hub.buckets or not one.token():
        raise RefusedCallError(404 if one.token() else 401, "RepoNotFound", "Bucket not found")
    return one.hub.buckets[name]


def _entry(path: str, blob: Blob) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": blob.size, "xetHash": blob.lfs, "mtime": "2026-11-28T00:00:00Z"}


def tree(one: Any, name: str) -> None:
    """All files."""
    one.json([_entry(path, blob) for path, blob in sorted(_bucket(one, name).items())])


def resolve(one: Any, name: str, path: str) -> None:
    """Sends whoever reads a file to the content network."""
    files = _bucket(one, name)
    if path not in files:
        raise RefusedCallError(404, "EntryNotFound", "Entry not found")
    location = f"{one.hub.cdn}/content/{files[path].lfs}?Expires=1&Signature={SIGNATURE}"
    one.reply(302, b"", {"Location": location, "X-Linked-Size": str(files[path].size),
                         "X-Xet-Hash": files[path].lfs or ""})


def paths_info(one: Any, name: str) -> None:
    """Facts of files by name."""
    asked, files = json.loads(one.body())["paths"], _bucket(one, name)
    one.json([_entry(path, files[path]) for path in asked if path in files])


def batch(one: Any, name: str) -> None:
    """Gives names to files that came by Xet."""
    files = _bucket(one, name)
    if one.token() != "write":
        raise RefusedCallError(403, "", "Forbidden")
    for line in one.body().splitlines():
        said = json.loads(line)
        data = _received(one.hub, said["xetHash"], None)
        blob = one.hub.blob(f"{said['path']}.tar", data)
        files[said["path"]] = blob
    one.json({"success": True, "failed": []})


def xet_token(one: Any) -> None:
    """Where Xet's servers are: a folder."""
    if not one.token():
        raise RefusedCallError(401, "", "Unauthorized")
    url = f"local://{one.hub.xet}"
    one.json({"accessToken": "token", "exp": FOREVER, "casUrl": url}, {
        "X-Xet-Cas-Url": url, "X-Xet-Access-Token": "token", "X-Xet-Token-Expiration": str(FOREVER)})


def receive_known(hub: LoopbackHub, sha256: str) -> None:
    """Keeps a file that came by Xet, if it is one of those that the test sends."""
    import hf_xet

    path = hub.known.get(sha256)
    if path is not None and sha256 not in hub.objects:
        [told] = hf_xet.hash_files([str(path)])
        data = _received(hub, told.hash, path.stat().st_size)
        assert hashlib.sha256(data).hexdigest() == sha256
        hub.objects[sha256] = data


def _received(hub: LoopbackHub, xet_hash: str, size: int | None) -> bytes:
    """The bytes that Xet keeps under a hash."""
    import hf_xet

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        with hf_xet.XetSession().new_file_download_group(
                endpoint=f"local://{hub.xet}", token="token", token_expiry_unix_secs=FOREVER) as group:
            group.start_download_file(hf_xet.XetFileInfo(xet_hash, size), str(path))
        return path.read_bytes()
