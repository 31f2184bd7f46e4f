"""`taro train` and `taro eval` as a user types them, on the tiny policy and its shards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from taro.cli.app import main
from tests.train.conftest import Tiny


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(list(words))
    said = capsys.readouterr()
    return int(stopped.value.code or 0), said.out, said.err


def recipe(tiny: Tiny, folder: Path) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(tiny.settings(folder / "run", length={"amount": 2})))
    return path


def test_train_then_eval_then_scoring_the_answers_file_gives_one_score(
        tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(tiny, tmp_path)
    code, out, _ = run(capsys, "train", str(path), "--set", "seed=3", "--json")
    trained = json.loads(out)
    assert (code, trained["steps"], trained["last"]["step"]) == (0, 2, 1)
    answers = tmp_path / "answers.jsonl"
    code, out, _ = run(capsys, "eval", "--policy", trained["export"], "--shards", str(tiny.shards), "--split", "train",
                       "--max-new-tokens", "96", "--json", "--out", str(answers))
    scores = json.loads(out)
    assert (code, scores["queries"], scores["decoding"], scores["missing"]) == (0, 6, "greedy", 0)
    annotations = tmp_path / "annotations.jsonl"
    annotations.write_text("".join(json.dumps({
        "qid": row["query_id"], "video": row["video"], "query": row["query"], "windows": row["windows"],
        "duration": row["duration_s"]}) + "\n" for row in map(json.loads, answers.read_text().splitlines())))
    code, out, _ = run(capsys, "eval", "--predictions", str(answers), "--annotations", str(annotations), "--json")
    again = json.loads(out)
    assert code == 0
    for name in ("miou", "r1@0.3", "r1@0.5", "r1@0.7", "timestamps", "first_span", "queries"):
        assert again[name] == pytest.approx(scores[name]), name
    ranked = ["--protocol", "moment-detr", "--json"]
    code, out, _ = run(capsys, "eval", "--policy", trained["export"], "--shards", str(tiny.shards), "--split", "train",
                       "--max-new-tokens", "96", *ranked)
    of_policy = json.loads(out)
    code, out, _ = run(capsys, "eval", "--predictions", str(answers), "--annotations", str(annotations), *ranked)
    of_file = json.loads(out)
    assert of_policy["map"] == pytest.approx(of_file["map"]) and 0 < of_policy["map"]["mAP@0.5"] < 1
    code, out, _ = run(capsys, "eval", "--policy", trained["export"], "--shards", str(tiny.shards), "--sampled",
                       "--max-new-tokens", "96", "--limit", "3", "--protocol", "time-r1")
    assert code == 0 and "sampled decoding" in out and "protocol time-r1: 3 queries" in out


def test_wrong_use_is_2_and_a_wrong_thing_is_1_with_one_message(
        tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards, policy = str(tiny.shards), str(tiny.policy)
    for words in (["eval", "--policy", policy], ["eval", "--shards", shards], ["eval", "--predictions", "x"],
                  ["eval", "--videos", "x", "--shards", shards], ["ground", "video.mp4"], ["train"]):
        assert run(capsys, *words)[0] == 2, words
    for words, message in [
        (["eval", "--policy", policy, "--shards", shards, "--split", "nope"], "the set has train, val"),
        (["eval", "--policy", policy, "--shards", shards, "--protocol", "nope"], "expected one of: taro, clock"),
        (["eval", "--policy", policy, "--videos", "nope", "--annotations", "nope", "--protocol", "nope"],
         "nope: no such evaluation protocol"),
        (["eval", "--policy", policy, "--shards", shards, "--out", str(tmp_path)], "cannot be written (Is a dir"),
        (["eval", "--policy", "nope", "--shards", shards, "--out", f"{policy}/config.json/x"], "cannot be written"),
        (["eval", "--policy", "nope", "--shards", shards, "--html", str(tmp_path)], "--html"),
        (["eval", "--policy", policy, "--shards", "hf://datasets/a/b"], "hf://datasets/a/b: "),
        (["sensitivity", "--policy", policy, "--shards", "hf://a/b", "--html", str(tmp_path / "p.html")], "hf://a/b: "),
        (["eval", "--policy", policy, "--shards", str(tmp_path)], "manifest.json"),
        (["eval", "--policy", str(tmp_path), "--shards", shards], "no config.json"),
        (["ground", str(tmp_path / "gone.mp4"), "it", "--policy", policy], "no such video file"),
        (["train", str(recipe(tiny, tmp_path)), "--set", "optimizer.lrr=1"], "did you mean optimizer.lr?"),
        (["train", str(recipe(tiny, tmp_path)), "--resume"], "nothing to resume"),
        (["train", "no-such-recipe"], "taro-7b"),
    ]:
        code, out, err = run(capsys, *words)
        assert code == 1 and message in " ".join(err.split()) and "Traceback" not in err and not out, (words, err)


def write_video(path: Path, *, seconds: int = 8) -> None:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width = stream.height = 56
        stream.pix_fmt = "yuv420p"
        for number in range(8 * seconds):
            pixels = np.zeros((56, 56, 3), np.uint8)
            pixels[:, number % 56 :] = 200
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def test_raw_videos_are_answered_and_missing_ones_are_misses(
        tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    write_video(folder / "a b.mp4")
    (folder / "bad.mp4").write_bytes((folder / "a b.mp4").read_bytes()[:2000])
    rows = [("a b.mp4", "ab"), ("bad.mp4", "ab"), ("gone.mp4", "ab"), ("a b.mp4", "")]
    annotations = tmp_path / "annotations.jsonl"
    annotations.write_text("".join(json.dumps({"video": video, "query": query, "windows": [[1, 4]], "qid": str(number)})
                                   + "\n" for number, (video, query) in enumerate(rows)))
    policy = ("--policy", str(tiny.policy), "--max-new-tokens", "96", "--json")
    code, out, _ = run(capsys, "eval", "--videos", str(folder), "--annotations", str(annotations), *policy)
    scores = json.loads(out)
    assert (code, scores["queries"], scores["missing_ids"]) == (0, 3, ["1", "2"])  # an empty query is no query
    code, out, _ = run(capsys, "ground", str(folder / "a b.mp4"), 'a {b} "c"\nd', *policy)
    answer = json.loads(out)
    assert (code == 0) == (answer["moment"] is not None)
    assert answer["query"] == 'a {b} "c"\nd' and answer["duration_s"] == 8.0
    assert answer["text"] and answer["seconds"]["encode"] > 0
    code, out, err = run(capsys, "ground", str(folder / "bad.mp4"), "ab", *policy)
    assert code == 1 and "bad.mp4: truncated" in err and "Traceback" not in err and not out


def test_ground_looks_at_no_other_file(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that holds itself twice has no end, a hidden file is not listed, a newline is in no annotated name."""
    video = tmp_path / ".a\nb.mp4"
    write_video(tmp_path / "a.mp4")
    (tmp_path / "a.mp4").rename(video)
    for name in ("one", "two"):
        (tmp_path / name).symlink_to(tmp_path)
    code, out, err = run(capsys, "ground", str(video), "ab", "--policy", str(tiny.policy), "--max-new-tokens", "96",
                         "--json")
    assert (code == 0) == (json.loads(out)["moment"] is not None), err
