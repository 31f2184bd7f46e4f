"""The order of a stream: a permutation in lanes of equal length, by shards, no query far ahead of its place."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from taro.core.draws import rng
from taro.shards.lanes import LaneOrder, through_buffer

SHARDS = st.lists(st.integers(1, 12), min_size=1, max_size=8).map(
    lambda sizes: [shard for shard, size in enumerate(sizes) for _ in range(size)])


@given(shards=SHARDS, lanes=st.integers(1, 6), buffer=st.integers(1, 40), seed=st.integers(0, 3))
@settings(max_examples=80)
def test_an_epoch_is_a_permutation_read_lane_by_lane(shards: list[int], lanes: int, buffer: int, seed: int) -> None:
    shards = rng("mixed up", seed).permutation(shards).tolist()  # queries are in order of keys, not of shards
    order = LaneOrder(shards, lanes=lanes, buffer=buffer, seed=seed)
    again = LaneOrder(shards, lanes=lanes, buffer=buffer, seed=seed)
    for epoch in (0, 1):
        drawn = order.epoch(epoch)
        assert sorted(drawn.tolist()) == list(range(len(shards))) and (drawn == again.epoch(epoch)).all()
        stream: list[int] = []
        for lane in range(lanes + 1):
            queries, places = order.reading(epoch, lane)
            assert (drawn[places] == queries).all() and {order.lane_of(place) for place in places.tolist()} <= {lane}
            assert len(queries) == (len(shards) // lanes if lane < lanes else len(shards) % lanes)
            if lane < lanes:  # a place in the lane is a step
                early = np.arange(len(queries)) - places // lanes
                assert (early < order.room).all()
            stream += queries.tolist()
        came = [shards[query] for query in stream]
        assert sum(one != other for one, other in pairwise(came)) == len(set(shards)) - 1
        for shard in set(shards):  # inside a shard as its bytes lie
            inside = [query for query in stream if shards[query] == shard]
            assert inside == sorted(inside)


def test_a_buffer_of_one_changes_nothing_and_one_for_all_shuffles_all() -> None:
    assert through_buffer(9, 1, rng("a")) == list(range(9)) and through_buffer(0, 4, rng("a")) == []
    drawn = [tuple(through_buffer(4, 4, rng("all", number))) for number in range(2000)]
    counts = np.unique(np.array(drawn), axis=0, return_counts=True)[1]
    assert len(counts) == 24 and counts.min() > 50 and counts.max() < 125  # 83 each in the mean, spread 9


def test_how_long_a_query_waits_in_a_buffer() -> None:
    """With probability (1 - 1 / room)^t for t steps or more: the mean wait is `room` steps, none in 20 times that."""
    order = through_buffer(60_000, 50, rng("waits"))
    at = np.empty(60_000)
    at[order] = np.arange(60_000)
    late = at - np.arange(60_000)  # of items that came while the buffer was full, none of the last that drained
    assert late.min() == -49
    waits = late[1000:-2000] + 50
    assert 47 < waits.mean() < 53 and waits.max() < 20 * 50
    for t in (25, 100):
        assert abs((waits > t).mean() - (1 - 1 / 50) ** t) < 0.01


def test_seeds_and_epochs_differ_and_shards_come_in_another_order() -> None:
    shards = np.repeat(np.arange(10), 5)
    orders = [LaneOrder(shards, lanes=1, buffer=1, seed=seed) for seed in (0, 1)]
    firsts = {tuple(shards[order.epoch(epoch)][::5].tolist()) for order in orders for epoch in (0, 1)}
    assert len(firsts) == 4
