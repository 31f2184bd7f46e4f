"""`taro sandbox make` and `taro sandbox build`: the embedded synthetic world.

Thin: `taro.sandbox.make` writes videos and annotations, `taro.sandbox.build` trains the tiny models again.
What a world is, what the models know: docs/sandbox.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from taro.cli.options import Json
from taro.cli.output import examples, say, say_json
from taro.cli.progress import progress

__all__ = ["app", "build", "make"]

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE",
                 help="A setting of the world; repeatable: size_px, fps, min_duration_s, max_duration_s, min_events, "
                 "max_events, repeat, max_distractors, overlap, noise. The shipped models know the defaults.",
                 show_default=False),
]
MAKE_EXAMPLES = ("taro sandbox make world --videos 64", "taro sandbox make held-out --videos 40 --split test",
                 "taro sandbox make hard --videos 64 --set overlap=0.5 --set max_events=8")
BUILD_EXAMPLES = ("taro sandbox build models --quick", "taro sandbox build models --device cuda --processes 16")


@app.callback()
def _sandbox() -> None:
    """The embedded synthetic world: make videos, rebuild the tiny models."""


@app.command(epilog=examples(MAKE_EXAMPLES))
def make(
    out: Annotated[Path, typer.Argument(help="Folder to write: annotations.jsonl, videos/, world.json.")],
    videos: Annotated[int, typer.Option(min=1, max=100_000, help="How many.")] = 20,
    seed: Annotated[int, typer.Option(min=0, max=9, help="Which worlds; none was seen by the shipped models.")] = 0,
    split: Annotated[str, typer.Option(help="train; any other name gives worlds of no training set.")] = "train",
    queries: Annotated[int, typer.Option(min=1, help="Queries of a video, at most: one an event.")] = 3,
    workers: Annotated[int, typer.Option(min=1, help="Processes; the result is the same.")] = 1,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Make videos with queries and true captions: equal arguments give equal files.

    The folder is what [bold]taro preprocess sandbox[/bold] reads."""
    from taro.core.config import load_config
    from taro.core.errors import ConfigError
    from taro.sandbox.make import make_sandbox
    from taro.sandbox.world import WorldSettings

    if not split.strip():
        raise ConfigError("--split: the split is empty; give it a name, such as test")
    world = load_config(WorldSettings, None, settings or [], package="taro.sandbox")
    with progress("videos", quiet=as_json) as shown:
        make_sandbox(out, videos=videos, seed=seed, split=split, settings=world, queries_per_video=queries,
                     workers=workers, progress=shown.update)
    facts = json.loads((out / "world.json").read_text(encoding="utf-8"))
    if as_json:
        say_json({"out": str(out), **facts})
        return
    say(f"{out}: {videos} videos, {facts['queries']} queries (split {split})",
        f"next: taro preprocess sandbox --set videos={out}/videos --set annotations={out}/annotations.jsonl "
        "--set out=shards")


@app.command(epilog=examples(BUILD_EXAMPLES))
def build(
    out: Annotated[Path, typer.Argument(help="Folder to write: captioner/, policy/, clip/, training-log.jsonl.")],
    device: Annotated[str, typer.Option(help="cuda takes 8 minutes on an H100; cpu is for --quick.")] = "cpu",
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes, to see it run; useless models.")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the captioner.", show_default=False)] = None,
    videos: Annotated[int | None, typer.Option(min=16, help="Videos to train on.", show_default=False)] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes that make videos.")] = 1,
    seed: Annotated[int, typer.Option(min=0, max=8, help="Of weights, data and draws.")] = 0,
) -> None:
    """Train the tiny models from seeds: videos, captioner, weak policy, CLIP model; each is scored on held-out worlds.

    Every line also goes to training-log.jsonl."""
    from taro.core.errors import ConfigError
    from taro.sandbox.build import BuildSettings, build_sandbox

    if device == "cpu" and not quick and steps is None:
        raise ConfigError("a full build on a CPU takes days; add --quick to see it run, --device cuda to train, or "
                          "--steps N for a size of your own")
    sizes = {key: value for key, value in (("steps", steps), ("videos", videos)) if value is not None}
    chosen: dict[str, Any] = {"device": device, "processes": processes, "seed": seed, "compiled": device == "cuda"}
    chosen.update(sizes)
    build_sandbox(out, BuildSettings.quick(**chosen) if quick else BuildSettings(**chosen))
