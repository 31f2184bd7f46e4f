"""The parts of a report that speak of a whole run: what changed, the curves, the accounting, what it was made with.

Each function takes plain values and returns one `<section>`. Numbers come from `taro.metrics.scores` and metrics.jsonl
as they are; the only arithmetic here is the mean over the first and the last steps. Left out: single videos
(train/report/examples.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from taro.metrics.scores import Scores
from taro.pages.timeline import safe_text
from taro.train.report.charts import Curve, Interval, IntervalRow, curve_svg, intervals_svg, number
from taro.train.report.data import Evaluation, Run, mean_of
from taro.train.report.rows import SET

__all__ = ["SECTIONS_CSS", "Ledger", "accounting_html", "curves_html", "headline_html", "made_with_html",
           "reproduce_html", "scores_html", "sets_html"]

Item = TypeVar("Item")
ENDS = 5
"""steps at either end of a run that the curve titles average"""
METRICS = {"miou": "mIoU", "r1@0.3": "R1@0.3", "r1@0.5": "R1@0.5", "r1@0.7": "R1@0.7"}

# key of metrics.jsonl: title, what it says, ends of the axis where they are known
CURVES: dict[str, tuple[str, str, float | None, float | None]] = {
    "reward": ("total reward", "format + tIoU + bonus, mean of the step's rollouts", 0.0, None),
    "tiou": ("timestamp-aware IoU", "IoU weighted by how near both ends are", 0.0, 1.0),
    "format": ("format", "share of responses with the four tags in place", 0.0, 1.0),
    "bonus": ("temporal-sensitivity bonus", "for reasonings that need the video's order", 0.0, None),
    "drop_mean": ("log-prob drop", "nats a token lost with boundary patches shuffled", None, None),
    "timestamps": ("reasonings with timestamps", "share that names at least one time", 0.0, 1.0),
    "first_span": ("first span right", "share whose first range has IoU of 0.5 or more", 0.0, 1.0),
    "zero_variance": ("groups that teach nothing", "share whose rewards are all equal", 0.0, 1.0),
    "length": ("response length", "tokens, guided prefix included", 0.0, None),
    "kl": ("KL to the start policy", "k3 estimate, nats a token", 0.0, None),
    "grad_norm": ("gradient norm", "before clipping", 0.0, None),
    "logprob_gap": ("sampling against scoring", "mean distance of a token's log-prob in the two passes", 0.0, None),
}
MAIN_CURVES = 6
"""curves shown at once; the others are folded away"""

SECTIONS_CSS = """
header p { margin: 2px 0; } header h1 { margin-bottom: 4px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(198px, 1fr)); gap: 12px; margin: 18px 0 10px; }
.tile { background: var(--panel); border-radius: 6px; padding: 10px 14px; }
.tile .name { color: var(--dim); font-size: 12px; } .tile .dim { font-size: 12px; }
.tile .big { font-size: 22px; font-weight: 600; font-variant-numeric: tabular-nums; line-height: 1.3;
  overflow-wrap: normal; }
.tile .big .was { color: var(--before); font-weight: 400; } .tile .big .now { color: var(--after); }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(260px, 1fr)); gap: 16px 20px; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); gap: 8px 28px; }
figure { margin: 0; break-inside: avoid; display: flex; flex-direction: column; justify-content: space-between; }
.pair figure { max-width: 640px; }
figcaption { font-size: 12px; } figcaption b { font-weight: 600; }
table.scores, table.group { width: 100%; white-space: nowrap; }
table.scores td .dim { display: block; font-size: 11px; }
table.scores tbody td:first-child { font-weight: 500; }
td.before { color: var(--before); } td.after { color: var(--after); }
td.num, th.num { text-align: right; } table.facts td:first-child { color: var(--dim); white-space: nowrap; }
.key::before { content: ""; display: inline-block; width: 9px; height: 9px; border-radius: 5px; margin: 0 4px 0 10px; }
.key.before::before { background: var(--before); } .key.after::before { background: var(--after); }
.key.mark::before { background: var(--dim); width: 2px; height: 11px; border-radius: 0; }
.key.guided::before { background: var(--path); opacity: .4; border-radius: 1px; }
h3 .dim { font-weight: 400; margin-left: 6px; } #headline p { font-size: 15px; max-width: 900px; }
code { font: 12px ui-monospace, Menlo, Consolas, monospace; }
@media (max-width: 560px) { body { padding: 14px 12px 40px; } .tile .big { font-size: 19px; } }
@media print { body { max-width: none; padding: 0; font-size: 11px; } .scroll { overflow: visible; } }
"""


class Ledger(dict[str, Any]):
    """Accounting of one shard set: name, inputs, queries, clips, captions, skipped, reasons {reason: count}."""


def headline_html(evaluation: Evaluation | None, run: Run) -> str:
    """The sentence and the few numbers that a reader takes home."""
    tiles = []
    sentence = "No evaluation was given to this report, so it shows the training curves alone."
    if evaluation is not None:
        before, after = evaluation.before_scores, evaluation.after_scores
        gain, low, high = evaluation.paired_gain
        better, same, worse = evaluation.changes
        sentence = (f"On {after.queries} held-out queries of {_videos(after)} ({safe_text(evaluation.name)}, "
                    f"protocol {safe_text(evaluation.protocol)}) mIoU went from {number(before.miou)} to "
                    f"{number(after.miou)}: a change of {gain:+.3f}, 95 % interval [{low:+.3f}, {high:+.3f}] over "
                    f"videos. {better} queries got better, {same} stayed within 0.05 IoU, {worse} got worse.")
        for key in ("miou", "r1@0.5"):
            tiles.append(_tile(METRICS[key], before.metrics[key], after.metrics[key], _interval_text(after, key)))
        if before.timestamps is not None and after.timestamps is not None:
            tiles.append(_tile("reasonings with timestamps", before.timestamps, after.timestamps, "share of responses"))
    if run.steps:
        first, last = _ends(run.steps)
        over = f"first and last {_steps(len(first))}"
        tiles.append(_tile("training tIoU", mean_of(first, "tiou"), mean_of(last, "tiou"), over))
        tiles.append(_tile("log-prob drop", mean_of(first, "drop_mean"), mean_of(last, "drop_mean"), over))
    return f'<section id="headline"><p>{sentence}</p><div class="tiles">{"".join(tiles)}</div></section>'


def scores_html(evaluations: Sequence[Evaluation]) -> str:
    """Before and after under every decoding, each score with its interval, between the trivial baselines."""
    if not evaluations:
        return ('<section id="scores"><h2>Scores before and after</h2><p>Not evaluated. Score both policies with '
                "<code>taro eval --out</code> and give the two files to <code>taro report</code>.</p></section>")
    rows, charts = [], []
    for evaluation in evaluations:
        for name, scores in (("before", evaluation.before_scores), ("after", evaluation.after_scores)):
            rows.append(_scores_row(evaluation.name, name, scores))
        chart = intervals_svg([_interval_row(evaluation, key) for key in METRICS])
        charts.append(f"<figure><figcaption><b>{safe_text(evaluation.name)}</b></figcaption>{chart}</figure>")
    for name, values in evaluations[0].after_scores.baselines.items():
        cells = "".join(f'<td class="num">{number(values.get(key))}</td>' for key in METRICS)
        rows.append(f'<tr class="dim"><td>no video seen</td><td>{safe_text(name)}</td>{cells}'
                    '<td class="num">-</td><td class="num">-</td><td class="num">-</td></tr>')
    head = "".join(f'<th class="num">{name}</th>' for name in (*METRICS.values(), "timestamps", "first span", "unread"))
    one = evaluations[0].after_scores
    return (f'<section id="scores"><h2>Scores before and after</h2><p class="dim">{one.queries} queries of '
            f"{_videos(one)}, protocol {safe_text(one.protocol)}; 95 % intervals from a bootstrap over videos. "
            "An answer that is missing or cannot be read counts as a miss. <i>unread</i>: how many "
            "of those there were.</p>"
            f'<div class="scroll"><table class="scores"><thead><tr><th>decoding</th><th></th>{head}</tr></thead>'
            f"<tbody>{''.join(rows)}</tbody></table></div>"
            '<p class="dim"><span class="key before">before</span><span class="key after">after</span>'
            '<span class="key mark">answers that saw no video (whole video; best constant window)</span></p>'
            f'<div class="pair">{"".join(charts)}</div></section>')


def curves_html(run: Run) -> str:
    """Every logged part of the reward over the steps, guided steps shaded; then the machinery; then validation."""
    steps = [int(record["step"]) for record in run.steps]
    figures = []
    for key, (title, note, low, high) in CURVES.items():
        values = [record.get(key) for record in run.steps]
        if any(value is not None for value in values):
            figures.append(_figure(Curve(title, note, steps, values, low, high), run, key))
    extra = "".join(figures[MAIN_CURVES:])
    folded = f'<details><summary>more curves</summary><div class="curves">{extra}</div></details>' if extra else ""
    guided = sum(last - first + 1 for first, last in run.guided_spans)
    return (f'<section id="curves"><h2>Training, step by step</h2><p class="dim">{len(steps)} steps, {guided} of them '
            f"guided; thin: each step, strong: mean of 5 steps; the numbers are means of the first and the last "
            f'{_steps(len(_ends(steps)[0]))}.<span class="key guided">guided steps</span></p>'
            f'<div class="curves">{"".join(figures[:MAIN_CURVES])}</div>{folded}{_validation(run)}</section>')


def sets_html(run: Run) -> str:
    """Of several shard sets: what each gave and how its rewards went; nothing where there was one."""
    names = sorted({key.removeprefix(SET).rpartition("/")[0] for record in run.steps for key in record
                    if key.startswith(SET)})
    rows = []
    for name in names:
        mine = [record for record in run.steps if record.get(f"{SET}{name}/prompts")]
        cells = f'<td class="num">{sum(int(record[f"{SET}{name}/prompts"] or 0) for record in mine):,}</td>'
        for key in ("reward", "tiou"):
            first, last = (mean_of(part, f"{SET}{name}/{key}") for part in _ends(mine))
            cells += f'<td class="num">{number(first, 2)} to {number(last, 2)}</td>'
        rows.append(f"<tr><td>{safe_text(name)}</td>{cells}</tr>")
    return "" if not rows else (
        '<section id="sets"><h2>Shard sets</h2><p class="dim">Rewards are means of the first and the last steps (up to '
        f'{ENDS} each) that drew from the set; what its filters left out is in data.json.</p><table><thead><tr>'
        '<th>set</th><th class="num">prompts</th><th class="num">reward</th><th class="num">tIoU</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></section>")


def accounting_html(ledgers: Sequence[Mapping[str, Any]]) -> str:
    """Where every annotated row went: rows in = written + skipped, and why."""
    rows = []
    for ledger in ledgers:
        adds = ledger["inputs"] == ledger["queries"] + ledger["skipped"]
        reasons = ", ".join(f"{safe_text(reason)} ({count})" for reason, count in sorted(ledger["reasons"].items()))
        cells = "".join(f'<td class="num">{ledger[key]:,}</td>' for key in ("inputs", "queries", "skipped", "clips",
                                                                            "captions"))
        rows.append(f"<tr><td>{safe_text(ledger['name'])}</td>{cells}<td>{'adds up' if adds else 'DOES NOT ADD UP'}"
                    f"</td><td>{reasons or '-'}</td></tr>")
    head = "".join(f'<th class="num">{name}</th>' for name in ("rows in", "written", "skipped", "clips", "captions"))
    return ('<section id="accounting"><h2>Accounting</h2><p class="dim">Every annotated row ends as written or as '
            'skipped with a reason: rows in = written + skipped.</p><div class="scroll"><table><thead><tr>'
            f"<th>shard set</th>{head}<th></th><th>reasons</th></tr></thead><tbody>{''.join(rows)}</tbody></table>"
            "</div></section>")


def made_with_html(facts: Mapping[str, str], run: Run) -> str:
    """Versions, digests and the configuration."""
    rows = "".join(f"<tr><td>{safe_text(name)}</td><td><code>{safe_text(value)}</code></td></tr>"
                   for name, value in facts.items())
    return (f'<section id="environment"><h2>Environment and digests</h2><table class="facts"><tbody>{rows}</tbody>'
            f"</table><details><summary>config.yaml of the run</summary><pre>{safe_text(run.config_text)}</pre>"
            "</details></section>")


def reproduce_html(commands: Sequence[str], notes: Sequence[str]) -> str:
    """How to make this page again, and what to keep in mind when reading it."""
    items = "".join(f"<li>{safe_text(note)}</li>" for note in notes)
    return (f'<section id="reproduce"><h2>How to reproduce</h2><pre>{safe_text(chr(10).join(commands))}</pre>'
            f"{f'<h3>Read it with care</h3><ul>{items}</ul>' if items else ''}</section>")


def _videos(scores: Scores) -> str:
    return f"{scores.videos} video{'' if scores.videos == 1 else 's'}"


def _tile(name: str, before: float, after: float, note: str) -> str:
    return (f'<div class="tile"><div class="name">{safe_text(name)}</div><div class="big"><span class="was">'
            f'{_fixed(before)}</span> &rarr; <span class="now">{_fixed(after)}</span></div>'
            f'<div class="dim">{safe_text(note)}</div></div>')


def _fixed(value: float) -> str:
    """Three decimals, whatever the size, so that tiles have one width.

    >>> _fixed(-5e-5), _fixed(0.25)
    ('0.000', '0.250')
    """
    return number(round(value, 3) + 0.0 if math.isfinite(value) else None)


def _interval_text(scores: Scores, key: str) -> str:
    ends = scores.intervals[key]
    return "no interval" if ends is None else f"95 %: {number(ends[0])} to {number(ends[1])}"


def _scores_row(decoding: str, name: str, scores: Scores) -> str:
    cells = []
    for key in METRICS:
        ends = scores.intervals[key]
        between = "" if ends is None else f' <span class="dim">{number(ends[0], 2)} to {number(ends[1], 2)}</span>'
        cells.append(f'<td class="num">{number(scores.metrics[key])}{between}</td>')
    unread = len(scores.missing) + len(scores.unparsable)
    return (f'<tr><td>{safe_text(decoding)}</td><td class="{name}">{name}</td>{"".join(cells)}'
            f'<td class="num">{number(scores.timestamps)}</td><td class="num">{number(scores.first_span)}</td>'
            f'<td class="num">{unread}</td></tr>')


def _interval_row(evaluation: Evaluation, key: str) -> IntervalRow:
    def interval(scores: Scores) -> Interval:
        low, high = scores.intervals[key] or (scores.metrics[key], scores.metrics[key])
        return Interval(scores.metrics[key], low, high)

    marks = [(name, values[key]) for name, values in evaluation.after_scores.baselines.items()]
    return IntervalRow(METRICS[key], interval(evaluation.before_scores),
                       interval(evaluation.after_scores), marks)


def _ends(steps: Sequence[Item]) -> tuple[Sequence[Item], Sequence[Item]]:
    """The first and the last of a run, up to ENDS each; none is in both where there are two."""
    count = max(1, min(ENDS, len(steps) // 2))
    return steps[:count], steps[-count:]


def _steps(count: int) -> str:
    return "step" if count == 1 else f"{count} steps"


def _figure(curve: Curve, run: Run, key: str) -> str:
    first, last = (mean_of(part, key) for part in _ends(run.steps))
    change = f" {number(first)} &rarr; {number(last)}" if math.isfinite(first) and math.isfinite(last) else ""
    return (f"<figure><figcaption><b>{safe_text(curve.title)}</b>{change}<br>"
            f'<span class="dim">{safe_text(curve.note)}</span></figcaption>'
            f"{curve_svg(curve, run.guided_spans)}</figure>")


def _validation(run: Run) -> str:
    if not run.evals:
        return ""
    rows = []
    for line in run.evals:
        scores = line["eval"]
        cells = "".join(f'<td class="num">{number(scores.get(key))}</td>' for key in (*METRICS, "timestamps"))
        rows.append(f'<tr><td class="num">{int(line["step"])}</td>{cells}</tr>')
    head = "".join(f'<th class="num">{name}</th>' for name in ("step", *METRICS.values(), "timestamps"))
    split = safe_text(str(run.evals[0]["eval"].get("split", "validation")))
    return (f"<h3>Greedy scores on the split {split} during training</h3><table><thead><tr>{head}</tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table>")
