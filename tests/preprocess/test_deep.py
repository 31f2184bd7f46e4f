"""`verify --deep`: what the videos and the model say of a set whose digests are all right.

Real videos, a tiny model of real architecture, sets made by the real job and then changed and sealed again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from taro.cli.app import app
from taro.core.errors import ConfigError, ShardError
from taro.models.features import VideoFeatures
from taro.preprocess.config import PreprocessConfig
from taro.preprocess.deep import FEATURES_TOLERANCE, deep_check, drawn_keys
from taro.preprocess.run import preprocess
from taro.preprocess.sheets import contact_sheet
from taro.shards.index_build import write_index
from taro.shards.manifest import read_entries, write_manifest
from taro.shards.reader import open_shards
from taro.shards.verify import verify
from taro.shards.writer import SliceWriter
from tests.helpers_models import tiny_qwen2_5_vl
from tests.helpers_video import write_video

CLIPS = 6


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path, videos: Path) -> Path:
    """A set of six videos, the last of them cut, with frame variants."""
    root = tmp_path_factory.mktemp("deep")
    lines = [{"video": f"v{number}.mp4", "query": "q", "windows": [[0.5, 1.5]], "qid": str(number)}
             | ({"clip": [0.4, 2.6]} if number == CLIPS - 1 else {}) for number in range(CLIPS)]
    (root / "annotations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = PreprocessConfig.model_validate({
        "videos": videos, "annotations": root / "annotations.jsonl", "dataset": "jsonl", "out": root / "set",
        "policy": str(tiny_policy), "caption": {"method": "none"}, "segment": {"method": "uniform"}, "slice_clips": 4,
        "clip_model": None, "device": "cpu", "workers": 1, "threads": 1, "variants": {"count": 2}})
    assert preprocess(config).written == CLIPS
    return root / "set"


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """A copy of the set, to change."""
    return Path(shutil.copytree(made, tmp_path / "set"))


def resealed(root: Path, key: str, *, features: Callable[[VideoFeatures], VideoFeatures] = lambda x: x,
             sheet: Callable[[bytes], bytes] = lambda x: x, **facts: Any) -> None:
    """Changes one clip of a set and writes every digest anew, so that `verify` finds nothing."""
    source = open_shards(root)
    name = source.encoder
    kinds = [kind for kind in source.manifest.kinds if source.listed(kind, key)]
    index = source._find("paths", key)[0]
    keys = [one for one in source.keys if source._find("paths", one)[0] == index]
    records = [(source.clip(one), source.thumbnail(one), source.features(one), source.variants(one)) for one in keys]
    for kind in kinds:
        for path in (root / kind).glob(f"*-{index:06d}.*"):
            path.unlink()
    with SliceWriter(root, index, kinds=kinds) as writer:
        for clip, held, x, variants in records:
            if clip.key == key:
                assert held is not None
                clip, held, x = clip.model_copy(update=facts), sheet(held), features(x)
            writer.add_clip(clip, held, {name: x}, {}, {name: variants})
        writer.commit()
    write_manifest(root, source.manifest.model_copy(update={"shards": read_entries(root),
                                                                 "index": write_index(root)}))
    assert verify(root).ok, verify(root).problems


def changed(by: float) -> Callable[[VideoFeatures], VideoFeatures]:
    """One number of the features moved by a share of the largest."""
    def change(x: VideoFeatures) -> VideoFeatures:
        main = x.main_SND.clone()
        main[1, 0, 3] += by * float(main.abs().max())
        return VideoFeatures(main, x.times_S, x.grid_thw, x.seconds_per_patch, x.deepstack_LSND)
    return change


def test_a_set_is_what_its_videos_say(made: Path, videos: Path, tiny_policy: Path) -> None:
    heard: list[tuple[int, int]] = []
    found = deep_check(made, videos, one_in=1, policy=str(tiny_policy), progress=lambda *at: heard.append(at))
    name = open_shards(made).encoder
    assert (found.equal, found.near, found.different, found.uncompared) == (CLIPS, {}, {}, {}) and found.ok(exact=True)
    assert found.parts == ["times", "frames", "contact sheet", f"features/{name}", f"variants/{name}"]
    assert heard == [(number, CLIPS) for number in range(1, CLIPS + 1)] and found.versions == {}


def test_an_altered_tensor_with_right_digests_is_seen_by_deep_alone(copy: Path, videos: Path,
                                                                    tiny_policy: Path) -> None:
    key = open_shards(copy).keys[2]
    resealed(copy, key, features=changed(0.01))
    found = deep_check(copy, videos, one_in=1, policy=str(tiny_policy), workers=1)
    name = open_shards(copy).encoder
    assert list(found.different) == [key] and found.equal == CLIPS - 1 and not found.ok()
    assert found.different[key].startswith(f"features/{name}: up to 0.0")
    assert found.largest[f"features/{name}"] == pytest.approx(0.01, rel=0.1)
    command = ["shards", "verify", str(copy), "--deep", "1", "--videos", str(videos), "--policy", str(tiny_policy),
               "--workers", "1"]  # fmt: skip
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1 and f"different: {key}: features/" in result.output
    assert "6 of 6 clips drawn: 5 equal, 0 near, 1 different, 0 not compared" in result.output
    plain = CliRunner().invoke(app, command[:3])
    assert plain.exit_code == 0 and "all right" in plain.output


def test_a_small_difference_is_near_unless_the_same_bits_are_expected(copy: Path, videos: Path,
                                                                      tiny_policy: Path) -> None:
    key = open_shards(copy).keys[0]
    resealed(copy, key, features=changed(FEATURES_TOLERANCE["float32"] / 4))
    command = ["shards", "verify", str(copy), "--deep", "1", "--videos", str(videos), "--policy", str(tiny_policy),
               "--workers", "1", "--json"]  # fmt: skip
    result = CliRunner().invoke(app, command)
    deep = json.loads(result.output)["deep"]
    assert result.exit_code == 0 and list(deep["near"]) == [key] and deep["compared"] == CLIPS
    assert CliRunner().invoke(app, [*command, "--exact"]).exit_code == 1


def test_times_digests_and_sheets_are_compared(copy: Path, videos: Path) -> None:
    shard_set = open_shards(copy)
    a, b, c, d, e = shard_set.keys[:5]
    video = shard_set.clip(b).video
    resealed(copy, b, video=video.model_copy(update={"frames_sha256": "0" * 64}))
    frames = len(shard_set.clip(c).times_s)
    resealed(copy, c, sheet=lambda _: contact_sheet(np.full((frames, 56, 84, 3), 7, np.uint8)))
    resealed(copy, d, sheet=lambda data: data[:3] + b"not a picture")
    noisy = np.random.default_rng(0).integers(0, 255, (2, 56, 84, 3)).astype(np.uint8)
    resealed(copy, e, sheet=lambda _: contact_sheet(noisy))
    found = deep_check(copy, videos, one_in=1, workers=1)
    assert found.equal == 2 and set(found.different) == {b, c, d, e} and a not in found.different
    assert "pixels have another digest" in found.different[b]
    assert "of 255 apart" in found.different[c] and "not a JPEG that can be read" in found.different[d]
    assert "made again" in found.different[e], "another size is not decoded"
    assert found.left_out == [shard_set.encoder]
    clip = shard_set.clip(a)
    moved = [time_s + 0.25 * (index == 1) for index, time_s in enumerate(clip.times_s)]
    resealed(copy, a, times_s=moved, features=lambda x: VideoFeatures(
        x.main_SND, np.array(moved).reshape(-1, 2).mean(1), x.grid_thw, x.seconds_per_patch))
    assert "up to 0.25 s apart" in deep_check(copy, videos, one_in=1, workers=1).different[a]


def test_videos_that_are_not_there_are_told_and_nothing_compared_is_no_success(made: Path, videos: Path,
                                                                               tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    (folder / "deep" / "er").mkdir(parents=True)
    shutil.copy(videos / "v0.mp4", folder / "deep" / "er")  # in another folder than when the set was made
    write_video(folder / "v0.mp4", 12, size=(56, 84))  # of the same name, another file
    write_video(folder / "v1.mp4", 12, size=(56, 84))
    (folder / "v2.mp4").write_bytes(b"not a video")
    keys = {name: key for key in open_shards(made).keys for name in [open_shards(made).clip(key).video.path_hint]}
    found = deep_check(made, folder, one_in=1, workers=1)
    assert found.equal == 1 and not found.different and found.ok()
    assert "another file" in found.uncompared[keys["v1.mp4"]] and "no such file" in found.uncompared[keys["v3.mp4"]]
    assert keys["v2.mp4"] in found.uncompared and keys["v0.mp4"] not in found.uncompared
    (tmp_path / "empty").mkdir()
    command = ["shards", "verify", str(made), "--deep", "1", "--videos", str(tmp_path / "empty")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1 and "6 not compared" in result.output
    assert CliRunner().invoke(app, command[:5]).exit_code == 2, "--videos goes with --deep"
    with pytest.raises(ConfigError, match="no such folder"):
        deep_check(made, tmp_path / "nowhere", one_in=1)


def test_one_in_n_is_drawn_by_name(made: Path, videos: Path) -> None:
    keys = open_shards(made).keys
    draws = [drawn_keys(keys, one_in=3, seed=seed) for seed in (0, 0, 1, 2, 3)]
    assert draws[0] == draws[1] and len({tuple(one) for one in draws}) > 1
    assert all(len(set(one)) == 2 and set(one) <= set(keys) for one in draws)
    assert len(drawn_keys(keys, one_in=1000, seed=0)) == 1 and drawn_keys([], one_in=1, seed=0) == []
    found = deep_check(made, videos, one_in=1000, workers=1)
    assert (found.drawn, found.clips, found.equal) == (1, CLIPS, 1)


def test_another_policy_is_refused_and_a_damaged_set_not_begun(copy: Path, videos: Path, tmp_path: Path) -> None:
    other = tiny_qwen2_5_vl(tmp_path / "other", seed=1)
    with pytest.raises(ShardError, match="not made by this policy's vision tower"):
        deep_check(copy, videos, one_in=1, policy=str(other))
    shard = next((copy / "paths").glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:-512])
    result = CliRunner().invoke(app, ["shards", "verify", str(copy), "--deep", "1", "--videos", str(videos)])
    assert result.exit_code == 1 and "not begun" in result.output
