"""Real files (TARO_REAL_DATA): what is known of each must come out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from taro.core.errors import VideoError
from taro.models.features import FrameSampling
from taro.preprocess.config import PreprocessConfig
from taro.preprocess.run import preprocess
from taro.preprocess.video.decode import DecodeJob, Decoder, decode_clip
from taro.shards.manifest import read_skipped
from taro.shards.reader import open_shards
from tests.helpers_plain_decode import cuts, decode_from_start, verdict

SAMPLING = FrameSampling()

KNOWN = {
    "3MSZA.mp4": (930, 31.0, 62),
    "nasa_13013.mp4": (390, 13.013, 26),
    "test_clip_10s.mp4": (240, 10.0, 20),
    "edit_list.mp4": (134, 5.36, 10),  # 179 packets, 45 of them hidden by the edit list
    "rotated_90.mov": (3, 0.1, 4),
    "h265_video.mp4": (10, 1.0, 4),
    "av1_video.mkv": (125, 5.0, 10),
    "unordered.mov": (4, 0.125, 4),
    "flipping_a_pancake.mkv": (310, 10.333, 20),
}


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_what_is_known_of_a_real_file(real_data: Path, name: str) -> None:
    got = decode_clip(DecodeJob(real_data / "videos" / name, SAMPLING))
    assert (got.facts.frames, pytest.approx(got.duration_s), len(got.times_s)) == KNOWN[name]


def test_every_real_file_decodes_as_from_the_start(real_data: Path) -> None:
    """Frames byte by byte and times, whole and cut; `python benchmarks/decode.py --check FOLDER` tries more cuts."""
    decoders: tuple[Decoder, ...] = ("auto", "decord")
    used = set()
    for path in sorted((real_data / "videos").iterdir()):
        plain = decode_from_start(path)
        for decoder in decoders:
            found = [verdict(path, plain, decoder, cut) for cut in (None, cuts(plain)[2])]
            assert not any(word.startswith("WRONG") for word in found), (path.name, decoder, found)
            assert (found[0] == "refused: corrupt") == (path.name == "corrupted.mp4") == plain.broken
            used.update(found if decoder == "decord" else ())
    assert used == {"pyav", "decord", "refused: corrupt"}


def test_the_last_sample_of_a_charades_video(real_data: Path) -> None:
    got = decode_clip(DecodeJob(real_data / "videos" / "3MSZA.mp4", SAMPLING))
    assert round(float(got.times_s[-1]), 2) == 30.97


def test_a_rotated_file_stands_upright(real_data: Path) -> None:
    got = decode_clip(DecodeJob(real_data / "videos" / "rotated_90.mov", SAMPLING))
    assert got.frames_THWC.shape[1:3] == (568, 320)


@pytest.mark.parametrize("decoder", ["auto", "decord"])
def test_a_corrupted_file_says_where(real_data: Path, decoder: Decoder) -> None:
    with pytest.raises(VideoError, match="frame 28 of 50") as caught:
        decode_clip(DecodeJob(real_data / "videos" / "corrupted.mp4", SAMPLING, decoder=decoder))
    assert caught.value.reason == "corrupt"


def test_charades_with_a_corrupted_and_a_missing_video_beside_it(
    real_data: Path, job: Callable[..., PreprocessConfig], tmp_path: Path
) -> None:
    text = (real_data / "annotations" / "charades_sta_test.txt").read_text().splitlines()
    annotations = tmp_path / "charades.txt"
    annotations.write_text("\n".join([*(line for line in text if line.startswith("3MSZA ")),
                                      "corrupted 0.0 2.0##person opens a door.", "gone 0.0 2.0##person sits."]))
    small = {"total_tokens": 256}
    config = job([], videos=real_data / "videos", annotations=annotations, dataset="charades-sta", max_skipped=0.5,
                 sampling=small, caption={"method": "none"})  # fmt: skip
    report = preprocess(config)
    assert (report.inputs, report.written, report.skipped, report.complete) == (6, 4, 2, True)
    assert {row["video"]: row["reason"] for row in read_skipped(config.out)} == {
        "corrupted": "corrupt", "gone": "missing"}  # fmt: skip
    found = open_shards(config.out)
    (key,) = found.keys
    assert len(found.clip(key).queries) == 4 and found.clip(key).video.path_hint == "3MSZA.mp4"
    assert found.features(key).tokens <= 256 + 31 * 4
    assert json.loads(found.manifest.model_dump_json())["counts"]["skipped"] == 2
