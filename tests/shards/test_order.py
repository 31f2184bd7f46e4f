"""The order of queries: once an epoch, ranks add up to the whole, a resume needs the number of the step alone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taro.core.errors import ConfigError
from taro.shards.order import QueryOrder


@given(n=st.integers(1, 60), seed=st.integers(0, 9), world=st.integers(1, 4), share=st.integers(1, 5))
@settings(max_examples=60)
def test_ranks_add_up_and_an_epoch_takes_no_query_twice(n: int, seed: int, world: int, share: int) -> None:
    batch, order = world * share, QueryOrder(n, seed=seed)
    if batch > n:
        with pytest.raises(ConfigError, match=r"lower the prompts per step"):
            order.step(0, batch)
        return
    steps = order.steps_per_epoch(batch)
    for epoch in (0, 1):
        taken: list[int] = []
        for step in range(epoch * steps, (epoch + 1) * steps):
            parts = [QueryOrder(n, seed=seed).step(step, batch, rank=rank, world=world) for rank in range(world)]
            assert {part[0] for part in parts} == {epoch} and {len(part[1]) for part in parts} == {share}
            joined = [index for part in parts for index in part[1]]
            assert joined == order.step(step, batch)[1]
            taken += joined
        assert len(set(taken)) == len(taken) == n - order.left_out(batch)


def test_the_paper_takes_468_steps() -> None:
    order = QueryOrder(2500, seed=0)
    assert (order.steps_per_epoch(16) * 3, order.left_out(16)) == (468, 4)
    assert order.step(467, 16)[0] == 2 and order.step(468, 16)[0] == 3


def test_epochs_and_seeds_differ() -> None:
    orders = [tuple(QueryOrder(30, seed=seed).epoch(epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4


def test_batches_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of 2"):
        QueryOrder(10, seed=0).step(0, 3, rank=0, world=2)
    with pytest.raises(ConfigError, match="holds no query"):
        QueryOrder(0, seed=0)
