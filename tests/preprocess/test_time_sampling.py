"""Frames at equal steps of their number lie beside the times that positions tell where the rate varies: the distance is
measured, recorded and warned about, and gone where frames are chosen by time; at a constant rate both are the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from taro.cli.app import app
from taro.grounding.moment import Moment
from taro.models.features import (
    TIME_ERROR_S,
    FrameSampling,
    equal_times_s,
    patch_times_s,
    sample_by_time,
    sample_frames,
    time_error_s,
)
from taro.preprocess.config import PreprocessConfig
from taro.preprocess.ledger import read_ledger
from taro.preprocess.plan import STATE
from taro.preprocess.run import preprocess
from taro.preprocess.video.decode import DecodeJob, decode_clip
from taro.shards.ops.stats import stats
from taro.shards.reader import open_shards
from tests.helpers_video import read_number, write_held, write_video

BY_NUMBER, BY_TIME = FrameSampling(), FrameSampling(policy="uniform-2fps-time")
RATES = [Fraction(1), Fraction(2), Fraction(24000, 1001), Fraction(25), Fraction(30000, 1001), Fraction(60)]
CLOCKS = [1000, 90_000, 12_800]


@given(st.integers(1, 3000), st.sampled_from(RATES), st.sampled_from(CLOCKS), st.floats(0, 1), st.floats(0, 1),
       st.sampled_from([2, 8, 768]))  # fmt: skip
def test_a_constant_rate_gives_the_released_frames(
    frames: int, rate: Fraction, clock: int, begin: float, length: float, most: int
) -> None:
    """Whatever the clock rounds the timestamps to, and wherever a clip is cut out."""
    times_s = np.array([round(i / rate * clock) / clock for i in range(frames)])
    total_s = round(frames / rate * clock) / clock
    start_s = begin * total_s * 0.9
    end_s = max(start_s + length * (total_s - start_s), start_s + 1.5 / float(rate))
    end_s = min(end_s, total_s)
    inside = times_s[(times_s >= start_s) & (times_s < end_s)] - start_s
    if len(inside) == 0:
        return
    earlier = bool(times_s[0] < start_s)
    picked = sample_frames(len(inside), end_s - start_s, FrameSampling(max_frames=most))
    how = FrameSampling(policy="uniform-2fps-time", max_frames=most)
    got, got_s = sample_by_time(inside, end_s - start_s, float(rate), how, earlier=earlier)
    assert got.tolist() == picked.tolist() and got_s.tolist() == inside[picked].tolist()
    if rate >= 2:
        assert time_error_s(got_s, end_s - start_s, float(rate)) <= TIME_ERROR_S


@given(st.lists(st.floats(0.001, 20), min_size=1, max_size=200))
def test_by_time_every_frame_is_the_one_on_screen(lengths_s: list[float]) -> None:
    starts_s, duration_s = np.concatenate([[0.0], np.cumsum(lengths_s)[:-1]]), float(np.sum(lengths_s))
    fps = len(starts_s) / duration_s
    picked, times_s = sample_by_time(starts_s, duration_s, fps, BY_TIME)
    assert (np.diff(times_s) >= 0).all() and (np.diff(picked) >= 0).all()
    ends_s = np.append(starts_s[1:], duration_s)
    assert (times_s >= starts_s[picked] - 1e-6).all() and (times_s <= ends_s[picked] + 1e-5).all()
    if not np.array_equal(times_s, starts_s[sample_frames(len(starts_s), duration_s, BY_NUMBER)]):
        assert time_error_s(times_s, duration_s, fps) < 1e-5


def burst_then_slides(path: Path) -> Path:
    """100 frames in 4 s, then 5 pictures of 10 s each."""
    return write_video(path, 106, fps=25, ticks=[*range(100), *(100 + 250 * i for i in range(6))], size=(48, 80))


@pytest.mark.parametrize("name", ["burst.mp4", "held.mp4", "held.mkv"])
def test_frames_chosen_by_time_lie_where_positions_tell(tmp_path: Path, name: str) -> None:
    if name.startswith("burst"):
        path = burst_then_slides(tmp_path / name)
        starts_s = np.array([*(i / 25 for i in range(100)), *(4 + 10 * i for i in range(6))])
    else:
        path, starts_s = write_held(tmp_path / name, [10, 10, 10, 10, 260]), np.arange(5.0)
    by_number, by_time = (decode_clip(DecodeJob(path, how)) for how in (BY_NUMBER, BY_TIME))
    assert by_number.time_error_s > 10 and by_time.time_error_s < 1e-6
    assert len(by_number.times_s) == len(by_time.times_s) == int(by_time.duration_s) * 2
    seen = [read_number(frame) for frame in by_time.frames_THWC]
    assert seen == (np.searchsorted(starts_s, by_time.times_s + 1e-4, side="right") - 1).tolist()
    # Against the positions themselves: patch i stands at i times the clip's length over its patches.
    patches = len(seen) // 2
    told_s = np.arange(patches) * by_time.duration_s / patches
    assert np.abs(patch_times_s(by_time.times_s) - told_s).max() <= 0.5 < np.abs(
        patch_times_s(by_number.times_s) - told_s).max()  # fmt: skip


def test_a_cut_of_a_variable_rate_is_measured_alone(tmp_path: Path) -> None:
    path = burst_then_slides(tmp_path / "v.mp4")
    slides = decode_clip(DecodeJob(path, BY_TIME, Moment(9.0, 50.0)))
    assert slides.time_error_s < 1e-6
    starts_s = np.array([*(i / 25 for i in range(100)), *(4 + 10 * i for i in range(6))])
    on_screen = np.searchsorted(starts_s, slides.times_s + 9.0 + 1e-4, side="right") - 1
    assert [read_number(frame) for frame in slides.frames_THWC] == on_screen.tolist()
    assert on_screen[0] == 100, "the picture that is there when the clip starts"
    assert decode_clip(DecodeJob(path, BY_TIME, Moment(0.5, 3.5))).time_error_s < 0.5


def test_equal_times_end_with_the_last_frame_or_one_step_before_the_end() -> None:
    assert equal_times_s(20, 10.0, 25.0)[-1] == pytest.approx(9.96)
    assert equal_times_s(20, 10.0, 0.2)[-1] == pytest.approx(9.5)
    assert equal_times_s(4, 0.01, 25.0).tolist() == pytest.approx(np.linspace(0, 0.0075, 4).tolist())


def test_ledger_summary_and_stats_tell_the_distance(
    tmp_path: Path, job: Callable[..., PreprocessConfig], videos: Path
) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    burst_then_slides(folder / "burst.mp4")
    write_video(folder / "even.mp4", 60)
    lines = [{"video": name, "query": "a query", "windows": [[1.0, 3.0]]} for name in ("burst.mp4", "even.mp4")]
    small = {"total_tokens": 256}

    def made(out: str, **settings: object) -> tuple[PreprocessConfig, str, int]:
        config = job(lines, videos=folder, out=tmp_path / out, caption={"method": "none"}, **settings)
        report = preprocess(config)
        assert report.as_dict()["off_clips"] == report.off_clips
        return config, report.table(), report.off_clips

    config, table, off = made("number", sampling=small)
    assert off == 1 and "1  clips of variable rate: frames up to" in table and "uniform-2fps-time" in table
    ledger = read_ledger(config.out / STATE, 0)
    assert ledger is not None
    errors = {key.partition("-")[0]: error_s for key, error_s in ledger.time_error_s.items()}
    assert errors["burst"] > 10 and errors["even"] < 0.1
    shard_set = open_shards(config.out)
    found = stats(shard_set)
    assert found.off_clips == 1 and found.time_error_s.greatest == pytest.approx(errors["burst"], abs=1e-3)
    shown = CliRunner().invoke(app, ["shards", "stats", str(config.out)]).output
    assert "warning: over 1 s in 1 clips" in shown
    assert json.loads(CliRunner().invoke(app, ["shards", "stats", str(config.out), "--json"]).output)["off_clips"] == 1

    config, table, off = made("time", sampling={**small, "policy": "uniform-2fps-time"})
    assert off == 0 and "variable rate" not in table
    other = open_shards(config.out)
    assert stats(other).off_clips == 0 and other.manifest.encoders[0].name != shard_set.manifest.encoders[0].name
    even, same = (next(one.clip(key) for key in one.keys if key.startswith("even")) for one in (shard_set, other))
    assert even == same, "at a constant rate nothing changes"

    _, table, off = made("stamps", sampling=small, policy="sandbox:policy-qwen3-vl")  # true times are in its prompt
    assert off == 0 and "variable rate" not in table
