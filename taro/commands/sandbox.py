"""`taro sandbox make` and `taro sandbox build`: the embedded synthetic world.

Thin: `taro.sandbox.make` writes videos and annotations, `taro.sandbox.build` trains the tiny models again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["app", "build", "make"]

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="A setting of the world, key=value; repeat.", show_default=False)
]


@app.callback()
def _sandbox() -> None:
    """The embedded synthetic world: make videos, rebuild the tiny models."""


@app.command()
def make(
    out: Annotated[Path, typer.Argument(help="Folder to write: annotations.jsonl, videos/, world.json.")],
    videos: Annotated[int, typer.Option(min=1, max=100_000, help="How many.")] = 20,
    seed: Annotated[int, typer.Option(min=0, max=8, help="Which worlds; none was seen by the shipped models.")] = 0,
    split: Annotated[str, typer.Option(help="train, or a name for worlds to evaluate on.")] = "train",
    queries: Annotated[int, typer.Option(min=1, help="At most so many a video.")] = 3,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    settings: Settings = None,
) -> None:
    """Make videos with queries and true captions."""
    from rich.console import Console
    from rich.progress import Progress

    from taro.config import load_config
    from taro.sandbox.make import make_sandbox
    from taro.sandbox.world import WorldSettings

    world = load_config(WorldSettings, None, settings or [], package="taro.sandbox")
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("videos", total=videos)
        make_sandbox(
            out, videos=videos, seed=seed, split=split, settings=world, queries_per_video=queries, workers=workers,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    typer.echo(f"{out}: {videos} videos; annotations of split {split!r} in annotations.jsonl")


@app.command()
def build(
    out: Annotated[Path, typer.Argument(help="Folder to write: captioner/, policy/, clip/, training-log.jsonl.")],
    device: Annotated[str, typer.Option(help="cuda takes minutes; cpu is for --quick.")] = "cpu",
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes, to see it run.")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the captioner.", show_default=False)] = None,
    videos: Annotated[int | None, typer.Option(min=16, help="Videos to train on.", show_default=False)] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes that make videos.")] = 1,
    seed: Annotated[int, typer.Option(min=0, max=8, help="Of weights, data and draws.")] = 0,
) -> None:
    """Train the tiny models from seeds."""
    from taro.sandbox.build import BuildSettings, build_sandbox

    sizes = {key: value for key, value in (("steps", steps), ("videos", videos)) if value is not None}
    chosen: dict[str, Any] = {"device": device, "processes": processes, "seed": seed, "compiled": device == "cuda"}
    chosen.update(sizes)
    build_sandbox(out, BuildSettings.quick(**chosen) if quick else BuildSettings(**chosen))
