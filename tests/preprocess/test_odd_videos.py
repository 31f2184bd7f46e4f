"""Every odd kind of video decodes to what a plain decode from the start shows, whichever decoder was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from av.error import FFmpegError

from taro.grounding.moment import Moment
from tests.helpers_odd_videos import ODD
from tests.helpers_plain_decode import cuts, decode_from_start, verdict
from tests.helpers_video import read_number

DECORD_IS_RIGHT = {
    "1000_fps.mkv", "5000_fps.mp4", "a_frame_in_30_s.mp4", "bytes_after_the_end.mp4", "one_frame.mp4",
    "sound_longer.mp4", "square_pixels_no.mkv", "two_frames.mp4",
}  # fmt: skip
"""on these decord is asked; on all others it is known to be wrong, or cannot be trusted to be right"""


@pytest.mark.parametrize("name", sorted(ODD))
def test_an_odd_video_is_what_a_plain_decode_shows(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVT_LOG", "0")
    try:
        path = ODD[name](tmp_path)
    except (FFmpegError, ValueError) as error:
        pytest.skip(f"this FFmpeg cannot write it: {error}")
    plain = decode_from_start(path)
    for cut in cuts(plain):
        assert verdict(path, plain, "pyav", cut) == ("pyav" if plain.frames else "refused: no video stream"), cut
        asked = verdict(path, plain, "decord", cut)
        assert asked in {"pyav", "refused: no video stream"} or (asked == "decord" and name in DECORD_IS_RIGHT), cut


def test_the_reference_reads_numbers_in_order(tmp_path: Path) -> None:
    """It must not be wrong in the same way: frames carry their numbers."""
    for name, numbers in (("variable_rate.mkv", range(12)), ("two_videos_small_first.mp4", range(50)),
                          ("edit_list.mp4", range(17, 52)), ("h264_times_as_stored.avi", range(60))):  # fmt: skip
        plain = decode_from_start(ODD[name](tmp_path))
        assert [read_number(frame) for frame in plain.frames] == list(numbers), name
    assert [round(float(t), 6) for t in plain.times[:3]] == [0.0, 0.1, 0.2]
    assert plain.sampled(Moment(1.0, 1.4))[1] == pytest.approx([0.0, 0.1, 0.2, 0.3])
