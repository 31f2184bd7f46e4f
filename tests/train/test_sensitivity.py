"""`taro sensitivity`: its statistics by hand, its drops against training's own, and the command on a sandbox set."""

from __future__ import annotations

import html
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taro.cli.app import main
from taro.core.errors import ConfigError
from taro.grounding.moment import Moment
from taro.metrics.bootstrap import video_interval
from taro.models.asking import asking_of
from taro.models.load import load_policy
from taro.train.config import RolloutConfig
from taro.train.disruption import Disruption
from taro.train.evaluate import Questions
from taro.train.rewards import log_prob_drop
from taro.train.rollouts import StepName, roll_out, score_batch
from taro.train.sensitivity.measure import MeasuredRollout, Sensitivity, conditions, measure_sensitivity
from taro.train.sensitivity.report import sensitivity_page, sensitivity_table, summarise
from taro.train.sensitivity.stats import (
    auc,
    auc_within,
    centred,
    means_by_position,
    pairs_within,
    ranks,
    spearman,
)
from taro.train.sets import open_encoded_shards
from tests.train.conftest import Tiny

VALUES = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=12)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(list(words))
    said = capsys.readouterr()
    return int(stopped.value.code or 0), said.out, said.err


@given(VALUES)
def test_auc_is_the_share_of_pairs_in_order_ties_by_half(rows: list[tuple[int, bool]]) -> None:
    values, right = np.array([v for v, _ in rows], float), np.array([r for _, r in rows])
    pairs = [(a > b) + 0.5 * (a == b) for a in values[right] for b in values[~right]]
    if not pairs:
        assert np.isnan(auc(values, right))
        return
    assert auc(values, right) == pytest.approx(np.mean(pairs))
    assert auc(-values, right) == pytest.approx(1 - np.mean(pairs))
    assert auc_within(values, right, ["one"] * len(values)) == pytest.approx(np.mean(pairs))


def test_auc_of_the_separable_is_1_and_of_ties_a_half() -> None:
    assert auc(np.array([3.0, 2.0, 1.0, 0.0]), np.array([True, True, False, False])) == 1.0
    assert auc(np.zeros(5), np.array([True, False, True, False, False])) == 0.5
    # Between groups the wrong ones are higher, inside each the right ones: only the second is what a group sees.
    values, right = np.array([9.0, 8.0, 2.0, 1.0]), np.array([True, False, True, False])
    assert auc(values, right) == 0.75 and auc_within(values, right, ["a", "a", "b", "b"]) == 1.0
    assert np.isnan(auc_within(values, right, list("abcd")))
    wins, pairs, of = pairs_within(np.append(values, 5.0), np.append(right, True), ["a", "a", "b", "b", "c"])
    assert (wins.tolist(), pairs.tolist(), of.tolist()) == ([1.0, 1.0], [1.0, 1.0], [0, 2])  # c has no pair


def test_rank_correlation_by_hand() -> None:
    assert ranks(np.array([5.0, 1.0, 5.0, 7.0])).tolist() == [2.5, 1.0, 2.5, 4.0]
    assert spearman(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 4.0, 9.0, 16.0])) == pytest.approx(1)
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0])) == pytest.approx(-1)
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([2.0, 1.0, 3.0])) == pytest.approx(1 - 6 * 2 / 24)
    assert np.isnan(spearman(np.ones(3), np.arange(3.0)))
    assert centred(np.array([1.0, 5.0, 3.0]), ["a", "b", "a"]).tolist() == [-1.0, 0.0, 1.0]


def test_means_by_position_weigh_to_the_mean_and_leave_empty_tenths_out() -> None:
    gaps, over = np.arange(22.0), np.array([False] * 2 + [True] * 20)
    assert means_by_position(gaps, over).tolist() == [2.5 + 2 * k for k in range(10)]
    few = means_by_position(np.array([4.0, 6.0]), np.array([True, True]))
    assert few[0] == 4 and few[5] == 6 and np.isnan(few).sum() == 8
    assert np.isnan(means_by_position(gaps, np.zeros(22, bool))).all()


def test_an_interval_draws_videos_and_one_video_has_none() -> None:
    values = np.array([0.0, 0.0, 1.0, 1.0])
    low, high = video_interval(lambda at: float(values[at].mean()), ["a", "a", "b", "b"], 0) or (0, 0)
    assert (low, high) == (0.0, 1.0)  # a video is drawn whole, so means are 0, 1/2 or 1
    assert video_interval(lambda at: 0.0, ["a", "a"], 0) is None


def test_conditions_lead_with_the_first_kind_at_the_methods_radius() -> None:
    found = conditions(["noise", "patch"], [1.0, 3.0], ["start", "both"])
    assert len(found) == len(set(found)) == 8 and found[0] == Disruption("noise", 3.0, "both")
    for kinds, radii, boundaries in (
            (["shuffle"], [1.0], ["both"]), (["patch"], [0.0], ["both"]), (["patch"], [float("nan")], ["both"]),
            (["patch"], [1.0], ["middle"]), ([], [1.0], ["both"]), (["frame"], [1.0], ["start", "end"])):
        with pytest.raises(ConfigError, match="expected"):
            conditions(kinds, radii, boundaries)


def test_a_measured_drop_is_the_rewards_drop_whatever_the_batch(tiny: Tiny, tmp_path: Path) -> None:
    policy = load_policy(tiny.policy)
    shard_set, asking = open_encoded_shards(tiny.shards, policy.folder), asking_of(tiny.policy)
    asked = conditions(["patch", "reverse", "elsewhere"], [3.0], ["both", "end"])
    one, many = (measure_sensitivity(policy, shard_set, asking, asked, questions=Questions("train"),
                                     rollout=RolloutConfig(group=4, max_new_tokens=96, batch_prompts=size))
                 for size in (1, 4))
    np.testing.assert_allclose(one.drops_CN, many.drops_CN, atol=1e-5)
    assert [r.text for r in one.rollouts] == [r.text for r in many.rollouts]
    config = tiny.config(tmp_path / "run")
    samples = [shard_set.sample(ref) for ref in shard_set.queries(split="train")]
    batch = roll_out(policy, asking, samples, config.rollout, StepName(0, 0, 0))
    scores = score_batch(policy, None, batch, config.reward)
    drop_BG = log_prob_drop(scores.old_BGR.numpy(), scores.disrupted_BGR.numpy(), scores.over_BGR)
    np.testing.assert_allclose(many.drops_CN[0], drop_BG.reshape(-1), atol=1e-5)
    assert np.abs(drop_BG[np.isfinite(drop_BG)]).max() > 1e-4
    for gaps, drop in ((rollout.gaps, many.drops_CN[0, n]) for n, rollout in enumerate(many.rollouts)):
        assert not gaps or np.mean(gaps) == pytest.approx(drop, abs=1e-6)
    summary = summarise(many)
    by_kind = {row["kind"]: row for row in summary["conditions"] if row["boundary"] == "both"}
    # Four patches of 2 s, all of them within 3 s of a boundary: the control does not fit, and that is counted.
    assert by_kind["elsewhere"]["undisrupted"] == 24 and by_kind["elsewhere"]["drop"] is None
    assert by_kind["patch"]["undisrupted"] == 0 and by_kind["patch"]["vs_elsewhere"] is None
    json.dumps(summary, allow_nan=False)


def hand_made(query: str = "ab") -> Sensitivity:
    """Four rollouts of two queries in two videos under patch and elsewhere; the third has no reasoning."""
    drops = np.array([[.4, .2, np.nan, .1], [.1, .1, np.nan, .1]])
    rollouts = tuple(MeasuredRollout(key, "q", query, key, "text", Moment(1, 2), (Moment(1, 3),), 9.0, iou, pieces,
                                     gaps, ())
                     for key, iou, pieces, gaps in (("a", .9, ("x",), (.4,)), ("a", .1, ("x",), (.2,)),
                                                    ("b", .9, (), ()), ("b", .2, ("<b>",), (.1,))))
    positions = np.repeat(drops[..., None], 10, axis=2)
    return Sensitivity((Disruption("patch", 3.0, "both"), Disruption("elsewhere", 3.0, "both")), rollouts, drops,
                 np.ones((2, 4), bool), positions)


def test_a_summary_by_hand() -> None:
    summary = summarise(hand_made())
    patch, control = summary["conditions"]
    assert (summary["rollouts"], summary["queries"], summary["without_reasoning"], summary["right"]) == (4, 2, 1, .5)
    assert (patch["rollouts"], patch["positive"], patch["auc"], patch["auc_within"]) == (3, 1.0, 1.0, 1.0)
    assert patch["drop"] == pytest.approx(.7 / 3) and patch["by_position"] == pytest.approx([.7 / 3] * 10)
    assert patch["vs_elsewhere"] == pytest.approx(.4 / 3) and patch["vs_elsewhere_rollouts"] == 3
    assert control["auc"] == 0.5 and control["vs_elsewhere"] is None
    assert summary["rank_correlations"][0]["rho"] is None  # the control's drops do not vary
    assert "patch" in sensitivity_table(summary) and "1.00" in sensitivity_table(summary)


def test_a_page_is_self_contained_and_runs_no_untrusted_text() -> None:
    measured = hand_made(query='<script src="http://x">\u202e')
    text = sensitivity_page(measured, summarise(measured), title="<i>", made_by="taro sensitivity <b>")
    assert "<script" not in text and "<i>" not in text and "\u202e" not in text and "http://x" not in text.replace(
        "&#34;http://x&#34;", "")
    assert text.count("<polyline") == 2 and "&lt;b&gt;" in text and "largest drops" in text


def test_wrong_use_is_one_message(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("sensitivity", "--policy", str(tiny.policy), "--shards", str(tiny.shards))
    for words, message in ((("--kinds", "shuffle"), "some of: patch, reverse, elsewhere, noise, frame"),
                           (("--kinds", "frame"), "--only variants --set variants.count=4"),
                           (("--radius", "x"), "such as 1,3,5"), (("--radius", "1,1_0"), "such as 1,3,5"),
                           (("--over", "x"), "reasoning or response"),
                           (("--split", "nope"), "the set has train, val")):
        code, out, err = run(capsys, *where, *words)
        assert code == 1 and message in " ".join(err.split()) and "Traceback" not in err and not out, err


def test_the_command_on_a_sandbox_set_with_the_shipped_policy(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("av")
    world, shards, page = tmp_path / "world", tmp_path / "shards", tmp_path / "sensitivity.html"
    assert run(capsys, "sandbox", "make", str(world), "--videos", "2", "--seed", "7", "--queries", "1")[0] == 0
    code, _, said = run(
        capsys, "preprocess", "sandbox", "--set", f"videos={world}/videos", "--set",
        f"annotations={world}/annotations.jsonl", "--set", f"out={shards}", "--set", "caption.method=none", "--set",
        "segment.method=uniform", "--set", "clip_model=null", "--set", "paths.count=0")
    assert code == 0, said
    words = ("sensitivity", "--policy", "sandbox:policy", "--shards", str(shards), "--kinds", "patch,noise", "--radius",
             "1",
             "--boundary", "both", "--group", "2", "--max-new-tokens", "96", "--limit", "2")
    code, out, said = run(capsys, *words, "--json", "--html", str(page))
    assert code == 0, said
    summary = json.loads(out)
    assert (summary["queries"], summary["rollouts"], len(summary["conditions"])) == (2, 4, 2)
    assert all(row["drop"] is not None and len(row["by_position"]) == 10 for row in summary["conditions"])
    assert [row["kinds"] for row in summary["rank_correlations"]] == [["patch", "noise"]]
    assert "<svg" in page.read_text()
    lines = map(html.unescape, page.read_text().split("<pre>"))
    command = next(line for line in lines if line.startswith("taro sensitivity"))
    assert "--no-think" not in command and "--think" in command, "whatever the policy was trained for"
    code, again, said = run(capsys, *shlex.split(command.partition("</pre>")[0])[1:], "--json")
    assert code == 0 and json.loads(again) == summary, "the page's command makes it again"
    code, out, _ = run(capsys, *words)
    assert code == 0 and out.startswith("4 rollouts of 2 queries in 2 videos") and "noise" in out
