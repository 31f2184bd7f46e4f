"""`taro shards verify`: every byte of a set, and with --deep some of its clips against their videos. Thin: the work is
in shards/verify.py and preprocess/deep.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from taro.cli.options import Json, takes_options
from taro.cli.output import say, say_json
from taro.cli.progress import progress

if TYPE_CHECKING:
    from taro.preprocess.deep import DeepReport
    from taro.shards.verify import VerifyReport

__all__ = ["VerifyOptions", "verify"]


@dataclass(frozen=True)
class VerifyOptions:
    """Which set, and how deep."""

    path: Annotated[str, typer.Argument(metavar="PATH", help="Folder of the shard set.", show_default=False)]
    deep: Annotated[int | None, typer.Option(min=1, metavar="N", help="Also decode and encode one clip in N again, "
                                             "drawn at random, and compare; 1: all.")] = None
    videos: Annotated[Path | None, typer.Option(help="Folder of the videos, for --deep.")] = None
    policy: Annotated[str | None, typer.Option(help="Model whose tower encodes, for --deep; without it only frames and "
                                               "contact sheets are compared.")] = None
    exact: Annotated[bool, typer.Option("--exact", help="With --deep: expect the same bits, as on the same machine.")
                     ] = False
    seed: Annotated[int, typer.Option(help="Another seed draws other clips.")] = 0
    device: Annotated[str, typer.Option(help="Where --deep encodes: auto, cpu, cuda or cuda:N.")] = "auto"
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes; the result is the same.")] = 2
    as_json: Json = False


@takes_options
def verify(options: VerifyOptions) -> None:
    """Read every byte of a set and list everything that is wrong with it; exit code 1 where anything is.

    With --deep also decode and encode one clip in N again and compare it with what the set holds."""
    from taro.shards.verify import verify as verify_set

    if (options.deep is None) != (options.videos is None):
        raise typer.BadParameter("--deep and --videos go together: a clip is compared with its video")
    with progress("verifying, MB", quiet=options.as_json) as shown:
        report = verify_set(options.path, progress=lambda done, total: shown.update(done / 1e6, total / 1e6))
    deep = _deep(options) if report.ok and options.deep is not None else None
    if options.as_json:
        say_json({**report.as_dict(), **({} if options.deep is None else {"deep": deep and deep.as_dict()})})
    else:
        _say(report)
        if deep is not None:
            _say_deep(deep)
        elif options.deep is not None:
            say("deep: not begun, since the set is damaged")
    if not report.ok or (deep is not None and not deep.ok(exact=options.exact)):
        raise typer.Exit(1)


def _deep(options: VerifyOptions) -> DeepReport:
    assert options.deep is not None and options.videos is not None
    with progress("decoding and encoding, clips", quiet=options.as_json) as shown:
        from taro.preprocess.deep import deep_check

        return deep_check(options.path, options.videos, one_in=options.deep, policy=options.policy, seed=options.seed,
                          device=options.device, workers=options.workers, progress=shown.update)


def _say(report: VerifyReport) -> None:
    for problem in report.problems:
        say(f"problem: {problem}")
    say(f"{report.root}: {report.shards} shards, {report.records} clips, {report.queries} queries, "
        f"{report.captions} captions, {report.bytes:,} bytes: "
        + ("all right" if report.ok else f"{len(report.problems)} problems"))


def _say_deep(deep: DeepReport) -> None:
    for verdict, clips in (("different", deep.different), ("near", deep.near), ("not compared", deep.uncompared)):
        for key, said in clips.items():
            say(f"{verdict}: {key}: {said}")
    say(f"deep: {deep.drawn:,} of {deep.clips:,} clips drawn: {deep.equal:,} equal, {len(deep.near):,} near, "
        f"{len(deep.different):,} different, {len(deep.uncompared):,} not compared")
    say(f"  compared: {', '.join(deep.parts) or 'nothing'}; not: "
        + ", ".join(["captions, paths, CLIP features", *(f"features/{name}" for name in deep.left_out)]))
    if deep.near or deep.different:
        _say_measures(deep)


def _say_measures(deep: DeepReport) -> None:
    """How far apart, how far apart near is, and what may be the cause."""
    measures: dict[str, Any] = {part: f"{off:.3g}" for part, off in deep.largest.items() if off}
    say("  largest differences: " + (", ".join(f"{part} {off}" for part, off in measures.items()) or "no measure"))
    say("  near is up to: " + ", ".join(f"{name} {value:g}" for name, value in deep.tolerances.items()))
    if deep.versions:
        say("  other versions: " + "; ".join(f"{name} {both}" for name, both in deep.versions.items()))
