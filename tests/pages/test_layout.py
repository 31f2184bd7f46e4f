"""Every page in a real browser, wide and on a phone: it never scrolls sideways, and no text is too small to read.

The folder of pages of a set: test_view.py."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from taro.metrics.answers import score_rows
from taro.metrics.examples import examples_of
from taro.pages.answers import answers_page
from taro.shards.reader import open_shards
from taro.train.disruption import Disruption
from taro.train.report.data import Evaluation
from taro.train.report.write import render_report
from taro.train.sensitivity.measure import MeasuredRollout, Sensitivity
from taro.train.sensitivity.report import sensitivity_page, summarise
from tests.report.synthetic import DURATION_S, eval_rows, run_folder, shard_set

MEASURE = """<script>
const small = [], texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let node; node = texts.nextNode();) {
  const parent = node.parentElement, svg = parent.closest("svg");
  if (!node.data.trim() || ["SCRIPT", "title"].includes(parent.tagName)) continue;
  const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
  if (svg && !scale) continue;  // folded away
  const size = scale * parseFloat(getComputedStyle(parent).fontSize);
  if (size < 11.9) small.push(size.toFixed(1) + " " + node.data.trim().slice(0, 30));
}
const tables = [...document.querySelectorAll("td.num")].filter(cell => cell.getClientRects().length
  && getComputedStyle(cell).whiteSpace != "nowrap").length;
const wide = document.documentElement.scrollWidth;
parent.postMessage(JSON.stringify({window: innerWidth, wide: wide, small: small, wrapped: tables}), "*");
</script>"""

FRAMES = """<script>
const found = [];
onmessage = event => { found.push(JSON.parse(event.data)); document.title = JSON.stringify(found); };
</script><iframe src="open.html" width="390" height="900" frameborder="0"></iframe>
<iframe src="open.html" width="1400" height="900" frameborder="0"></iframe>"""


def report(root: Path) -> str:
    page = render_report(run_folder(root / "run"), {"held-out": shard_set(root / "set")},
                         [Evaluation("greedy", eval_rows(False), eval_rows(True))], root / "report.html",
                         commands=["taro train run/config.yaml --set out=a-folder-with-a-long-name-" + "x" * 80])
    return page.read_text()


def answers(root: Path) -> str:
    rows = eval_rows(True)
    return answers_page(examples_of(rows), scores=score_rows(rows), sets=[open_shards(shard_set(root / "set"))])


def measured(root: Path) -> str:
    row = eval_rows(True)[0]
    rollouts = tuple(MeasuredRollout(row.key, str(n), row.query, "v", row.text, row.predicted, row.windows, DURATION_S,
                                     0.5 * n, ("From ", "2.0s ", "to ", "5.5s, "), (0.1, 0.5, -0.1, 0.3), row.windows)
                     for n in range(4))
    conditions = tuple(Disruption(kind, 3.0, "both") for kind in ("patch", "elsewhere", "reverse", "noise"))
    drops = np.linspace(0.1, 0.5, 16).reshape(4, 4)
    found = Sensitivity(conditions, rollouts, drops, np.ones((4, 4), bool), np.repeat(drops[..., None], 10, axis=2))
    return sensitivity_page(found, summarise(found), title="Sensitivity", made_by="taro sensitivity " + "x" * 200,
                            sets=[open_shards(shard_set(root / "set"))])


PAGES: dict[str, Callable[[Path], str]] = {"report": report, "answers": answers, "sensitivity": measured}


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium to lay the pages out")
@pytest.mark.parametrize("name", PAGES)
def test_a_page_can_be_read_on_a_phone_and_on_a_desk(name: str, tmp_path: Path) -> None:
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", PAGES[name](tmp_path))
    (tmp_path / "open.html").write_text(text.replace("</body>", f"{MEASURE}</body>"), encoding="utf-8")
    (tmp_path / "frames.html").write_text(f"<title></title>{FRAMES}", encoding="utf-8")
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1600,2000",
         "--virtual-time-budget=5000", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
         (tmp_path / "frames.html").as_uri()], capture_output=True, text=True, timeout=120, check=True)  # fmt: skip
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title is not None
    assert sorted(json.loads(title[1]), key=lambda one: one["window"]) == [
        {"window": width, "wide": width, "small": [], "wrapped": 0} for width in (390, 1400)]
