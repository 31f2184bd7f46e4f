"""One small video of every odd kind that decoders have been seen to get wrong, made with PyAV: `ODD[name](folder)`.

The name is the file's. A maker whose encoder this build of FFmpeg lacks raises ValueError or FFmpegError.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers_video import numbered_frame, write_video

__all__ = ["ODD", "remux", "textured"]

Maker = Callable[[Path], Path]
ODD: dict[str, Maker] = {}
"""file name -> what writes it"""

OPEN_X264 = {"x264-params": "keyint=20:min-keyint=20:open-gop=1:bframes=3:scenecut=0", "crf": "20"}
OPEN_X265 = {"x265-params": "keyint=20:min-keyint=20:open-gop=1:bframes=4:scenecut=0:log-level=none"}


def textured(count: int, height: int = 48, width: int = 80) -> list[np.ndarray]:
    """Numbered frames over moving noise, so that frames lean on one another."""
    noise = np.random.default_rng(0).integers(0, 32, (height + count, width, 3))
    return [np.clip(numbered_frame(i, height, width) + noise[i : i + height], 0, 255).astype(np.uint8)
            for i in range(count)]  # fmt: skip


def remux(source: Path, path: Path, keep: Callable[[int], bool] = lambda _: True, *, shift: int = 0,
          options: dict[str, str] | None = None) -> Path:
    """Copies the video packets whose place `keep` accepts, `shift` ticks later."""
    import av

    with av.open(str(source)) as read, av.open(str(path), "w", container_options=options or {}) as write:
        stream = write.add_stream_from_template(read.streams.video[0])
        for place, packet in enumerate(read.demux(read.streams.video[0])):
            if packet.size and keep(place):
                packet.stream = stream
                packet.pts, packet.dts = (packet.pts or 0) + shift, (packet.dts or 0) + shift
                write.mux(packet)
    return path


def _odd(name: str) -> Callable[[Maker], Maker]:
    def keep(make: Maker) -> Maker:
        ODD[name] = lambda folder: make(folder / name)
        return make

    return keep


def _written(name: str, frames: int | Callable[[], Sequence[np.ndarray]], **how: Any) -> None:
    ODD[name] = lambda folder: write_video(folder / name, frames if isinstance(frames, int) else frames(), **how)


def _cut(name: str, source: str, keep: Callable[[int], bool]) -> None:
    ODD[name] = lambda folder: remux(ODD[source](folder), folder / name, keep)


_written("h264_10bit.mp4", 73, pixel_format="yuv420p10le")
_written("h264_422.mov", 50, pixel_format="yuv422p")
_written("h264_444_odd_size.mkv", 40, pixel_format="yuv444p", size=(45, 77))
_written("h264.ts", 60)
_written("h264.flv", 60)
_written("h264_times_as_stored.avi", 60)
_written("h264_no_times.h264", 60)
_written("h264_late_cut.mkv", lambda: textured(160), options=OPEN_X264)
_written("h264_intra_refresh.mkv", lambda: textured(160),
         options={"x264-params": "keyint=50:intra-refresh=1:bframes=0"})  # fmt: skip
_written("h264_interlaced.mkv", lambda: textured(40, 64, 96),
         options={"x264-params": "interlaced=1", "flags": "+ildct+ilme"})  # fmt: skip
_written("hevc.mp4", lambda: textured(60), codec="libx265", options=OPEN_X265)
_written("hevc_late_cut.mkv", lambda: textured(160), codec="libx265", options=OPEN_X265)
_written("hevc_10bit.mkv", lambda: textured(40), codec="libx265", pixel_format="yuv420p10le",
         options={"x265-params": "log-level=none"})  # fmt: skip
_written("hevc_no_times.hevc", 40, codec="libx265", options={"x265-params": "log-level=none"})
_written("av1.mp4", lambda: textured(40, 64, 96), codec="libsvtav1", options={"preset": "10", "g": "16"})
_written("vp9_odd_size.webm", 40, codec="libvpx-vp9", size=(47, 83))
_written("vp8_hidden_frames.webm", lambda: textured(60), codec="libvpx",
         options={"auto-alt-ref": "1", "lag-in-frames": "16", "g": "40", "cpu-used": "4"})  # fmt: skip
_written("mpeg4_b.mp4", 60, codec="mpeg4", options={"bf": "2", "g": "12"})
_written("mpeg4_b.avi", 60, codec="mpeg4", options={"bf": "2", "g": "12"})
_written("mpeg2.mpg", 60, fps=25, codec="mpeg2video", options={"bf": "2", "g": "12"}, size=(64, 96))
_written("mjpeg.avi", 20, codec="mjpeg", pixel_format="yuvj420p")
_written("prores.mov", 20, codec="prores_ks", pixel_format="yuv422p10le")
_written("ffv1_grey_odd_size.mkv", 20, codec="ffv1", pixel_format="gray", size=(31, 53))
_written("tiny.mkv", 20, codec="ffv1", size=(2, 10))
_written("gif.gif", 20, codec="gif", pixel_format="rgb8")
_written("wmv.wmv", 60, codec="wmv2")
_written("one_frame.mp4", 1)
_written("one_frame.mkv", 1)
_written("two_frames.mp4", 2)
_written("a_frame_in_30_s.mp4", 5, fps=1, ticks=[0, 30, 60, 90, 120])
_written("1000_fps.mkv", 300, fps=1000)
_written("5000_fps.mp4", 300, fps=5000)
_written("5000_fps_on_a_1_ms_clock.mkv", 300, fps=5000)
_written("variable_rate.mkv", 12, ticks=[0, 1, 2, 3, 10, 11, 30, 31, 32, 50, 51, 60])
_written("variable_rate.mp4", 300, fps=1000, ticks=np.cumsum(np.random.default_rng(1).integers(5, 200, 300)).tolist())
_written("starts_at_2_s.mp4", 40, ticks=range(25, 65))
_written("starts_at_2_s.mkv", 40, ticks=range(25, 65))
_written("square_pixels_no.mkv", 20, options={"x264-params": "sar=4/3"})
_cut("first_keyframe_missing.mkv", "h264.ts", lambda place: place >= 5)
_cut("first_keyframe_missing.mp4", "h264.ts", lambda place: place >= 5)
_cut("first_keyframe_missing.ts", "h264.ts", lambda place: place >= 5)
_cut("hole_in_the_middle.mkv", "h264_late_cut.mkv", lambda place: not 41 <= place < 45)
_cut("h264_begins_open.mkv", "h264_late_cut.mkv", lambda place: place >= 40)
_cut("hevc_begins_open.mkv", "hevc_late_cut.mkv", lambda place: place >= 40)


def _turned(quarters: int) -> Maker:
    """Rewrites the display matrix of an mp4's video track: players turn the picture clockwise (ISO 14496-12, 8.3.2)."""
    one = 1 << 16
    a, b, c, d = [(one, 0, 0, one), (0, one, -one, 0), (-one, 0, 0, -one), (0, -one, one, 0)][quarters]

    def make(path: Path) -> Path:
        data = bytearray(write_video(path, 25).read_bytes())
        at = data.index(b"tkhd") + 4
        at += 40 if data[at] == 0 else 52
        data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
        path.write_bytes(data)
        return path

    return make


for _quarters in (1, 2, 3):
    _odd(f"turned_by_{90 * _quarters}.mp4")(_turned(_quarters))


@_odd("edit_list.mp4")
def _edit_list(path: Path) -> Path:
    """Its edit list begins 1.7 s later, in the middle of a group of pictures, and ends 0.8 s earlier."""
    data = bytearray(write_video(path, 60).read_bytes())
    at = data.index(b"elst")
    length, start = struct.unpack_from(">Ii", data, at + 12)
    struct.pack_into(">Ii", data, at + 12, length - 2500, start + 17 * 1024)
    path.write_bytes(data)
    return path


def _shifted(name: str, ticks: int, options: dict[str, str]) -> None:
    ODD[name] = lambda folder: remux(write_video(folder / f"from_{name}", 60), folder / name, shift=ticks,
                                     options=options)  # fmt: skip


_shifted("negative_start.mp4", -20 * 1024, {"avoid_negative_ts": "disabled", "use_editlist": "0"})
_shifted("negative_start_by_edit_list.mp4", -25 * 1024, {"avoid_negative_ts": "disabled"})
_shifted("no_edit_list.mp4", 0, {"use_editlist": "0"})
_shifted("fragments.mp4", 0, {"movflags": "frag_keyframe+empty_moov"})


@_odd("fragments_from_5_s.mp4")
def _late_fragments(path: Path) -> Path:
    """Of a live stream: the decode time of each fragment is 5 s later."""
    data = bytearray(remux(write_video(path.with_name("whole.mp4"), 60), path,
                           options={"movflags": "frag_keyframe+empty_moov"}).read_bytes())  # fmt: skip
    at = data.find(b"tfdt")
    while at >= 0:
        size = 8 if data[at + 4] else 4  # by the version of the box
        time = int.from_bytes(data[at + 8 : at + 8 + size], "big") + 5 * 10_240
        data[at + 8 : at + 8 + size] = time.to_bytes(size, "big")
        at = data.find(b"tfdt", at + 4)
    path.write_bytes(data)
    return path



def _streams(path: Path, sizes: Sequence[tuple[int, int]], *, cover: int | None = None, audio_s: float = 0.0,
             late: int = 0) -> Path:
    """Video streams of these sizes side by side, each frame numbered 500 more than in the one before; `cover`: place of
    an attached picture among them; `audio_s` of sound from 0; the video begins `late` frames later."""
    import av

    with av.open(str(path), "w") as container:
        streams = []
        for place, (height, width) in enumerate(sizes):
            codec, form = ("mjpeg", "yuvj420p") if place == cover else ("libx264", "yuv420p")
            stream = container.add_stream(codec, rate=10, options={} if place == cover else {"bf": "2", "g": "12"})
            stream.height, stream.width, stream.pix_fmt = height, width, form
            if place == cover:
                stream.disposition = av.stream.Disposition.attached_pic
            streams.append(stream)
        sound = container.add_stream("aac", rate=8000, layout="mono") if audio_s else None
        for i in range(50):
            for place, stream in enumerate(streams):
                if place == cover and i > 0:
                    continue
                image = numbered_frame(i + 500 * place, stream.height, stream.width)
                frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=stream.pix_fmt)
                frame.pts, frame.time_base = i + late, Fraction(1, 10)
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
        if sound is not None:
            for start in range(0, int(8000 * audio_s) - 1023, 1024):
                wave = (np.sin(np.arange(start, start + 1024) / 5) * 0.1).astype(np.float32)[None]
                samples = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
                samples.sample_rate, samples.pts = 8000, start
                container.mux(sound.encode(samples))
            container.mux(sound.encode(None))
    return path


def _sides(name: str, sizes: Iterable[tuple[int, int]], **how: Any) -> None:
    ODD[name] = lambda folder: _streams(folder / name, list(sizes), **how)


SMALL, LARGE = (48, 80), (96, 160)
_sides("two_videos_small_first.mp4", (SMALL, LARGE))
_sides("two_videos_large_first.mkv", (LARGE, SMALL))
_sides("cover_first.mp4", (LARGE, SMALL), cover=0)
_sides("cover_last.mkv", (SMALL, LARGE), cover=1)
_sides("sound_longer.mp4", (SMALL,), audio_s=12.0)
_sides("sound_longer.ts", (SMALL,), audio_s=12.0)
_sides("sound_first.mkv", (SMALL,), audio_s=3.0, late=25)
_sides("sound_first.mp4", (SMALL,), audio_s=3.0, late=25)


def _joined(name: str, first: dict[str, Any], second: dict[str, Any]) -> None:
    def make(folder: Path) -> Path:
        parts = [write_video(folder / f"{i}_{name}", textured(40, *how.pop("size", SMALL)), **how)
                 for i, how in enumerate((dict(first), dict(second)))]  # fmt: skip
        (folder / name).write_bytes(b"".join(part.read_bytes() for part in parts))
        return folder / name

    ODD[name] = make


_joined("size_changes.ts", {}, {"size": (64, 96), "ticks": range(45, 85)})
_joined("size_changes.h264", {}, {"size": (64, 96)})
_joined("clock_starts_again.ts", {}, {})
_joined("clock_jumps_back.ts", {"ticks": range(100, 140)}, {"ticks": range(40)})
_shifted("clock_wraps.ts", 2**33 // 9 - 30 * 1024, {})


@_odd("bytes_after_the_end.mp4")
def _trailing(path: Path) -> Path:
    path.write_bytes(write_video(path, 40).read_bytes() + b"more" * 1000)
    return path


@_odd("no_frames.mp4")
def _no_frames(path: Path) -> Path:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 80, "yuv420p"
        container.start_encoding()
    return path
