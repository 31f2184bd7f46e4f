"""`reward.disruption=frame`, on real videos and both families: variants reach the drop, and what is missing is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from taro.core.errors import ConfigError
from taro.models.asking import asking_of
from taro.models.load import load_policy
from taro.models.policy import Policy
from taro.preprocess.config import PreprocessConfig
from taro.preprocess.run import preprocess
from taro.shards.reader import ShardSet, open_shards
from taro.train.config import RewardConfig, RolloutConfig, TrainConfig
from taro.train.disruption import Disruption
from taro.train.open import open_run
from taro.train.rollouts import RolloutBatch, StepName, disrupt, roll_out, score_batch
from taro.train.sensitivity.measure import conditions, measure_sensitivity
from taro.train.sensitivity.report import sensitivity_table, summarise
from taro.train.sets import open_encoded_shards, with_variants
from tests.helpers_models import TINY
from tests.helpers_video import write_video

pytest.importorskip("av")


def stage_one(folder: Path, policy: Path, **settings: object) -> PreprocessConfig:
    """Three videos of 6 s with one query each, and one of a single frame."""
    videos = folder / "videos"
    videos.mkdir(parents=True, exist_ok=True)
    names = ["a.mp4", "b.mp4", "c.mp4", "still.mp4"]
    for number, name in enumerate(names):
        if not (videos / name).exists():
            write_video(videos / name, 1 if name == "still.mp4" else 60 + number, size=(56, 84))
    (folder / "annotations.jsonl").write_text("".join(
        json.dumps({"video": name, "query": "go", "windows": [[0.0, 0.1] if name == "still.mp4" else [1.0, 4.0]],
                    "qid": name}) + "\n" for name in names))
    return PreprocessConfig.model_validate({
        "videos": videos, "annotations": folder / "annotations.jsonl", "dataset": "jsonl", "out": folder / "shards",
        "policy": str(policy), "caption": {"method": "none"}, "segment": {"method": "uniform"}, "device": "cpu",
        "workers": 1, "threads": 1, "paths": {"count": 0}, "variants": {"count": 4, "dt_s": 0.8}, **settings})


def settings(folder: Path, policy: Path, kind: str, **reward: object) -> TrainConfig:
    return TrainConfig.model_validate({
        "policy": str(policy), "shards": str(folder / "shards"), "out": str(folder / "run"), "loss": {"kl": 0.0},
        "curriculum": {"schedule": "off"}, "length": {"unit": "steps", "amount": 1},
        "rollout": {"prompts": 4, "group": 2, "max_new_tokens": 12},
        "reward": {"disruption": kind, "dt_s": 0.8, "drop_over": "response", **reward}})


def drop(batch: RolloutBatch, policy: Policy, reward: RewardConfig) -> tuple[np.ndarray, np.ndarray]:
    scores = score_batch(policy, None, batch, reward)
    gap_BGR = (scores.old_BGR - scores.disrupted_BGR).masked_fill(~batch.mask_BGR, 0.0)
    return gap_BGR.sum(-1).numpy(), scores.disrupted_B


@pytest.mark.parametrize("family", TINY)
def test_the_drop_of_frame_is_that_of_spliced_variants_and_not_of_patches(tmp_path: Path, family: str) -> None:
    folder = TINY[family](tmp_path / "policy")
    (folder / "taro.json").write_text('{"template": "sandbox"}')
    config = stage_one(tmp_path, folder)
    preprocess(config)
    policy = load_policy(folder)
    plain = open_encoded_shards(config.out, policy.folder)
    shard_set, made = with_variants(plain, dt_s=0.8)
    assert made.count == 4 and isinstance(shard_set, ShardSet)
    frame, patch = (settings(tmp_path, folder, kind) for kind in ("frame", "patch"))
    samples = [shard_set.sample(ref) for ref in shard_set.queries()]
    asking, at = asking_of(folder), StepName(0, 0, 0)
    batch = roll_out(policy, asking, samples, frame.rollout, at)
    (of_frame, changed_B), (of_patch, _) = (drop(batch, policy, one.reward) for one in (frame, patch))
    still = [sample.clip.video.path_hint == "still.mp4" for sample in samples]
    assert changed_B.tolist() == [not one for one in still], "a clip without a variant is counted, not disrupted"
    moved = ~np.array(still)
    assert (np.abs(of_frame[moved]) > 1e-5).all() and (np.abs(of_frame - of_patch)[moved] > 1e-5).all()
    assert (of_frame[~moved] == 0).all()
    disruption = Disruption("frame", 0.8)
    prompts, _ = disrupt(batch, disruption)
    for sample, old, new in zip(samples, batch.prompts, prompts, strict=True):
        assert torch.equal(old.positions_3P, new.positions_3P) and torch.equal(old.ids_P, new.ids_P)
        found = [sample.variants is not None and torch.equal(
            sample.variants.spliced(sample.features, k).main_SND, new.features.main_SND) for k in range(4)]
        assert any(found) == (sample.variants is not None), "one of the four, the same for the group"
    without = [plain.sample(ref) for ref in plain.queries()]
    assert not disrupt(roll_out(policy, asking, without, frame.rollout, at), disruption)[1].any()
    asked = conditions(["patch", "frame"], [0.8, 3.0], ["both", "start"], frame_s=made.dt_s)
    summary = summarise(measure_sensitivity(policy, shard_set, asking, asked, over="response",
                                            rollout=RolloutConfig(group=2, max_new_tokens=12)))
    assert [(one["radius_s"], one["boundary"]) for one in summary["conditions"] if one["kind"] == "frame"] == [
        (0.8, "both")]
    (pair,) = (one for one in summary["rank_correlations"] if set(one["kinds"]) == {"patch", "frame"})
    assert pair["rollouts"] == 6 and -1 <= pair["rho"] <= 1 and "patch frame" in sensitivity_table(summary)


def test_the_variant_is_a_draw_of_seed_epoch_and_sample(tmp_path: Path) -> None:
    folder = TINY["qwen2_5_vl"](tmp_path / "policy")
    config = stage_one(tmp_path, folder)
    preprocess(config)
    shard_set = open_shards(config.out)
    sample = shard_set.reading(shard_set.encoder, variants=True).sample(shard_set.queries()[0])

    def which(seed: int, epoch: int, name: str) -> int:
        found = Disruption("frame").apply(sample.features, [], variants=sample.variants, seed=seed, epoch=epoch,
                                          sample=name)
        assert found is not None and sample.variants is not None
        return next(k for k in range(4) if torch.equal(sample.variants.spliced(sample.features, k).main_SND,
                                                       found.main_SND))

    assert which(3, 1, "a") == which(3, 1, "a")
    for draws in ([which(seed, 0, "a") for seed in range(24)], [which(0, epoch, "a") for epoch in range(24)],
                  [which(0, 0, str(name)) for name in range(24)]):
        assert set(draws) == {0, 1, 2, 3}


def test_a_run_without_the_variants_it_needs_names_the_command(tmp_path: Path) -> None:
    folder = TINY["qwen2_5_vl"](tmp_path / "policy")
    (folder / "taro.json").write_text('{"template": "sandbox"}')
    preprocess(stage_one(tmp_path, folder, variants={"count": 0}))
    with pytest.raises(ConfigError, match=r"has none; make them with `taro preprocess .* --only variants .*dt_s=0\.8`"):
        open_run(settings(tmp_path, folder, "frame"), resume=False)
    assert not (tmp_path / "run").exists()
    shutil.copytree(tmp_path / "shards", tmp_path / "plain")
    preprocess(stage_one(tmp_path, folder), only="variants")
    with pytest.raises(ConfigError, match=r"within 0\.8 s, reward\.dt_s is 3; set reward\.dt_s=0\.8, or make others"):
        open_run(settings(tmp_path, folder, "frame", dt_s=3.0), resume=False)
    run = open_run(settings(tmp_path, folder, "frame"), resume=False)
    run.close()
    patch = open_run(settings(tmp_path, folder, "patch").model_copy(update={"out": tmp_path / "patch"}), resume=False)
    patch.close()
    assert run.state.data_sha256 != patch.state.data_sha256, "other variants are other data"

    def two(weight: float) -> TrainConfig:
        asked = settings(tmp_path, folder, "frame").model_dump(mode="json")
        sets = [{"path": asked["shards"]}, {"path": str(tmp_path / "plain"), "weight": weight}]
        return TrainConfig.model_validate({**asked, "shards": sets, "out": str(tmp_path / "two")})

    with pytest.raises(ConfigError, match="plain: the disruption frame needs frame variants"):
        open_run(two(1.0), resume=False)
    open_run(two(0.0), resume=False).close()  # a set for validation alone needs none
