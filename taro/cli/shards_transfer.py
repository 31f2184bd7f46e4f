"""`taro shards push` and `taro shards pull`: options and output; the work is in shards/transfer/."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taro.cli.options import Json
from taro.cli.output import say, say_json
from taro.cli.progress import Shown, progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from taro.shards.transfer.plan import Transfer
    from taro.shards.transfer.target import Progress

__all__ = ["Pull", "Push", "pull", "push"]

Without = Annotated[list[str] | None, typer.Option(metavar="KIND", help="Leave a kind out, such as features/NAME, with "
                                                   "its frame variants; repeatable.")]
Jobs = Annotated[int, typer.Option(min=1, max=64, help="Files at a time.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done; write nothing.")]


@dataclass(frozen=True)
class Push:
    """Options of `taro shards push`."""

    shards: Annotated[Path, typer.Argument(metavar="SET", help="Folder of the shard set.", show_default=False)]
    place: Annotated[str, typer.Argument(metavar="PLACE", show_default=False,
                                         help="Where to: a folder, s3://, gs://, az://, hf://datasets/ or "
                                              "hf://buckets/ (docs/sharing.md).")]
    without: Without = None
    no_thumbnails: Annotated[bool, typer.Option("--no-thumbnails", help="Without contact sheets.")] = False
    i_may_share: Annotated[bool, typer.Option("--i-may-share", help="You have the right to share it, whatever its "
                                              "licences say or do not say.")] = False
    replace: Annotated[bool, typer.Option("--replace", help="Put it in place of another set, where the place keeps "
                                          "earlier revisions (hf://datasets).")] = False
    public: Annotated[bool, typer.Option("--public", help="On a hub: a data set that is made is public, and one that "
                                         "is public already may be pushed to.")] = False
    jobs: Jobs = 8
    dry_run: DryRun = False
    as_json: Json = False


@dataclass(frozen=True)
class Pull:
    """Options of `taro shards pull`."""

    place: Annotated[str, typer.Argument(metavar="PLACE", show_default=False,
                                         help="Where from: a folder or a URL (docs/sharing.md).")]
    shards: Annotated[Path, typer.Argument(metavar="SET", help="Folder for the set.", show_default=False)]
    without: Without = None
    jobs: Jobs = 8
    dry_run: DryRun = False
    as_json: Json = False


def push(options: Push) -> None:
    """Copy a set to where others read it: what is missing there, the manifest last, private where the place knows that.

    A set at a place only grows: kinds are added to the same set, another set is refused. Run it again after a kill."""
    from taro.shards.transfer.push import Choices
    from taro.shards.transfer.push import push as push_set

    choices = Choices(without=tuple(options.without or ()), thumbnails=not options.no_thumbnails,
                      i_may_share=options.i_may_share, replace=options.replace, public=options.public,
                      jobs=options.jobs, dry_run=options.dry_run)
    with progress("pushing, MB", quiet=options.as_json) as shown:
        done = push_set(options.shards, options.place, choices, progress=_shown(shown, "pushing"),
                        making=lambda now, total: shown.update(now, total, "leaving contact sheets out"))
    _print(done, "pushed", as_json=options.as_json)


def pull(options: Pull) -> None:
    """Copy a set from a place into a folder: what is missing here, every file checked against the manifest.

    A folder that holds the set gets what it lacks. Run it again after a kill."""
    from taro.shards.transfer.pull import pull as pull_set

    with progress("pulling, MB", quiet=options.as_json) as shown:
        done = pull_set(options.place, options.shards, without=options.without or (), jobs=options.jobs,
                        dry_run=options.dry_run, progress=_shown(shown, "pulling"))
    _print(done, "pulled", as_json=options.as_json)


def _shown(shown: Shown, verb: str) -> Callable[[Progress], None]:
    """Moves the bar, and names files and rate in its label."""
    began_s = time.monotonic()

    def update(now: Progress) -> None:
        rate = now.bytes / max(time.monotonic() - began_s, 1e-3) / 1e6
        shown.update(now.bytes / 1e6, now.of_bytes / 1e6,
                     f"{verb} {now.files}/{now.of_files} files, {rate:,.1f} MB/s, MB")

    return update


def _print(done: Transfer, verb: str, *, as_json: bool) -> None:
    if as_json:
        say_json(done.as_dict())
        return
    if done.dry_run and done.moved:
        say(*(f"{size:>15,}  {name}" for name, size in done.moved))
    moved = f"{len(done.moved)} files, {done.moved_bytes:,} bytes" if done.moved else "nothing"
    say(f"{done.place}: {f'would have {verb}' if done.dry_run else verb} {moved}; {done.files} files, {done.bytes:,} "
        "bytes in all")
    if done.revision is not None:
        say(f"  revision {done.revision}")
