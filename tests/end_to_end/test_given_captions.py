"""Ready captions, from annotations to guided rollouts: the prefixes that training shows are exactly those lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from taro.grounding.prompts import load_template
from taro.models.load import load_policy
from taro.preprocess.config import PreprocessConfig
from taro.preprocess.run import preprocess
from taro.shards.reader import open_shards
from taro.train.config import TrainConfig
from taro.train.loop import train
from taro.train.open import open_run
from tests.helpers_models import tiny_qwen2_5_vl
from tests.helpers_video import write_video

CLIPS = 3
LINES = ['a woman\'s hand opens the "fridge"', "she {pours} milk, then waits", "the cat looks on", "a door falls shut"]
"""captions of each clip, one a second"""


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with videos of 4 s and a random policy that names the sandbox's template."""
    folder = tmp_path_factory.mktemp("given")
    tiny_qwen2_5_vl(folder / "policy")
    (folder / "policy" / "taro.json").write_text('{"template": "sandbox"}')
    (folder / "videos").mkdir()
    for i in range(CLIPS):
        write_video(folder / "videos" / f"v_{i}.mp4", 40, size=(56, 84))
    return folder


def authors_lines() -> Any:
    """TaRO's train.json: captions are lines of text, one string or several."""
    lines = [f"From {i}.0s to {i + 1}.0s, {text}" for i, text in enumerate(LINES)]
    return [{"data_source": "x", "prompt": [], "videos": [f"videos/v_{i}.mp4"], "query": "she pours milk.",
             "captions": lines if i else ["\n".join(lines)], "reward_model": {"ground_truth": [1.0, 2.0]},
             "extra_info": {"split": "train", "index": i, "duration": 4.0}} for i in range(CLIPS)]  # fmt: skip


def activitynet() -> Any:
    """Its own sentences, with the stray blanks that they have, the last one past the end by rounding."""
    spans = [[i, i + 1 + 0.004 * (i == 3)] for i in range(4)]
    return {f"v_{i}": {"duration": 4.0, "timestamps": spans, "sentences": [f" {text}" for text in LINES]}
            for i in range(CLIPS)}  # fmt: skip


@pytest.mark.parametrize(("dataset", "made"), [("taro", authors_lines), ("activitynet", activitynet)])
def test_training_shows_exactly_the_lines_that_were_given(
    tmp_path: Path, parts: Path, dataset: str, made: Any
) -> None:
    (tmp_path / "annotations.json").write_text(json.dumps(made()))
    report = preprocess(PreprocessConfig.model_validate({
        "videos": parts / "videos", "annotations": tmp_path / "annotations.json", "dataset": dataset,
        "out": tmp_path / "shards", "policy": str(parts / "policy"), "caption": {"method": "annotations"},
        "device": "cpu", "workers": 1, "threads": 1, "sampling": {"total_tokens": 64},
    }))  # fmt: skip
    assert report.complete and report.skipped == 0
    assert report.given == {"used": CLIPS * 4}
    found = open_shards(tmp_path / "shards")
    for key in found.keys:
        captions = found.clip(key).captions
        assert [(c.start_s, c.end_s, c.text) for c in captions] == [(i, i + 1, text) for i, text in enumerate(LINES)]

    train(TrainConfig.model_validate({
        "policy": str(parts / "policy"), "shards": str(tmp_path / "shards"), "out": str(tmp_path / "run"),
        "length": {"unit": "steps", "amount": 1}, "curriculum": {"unit": "steps", "amount": 1},
        "rollout": {"prompts": 2, "group": 4, "max_new_tokens": 400, "min_free_tokens": 8}, "device": "cpu",
    }))  # fmt: skip
    policy, template = load_policy(parts / "policy"), load_template("sandbox")
    shown = {f"From {i}.0s to {i + 1}.0s, {text}": i for i, text in enumerate(LINES)}
    rows = [json.loads(line) for line in (tmp_path / "run" / "rollouts" / "step-000000.jsonl").read_text().splitlines()]
    assert len(rows) == 8
    told = set()
    for row in rows:
        assert row["guided"]
        opening = template.guided_prefix(row["query"], [])
        assert row["text"].startswith(opening)
        lines = []
        for line in row["text"][len(opening) :].split("\n"):
            if line not in shown:
                break
            lines.append(line)
        assert lines and [shown[line] for line in lines] == sorted({shown[line] for line in lines})
        prefix = opening + "".join(f"{line}\n" for line in lines)
        assert len(policy.encode_text(prefix)) == row["forced_tokens"], "the prefix holds nothing else"
        told.update(lines)
    assert told == set(shown), "eight draws of one to four lines leave none out"


@pytest.mark.parametrize("paths", ["random", "online"])
def test_a_set_without_captions_says_so_when_training_begins(
    tmp_path: Path, parts: Path, paths: str, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [{"video": f"v_{i}", "query": "q", "windows": [[0, 1]],
              **({"captions": [{"start_s": 0, "end_s": 1, "text": "a dog"}]} if i == 0 else {})} for i in range(CLIPS)]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for method, said in (("annotations", "2 of 3 queries have no captions"), ("none", "all of 3 queries"), ("off", "")):
        preprocess(PreprocessConfig.model_validate({
            "videos": parts / "videos", "annotations": tmp_path / "some.jsonl", "dataset": "jsonl",
            "out": tmp_path / method, "policy": str(parts / "policy"), "device": "cpu", "workers": 1, "threads": 1,
            "caption": {"method": "none" if method == "off" else method}, "sampling": {"total_tokens": 64},
        }))  # fmt: skip
        run = open_run(TrainConfig.model_validate({
            "policy": str(parts / "policy"), "shards": str(tmp_path / method), "out": str(tmp_path / f"run-{method}"),
            "curriculum": {"schedule": "off" if method == "off" else "hard"}, "device": "cpu",
            "rollout": {"prompts": 2, "paths": paths},
        }), resume=False)  # fmt: skip
        run.close()
        told = [record.getMessage() for record in caplog.records if "to guide a rollout with" in record.getMessage()]
        assert len(told) == bool(said) and all(said in line for line in told)
        caplog.clear()
