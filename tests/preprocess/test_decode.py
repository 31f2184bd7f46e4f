"""Sampled decoding equals decoding everything: pixels, true times, and a reason for every file that is none."""

from __future__ import annotations

import hashlib
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from taro.core.errors import VideoError
from taro.grounding.moment import Moment
from taro.models.families.pixels import resize_frames
from taro.models.features import FrameSampling, sample_frames
from taro.preprocess.video.decode import MAX_VIEW_PIXELS, DecodeJob, Decoder, decode_clip, most_frame_bytes
from taro.preprocess.video.inspect import inspect_video
from tests.helpers_plain_decode import decode_from_start
from tests.helpers_video import numbered_frame, read_number, rotate_clockwise, write_audio, write_video

SAMPLING = FrameSampling()


def assert_equals_plain(path: Path, job: DecodeJob, picked: np.ndarray, start_s: float = 0.0) -> None:
    plain = decode_from_start(path)
    got = decode_clip(job)
    assert np.array_equal(got.frames_THWC, np.stack([plain.frames[i] for i in picked]))
    assert np.allclose(got.times_s, [float(plain.times[i]) - start_s for i in picked], atol=1e-9)


@pytest.mark.parametrize(
    ("codec", "pixel_format", "size", "options"),
    [
        ("libx264", "yuv420p", (48, 80), {"bf": "3", "g": "12", "crf": "12"}),
        ("libx264", "yuv444p", (45, 77), {"bf": "2", "crf": "12"}),
        ("mpeg4", "yuv420p", (48, 80), {"bf": "2", "g": "10"}),
        ("libx264", "yuv420p10le", (48, 80), {"crf": "12"}),
    ],
)
def test_sampled_frames_are_those_of_a_plain_decode(
    tmp_path: Path, codec: str, pixel_format: str, size: tuple[int, int], options: dict[str, str]
) -> None:
    path = write_video(tmp_path / "v.mp4", 73, codec=codec, pixel_format=pixel_format, size=size, options=options)
    picked = sample_frames(73, 7.3, SAMPLING)
    assert_equals_plain(path, DecodeJob(path, SAMPLING), picked)
    assert [read_number(f) for f in decode_clip(DecodeJob(path, SAMPLING)).frames_THWC] == picked.tolist()


def test_variable_rate_keeps_true_times(tmp_path: Path) -> None:
    ticks = [0, 1, 2, 3, 10, 11, 30, 31, 32, 50, 51, 60]
    path = write_video(tmp_path / "v.mkv", len(ticks), ticks=ticks)
    got = decode_clip(DecodeJob(path, SAMPLING))
    seen = [read_number(frame) for frame in got.frames_THWC]
    assert np.allclose(got.times_s, [ticks[number] / 10 for number in seen], atol=1e-3)
    assert seen[0] == 0 and seen[-1] == len(ticks) - 1


def test_ten_seconds_are_ten_seconds(tmp_path: Path) -> None:
    # 24 fps in ticks of 1/12288 s: a rounding error of 2e-15 s in the length would cost two of twenty frames.
    path = write_video(tmp_path / "v.mp4", 240, fps=24)
    got = decode_clip(DecodeJob(path, SAMPLING))
    assert got.duration_s == 10.0 and len(got.frames_THWC) == 20


@pytest.mark.parametrize(("start_s", "end_s"), [(1.05, 4.0), (0.0, 2.0), (15.0, 18.5), (5.0, 99.0)])
def test_a_cut_shows_the_frames_inside_it(tmp_path: Path, start_s: float, end_s: float) -> None:
    path = write_video(tmp_path / "v.mp4", 200)  # 20 s; the cut at 15 s is reached by a seek
    got = decode_clip(DecodeJob(path, SAMPLING, Moment(start_s, end_s)))
    first, last = int(np.ceil(start_s * 10 - 1e-6)), min(int(np.ceil(end_s * 10 - 1e-6)), 200)
    picked = sample_frames(last - first, min(end_s, 20.0) - start_s, SAMPLING) + first
    assert [read_number(frame) for frame in got.frames_THWC] == picked.tolist()
    assert_equals_plain(path, DecodeJob(path, SAMPLING, Moment(start_s, end_s)), picked, start_s)
    assert got.clip.start_s == start_s and got.clip.end_s == min(end_s, 20.0)


def test_one_frame_is_repeated(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", 1)
    got = decode_clip(DecodeJob(path, SAMPLING))
    assert len(got.frames_THWC) == 4 and got.facts.frames == 1
    assert all(np.array_equal(frame, got.frames_THWC[0]) for frame in got.frames_THWC)
    assert got.times_s.tolist() == [0, 0, 0, 0]


def test_rotation_is_applied(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", 5)
    upright = decode_clip(DecodeJob(path, SAMPLING)).frames_THWC
    turned = decode_clip(DecodeJob(rotate_clockwise(path), SAMPLING))
    assert turned.frames_THWC.shape[1:3] == (80, 48) == (turned.facts.height, turned.facts.width)
    assert np.array_equal(turned.frames_THWC, np.rot90(upright, -1, axes=(1, 2)))
    red = turned.frames_THWC[0, :8, -8:].mean((0, 1))  # the dot of the top left corner is now top right
    assert red[0] > 180 and red[1] < 80


def test_decord_is_used_only_where_it_is_right(tmp_path: Path) -> None:
    pytest.importorskip("decord")
    plain = write_video(tmp_path / "a.mp4", 60)
    one, other = (decode_clip(DecodeJob(plain, SAMPLING, decoder=name)) for name in ("pyav", "decord"))
    assert (one.facts.decoder, other.facts.decoder) == ("pyav", "decord")
    assert np.array_equal(one.frames_THWC, other.frames_THWC)
    assert one.facts.frames_sha256 == other.facts.frames_sha256
    for odd in (write_video(tmp_path / "b.mp4", 9, pixel_format="yuv420p10le"), rotate_clockwise(plain)):
        assert decode_clip(DecodeJob(odd, SAMPLING, decoder="decord")).facts.decoder == "pyav"


def test_a_large_clip_is_resized_as_the_encoder_would(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", 40, size=(120, 160))
    small = FrameSampling(total_tokens=16)
    whole = decode_clip(DecodeJob(path, small))
    bounded = decode_clip(DecodeJob(path, small, max_frame_bytes=10_000))
    hw = bounded.frames_THWC.shape[1:3]
    assert hw[0] % 28 == 0 and hw[1] % 28 == 0 and hw < (120, 160)
    assert np.array_equal(bounded.frames_THWC, resize_frames(whole.frames_THWC, (hw[0], hw[1])))
    assert bounded.facts == whole.facts  # the digest is of the frames at their own size
    assert bounded.views.shape[1:3] == (120, 160)


@pytest.mark.parametrize("size", [(16, 60_000), (240, 16_000), (8, 500)])
def test_a_long_thin_clip_keeps_its_bound(tmp_path: Path, size: tuple[int, int]) -> None:
    """By the shorter side alone its views would stay at full size."""
    images = [np.full((*size, 3), 9 * i, np.uint8) for i in range(4)]
    path = write_video(tmp_path / "v.mkv", images, codec="ffv1", fps=2)
    job = DecodeJob(path, FrameSampling(total_tokens=64), max_frame_bytes=1)
    frames = decode_clip(job)
    assert 0.9 * min(MAX_VIEW_PIXELS, math.prod(size)) < math.prod(frames.views.shape[1:3]) <= 1.1 * MAX_VIEW_PIXELS
    for array in (frames.frames_THWC, frames.views):
        assert array.nbytes <= most_frame_bytes(job, len(frames.times_s))


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_frames_of_a_large_clip_are_resized_as_they_come(tmp_path: Path, decoder: Decoder) -> None:
    """Beside what is kept of each frame, a few frames of full size are held, however many are sampled."""
    path = write_video(tmp_path / "v.mp4", 200, size=(768, 1024))
    full, small = 768 * 1024 * 3, FrameSampling(total_tokens=80, max_tokens_per_patch=4)
    job = DecodeJob(path, small, decoder=decoder, max_frame_bytes=full)
    decode_clip(job)  # libraries are imported
    tracemalloc.start()
    try:
        got = decode_clip(job)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    kept = got.frames_THWC.nbytes + got.views.nbytes
    assert len(got.frames_THWC) == 40 and got.facts.decoder == decoder
    assert peak < kept + (4 if decoder == "pyav" else 8) * full
    whole = decode_clip(DecodeJob(path, small, decoder=decoder))
    hw = got.frames_THWC.shape[1:3]
    assert np.array_equal(got.frames_THWC, resize_frames(whole.frames_THWC, (hw[0], hw[1])))


def test_facts_name_no_folder_and_hash_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "secret place"
    folder.mkdir()
    path = write_video(folder / "a 'b' {c}\u202e.mp4", 7)
    facts = decode_clip(DecodeJob(path, SAMPLING)).facts
    assert facts.path_hint == path.name
    assert facts.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (facts.frames, facts.width, facts.height, facts.fps) == (7, 80, 48, 10.0)


def broken(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / f"{kind}.mp4"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "not a video":
        path.write_text("When does it happen?")
    elif kind == "playlist":
        path.write_text("#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n")
    elif kind == "no video stream":
        write_audio(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "truncated":
        path = write_video(tmp_path / "t.mkv", 200, options={"crf": "1", "g": "10"})
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "corrupt":
        noise = np.random.default_rng(0).integers(0, 255, (40, 48, 80, 3), dtype=np.uint8)
        write_video(path, list(noise), options={"crf": "10", "g": "40", "bf": "0"})
        data = bytearray(path.read_bytes())
        middle = data.index(b"mdat") + len(data) // 2
        data[middle : middle + 4000] = np.random.default_rng(1).bytes(4000)
        path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "missing"),
        ("empty", "empty"),
        ("not a video", "not a video"),
        ("playlist", "not a video"),
        ("no video stream", "no video stream"),
        ("folder", "not a file"),
        ("truncated", "truncated"),
    ],
)
def test_what_is_no_video_has_its_reason(tmp_path: Path, kind: str, reason: str) -> None:
    with pytest.raises(VideoError) as caught:
        decode_clip(DecodeJob(broken(tmp_path, kind), SAMPLING))
    assert caught.value.reason == reason and caught.value.transient == (kind == "missing")
    assert str(tmp_path) not in str(caught.value)  # reasons enter the ledger of a set that may be shared


def test_corruption_is_never_silent(tmp_path: Path) -> None:
    path = broken(tmp_path, "corrupt")
    try:
        got = decode_clip(DecodeJob(path, SAMPLING))
    except VideoError as error:
        assert error.reason in {"corrupt", "truncated"}
    else:
        assert got.facts.corrupt_frames > 0


def test_a_file_that_changed_since_the_plan_is_not_used(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", 10)
    with pytest.raises(VideoError) as caught:
        decode_clip(DecodeJob(path, SAMPLING, size=path.stat().st_size + 1))
    assert caught.value.transient and caught.value.reason == "changed since the plan"


def test_a_cut_outside_of_the_file_is_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", 10)
    with pytest.raises(VideoError) as caught:
        decode_clip(DecodeJob(path, SAMPLING, Moment(5.0, 9.0)))
    assert caught.value.reason == "clip outside"


def test_probe_counts_what_is_shown(tmp_path: Path) -> None:
    look = inspect_video(write_video(tmp_path / "v.mp4", [numbered_frame(i) for i in range(31)]))
    assert (look.frames, look.duration_s, look.fps, look.rotation, look.exact) == (31, 3.1, 10.0, 0, True)
    assert np.allclose(look.times_s, np.arange(31) / 10)
