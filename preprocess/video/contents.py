"""What a file is, by its own bytes: the FFmpeg demuxer of a video container, or the name of what is no video.

FFmpeg would look for itself, but it also knows formats that name other files and URLs (playlists, scripts, image
patterns, session descriptions), and it weighs the file's name. So the demuxer is chosen here, by content alone, from a
list of containers that hold their own data. Everything else is refused before FFmpeg or decord see a byte.

Left out: whether the container is whole (inspect.py), except for an mp4 without an index, which FFmpeg cannot name."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from taro.core.errors import VideoError

__all__ = ["HEAD_BYTES", "check_contents", "demuxer_of", "is_plain_mp4", "opened_file", "what_it_is"]

HEAD_BYTES = 4096
"""bytes that are looked at"""
MAX_BOXES = 100_000
"""top-level boxes of an mp4 that are walked over in search of its index"""
TS_PACKETS = 5
"""packets of a transport stream that must begin with its sync byte"""

CONTAINERS = {
    "matroska": (b"\x1aE\xdf\xa3",), "flv": (b"FLV\x01",), "asf": (b"0&\xb2u\x8ef\xcf\x11",), "ogg": (b"OggS",),
    "gif": (b"GIF87a", b"GIF89a"), "rm": (b".RMF",), "mxf": (b"\x06\x0e+4",), "nut": (b"nut/multimedia container",),
    "yuv4mpegpipe": (b"YUV4MPEG2 ",), "ivf": (b"DKIF",), "dv": (b"\x1f\x07\x00",),
    "wtv": (b"\xb7\xd8\x00 7I\xda\x11\xa6N\x00\x07\xe9^\xad\x8d",),
}  # fmt: skip
"""FFmpeg's demuxer, and the first bytes of its containers"""
BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"moof", b"sidx", b"uuid", b"prft",
         b"emsg"}  # fmt: skip
"""types of box that an mp4, mov or 3gp begins with (ISO 14496-12)"""
PICTURE_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"mif1", b"avif", b"crx "}
"""major brands of HEIF files that hold still pictures (ISO 23008-12)"""

PICTURE, INSIDE, VIDEO = "give a video, not a picture", "give the video inside it", "give a video"
PLAYLIST = ("a playlist or script", "give the video itself")
OTHERS = (
    ("a Git LFS pointer", "fetch the file itself with git lfs pull", (b"version https://git-lfs.github.com",)),
    (*PLAYLIST,
     (b"#EXTM3U", b"ffconcat", b"v=0\r\n", b"v=0\n", b"[playlist]", b"[Reference]", b"RTSPtext", b"MPLS0", b"INDX0",
      b"MOBJ0", b"<MPD", b"<smil", b"<SmoothStreamingMedia", b"<asx")),
    ("an HTML page", "the download got a web page: fetch the video itself",
     (b"<!doctype html", b"<html", b"<head", b"<body")),
    ("a picture (PNG)", PICTURE, (b"\x89PNG",)),
    ("a picture (JPEG)", PICTURE, (b"\xff\xd8\xff",)),
    ("a picture (TIFF)", PICTURE, (b"II*\0", b"MM\0*")),
    ("a picture (SVG)", PICTURE, (b"<svg",)),
    ("a picture", PICTURE, (b"8BPS", b"\0\0\0\x0cjP  ", b"\0\0\0\x0cJXL ", b"\xff\x0a", b"\0\0\1\0", b"v/1\1")),
    ("an archive or a compressed file", INSIDE,
     (b"PK\3\4", b"PK\5\6", b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!", b"\xfd7zXZ", b"(\xb5/\xfd", b"BZh")),
    ("a sound file", VIDEO, (b"ID3", b"fLaC", b"#!AMR", b"MThd")),
    ("a PDF", VIDEO, (b"%PDF",)),
    ("a parquet file", VIDEO, (b"PAR1",)),
    ("a numpy file", VIDEO, (b"\x93NUMPY",)),
    ("a program", VIDEO, (b"\x7fELF", b"MZ\x90\0")),
    ("an XML file", "look at it: it may be an error message of the server", (b"<?xml",)),
)  # fmt: skip
"""what it is, what to do, first bytes; those that are text count in any case, and behind blanks"""


@contextmanager
def opened_file(path: Path) -> Iterator[int]:
    """Descriptor of a regular file of more than 0 bytes, opened without waiting: a pipe is refused. Raises VideoError:
    missing, unreadable, not a file, empty."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a device may act on being opened
            raise VideoError(f"{path.name}: not a file; give a video file", reason="not a file")
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise VideoError(f"{path.name}: no such file; check the videos folder", reason="missing",
                         transient=True) from None
    except OSError as error:
        raise VideoError(f"{path.name}: cannot be opened ({error.strerror}); check the mount and its rights",
                         reason="unreadable", transient=True) from None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise VideoError(f"{path.name}: not a file; give a video file", reason="not a file")
        if found.st_size == 0:
            raise VideoError(f"{path.name}: 0 bytes; copy it again", reason="empty")
        yield descriptor
    finally:
        os.close(descriptor)


def demuxer_of(descriptor: int, name: str) -> str:
    """FFmpeg's name for the container. Raises VideoError: not a video (which says what it is), no video stream,
    truncated."""
    try:
        head = os.pread(descriptor, HEAD_BYTES, 0)
        demuxer = _demuxer(head)
        if demuxer is None:
            what, advice = what_it_is(head)
            raise VideoError(f"{name}: {what}, not a video; {advice}", reason="not a video")
        if demuxer == "mov" and not _has_index(descriptor):
            raise VideoError(f"{name}: an mp4 without its index (no moov box): a piece of a stream, or it "
                             "was cut short, copy it again",
                             reason="truncated")
    except OSError as error:
        raise VideoError(f"{name}: cannot be opened ({error.strerror}); check the mount and its rights",
                         reason="unreadable", transient=True) from None
    return demuxer


def check_contents(path: Path) -> None:
    """Raises VideoError where a file is no video by what `demuxer_of` looks at: a few bytes, before any is decoded."""
    with opened_file(path) as descriptor:
        demuxer_of(descriptor, path.name)


def is_plain_mp4(descriptor: int) -> bool:
    """Whether the file begins with an ftyp box of ordinary size: no text format of any FFmpeg begins so."""
    head = os.pread(descriptor, 8, 0)
    return head[:2] == b"\0\0" and head[4:] == b"ftyp"


def what_it_is(head: bytes) -> tuple[str, str]:
    """(what a file that begins with `head` is, what to do) of one that is no video container.

    >>> what_it_is(b"<!DOCTYPE html><html>")[0]
    'an HTML page'
    >>> what_it_is(b"xyz\\0")[0]
    'no container that taro knows'
    """
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "a picture (WebP)", PICTURE
    if head[4:8] == b"ftyp":
        return "a picture (HEIF)", PICTURE
    if text[:1] == b"<" and b"<mpd" in text:
        return PLAYLIST
    for what, advice, starts in OTHERS:
        if any(head.startswith(start) or (start.isascii() and text.startswith(start.lower())) for start in starts):
            return what, advice
    if head[257:262] == b"ustar":
        return "an archive or a compressed file", INSIDE
    if head[:2] == b"BM" and head[6:10] == b"\0\0\0\0":
        return "a picture (BMP)", PICTURE
    if (head[:4] == b"RIFF" and head[8:12] == b"WAVE") or (head[:1] == b"\xff" and head[1:2] >= b"\xe0"):
        return "a sound file", VIDEO
    if not head.strip(b"\0"):
        return "nothing but zero bytes where it begins", "the download was not finished: copy it again"
    if re.search(rb"[\0-\x08\x0e-\x1a]", head) is None:
        what = "a JSON file" if text[:1] in {b"{", b"["} else "a text file"
        return what, "look at it: it may be an error message of the server"
    return "no container that taro knows", "expected mp4, mov, mkv, webm, avi, ts or the like: re-encode it"


def _demuxer(head: bytes) -> str | None:
    if head[4:8] in BOXES and not re.fullmatch(rb"[ -~]{4}", head[:4]):  # text is no length of a box
        return None if head[4:8] == b"ftyp" and head[8:12] in PICTURE_BRANDS else "mov"
    if head[:4] == b"RIFF":
        return "avi" if head[8:12] in {b"AVI ", b"AVIX", b"AVI\x19", b"AMV "} else None
    if head[:4] == b"\x89PNG":
        return "apng" if b"acTL" in head.partition(b"IDAT")[0] else None
    for demuxer, starts in CONTAINERS.items():
        if head.startswith(starts):
            return demuxer
    return _stream(head) or _transport(head)


def _transport(head: bytes) -> str | None:
    """A transport stream, with packets of 188 bytes (and 4 before each, or 16 behind). The first may be
    incomplete, but neither text nor the start of a playlist stands before it: what follows makes no video of it."""
    for size in (188, 192, 204):
        for start in range(size):
            if head[start::size][:TS_PACKETS] == b"\x47" * TS_PACKETS:
                text = re.fullmatch(rb"[\t\n\r -~]*", head[:start]) or what_it_is(head) == PLAYLIST
                return None if start > 4 and text else "mpegts"
    return None


def _stream(head: bytes) -> str | None:
    """A stream that begins with a start code (MPEG, H.264, HEVC), without a container around it."""
    code = re.match(rb"\0{2,8}\x01(.)(.?)", head, re.DOTALL)
    if code is None:
        return None
    first, second = code[1][0], code[2]
    if first in {0xBA, 0xBB} or 0xC0 <= first <= 0xEF:
        return "mpeg"
    if first == 0xB3:
        return "mpegvideo"
    if first in {0x40, 0x42, 0x46, 0x4E} and second == b"\1":
        return "hevc"
    if (first < 0x80 and first & 31 in {5, 7, 9}) or first == 6:
        return "h264"
    return None


def _has_index(descriptor: int) -> bool:
    """Whether an mp4 has a whole moov box among its top-level boxes, as far as they can be walked over."""
    at, size = 0, os.fstat(descriptor).st_size
    for _ in range(MAX_BOXES):
        head = os.pread(descriptor, 16, at)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        if kind == b"moov":
            return at + length <= size
        if 0 < length < 8:
            return True
        if length == 0 or at + length >= size:
            return False
        at += length
    return True
