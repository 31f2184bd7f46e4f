"""The page of a run: its numbers are the inputs', what was written elsewhere stays text, every section is there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from taro.cli.app import main
from taro.core.errors import ConfigError
from taro.grounding.moment import Moment
from taro.metrics.answers import read_answers, write_answers
from taro.pages.charts import LEFT, RIGHT, WIDTH, curve_chart
from taro.shards.reader import open_shards
from taro.train.report.data import Evaluation, Run, examples, mean_of, read_run, row_iou, training_groups
from taro.train.report.figures import tiles, time_table
from taro.train.report.write import ledger, render_report
from tests.report import synthetic

VOID = {"meta", "br", "img"}


class Page(HTMLParser):
    """Texts by section id, tags, attributes; asserts that tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.texts: dict[str, str] = {}
        self.pres: list[str] = []
        self._open: list[str] = []
        self._section = ""
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag == "section" and dict(attrs).get("id"):
            self._section = str(dict(attrs)["id"])
        if tag == "pre":
            self.pres.append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts[self._section] = self.texts.get(self._section, "") + data
        if "pre" in self._open:
            self.pres[-1] += data


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    synthetic.run_folder(root / "run")
    synthetic.shard_set(root / "train", skipped=2, hostile=(0,))
    synthetic.shard_set(root / "held-out", clips=8, skipped=0, hostile=(3, 7))
    return root


def evaluation(hostile: tuple[int, ...] = (3, 7)) -> Evaluation:
    return Evaluation("greedy", synthetic.eval_rows(False, hostile=hostile), synthetic.eval_rows(True, hostile=hostile))


@pytest.fixture(scope="module")
def html(folders: Path) -> str:
    out = render_report(folders / "run", {"train": folders / "train", "held-out": folders / "held-out"}, [evaluation()],
                        folders / "report.html", title=f"A run {synthetic.HOSTILE}", lead=synthetic.HOSTILE,
                        commands=["taro quickstart --seed 7"], notes=["One seed proves nothing."])
    return out.read_text(encoding="utf-8")


def test_every_section_is_there(html: str) -> None:
    page = Page(html)
    assert set(page.texts) >= {"headline", "scores", "curves", "examples", "groups", "accounting", "environment",
                               "reproduce"}
    assert "taro quickstart --seed 7" in page.texts["reproduce"]
    assert "One seed proves nothing." in page.texts["reproduce"]


def test_numbers_equal_the_inputs(html: str, folders: Path) -> None:
    page, run = Page(html), read_run(folders / "run")
    given = evaluation()
    for scores in (given.before_scores, given.after_scores):
        for value in scores.metrics.values():
            assert f"{value:.3f}" in page.texts["scores"]
        for name in scores.baselines:
            assert name in page.texts["scores"]
    gain, low, high = given.paired_gain
    assert f"a change of {gain:+.3f}, 95 % interval [{low:+.3f}, {high:+.3f}]" in page.texts["headline"]
    for key in ("reward", "format", "tiou", "bonus", "drop_mean", "timestamps"):
        ends = f"{mean_of(run.steps[:5], key):.3f} \u2192 {mean_of(run.steps[-5:], key):.3f}"
        assert ends in page.texts["curves"], key
    _, step, rows = training_groups(run)[1]
    assert step == 49 and f"{rows[0]['reward']:.3f}" in page.texts["groups"]


def test_the_gain_is_the_difference_of_the_scores() -> None:
    given = evaluation()
    assert given.paired_gain[0] == pytest.approx(given.after_scores.miou - given.before_scores.miou)
    assert sum(given.changes) == len(given.before) and given.changes[2] == 1
    same = Evaluation("same", given.before, given.before)
    assert same.paired_gain == (0.0, 0.0, 0.0) and same.changes == (0, len(given.before), 0)


def test_examples_are_chosen_by_rule_and_show_a_loss() -> None:
    given = evaluation()
    deltas = {(b.key, b.query_id): row_iou(a, "taro") - row_iou(b, "taro") for b, a in given.pairs}
    gain, median, loss = examples(given)
    assert deltas[gain.before.key, gain.before.query_id] == max(deltas.values())
    assert deltas[loss.before.key, loss.before.query_id] == min(deltas.values()) < 0
    ranked = sorted(deltas.values())
    assert deltas[median.before.key, median.before.query_id] == ranked[(len(ranked) - 1) // 2]
    assert "no query lost" in examples(Evaluation("same", given.before, given.before))[-1].why


def test_what_was_written_elsewhere_stays_text(html: str) -> None:
    page = Page(html)
    assert "script" not in page.tags and not [a for a in page.attributes if a[1].startswith("on")]
    sources = [value for _, name, value in page.attributes if name in {"src", "href", "xlink:href"}]
    assert sources and all(str(value).startswith("data:image/jpeg;base64,") for value in sources)
    assert "\u202e" not in html and "[U+202E]" in html
    assert synthetic.HOSTILE.replace("\u202e", "[U+202E]") in page.texts["examples"]
    assert re.search(r"https?://(?!www\.w3\.org/2000/svg)", html) is None


def test_the_answers_are_shown_whole(html: str) -> None:
    page = Page(html)
    for example in examples(evaluation()):
        for row in (example.before, example.after):
            assert row.text.replace("\u202e", "[U+202E]") in page.pres


def test_accounting_adds_up_and_names_reasons(html: str, folders: Path) -> None:
    page = Page(html)
    row = ledger("train", folders / "train", open_shards(folders / "train"))
    assert (row["inputs"], row["queries"], row["skipped"], row["reasons"]) == (18, 16, 2, {"missing video": 2})
    assert "missing video (2)" in page.texts["accounting"] and "DOES NOT" not in page.texts["accounting"]


def test_folders_of_the_machine_stay_out(html: str) -> None:
    assert "/somewhere" not in html
    config = next(pre for pre in Page(html).pres if "policy:" in pre)
    assert yaml.safe_load(config) == {"policy": "sandbox:policy", "shards": "shards", "out": "run", "seed": 7,
                                      "length": {"unit": "steps", "amount": 50}}


@pytest.mark.parametrize(("steps", "first", "last"), [(1, 0.0, 0.0), (2, 0.0, 1.0), (9, 1.5, 6.5), (40, 2.0, 37.0)])
def test_the_ends_of_a_run_share_no_step(steps: int, first: float, last: float) -> None:
    """Step i scores i. A run of four steps would else be said to have gone from its mean to its mean."""
    run = Run(Path("run"), {}, "", [{"step": at, "tiou": float(at), "drop_mean": float(at)} for at in range(steps)], [])
    assert [(tile.before, tile.after) for tile in tiles(None, run)] == [(f"{first:.3f}", f"{last:.3f}")] * 2


def test_guided_steps_are_shaded(folders: Path) -> None:
    run = read_run(folders / "run")
    assert run.guided_spans == [(0, 14)]
    chart = curve_chart("t", [0, 10, 20], [0.0, None, 1.0], [(0, 10)], low=0.0, high=1.0)
    ((x, width, _),) = chart.shades
    assert x == LEFT and width == pytest.approx((WIDTH - LEFT - RIGHT) * 10.5 / 20, abs=0.1)
    assert (chart.raw.count("M"), chart.mean.count("M")) == (2, 1), (
        "a step without a value lifts the pen of the raw line; the mean goes on")


def test_where_the_time_goes_is_a_table(tmp_path: Path) -> None:
    run = synthetic.run_folder(tmp_path / "run", steps=2)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert time_table(read_run(run)).rows == []
    for line, seconds in zip(lines, (2.0, 4.0), strict=True):
        line["phases"] = {"update": 1.0, "rollouts": seconds, synthetic.HOSTILE: None, "odd": "x"}
        line["tokens_per_s_by_phase"] = {"rollouts": 1000.0 * seconds}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert time_table(read_run(run)).rows == [["rollouts", "3.00", "75%", "3,000"], ["update", "1.00", "25%", "-"]]
    page = Page(render_report(run, {}, [], tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "3,000" in page.texts["time"]


def test_a_run_alone_still_makes_a_page(folders: Path, tmp_path: Path) -> None:
    page = Page(render_report(folders / "run", {}, [], tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "Not evaluated" in page.texts["scores"] and "examples" not in page.texts


def test_predictions_survive_the_file(tmp_path: Path) -> None:
    rows = synthetic.eval_rows(False)
    write_answers(rows, tmp_path / "p.jsonl")
    assert read_answers(tmp_path / "p.jsonl") == rows
    (tmp_path / "bad.jsonl").write_text(json.dumps({"key": "a", "predicted": None}) + "\n")
    with pytest.raises(ConfigError, match=r"bad.jsonl:1: expected a row"):
        read_answers(tmp_path / "bad.jsonl")


def test_the_command_finds_the_files_and_says_what_is_missing(folders: Path, tmp_path: Path) -> None:
    for name, after in (("before", False), ("after", True)):
        write_answers(synthetic.eval_rows(after), tmp_path / f"{name}.jsonl")
    both = ["--before", str(tmp_path / "before.jsonl"), "--after", str(tmp_path / "after.jsonl")]
    page = tmp_path / "page.html"
    line = ["report", str(folders / "run"), "--shards", str(folders / "held-out"), "--out", str(page)]
    with pytest.raises(SystemExit) as ended:
        main([*line, *both])
    assert ended.value.code == 0
    given = evaluation(hostile=())
    assert f"{given.after_scores.miou:.3f}" in Page(page.read_text(encoding="utf-8")).texts["headline"]
    with pytest.raises(SystemExit) as ended:
        main([*line, *both[:2]])
    assert ended.value.code == 1


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected the folder of a training run"):
        read_run(tmp_path)
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "reward": 1\n')
    with pytest.raises(ConfigError, match=r"metrics.jsonl:1: expected a JSON object"):
        read_run(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "reward": 1}\n')
    for text in (b"{\n", b"\xff\n"):
        (tmp_path / "config.yaml").write_bytes(text)
        with pytest.raises(ConfigError, match=r"config.yaml: expected the YAML that a run wrote"):
            read_run(tmp_path)


def test_missing_and_reversed_answers_have_no_iou() -> None:
    row = evaluation().before[0]
    for moment in (None, Moment(9.0, 2.0)):
        changed = type(row)(**{**{n: getattr(row, n) for n in row.__dataclass_fields__}, "predicted": moment})
        assert row_iou(changed, "taro") == 0.0


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium to open the page")
def test_a_browser_runs_nothing_of_it(html: str, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    # The policy would stop a script that got out of its text: without it, the escapes stand alone.
    file.write_text(re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html), encoding="utf-8")
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
         f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", file.as_uri()],
        capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title is not None and title[1].startswith("A run"), "a script renamed the page"
    assert done.stdout.count("<section") >= 8
