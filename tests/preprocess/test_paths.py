"""Candidate paths: the paper's draw, distinct where possible, a function of their names."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from taro.grounding.moment import Moment
from taro.grounding.records import CandidatePaths, DenseCaption
from taro.preprocess.paths import candidate_paths


def captions(n: int) -> list[DenseCaption]:
    return [DenseCaption(start_s=2.0 * i, end_s=2.0 * i + 2.0, text=f"event number {i}") for i in range(n)]


def draw(n: int, *, count: int = 32, seed: int = 0, query_id: str = "q", windows: tuple[Moment, ...] = (Moment(2, 4),),
         query: str = "event number 7 happens") -> CandidatePaths:
    return candidate_paths(captions(n), windows, query, count=count, seed=seed, clip_key="clip", query_id=query_id)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(0, 5), st.integers(1, 40))
def test_paths_are_chronological_subsets_and_as_distinct_as_they_can_be(n: int, seed: int, count: int) -> None:
    paths = draw(n, seed=seed, count=count)
    for tag in (paths.random, paths.overlap):
        assert len(tag) == count
        assert all(path == sorted(set(path)) and set(path) <= set(range(n)) and path for path in tag)
    if 2**n - 1 >= 8 * count:
        assert len({tuple(path) for path in paths.random}) == count


def test_all_subsets_of_two_captions_come_up_before_any_repeats() -> None:
    paths = draw(2).random
    assert {tuple(path) for path in paths[:3]} == {(0,), (1,), (0, 1)}


def test_sizes_are_uniform() -> None:
    sizes = Counter(len(draw(6, count=1, query_id=f"q{i}").random[0]) for i in range(3000))
    assert all(abs(sizes[k] - 500) < 100 for k in range(1, 7)), sizes


def test_members_are_uniform_given_the_size() -> None:
    ones = Counter(path[0] for i in range(3000) if len(path := draw(5, count=1, query_id=f"q{i}").random[0]) == 1)
    assert all(abs(ones[k] - 120) < 50 for k in range(5)), ones


def test_overlap_paths_hold_the_ground_truth_and_hard_distractors() -> None:
    paths = draw(12, windows=(Moment(3.0, 5.0),)).overlap  # captions 1 and 2 overlap
    assert all({1, 2} <= set(path) for path in paths)
    assert any(7 in path for path in paths)  # the caption that shares most words with the query
    drawn = {i for path in paths for i in path} - {1, 2}
    assert 11 not in drawn  # the last of the equally unlike ones is not among the hard half
    alone = draw(3, windows=(Moment(100.0, 101.0),)).overlap
    assert all(path for path in alone)


def test_a_draw_depends_on_its_name_alone() -> None:
    assert draw(9) == draw(9)
    assert draw(9) != draw(9, seed=1)
    assert draw(9).random != draw(9, query_id="other").random
    assert draw(9, count=8).random == draw(9, count=32).random[:8]


def test_no_captions_no_paths() -> None:
    assert draw(0) == CandidatePaths() == draw(5, count=0)
