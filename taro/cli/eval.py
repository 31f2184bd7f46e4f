"""`taro eval`: scores a checkpoint on shards or on raw videos, or a file of predictions, under a named protocol.

Thin: answers come from `taro.train.evaluate`, scores from `taro.metrics.scores`, files of predictions from
`taro.metrics.predictions`."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from taro.cli import options as shared
from taro.cli.output import say, say_block, say_json
from taro.cli.progress import load_libraries, progress
from taro.cli.ranks import is_quiet, start_ranks

if TYPE_CHECKING:
    from taro.grounding.prompts import Asking
    from taro.train.ranks import Ranks

__all__ = ["EvalOptions", "evaluate"]

Text = str | None
File = Path | None


@dataclass(frozen=True)
class EvalOptions:
    """What is scored, how it is answered and what is written."""

    policy: shared.OptionalPolicy = None
    adapter: shared.Adapter = None
    shards: Annotated[Text, typer.Option(help="Shard set to answer.")] = None
    videos: Annotated[File, typer.Option(help="Folder of videos to answer instead (with --annotations).")] = None
    predictions: Annotated[File, typer.Option(help="Predictions file (JSONL) to score instead of a policy.")] = None
    annotations: Annotated[File, typer.Option(help="Annotations of --videos or --predictions.")] = None
    dataset: shared.Dataset = "jsonl"
    lengths: shared.Lengths = None
    column: shared.Columns = None
    split: Annotated[Text, typer.Option(help="Only queries of this split.")] = None
    protocol: shared.Protocol = "taro"
    compare: Annotated[File, typer.Option(help="Second predictions file: is it better than --predictions?")] = None
    breakdown: Annotated[bool, typer.Option("--breakdown", help="Scores by length and place of the moment.")] = False
    sampled: Annotated[bool, typer.Option("--sampled", help="Sample at temperature 1 instead of greedy.")] = False
    limit: Annotated[int | None, typer.Option(min=1, help="Answer this many queries, drawn by --seed.")] = None
    seed: Annotated[int, typer.Option(min=0, help="Of --sampled, --limit and the bootstrap.")] = 0
    template: shared.Template = None
    no_think: shared.NoThink = None
    both: Annotated[bool, typer.Option("--both", help="Answer with and without reasoning; one table.")] = False
    max_new_tokens: shared.MaxNewTokens = 1024
    repetition_penalty: shared.RepetitionPenalty = 1.05
    batch: Annotated[int, typer.Option(min=1, help="Prompts decoded at once.")] = 16
    device: shared.Device = "auto"
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of this machine, a process each, see docs/gpus.md.")] = 1
    out: Annotated[File, typer.Option(help="Write every answer to this JSONL file.")] = None
    html: Annotated[File, typer.Option(help="Write a page of the worst, the best and random answers.")] = None
    as_json: shared.Json = False


@shared.takes_options
def evaluate(options: EvalOptions) -> None:
    """Score a checkpoint on shards (--policy, --shards) or on videos (--policy, --videos, --annotations), or a
    predictions file (--predictions, --annotations)."""
    _check(options)
    if options.predictions is not None:
        with progress("scoring", quiet=options.as_json):
            found = _score_file(options, options.predictions)
        _show_file(options, found)
        return
    _check_before(options)
    if options.shards is None:
        _score_videos(options)
        return
    start_ranks(options.gpus, options.device)
    load_libraries(quiet=options.as_json or is_quiet())
    from taro.train.launch.join import joined

    with joined(options.device) as ranks:
        _score_policy(options, options.shards, ranks)


def _check(options: EvalOptions) -> None:
    """Raises BadParameter where options do not go together."""
    if sum(source is not None for source in (options.shards, options.videos, options.predictions)) != 1:
        raise typer.BadParameter("give one of --shards, --videos or --predictions")
    if options.gpus > 1 and options.shards is None:
        raise typer.BadParameter("--gpus shares the queries of --shards; preprocess videos first")
    if options.shards is None and options.annotations is None:
        raise typer.BadParameter("--videos and --predictions need --annotations")
    if options.predictions is not None:
        if options.policy is not None or options.out is not None or options.limit is not None or options.both:
            raise typer.BadParameter("--predictions are answers already; leave --policy, --out, --limit and --both out")
        if options.compare is not None and (options.breakdown or options.html is not None):
            raise typer.BadParameter("--compare prints one table; leave --breakdown and --html to runs of one file")
        return
    if options.compare is not None:
        raise typer.BadParameter("--compare needs --predictions")
    if options.policy is None:
        raise typer.BadParameter("give --policy, the model that answers")
    if options.both and (options.no_think is not None or options.out is not None or options.html is not None):
        raise typer.BadParameter("--both answers in both modes; leave --think, --no-think, --out and --html to runs of "
                                 "one")


def _check_before(options: EvalOptions) -> None:
    """What would otherwise be found out after hours of answers: an unknown protocol, a file that cannot be written."""
    from taro.core.errors import ConfigError
    from taro.core.files import check_local
    from taro.grounding.protocols import protocol_named

    protocol_named(options.protocol)
    for name, path in (("--out", options.out), ("--html", options.html)):
        if path is None:
            continue
        check_local(path)
        was_there = path.exists()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a"):
                pass
        except OSError as error:
            raise ConfigError(f"{name} {path}: cannot be written ({error.strerror}); give the path of a file") from None
        if not was_there:
            path.unlink()


def _score_videos(options: EvalOptions) -> None:
    """Preprocesses into a temporary set and answers that."""
    from taro.cli.annotations import column_mapping
    from taro.cli.temporary import RawVideos, temporary_shards, warn_of_times

    assert options.videos is not None and options.annotations is not None and options.policy is not None
    videos = RawVideos(options.videos, options.annotations, options.dataset, options.split or "test", options.lengths,
                       column_mapping(options.column or []))
    with tempfile.TemporaryDirectory(prefix="taro-eval-") as folder:
        with progress("planning", quiet=options.as_json) as shown:
            report = temporary_shards(videos, Path(folder), policy=options.policy, device=options.device,
                                      progress=lambda at: shown.update(at.done, at.total, at.label))
        warn_of_times(report)
        _score_policy(options, report.out)


def _score_file(options: EvalOptions, predictions: Path) -> Any:
    """The evaluation of a predictions file, or the comparison of two; writes the page that is asked for."""
    from taro.cli.annotations import column_mapping
    from taro.metrics.predictions import Annotations, compare_files, evaluate_file
    from taro.pages.answers import answers_page
    from taro.pages.render import write_page

    assert options.annotations is not None
    truth = Annotations(options.annotations, options.dataset, options.split, options.lengths,
                        column_mapping(options.column or []))
    how: dict[str, Any] = {"protocol": options.protocol, "bootstrap_seed": options.seed}
    found: Any = (evaluate_file(predictions, truth, **how) if options.compare is None else
                  compare_files(predictions, options.compare, truth, **how))
    if options.html is not None:
        write_page(options.html, answers_page(found.examples, scores=found.scores, table=found.table(),
                                              protocol=options.protocol, seed=options.seed))
    return found


def _show_file(options: EvalOptions, found: Any) -> None:
    if options.as_json:
        say_json(found.as_dict())
        return
    say_block(found.table())
    if options.breakdown:
        say_block(found.scores.breakdown_table())


def _score_policy(options: EvalOptions, shards: str | Path, ranks: Ranks | None = None) -> None:
    load_libraries(quiet=options.as_json)
    from taro.core.errors import ConfigError
    from taro.metrics.answers import write_answers
    from taro.metrics.examples import examples_of
    from taro.models.asking import asking_of, check_asking
    from taro.models.load import open_policy
    from taro.models.resolve import resolve_place
    from taro.pages.answers import answers_page
    from taro.pages.render import write_page
    from taro.train.evaluate import Questions, missing_predictions, unasked_rows
    from taro.train.sets import open_encoded_shards

    assert options.policy is not None
    place = resolve_place(options.policy, options.adapter)
    asking = asking_of(place.asked, template=options.template, no_think=options.no_think, protocol=options.protocol)
    modes = [False, True] if options.both else [asking.no_think]
    shard_set = open_encoded_shards(shards, place.base)
    everything = Questions(options.split, options.limit).are_all(shard_set)
    missing = missing_predictions(shard_set, options.split) if everything else []
    if not missing and not shard_set.queries(split=options.split):
        raise ConfigError(f"{shards}: the set has no query at all")
    with progress("loading the policy", quiet=options.as_json or is_quiet()):
        policy = open_policy(options.policy, options.device, options.adapter)  # the weights, once all else is right
    for no_think in modes:
        check_asking(policy, replace(asking, no_think=no_think))
    decoding, found = "sampled" if options.sampled else "greedy", dict[str, tuple[Any, float]]()
    rows: list[Any] = []
    for no_think in modes:
        rows, scores = _answer(options, policy, shard_set, missing, replace(asking, no_think=no_think),
                               ranks)
        found["no think" if no_think else "think"] = scores, sum(row.tokens for row in rows) / max(len(rows), 1)
        if not options.as_json:
            say(f"{decoding} decoding{', no reasoning asked for' if no_think else ''}")
            say_block(scores.table())
            if options.breakdown:
                say_block(scores.breakdown_table())
    if is_quiet():
        return
    if options.out is not None:
        write_answers(rows, options.out, unasked=unasked_rows(shard_set, options.split))
    if options.html is not None:
        write_page(options.html, answers_page(examples_of(rows), scores=scores, protocol=options.protocol,
                                              seed=options.seed, sets=[shard_set]))
    if options.as_json:
        objects = [{**scores.as_dict(), "decoding": decoding, "no_think": mode == "no think", "tokens": tokens}
                   for mode, (scores, tokens) in found.items()]
        say_json({"think": objects[0], "no_think": objects[1]} if options.both else objects[0])
    elif options.both:
        say_block(_both_table(found))


def _answer(options: EvalOptions, policy: Any, shard_set: Any, missing: list[Any],
            asking: Asking, ranks: Ranks | None) -> tuple[list[Any], Any]:
    """The answers of one mode and their scores."""
    from taro.metrics.answers import rank_rows, score_rows
    from taro.models.sampler import Decoding
    from taro.train.evaluate import Questions, evaluate_policy

    decoding = Decoding(options.max_new_tokens, temperature=1.0 if options.sampled else 0.0,
                        repetition_penalty=1.0 if options.sampled else options.repetition_penalty)
    quiet = options.as_json or is_quiet()
    with progress("answering, no reasoning" if asking.no_think else "answering", quiet=quiet) as shown:
        rows = evaluate_policy(
            policy, shard_set, asking, decoding, questions=Questions(options.split, options.limit, options.seed, ranks),
            batch_prompts=options.batch, progress=shown.update)
    if options.protocol == "moment-detr":
        return rows, rank_rows(rows, missing=missing, bootstrap_seed=options.seed)
    return rows, score_rows(rows, protocol=options.protocol, missing=missing, bootstrap_seed=options.seed)


def _both_table(found: dict[str, tuple[Any, float]]) -> str:
    """The two modes of one policy beside each other, percent."""
    rows = [["", "mIoU", "R1@0.3", "R1@0.5", "R1@0.7", "tokens"]]
    rows += [[mode, *(f"{100 * scores.metrics[name]:.1f}" for name in ("miou", "r1@0.3", "r1@0.5", "r1@0.7")),
              f"{tokens:.1f}"] for mode, (scores, tokens) in found.items()]
    return "\n".join(f"{row[0]:<10}" + "".join(f"{cell:>9}" for cell in row[1:]) for row in rows)
