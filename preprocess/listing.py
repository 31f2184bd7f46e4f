"""The files of a videos folder, and which of them an annotated name means.

A name means the file at that path; else the one file of that name, or of that name without its extension, in any
folder; else, where names bring the folders that their authors had and the files lie side by side, the file of the bare
name. Where two files could be meant, or two names would mean one file, nothing is chosen. A name that fits nothing is
answered with the files that look like it: other capitals, another extension, another Unicode form, other slashes.

What cannot be listed (a folder without rights, a lost mount) is not missing: see `Listing.unread`."""

from __future__ import annotations

import errno
import os
import posixpath
import stat as modes
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from taro.core.errors import ConfigError, VideoError

__all__ = ["Finder", "Listing", "check_videos", "list_videos", "plain_name"]

SHOWN = 3


@dataclass(frozen=True)
class Listing:
    """What lies under a folder. `videos`: path relative to it -> facts; `unread`: what could not be looked at, and why;
    `dangling`: links to files that are not there."""

    videos: dict[str, os.stat_result] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    dangling: list[str] = field(default_factory=list)


def check_videos(folder: Path) -> None:
    """Raises ConfigError where there is no such folder, or the file system does not say."""
    try:
        there = modes.S_ISDIR(folder.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        there = False
    except OSError as error:
        raise _unlisted(folder, error) from None
    if not there:
        raise ConfigError(f"videos {folder}: no such folder; expected the folder that holds the video files")


def list_videos(folder: Path) -> Listing:
    """Every file under `folder` with its path relative to it; hidden ones are left out, and so is a folder inside
    itself: links are followed, a circle of them is not. Raises ConfigError where the folder itself cannot be listed."""
    check_videos(folder)
    listing, errors = Listing(), list[OSError]()
    inside = {folder: {folder.resolve()}}  # a folder as walked, and what it and those around it really are
    for root, folders, files in os.walk(folder, followlinks=True, onerror=errors.append):
        around = inside.pop(Path(root))
        entered = {name: (Path(root) / name).resolve() for name in folders if not name.startswith(".")}
        folders[:] = sorted(name for name, real in entered.items() if real not in around)
        inside.update({Path(root) / name: {*around, entered[name]} for name in folders})
        for name in sorted(files):
            if not name.startswith("."):
                _look(Path(root) / name, (Path(root) / name).relative_to(folder).as_posix(), listing)
    for error in errors:
        if Path(error.filename) == folder:
            raise _unlisted(folder, error)
        listing.unread.append(f"{Path(error.filename).relative_to(folder).as_posix()} ({error.strerror})")
    return listing


def _look(file: Path, path: str, listing: Listing) -> None:
    try:
        path.encode()
        facts = file.stat()
    except UnicodeEncodeError:
        return  # no annotation can name it
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            listing.unread.append(f"{path} ({error.strerror})")
        elif file.is_symlink():
            listing.dangling.append(path)
        return
    if modes.S_ISREG(facts.st_mode):
        listing.videos[path] = facts


def _unlisted(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(f"videos {folder}: cannot be listed ({error.strerror}); restore the mount or its rights and run "
                       "again")


def plain_name(name: str) -> str:
    """A name without `./` and repeated slashes, which mean nothing in a path.

    >>> plain_name("./a//b/./c.mp4"), plain_name("../a.mp4")
    ('a/b/c.mp4', '../a.mp4')
    """
    root = "/" if name.startswith("/") else ""
    return root + "/".join(part for part in name.split("/") if part not in ("", "."))


class Finder:
    """Annotated names to listed files."""

    def __init__(self, listing: Listing) -> None:
        self.listing = listing
        self._by_name: dict[str, list[str]] = {}
        self._by_look: dict[str, list[str]] = {}
        for path in listing.videos:
            for label in _labels(path):
                self._by_name.setdefault(label, []).append(path)
        for path in (*listing.videos, *listing.dangling):
            for look in _looks(path):
                self._by_look.setdefault(look, []).append(path)

    def find(self, video: str) -> str:
        """The listed file of an annotated name. Raises VideoError: missing, or ambiguous."""
        plain = plain_name(video)
        owner = self._owner(plain)
        if owner is not None:
            return owner
        found = sorted(self._by_name.get(plain, []))
        if found:
            raise VideoError(f"the name fits {len(found)} files: {', '.join(found[:SHOWN])}; annotate the one that is "
                             "meant with its extension or folder", reason="ambiguous")
        bare = plain.rpartition("/")[2]
        if bare in self.listing.videos:
            return bare
        near = sorted({path for look in _looks(plain) for path in self._by_look.get(look, [])})
        raise VideoError(f"no such file in the videos folder{self._said(near)}", reason="missing")

    def exact(self, video: str) -> bool:
        """Whether a name is the path of its file."""
        return plain_name(video) in self.listing.videos

    def find_all(self, videos: Iterable[str]) -> dict[str, str | VideoError]:
        """`find` of every name at once: of names that mean one file only by leaving their folders out, none has it
        where there are several, or where that file is named itself."""
        found: dict[str, str | VideoError] = {}
        names: dict[str, set[str]] = {}
        for video in videos:
            try:
                found[video] = self.find(video)
                names.setdefault(str(found[video]), set()).add(plain_name(video))
            except VideoError as error:
                found[video] = error
        for video, path in found.items():
            if isinstance(path, str) and self._owner(plain_name(video)) is None and len(names[path]) > 1:
                others = ", ".join(sorted(names[path])[:SHOWN])
                found[video] = VideoError(f"{len(names[path])} annotated names would be the file {path}: {others}; "
                                          "lay the videos out in their folders, or annotate them by their own names",
                                          reason="ambiguous")
        return found

    def shared(self, path: str) -> list[str]:
        """Short names of a file that do not mean it, since another file has them too."""
        return sorted(label for label in _labels(path) if self._owner(label) != path)

    def _owner(self, plain: str) -> str | None:
        """The one file that a name means without its folders being left out."""
        if plain in self.listing.videos:
            return plain
        found = self._by_name.get(plain, [])
        return found[0] if len(found) == 1 else None

    def _said(self, near: list[str]) -> str:
        if not near:
            return ""
        shown = [f"{path!a} (a link to nothing)" if path in self.listing.dangling else ascii(path) for path in near]
        return f"; near it: {', '.join(shown[:SHOWN])}{' and more' if len(near) > SHOWN else ''}"


def _labels(path: str) -> set[str]:
    """What else a file may be called: its bare name, and both without the extension."""
    stem = posixpath.splitext(path)[0]
    return {path.rpartition("/")[2], stem, stem.rpartition("/")[2]} - {path}


def _looks(name: str) -> set[str]:
    """The bare name without what is easily written differently, with its ending and without."""
    bare = unicodedata.normalize("NFC", name.replace("\\", "/")).casefold().rstrip("/ ").rpartition("/")[2].strip()
    return {bare, posixpath.splitext(bare)[0]} - {""}
