"""`taro shards ...`: look into shard sets. Thin: the work is in shards/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from shards.reader import ShardSet

__all__ = ["app", "diff", "info", "sample", "stats", "verify", "view"]

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")

Root = Annotated[str, typer.Argument(metavar="PATH", help="Folder of the shard set.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


@app.callback()
def _shards() -> None:
    """Look at, verify, view, count and compare shard sets."""


@app.command()
def info(path: Root, as_json: Json = False) -> None:
    """What a set holds: counts, kinds, encoders, provenance. Reads the manifest and the sidecars, no record."""
    from shards.reader import open_shards

    shard_set = open_shards(path)
    found = _facts(shard_set)
    if as_json:
        typer.echo(json.dumps(found))
        return
    counts, source = found["counts"], found["provenance"]
    _say(f"{path}: {found['name']}, format {found['format_version']}, by taro {found['taro_version'] or '?'}")
    _say(f"  {source['dataset']} ({source['split']}): {counts['inputs']} annotation rows = {counts['queries']} queries "
         f"+ {counts['skipped']} skipped; {counts['clips']} clips, {counts['captions']} captions")
    for kind in found["kinds"]:
        _say(f"  {kind['kind']}: {kind['records']} records in {kind['shards']} shards, {kind['bytes']:,} bytes")
    for encoder in found["encoders"]:
        sampling = encoder["sampling"]
        _say(f"  encoder {encoder['name']}: {encoder['model_id']}, tower {encoder['tower_sha256'][:16]}, "
             f"{encoder['dtype']}, up to {sampling['max_frames']} frames and {sampling['total_tokens']} tokens a clip")
    _say(f"  licences: videos {source['licence_videos']}; annotations {source['licence_annotations']}; captions "
         f"{source['licence_captions']}")


def _say(text: str) -> None:
    """Prints a line with a stranger's text in it: nothing that moves a terminal's cursor."""
    typer.echo("".join(char if char.isprintable() else "?" for char in text))


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


@app.command()
def verify(path: Root, as_json: Json = False) -> None:
    """Read every byte of a set and list everything that is wrong with it; exit code 1 where anything is."""
    import rich.console
    import rich.progress

    from shards.verify import verify as verify_set

    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(console=console, transient=True, disable=as_json or not console.is_terminal) as bars:
        task = bars.add_task("verifying", total=None)
        report = verify_set(path, progress=lambda done, total: bars.update(task, completed=done, total=total))
    if as_json:
        typer.echo(json.dumps(report.as_dict()))
    else:
        for problem in report.problems:
            typer.echo(f"problem: {problem}")
        typer.echo(f"{path}: {report.shards} shards, {report.records} clips, {report.queries} queries, "
                   f"{report.captions} captions, {report.bytes:,} bytes: "
                   + ("all right" if report.ok else f"{len(report.problems)} problems"))
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def view(
    path: Root,
    out: Annotated[Path, typer.Option(help="Page to write: a .html file, or a folder for index.html.")] = Path("view"),
    run: Annotated[Path | None, typer.Option(help="A training run's folder: its rollouts are shown too.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Clips on the page.")] = 50,
    key: Annotated[list[str] | None, typer.Option(help="Only this clip (may be given several times).")] = None,
) -> None:
    """Write one self-contained page: contact sheets, truth, captions and candidate paths on a time axis."""
    from shards.view import view as write_view

    typer.echo(str(write_view(path, out, run=run, limit=limit, keys=key or ())))


@app.command()
def stats(path: Root, as_json: Json = False) -> None:
    """Count a set: clips, queries, windows by length and place, captions, paths, skipped rows, bytes."""
    from shards.reader import open_shards
    from shards.stats import stats as count

    found = count(open_shards(path))
    if as_json:
        typer.echo(json.dumps(found.as_dict()))
        return
    for line in found.lines():
        _say(line)


@app.command()
def sample(
    path: Root,
    n: Annotated[int, typer.Option("--n", min=1, help="Queries to show.")] = 5,
    seed: Annotated[int, typer.Option(help="Another seed draws others.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line instead of text.")] = False,
) -> None:
    """Show queries drawn at random, with their clip, windows, captions and paths."""
    from shards.reader import open_shards
    from shards.stats import sample as draw

    for one in draw(open_shards(path), n, seed=seed):
        if as_json:
            typer.echo(json.dumps(one.as_dict()))
            continue
        for line in one.lines():
            _say(line)


@app.command()
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="Folder of a shard set.", show_default=False)],
    b: Annotated[str, typer.Argument(metavar="B", help="Folder of another.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Compare two sets by their digests: clips, queries, windows, captions, features; exit code 1 where they differ."""
    from shards.diff import diff as compare
    from shards.reader import open_shards

    found = compare(open_shards(a), open_shards(b))
    if as_json:
        typer.echo(json.dumps(found.as_dict()))
    else:
        for line in found.lines():
            _say(line)
    if not found.ok:
        raise typer.Exit(1)
