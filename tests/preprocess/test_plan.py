"""Annotated rows meet listed files: by name, by part, and by what a cut file says about itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from taro.core.errors import VideoError
from taro.grounding.moment import Moment
from taro.models.features import FrameSampling
from taro.preprocess.plan import _Finder, list_videos
from taro.preprocess.video.decode import DecodeJob, decode_clip
from tests.helpers_video import write_video


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    (tmp_path / "part").mkdir()
    for name in ("a.mp4", "part/b.mp4", "part/c.mp4", "c.mkv"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


@pytest.mark.parametrize(
    ("annotated", "found"),
    [
        ("a.mp4", "a.mp4"),
        ("./a.mp4", "a.mp4"),
        ("a", "a.mp4"),
        ("b", "part/b.mp4"),
        ("./dataset/theirs/a.mp4", "a.mp4"),  # the authors' folders, our flat one
    ],
)
def test_a_name_finds_its_file(videos: Path, annotated: str, found: str) -> None:
    assert _Finder(list_videos(videos)).find(annotated) == found


@pytest.mark.parametrize(("annotated", "reason"), [("other/b.mp4", "missing"), ("c", "ambiguous"), ("z", "missing")])
def test_a_name_never_finds_a_file_of_another_folder(videos: Path, annotated: str, reason: str) -> None:
    with pytest.raises(VideoError) as caught:
        _Finder(list_videos(videos)).find(annotated)
    assert caught.value.reason == reason


def test_links_are_followed_and_circles_of_them_are_not(videos: Path) -> None:
    """Each circle of two would double the walk at every level: it would not end."""
    elsewhere = videos.parent / f"{videos.name}-elsewhere"
    (elsewhere / "deep").mkdir(parents=True)
    (elsewhere / "deep" / "d.mp4").touch()
    (videos / "far").symlink_to(elsewhere)
    for name in ("one", "two"):
        (videos / name).symlink_to(videos)
        (videos / "part" / name).symlink_to(videos)
        (elsewhere / name).symlink_to(videos / "part")
    assert {"a.mp4", "part/b.mp4", "far/deep/d.mp4", "far/one/b.mp4"} <= set(list_videos(videos))
    assert len(list_videos(videos)) < 20


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
