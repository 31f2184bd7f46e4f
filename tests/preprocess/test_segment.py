"""Change points: exact against brute force, found where planted, rounded to where they can be."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taro.core.draws import rng
from taro.preprocess.config import SegmentConfig
from taro.preprocess.segment import boundary_s, change_points, change_segments, uniform_segments


def scatter(x: np.ndarray) -> float:
    return float(((x - x.mean(0)) ** 2).sum())


def price(x: np.ndarray, penalty: float) -> float:
    noise = max(float(np.median(((x[1:] - x[:-1]) ** 2).sum(1))) / 2, 1e-9)
    return penalty * noise * math.log(max(len(x), 2))


def total(x: np.ndarray, starts: list[int], penalty: float) -> float:
    edges = [0, *starts, len(x)]
    return sum(scatter(x[a:b]) for a, b in itertools.pairwise(edges)) + price(x, penalty) * len(starts)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 9), st.sampled_from([0.5, 1.0, 3.0]), st.sampled_from([1, 2]))
def test_no_segmentation_is_cheaper(seed: int, T: int, penalty: float, least: int) -> None:
    x = rng("test", seed).normal(size=(T, 3))
    found = change_points(x, penalty=penalty, kernel="linear", min_frames=least)
    options = [
        list(cuts)
        for size in range(T)
        for cuts in itertools.combinations(range(1, T), size)
        if all(b - a >= least for a, b in itertools.pairwise([0, *cuts, T]))
    ]
    best = min(total(x, cuts, penalty) for cuts in options) if options else total(x, [], penalty)
    assert total(x, found, penalty) == pytest.approx(best, abs=1e-9)


def test_planted_changes_are_found() -> None:
    draw = rng("test", "planted")
    levels = np.repeat(draw.normal(size=(4, 16)), [9, 14, 7, 10], axis=0)
    x = levels + 0.05 * draw.normal(size=levels.shape)
    assert change_points(x, penalty=2.0) == [9, 23, 30]
    assert change_points(x, penalty=2.0, kernel="linear") == [9, 23, 30]
    assert change_points(x, penalty=2.0, max_segments=4) == [9, 23, 30]
    assert set(change_points(x, penalty=2.0, max_segments=3)) < {9, 23, 30}
    assert change_points(7.0 * x, penalty=2.0, kernel="linear") == [9, 23, 30]  # the scale of features says nothing


def test_a_still_video_is_one_segment() -> None:
    assert change_points(np.ones((50, 8)), penalty=0.5) == []
    assert change_points(np.ones((1, 8)), penalty=0.5) == []
    whole = change_segments(np.ones((50, 8)), np.arange(50) / 2, 25.0, SegmentConfig(max_segments=9))
    assert [(m.start_s, m.end_s) for m in whole] == [(0.0, 25.0)]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000), st.floats(2.0, 60.0), st.sampled_from([0.1, 0.5, 1.0]), st.floats(0.0, 4.0))
def test_segments_tile_the_clip(seed: int, duration_s: float, round_s: float, min_s: float) -> None:
    T = max(2, int(duration_s * 2))
    x = rng("test", seed).normal(size=(T, 4))
    times_s = np.linspace(0, duration_s, T, endpoint=False)
    found = change_segments(x, times_s, duration_s, SegmentConfig(penalty=0.3, round_s=round_s, min_s=min_s))
    assert found[0].start_s == 0.0 and found[-1].end_s == duration_s
    assert all(a.end_s == b.start_s and a.duration_s > 0 for a, b in itertools.pairwise(found))
    assert all(abs(m.end_s / round_s - round(m.end_s / round_s)) < 1e-6 for m in found[:-1])


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 100), st.floats(0.01, 3), st.sampled_from([0.1, 0.5, 1.0]))
def test_a_boundary_lies_between_its_frames_where_it_can(before_s: float, gap_s: float, round_s: float) -> None:
    after_s = before_s + gap_s
    found = boundary_s(before_s, after_s, round_s)
    assert abs(found / round_s - round(found / round_s)) < 1e-6
    if gap_s > round_s * 1.001:
        assert before_s - 1e-6 < found <= after_s + 1e-3 * round_s
    assert abs(found - (before_s + after_s) / 2) <= max(gap_s, round_s)


@given(st.floats(0.2, 1000), st.floats(0.5, 30))
def test_uniform_windows_tile_the_clip(duration_s: float, window_s: float) -> None:
    found = uniform_segments(duration_s, window_s=window_s, round_s=0.1)
    assert found[0].start_s == 0.0 and found[-1].end_s == duration_s
    assert all(a.end_s == b.start_s for a, b in itertools.pairwise(found))
    assert all(m.duration_s > window_s * 0.5 - 0.2 for m in found) or len(found) == 1
