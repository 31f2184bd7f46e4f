"""The report of a run: one self-contained HTML page of what changed, on which videos, and what it was made with.

`render_report` reads a run folder, opens the shard sets that its clips are in, and writes the page; `taro quickstart`
and `taro report` both call it. The page has no script and no external resource (its content-security policy forbids
both), and every text that came from outside is escaped. Names of local folders stay out of it: pages are shared.

Left out: running anything. Evaluations come in as rows of `taro.train.evaluate`, or as files that `taro eval --out`
wrote.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from taro.core.files import write_atomically
from taro.core.json import read_json
from taro.core.version import __version__
from taro.pages.timeline import page, safe_text
from taro.shards.manifest import read_skipped
from taro.shards.reader import open_shards
from taro.train.report.charts import CHART_CSS
from taro.train.report.data import Evaluation, Run, examples, read_run, training_groups
from taro.train.report.examples import EXAMPLES_CSS, example_html, group_html
from taro.train.report.sections import (
    SECTIONS_CSS,
    Ledger,
    accounting_html,
    curves_html,
    headline_html,
    made_with_html,
    reproduce_html,
    scores_html,
    sets_html,
)

if TYPE_CHECKING:
    from taro.shards.reader import ShardSet

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
    again; notes: what a reader must keep in mind.
    """
    run = read_run(run_folder)
    sets = {name: open_shards(path) for name, path in shards.items()}
    opened = list(sets.values())
    shown = _public(run)
    body = [f"<header><h1>{safe_text(title)}</h1><p>{safe_text(lead)}</p></header>",
            headline_html(evaluations[0] if evaluations else None, run), scores_html(evaluations), curves_html(run),
            _examples_html(evaluations, opened), _groups_html(run, sets), sets_html(run),
            accounting_html([ledger(name, shards[name], shard_set) for name, shard_set in sets.items()]),
            made_with_html(_facts(shown, sets), shown), reproduce_html(commands, notes)]
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    html = page(title, "\n".join(part for part in body if part), SECTIONS_CSS + CHART_CSS + EXAMPLES_CSS)
    write_atomically(out, html.encode())
    return out


def ledger(name: str, path: str | Path, shard_set: ShardSet) -> Ledger:
    """The accounting of one shard set, from its manifest; reasons are counted where pyarrow can read them."""
    counts = shard_set.manifest.counts
    reasons = Counter(_reasons(path)) if counts.skipped else Counter[str]()
    if counts.skipped and not reasons:
        reasons["listed in skipped.parquet"] = counts.skipped
    return Ledger(name=name, inputs=counts.inputs, queries=counts.queries, skipped=counts.skipped, clips=counts.clips,
                  captions=counts.captions, reasons=dict(reasons))


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


def _examples_html(evaluations: Sequence[Evaluation], shards: Sequence[ShardSet]) -> str:
    if not evaluations:
        return ""
    first = evaluations[0]
    parts = "".join(example_html(example, first, shards) for example in examples(first))
    return ('<section id="examples"><h2>Held-out videos</h2><p class="dim">Chosen by rule from the '
            f"{safe_text(first.name)} answers: the largest gain, the median change, the largest loss.</p>"
            f"{parts}</section>")


def _groups_html(run: Run, sets: Mapping[str, ShardSet]) -> str:
    parts = ""
    for why, step, rows in training_groups(run):
        name = str(rows[0]["set"])  # of several sets: another one may hold the same key
        shown = [one for known, one in sets.items() if name in ("", known)]
        parts += group_html(f"{why}, set {name}" if name else why, step, rows, shown)
    if not parts:
        return ""
    return ('<section id="groups"><h2>Groups of training rollouts</h2><p class="dim">The group with the widest spread '
            "of rewards in the first guided and in the last free step. The advantage is the reward against its group; "
            f"the bonus goes to rollouts whose own drop is above the group's mean.</p>{parts}</section>")


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
    return Path(value).name


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
