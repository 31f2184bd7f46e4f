"""A push to a data set of a Hugging Face hub: what is large is uploaded first, then one commit makes all of it appear.

**Killed at any moment, nothing of a push is to be seen** before that commit. The hub keeps what was uploaded, so the
next push finds it there and sends the rest. A commit names its parent: where somebody else has committed meanwhile, it
is refused. When it is made, the hub's own digests of the files are compared with the manifest's.

**Large sets** take several commits, since a hub gives a commit a minute: shards first, the manifest in the last. Where
files change or go, the first takes the old manifest away. So between them the branch is a set that is not complete, and
says so; whoever has opened it reads on at its old commit. After a kill the next push goes on with what is there.

A data set that is made is private unless `public`; one that is public already takes a push with `public` alone. Left
out: making branches, changing who may see a data set."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event

from huggingface_hub import CommitOperationAdd, CommitOperationDelete

from taro.core.errors import ShardError
from taro.core.parallel import in_parallel
from taro.shards.format import MANIFEST
from taro.shards.remote.bucket import WAITS_S, ChangedError, Head, RefusedError, ServerError, read_whole, retrying
from taro.shards.remote.hub import WRITE_ADVICE, HubFiles, NoDatasetError, api, explained, parse_hub, quiet, resolve
from taro.shards.transfer.target import Held, OnMoved, Outgoing
from taro.shards.transfer.workers import Counter

__all__ = ["HubTarget"]

COMMIT_FILES = 400
"""files of one commit at most"""
COMMIT_BYTES = 48 * 2**20
"""of small files in one commit at most: they are part of the request"""
SMALL_BYTES = 10 * 2**20
"""a file of more bytes is a large one to every hub; smaller ones may be part of a commit"""


class HubTarget:
    """A data set of a hub as a `taro.shards.transfer.target.Target`; see this module."""

    at_once = True

    def __init__(self, place: str, *, public: bool = False, jobs: int = 8,
                 waits_s: Sequence[float] = WAITS_S) -> None:
        self.address = parse_hub(place)
        if self.address.kind != "datasets" or re.fullmatch("[0-9a-f]{40}", self.address.revision or ""):
            raise ShardError(f"{self.address.place}: a commit stays as it is; push to a branch, or name none for "
                             "`main`")
        self.public, self.jobs, self.waits_s = public, jobs, tuple(waits_s)
        self.revision: str | None = None
        self._files: HubFiles | None = None
        self._uploaded: dict[str, CommitOperationAdd] = {}

    @property
    def place(self) -> str:
        """The address, without a commit."""
        return self.address.place

    def have(self) -> Mapping[str, Held]:
        """What lies there; the hub knows the sha256 of large files."""
        try:
            self._open()
        except NoDatasetError:
            return {}
        return {name: Held(head.size, head.etag if len(head.etag or "") == 64 else None)
                for name, head in self._heads.items()}

    def read(self, name: str, *, limit_bytes: int) -> bytes:
        """A small file, whole."""
        assert self._files is not None, "have() found it"
        return read_whole(self._files, name, limit_bytes=limit_bytes)

    def send(self, files: Sequence[Outgoing], remove: Sequence[str], moved: OnMoved) -> None:
        """Uploads what is large, commits, and compares what arrived."""
        with quiet():
            if self._files is None:
                self._create()
            wanted = []
            for one in files:
                if self._lies_there(one):
                    moved(1, one.size)
                else:
                    wanted.append(one)
            self._upload_all([one for one in wanted if _is_large(one)], moved)
            for number, (adds, gone, of) in enumerate(self._parts(wanted, remove)):
                self._commit(adds, gone, f"taro shards push{f', part {number + 1} of {of}' * (of > 1)}", moved)
            for one in files:
                if not self._lies_there(one):
                    raise ServerError(f"{self.place}/{one.name}: the hub holds other bytes than were sent; push again, "
                                      "and see that one set alone is pushed there")

    @property
    def _heads(self) -> Mapping[str, Head]:
        return {} if self._files is None else self._files.heads()

    def _open(self, commit: str | None = None) -> None:
        """Reads which commit the branch is at, unless it is known. ShardError where everybody can read the data set and
        that was not asked for."""
        if commit is None:
            commit, private = resolve(self.address, waits_s=self.waits_s)
            if not private and not self.public:
                raise RefusedError(f"{self.place}: everybody can read this data set, and a push is private by default; "
                                   "push with --public, or to another name")
        self.revision = commit
        self._files = HubFiles(replace(self.address, revision=commit), waits_s=self.waits_s)

    def _create(self) -> None:
        if self.address.revision not in {None, "main"}:
            raise ShardError(f"{self.place}: a data set that is made has the branch `main` alone; push there first")

        def ask() -> None:
            with explained(self.place, advice=WRITE_ADVICE):
                api().create_repo(self.address.repo, repo_type="dataset", private=not self.public, exist_ok=True)

        retrying(ask, waits_s=self.waits_s)
        self._open()

    def _lies_there(self, one: Outgoing) -> bool:
        """Whether the branch holds the file with these bytes, by the hub's digest of it."""
        head = self._heads.get(one.name)
        if head is None or head.size != one.size:
            return False
        return head.etag == (one.sha256 if len(head.etag or "") == 64 else _git_sha1(one.path, one.size))

    def _upload_all(self, files: Sequence[Outgoing], moved: OnMoved) -> None:
        """Uploads several at the same time; after a failure or an interruption none is begun."""
        stop = moved.stop if isinstance(moved, Counter) else Event()
        in_parallel([partial(self._upload, one, moved) for one in files], stop, jobs=self.jobs)

    def _upload(self, one: Outgoing, moved: OnMoved) -> None:
        """Sends a large file to where the hub keeps such: two requests, and its bytes unless they are there already."""
        moved(0, 0)

        def ask() -> CommitOperationAdd:
            with explained(self.place, advice=WRITE_ADVICE):
                addition = CommitOperationAdd(f"{self.address.folder}{one.name}", str(one.path))
                api().preupload_lfs_files(self.address.repo, [addition], repo_type="dataset", num_threads=1,
                                           revision=self.address.revision, free_memory=False)
                return addition

        self._uploaded[one.name] = addition = retrying(ask, waits_s=self.waits_s)
        _check(one, addition.upload_info.sha256.hex())
        moved(1, one.size)

    def _parts(self, files: Sequence[Outgoing], remove: Sequence[str]
               ) -> list[tuple[list[Outgoing], list[str], int]]:
        """(files to add, names to remove, how many commits) of each commit, in order; manifest.json in the last."""
        first = [one for one in files if one.name != MANIFEST]
        parts: list[list[Outgoing]] = [[]]
        size = 0
        for one in first:
            size += 0 if _is_large(one) else one.size
            if len(parts[-1]) >= COMMIT_FILES or (size > COMMIT_BYTES and parts[-1]):
                parts.append([])
                size = 0 if _is_large(one) else one.size
            parts[-1].append(one)
        parts[-1] += [one for one in files if one.name == MANIFEST]
        changes = bool(remove) or any(one.name in self._heads for one in first)
        gone: list[list[str]] = [[] for _ in parts]
        gone[-1] = list(remove)
        if len(parts) > 1 and changes and MANIFEST in self._heads:
            gone[0] = [MANIFEST]
        return [(adds, names, len(parts)) for adds, names in zip(parts, gone, strict=True) if adds or names]

    def _commit(self, files: Sequence[Outgoing], remove: Sequence[str], message: str, moved: OnMoved) -> None:
        """One commit on top of the last; asked again where no answer came."""
        parent, folder = self.revision, self.address.folder

        def ask() -> str:
            operations: list[CommitOperationAdd | CommitOperationDelete] = [
                self._uploaded.get(one.name) or _addition(f"{folder}{one.name}", one) for one in files]
            operations += [CommitOperationDelete(f"{folder}{name}") for name in remove]
            with explained(self.place, advice=WRITE_ADVICE):
                return str(api().create_commit(self.address.repo, operations, commit_message=message,
                                                repo_type="dataset", revision=self.address.revision,
                                                parent_commit=parent).oid)

        try:
            self._open(retrying(ask, waits_s=self.waits_s))
        except ChangedError:
            self._open()  # somebody has committed: it may have been this push, its answer lost
            if not all(self._lies_there(one) for one in files) or {*remove} & self._heads.keys():
                raise ChangedError(f"{self.place}: somebody has made another commit there meanwhile; push again, it "
                                   "compares with that one") from None
        for one in files:
            if not _is_large(one):
                moved(1, one.size)


def _is_large(one: Outgoing) -> bool:
    """Whether a file goes before the commit, from the disk."""
    return one.name.endswith(".tar") or one.size > SMALL_BYTES


def _addition(path: str, one: Outgoing) -> CommitOperationAdd:
    """A small file of a commit, its bytes those of the manifest."""
    data = one.path.read_bytes()
    _check(one, hashlib.sha256(data).hexdigest())
    return CommitOperationAdd(path, data)


def _check(one: Outgoing, sha256: str) -> None:
    if sha256 != one.sha256:
        raise ShardError(f"{one.path}: its sha256 is not the manifest's, so it is not sent; `taro shards verify` "
                         "lists what is wrong with the set")


def _git_sha1(path: Path, size: int) -> str:
    """What git calls a file of these bytes."""
    digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()
