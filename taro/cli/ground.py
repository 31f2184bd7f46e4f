"""`taro ground`: one video, one query, one moment, with the reasoning that led there and the time it took.

Thin: the video is preprocessed into a temporary shard set (`taro.cli.temporary`) and answered as `taro eval`
would. Left out: an open-ended chat about the video."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from taro.cli.options import (
    Adapter,
    Device,
    Json,
    MaxNewTokens,
    NoThink,
    Policy,
    Protocol,
    RepetitionPenalty,
    Template,
    takes_options,
)
from taro.cli.output import say, say_block, say_json
from taro.cli.progress import Shown, progress

if TYPE_CHECKING:
    from taro.core.errors import VideoError
    from taro.grounding.moment import Moment
    from taro.grounding.prompts import Asking
    from taro.preprocess.report import PreprocessReport

__all__ = ["GroundOptions", "ground"]


@dataclass(frozen=True)
class GroundOptions:
    """The video, the question and how it is answered."""

    video: Annotated[Path, typer.Argument(help="Video file.")]
    query: Annotated[str, typer.Argument(help="What happens, e.g. 'the person opens the door'.")]
    policy: Policy
    adapter: Adapter = None
    template: Template = None
    no_think: NoThink = None
    max_new_tokens: MaxNewTokens = 1024
    repetition_penalty: RepetitionPenalty = 1.05
    protocol: Protocol = "multi-window"
    device: Device = "auto"
    as_json: Json = False


@takes_options
def ground(options: GroundOptions) -> None:
    """Ask one video when something happens; exit code 1 where the response holds no moment."""
    from taro.cli.temporary import warn_of_times
    from taro.core.errors import VideoError
    from taro.grounding.prompts import normalise_query
    from taro.grounding.protocols import protocol_named
    from taro.models.asking import asking_of
    from taro.models.resolve import resolve_place

    if not options.video.is_file():
        raise VideoError(f"{options.video}: no such video file; give the path of a file")
    _look(options.video)
    if not normalise_query(options.query):
        raise typer.BadParameter("the query is empty; say what should be found", param_hint="QUERY")
    protocol_named(options.protocol)
    asking = asking_of(resolve_place(options.policy, options.adapter).asked, template=options.template,
                       no_think=options.no_think, protocol=options.protocol)
    started = time.monotonic()
    with (tempfile.TemporaryDirectory(prefix="taro-ground-") as folder,
          progress("loading", quiet=options.as_json) as shown):
        report = _encode(options, Path(folder), shown)
        encoded = time.monotonic()
        row = _answer(options, report.out, asking, shown)
    warn_of_times(report)
    kept = _inside(row)
    _show(options, row, kept, encode_s=encoded - started, answer_s=time.monotonic() - encoded)
    if not kept:
        raise typer.Exit(1)


def _look(video: Path) -> None:
    """Raises VideoError where the file is no video, before a model is looked for."""
    from taro.core.errors import VideoError
    from taro.preprocess.video.contents import check_contents

    try:
        check_contents(video)
    except VideoError as error:
        detail = str(error).removeprefix(f"{video.name}: ")
        raise _refusal(video, error.reason, detail, transient=error.transient) from None


def _refusal(video: Path, reason: str, detail: str, *, transient: bool) -> VideoError:
    from taro.core.errors import VideoError

    message = detail if detail.startswith(reason) else f"{reason}: {detail}"
    return VideoError(f"{video}: {message}", reason=reason, transient=transient)


def _inside(row: Any) -> list[Moment]:
    """The windows of the answer that reach into the video, limited to it."""
    inside = [one for one in row.answers if one.start_s <= one.end_s and one.start_s < row.duration_s and one.end_s > 0]
    return [one.clip(row.duration_s) for one in inside]


def _encode(options: GroundOptions, folder: Path, shown: Shown) -> PreprocessReport:
    from taro.annotations import Dropped, import_annotations
    from taro.cli.temporary import RawVideos, temporary_shards
    from taro.core.errors import TaroError
    from taro.shards.manifest import read_skipped

    video = options.video
    # Alone in a folder of its own: the folder that it is in may hold a whole disk. A hidden file would not be listed,
    # and a name with a newline, or with a blank at an end, is no name to the linter.
    usable = video.name.isprintable() and not video.name.startswith(".") and video.name == video.name.strip()
    name = video.name if usable else "video"
    (folder / "videos").mkdir()
    (folder / "videos" / name).symlink_to(video.resolve())
    annotations = folder / "query.jsonl"
    # A row needs a window; nobody reads this one.
    annotations.write_text(json.dumps({"video": name, "query": options.query, "windows": [[0.0, 0.1]], "qid": "query"}),
                           encoding="utf-8")
    refused = [o.reason for o in import_annotations(annotations, dataset="jsonl").outcomes if isinstance(o, Dropped)]
    if refused:
        raise typer.BadParameter(f"it cannot be used: {refused[0]}", param_hint="QUERY")
    shards = folder / "shards"
    try:
        report = temporary_shards(RawVideos(folder / "videos", annotations), shards, policy=options.policy,
                                  device=options.device,
                                  progress=lambda at: shown.update(at.done, at.total, at.label))
    except TaroError:
        if not (shards.is_dir() and read_skipped(shards)):  # else the ledger says better what is wrong
            raise
    for row in read_skipped(shards):
        raise _refusal(video, str(row["reason"]), str(row["detail"]).removeprefix(f"{name}: "),
                       transient=bool(row["transient"]))
    return report


def _answer(options: GroundOptions, shards: Path, asking: Asking, shown: Shown) -> Any:
    from taro.models.load import open_policy
    from taro.models.resolve import resolve_place
    from taro.models.sampler import Decoding
    from taro.train.evaluate import evaluate_policy
    from taro.train.sets import open_encoded_shards

    decoding = Decoding(options.max_new_tokens, temperature=0.0, repetition_penalty=options.repetition_penalty)
    shard_set = open_encoded_shards(shards, resolve_place(options.policy, options.adapter).base)
    shown.stage("loading the policy")
    policy = open_policy(options.policy, options.device, options.adapter)
    shown.stage("answering")
    return evaluate_policy(policy, shard_set, asking, decoding)[0]


def _show(options: GroundOptions, row: Any, kept: list[Moment], *, encode_s: float, answer_s: float) -> None:
    from taro.grounding.answers import parse_reasoning

    reasoning = parse_reasoning(row.text).text.strip()
    windows, said = (", ".join(f"{one.start_s:.2f}s to {one.end_s:.2f}s" for one in some)
                     for some in (kept, row.answers))
    clipped = list(row.answers) != kept
    if options.as_json:
        say_json({"video": str(options.video), "query": row.query, "duration_s": row.duration_s,
                  "moment": [kept[0].start_s, kept[0].end_s] if kept else None,
                  "moments": [[window.start_s, window.end_s] for window in kept], "clipped": clipped,
                  "answered": [[window.start_s, window.end_s] for window in row.answers], "reasoning": reasoning,
                  "text": row.text, "tokens": row.tokens, "finished": row.finished,
                  "seconds": {"encode": round(encode_s, 3), "answer": round(answer_s, 3)}})
        return
    if not row.answers:
        say(f"no moment in the response: {row.text[:500]!r}")
    elif not kept:
        say(f"the answer is no moment of the video: {said} (of {row.duration_s:.2f}s)")
    else:
        say(f"{windows} (of {row.duration_s:.2f}s{f'; clipped, the answer is {said}' if clipped else ''})")
    if reasoning:
        say("")
        say_block(reasoning, indent="  ")
        say("")
    say(f"decoded and encoded in {encode_s:.1f} s, answered in {answer_s:.1f} s ({row.tokens} tokens)")
