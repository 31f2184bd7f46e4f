"""The report of a run: one self-contained HTML page of what changed, on which videos, and what it was made with.

`render_report` reads a run folder, opens the shard sets that its clips are in, and writes the page; `taro quickstart`
and `taro report` both call it. Names of local folders stay out of the page, since pages are shared.

Left out: running anything. Evaluations come in as rows of `taro.train.evaluate`, or as files that `taro eval --out`
wrote."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from taro.core.json import read_json
from taro.core.version import __version__
from taro.pages.answers import METRIC_NAMES
from taro.pages.cards import AGREEMENT_NOTE
from taro.pages.charts import SMOOTH
from taro.pages.render import render, write_page
from taro.shards.manifest import read_skipped
from taro.shards.reader import ShardSet, open_shards
from taro.train.report import figures
from taro.train.report.cards import example_card, group_cards
from taro.train.report.data import Evaluation, Run, examples, read_run

__all__ = ["environment", "ledger", "render_report"]

LIBRARIES = ("torch", "transformers", "numpy", "av", "open_clip_torch")
LOCAL_KEYS = ("policy", "shards", "out")
"""settings whose values are folders of a machine; the page shows their last part"""


def render_report(run_folder: str | Path, shards: Mapping[str, str | Path], evaluations: Sequence[Evaluation],
                  out: str | Path, *, title: str = "Training run", lead: str = "", commands: Sequence[str] = (),
                  notes: Sequence[str] = ()) -> Path:
    """Writes the page of one run to `out` and returns its path.

    Args: shards: shard sets by the name that the page calls them, the run's own and those evaluated on; evaluations:
    the first is the headline and gives the examples; lead: a sentence under the title; commands: how to make the page
    again; notes: what a reader must keep in mind."""
    run = read_run(run_folder)
    sets = {name: open_shards(path) for name, path in shards.items()}
    shown = _public(run)
    first = evaluations[0] if evaluations else None
    cards = [] if first is None else [example_card(one, first, list(sets.values())) for one in examples(first)]
    return write_page(Path(out), render(
        "report.html", title=title, lead=lead, evaluations=evaluations, metrics=METRIC_NAMES,
        tiles=figures.tiles(first, run), score_charts=figures.score_charts(evaluations), curves=figures.curves(run),
        main_curves=figures.MAIN_CURVES, smooth=SMOOTH, ends=figures.ENDS, sets=figures.sets_table(run),
        time=figures.time_table(run), steps=len(run.steps),
        guided=sum(end - start + 1 for start, end in run.guided_spans),
        validation=figures.validation_table(run), validation_split=run.evals[0]["eval"]["split"] if run.evals else "",
        examples=cards, groups=group_cards(run, sets), agreement=AGREEMENT_NOTE if sets else "",
        accounting=figures.accounting_table([ledger(name, shards[name], one) for name, one in sets.items()]),
        environment=_facts(shown, sets), config=shown.config_text, commands=commands, notes=notes))


def ledger(name: str, path: str | Path, shard_set: ShardSet) -> figures.Ledger:
    """The accounting of one shard set, from its manifest; reasons are counted where pyarrow can read them."""
    counts = shard_set.manifest.counts
    reasons = Counter(_reasons(path)) if counts.skipped else Counter[str]()
    if counts.skipped and not reasons:
        reasons["listed in skipped.parquet"] = counts.skipped
    return figures.Ledger(name=name, inputs=counts.inputs, queries=counts.queries, skipped=counts.skipped,
                          clips=counts.clips, captions=counts.captions, reasons=dict(reasons))


def environment() -> dict[str, str]:
    """Versions of what computes here, and of the machine as far as numbers depend on it."""
    found = {"taro": __version__, "python": platform.python_version(),
             "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores"}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _public(run: Run) -> Run:
    """The run with its configuration as a page may show it: folders by their last part."""
    config = {key: _last_part(value) if key in LOCAL_KEYS else value for key, value in run.config.items()}
    if isinstance(config.get("shards"), list):  # several sets
        config["shards"] = [{key: _last_part(value) if key == "path" else value for key, value in one.items()}
                            if isinstance(one, dict) else _last_part(one) for one in config["shards"]]
    return Run(run.folder, config, yaml.safe_dump(config, sort_keys=False), run.steps, run.evals)


def _last_part(value: Any) -> Any:
    if not isinstance(value, str) or (value.startswith("sandbox:") and "/" not in value):
        return value
    return Path(value).name or value


def _facts(run: Run, sets: Mapping[str, ShardSet]) -> dict[str, str]:
    facts = environment()
    facts["seed"] = str(run.config.get("seed", "-"))
    facts["config sha256"] = hashlib.sha256(run.config_text.encode()).hexdigest()
    facts.update(_template_facts(run.folder / "export" / "taro.json"))
    for name, shard_set in sets.items():
        manifest = shard_set.manifest
        for encoder in manifest.encoders:
            facts[f"{name}: encoder"] = f"{encoder.name}, tower sha256 {encoder.tower_sha256}"
        if manifest.plan_sha256:
            facts[f"{name}: plan sha256"] = manifest.plan_sha256
        if manifest.provenance.annotations_sha256:
            facts[f"{name}: annotations sha256"] = manifest.provenance.annotations_sha256
    return facts


def _template_facts(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    data = read_json(path)
    return {"prompt template": f"{data.get('template_name', data.get('template', '-'))}, "
                               f"sha256 {data.get('template_sha256', '-')}"
                               + (", answers without reasoning" if data.get("no_think") is True else "")}


def _reasons(path: str | Path) -> list[str]:
    try:
        return [str(row["reason"]) for row in read_skipped(path)]
    except ImportError:  # pyarrow comes with the preprocessing libraries, which training does without
        return []
