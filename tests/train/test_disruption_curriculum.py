"""Disruption and curriculum: properties over many draws, and cases by hand."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from taro.grounding.boundaries import boundary_windows
from taro.grounding.moment import Moment
from taro.train.curriculum import Curriculum, guide_probability, guided_rollouts
from taro.train.disruption import Disruption

MOMENTS = st.lists(st.tuples(st.floats(0, 40), st.floats(0, 40)).map(lambda t: Moment(min(t), max(t))), min_size=1,
                   max_size=4)


@given(st.integers(2, 40), MOMENTS, st.floats(0.1, 5), st.integers(0, 9))
def test_a_disruption_always_changes_something_and_only_near_boundaries(
        S: int, windows: list[Moment], dt_s: float, seed: int) -> None:
    times_S = np.arange(S) + 0.5
    order = Disruption("patch", dt_s).order(times_S, windows, seed=seed, epoch=0, sample="v:q")
    assert order is not None
    assert sorted(order.tolist()) == list(range(S))
    moved = np.flatnonzero(order != np.arange(S))
    stretches = boundary_windows(times_S, windows, dt_s=dt_s)
    assert set(moved) <= {int(i) for stretch in stretches for i in stretch}
    for stretch in stretches:  # every stretch keeps its own patches, and never in their order
        assert sorted(order[stretch].tolist()) == stretch.tolist()
        assert order[stretch].tolist() != stretch.tolist()


@given(st.integers(2, 40), MOMENTS, st.floats(0.1, 5))
def test_every_patch_within_dt_is_in_a_stretch_and_stretches_are_disjoint(
        S: int, windows: list[Moment], dt_s: float) -> None:
    times_S = np.arange(S) * 0.7
    covered = [int(i) for stretch in boundary_windows(times_S, windows, dt_s=dt_s) for i in stretch]
    assert len(covered) == len(set(covered))
    near = {i for i, t in enumerate(times_S) for w in windows for edge in (w.start_s, w.end_s) if abs(t - edge) <= dt_s}
    assert near <= set(covered)


def test_a_boundary_with_one_patch_or_none_is_widened_to_two() -> None:
    times_S = np.array([0.0, 4.0, 8.0, 12.0])
    assert [s.tolist() for s in boundary_windows(times_S, [Moment(4, 30)], dt_s=1.0)] == [[0, 1], [2, 3]]


def test_the_draw_depends_on_seed_epoch_and_sample_alone() -> None:
    times_S, windows = np.arange(20.0), [Moment(4, 15)]
    base = Disruption("patch").order(times_S, windows, seed=1, epoch=2, sample="a")
    np.testing.assert_array_equal(base, Disruption("patch").order(times_S, windows, seed=1, epoch=2, sample="a"))
    others = [Disruption("patch").order(times_S, windows, seed=s, epoch=e, sample=n)
              for s, e, n in [(2, 2, "a"), (1, 3, "a"), (1, 2, "b")]]
    assert all(not np.array_equal(base, other) for other in others)


def test_one_patch_or_no_window_means_no_disruption() -> None:
    assert Disruption("patch").order(np.array([0.5]), [Moment(0, 1)], seed=0, epoch=0, sample="a") is None
    assert Disruption("patch").order(np.arange(9.0), [], seed=0, epoch=0, sample="a") is None


def test_hard_switch_by_epochs_follows_the_epoch_of_the_data_order() -> None:
    by_epoch = Curriculum()
    assert [guide_probability(by_epoch, step=9, epoch=e, steps_per_epoch=3) for e in (0, 1, 2)] == [1.0, 0.0, 0.0]


@given(st.floats(0, 1), st.integers(0, 50))
def test_linear_guiding_is_a_share_and_its_draws_repeat(probability: float, step: int) -> None:
    drawn = [guided_rollouts(probability, 64, seed=0, epoch=0, step=step, sample=str(s)) for s in range(8)]
    assert abs(np.mean(drawn) - probability) < 0.12
    again = guided_rollouts(probability, 64, seed=0, epoch=0, step=step, sample="3")
    np.testing.assert_array_equal(drawn[3], again)
