"""A file is known by its own bytes: containers by FFmpeg's name, everything else by the name of what it is, and no file
reaches another one through a decoder."""

from __future__ import annotations

import gzip
import io
import json
import os
import resource
import shutil
import zipfile
from pathlib import Path

import av
import numpy as np
import pytest
from av.error import FFmpegError
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from taro.core.errors import VideoError
from taro.models.features import FrameSampling
from taro.preprocess.video import inspect
from taro.preprocess.video.contents import HEAD_BYTES, demuxer_of, is_plain_mp4, opened_file, what_it_is
from taro.preprocess.video.decode import DecodeJob, decode_clip
from taro.preprocess.video.inspect import inspect_video
from tests.helpers_odd_videos import ODD
from tests.helpers_plain_decode import DECODERS
from tests.helpers_video import numbered_frame, write_audio, write_held, write_video

SAMPLING = FrameSampling()


def picture(form: str, **how: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(numbered_frame(3)).save(file, form, **how)
    return file.getvalue()


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.mp4", b"x" * 100)
    return file.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456\n"
NO_VIDEOS: dict[str, tuple[bytes, str]] = {
    "pointer.mp4": (LFS, "a Git LFS pointer"),
    "page.mp4": (b"\n<!DOCTYPE html>\n<html><body>404</body></html>", "an HTML page"),
    "old_page.mp4": (b"\xef\xbb\xbf<HTML><HEAD>", "an HTML page"),
    "answer.mp4": (json.dumps({"error": "rate limit"}).encode(), "a JSON file"),
    "lines.mp4": (b"When does it happen?", "a text file"),
    "xml.mp4": (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "an XML file"),
    "a.zip.mp4": (zipped(), "an archive"),
    "a.gz.mp4": (gzip.compress(b"x", mtime=0), "an archive"),
    "png.mp4": (picture("png"), "a picture (PNG)"),
    "jpg.mkv": (picture("jpeg"), "a picture (JPEG)"),
    "bmp.avi": (picture("bmp"), "a picture (BMP)"),
    "webp.webm": (picture("webp"), "a picture (WebP)"),
    "tiff.mp4": (picture("tiff"), "a picture (TIFF)"),
    "gif.gif": (picture("gif"), "a picture (GIF"),
    "heic.mp4": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 100, "a picture (HEIF)"),
    "avif.mp4": (b"\0\0\0\x18ftypavif\0\0\0\0avifmif1" + b"\0" * 100, "a picture (HEIF)"),
    "pdf.mp4": (b"%PDF-1.7\n%\xe2\xe3", "a PDF"),
    "table.mp4": (b"PAR1" + b"\0" * 20, "a parquet file"),
    "sound.mp4": (b"ID3\4\0\0\0\0\0\0" + b"\xff\xfb\x90\0" * 40, "a sound file"),
    "zeros.mp4": (bytes(10_000), "nothing but zero bytes"),
    "noise.mp4": (np.random.default_rng(0).bytes(5000), "no container that taro knows"),
    "list.m3u8": (b"#EXTM3U\n#EXTINF:1,\nOTHER\n#EXT-X-ENDLIST\n", "a playlist"),
    "list.mp4": (b"#EXTM3U\n#EXTINF:1,\nOTHER\n#EXT-X-ENDLIST\n", "a playlist"),
    "script.mp4": (b"ffconcat version 1.0\nfile 'OTHER'\n", "a playlist"),
    "mpd.mp4": (b"<?xml version='1.0'?>\n<MPD profiles='urn:mpeg:dash:profile:isoff-live:2011'>OTHER</MPD>",
                "a playlist"),
    "sdp.mp4": (b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\nc=IN IP4 127.0.0.1\r\nm=video 9 RTP/AVP 96\r\n", "a playlist"),
    "asx.mp4": (b"<ASX version='3.0'><entry><ref href='OTHER'/></entry></ASX>", "a playlist"),
    "disc.mpls": (b"MPLS0200" + bytes(200), "a playlist"),
    "open%d.png": (b"#EXTM3U\nOTHER", "a playlist"),
    "data:,x": (b"ffconcat version 1.0\nfile OTHER\n", "a playlist"),
}  # fmt: skip


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", sorted(NO_VIDEOS))
def test_what_is_no_video_is_named_as_what_it_is(tmp_path: Path, name: str, decoder: str) -> None:
    data, what = NO_VIDEOS[name]
    other = write_video(tmp_path / "secret.mp4", 20)
    shutil.copyfile(other, tmp_path / "open0.png")
    path = tmp_path / name
    path.write_bytes(data.replace(b"OTHER", os.fsencode(other)))
    with pytest.raises(VideoError) as caught:
        decode_clip(DecodeJob(path, SAMPLING, decoder=decoder))  # type: ignore[arg-type]
    assert caught.value.reason == "not a video" and not caught.value.transient
    assert what in str(caught.value) and "not a video" in str(caught.value) and str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_playlist_before_a_transport_stream_is_a_playlist(tmp_path: Path, decoder: str) -> None:
    """A transport stream to one FFmpeg, a playlist of another local file to an older one."""
    other = write_video(tmp_path / "secret.mp4", 20)
    stream = ODD["h264.ts"](tmp_path).read_bytes()
    for text in (f"#EXTM3U\n#EXTINF:1,\n{other}\n#EXT-X-ENDLIST\n", f"ffconcat version 1.0\nfile '{other}'\n",
                 f"#\n#EXTM3U\n{other}\n", "title 1\n", f"#EXTM3U\n{other}\n\0", f"\n<MPD>{other}\1\xff"):  # fmt: skip
        for padded in (text, text.ljust(188, "#"), text.ljust(HEAD_BYTES, "\n")):
            path = tmp_path / "v.ts"
            path.write_bytes(padded.encode() + stream)
            with pytest.raises(VideoError, match=r"not a video") as caught:
                decode_clip(DecodeJob(path, SAMPLING, decoder=decoder))  # type: ignore[arg-type]
            assert caught.value.reason == "not a video"


def test_a_name_is_not_a_pattern(tmp_path: Path) -> None:
    """What FFmpeg's image patterns, protocols and Python's own read into a name is the name."""
    write_video(tmp_path / "open0.mp4", 30)
    for name in ("open%d.mp4", "open%d.png", "*.jpg", "concat:open0.mp4|b.mp4", "data:video,x.mp4", "http:a.mp4", "-"):
        path = write_video(tmp_path / "w.mp4", 12).rename(tmp_path / name)
        for decoder in DECODERS:
            assert decode_clip(DecodeJob(path, SAMPLING, decoder=decoder)).facts.frames == 12, name


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "v.mp4")
    (tmp_path / "link.mp4").symlink_to(tmp_path / "v.mp4")
    for path in (tmp_path / "v.mp4", tmp_path / "link.mp4", Path("/dev/zero")):
        with pytest.raises(VideoError) as caught:
            inspect_video(path)
        assert caught.value.reason == "not a file"


DEMUXERS = {"mp4": "mov", "mov": "mov", "mkv": "matroska", "webm": "matroska", "avi": "avi", "ts": "mpegts",
            "mpg": "mpeg", "flv": "flv", "wmv": "asf", "gif": "gif", "h264": "h264", "hevc": "hevc"}  # fmt: skip


@pytest.mark.parametrize("name", sorted(ODD))
def test_every_container_is_known_by_its_bytes(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVT_LOG", "0")
    try:
        path = ODD[name](tmp_path).rename(tmp_path / "without_ending")
    except (FFmpegError, ValueError) as error:
        pytest.skip(f"this FFmpeg cannot write it: {error}")
    with opened_file(path) as descriptor:
        assert demuxer_of(descriptor, path.name) == DEMUXERS[name.rpartition(".")[2]]
        assert is_plain_mp4(descriptor) == (name.rpartition(".")[2] in {"mp4", "mov"})


@pytest.mark.parametrize(("ending", "codec", "demuxer"), [
    ("m2ts", "libx264", "mpegts"), ("ogg", "libvpx", "ogg"), ("nut", "ffv1", "nut"), ("3gp", "mpeg4", "mov"),
    ("y4m", "wrapped_avframe", "yuv4mpegpipe"), ("ivf", "libvpx", "ivf"), ("mxf", "mpeg2video", "mxf"),
    ("vob", "mpeg2video", "mpeg"), ("m2v", "mpeg2video", "mpegvideo"), ("apng", "apng", "apng"), ("rm", "rv10", "rm"),
])  # fmt: skip
def test_rarer_containers(tmp_path: Path, ending: str, codec: str, demuxer: str) -> None:
    form = "rgb24" if ending == "apng" else "yuv420p"
    try:
        path = write_video(tmp_path / f"v.{ending}", 30, codec=codec, fps=25, size=(96, 128), pixel_format=form)
    except (FFmpegError, ValueError) as error:
        pytest.skip(f"this FFmpeg cannot write it: {error}")
    with opened_file(path) as descriptor:
        assert demuxer_of(descriptor, path.name) == demuxer
    assert decode_clip(DecodeJob(path, SAMPLING)).facts.frames == 30


def test_a_download_without_its_end_is_cut_short(tmp_path: Path) -> None:
    data = write_video(tmp_path / "v.mp4", 60).read_bytes()  # its index is at the end
    index = data.index(b"moov")
    for length in (data.index(b"mdat") + 4, len(data) // 2, index - 4, index, len(data) - 100):
        (tmp_path / "w.mp4").write_bytes(data[:length])
        with pytest.raises(VideoError, match="it was cut short") as caught:
            inspect_video(tmp_path / "w.mp4")
        assert caught.value.reason == "truncated"


def test_sound_is_no_video(tmp_path: Path) -> None:
    with pytest.raises(VideoError) as caught:
        inspect_video(write_audio(tmp_path / "v.mp4"))
    assert caught.value.reason == "no video stream"


def test_frames_of_absurd_size_are_refused_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(inspect, "MAX_PIXELS", 3000)
        with pytest.raises(VideoError, match="frames of 80x48; at most 3,000 pixels") as caught:
            inspect_video(write_video(tmp_path / "v.mp4", 2))
        assert caught.value.reason == "too large"
    path = write_video(tmp_path / "w.avi", 2, codec="mjpeg", pixel_format="yuvj420p")  # here each picture says its size
    data = path.read_bytes()
    at = data.index(b"\xff\xc0") + 5
    path.write_bytes(data.replace(data[at - 5 : at + 4], data[at - 5 : at] + (60_000).to_bytes(2, "big") * 2))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(VideoError) as caught:
        inspect_video(path)
    assert caught.value.reason == "corrupt"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB; a frame would take 5 GB


BEGINNINGS = [b"", *(data for data, _ in NO_VIDEOS.values()), b"\0\0\1", b"\0\0\0\x18ftyp", b"G" + bytes(187), b"RIFF"]


@given(st.binary(max_size=300), st.sampled_from(BEGINNINGS))
def test_every_beginning_has_an_answer(tail: bytes, head: bytes) -> None:
    what, advice = what_it_is((head[:200] + tail)[:HEAD_BYTES])
    assert what and advice
    descriptor = os.memfd_create("v")
    try:
        os.write(descriptor, head[:200] + tail)
        demuxer_of(descriptor, "v")
    except VideoError as error:
        assert error.reason in {"not a video", "truncated"}
    finally:
        os.close(descriptor)


def test_metadata_in_another_encoding_costs_nothing(tmp_path: Path) -> None:
    for ending in ("3gp", "mp4", "mkv"):
        with av.open(str(tmp_path / f"v.{ending}"), "w") as container:
            container.metadata["location"] = "+12.3456+123.4567/PLACE"
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = 80, 48, "yuv420p"
            for i in range(20):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered_frame(i), format="rgb24")))
            container.mux(stream.encode(None))
        data = (tmp_path / f"v.{ending}").read_bytes()
        assert b"PLACE" in data
        (tmp_path / f"w.{ending}").write_bytes(data.replace(b"PLACE", b"\xd5\xe3\xff\xfe\x80"))
        with pytest.raises(UnicodeDecodeError):
            av.open(str(tmp_path / f"w.{ending}"))
        assert inspect_video(tmp_path / f"w.{ending}").frames == 20


@pytest.mark.parametrize(("ending", "codec", "pixel_format"), [
    ("mp4", "libx264", "yuv420p"), ("mov", "libx264", "yuv420p"), ("mkv", "libx264", "yuv420p"), ("gif", "gif", "rgb8"),
])  # fmt: skip
@pytest.mark.parametrize("last", [2, 10, 260])
def test_the_last_picture_is_shown_as_long_as_its_packet_says(
    tmp_path: Path, ending: str, codec: str, pixel_format: str, last: int
) -> None:
    look = inspect_video(write_held(tmp_path / f"v.{ending}", [10, 10, 10, 10, last], codec, pixel_format))
    assert (look.frames, look.times_s.tolist()) == (5, [0, 1, 2, 3, 4])
    assert look.duration_s == pytest.approx(4 + last / 10, abs=1e-9)
    assert decode_clip(DecodeJob(look.path, SAMPLING)).duration_s == look.duration_s


def test_an_edit_list_ends_a_held_picture(tmp_path: Path) -> None:
    path = write_held(tmp_path / "v.mp4", [10, 10, 10, 10, 260])
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 12
    data[at : at + 4] = (10_000).to_bytes(4, "big")  # of 30,000 ms
    path.write_bytes(data)
    assert inspect_video(path).duration_s == pytest.approx(10.0)


def test_fragments_that_begin_late_are_whole(tmp_path: Path) -> None:
    look = inspect_video(ODD["fragments_from_5_s.mp4"](tmp_path))
    assert (look.frames, look.duration_s) == (60, 6.0) and look.start_s == pytest.approx(5.2)
    data = look.path.read_bytes()
    look.path.write_bytes(data[: data.rindex(b"moof") - 4])  # without its last fragment, as far as anybody can know
    assert inspect_video(look.path).frames < 60


def test_what_begins_late_and_lacks_its_end_is_cut_short(tmp_path: Path) -> None:
    faststart = tmp_path / "v.mp4"
    with av.open(str(ODD["sound_first.mp4"](tmp_path))) as read, av.open(
        str(faststart), "w", container_options={"movflags": "faststart"}
    ) as write:
        (video,) = read.streams.video
        stream = write.add_stream_from_template(video)
        for packet in read.demux(video):
            if packet.size:
                packet.stream = stream
                write.mux(packet)
    whole = inspect_video(faststart)
    assert whole.start_s == pytest.approx(2.5, abs=0.3)
    faststart.write_bytes(faststart.read_bytes()[: -faststart.stat().st_size // 3])
    with pytest.raises(VideoError) as caught:
        inspect_video(faststart)
    assert caught.value.reason in {"truncated", "corrupt"}
