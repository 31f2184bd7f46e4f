"""A loopback server that speaks the calls of a Hugging Face hub, for the real huggingface_hub client.

Two origins, as there: the hub, which knows repositories, commits and tokens, and a content network, which gives large
files to whoever has a signed URL and refuses an `Authorization` header. Large files are uploaded by the LFS protocol's
basic transfer to that network, small ones in the commit. Files may come by Xet
too (`helpers_hub_buckets`). Left out: pull requests, models and spaces, web pages."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.shards import helpers_hub_buckets as buckets
from tests.shards.helpers_hub import READER, SIGNATURE, WRITER, Action, Blob, LoopbackHub, RefusedCallError, Repo

__all__ = ["answer", "cut_after", "serving"]


@contextlib.contextmanager
def serving(*, page: int = 1000) -> Iterator[LoopbackHub]:
    """A hub on loopback for the block."""
    hub = LoopbackHub(page=page)
    servers = [_server(hub, "hub"), _server(hub, "cdn")]
    hub.url, hub.cdn = (f"http://127.0.0.1:{one.server_address[1]}" for one in servers)
    for server in servers:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def answer(status: int, headers: dict[str, str] | None = None, body: bytes = b"{}") -> Action:
    """A fault: this answer instead of the right one."""
    def act(handler: _Handler) -> bool:
        handler.body()
        handler.reply(status, body, headers)
        return True
    return act


def cut_after(size: int) -> Action:
    """A fault: the connection ends after `size` bytes of the answer's body."""
    def act(handler: _Handler) -> bool:
        handler.cut = size
        return False
    return act


def _server(hub: LoopbackHub, origin: str) -> ThreadingHTTPServer:
    return _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub, "origin": origin}))


class _Server(ThreadingHTTPServer):
    """Quiet about clients that go away."""

    daemon_threads = True

    def handle_error(self, *request: Any) -> None:
        """Says what went wrong, but for a connection that its client closed."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(*request)


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    hub: LoopbackHub
    origin: str
    cut: int | None = None
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal of the tests."""

    def do_GET(self) -> None:
        """Any method, by the table of routes."""
        parts = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        call, self.cut = f"{self.command} {parts.path}", None
        with self.hub.lock:
            self.hub.calls.append(call)
        try:
            if self.hub.faulty(self, call):
                return
            for pattern, method, function in ROUTES[self.origin]:
                found = re.fullmatch(pattern, parts.path)
                if found and self.command in method.split("|"):
                    function(self, *(unquote(group) for group in found.groups()))
                    return
            raise RefusedCallError(404, "", f"no such call: {call}")
        except RefusedCallError as refused:
            status, code, message = refused.args
            self.reply(status, json.dumps({"error": message}).encode(),
                       {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}))
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    do_HEAD = do_POST = do_PUT = do_GET

    def body(self, notice: Callable[[int], None] = lambda size: None) -> bytes:
        """The request's body, whole; ConnectionError where the client is gone before its end."""
        data = bytearray()
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            while size := int(self.rfile.readline() or b"-1", 16):
                self._take(data, size, notice)
                self.rfile.readline()
            self.rfile.readline()
        else:
            self._take(data, int(self.headers.get("Content-Length", 0)), notice)
        return bytes(data)

    def _take(self, data: bytearray, size: int, notice: Callable[[int], None]) -> None:
        if size < 0:
            raise ConnectionError
        while size:
            piece = self.rfile.read1(min(size, 1 << 16))
            if not piece:
                raise ConnectionError
            data += piece
            size -= len(piece)
            notice(len(piece))

    def reply(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        """Sends an answer, cut short where a fault said so."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.cut is not None and self.cut < len(body):
            body, self.close_connection = body[:self.cut], True
        self.wfile.write(body)

    def json(self, value: object, headers: dict[str, str] | None = None) -> None:
        """Sends an answer in JSON."""
        self.reply(200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def content(self, data: bytes, etag: str, headers: dict[str, str] | None = None) -> None:
        """Sends a file, or the range of it that was asked for."""
        headers = {"ETag": f'"{etag}"', "Accept-Ranges": "bytes", **(headers or {})}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, stop = (int(asked[1]), min(int(asked[2] or len(data)) + 1, len(data))) if asked else (0, len(data))
        with self.hub.lock:
            self.hub.served += max(stop - start, 0) if self.command == "GET" else 0
        if asked and start >= len(data):
            self.reply(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        elif asked:
            self.reply(206, data[start:stop], {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})
        else:
            self.reply(200, data, headers)

    def token(self) -> str:
        """Whose token came with the request: "read", "write" or "" for none."""
        said = self.headers.get("Authorization", "")
        if not said:
            return ""
        role = {f"Bearer {READER}": "read", f"Bearer {WRITER}": "write"}.get(said)
        if role is None:
            raise RefusedCallError(401, "", "Invalid credentials in Authorization header")
        return role

    def repo(self, name: str, *, write: bool = False) -> Repo:
        """The repository, if the token may."""
        role, found = self.token(), self.hub.repos.get(name)
        if found is None or (found.private and not role):
            raise RefusedCallError(404 if role else 401, "RepoNotFound", "Repository not found")
        if write and role != "write":
            raise RefusedCallError(403, "", "Forbidden: the token may not write")
        return found

    def tree(self, name: str, revision: str) -> tuple[str, dict[str, Blob]]:
        """(commit, files) of a revision."""
        repo = self.repo(name)
        commit = repo.resolve(revision)
        if commit is None:
            raise RefusedCallError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit, repo.trees[commit]


def _whoami(one: _Handler) -> None:
    if not one.token():
        raise RefusedCallError(401, "", "Invalid username or password.")
    one.json({"type": "user", "name": "owner", "auth": {"accessToken": {"role": one.token()}}})


def _create(one: _Handler) -> None:
    asked = json.loads(one.body())
    name = f"{asked['organization'] or 'owner'}/{asked['name']}"
    if one.token() != "write":
        raise RefusedCallError(401 if not one.token() else 403, "", "You don't have the rights to create a dataset")
    url = f"{one.hub.url}/datasets/{name}"
    if name in one.hub.repos:
        one.reply(409, json.dumps({"error": "You already created this dataset repo", "url": url}).encode())
        return
    # clients of 1.5 say "private", those of today "visibility"
    one.hub.add_repo(name, {}, private=asked.get("private", asked.get("visibility") == "private"))
    one.json({"url": url, "name": name})


def _info(one: _Handler, name: str, revision: str = "main") -> None:
    commit, _ = one.tree(name, revision)
    one.json({"_id": "1", "id": name, "sha": commit, "private": one.hub.repos[name].private})


def _entry(path: str, blob: Blob) -> dict[str, Any]:
    lfs = {} if blob.lfs is None else {"lfs": {"oid": blob.lfs, "size": blob.size, "pointerSize": 134}}
    return {"type": "file", "path": path, "oid": blob.oid, "size": blob.size, **lfs}


def _tree(one: _Handler, name: str, revision: str, folder: str = "") -> None:
    files = {path: blob for path, blob in one.tree(name, revision)[1].items()
             if not folder or path.startswith(f"{folder}/")}
    if folder and not files:
        raise RefusedCallError(404, "EntryNotFound", "Entry not found")
    folders = {path[:place] for path in files for place in range(len(path)) if path[place] == "/"}
    entries = sorted([_entry(path, blob) for path, blob in files.items()]
                     + [{"type": "directory", "path": folder, "oid": "0" * 40, "size": 0} for folder in folders],
                     key=lambda entry: str(entry["path"]))
    start, page = int(one.query.get("cursor", 0)), one.hub.page
    url = f"{one.hub.url}{urlsplit(one.path).path}?recursive=True&cursor={start + page}"
    one.json(entries[start:start + page], {"Link": f'<{url}>; rel="next"'} if start + page < len(entries) else {})


def _paths_info(one: _Handler, name: str, revision: str) -> None:
    _, files = one.tree(name, revision)
    asked = parse_qs(one.body().decode()).get("paths", [])
    one.json([_entry(path, files[path]) for path in asked if path in files])


def _preupload(one: _Handler, name: str, revision: str) -> None:
    repo = one.repo(name, write=True)
    files = repo.trees[repo.refs[revision]]
    said = []
    for asked in json.loads(one.body())["files"]:
        held = files.get(asked["path"])
        mode = "lfs" if one.hub.large(asked["path"], asked["size"]) else "regular"
        said.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False,
                     "oid": None if held is None else held.lfs or held.oid})
    one.json({"files": said})


def _lfs_batch(one: _Handler, name: str) -> None:
    one.repo(name, write=True)
    said: list[dict[str, Any]] = []
    batch = json.loads(one.body())
    for asked in batch["objects"]:
        href = f"{one.hub.cdn}/upload/{asked['oid']}?size={asked['size']}&X-Amz-Signature={SIGNATURE}"
        held = asked["oid"] in one.hub.objects
        said.append({**asked, **({} if held else {"actions": {"upload": {"href": href}}})})
    xet = one.hub.xet is not None and "xet" in batch["transfers"]  # as clients of 1.5 ask
    one.json({"transfer": "xet" if xet else "basic", "objects": said})


def _upload(one: _Handler, oid: str) -> None:
    def notice(size: int) -> None:
        with one.hub.lock:
            one.hub.uploaded += size
        one.hub.watch(one.hub.uploaded)

    data = one.body(notice)
    if len(data) != int(one.query["size"]) or hashlib.sha256(data).hexdigest() != oid:
        raise RefusedCallError(400, "", "the bytes are not those of the oid")
    one.hub.objects[oid] = data
    one.reply(200)


def _commit(one: _Handler, name: str, branch: str) -> None:
    repo, hub = one.repo(name, write=True), one.hub
    lines = [json.loads(line) for line in one.body().splitlines()]
    with hub.lock:
        if lines[0]["value"].get("parentCommit", repo.refs[branch]) != repo.refs[branch]:
            raise RefusedCallError(412, "", "A commit has happened since. Please refresh and try again.")
        tree = dict(repo.trees[repo.refs[branch]])
        for line in lines[1:]:
            path, value = line["value"]["path"], line["value"]
            if line["key"] == "file":
                tree[path] = hub.blob(path, base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                buckets.receive_known(hub, value["oid"])
                if value["oid"] not in hub.objects:
                    raise RefusedCallError(422, "", f"LFS pointer of {path} points to a file that does not exist")
                tree[path] = Blob(value["size"], hashlib.sha1(value["oid"].encode()).hexdigest(), value["oid"])
            else:
                del tree[path]
        commit = repo.commit(tree, branch)
        hub.commits_seen.append(len(lines) - 1)
    one.json({"success": True, "commitOid": commit, "commitUrl": f"{hub.url}/datasets/{name}/commit/{commit}"})


def _resolve(one: _Handler, name: str, revision: str, path: str) -> None:
    if one.repo(name).gated and one.token() != "write":
        raise RefusedCallError(403, "GatedRepo", "Access to this dataset is restricted")
    commit, files = one.tree(name, revision)
    if path not in files:
        raise RefusedCallError(404, "EntryNotFound", "Entry not found")
    blob = files[path]
    location = (f"/api/resolve-cache/{blob.oid}" if blob.lfs is None else
                f"{one.hub.cdn}/content/{blob.lfs}?Expires=1&Signature={SIGNATURE}")
    one.reply(307 if blob.lfs is None else 302, b"", {
        "X-Repo-Commit": commit, "Location": location, "X-Linked-Size": str(blob.size),
        "X-Linked-Etag": f'"{blob.lfs or blob.oid}"'})


def _resolve_cache(one: _Handler, oid: str) -> None:
    one.content(one.hub.small[oid], oid)


def _content(one: _Handler, sha256: str) -> None:
    if one.headers.get("Authorization") or one.query.get("Signature") != SIGNATURE:
        raise RefusedCallError(400, "", "Only one auth mechanism allowed")
    if one.hub.expired:
        one.hub.expired = False
        raise RefusedCallError(403, "", "Request has expired")
    data = one.hub.objects[sha256]
    one.content(data, f"etag-of-the-content-network-{sha256[:8]}")


_ID, _REV = r"([^/]+/[^/]+)", r"([^/]+)"
ROUTES: dict[str, list[tuple[str, str, Callable[..., None]]]] = {
    "hub": [(r"/api/whoami-v2", "GET", _whoami), (r"/api/repos/create", "POST", _create),
            (r"/api/validate-yaml", "POST", lambda one: (one.body(), one.json({"errors": [], "warnings": []}))[1]),
            (rf"/api/datasets/{_ID}", "GET", _info), (rf"/api/datasets/{_ID}/revision/{_REV}", "GET", _info),
            (rf"/api/datasets/{_ID}/tree/{_REV}", "GET", _tree),
            (rf"/api/datasets/{_ID}/tree/{_REV}/([^/]+)", "GET", _tree),
            (rf"/api/datasets/{_ID}/paths-info/{_REV}", "POST", _paths_info),
            (rf"/api/datasets/{_ID}/preupload/{_REV}", "POST", _preupload),
            (rf"/datasets/{_ID}\.git/info/lfs/objects/batch", "POST", _lfs_batch),
            (rf"/api/datasets/{_ID}/commit/{_REV}", "POST", _commit),
            (rf"/datasets/{_ID}/resolve/{_REV}/(.+)", "GET|HEAD", _resolve),
            (r"/api/resolve-cache/(\w+)", "GET|HEAD", _resolve_cache),
            (rf"/api/buckets/{_ID}/tree(?:/[^/]+)?", "GET", buckets.tree),
            (rf"/api/buckets/{_ID}/paths-info", "POST", buckets.paths_info),
            (rf"/api/buckets/{_ID}/batch", "POST", buckets.batch),
            (rf"/buckets/{_ID}/resolve/(.+)", "GET|HEAD", buckets.resolve),
            (r"/api/(?:datasets|buckets)/[^/]+/[^/]+/xet-(?:read|write)-token(?:/[^/]+)?", "GET", buckets.xet_token)],
    "cdn": [(r"/content/(\w+)", "GET|HEAD", _content), (r"/upload/(\w+)", "PUT", _upload)],
}
