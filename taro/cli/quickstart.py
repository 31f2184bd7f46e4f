"""`taro quickstart`: the whole method on the embedded sandbox, in minutes, without a hub and without a GPU.

This module is the screen: a line a stage while it runs, a table of what changed, the commands to try next. What is done
stands in taro/cli/quickstart_run.py."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from taro.cli.options import Json
from taro.cli.output import console, say, say_json
from taro.cli.progress import Lines, Pace, count_and_time
from taro.cli.quickstart_run import SAMPLED, STAGES, Quickstart, run_quickstart

__all__ = ["quickstart"]

ROWS = (("mIoU", "miou"), ("R1@0.3", "r1@0.3"), ("R1@0.5", "r1@0.5"), ("R1@0.7", "r1@0.7"),
        ("reasonings with timestamps", "timestamps"), ("first span right", "first_span"))


def quickstart(
    out: Annotated[Path, typer.Option("--out", help="Folder for everything it makes.")] = Path("quickstart"),
    steps: Annotated[int, typer.Option("--steps", min=1, max=100_000, help="Training steps.")] = 40,
    seed: Annotated[int, typer.Option("--seed", min=0, max=9, help="Of the training worlds and of every draw.")] = 0,
    family: Annotated[Literal["qwen2_5_vl", "qwen3_vl"], typer.Option(
        "--family", help="Model family of the tiny policy.")] = "qwen2_5_vl",
    control: Annotated[Literal["none", "permute"], typer.Option(
        "--control", help="permute: rewards are permuted inside each group, to see what they are good for.")] = "none",
    as_json: Json = False,
) -> None:
    """See the whole method work: videos, shards, guided and free training, a report.

    About five minutes on two CPU cores. An interrupted quickstart goes on where it stopped."""
    settings = Quickstart(out=out, steps=steps, seed=seed, family=family, control=control)
    shown = console(err=True, quiet=as_json)
    shown.print("[bold]taro quickstart[/bold]: synthetic videos to a trained model, about five minutes on two cores")
    with _Screen(shown) as screen:
        result = run_quickstart(settings, screen)
    if as_json:
        say_json(result)
        return
    _print(result)


class _Screen:
    """The `Show` of a terminal, a line a stage: rich's live bars in a terminal, a plain line at each end elsewhere."""

    def __init__(self, screen: Any) -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
        from rich.table import Column

        self._console = screen
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]*", table_column=Column(no_wrap=True, min_width=1)),
            TextColumn("{task.description}", table_column=Column(no_wrap=True, min_width=17)),
            BarColumn(bar_width=8, table_column=Column(no_wrap=True, min_width=8)), *count_and_time(),
            TextColumn("{task.fields[note]}", style="dim", markup=False,
                       table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            console=screen, disable=not screen.is_terminal, expand=True)
        self._tasks: dict[str, Any] = {}
        self._lines = Lines(lambda text: screen.print(text, markup=False, highlight=False, soft_wrap=True))
        self._paces: dict[str, Pace] = {}

    def __enter__(self) -> _Screen:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, stage: str) -> None:
        label, about = STAGES[stage]
        self._paces[stage] = Pace()
        self._tasks[stage] = self._progress.add_task(label, total=None, note=about, count="", pace=self._paces[stage])

    def step(self, stage: str, done: float, total: float, note: str = "") -> None:
        self._paces[stage].update(done, total)
        self._progress.update(self._tasks[stage], completed=done, total=total, note=note or STAGES[stage][1],
                              count=f"{done:,.0f}/{total:,.0f}")
        if not self._console.is_terminal:
            self._lines.update(done, total, " ".join(part for part in (STAGES[stage][0], note) if part))

    def end(self, stage: str, note: str) -> None:
        seconds = time.monotonic() - self._paces[stage].began_s
        self._paces[stage].end()
        self._progress.update(self._tasks[stage], completed=1, total=1, note=note)
        if not self._console.is_terminal:
            self._console.print(f"{STAGES[stage][0]}: {seconds:.0f} s; {note}", markup=False, highlight=False,
                                soft_wrap=True)


def _print(result: dict[str, Any]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(title=f"{result['queries']} held-out queries, protocol {result['after']['protocol']}",
                  title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for name in ("greedy:", SAMPLED.replace(", ", " at ") + ":"):
        table.add_column(f"{name}\nbefore", justify="right")
        table.add_column("\nafter", justify="right", style="bold")
    for label, key in ROWS:
        values = [result[side].get(name) for name in (key, f"{key}_sampled") for side in ("before", "after")]
        table.add_row(label, *("-" if value is None else f"{value:.3f}" for value in values))
    console().print(table)
    gain = result["gain"]["greedy"]
    lines = [f"Change of greedy mIoU: {gain['miou']:+.3f}, 95 % interval [{gain['low']:+.3f}, {gain['high']:+.3f}] "
             f"over videos. {result['seconds']:.0f} s in all.",
             f"Report: {result['report']}", "", "Try next:",
             f"  taro shards info {result['shards']['train']}",
             f"  taro eval --policy {result['checkpoint']} --shards {result['shards']['held-out']} --max-new-tokens 96 "
             "--repetition-penalty 1",
             f"  taro quickstart --seed {result['seed'] + 1} --out again",
             "  taro train --help"]
    say(*lines)
