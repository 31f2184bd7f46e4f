"""`push`: a set of this machine, or some kinds of it, to a place that others read.

What leaves is decided first (`taro.shards.transfer.outgoing`), then compared with what lies there, then sent. A place
that appears at once may get another set in place of the one that it holds (`replace`); at every other place a set only
grows."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from taro.core.counting import OnProgress as OnCounted
from taro.core.errors import ConfigError, ShardError
from taro.core.parallel import in_parallel
from taro.core.places import shown_place
from taro.shards.format import CARD, MANIFEST, MAX_MANIFEST_BYTES, Manifest
from taro.shards.manifest import parse_manifest
from taro.shards.places import local_folder
from taro.shards.store import safe_name
from taro.shards.store_local import LocalStore
from taro.shards.transfer.licences import check_licences
from taro.shards.transfer.outgoing import Bundle, outgoing
from taro.shards.transfer.places import open_target
from taro.shards.transfer.plan import Transfer, manifest_files, there_already, united
from taro.shards.transfer.receive import receive
from taro.shards.transfer.source import BundleSource
from taro.shards.transfer.target import OnProgress, Target
from taro.shards.transfer.workers import JOBS, Counter

__all__ = ["Choices", "push"]


@dataclass(frozen=True, slots=True)
class Choices:
    """What leaves and how. without: kinds that stay here; thumbnails: whether contact sheets leave; i_may_share: the
    user has the right, whatever the licences say; replace: another set there may be replaced, where the place keeps
    earlier revisions; public: everybody may read what is made on a hub; jobs: files at a time; dry_run: only say what
    would move."""

    without: tuple[str, ...] = ()
    thumbnails: bool = True
    i_may_share: bool = False
    replace: bool = False
    public: bool = False
    jobs: int = JOBS
    dry_run: bool = False


def push(root: str | Path, place: str, choices: Choices | None = None, *, progress: OnProgress | None = None,
         making: OnCounted | None = None) -> Transfer:
    """Copies the set in the folder `root` to `place`; returns what moved. A run after a kill goes on where that ended.
    `making`: hears of paths shards that are made anew without contact sheets."""
    choices = choices or Choices()
    folder, to = local_folder(root), local_folder(place)
    if folder is None or not folder.is_dir():
        raise ShardError(f"{shown_place(root)}: expected a folder with the set to push; pull a set that lies elsewhere "
                         "first")
    with tempfile.TemporaryDirectory(prefix="taro-push-") as scratch:
        bundle = outgoing(LocalStore(folder), Path(scratch), without=choices.without, thumbnails=choices.thumbnails,
                          progress=making)
        check_licences(bundle.manifest.provenance, i_may_share=choices.i_may_share)
        if to is None:
            return _send(bundle, open_target(place, jobs=choices.jobs, public=choices.public), choices, progress)
        if choices.replace:
            raise _no_replace(place)
        if to.resolve() == folder.resolve() or to.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(f"{shown_place(place)}: expected another place than the set's own folder")
        return receive(BundleSource(bundle), to, bundle.manifest, bundle.manifest_bytes, jobs=choices.jobs,
                       dry_run=choices.dry_run, progress=progress)


def _send(bundle: Bundle, target: Target, choices: Choices, progress: OnProgress | None) -> Transfer:
    held = target.have()
    there, where = None, f"{target.place}/{MANIFEST}"
    if MANIFEST in held:
        there = parse_manifest(target.read(MANIFEST, limit_bytes=MAX_MANIFEST_BYTES), where)
    if choices.replace and not target.at_once:
        raise _no_replace(target.place)
    after = bundle.manifest if choices.replace else united(bundle.manifest, there, where=where)
    named = set(manifest_files(after))  # skipped.parquet of a place stays as it is
    wanted = [one for one in bundle.files if one in named]
    files, remove = [bundle.file(one) for one in wanted], _stale(after, held) if choices.replace else []
    known = there_already(wanted, held, there, partial(_digests, target, jobs=choices.jobs))
    lacking = [one for one in files if one.name not in known]
    about = bundle.about(after)
    if lacking or remove or after != there or CARD not in held:
        lacking += about
    moved = tuple((one.name, one.size) for one in lacking)
    done = Transfer(target.place, len(files) + len(about), sum(one.size for one in (*files, *about)), moved,
                    target.revision, choices.dry_run)
    if choices.dry_run or not lacking:
        return done
    target.send(lacking, remove, Counter(len(lacking), done.moved_bytes, progress))
    return replace(done, revision=target.revision)


def _stale(after: Manifest, held: Mapping[str, object]) -> list[str]:
    """Names of a set's files at a place that a manifest does not name."""
    kept = {CARD, MANIFEST, *(one.name for one in manifest_files(after))}
    return sorted(name for name in held if safe_name(name) and name not in kept)


def _digests(target: Target, names: Sequence[str], *, jobs: int) -> dict[str, str]:
    """sha256 of small files at a place."""
    found: dict[str, str] = {}

    def read(name: str) -> None:
        found[name] = hashlib.sha256(target.read(name, limit_bytes=MAX_MANIFEST_BYTES)).hexdigest()

    in_parallel([partial(read, name) for name in names], Counter(0, 0).stop, jobs=jobs)
    return found


def _no_replace(place: str) -> ConfigError:
    return ConfigError(f"{shown_place(place)}: --replace needs a place that keeps earlier revisions, "
                       "hf://datasets/...; elsewhere push to another place, so that nobody reads two sets as one")
