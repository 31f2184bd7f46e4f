"""A folder of pages, written aside and renamed when it is whole: who opens it sees the old pages or the new ones.

A folder of pages is known by the file MARK inside; nothing else is ever replaced. The many pages are not forced to the
disk one by one: a power cut right after the command may cost pages, which the same command makes again.

Left out: what the pages hold (templates, `taro.pages.render`)."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from taro.core.errors import ConfigError
from taro.core.files import check_local, explain_disk_errors, fsync, locked, make_folders

__all__ = ["MARK", "copy_assets", "page_folder"]

MARK = "pages-of-taro.txt"
SAYS = "Pages made by taro. The command that made them may replace this folder.\n"
OLD = ".old"
"""where the pages that are replaced lie for a moment"""
AGAIN = "Make room, or name another folder with --out, and run the same command again"


@contextlib.contextmanager
def page_folder(out: Path) -> Iterator[Path]:
    """A new folder to write pages into; it becomes `out` where the block ends well, and is removed where it does not.

    Raises ConfigError where something else than a folder of pages, or an empty folder, is at `out`, and where another
    process writes it now."""
    check_local(out)
    final = out.absolute()
    _check(out, final)
    aside = final.with_name(f".{final.name}.making")
    with explain_disk_errors(out, lambda: AGAIN, aside=aside):
        make_folders(final.parent)
        try:
            aside.mkdir(exist_ok=True)
            handle = os.open(aside, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except (FileExistsError, NotADirectoryError) as error:  # a file or a link of that name: not ours
            raise ConfigError(f"{aside}: expected to make a folder of pages here, got: {error.strerror}; remove it"
                              ) from None
        try:
            with locked(handle, wait=False) as held:
                if not (held and aside.exists() and os.path.samestat(aside.stat(), os.fstat(handle))):
                    raise ConfigError(f"{out}: another process is writing these pages now; wait for it, or name "
                                      "another folder")
                _clear(aside)
                try:
                    yield aside
                    (aside / MARK).write_text(SAYS)
                    _swap(aside, out, final)
                except BaseException:
                    shutil.rmtree(aside, ignore_errors=True)
                    raise
        finally:
            os.close(handle)


def copy_assets(folder: Path, *names: str) -> None:
    """Copies files of taro/pages/templates (styles, scripts) into a folder, which is made."""
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes((resources.files("taro.pages") / "templates" / name).read_bytes())


def _check(out: Path, final: Path) -> None:
    if out.suffix.lower() in {".html", ".htm"}:
        raise ConfigError(f"{out}: expected the name of a folder, got that of a page; the pages of a set are a folder "
                          f"now, such as --out {out.with_suffix('').name}, whose index.html is the page to open")
    if final.is_symlink() or (final.exists() and not final.is_dir()):
        raise ConfigError(f"{out}: expected a folder to write pages into, got a file or a link; name another")
    if final.exists() and any(final.iterdir()) and not (final / MARK).is_file():
        raise ConfigError(f"{out}: expected a new or empty folder, or one of pages that taro made, got a folder with "
                          "other files; remove it or name another")


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _swap(aside: Path, out: Path, final: Path) -> None:
    """Puts the pages in place of those that are there."""
    _check(out, final)  # it may have been made meanwhile
    fsync(aside)
    if final.exists():
        final.rename(aside / OLD)
    aside.rename(final)
    fsync(final.parent)
    shutil.rmtree(final / OLD, ignore_errors=True)
