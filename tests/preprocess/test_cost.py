"""What a slice costs does not grow with the number of slices: files that are looked at, digests that are taken."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from taro.grounding.moment import Moment
from taro.models.features import FrameSampling
from taro.preprocess.captioners.base import Request
from taro.preprocess.captioners.cache import CachedCaptioner, CaptionCache
from taro.preprocess.config import PreprocessConfig
from taro.preprocess.plan import Plan
from taro.preprocess.run import preprocess
from taro.preprocess.video.decode import DecodeJob, decode_clip
from tests.helpers_video import write_video

Make = Callable[..., PreprocessConfig]


class Says:
    """A captioner that says which stretch it saw; every answer has the same length."""

    fingerprint, prompt = "says", "say it"

    def __init__(self) -> None:
        self.asked = 0

    def describe(self, requests: Sequence[Request]) -> list[str]:
        self.asked += len(requests)
        return [f"from {request.stretch.start_s:07.3f}" for request in requests]


@contextmanager
def looked_at(folder: Path) -> Iterator[Counter[str]]:
    """Counts what is done to the files of a folder in the block: stat, open, and listings of the folder."""
    found, watching, real = Counter[str](), [True], os.stat

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if watching and event in {"open", "os.scandir", "os.listdir"} and str(args[0]).startswith(str(folder)):
            found[event] += 1

    def stat(path: Any, *args: Any, **how: Any) -> os.stat_result:
        found["stat"] += str(path).startswith(f"{folder}/")
        return real(path, *args, **how)

    sys.addaudithook(watch)
    os.stat = stat
    try:
        yield found
    finally:
        os.stat = real
        watching.clear()


def test_a_slice_looks_at_its_own_journal_alone(tmp_path: Path) -> None:
    frames = decode_clip(DecodeJob(write_video(tmp_path / "v.mp4", 60), FrameSampling()))
    journal, costs = tmp_path / "journal", []
    captioner = CachedCaptioner(Says(), CaptionCache(journal), batch=4, round_s=0.1)
    for index in range(60):
        stretches = [Moment(0.001 * (3 * index + i), 5.0) for i in range(3)]
        with looked_at(journal) as found:
            captioner.captions([Request(frames, stretch, whole=False) for stretch in stretches], index)
        costs.append(dict(found))
    assert costs[0] and costs[1:] == [costs[1]] * 59, "the last slice costs what the second did"
    assert costs[1]["stat"] <= 2 and "os.scandir" not in costs[1] and "os.listdir" not in costs[1]


def test_a_slice_sees_what_another_job_wrote_of_it(tmp_path: Path) -> None:
    """Jobs that share a folder: a slice that one gave up is finished by another, and nothing is asked twice."""
    frames = decode_clip(DecodeJob(write_video(tmp_path / "v.mp4", 60), FrameSampling()))
    requests = [Request(frames, Moment(float(i), i + 1.0), whole=False) for i in range(5)]
    one, other = Says(), Says()
    late = CachedCaptioner(other, CaptionCache(tmp_path / "journal"), batch=4, round_s=0.1)  # begins before the first
    said = CachedCaptioner(one, CaptionCache(tmp_path / "journal"), batch=4, round_s=0.1).captions(requests, 7)
    assert late.captions(requests, 7) == said
    assert (one.asked, other.asked) == (5, 0)


def test_the_plan_is_digested_a_fixed_number_of_times(job: Make, tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """Its digest is over every clip: taken for each slice, a job of many slices would do little else."""
    dumped: list[int] = []
    real = Plan.model_dump

    def counted(self: Plan, **how: Any) -> dict[str, Any]:
        dumped.append(len(self.clips))
        return real(self, **how)

    monkeypatch.setattr(Plan, "model_dump", counted)
    counts = []
    for slice_clips in (6, 1):
        dumped.clear()
        report = preprocess(job(out=tmp_path / str(slice_clips), slice_clips=slice_clips))
        assert report.slices == (6 // slice_clips,) * 2 and report.made == 6 // slice_clips
        counts.append(len(dumped))
    assert counts[0] == counts[1] <= 4
