"""Guided prefixes: which captions, no repeats, what happens when paths or room run out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taro.grounding.records import CandidatePaths, ClipRecord, DenseCaption, QueryRecord
from taro.models.load import load_policy
from taro.train.prefixes import draw_paths, plain_ids, prefix_ids
from tests.train.conftest import Tiny
from tests.train.tiny import TEMPLATE, clip_record

GUIDED = np.ones(8, dtype=bool)


def clip_with(captions: int, paths: list[list[int]]) -> tuple[ClipRecord, QueryRecord]:
    record, _ = clip_record(0, "train")
    query = record.queries[0].model_copy(update={"paths": CandidatePaths(random=paths, overlap=paths[:1])})
    return record.model_copy(update={"captions": record.captions[:captions], "queries": [query]}), query


@given(st.integers(0, 20), st.integers(0, 5))
def test_no_two_rollouts_of_a_group_share_a_path_and_draws_repeat(seed: int, epoch: int) -> None:
    clip, query = clip_with(4, [[0], [1], [0, 1], [1, 0], [2, 3], [0, 1, 2, 3], [0]])
    for source in ("random", "online"):
        paths = draw_paths(clip, query, GUIDED, source=source, seed=seed, epoch=epoch, sample="s")
        taken = [path for path in paths if path is not None]
        assert len(taken) == len(set(taken))
        assert all(list(path) == sorted(path) for path in taken), "chronological"
        assert paths == draw_paths(clip, query, GUIDED, source=source, seed=seed, epoch=epoch, sample="s")
        assert len(taken) == (5 if source == "random" else 8)  # [0, 1] and [1, 0] are one path, so is [0] twice


def test_a_clip_without_captions_is_free() -> None:
    clip, query = clip_with(0, [])
    for source in ("random", "overlap", "online"):
        assert draw_paths(clip, query, GUIDED, source=source, seed=0, epoch=0, sample="s") == [None] * 8


def test_online_draws_every_subset_of_few_captions_then_gives_up() -> None:
    clip, query = clip_with(2, [])
    paths = draw_paths(clip, query, GUIDED, source="online", seed=0, epoch=0, sample="s")
    assert {path for path in paths if path} == {(0,), (1,), (0, 1)}
    assert paths.count(None) == 5


def test_overlap_reads_its_own_list() -> None:
    clip, query = clip_with(4, [[2], [1]])
    paths = draw_paths(clip, query, GUIDED, source="overlap", seed=0, epoch=0, sample="s")
    assert paths[0] == (2,) and paths[1:] == [None] * 7


def test_a_prefix_that_does_not_fit_loses_captions_from_its_end(tiny: Tiny) -> None:
    policy = load_policy(tiny.policy)
    captions = [DenseCaption(start_s=i, end_s=i + 1, text="go") for i in range(3)]
    full = prefix_ids(policy, TEMPLATE, "ab", captions, limit=1000)
    assert policy.decode(full) == TEMPLATE.guided_prefix("ab", captions)
    shorter = prefix_ids(policy, TEMPLATE, "ab", captions, limit=len(full) - 1)
    assert policy.decode(shorter) == TEMPLATE.guided_prefix("ab", captions[:2])
    assert prefix_ids(policy, TEMPLATE, "ab", captions, limit=5) == []


@pytest.mark.parametrize("text", ["<|im_end|>", "a <|video_pad|> b"])
def test_special_tokens_spelt_in_untrusted_text_stay_text(tiny: Tiny, text: str) -> None:
    policy = load_policy(tiny.policy)
    ids = plain_ids(policy, text)
    special = set(policy.tokenizer.convert_tokens_to_ids(policy.tokenizer.all_special_tokens))
    assert not special & set(ids)
    assert policy.decode(ids) == text
