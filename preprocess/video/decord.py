"""decord, where it is right: a second decoder, chosen by `decode.decoder: decord`.

decord 0.6 hands out wrong frames without a word on many files, so it is asked only where everything below holds; each
line is a kind of file on which it was seen to be wrong (tests/preprocess/test_odd_videos.py has one of each):

- a plain mp4, by its first bytes, opened through a descriptor: decord's FFmpeg guesses the format, by bytes and by the
  ending of the name, and would open what a playlist names; no playlist begins with these bytes;
- H.264 of 8 bits, 4:2:0 and progressive: after a seek MPEG-4 with B-frames and HEVC are off; others cannot be opened;
- the only video stream of its file: decord takes another one than players do;
- every jump target is an IDR frame: behind any other keyframe lie frames that lean on what came before it;
- no edit list, no rotation, no negative start: all three are ignored;
- a constant rate: where packets are missing its frames are shifted, which only the gap in their times shows;
- its own count and timestamps are those of the demuxer.

What is left is damage inside a packet: decord returns such frames as if they were whole."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator

import numpy as np

from taro.core.errors import MissingPackageError
from taro.preprocess.video.contents import is_plain_mp4, opened_file
from taro.preprocess.video.inspect import Inspection, opened

__all__ = ["check_installed", "is_right", "read"]

CHUNK_BYTES = 4 * 2**20
"""of frames that decord hands out at once, or one frame"""
IDR, LAST_SLICE = 5, 5
"""H.264 NAL unit types (ITU-T H.264, table 7-1): 1 to 5 are slices of a picture, 5 those of an IDR picture"""


def check_installed() -> None:
    """Raises MissingPackageError where decord is asked for and is not there: before a job, not clip by clip."""
    if importlib.util.find_spec("decord") is None:
        raise MissingPackageError("decode.decoder=decord needs decord, which is not installed; pip install "
                                  "'taro-vtg[decord]' (it has wheels for Linux on x86_64 alone), or leave "
                                  "decode.decoder=auto: PyAV reads every file")


def is_right(video: Inspection) -> bool:
    """Whether decord is known to be right on such a file."""
    plain = (video.exact and video.codec == "h264" and video.pixel_format == "yuv420p" and not video.interlaced
             and video.streams == 1 and video.discarded == video.rotation == 0 and video.start_s >= 0)
    return plain and (video.frames < 3 or np.ptp(np.diff(video.pts_N)) <= 1) and _closed(video)


def read(video: Inspection, unique: np.ndarray, add: Callable[[np.ndarray], None]) -> bool:
    """Hands the shown frames `unique` (ascending places) to `add`. False where decord cannot be imported, fails, or
    counts or times frames otherwise than the demuxer does; what was added until then is to be forgotten."""
    try:
        import decord
    except ImportError:
        return False
    decord.logging.set_level(decord.logging.QUIET)
    try:
        with opened_file(video.path) as descriptor:
            if not is_plain_mp4(descriptor):
                return False
            reader = decord.VideoReader(f"/proc/self/fd/{descriptor}", num_threads=1)
        if len(reader) != video.frames:
            return False
        stamps = reader.get_frame_timestamp(unique.tolist())[:, 0]
        if np.abs(stamps - video.start_s - video.times_s[unique]).max() > 0.25 / video.fps:
            return False
        chunk = max(1, CHUNK_BYTES // (video.width * video.height * 3))
        for start in range(0, len(unique), chunk):
            for frame in reader.get_batch(unique[start : start + chunk].tolist()).asnumpy():
                add(frame)
        del reader
    except (decord.DECORDError, RuntimeError, IndexError):
        return False
    return True


def _closed(video: Inspection) -> bool:
    """Whether the file begins with an IDR frame and every packet that is called a keyframe holds one."""
    from av.error import FFmpegError

    first = True
    with opened(video.path) as (container, stream):
        header = stream.codec_context.extradata or b""
        size = (header[4] & 3) + 1 if len(header) > 4 and header[0] == 1 else 0  # avcC; else start codes
        try:
            for packet in container.demux(stream):
                if packet.size == 0:
                    continue
                if (first or packet.is_keyframe) and _first_slice(bytes(packet), size) != IDR:
                    return False
                first = False
        except FFmpegError:
            return False
    return not first


def _first_slice(data: bytes, size: int) -> int | None:
    """NAL unit type of the first slice in a packet; `size`: bytes of a unit's length, 0 for start codes."""
    kinds = (data[at] & 31 for at in _units(data, size) if at < len(data))
    return next((kind for kind in kinds if 1 <= kind <= LAST_SLICE), None)


def _units(data: bytes, size: int) -> Iterator[int]:
    """Where each NAL unit begins."""
    at = 0
    if size == 0:
        while (at := data.find(b"\0\0\1", at)) >= 0:
            at += 3
            yield at
        return
    while at + size < len(data):
        length = int.from_bytes(data[at : at + size], "big")
        yield at + size
        at += size + length
