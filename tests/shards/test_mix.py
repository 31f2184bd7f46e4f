"""A mixture of sets: shares exact in every epoch, no query of a set again before all came, any step by its number."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taro.core.errors import ConfigError
from taro.shards.mix import MixedOrder
from taro.shards.order import QueryOrder

# A set of the least weight beside three of the most still gets one of the 30 draws; one that gets none is refused.
SETS = st.lists(st.tuples(st.integers(1, 25), st.floats(0.6, 5)), min_size=1, max_size=4)


@given(sets=SETS, draws=st.integers(30, 80), seed=st.integers(0, 9))
@settings(max_examples=60)
def test_every_epoch_holds_each_sets_share_and_sets_go_on_where_they_stopped(
    sets: list[tuple[int, float]], draws: int, seed: int
) -> None:
    sizes, weights = [size for size, _ in sets], [weight for _, weight in sets]
    order = MixedOrder(sizes, weights, seed=seed, draws=draws)
    assert sum(order.shares) == draws
    for share, weight in zip(order.shares, weights, strict=True):
        assert abs(share - draws * weight / sum(weights)) < 1
    came: list[list[int]] = [[] for _ in sizes]
    for epoch in range(4):
        places = [order.place(int(index)) for index in order.epoch(epoch)]
        assert Counter(at for at, _ in places) == Counter(dict(enumerate(order.shares)))
        for at, query in places:
            came[at].append(query)
    for size, queries in zip(sizes, came, strict=True):
        for start in range(0, len(queries), size):
            part = queries[start : start + size]
            assert len(set(part)) == len(part) and set(part) <= set(range(size))
        assert max(Counter(queries).values()) - min(Counter(queries)[query] for query in range(size)) <= 1


@given(sizes=st.lists(st.integers(5, 20), min_size=2, max_size=3), world=st.integers(1, 4), share=st.integers(1, 3),
       step=st.integers(0, 200))
@settings(max_examples=60)
def test_ranks_add_up_at_any_step_of_a_fresh_order(sizes: list[int], world: int, share: int, step: int) -> None:
    weights = [1.0 + at for at in range(len(sizes))]
    order, batch = MixedOrder(sizes, weights, seed=1, draws=40), world * share
    parts = [MixedOrder(sizes, weights, seed=1, draws=40).step(step, batch, rank=rank, world=world)
             for rank in range(world)]
    assert [index for _, part in parts for index in part] == order.step(step, batch)[1]
    assert {len(part) for _, part in parts} == {share} and {epoch for epoch, _ in parts} == {step // (40 // batch)}
    steps = order.steps_per_epoch(batch)
    taken = [index for at in range(steps) for index in order.step(at, batch)[1]]
    assert taken == order.epoch(0)[: 40 - order.left_out(batch)].tolist()


def test_one_set_is_drawn_from_as_ever() -> None:
    mixed, plain = MixedOrder([10], [3.0], seed=4), QueryOrder(10, seed=4)
    assert [mixed.step(step, 4) for step in range(9)] == [plain.step(step, 4) for step in range(9)]


def test_hand_sized_shares() -> None:
    assert MixedOrder([100, 900], [1, 1], seed=0).shares == [500, 500]
    assert MixedOrder([5, 5, 5], [1, 1, 1], seed=0, draws=10).shares == [4, 3, 3]
    assert MixedOrder([5, 5], [1e308, 1e308], seed=0, draws=10).shares == [5, 5]
    assert MixedOrder([2500, 50], [0.9, 0.1], seed=0, draws=2500).shares == [2250, 250]


def test_seeds_epochs_and_sets_of_one_size_differ() -> None:
    orders = [MixedOrder([12, 12], [1, 1], seed=seed) for seed in (0, 1)]
    drawn = [order.epoch(epoch).tolist() for order in orders for epoch in (0, 1)]
    assert len({tuple(one) for one in drawn}) == 4
    first = [index for index in drawn[0] if index < 12]
    second = [index - 12 for index in drawn[0] if index >= 12]
    assert first != second


@pytest.mark.parametrize(("sizes", "weights", "draws", "said"), [
    ([], [], None, "one weight for each"), ([3], [1, 2], None, "one weight for each"),
    ([3, 3], [1, 0], None, "over 0"), ([3, 3], [1, -1], None, "over 0"), ([3, 3], [1, float("nan")], None, "over 0"),
    ([3, 3], [1, float("inf")], None, "over 0"), ([3, 3], [1000, 1], 6, "set 2 gets none"),
    ([3, 0], [1, 1], 6, "holds no query"), ([3, 3], [1, 1], 0, "at least one"),
    ([3, 3], [1, 1], -1, "at least one"), ([0], [1], None, "at least one")])
def test_what_cannot_be_mixed_is_refused(
    sizes: list[int], weights: list[float], draws: int | None, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        MixedOrder(sizes, weights, seed=0, draws=draws)


def test_batches_that_do_not_fit_are_refused() -> None:
    order = MixedOrder([4, 4], [1, 1], seed=0)
    with pytest.raises(ConfigError, match="multiple of 2"):
        order.step(0, 3, rank=0, world=2)
    with pytest.raises(ConfigError, match="lower the prompts per step"):
        order.step(0, 9)
