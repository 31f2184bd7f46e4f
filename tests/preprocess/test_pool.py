"""A decoding process that hangs or dies costs one clip."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

from taro.core.errors import VideoError
from taro.models.features import FrameSampling
from taro.preprocess.video.decode import DecodeJob, Frames
from taro.preprocess.video.pool import DecodePool
from tests.helpers_video import read_number, write_video

SAMPLING = FrameSampling()


def children() -> list[int]:
    """Process ids of this process's children that still run."""
    return [int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]


def test_results_come_in_order_and_a_bad_file_costs_itself(tmp_path: Path) -> None:
    paths = [write_video(tmp_path / f"{i}.mp4", 8 + i) for i in range(5)]
    (tmp_path / "2.mp4").write_bytes(b"no video")
    before = set(children())
    with DecodePool(2, deadline_s=60) as pool:
        results = list(pool.map([DecodeJob(path, SAMPLING) for path in paths], ahead=3))
    assert [r.facts.frames if isinstance(r, Frames) else r.reason for r in results] == [8, 9, "not a video", 11, 12]
    first = results[0]
    assert isinstance(first, Frames)
    assert read_number(first.frames_THWC[-1]) == 7 and abs(first.times_s[-1] - 0.7) < 1e-9
    assert set(children()) <= before  # nothing is left behind


def test_a_hang_is_killed_at_its_deadline_and_the_next_clip_is_decoded(tmp_path: Path) -> None:
    job = DecodeJob(write_video(tmp_path / "v.mp4", 9), SAMPLING)
    before = set(children())  # of other tests in this process
    with DecodePool(1, deadline_s=2.0) as pool:
        assert isinstance(next(pool.map([job], ahead=0)), Frames)  # the worker is up
        (worker,) = set(children()) - before
        os.kill(worker, signal.SIGSTOP)  # a real hang: it neither answers nor ends
        began = time.monotonic()
        hung, after = list(pool.map([job, job], ahead=0))
        assert isinstance(hung, VideoError)
        assert hung.reason == "deadline" and hung.transient
        assert 1.5 < time.monotonic() - began < 60
        assert isinstance(after, Frames)
        assert worker not in children()


def test_a_crash_is_a_transient_failure_of_one_clip(tmp_path: Path) -> None:
    job = DecodeJob(write_video(tmp_path / "v.mp4", 9), SAMPLING)
    before = set(children())
    with DecodePool(1, deadline_s=60) as pool:
        assert isinstance(next(pool.map([job], ahead=0)), Frames)
        (worker,) = set(children()) - before
        os.kill(worker, signal.SIGSTOP)
        threading.Timer(0.5, os.kill, (worker, signal.SIGKILL)).start()
        dead, after = list(pool.map([job, job], ahead=0))
        assert isinstance(dead, VideoError)
        assert dead.reason == "decoder died" and dead.transient
        assert isinstance(after, Frames)


def test_no_more_is_decoded_ahead_than_asked(tmp_path: Path) -> None:
    paths = [write_video(tmp_path / f"{i}.mp4", 4) for i in range(8)]
    taken: list[int] = []

    def jobs():  # type: ignore[no-untyped-def]
        for place, path in enumerate(paths):
            taken.append(place)
            yield DecodeJob(path, SAMPLING)

    with DecodePool(1, deadline_s=60) as pool:
        results = pool.map(jobs(), ahead=2)
        assert len(taken) == 3
        next(results)
        assert len(taken) == 4
        assert len(list(results)) == 7
