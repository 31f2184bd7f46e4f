"""What the files of a model folder may be before a library opens them: regular files of a bounded size, and a tokenizer
that cannot multiply a text.

Libraries open what they find: a pipe would block for ever, and a tokenizer's normalizer is a program that replaces text
by text, again and again. Its growth is computed from tokenizer.json before that is loaded; a step whose growth cannot
be told is refused. A list of known steps is enough: what other tools write for these families is in it."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from taro.core.errors import ModelError
from taro.core.json import MAX_JSON_BYTES, read_json

__all__ = ["check_files", "check_tokenizer_files", "growth", "tokenizer_errors"]

MAX_FILES = 4096
MAX_GROWTH = 64.0
"""times that a text may become longer, all steps together"""
READ = {".json", ".jinja", ".txt", ".model", ".yaml", ".yml"}
"""endings of the files that are read whole"""
STEPS = {
    "normalizer": {"NFC": 3.0, "NFD": 4.0, "NFKC": 18.0, "NFKD": 18.0, "Lowercase": 3.0, "Strip": 1.0,
                   "StripAccents": 1.0, "Nmt": 1.0, "ByteLevel": 4.0},
    "pre_tokenizer": {"ByteLevel": 4.0, "Metaspace": 4.0, "Whitespace": 1.0, "WhitespaceSplit": 1.0, "Digits": 1.0,
                      "Punctuation": 1.0, "Split": 1.0, "UnicodeScripts": 1.0, "BertPreTokenizer": 1.0},
    "decoder": {"ByteLevel": 4.0, "Metaspace": 3.0, "WordPiece": 3.0, "BPEDecoder": 3.0, "CTC": 3.0, "Fuse": 1.0,
                "ByteFallback": 1.0},
}
"""part of a tokenizer -> its steps in the library `tokenizers`, and how many times longer each can make a text, in
bytes. A type that is none of its part's is read by the library as whatever its settings fit. Left out are those that
panic on some texts: BertNormalizer, FixedLength, and Strip as a decoder"""
SEQUENCES = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}


def check_files(folder: Path) -> None:
    """Raises ModelError where an entry of a model folder is a pipe, a socket or a device, or a file that is read whole
    is too large."""
    for count, file in enumerate(_entries(folder)):
        if count >= MAX_FILES:
            raise ModelError(f"{folder}: more than {MAX_FILES:,} files; expected a model folder")
        try:
            found = file.stat()
        except OSError:  # a link to nothing: whoever needs the file says that it is missing
            continue
        if stat.S_ISDIR(found.st_mode):
            continue
        if not stat.S_ISREG(found.st_mode):
            raise ModelError(f"{file}: a pipe, a socket or a device; expected a regular file")
        if file.suffix in READ and found.st_size > MAX_JSON_BYTES:
            raise ModelError(f"{file}: {found.st_size:,} bytes; expected at most {MAX_JSON_BYTES:,} of a file "
                             "that is read whole")


def _entries(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        return
    yield from folder.iterdir()
    templates = folder / "additional_chat_templates"
    if templates.is_dir():
        yield from templates.iterdir()


def check_tokenizer_files(folder: Path) -> None:
    """Raises ModelError where a tokenizer of the folder could make a text more than `MAX_GROWTH` times longer."""
    others = read_json(folder / "tokenizer_config.json").get("fast_tokenizer_files")
    if others is not None and not (isinstance(others, list) and all(
            isinstance(name, str) and re.fullmatch(r"tokenizer[\w.-]*\.json", name) for name in others)):
        raise ModelError(f"{folder / 'tokenizer_config.json'}: fast_tokenizer_files are {others!s:.60}; expected names "
                         "of files tokenizer*.json in this folder")
    for file in sorted(folder.glob("tokenizer*.json")):
        stored = read_json(file)
        for part in STEPS:
            try:
                times = growth(stored.get(part), part)
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
                raise ModelError(f"{file}: its {part} holds a step that is not known ({error!s:.80}); take the base "
                                 "model's tokenizer") from None
            if times > MAX_GROWTH:
                raise ModelError(f"{file}: its {part} can make a text {times:,.0f} times longer; expected at most "
                                 f"{MAX_GROWTH:.0f} times")


def growth(step: Any, part: str = "normalizer") -> float:
    """How many times longer a step of a `part` of tokenizer.json can make a text: its own factor, or the product of its
    steps'. LookupError, or another, for a step that is not known.

    >>> growth({"type": "Replace", "pattern": {"String": " "}, "content": "__"})
    2.0
    """
    if step is None:
        return 1.0
    kind = step["type"]
    if kind == "Sequence":
        times = 1.0
        for inner in step[SEQUENCES[part]]:
            times = min(times * growth(inner, part), 1e300)
        return times
    if kind == "Prepend" and part == "normalizer":
        return 1.0 + len(step["prepend"].encode())
    if kind == "Replace" and part != "pre_tokenizer":
        added, shortest = len(step["content"].encode()), len(step["pattern"].get("String", "").encode())
        # A regular expression may match nothing, and so before and after every character.
        return max(1.0, added / shortest) if shortest else 1.0 + 2 * added
    return STEPS[part][kind]


@contextmanager
def tokenizer_errors(folder: Path) -> Iterator[None]:
    """Whatever transformers and tokenizers raise inside becomes a ModelError: they let through whatever a wrong value
    in a file leads to, and a panic of the Rust library is not even an Exception."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelError(f"{folder}: the tokenizer cannot be used: {error!s:.200}; copy its files again") from None
