"""`taro shards view`: a set as a folder of pages. Thin: the work is in shards/view.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from taro.cli.options import Json, takes_options
from taro.cli.output import say, say_json
from taro.cli.progress import progress
from taro.cli.selection import InRange, OfSplit, WithIds, WithKeys, WithText, selection

__all__ = ["ViewOptions", "view"]


@dataclass(frozen=True)
class ViewOptions:
    """Which set, where the pages go, and which queries they show."""

    path: Annotated[str, typer.Argument(metavar="PATH", help="Folder of the shard set.", show_default=False)]
    out: Annotated[Path, typer.Option(help="Folder to write; pages that are there are replaced.")] = Path("view")
    run: Annotated[Path | None, typer.Option(help="A training run's folder: its rollouts are shown too.")] = None
    limit: Annotated[int, typer.Option(min=1, help="Clips at most; those with rollouts come first.")] = 1000
    split: OfSplit = None
    difficulty: InRange = None
    query: WithIds = None
    key: WithKeys = None
    text: WithText = None
    as_json: Json = False


@takes_options
def view(options: ViewOptions) -> None:
    """Write a folder of pages: a list of the queries with search, and a page a clip with all on one time axis.

    Open OUT/index.html in a browser. What else chooses queries works as in filter."""
    from taro.shards.view import view as write_view
    from taro.train.report.data import last_rollouts

    chosen = selection(split=options.split, difficulty=options.difficulty, query=options.query, key=options.key,
                       text=options.text)
    rollouts = last_rollouts(options.run, options.path) if options.run else {}
    with progress("drawing", quiet=options.as_json) as shown:
        made = write_view(options.path, options.out, rollouts=rollouts, limit=options.limit, selection=chosen,
                          progress=shown.update)
    if options.as_json:
        say_json(made.as_dict())
        return
    say(f"{made.page}: {made.clips:,} of {made.clips_in_set:,} clips, {made.queries:,} queries"
        + (f" ({made.queries_left_out:,} more are not listed)" if made.queries_left_out else ""))
