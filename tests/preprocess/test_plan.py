"""Annotated rows meet files: what a file that is cut already says about itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from taro.core.errors import VideoError
from taro.grounding.moment import Moment
from taro.models.features import FrameSampling
from taro.preprocess.video.decode import DecodeJob, decode_clip
from tests.helpers_video import write_video


def test_a_file_that_is_the_clip_already_is_not_cut_again(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", 40, fps=10)  # 4 s
    part = Moment(39.0, 43.0)  # of the whole video that the file was cut from
    job = DecodeJob(path, FrameSampling(), part, may_be_cut=True)
    assert decode_clip(job).clip.end_s == pytest.approx(4.0)
    with pytest.raises(VideoError, match="lies outside"):
        decode_clip(DecodeJob(path, FrameSampling(), part))


def test_a_whole_file_is_cut_although_it_might_have_been(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", 80, fps=10)
    made = decode_clip(DecodeJob(path, FrameSampling(), Moment(2.0, 6.0), may_be_cut=True))
    assert (made.clip.start_s, made.clip.end_s) == (2.0, 6.0)
