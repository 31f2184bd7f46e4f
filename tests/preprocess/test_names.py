"""Annotated names and listed files: what a name means, what is ambiguous, and what is not missing but unreadable."""

from __future__ import annotations

import json
import os
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import taro
from taro.core.errors import ConfigError, VideoError
from taro.preprocess.config import PreprocessConfig
from taro.preprocess.listing import Finder, list_videos
from taro.shards.reader import open_shards
from tests.helpers_video import write_video

Make = Callable[..., PreprocessConfig]


def laid(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return laid(tmp_path, "a.mp4", "part/b.mp4", "part/c.mp4", "c.mkv", "one/d.mp4", "two/d.mp4", "e.mp4", "x/e.mp4")


@pytest.mark.parametrize(
    ("annotated", "found"),
    [
        ("a.mp4", "a.mp4"),
        ("./a.mp4", "a.mp4"),
        ("a", "a.mp4"),
        ("b", "part/b.mp4"),
        ("part//b.mp4", "part/b.mp4"),
        ("part/./b", "part/b.mp4"),
        ("one/d.mp4", "one/d.mp4"),
        ("one/d", "one/d.mp4"),
        ("e.mp4", "e.mp4"),
        ("./dataset/theirs/a.mp4", "a.mp4"),  # the authors' folders, our flat one
    ],
)
def test_a_name_finds_its_file(files: Path, annotated: str, found: str) -> None:
    assert Finder(list_videos(files)).find(annotated) == found


@pytest.mark.parametrize(
    ("annotated", "reason"),
    [("other/b.mp4", "missing"), ("c", "ambiguous"), ("z", "missing"), ("d", "ambiguous"), ("d.mp4", "ambiguous"),
     ("e", "ambiguous"), ("../a", "missing")],
)  # fmt: skip
def test_a_name_never_finds_a_file_of_another_folder(files: Path, annotated: str, reason: str) -> None:
    with pytest.raises(VideoError) as caught:
        Finder(list_videos(files)).find(annotated)
    assert caught.value.reason == reason


CAFE = "caf\u00e9.mp4"


@pytest.mark.parametrize(
    ("annotated", "near"),
    [
        ("A.MP4", "'a.mp4'"),
        ("a.webm", "'a.mp4'"),
        ("part\\b.mp4", "'part/b.mp4'"),
        ("D:\\data\\b.mp4", "'part/b.mp4'"),
        ("theirs/deep/b.mp4", "'part/b.mp4'"),
        ("theirs/B.avi", "'part/b.mp4'"),
        ("theirs/d.mp4", "'one/d.mp4', 'two/d.mp4'"),
        (unicodedata.normalize("NFD", CAFE), ascii(CAFE)),
        ("gone.mp4", "'gone.mp4' (a link to nothing)"),
        ("loop", "'loop.mp4' (a link to nothing)"),
    ],
)
def test_a_missing_name_is_answered_with_what_is_near(files: Path, annotated: str, near: str) -> None:
    laid(files, CAFE)
    (files / "gone.mp4").symlink_to("nowhere")
    (files / "loop.mp4").symlink_to("loop.mp4")
    with pytest.raises(VideoError, match="no such file in the videos folder; near it: ") as caught:
        Finder(list_videos(files)).find(annotated)
    assert str(caught.value).endswith(f"near it: {near}") and caught.value.reason == "missing"


def test_two_names_that_would_be_one_file_are_two_names(files: Path) -> None:
    """Their folders are not here, so neither can be told from the other; a name that is a path keeps its file."""
    finder = Finder(list_videos(files))
    both = finder.find_all(["train/a.mp4", "val/a.mp4", "b", "part/b.mp4", "b.mp4"])
    assert {name for name, found in both.items() if isinstance(found, str)} == {"b", "part/b.mp4", "b.mp4"}
    assert "would be the file a.mp4: train/a.mp4, val/a.mp4" in str(both["val/a.mp4"])
    named = finder.find_all(["train/a.mp4", "a.mp4", "./a.mp4"])
    assert named["a.mp4"] == named["./a.mp4"] == "a.mp4" and isinstance(named["train/a.mp4"], VideoError)
    one = finder.find_all(["train/a.mp4", "./train//a.mp4"])
    assert set(one.values()) == {"a.mp4"}, "one name, written twice"


def test_links_are_followed_and_circles_of_them_are_not(files: Path) -> None:
    """Each circle of two would double the walk at every level: it would not end."""
    elsewhere = files.parent / f"{files.name}-elsewhere"
    (elsewhere / "deep").mkdir(parents=True)
    (elsewhere / "deep" / "d.mp4").touch()
    (files / "far").symlink_to(elsewhere)
    for name in ("one", "two"):
        (files / f"{name}-more").symlink_to(files)
        (files / "part" / name).symlink_to(files)
        (elsewhere / name).symlink_to(files / "part")
    listed = list_videos(files)
    assert {"a.mp4", "part/b.mp4", "far/deep/d.mp4", "far/one/b.mp4"} <= set(listed.videos)
    assert len(listed.videos) < 40 and not listed.unread


def test_a_name_that_is_no_unicode_is_not_listed(tmp_path: Path) -> None:
    laid(tmp_path, os.fsdecode(b"\xff/v.mp4"), os.fsdecode(b"\xfe.mp4"), "w.mp4")
    assert set(list_videos(tmp_path).videos) == {"w.mp4"}


@contextmanager
def rights_of_nobody() -> Iterator[None]:
    """Root reads everything, and this runs as root in a container."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_what_cannot_be_listed_is_not_missing() -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = laid(Path(made), "a.mp4", "shut/b.mp4", "closed/c.mp4")
        folder.chmod(0o755)
        (folder / "long.mp4").symlink_to("x" * 300)  # the file system refuses to look
        (folder / "shut").chmod(0)
        (folder / "closed").chmod(0o444)  # its names can be read, its files cannot
        with rights_of_nobody():
            listed = list_videos(folder)
        assert set(listed.videos) == {"a.mp4"}
        assert sorted(listed.unread) == ["closed/c.mp4 (Permission denied)", "long.mp4 (File name too long)",
                                         "shut (Permission denied)"]  # fmt: skip
        folder.chmod(0)
        with rights_of_nobody(), pytest.raises(ConfigError, match="cannot be listed"):
            list_videos(folder)
        folder.chmod(0o755)
        for name in ("shut", "closed"):
            (folder / name).chmod(0o755)
        assert set(list_videos(folder).videos) == {"a.mp4", "shut/b.mp4", "closed/c.mp4"}


def test_a_job_stops_where_a_missing_video_may_lie_in_what_cannot_be_listed(tmp_path: Path, job: Make) -> None:
    folder = laid(tmp_path / "videos")
    write_video(folder.joinpath("v.mp4") if folder.is_dir() else laid(folder, "x") / "v.mp4", 30, size=(56, 84))
    (folder / "other").symlink_to("x" * 300)
    row = {"query": "q", "windows": [[0.0, 1.0]]}
    config = job([row | {"video": "v.mp4"}, row | {"video": "w.mp4"}], videos=folder, max_skipped=1.0)
    with pytest.raises(ConfigError, match=r"other \(File name too long\) cannot be listed, and the videos of 1 rows"):
        taro.make_shards(config)
    assert not config.out.exists() or not (config.out / ".preprocess" / "plan.json").exists(), "nothing is for ever"
    (folder / "other").unlink()
    assert taro.make_shards(config).reasons == {"plan: missing": 1}
    exact = job([row | {"video": "v.mp4"}], videos=folder, out=tmp_path / "exact")
    (folder / "other").symlink_to("x" * 300)
    assert taro.make_shards(exact).written == 1, "a name that is a path needs no other folder"


def test_cuts_that_differ_by_less_than_a_millisecond_are_one_clip(job: Make) -> None:
    lines = [{"video": "v0.mp4", "query": f"q {end}", "windows": [[0.0, 1.0]], "clip": [0.5, end]}
             for end in (2.5, 2.5001)]  # fmt: skip
    report = taro.make_shards(job(lines))
    assert (report.written, report.clips) == (2, 1)


def test_captions_of_a_name_that_several_videos_have_belong_to_none(tmp_path: Path, job: Make) -> None:
    """Also where only one of the two videos is asked about: the folder says that the name is not its own."""
    folder = tmp_path / "mine"
    for part in ("sub1", "sub2"):
        (folder / part).mkdir(parents=True)
        write_video(folder / part / "v.mp4", 30, size=(56, 84))
    write_video(folder / "u.mp4", 30, size=(56, 84))

    def lines(*names: str) -> list[dict[str, Any]]:
        return [{"video": name, "query": f"of {name}", "windows": [[0.5, 2.0]], "qid": name} for name in names]

    def caption(name: str) -> str:
        return json.dumps({"video": name, "captions": [{"start_s": 0.0, "end_s": 1.5, "text": f"of {name}"}]}) + "\n"

    file = tmp_path / "captions.jsonl"
    file.write_text("".join(map(caption, ("v.mp4", "v", "sub1/v.mp4", "./sub2//v", "u", "z.mp4"))))
    settings: dict[str, Any] = {"videos": folder, "caption": {"method": "file", "file": file}}
    report = taro.make_shards(job(lines("sub1/v.mp4", "sub2/v.mp4", "u.mp4"), **settings))
    assert report.given == {"used": 3, "skipped: its name fits several videos": 2, "skipped: no row has its video": 1}
    clips = [open_shards(report.out).clip(key) for key in open_shards(report.out).keys]
    assert {clip.queries[0].id: [one.text for one in clip.captions] for clip in clips} == {
        "sub1/v.mp4": ["of sub1/v.mp4"], "sub2/v.mp4": ["of ./sub2//v"], "u.mp4": ["of u"]}  # fmt: skip
    alone = taro.make_shards(job(lines("sub1/v.mp4"), out=tmp_path / "alone", **settings))
    assert alone.given == {"used": 1, "skipped: its name fits several videos": 2, "skipped: no row has its video": 3}
