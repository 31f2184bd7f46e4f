"""Captions from each source, and the journal between captioner and set."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from preprocess.caption import Request, answer, captions_file, tidy
from preprocess.config import PreprocessConfig
from preprocess.decode import DecodeJob, decode_clip
from preprocess.journal import Journal
from preprocess.run import preprocess
from shards.reader import open_shards
from taro.errors import AnnotationError, ConfigError
from taro.features import FrameSampling
from taro.moment import Moment
from taro.records import DenseCaption
from tests.helpers_video import write_video

Make = Callable[..., PreprocessConfig]


class Counting:
    """A captioner that says where it looked, and counts."""

    def __init__(self, text: str | None = None) -> None:
        self.fingerprint, self.prompt, self.text = "counting", "say it", text
        self.batches: list[int] = []

    def describe(self, requests: Sequence[Request]) -> list[str]:
        self.batches.append(len(requests))
        return [self.text or f" from {r.stretch.start_s}\n to {r.stretch.end_s} " for r in requests]


def test_no_question_is_asked_twice(tmp_path: Path, job: Make) -> None:
    frames = decode_clip(DecodeJob(write_video(tmp_path / "v.mp4", 60), FrameSampling()))
    requests = [Request(frames, Moment(float(i), i + 1.0), whole=False) for i in range(5)]
    config = job(caption={"method": "transformers", "model": "unused", "batch": 2})
    captioner = Counting()
    first = answer(requests[:3], captioner, config, Journal(tmp_path / "journal", 0))
    assert captioner.batches == [2, 1]
    again = answer(requests, captioner, config, Journal(tmp_path / "journal", 1))
    assert captioner.batches == [2, 1, 2]
    assert again[:3] == first
    assert [c.text for captions in again for c in captions][1] == "from 1.0 to 2.0"


def test_a_whole_clip_brings_its_own_times(tmp_path: Path, job: Make) -> None:
    frames = decode_clip(DecodeJob(write_video(tmp_path / "v.mp4", 60), FrameSampling()))  # 6 s
    text = ("Sure!\nFrom 4.0s to 9.0s, later.\nFrom 0.26s to 1.6s, first.\nFrom 7.0s to 9.0s, outside.\n"
            "From 4.0s to 9.0s, later.")  # fmt: skip
    config = job(caption={"method": "transformers", "model": "x"}, segment={"method": "captioner", "round_s": 0.5})
    (found,) = answer([Request(frames, Moment(0, 6), whole=True)], Counting(text), config, Journal(tmp_path / "j", 0))
    assert [(c.start_s, c.end_s, c.text) for c in found] == [(0.5, 1.5, "first."), (4.0, 6.0, "later.")]


def test_a_stretch_has_an_even_number_of_its_own_frames(tmp_path: Path) -> None:
    frames = decode_clip(DecodeJob(write_video(tmp_path / "v.mp4", 60), FrameSampling()))
    for start_s, end_s in ((0.0, 6.0), (1.0, 2.6), (2.0, 2.01), (5.9, 6.0)):
        images, times_s, duration_s = Request(frames, Moment(start_s, end_s), whole=False).cut()
        assert len(images) == len(times_s) >= 2 and len(images) % 2 == 0
        assert duration_s == pytest.approx(end_s - start_s)
    images, times_s, _ = Request(frames, Moment(1.0, 2.6), whole=False).cut()
    inside = (frames.times_s >= 1.0) & (frames.times_s < 2.6)
    assert len(set(times_s.tolist())) == inside.sum()
    assert times_s[0] == pytest.approx(frames.times_s[inside][0] - 1.0)


def test_tidy_orders_clips_and_drops() -> None:
    def caption(start_s: float, end_s: float, text: str) -> DenseCaption:
        return DenseCaption(start_s=start_s, end_s=end_s, text=text)

    messy = [caption(3, 99, "late"), caption(0, 2, " early "), caption(0, 2, "early"), caption(12, 20, "outside"),
             caption(5, 5, "empty"), caption(1, 2, "  ")]  # fmt: skip
    assert [(c.start_s, c.end_s, c.text) for c in tidy(messy, 10.0)] == [(0, 2, "early"), (3, 10, "late")]


def test_a_model_describes_segments_in_process(job: Make, tiny_policy: Path) -> None:
    config = job(caption={"method": "transformers", "model": str(tiny_policy), "max_new_tokens": 6, "batch": 4},
                 segment={"method": "uniform", "window_s": 1.5})  # fmt: skip
    preprocess(config)
    found = open_shards(config.out)
    assert found.manifest.captioner["prompt"] == "describe the segment."
    asked = [json.loads(line) for path in (config.out / ".preprocess" / "journal").iterdir()
             for line in path.read_text().splitlines()]  # fmt: skip
    assert len(asked) == sum(round((3 + 0.5 * i) / 1.5) for i in range(6))
    said = sorted(" ".join(row["text"].split()) for row in asked if row["text"].strip())
    stored = sorted(c.text for key in found.keys for c in found.clip(key).captions)
    assert stored == said


def test_captions_come_from_a_file(job: Make, tmp_path: Path) -> None:
    file = tmp_path / "captions.jsonl"
    lines = [{"video": f"v{i}", "captions": [{"start_s": 1, "end_s": 2, "text": f"of {i}"}]} for i in range(5)]
    file.write_text("\n".join(json.dumps(line) for line in lines))
    config = job(caption={"method": "file", "file": str(file)})
    report = preprocess(config)
    assert (report.captions, report.uncaptioned) == (5, 1) and "1  clips without a caption" in report.table()
    assert preprocess(job(caption={"method": "none"}, out=tmp_path / "none")).uncaptioned == 0
    found = open_shards(config.out)
    assert sorted(c.text for key in found.keys for c in found.clip(key).captions) == [f"of {i}" for i in range(5)]
    file.write_text(file.read_text().replace("of 1", "of one"))
    with pytest.raises(ConfigError, match=r"captioner\.sha256"):
        preprocess(config)


def test_a_bad_line_of_a_captions_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "captions.jsonl"
    file.write_text('{"video": "a", "captions": []}\n{"video": "b", "captions": [{"start_s": "x"}]}\n')
    with pytest.raises(AnnotationError, match="line 2"):
        captions_file(file)
