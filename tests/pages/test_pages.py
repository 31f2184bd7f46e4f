"""Every page that taro writes as one file, full of hostile markup, in a real browser: nothing runs, nothing is loaded.

The content-security policy of a page would stop what got out of its text; it is taken out here, so that the escapes
stand alone, and looked at on its own. The folder of pages of a set: test_view.py.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from taro.grounding.moment import Moment
from taro.grounding.records import CandidatePaths, ClipRecord, DenseCaption, QueryRecord
from taro.metrics.examples import Example
from taro.metrics.scores import Prediction, evaluate_predictions
from taro.pages.answers import answers_page as draw_answers
from taro.shards.format import ClipEncoder
from taro.shards.manifest import build_manifest, write_manifest, write_skipped
from taro.shards.reader import open_shards
from taro.shards.writer import SliceWriter
from taro.train.disruption import Disruption
from taro.train.report.data import Evaluation
from taro.train.report.write import render_report
from taro.train.sensitivity.measure import MeasuredRollout, Sensitivity
from taro.train.sensitivity.report import sensitivity_page, summarise
from tests.report.synthetic import clip_record, eval_rows, run_folder

RAN = "document.title='owned'"
PAYLOADS = [
    f"<script>{RAN}</script>", f'"><img src=x onerror="{RAN}">', f"'><svg/onload={RAN}>",
    f"</title><script>{RAN}</script>", f"</style><script>{RAN}</script>", f"</svg></pre></table><script>{RAN}</script>",
    f'" onmouseover="{RAN}" autofocus onfocus="{RAN}', f"<![CDATA[><script>{RAN}</script>]]>",
    f"--><script>{RAN}</script><!--", f'<iframe srcdoc="<script>parent.{RAN}</script>">',
    f'<a href="javascript:{RAN}">x</a>', f'<math><mtext></p><style><img src=x onerror="{RAN}"></style>',
    f"&lt;script&gt;{RAN}&lt;/script&gt;", "<style>*{display:none}</style>", "<base href=http://x.test/>",
    '<meta http-equiv="refresh" content="0;url=http://x.test/">', "<link rel=stylesheet href=http://x.test/a.css>",
    "{{7*7}}${7*7}%s{query}", f"<svg><animate onbegin={RAN} attributeName=x></svg>", f"<details open ontoggle={RAN}>",
    f'<noscript><p title="</noscript><img src=x onerror={RAN}>">', "\ufeff<scr\x00ipt>", "\u202e\x1b[2J\x00\u2028",
]
EVIL = " ".join(PAYLOADS)
POLYGLOT = b"\xff\xd8\xff\xe0" + b"*/=1;" + f"</script><script>{RAN}</script>".encode()


def evil_clip() -> ClipRecord:
    one = clip_record(0)
    captions = [DenseCaption(start_s=index, end_s=index + 2.0, text=text, alignment=0.5)
                for index, text in enumerate(PAYLOADS)]  # fmt: skip
    queries = [QueryRecord(id=f"q0-{index}", text=text, split=text[:100], windows_s=[(index / 2, index / 2 + 1)],
                           paths=CandidatePaths(random=[[index]], overlap=[[index]]))
               for index, text in enumerate([EVIL, *PAYLOADS])]  # fmt: skip
    queries = [query.model_copy(update={"paths": CandidatePaths(random=[[0]])}) for query in queries]
    return one.model_copy(update={"captions": captions, "queries": queries, "video": one.video.model_copy(
        update={"path_hint": EVIL[:500]})})


def evil_set(root: Path) -> Path:
    with SliceWriter(root, 0, kinds=("paths",)) as writer:
        writer.add_clip(evil_clip(), POLYGLOT, {}, {})
        writer.commit()
    write_skipped(root, [{"row_id": EVIL, "line": 1, "video": EVIL, "key": "", "stage": EVIL, "reason": EVIL,
                          "detail": EVIL, "transient": False}])  # fmt: skip
    told = {"dataset": EVIL, "split": EVIL, "licence_videos": EVIL, "licence_annotations": EVIL}
    write_manifest(root, build_manifest(root, inputs=len(PAYLOADS) + 2, skipped=1, captions=len(PAYLOADS), name=EVIL,
                                        provenance=told, clip_encoders=[ClipEncoder(name="x", model=EVIL)]))
    return root


def report_page(tmp_path: Path) -> str:
    run = run_folder(tmp_path / "run", steps=4, guided=2)
    for path in (run / "rollouts").iterdir():
        rows = [json.loads(line) | {"query": EVIL, "text": EVIL, "query_id": EVIL}
                for line in path.read_text().split("\n") if line]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "config.yaml").write_text(yaml.safe_dump({"seed": EVIL, "shards": EVIL, EVIL: EVIL}))
    (run / "export").mkdir()
    (run / "export" / "taro.json").write_text(json.dumps({"template": EVIL, "template_sha256": EVIL}))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3, "phase": EVIL, "eval": {"split": EVIL, "miou": 0.5, EVIL: EVIL}}) + "\n")
    fields = {"query": EVIL, "text": EVIL, "video": EVIL}
    both = [[type(row)(**{**{n: getattr(row, n) for n in row.__dataclass_fields__}, **fields})
             for row in eval_rows(after, clips=2)] for after in (False, True)]  # fmt: skip
    return render_report(run, {EVIL: evil_set(tmp_path / "set")}, [Evaluation(EVIL, *both)], tmp_path / "report.html",
                         title=EVIL, lead=EVIL, commands=[EVIL], notes=[EVIL]).read_text(encoding="utf-8")


def answers_page(tmp_path: Path) -> str:
    window = Moment(0.0, 5.0)
    examples = [Example(Prediction(text, EVIL, Moment(1.0, float("inf")), (window,), 9.0), text, text, "clip-00")
                for text in [EVIL, *PAYLOADS]]  # fmt: skip
    scores = evaluate_predictions([one.prediction for one in examples])
    return draw_answers(examples, scores=scores, table=EVIL, each=30, sets=[open_shards(evil_set(tmp_path / "set"))])


def measured_page(tmp_path: Path) -> str:
    rollouts = tuple(MeasuredRollout("clip-00", text, text, EVIL, text, Moment(1, 2), (Moment(1, 3),), 9.0,
                                     0.5 * (index % 2), tuple(PAYLOADS), (0.5,) * len(PAYLOADS), (Moment(0, 1),))
                     for index, text in enumerate([EVIL, *PAYLOADS[:3]]))  # fmt: skip
    drops = np.array([[0.4, 0.2, 0.3, 0.1]])
    found = Sensitivity((Disruption("patch", 3.0, "both"),), rollouts, drops, np.ones((1, 4), bool),
                  np.repeat(drops[..., None], 10, axis=2))  # fmt: skip
    return sensitivity_page(found, summarise(found), title=EVIL, made_by=EVIL,
                            sets=[open_shards(evil_set(tmp_path / "set"))])


PAGES: dict[str, Callable[[Path], str]] = {
    "report": report_page, "answers": answers_page, "sensitivity": measured_page}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_forbids_what_it_does_not_need(name: str, tmp_path: Path) -> None:
    text = PAGES[name](tmp_path)
    policies = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', text)
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    assert text.index("Content-Security-Policy") < text.index("<style") < text.index("</head>") < text.index("<body")
    assert "owned" in text and "[U+202E]" in text and not set("\u202e\x1b\x00\u2028\ufeff") & set(text)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium to open the pages")
@pytest.mark.parametrize("name", PAGES)
def test_no_browser_runs_anything_of_it(name: str, tmp_path: Path) -> None:
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", PAGES[name](tmp_path))
    assert "Content-Security-Policy" not in text
    (tmp_path / "open.html").write_text(text, encoding="utf-8")
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
         f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", (tmp_path / "open.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True)  # fmt: skip
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title is not None and title[1] != "owned" and "CONSOLE" not in done.stderr
    body = done.stdout.partition("<body")[2]
    for tag in ("script", "iframe", "link", "meta", "base", "math", "animate", "a ", "noscript", "style"):
        assert f"<{tag}" not in body, f"a foreign <{tag}> stands in the page"
    assert not re.search(r"<[^>]*\son[a-z]+=", re.sub(r'="[^"]*"', '=""', body)), "a handler stands in the page"
    assert all(source.startswith("data:image/") for source in re.findall(r'<[^>]*\ssrc="([^"]*)"', body))
