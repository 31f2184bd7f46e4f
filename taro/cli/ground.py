"""`taro ground`: one video, one query, one moment, with the reasoning that led there and the time it took.

Thin: the video is preprocessed into a temporary shard set (`taro.cli.temporary`) and answered as `taro eval`
would. Left out: an open-ended chat about the video.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from taro.cli.output import say

__all__ = ["ground"]


def ground(
    video: Annotated[Path, typer.Argument(help="Video file.")],
    query: Annotated[str, typer.Argument(help="What happens, e.g. 'the person opens the door'.")],
    policy: Annotated[str, typer.Option(help="Model folder, or sandbox:NAME.")],
    template: Annotated[str | None, typer.Option(help="Prompt template; default: the policy's own.")] = None,
    no_think: Annotated[bool | None, typer.Option("--no-think/--think", show_default=False, help="Ask for the answer "
                                                  "alone, or for a reasoning; default: as trained.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest response.")] = 1024,
    repetition_penalty: Annotated[float, typer.Option(min=0.1, help="Of greedy decoding.")] = 1.05,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Ask one video when something happens; exit code 1 where the response holds no moment."""
    from taro.core.errors import VideoError
    from taro.grounding.prompts import normalise_query

    if not video.is_file():
        raise VideoError(f"{video}: no such video file; give the path of a file")
    if not normalise_query(query):
        raise typer.BadParameter("the query is empty; say what should be found", param_hint="QUERY")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="taro-ground-") as folder:
        shards = _encode(video, query, policy, Path(folder), device)
        encoded = time.monotonic()
        row = _answer(shards, policy, template, no_think, device, max_new_tokens, repetition_penalty)
    _show(video, row, as_json, encode_s=encoded - started, answer_s=time.monotonic() - encoded)
    if row.predicted is None:
        raise typer.Exit(1)


def _encode(video: Path, query: str, policy: str, folder: Path, device: str) -> Path:
    from taro.annotations import Dropped, import_annotations
    from taro.cli.temporary import temporary_shards
    from taro.core.errors import TaroError, VideoError
    from taro.shards.manifest import read_skipped

    # Alone in a folder of its own: the folder that it is in may hold a whole disk. A hidden file would not be listed,
    # and a name with a newline is no name to the linter.
    name = video.name if video.name.isprintable() and not video.name.startswith(".") else f"video{video.suffix}"
    (folder / "videos").mkdir()
    (folder / "videos" / name).symlink_to(video.resolve())
    annotations = folder / "query.jsonl"
    # A row needs a window; nobody reads this one.
    annotations.write_text(json.dumps({"video": name, "query": query, "windows": [[0.0, 0.1]], "qid": "query"}),
                           encoding="utf-8")
    refused = [o.reason for o in import_annotations(annotations, dataset="jsonl").outcomes if isinstance(o, Dropped)]
    if refused:
        raise typer.BadParameter(f"it cannot be used: {refused[0]}", param_hint="QUERY")
    shards = folder / "shards"
    try:
        temporary_shards(shards, policy=policy, videos=folder / "videos", annotations=annotations,
                         dataset="jsonl", device=device)
    except TaroError:
        if not read_skipped(shards):  # otherwise the ledger says better what is wrong with the video
            raise
    for row in read_skipped(shards):
        reason, detail = str(row["reason"]), str(row["detail"]).removeprefix(f"{name}: ")
        said = detail if detail.startswith(reason) else f"{reason}: {detail}"
        raise VideoError(f"{video}: {said}", reason=reason, transient=bool(row["transient"]))
    return shards


def _answer(shards: Path, policy_name: str, template: str | None, no_think: bool | None, device: str,
            max_new_tokens: int, repetition_penalty: float) -> Any:
    from taro.models.sampler import Decoding
    from taro.train.evaluate import evaluate_policy
    from taro.train.run_dir import open_encoded_shards, open_policy, policy_no_think, policy_template

    policy = open_policy(policy_name, device)
    decoding = Decoding(max_new_tokens, temperature=0.0, repetition_penalty=repetition_penalty)
    return evaluate_policy(policy, open_encoded_shards(shards, policy), template=policy_template(policy, template),
                           decoding=decoding, protocol="multi-window",
                           no_think=policy_no_think(policy, no_think))[0]


def _show(video: Path, row: Any, as_json: bool, *, encode_s: float, answer_s: float) -> None:
    from taro.grounding.answers import parse_reasoning

    moment, reasoning = row.predicted, parse_reasoning(row.text).text.strip()
    if as_json:
        say(json.dumps({
            "video": str(video), "query": row.query, "duration_s": row.duration_s,
            "moment": None if moment is None else [moment.start_s, moment.end_s],
            "moments": [[window.start_s, window.end_s] for window in row.answers], "reasoning": reasoning,
            "text": row.text, "tokens": row.tokens, "finished": row.finished,
            "seconds": {"encode": round(encode_s, 3), "answer": round(answer_s, 3)}}))
        return
    if moment is None:
        say(f"no moment in the response: {row.text[:500]!r}")
    else:
        windows = ", ".join(f"{window.start_s:.2f}s to {window.end_s:.2f}s" for window in row.answers)
        say(f"{windows} (of {row.duration_s:.2f}s)")
    if reasoning:
        say(f"\n{reasoning}\n")
    say(f"decoded and encoded in {encode_s:.1f} s, answered in {answer_s:.1f} s ({row.tokens} tokens)")
