"""Frame variants: equal to shuffling the video's own frames, for every family; the same bytes however they came."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from taro.core.errors import ConfigError, TaroError
from taro.models.features import VideoFeatures
from taro.models.load import load_policy
from taro.preprocess.config import PreprocessConfig
from taro.preprocess.job import open_job
from taro.preprocess.run import preprocess
from taro.preprocess.variants import frame_order, frame_stretches
from taro.preprocess.video.decode import DecodeJob, decode_clip
from taro.shards.reader import open_shards
from taro.shards.variants import VariantSettings
from taro.shards.verify import verify
from tests.helpers_models import TINY, tiny_qwen2_5_vl
from tests.helpers_video import write_video
from tests.preprocess.test_run import digests

Make = Callable[..., PreprocessConfig]
VARIANTS = {"count": 3, "dt_s": 0.8}
EDGES = st.lists(st.floats(0, 20), min_size=1, max_size=6).map(lambda edges: sorted(set(edges)))


@given(st.integers(2, 40), EDGES, st.floats(0.05, 5), st.integers(0, 99))
def test_an_order_moves_frames_near_boundaries_alone_and_always_some_of_each(
        T: int, edges: list[float], dt_s: float, variant: int) -> None:
    times_T = np.arange(T) * 0.5
    order = frame_order(times_T, edges, VariantSettings(100, dt_s, 0), key="clip", variant=variant)
    assert sorted(order.tolist()) == list(range(T))
    stretches = frame_stretches(times_T, edges, dt_s=dt_s)
    for stretch in stretches:
        assert sorted(order[stretch].tolist()) == stretch.tolist() and not np.array_equal(order[stretch], stretch)
    inside = np.concatenate(stretches)
    assert len(set(inside.tolist())) == len(inside), "stretches that share a frame are one"
    outside = np.setdiff1d(np.arange(T), inside)
    assert np.array_equal(order[outside], outside)
    for edge in edges:
        assert set(np.flatnonzero(np.abs(times_T - edge) <= dt_s)) <= set(inside.tolist())


def test_a_clip_that_repeats_its_frames_is_still_changed() -> None:
    times_T = np.array([0.0, 0.0, 0.0, 0.0, 1.0, 1.0])
    for variant in range(20):
        order = frame_order(times_T, [0.0], VariantSettings(20, 0.5, 0), key="clip", variant=variant)
        assert not np.array_equal(times_T[order], times_T)
    assert frame_stretches(np.zeros(4), [0.0], dt_s=3.0) == []


def test_draws_depend_on_seed_clip_boundaries_and_variant_alone() -> None:
    def order(seed: int = 0, key: str = "clip", edge: float = 5.0, variant: int = 0) -> list[int]:
        return [int(i) for i in frame_order(np.arange(40) * 0.5, [edge], VariantSettings(2, 3.0, seed), key=key,
                                            variant=variant)]

    assert order() == order()
    assert all(order() != other for other in (order(seed=1), order(key="other"), order(edge=5.1), order(variant=1)))


def levels(family: str, x: VideoFeatures) -> torch.Tensor:
    """[L + 1, S, N, D]: the features and every deepstack level."""
    assert len(x.deepstack_LSND) == {"qwen2_5_vl": 0, "qwen3_vl": 3}[family]
    return torch.stack([x.main_SND, *x.deepstack_LSND])


@pytest.mark.parametrize("family", TINY)
def test_a_stored_variant_over_the_features_is_the_video_with_its_frames_shuffled(
        job: Make, tmp_path: Path, family: str, videos: Path) -> None:
    folder = TINY[family](tmp_path / family)
    (folder / "taro.json").write_text('{"template": "sandbox"}')
    # 56 x 84 px shrink to 8 tokens a clip: one size for the clip, another would fit three patches alone.
    config = job(policy=str(folder), variants=VARIANTS, sampling={"total_tokens": 8, "min_tokens_per_patch": 1})
    assert preprocess(config).complete and verify(config.out).problems == []
    policy, shard_set = load_policy(folder, tower=True), open_shards(config.out)
    source = shard_set.reading(shard_set.encoder, variants=True)
    worst, least = 0.0, float("inf")
    mixed = 0
    for ref in source.queries():
        sample = source.sample(ref)
        frames = decode_clip(DecodeJob(videos / sample.clip.video.path_hint, config.sampling))
        assert sample.variants is not None
        for variant in range(3):
            order_T = np.arange(len(frames.times_s))
            for _, number, patch, first, second in sample.variants.rows_M5.tolist():
                if number == variant:
                    order_T[2 * patch : 2 * patch + 2] = first, second
            assert not np.array_equal(order_T, np.arange(len(order_T)))
            whole = policy.encode(frames.frames_THWC[order_T], frames.times_s, config.sampling,
                                  duration_s=frames.duration_s)
            spliced = sample.variants.spliced(sample.features, variant)
            assert levels(family, spliced).shape == levels(family, whole).shape
            worst = max(worst, float((levels(family, spliced) - levels(family, whole)).abs().max()))
            least = min(least, float((levels(family, spliced) - levels(family, sample.features)).abs().amax((1, 2, 3)
                                                                                                           ).min()))
            patch_S2 = order_T.reshape(-1, 2) // 2
            mixed += int((patch_S2[:, 0] != patch_S2[:, 1]).sum())
    assert worst <= 1e-5 and least > 1e-2, (worst, least)
    assert mixed > 10, "frames mix across patches"


def test_variants_added_to_a_set_or_made_with_it_are_the_same_bytes_after_any_kill(job: Make, tmp_path: Path) -> None:
    reference = digests(preprocess(job(out=tmp_path / "at once", slice_clips=1, variants=VARIANTS)).out)
    assert sum(name.startswith("variants/") for name in reference) == 12
    config = job(slice_clips=1)
    preprocess(config)
    plain = digests(config.out)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(job(slice_clips=1, variants=VARIANTS).model_dump_json())
    command = [sys.executable, "-m", "taro", "preprocess", str(recipe), "--only", "variants"]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while running.poll() is None and len(list((config.out / "variants").rglob("*.json"))) < 1:
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    # The set is whole as it was; verify tells of shards that it does not know.
    assert len(open_shards(config.out).queries()) == 12 and "not in the manifest" in verify(config.out).problems[0]
    assert preprocess(config).made == 0 and open_shards(config.out).variant_settings() is None
    report = preprocess(job(slice_clips=1, variants=VARIANTS), only="variants")
    assert report.complete and 0 < report.made < 6 and digests(config.out) == reference
    assert all(reference[name] == plain[name] for name in plain if name not in ("manifest.json", "README.md"))
    assert preprocess(config).made == 0 and digests(config.out) == reference, "a run without keeps them"
    assert preprocess(job(slice_clips=1, variants=VARIANTS)).made == 0


def test_other_settings_make_them_again_and_a_lost_video_leaves_the_set_whole(
        job: Make, tmp_path: Path, videos: Path) -> None:
    folder = tmp_path / "copies"
    shutil.copytree(videos, folder)
    config = job(videos=folder, variants=VARIANTS)
    preprocess(config)
    before = digests(config.out)
    other = job(videos=folder, variants={**VARIANTS, "seed": 1})
    assert preprocess(other, only="variants").made == 3 and verify(config.out).ok
    after = digests(config.out)
    assert {name for name in before if before[name] != after[name]} == {
        name for name in before if name.startswith("variants/")} | {"manifest.json"}
    shard = next((config.out / "variants").rglob("*000001.tar"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert preprocess(other).made == 1 and digests(config.out) == after, "a damaged shard of variants is made again"
    (folder / "v3.mp4").unlink()
    with pytest.raises(TaroError, match=r"v3\.mp4.*restore these videos"):
        preprocess(config, only="variants")
    assert open_shards(config.out).variant_settings() is None and len(open_shards(config.out).queries()) == 12
    shutil.copy(videos / "v3.mp4", folder)
    assert preprocess(config, only="variants").made == 1 and digests(config.out) == before


def test_they_come_with_another_encoders_features_and_need_a_whole_set(job: Make, tmp_path: Path) -> None:
    config, other = job(), tiny_qwen2_5_vl(tmp_path / "other", seed=7)
    with pytest.raises(ConfigError, match=r"variants\.count"):
        preprocess(config, only="variants")
    preprocess(config, partition=(1, 2))
    with pytest.raises(ConfigError, match="adds to a whole set"):
        preprocess(job(variants=VARIANTS), only="variants")
    preprocess(config)
    with pytest.raises(ConfigError, match=r"adds to a whole set with features of qwen2_5_vl-.*--only features"):
        preprocess(job(policy=str(other), variants=VARIANTS), only="variants")
    assert preprocess(job(policy=str(other), variants=VARIANTS), only="features").made == 3
    assert verify(config.out).problems == []
    found = [open_shards(config.out, encoder=name).variant_settings() for name in open_shards(config.out).encoders]
    assert sorted(map(str, found)) == ["None", "count 3, dt_s 0.8, seed 0"]


def test_a_clip_that_came_back_gets_what_was_added_meanwhile(job: Make, tmp_path: Path, videos: Path) -> None:
    folder, other = tmp_path / "copies", tiny_qwen2_5_vl(tmp_path / "other", seed=7)
    shutil.copytree(videos, folder)
    config = job(videos=folder, max_skipped=1.0)
    second = job(videos=folder, max_skipped=1.0, policy=str(other), variants=VARIANTS)
    open_job(config)  # plans; then a file changes under it
    (folder / "v0.mp4").write_bytes((videos / "v0.mp4").read_bytes() + b"x")
    assert preprocess(config).skipped == 2
    preprocess(second, only="features")
    preprocess(job(videos=folder, max_skipped=1.0, variants=VARIANTS), only="variants")
    assert verify(config.out).problems == []
    shutil.copy(videos / "v0.mp4", folder)
    assert preprocess(config, retry="transient").made == 1
    assert any("different records" in problem for problem in verify(config.out).problems)
    back = open_shards(config.out)
    assert {back.reading(name).variant_settings() for name in back.encoders} == {None}, "none without the clip's own"
    assert preprocess(second, only="features").made == 1
    assert preprocess(job(videos=folder, variants=VARIANTS), only="variants").made == 1
    assert verify(config.out).problems == []


def test_variants_that_fit_no_record_are_refused_with_what_to_lower(job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taro.preprocess.variants.MAX_MEMBER_BYTES", 9000)
    with pytest.raises(ConfigError, match=r"v\d\.mp4: .* more than the 4,500 allowed; lower variants\.count"):
        preprocess(job(variants=VARIANTS))
    assert not (job().out / "manifest.json").exists()


def test_a_clip_of_one_frame_has_none_and_that_is_no_fault(job: Make, videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "still"
    folder.mkdir()
    write_video(folder / "still.mp4", 1)
    write_video(folder / "moving.mp4", 30)
    rows: list[dict[str, Any]] = [{"video": name, "query": "q", "windows": [[0, 0.1]], "qid": name}
                                  for name in ("still.mp4", "moving.mp4")]
    config = job(rows, videos=folder, variants=VARIANTS)
    assert preprocess(config).complete and verify(config.out).problems == []
    source = open_shards(config.out).reading(open_shards(config.out).encoder, variants=True)
    assert {ref.query.id: source.sample(ref).variants is None for ref in source.queries()} == {
        "still.mp4": True, "moving.mp4": False}
