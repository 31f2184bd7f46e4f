"""Text files of other people as UTF-8: annotations, captions, lengths, predictions, recipes and templates.

What a file is decides its content, not its name. UTF-8 is read, with a byte order mark or without; UTF-16, which its
mark or its zero bytes give away; and gzip of either. Anything else is refused by the name of what it is: an archive, a
table, a pickle, a page of a web server. Bytes that are not UTF-8 are never guessed at: Latin-1 and GBK decode each
other's texts, to other words. Streams are bounded by who reads them; a line or a block is all that is held.

Left out: compression besides gzip, which is named and refused."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from taro.core.errors import TaroError
from taro.core.files import open_regular

__all__ = ["HEAD_BYTES", "likely_encoding", "opened_text", "other_kind", "read_text"]

BLOCK = 1 << 16
HEAD_BYTES = 512
_MAGIC = {
    b"PK\x03\x04": "a zip archive (xlsx is one)", b"PAR1": "a parquet table (--dataset hf reads those)",
    b"ARROW1": "an Arrow table", b"BZh": "a bzip2 file", b"\xfd7zXZ\x00": "an xz file",
    b"\x28\xb5\x2f\xfd": "a zstd file", b"7z\xbc\xaf\x27\x1c": "a 7z archive", b"%PDF-": "a PDF",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an old Office file (xls)", b"\x89HDF\r\n": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array", b"SQLite format 3\x00": "a SQLite database", b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture", b"version https://git-lfs": "a Git LFS pointer (fetch it with git lfs pull)",
}  # fmt: skip
_UTF_16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


class _Hashed(io.RawIOBase):
    """A file whose bytes are hashed as they are read."""

    def __init__(self, file: BinaryIO, digest: Any) -> None:
        self._file, self._digest = file, digest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        self._digest.update(data)
        buffer[: len(data)] = data
        return len(data)


class _Recoded(io.RawIOBase):
    """A stream of UTF-16 as UTF-8."""

    def __init__(self, stream: io.BufferedReader, encoding: str) -> None:
        self._stream, self._decoder = stream, codecs.getincrementaldecoder(encoding)()
        self._left, self._ended = b"", False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left and not self._ended:
            data = self._stream.read1(BLOCK)
            self._ended = not data
            self._left = self._decoder.decode(data, final=self._ended).encode("utf-8")
        found, self._left = self._left[: len(buffer)], self._left[len(buffer) :]
        buffer[: len(found)] = found
        return len(found)


@contextmanager
def opened_text(path: Path, *, error: type[TaroError], digest: Any = None) -> Iterator[io.BufferedReader[Any]]:
    """The file as a stream of UTF-8 bytes without byte order mark; not decoded, since a reader of lines can name the
    line that is none. `digest`: a hash that gets all bytes of the file itself, once the block ends without an error.
    Raises `error` that names what the file is, or what is wrong with it, also while the stream is read."""
    digest = hashlib.sha256() if digest is None else digest
    try:
        with open_regular(path) as file:
            raw = io.BufferedReader(_Hashed(file, digest), BLOCK)
            zipped = _head(raw)[:2] == b"\x1f\x8b"
            stream = io.BufferedReader(gzip.GzipFile(fileobj=raw), BLOCK) if zipped else raw
            yield _as_utf_8(stream, path, error)
            while raw.read(BLOCK):  # what is left is part of the digest
                pass
    except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
        raise error(f"{path}: a damaged gzip file ({str(problem)[:100]}); fetch it again, or unpack it") from None
    except UnicodeDecodeError as problem:
        raise error(f"{path}: not valid {problem.encoding.upper()} ({problem.reason}); save it as UTF-8") from None
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror}; check the path and its permissions") from None


def read_text(path: Path, *, error: type[TaroError], limit_bytes: int, digest: Any = None) -> str:
    """The whole of a small file. Raises `error` where it is larger, or is no text in UTF-8."""
    with opened_text(path, error=error, digest=digest) as stream:
        data = stream.read(limit_bytes + 1)
        if len(data) > limit_bytes:
            raise error(f"{path}: expected at most {limit_bytes:,} bytes of text, got more")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as problem:
        line = data.count(b"\n", 0, problem.start) + 1
        raise error(f"{path}, line {line}: not UTF-8 ({likely_encoding(data[problem.start - 1 :][:1000])}); save it as "
                    "UTF-8") from None


def likely_encoding(data: bytes) -> str:
    """What bytes that are not UTF-8 may be, for a message; nothing is decoded on its word.

    >>> likely_encoding("caf\u00e9 au lait".encode("latin-1")), likely_encoding("\u72d7\u5728\u53eb".encode("gbk"))
    ('Latin-1, perhaps', 'GBK, perhaps')
    """
    try:
        wide = any("\u4e00" <= char <= "\u9fff" for char in data.decode("gbk"))
    except UnicodeDecodeError:
        wide = False
    return "GBK, perhaps" if wide else "Latin-1, perhaps"


def other_kind(head: bytes) -> str | None:
    """What a file that begins with `head` is, where it is no text in UTF-8 or UTF-16 that may be meant.

    >>> other_kind(b"PAR1"), other_kind(b"{}")
    ('a parquet table (--dataset hf reads those)', None)
    """
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05" and len(head) > 1:
        return "a Python pickle, which taro never opens"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "an HTML page (of a login or an error, perhaps)"
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "UTF-32"
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)


def _head(stream: io.BufferedReader[Any]) -> bytes:
    """The first bytes, which stay to be read (a stream may hand over fewer than it has)."""
    return stream.peek(HEAD_BYTES)[:HEAD_BYTES]


def _as_utf_8(stream: io.BufferedReader[Any], path: Path, error: type[TaroError]) -> io.BufferedReader[Any]:
    head = _head(stream)
    kind = other_kind(head)
    if kind is not None:
        raise error(f"{path}: expected text, got {kind}; give the file itself, as text in UTF-8")
    if head.startswith(codecs.BOM_UTF8):
        stream.read(len(codecs.BOM_UTF8))
        return stream
    encoding = _UTF_16.get(head[:2])
    if encoding is not None:
        stream.read(2)
    elif len(head) >= 4 and [bool(byte) for byte in head[:4]] in ([True, False] * 2, [False, True] * 2):
        encoding = "utf-16-le" if head[0] else "utf-16-be"  # two ASCII characters; UTF-8 has no zero bytes
    return stream if encoding is None else io.BufferedReader(_Recoded(stream, encoding), BLOCK)
