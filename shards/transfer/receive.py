"""Files of a set into a local folder: each checked on its way, none under its final name before it is whole.

A file comes as `.NAME.pull.tmp`, is hashed while it streams, and gets its name when its sha256 is the manifest's. What
a killed transfer left under that name is hashed again and gone on with. The manifest is written last, so a folder
without it is no set; the marker `.pulling` says that what lies in such a folder came from here and may be replaced. It
names what transfers brought, so that files which the set does not have in the end are removed.
Files that the manifest in the folder vouches for are there already where their size is right; others are hashed.

Left out: removing files of the folder, but for the transfer's own."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from taro.core.errors import ShardError
from taro.core.files import explain_disk_errors, file_sha256, fsync, is_unused, locked, make_folders, write_atomically
from taro.core.json import canonical_json
from taro.core.parallel import in_parallel
from taro.shards.card import card_text
from taro.shards.format import CARD, MANIFEST, MAX_MANIFEST_BYTES, Manifest
from taro.shards.manifest import read_manifest
from taro.shards.remote.bucket import NoRangesError
from taro.shards.store import MissingFileError, safe_name
from taro.shards.store_local import LocalStore
from taro.shards.transfer.plan import SetFile, Transfer, manifest_files, united
from taro.shards.transfer.source import Source
from taro.shards.transfer.target import OnProgress
from taro.shards.transfer.workers import JOBS, Counter

__all__ = ["MARKER", "receive"]

MARKER = ".pulling"
NOTE = "taro shards pull or push is not finished here; it brings"
PART = ".pull.tmp"
AGAIN = "Make room or fix the disk, then run the same command again: what has come is kept"


def receive(source: Source, folder: Path, manifest: Manifest, data: bytes, *, jobs: int = JOBS, dry_run: bool = False,
            progress: OnProgress | None = None) -> Transfer:
    """Copies what the folder lacks of a set. `manifest`: the set as it is wanted, `data`: the bytes of its file."""
    with explain_disk_errors(folder, lambda: AGAIN), _held(folder, dry_run=dry_run):
        store = LocalStore(folder)
        there = _manifest_there(store)
        after = united(manifest, there, where=store.describe(MANIFEST))
        files = manifest_files(manifest)
        sizes = _sizes(source, files)
        lacking = _lacking(store, files, sizes, there)
        about = {CARD: card_text(after).encode(),
                 MANIFEST: data if after == manifest else canonical_json(after) + b"\n"}
        moved = [(one.name, sizes[one.name]) for one in lacking]
        if lacking or there != after or not (folder / CARD).is_file():
            moved += [(name, len(text)) for name, text in about.items()]
        done = Transfer(str(folder), len(files) + len(about), sum(sizes.values()) + sum(map(len, about.values())),
                        tuple(moved), source.revision, dry_run)
        if dry_run:
            return done
        if not moved:
            _clean(folder, after)
            return done
        _check_room(folder, lacking, sizes)
        _note(folder, {*_noted(folder), *(one.name for one in lacking)})
        counter = Counter(len(lacking), sum(sizes[one.name] - _begun(folder, one.name) for one in lacking), progress)
        in_parallel([partial(_fetch, source, one, folder, sizes[one.name], counter) for one in lacking], counter.stop,
                    jobs=jobs)
        for name, text in about.items():
            write_atomically(folder / name, text)
        _clean(folder, after)
        return done


@contextlib.contextmanager
def _held(folder: Path, *, dry_run: bool) -> Iterator[None]:
    """Holds the folder, made where it is missing, against another transfer."""
    if dry_run:
        yield
        return
    if folder.exists() and not folder.is_dir():
        raise ShardError(f"{folder}: expected a folder to write a set in, got a file; name another")
    make_folders(folder)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with locked(handle, wait=False) as held:
            if not held:
                raise ShardError(f"{folder}: another transfer writes there now; wait for it, or name another folder")
            yield
    finally:
        os.close(handle)


def _manifest_there(store: LocalStore) -> Manifest | None:
    """The manifest of the set in the folder, None where there is none yet; ShardError where the folder holds what is
    neither a set nor a part of one that came from here."""
    if (store.folder / MANIFEST).exists():
        return read_manifest(store)
    if (store.folder / MARKER).exists() or is_unused(store.folder, MARKER):
        return None
    raise ShardError(f"{store.folder}: expected an empty folder, or one with a shard set, got a folder with other "
                     "files; name another")


def _sizes(source: Source, files: Sequence[SetFile]) -> dict[str, int]:
    """Bytes of every file, bounded: as the manifest says, else as the place does."""
    listed = source.sizes()
    found = {}
    for one in files:
        if one.size is not None:
            found[one.name] = one.size
            continue
        if listed is not None and one.name not in listed:
            raise MissingFileError(f"{source.place}/{one.name}: missing, though the manifest there names it; the set "
                                   "there is damaged, push it again")
        size = source.size(one.name) if listed is None else listed[one.name]
        if size > MAX_MANIFEST_BYTES:
            raise ShardError(f"{source.place}/{one.name}: {size:,} bytes, at most {MAX_MANIFEST_BYTES:,} are read")
        found[one.name] = size
    return found


def _lacking(store: LocalStore, files: Sequence[SetFile], sizes: Mapping[str, int],
             there: Manifest | None) -> list[SetFile]:
    """The files that do not lie in the folder with the bytes wanted."""
    vouched = {one.name: one.sha256 for one in (manifest_files(there) if there else ())}

    def lies(one: SetFile) -> bool:
        try:
            if store.size(one.name) != sizes[one.name]:
                return False
            if vouched.get(one.name) == one.sha256:
                return True
            with store.open(one.name) as file:
                return file_sha256(file) == one.sha256
        except MissingFileError:
            return False

    return [one for one in files if not lies(one)]


def _check_room(folder: Path, lacking: Sequence[SetFile], sizes: Mapping[str, int]) -> None:
    needed = sum(max(sizes[one.name] - _begun(folder, one.name), 0) for one in lacking)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ShardError(f"{folder}: {needed:,} bytes are to come, {free:,} are free; make room, leave kinds out "
                         "(--without), or read the set where it lies")


def _part(folder: Path, name: str) -> Path:
    path = folder / name
    return path.with_name(f".{path.name}{PART}")


def _begun(folder: Path, name: str) -> int:
    """Bytes that a killed transfer left of a file."""
    part = _part(folder, name)
    return part.stat().st_size if part.is_file() and not part.is_symlink() else 0


def _fetch(source: Source, one: SetFile, folder: Path, size: int, moved: Counter) -> None:
    """Brings one file, going on where a killed transfer ended."""
    part, final = _part(folder, one.name), folder / one.name
    make_folders(part.parent)
    if part.is_symlink():
        part.unlink()
    handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    with os.fdopen(handle, "r+b") as file:
        start = os.fstat(handle).st_size
        if start > size:
            start = file.truncate(0)
        while True:
            digest = hashlib.sha256()
            file.seek(0)
            while piece := file.read(2**20):
                digest.update(piece)
            try:
                for piece in source.chunks(one.name, start, size):
                    file.write(piece)
                    digest.update(piece)
                    moved(0, len(piece))
            except NoRangesError:
                if start == 0:
                    raise
            if digest.hexdigest() == one.sha256:
                break
            file.truncate(0)
            if start == 0:
                raise ShardError(f"{source.place}/{one.name}: what came is not what the manifest says (sha256); the "
                                 "set "
                                 "there was changed meanwhile or is damaged: run the same command again, then verify "
                                 "the set there")
            start = 0  # what a killed transfer left was of other bytes, or the place gives whole files alone
        file.flush()
        os.fsync(handle)
    part.replace(final)
    fsync(final.parent)
    moved(1, 0)


def _noted(folder: Path) -> set[str]:
    """Names of the files that transfers have brought, or begun to bring, which did not finish."""
    path = folder / MARKER
    if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_MANIFEST_BYTES:
        return set()
    return {line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if safe_name(line)}


def _note(folder: Path, names: Collection[str]) -> None:
    """Writes down that a transfer is not finished here, and what it brings."""
    write_atomically(folder / MARKER, "\n".join([NOTE, *sorted(names), ""]).encode())


def _clean(folder: Path, manifest: Manifest) -> None:
    """Removes what is the transfer's own from a set that is whole, also what killed ones left: files half there, and
    whole ones that the set does not have, since it was another one then, or more of its kinds were wanted."""
    noted = _noted(folder)
    for name in {*manifest.kinds, ".", *(name.rpartition("/")[0] or "." for name in noted)}:
        for left in (folder / name).glob(f".*{PART}"):
            left.unlink()
    gone = noted - {one.name for one in manifest_files(manifest)}
    for name in gone:
        (folder / name).unlink(missing_ok=True)
    for parent in {(folder / name).parent for name in gone} - {folder}:
        with contextlib.suppress(OSError):  # it holds something
            parent.rmdir()
            parent.parent.rmdir()
    (folder / MARKER).unlink(missing_ok=True)
