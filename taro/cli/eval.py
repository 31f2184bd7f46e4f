"""`taro eval`: scores a checkpoint on shards or on raw videos, or a file of predictions, under a named protocol.

Thin: answers come from `taro.train.evaluate`, scores from `taro.metrics.scores`, files of predictions from
`taro.metrics.predictions`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from taro.cli.output import say

__all__ = ["evaluate"]

Text = str | None
File = Path | None


def evaluate(
    policy: Annotated[Text, typer.Option(help="Model folder, or sandbox:NAME.")] = None,
    shards: Annotated[File, typer.Option(help="Shard set to answer.")] = None,
    videos: Annotated[File, typer.Option(help="Folder of videos to answer instead (with --annotations).")] = None,
    predictions: Annotated[File, typer.Option(help="Predictions file (JSONL) to score instead of a policy.")] = None,
    annotations: Annotated[File, typer.Option(help="Annotations of --videos or --predictions.")] = None,
    dataset: Annotated[str, typer.Option(help="Format of --annotations, see docs/annotations.md.")] = "jsonl",
    lengths: Annotated[File, typer.Option(help="CSV of video lengths, where the annotations have none.")] = None,
    column: Annotated[list[str] | None, typer.Option(help="Of --dataset hf, for --predictions: FIELD=COLUMN.")] = None,
    split: Annotated[Text, typer.Option(help="Only queries of this split.")] = None,
    protocol: Annotated[str, typer.Option(help="How answers are read and scored, see docs/protocols.md.")] = "taro",
    compare: Annotated[File, typer.Option(help="Second predictions file: is it better than --predictions?")] = None,
    breakdown: Annotated[bool, typer.Option("--breakdown", help="Scores by length and place of the moment.")] = False,
    sampled: Annotated[bool, typer.Option("--sampled", help="Sample at temperature 1 instead of greedy.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Answer this many queries, drawn by --seed.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of --sampled, --limit and the bootstrap.")] = 0,
    template: Annotated[Text, typer.Option(help="Prompt template (name or file); default: the policy's own.")] = None,
    no_think: Annotated[bool | None, typer.Option("--no-think/--think", show_default=False, help="Ask for the answer "
                                                  "alone, or for a reasoning; default: as trained.")] = None,
    both: Annotated[bool, typer.Option("--both", help="Answer with and without reasoning; one table.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest response.")] = 1024,
    repetition_penalty: Annotated[float, typer.Option(min=0.1, help="Of greedy decoding.")] = 1.05,
    batch: Annotated[int, typer.Option(min=1, help="Prompts decoded at once.")] = 16,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[File, typer.Option(help="Write every answer to this JSONL file.")] = None,
    html: Annotated[File, typer.Option(help="Page of the worst, the best and random --predictions.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as one JSON object.")] = False,
) -> None:
    """Score a checkpoint on shards (--policy, --shards) or on videos (--policy, --videos, --annotations), or a
    predictions file (--predictions, --annotations)."""
    if sum(source is not None for source in (shards, videos, predictions)) != 1:
        raise typer.BadParameter("give one of --shards, --videos or --predictions")
    if shards is None and annotations is None:
        raise typer.BadParameter("--videos and --predictions need --annotations")
    if predictions is not None:
        if policy is not None or out is not None or limit is not None or both:
            raise typer.BadParameter("--predictions are answers already; leave --policy, --out, --limit and --both out")
        if compare is not None and (breakdown or html is not None):
            raise typer.BadParameter("--compare prints one table; leave --breakdown and --html to runs of one file")
        _score_file(predictions, annotations, dataset, split, lengths, protocol, seed, as_json, compare, breakdown,
                    html, column or [])
        return
    if compare is not None or html is not None:
        raise typer.BadParameter("--compare and --html need --predictions")
    if policy is None:
        raise typer.BadParameter("give --policy, the model that answers")
    if both and (no_think is not None or out is not None):
        raise typer.BadParameter("--both answers in both modes; leave --think, --no-think and --out to runs of one")
    how: dict[str, Any] = {
        "split": split, "protocol": protocol, "limit": limit, "seed": seed, "template": template,
        "no_think": no_think, "both": both, "batch": batch, "device": device, "out": out, "as_json": as_json,
        "breakdown": breakdown,
        "decoding": {"max_new_tokens": max_new_tokens, "temperature": 1.0 if sampled else 0.0,
                     "repetition_penalty": 1.0 if sampled else repetition_penalty}}
    _check_before(protocol, out)
    if shards is not None:
        _score_policy(policy, shards, **how)
        return
    _score_videos(policy, {"videos": videos, "annotations": annotations, "dataset": dataset, "split": split or "test",
                           "lengths": lengths, "device": device}, how)


def _score_videos(policy: str, source: dict[str, Any], how: dict[str, Any]) -> None:
    """Preprocesses into a temporary set and answers that."""
    from taro.cli.progress import progress
    from taro.cli.temporary import temporary_shards

    with tempfile.TemporaryDirectory(prefix="taro-eval-") as folder:
        with progress("planning", quiet=how["as_json"]) as shown:
            root = temporary_shards(Path(folder), policy=policy, **source,
                                    progress=lambda at: shown.update(at.done, at.total, at.label))
        _score_policy(policy, root, **how)


def _check_before(protocol: str, out: Path | None) -> None:
    """What would otherwise be found out after hours of answers: an unknown protocol, a file that cannot be written."""
    from taro.core.errors import ConfigError
    from taro.metrics.scores import PROTOCOLS

    if protocol not in PROTOCOLS:
        raise ConfigError(f"{protocol}: no such evaluation protocol; expected one of: {', '.join(PROTOCOLS)}")
    if out is None:
        return
    was_there = out.exists()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a"):
            pass
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error.strerror}); give the path of a file") from None
    if not was_there:
        out.unlink()


def _score_file(predictions: Path, annotations: Path | None, dataset: str, split: str | None, lengths: Path | None,
                protocol: str, seed: int, as_json: bool, compare: Path | None, breakdown: bool,
                html: Path | None, column: list[str]) -> None:
    from taro.cli.annotations import column_mapping
    from taro.metrics.page import examples_page, write_page
    from taro.metrics.predictions import compare_files, evaluate_file

    assert annotations is not None
    how: dict[str, Any] = {"dataset": dataset, "annotations": annotations, "split": split, "lengths": lengths,
                           "protocol": protocol, "bootstrap_seed": seed, "columns": column_mapping(column)}
    if compare is not None:
        compared = compare_files(predictions, compare, **how)
        say(json.dumps(compared.as_dict()) if as_json else compared.table())
        return
    found = evaluate_file(predictions, **how)
    if html is not None:
        write_page(html, examples_page(found.examples, table=found.table(), protocol=protocol, seed=seed))
    say(json.dumps(found.as_dict()) if as_json else found.table())
    if breakdown and not as_json:
        say(found.scores.breakdown_table())


def _score_policy(name: str, shards: Path, *, split: str | None, protocol: str, limit: int | None, seed: int,
                  template: str | None, no_think: bool | None, both: bool, batch: int, device: str, out: Path | None,
                  as_json: bool, breakdown: bool, decoding: dict[str, Any]) -> None:
    from taro.cli.progress import progress
    from taro.core.errors import ConfigError
    from taro.models.sampler import Decoding
    from taro.train.evaluate import evaluate_policy, missing_predictions, rank_rows, score_rows, write_predictions
    from taro.train.run_dir import open_encoded_shards, open_policy, policy_no_think, policy_template

    policy = open_policy(name, device)
    modes = [False, True] if both else [policy_no_think(policy, no_think)]
    shard_set = open_encoded_shards(shards, policy)
    missing = missing_predictions(shard_set, split) if limit is None else []
    if not missing and not shard_set.queries(split=split):
        splits = ", ".join(sorted({ref.query.split for ref in shard_set.queries()}))
        raise ConfigError(f"{shards}: no query of split {split!r}; the set has {splits or 'no query at all'}")
    how, found, rows = "sampled" if decoding["temperature"] else "greedy", {}, []
    for mode in modes:
        with progress("answering, no reasoning" if mode else "answering", quiet=as_json) as shown:
            rows = evaluate_policy(
                policy, shard_set, split=split, template=policy_template(policy, template),
                decoding=Decoding(**decoding), limit=limit, seed=seed, batch_prompts=batch, protocol=protocol,
                no_think=mode, progress=shown.update)
        scores: Any = (rank_rows(rows, missing=missing, bootstrap_seed=seed) if protocol == "moment-detr" else
                       score_rows(rows, protocol=protocol, missing=missing, bootstrap_seed=seed))
        tokens = sum(row.tokens for row in rows) / max(len(rows), 1)
        found["no think" if mode else "think"] = scores, tokens
        if not as_json:
            say(f"{how} decoding{', no reasoning asked for' if mode else ''}\n{scores.table()}")
            if breakdown:
                say(scores.breakdown_table())
    if out is not None:
        write_predictions(rows, out)
    if as_json:
        told = [{**scores.as_dict(), "decoding": how, "no_think": mode == "no think", "tokens": tokens}
                for mode, (scores, tokens) in found.items()]
        say(json.dumps({"think": told[0], "no_think": told[1]} if both else told[0]))
    elif both:
        say(_both_table(found))


def _both_table(found: dict[str, tuple[Any, float]]) -> str:
    """The two modes of one policy beside each other, percent."""
    rows = [["", "mIoU", "R1@0.3", "R1@0.5", "R1@0.7", "tokens"]]
    rows += [[mode, *(f"{100 * scores.metrics[name]:.1f}" for name in ("miou", "r1@0.3", "r1@0.5", "r1@0.7")),
              f"{tokens:.1f}"] for mode, (scores, tokens) in found.items()]
    return "\n".join(f"{row[0]:<10}" + "".join(f"{cell:>9}" for cell in row[1:]) for row in rows)
