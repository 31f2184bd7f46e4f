"""What only this machine knows, taken out of the texts about a set before they leave it.

Stage 1 writes bare names alone, but `detail` of a skipped row, a caption template or a set of another program may hold
more. Replaced in every text of the manifest and of skipped.parquet: folders on the way to a file (its last name stays),
URLs (the same; a licence's plain web address stays), mail and login addresses, this machine's and its user's names,
well-known forms of keys, and the values of environment variables that are called secret. The result is a function of
the text and the machine, and of a redacted text the same text.

Left out: captions, queries and pictures, which are what is shared; `taro.shards.writer` lets no path into them."""

from __future__ import annotations

import getpass
import os
import re
import socket
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from taro.shards.format import Manifest

__all__ = ["redacted", "redacted_manifest", "redacted_value"]

HIDDEN = "[redacted]"
SHORTEST_NAME = 3
"""characters of a machine's or a user's name that are looked for; shorter ones stand in words"""
SHORTEST_SECRET = 8
COMMON = {"root", "user", "users", "admin", "ubuntu", "localhost", "runner", "home", "train", "test", "data", "video",
          "default", "none", "clip", "taro"}
"""names of users and machines that tell nothing, and are words of manifests"""

_LICENCE_LINK = re.compile(r"https?://(?:creativecommons\.org|opendatacommons\.org|opensource\.org|www\.apache\.org|"
                           r"huggingface\.co|github\.com|spdx\.org)/[A-Za-z0-9_./-]*")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\"'<>]*")
_ADDRESS = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)*:?")
_PATH = re.compile(r"(?:(?<![\w.~/\\])(?:~[\w.-]*|[A-Za-z]:)?[/\\](?=[^\s/\\\"'<>|]+[/\\])|"
                   r"(?<![\w.~/\\])~[\w.-]*/|\\\\)"
                   r"(?:[^\s/\\\"'<>|]+[/\\]+)*([^\s/\\\"'<>|]*)")
_TOKENS = re.compile(r"hf_[A-Za-z0-9]{16,}|(?:AKIA|ASIA)[A-Z0-9]{12,}|gh[pousr]_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|"
                     r"github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{20,}|xox[abeprs]-[A-Za-z0-9-]{10,}|"
                     r"AIza[A-Za-z0-9_-]{30,}|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?|"
                     r"-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*(?:-----END [A-Z ]*PRIVATE KEY-----)?|"
                     r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}:\d{1,5}(?!\d)|"
                     r"(?:password|passwd|secret|api[_-]?key|access[_-]?token)[\"']?\s*[:=]\s*[\"']?[^\s&\"']+|"
                     r"(?:X-Amz-[A-Za-z-]+|Signature|sig|token|password|secret)=[^\s&\"']+", re.IGNORECASE)
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)


def redacted(text: str) -> str:
    """`text` without what only this machine knows.

    >>> redacted("/data/team/videos/a.mp4: no such file")
    'a.mp4: no such file'
    >>> redacted("s3://bucket/set/a.mp4?X-Amz-Signature=0f1e"), redacted("OWNER/NAME"), redacted("and/or")
    ('a.mp4', 'OWNER/NAME', 'and/or')
    """
    for known in _secrets():
        text = text.replace(known, HIDDEN)
    for folder in _folders():
        text = text.replace(f"{folder}{os.sep}", "").replace(folder, HIDDEN)
    text = _URL.sub(_bare_url, text)
    text = _TOKENS.sub(HIDDEN, text)
    text = _ADDRESS.sub(HIDDEN, text)
    text = _PATH.sub(lambda found: found[1] or HIDDEN, text)
    for name in _names():
        text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", HIDDEN, text, flags=re.IGNORECASE)
    return text


def redacted_value(value: Any) -> Any:
    """JSON with every text in it redacted, keys too."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {redacted(str(key)): redacted_value(inner) for key, inner in value.items()}
    return [redacted_value(inner) for inner in value] if isinstance(value, list | tuple) else value


def redacted_manifest(manifest: Manifest) -> Manifest:
    """A manifest with every free text redacted; kinds, digests and counts are what they were."""
    facts = {name: redacted_value(getattr(manifest, name)) for name in ("name", "captioner", "versions", "config")}
    source = redacted_value(manifest.provenance.model_dump())
    encoders = [one.model_copy(update={"model_id": redacted(one.model_id),
                                       "revision": redacted_value(one.revision)}) for one in manifest.encoders]
    clips = [one.model_copy(update={"model": redacted(one.model)}) for one in manifest.clip_encoders]
    return manifest.model_copy(update={**facts, "provenance": type(manifest.provenance)(**source),
                                       "encoders": encoders, "clip_encoders": clips})


def _bare_url(found: re.Match[str]) -> str:
    """The last name of a URL without its query; a licence's address as it is."""
    if _LICENCE_LINK.fullmatch(found[0]):
        return found[0]
    parts = re.split(r"[?#;]", found[0].partition("://")[2])[0].split("/")
    return parts[-1] if len(parts) > 1 and parts[-1] and "@" not in parts[-1] else HIDDEN


@cache
def _folders() -> tuple[str, ...]:
    """Folders of this machine whose names may hold blanks, longest first."""
    found = {str(Path.home()), str(Path.cwd()), tempfile.gettempdir()}
    return tuple(sorted((one for one in found if len(Path(one).parts) > 2), key=lambda one: (-len(one), one)))


@cache
def _names() -> tuple[str, ...]:
    """Names of this machine and of its user, longest first."""
    found = {socket.gethostname(), socket.gethostname().partition(".")[0], *_user()}
    return tuple(sorted((one for one in found if len(one) >= SHORTEST_NAME and one.lower() not in COMMON),
                        key=lambda one: (-len(one), one)))


def _user() -> list[str]:
    try:
        return [getpass.getuser()]
    except (OSError, KeyError):  # no such user in this container
        return []


def _secrets() -> list[str]:
    """Values of environment variables that are called secret, longest first."""
    return sorted((value for name, value in os.environ.items() if _SECRET_NAME.search(name)
                   and len(value) >= SHORTEST_SECRET and not value.isalpha()), key=len, reverse=True)
