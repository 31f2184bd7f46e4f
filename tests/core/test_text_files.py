"""Text files in the encodings that are certain; anything else by the name of what it is."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taro.core.errors import ConfigError
from taro.core.text_files import opened_text, read_text

TEXT = 'caf\u00e9, "\u72d7\u5728\u53eb"\n' * 3
WAYS: dict[str, Callable[[str], bytes]] = {
    "utf-8": str.encode,
    "mark": lambda text: text.encode("utf-8-sig"),
    "utf-16": lambda text: text.encode("utf-16"),
    "utf-16-be": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
    "utf-16 without mark": lambda text: text.encode("utf-16-le"),
    "utf-16-be without mark": lambda text: text.encode("utf-16-be"),
    "gzip": lambda text: gzip.compress(text.encode(), mtime=0),
    "two gzips": lambda text: gzip.compress(text[:5].encode(), mtime=0) + gzip.compress(text[5:].encode(), mtime=0),
    "gzip of utf-16": lambda text: gzip.compress(text.encode("utf-16"), mtime=0),
}


def read(path: Path, limit_bytes: int = 1 << 20) -> str:
    return read_text(path, error=ConfigError, limit_bytes=limit_bytes)


@pytest.mark.parametrize("way", WAYS)
def test_one_text_in_every_way_that_is_certain(tmp_path: Path, way: str) -> None:
    """The digest is that of the file, as it lies there."""
    path, digest = tmp_path / "a", hashlib.sha256()
    path.write_bytes(WAYS[way](TEXT * 20_000))
    assert read_text(path, error=ConfigError, limit_bytes=1 << 24, digest=digest) == TEXT * 20_000
    assert digest.hexdigest() == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("read_bytes", [0, 3, 100_000])
def test_the_digest_is_of_the_whole_file_however_little_was_read(tmp_path: Path, read_bytes: int) -> None:
    path, digest = tmp_path / "a", hashlib.sha256()
    path.write_bytes(gzip.compress(bytes(range(97, 120)) * 50_000, 1))
    with opened_text(path, error=ConfigError, digest=digest) as file:
        file.read(read_bytes)
    assert digest.hexdigest() == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"PK\x03\x04...", "a zip archive"),
        (b"PAR1....", "a parquet table"),
        (bz2.compress(b"a"), "a bzip2 file"),
        (lzma.compress(b"a"), "an xz file"),
        (b"\x28\xb5\x2f\xfd...", "a zstd file"),
        (pickle.dumps({"a": 1}), "a Python pickle"),
        (b"\n<!DOCTYPE html><html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
        (b"%PDF-1.4", "a PDF"),
        ("a".encode("utf-32"), "UTF-32"),
        (gzip.compress(b"a" * 1000, mtime=0)[:-9], "a damaged gzip file"),
        (gzip.compress(b"a", mtime=0) + b"rest", "a damaged gzip file"),
        (gzip.compress(b"PK\x03\x04", mtime=0), "a zip archive"),
        (b"\xff\xfea\x00\x00\xd8", "not valid UTF-16"),
        ("ab caf\u00e9".encode("latin-1"), r"a, line 1: not UTF-8 \(Latin-1, perhaps\)"),
        (b"a\nb\n" + "\u72d7\u5728\u53eb".encode("gbk"), r"a, line 3: not UTF-8 \(GBK, perhaps\)"),
        (b"a" * 101, "at most 100 bytes of text, got more"),
        (gzip.compress(b"a" * 10_000_000, mtime=0), "at most 100 bytes of text, got more"),
    ],
)  # fmt: skip
def test_anything_else_is_named(tmp_path: Path, data: bytes, named: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=named):
        read(path, 100)


def test_what_cannot_be_opened_is_one_message(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError, match="cannot be read"):
            read(path)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=2), st.sampled_from(sorted(WAYS)))
def test_no_character_is_lost_or_made(tmp_path: Path, text: str, way: str) -> None:
    """Zero bytes give UTF-16 away where its first two characters are ASCII."""
    text = "ab" + text
    path = tmp_path / "a"
    path.write_bytes(WAYS[way](text))
    assert read(path, 1 << 24) == text
