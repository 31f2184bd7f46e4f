"""Captions from each source, and the cache between captioner and set."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from taro.core.errors import AnnotationError, ConfigError
from taro.grounding.moment import Moment
from taro.models.features import FrameSampling
from taro.preprocess.captioners.base import Captioner, Request
from taro.preprocess.captioners.cache import CachedCaptioner, CaptionCache
from taro.preprocess.captioners.imported import Entry, captions_file, fit
from taro.preprocess.config import PreprocessConfig
from taro.preprocess.run import preprocess
from taro.preprocess.video.decode import DecodeJob, decode_clip
from taro.shards.reader import open_shards
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


def cached(captioner: Captioner, folder: Path, *, batch: int = 16, round_s: float = 0.1) -> CachedCaptioner:
    return CachedCaptioner(captioner, CaptionCache(folder / "journal"), batch=batch, round_s=round_s)


def test_no_question_is_asked_twice(tmp_path: Path) -> None:
    frames = decode_clip(DecodeJob(write_video(tmp_path / "v.mp4", 60), FrameSampling()))
    requests = [Request(frames, Moment(float(i), i + 1.0), whole=False) for i in range(5)]
    captioner = Counting()
    first = cached(captioner, tmp_path, batch=2).captions(requests[:3], 0)
    assert captioner.batches == [2, 1]
    again = cached(captioner, tmp_path, batch=2).captions(requests, 1)
    assert captioner.batches == [2, 1, 2]
    assert again[:3] == first
    assert [c.text for captions in again if isinstance(captions, list) for c in captions][1] == "from 1.0 to 2.0"


def test_a_whole_clip_brings_its_own_times(tmp_path: Path) -> None:
    frames = decode_clip(DecodeJob(write_video(tmp_path / "v.mp4", 60), FrameSampling()))  # 6 s
    text = ("Sure!\nFrom 4.0s to 9.0s, later.\nFrom 0.26s to 1.6s, first.\nFrom 7.0s to 9.0s, outside.\n"
            "From 4.0s to 9.0s, later.")  # fmt: skip
    (found,) = cached(Counting(text), tmp_path, round_s=0.5).captions([Request(frames, Moment(0, 6), whole=True)], 0)
    assert isinstance(found, list)
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


def test_captions_are_ordered_clipped_and_dropped() -> None:
    messy = [Entry(3, 99, "late"), Entry(0, 2, " early "), Entry(0, 2, "early"), Entry(12, 20, "outside"),
             Entry(5, 5, "empty"), Entry(1, 2, "  ")]  # fmt: skip
    assert [(c.start_s, c.end_s, c.text) for c in fit(messy, 10.0)[0]] == [(0, 2, "early"), (3, 10, "late")]


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


def test_every_given_caption_ends_once(job: Make, tmp_path: Path) -> None:
    """A file's entries that are reversed, empty, outside, doubled, of a video that is not there or cannot be read."""
    file = tmp_path / "captions.jsonl"

    def line(video: str, *entries: tuple[float, float, str]) -> str:
        captions = [{"start_s": s, "end_s": e, "text": text} for s, e, text in entries]
        return json.dumps({"video": video, "captions": captions})

    file.write_text("\n".join([
        line("v0.mp4", (0, 1, "fine"), (2, 1, "turned"), (2, 99, "long"), (99, 2.5, "both"), (5, 9, "outside")),
        line("v0", (1, 1, "empty"), (0, 1, " "), (0, 1, "fine"), (-9, -1, "before"), (-9, 1, "from before")),
        line("v1.mp4", (0, 1, "of a clip that is skipped"), (0, 2, "too")), line("gone.mp4", (0, 1, "nobody asks")),
    ]))  # fmt: skip
    videos = tmp_path / "videos"
    videos.mkdir()
    write_video(videos / "v0.mp4", 30)
    (videos / "v1.mp4").write_bytes(b"\x1a\x45\xdf\xa3" + bytes(500))  # begins like one
    lines = [{"video": f"v{i}.mp4", "query": "q", "windows": [[0, 1]]} for i in range(2)]
    report = preprocess(job(lines, videos=videos, caption={"method": "file", "file": str(file)}, max_skipped=0.5))
    assert report.given == {
        "used": 1, "repaired: start and end swapped": 1, "repaired: clipped to the clip": 2,
        "repaired: start and end swapped, clipped to the clip": 1, "skipped: outside the clip": 2,
        "skipped: no length": 1, "skipped: no text": 1, "skipped: given before": 1,
        "skipped: its clip was skipped": 2, "skipped: no row has its video": 1,
    }  # fmt: skip
    assert sum(report.given.values()) == 13 and "13 captions were given:" in report.table()
    found = open_shards(report.out)
    assert [(c.start_s, c.end_s, c.text) for c in found.clip(found.keys[0]).captions] == [
        (0, 1, "fine"), (0, 1, "from before"), (1, 2, "turned"), (2, 3, "long"), (2.5, 3, "both")]  # fmt: skip


def test_times_of_a_file_are_those_of_the_video(job: Make, tmp_path: Path) -> None:
    """A clip that is cut out of it has the captions of its own part, counted from its start."""
    file = tmp_path / "captions.jsonl"
    entries = [{"start_s": s, "end_s": s + 1, "text": f"from {s}"} for s in range(5)]
    file.write_text(json.dumps({"video": "v5.mp4", "captions": entries}))
    lines = [{"video": "v5.mp4", "query": "q", "windows": [[0, 1]], "clip": [s, s + 2.5]} for s in (0.0, 2.5)]
    report = preprocess(job(lines, caption={"method": "file", "file": str(file)}))
    found = open_shards(report.out)
    clips = sorted((found.clip(key) for key in found.keys), key=lambda clip: clip.clip.start_s)
    assert [[(c.start_s, c.end_s, c.text) for c in clip.captions] for clip in clips] == [
        [(0, 1, "from 0"), (1, 2, "from 1"), (2, 2.5, "from 2")],
        [(0, 0.5, "from 2"), (0.5, 1.5, "from 3"), (1.5, 2.5, "from 4")]]  # fmt: skip
    assert report.given == {"used": 4, "repaired: clipped to the clip": 2, "skipped: outside the clip": 4}


def test_a_bad_line_of_a_captions_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "captions.jsonl"
    for wrong in ('{"start_s": "x"}', '{"start_s": 0, "end_s": NaN, "text": "a"}', '{"start_s": 0, "end_s": 1}', "7",
                  '{"start_s": 0, "end_s": 1, "text": 5}'):  # fmt: skip
        file.write_text(f'{{"video": "a", "captions": []}}\n{{"video": "b", "captions": [{wrong}]}}\n')
        with pytest.raises(AnnotationError, match="line 2"):
            captions_file(file)
