"""The disruptions beside `patch`: what each may touch, by properties over many draws and cases by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taro.grounding.boundaries import BOUNDARIES, Boundary, boundary_windows
from taro.grounding.moment import Moment
from taro.train.config import RewardConfig
from taro.train.disruption import KINDS, Disruption, Kind

MOMENTS = st.lists(st.tuples(st.floats(0, 40), st.floats(0, 40)).map(lambda t: Moment(min(t), max(t))), min_size=1,
                   max_size=3)
CASES = (st.integers(2, 40), MOMENTS, st.floats(0.1, 5), st.integers(0, 9), st.sampled_from(BOUNDARIES))


def drawn(kind: Kind, S: int, windows: list[Moment], dt_s: float, seed: int, boundary: Boundary) -> np.ndarray | None:
    return Disruption(kind, dt_s, boundary).order(np.arange(S) + 0.5, windows, seed=seed, epoch=0, sample="v:q")


def near(S: int, windows: list[Moment], dt_s: float, boundary: Boundary) -> set[int]:
    return {int(i) for w in boundary_windows(np.arange(S) + 0.5, windows, dt_s=dt_s, boundary=boundary) for i in w}


@given(*CASES)
def test_reversing_twice_is_the_identity_and_once_never_is(
        S: int, windows: list[Moment], dt_s: float, seed: int, boundary: Boundary) -> None:
    order = drawn("reverse", S, windows, dt_s, seed, boundary)
    assert order is not None and not np.array_equal(order, np.arange(S))
    np.testing.assert_array_equal(order[order], np.arange(S))
    assert {int(i) for i in np.flatnonzero(order != np.arange(S))} <= near(S, windows, dt_s, boundary)


@given(*CASES)
def test_elsewhere_moves_as_many_patches_and_never_one_near_a_boundary(
        S: int, windows: list[Moment], dt_s: float, seed: int, boundary: Boundary) -> None:
    order = drawn("elsewhere", S, windows, dt_s, seed, boundary)
    all_near = near(S, windows, dt_s, "both")
    wanted = near(S, windows, dt_s, boundary)
    if len(wanted) > S - len(all_near):
        assert order is None  # it does not fit: None, never a smaller disruption
    if order is None:
        return
    assert sorted(order.tolist()) == list(range(S))
    moved = {int(i) for i in np.flatnonzero(order != np.arange(S))}
    assert moved and not moved & all_near and len(moved) <= len(wanted)


@given(*CASES)
def test_noise_leaves_nothing_of_a_boundary_and_touches_nothing_else(
        S: int, windows: list[Moment], dt_s: float, seed: int, boundary: Boundary) -> None:
    order = drawn("noise", S, windows, dt_s, seed, boundary)
    all_near = near(S, windows, dt_s, "both")
    assert (order is None) == (len(all_near) == S)
    if order is None:
        return
    changed = {int(i) for i in np.flatnonzero(order != np.arange(S))}
    assert changed == near(S, windows, dt_s, boundary)
    assert not {int(i) for i in order[sorted(changed)]} & all_near


@pytest.mark.parametrize("kind", ["elsewhere", "noise"])
def test_draws_depend_on_seed_epoch_and_sample_alone(kind: Kind) -> None:
    def order(seed: int, epoch: int, sample: str) -> list[int]:
        found = Disruption(kind, 2.0).order(np.arange(40.0), [Moment(10, 16)], seed=seed, epoch=epoch, sample=sample)
        assert found is not None
        return [int(i) for i in found]

    assert order(1, 2, "a") == order(1, 2, "a")
    assert all(order(1, 2, "a") != other for other in (order(2, 2, "a"), order(1, 3, "a"), order(1, 2, "b")))


def test_a_placement_that_exists_by_packing_is_found() -> None:
    """Free are exactly the patches that two stretches need: chance would often block the second one."""
    # Near the boundaries are 4..9 and 11..16, six each; free are 0..3, 10 and 17 on: two sixes fit from S = 29 on.
    windows = [Moment(7, 14)]
    for S, fits in ((26, False), (28, False), (29, True)):
        for seed in range(20):
            assert (drawn("elsewhere", S, windows, 2.9, seed, "both") is not None) == fits, (S, seed)


def test_start_and_end_alone_are_disrupted_alone() -> None:
    times_S = np.arange(20) + 0.5
    windows = [Moment(5, 15)]
    found = {b: [w.tolist() for w in boundary_windows(times_S, windows, dt_s=1, boundary=b)] for b in BOUNDARIES}
    assert found == {"both": [[4, 5], [14, 15]], "start": [[4, 5]], "end": [[14, 15]]}


def test_every_kind_is_a_setting_and_patch_is_the_default() -> None:
    assert RewardConfig().disruption == "patch"
    for kind in KINDS:
        assert RewardConfig(disruption=kind).disruption == kind
