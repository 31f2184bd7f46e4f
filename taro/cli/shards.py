"""`taro shards ...`: look into shard sets. Thin: the work is in shards/."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from taro.cli.options import Json, takes_options
from taro.cli.output import say, say_json
from taro.cli.progress import progress
from taro.cli.selection import InRange, OfSplit, WithIds, WithKeys, WithText, selection
from taro.cli.shards_transfer import pull, push
from taro.cli.shards_verify import verify
from taro.cli.shards_view import view

if TYPE_CHECKING:
    from taro.shards.ops.rewrite import Derived
    from taro.shards.reader import ShardSet

__all__ = ["app", "diff", "filter_", "index", "info", "merge", "sample", "split", "stats", "verify", "view"]

By = Literal["split", "fraction"]
app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
app.command("push")(takes_options(push))
app.command("pull")(takes_options(pull))

Root = Annotated[str, typer.Argument(metavar="PATH", help="Folder or URL of the shard set.", show_default=False)]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make; must not exist.", show_default=False)]


@app.callback()
def _shards() -> None:
    """Look at, verify, index, view, count, compare, cut, join, push and pull shard sets."""


@app.command()
def info(path: Root, as_json: Json = False) -> None:
    """What a set holds: counts, kinds, encoders, provenance. Reads manifest and index; without index the sidecars."""
    from taro.shards.reader import open_shards

    shard_set = open_shards(path)
    found = _facts(shard_set)
    if as_json:
        say_json(found)
        return
    counts, source = found["counts"], found["provenance"]
    say(f"{path}: {found['name']}, format {found['format_version']}, by taro {found['taro_version'] or '?'}")
    say(f"  {source['dataset']} ({source['split']}): {counts['inputs']} annotation rows = {counts['queries']} "
        f"queries + {counts['skipped']} skipped; {counts['clips']} clips, {counts['captions']} captions")
    for kind in found["kinds"]:
        say(f"  {kind['kind']}: {kind['records']} records in {kind['shards']} shards, {kind['bytes']:,} bytes")
    for encoder in found["encoders"]:
        sampling = encoder["sampling"]
        say(f"  encoder {encoder['name']}: {encoder['model_id']}, tower {encoder['tower_sha256'][:16]}, "
            f"{encoder['dtype']}, up to {sampling['max_frames']} frames and {sampling['total_tokens']} tokens "
            "a clip")
    say(f"  licences: videos {source['licence_videos']}; annotations {source['licence_annotations']}; captions "
        f"{source['licence_captions']}")


def _facts(shard_set: ShardSet) -> dict[str, Any]:
    manifest = shard_set.manifest
    kinds = []
    for kind in manifest.kinds:
        entries = [entry for entry in manifest.shards if entry.kind == kind]
        kinds.append({"kind": kind, "shards": len(entries), "records": sum(e.records for e in entries),
                      "bytes": sum(e.bytes for e in entries)})
    facts = manifest.model_dump(mode="json", exclude={"shards", "encoders"})
    encoders = [{"name": one.name, **one.model_dump(mode="json")} for one in manifest.encoders]
    return {**facts, "kinds": kinds, "encoders": encoders}


app.command()(verify)
app.command()(view)


@app.command()
def index(path: Annotated[str, typer.Argument(metavar="PATH", help="Folder of the shard set.", show_default=False)],
          as_json: Json = False) -> None:
    """Add queries.parquet to a set in place: with it the set opens, filters and counts without reading every record."""
    from taro.shards.index_build import add_index

    with progress("indexing", quiet=as_json) as shown:
        manifest, written = add_index(path, progress=shown.update)
    entry = manifest.index
    assert entry is not None
    if as_json:
        say_json({**entry.model_dump(), "written": written})
        return
    say(f"{path}: queries.parquet, {entry.rows:,} rows, {entry.bytes:,} bytes"
        + ("" if written else ": it has this index already"))


@app.command()
def stats(path: Root, as_json: Json = False) -> None:
    """Count a set: clips, queries, windows by length and place, captions, paths, skipped rows, bytes."""
    from taro.shards.ops.stats import stats as count
    from taro.shards.reader import open_shards

    with progress("counting", quiet=as_json) as shown:
        found = count(open_shards(path), progress=shown.update)
    _print(found, as_json=as_json)


@app.command()
def sample(
    path: Root,
    limit: Annotated[int, typer.Option(min=1, help="Queries to show.")] = 5,
    seed: Annotated[int, typer.Option(help="Another seed draws others.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line instead of text.")] = False,
) -> None:
    """Show queries drawn at random, with their clip, windows, captions and paths."""
    from taro.shards.ops.stats import sample as draw
    from taro.shards.reader import open_shards

    with progress("reading", quiet=as_json):
        drawn = draw(open_shards(path), limit, seed=seed)
    for one in drawn:
        _print(one, as_json=as_json)


@app.command()
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="Folder or URL of a shard set.", show_default=False)],
    b: Annotated[str, typer.Argument(metavar="B", help="Folder or URL of another.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Compare two sets by their digests: clips, queries, windows, captions, features; exit code 1 where they differ."""
    from taro.shards.ops.diff import diff as compare
    from taro.shards.reader import open_shards

    with progress("comparing", quiet=as_json) as shown:
        found = compare(open_shards(a), open_shards(b), progress=shown.update)
    _print(found, as_json=as_json)
    if not found.ok:
        raise typer.Exit(1)


@app.command("filter")
def filter_(
    path: Root,
    out: Out,
    split: OfSplit = None,
    difficulty: InRange = None,
    query: WithIds = None,
    key: WithKeys = None,
    text: WithText = None,
    as_json: Json = False,
) -> None:
    """Copy the queries that all options let through, with their clips, to a set of its own."""
    from taro.shards.ops.filter import filter_set
    from taro.shards.reader import open_shards

    chosen = selection(split=split, difficulty=difficulty, query=query, key=key, text=text)
    with progress("copying", quiet=as_json) as shown:
        made = filter_set(open_shards(path), out, chosen, progress=shown.update)
    say_json(_counts(made)) if as_json else _made(made)


@app.command()
def split(
    path: Root,
    out: Out,
    by: Annotated[By, typer.Option(help="split: one set for each split that queries name; fraction: by video.")],
    fractions: Annotated[str, typer.Option(help="Name and share of each part, with --by fraction."
                                           )] = "train=0.9,val=0.1",
    seed: Annotated[int, typer.Option(help="Draws which video goes where, with --by fraction.")] = 0,
    as_json: Json = False,
) -> None:
    """Cut a set into named parts, OUT/NAME each, no video in two parts where fractions are cut."""
    from taro.shards.ops.split import split_by_fraction, split_by_split
    from taro.shards.reader import open_shards

    with progress("copying", quiet=as_json) as shown:
        shard_set = open_shards(path)
        if by == "split":
            parts = split_by_split(shard_set, out, progress=shown.update)
        else:
            parts = split_by_fraction(shard_set, out, _shares(fractions), seed=seed, progress=shown.update)
    if as_json:
        say_json({"parts": {name: _counts(part) for name, part in parts.items()}})
        return
    for part in parts.values():
        _made(part)


@app.command()
def merge(
    paths: Annotated[list[str], typer.Argument(metavar="SET SET ... OUT", show_default=False,
                                               help="Folders or URLs of two or more sets, then the folder to make.")],
    as_json: Json = False,
) -> None:
    """Join sets of the same encoders; a clip in several is written once, its queries united, contradictions refused."""
    from taro.shards.ops.merge import merge_sets
    from taro.shards.reader import open_shards

    *sources, out = paths
    with progress("copying", quiet=as_json) as shown:
        merged = merge_sets([open_shards(path) for path in sources], out, progress=shown.update)
    if as_json:
        say_json({**_counts(merged.made), "source_inputs": merged.source_inputs, "repeated": merged.repeated,
                  "clips_twice": merged.clips_twice, "left_out": list(merged.left_out)})
        return
    _made(merged.made)
    say(f"  {merged.source_inputs} rows in {len(sources)} sets, {merged.repeated} of them repeated; "
        f"{merged.clips_twice} clips in more than one")
    for kind in merged.left_out:
        say(f"  left out: {kind}, which the sets do not hold alike")


def _print(found: Any, *, as_json: bool) -> None:
    if as_json:
        say_json(found.as_dict())
        return
    say(*found.lines())


def _made(derived: Derived) -> None:
    say(f"{derived.root}: {derived.inputs} rows = {derived.queries} queries + {derived.skipped} skipped, "
        f"{derived.clips} clips")


def _counts(derived: Derived) -> dict[str, Any]:
    return {"root": str(derived.root), "inputs": derived.inputs, "queries": derived.queries,
            "skipped": derived.skipped, "clips": derived.clips}


def _shares(text: str) -> dict[str, float]:
    from taro.core.errors import ConfigError
    from taro.core.numbers import read_number

    pairs = [(name, read_number(share)) for name, _, share in (part.partition("=") for part in text.split(","))]
    found = {name: share for name, share in pairs if share is not None}
    if len(found) != len(pairs):
        raise ConfigError(f"--fractions {text!r}: expected NAME=SHARE,NAME=SHARE, such as train=0.9,val=0.1, no name "
                          "twice")
    return found
