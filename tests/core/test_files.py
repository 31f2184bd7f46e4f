"""What a disk says reaches the user as it is, with the folder and the way on."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from taro.core.errors import TaroError
from taro.core.files import explain_disk_errors, file_sha256, locked, remove_temporary, write_atomically, write_tensors


@pytest.mark.parametrize("name", [None, "set/paths/x.tar", "set", "."])
def test_a_refusal_about_the_folder_is_a_message_with_the_way_on(tmp_path: Path, name: str | None) -> None:
    said = os.strerror(errno.ENOSPC)
    with pytest.raises(TaroError, match=rf"set: expected a folder with room to write in, got: {said}.*\. Make room"):
        with explain_disk_errors(tmp_path / "set", lambda: "Make room"):
            raise OSError(errno.ENOSPC, said, None if name is None else str(tmp_path / name))


@pytest.mark.parametrize(("number", "name"), [
    (errno.EACCES, "videos/x.mp4"), (errno.EACCES, "set2/x"), (errno.ENOENT, "set/x"), (errno.EPIPE, None)])
def test_other_errors_pass_as_they_are(tmp_path: Path, number: int, name: str | None) -> None:
    error = OSError(number, os.strerror(number), None if name is None else str(tmp_path / name))
    with pytest.raises(OSError) as caught, explain_disk_errors(tmp_path / "set", lambda: "Make room"):
        raise error
    assert caught.value is error


def test_tensors_are_written_with_the_rights_of_other_files_or_refused_with_the_systems_word(tmp_path: Path) -> None:
    beside = tmp_path / "beside"
    beside.touch()
    write_tensors(tmp_path / "x.safetensors", {"a": torch.arange(3)}, metadata={"format": "pt"})
    assert torch.equal(load_file(tmp_path / "x.safetensors")["a"], torch.arange(3))
    assert stat.S_IMODE((tmp_path / "x.safetensors").stat().st_mode) == stat.S_IMODE(beside.stat().st_mode)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_tensors(tmp_path / "nowhere" / "x.safetensors", {"a": torch.arange(3)})


def test_a_lock_is_one_holders_at_a_time_by_path_and_by_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path, wait=False) as first, locked(path, wait=False) as second:
        assert first and not second
    with path.open("a") as file, locked(file.fileno(), wait=True) as held:
        assert held
        with locked(path, wait=False) as other:
            assert not other
    with path.open("a") as file:
        with locked(file.fileno(), wait=False):
            pass
        with locked(path, wait=False) as again:
            assert again, "leaving the block gives the lock back, though the file is still open"


def test_a_lock_file_has_the_rights_of_other_files(tmp_path: Path) -> None:
    """A team whose umask lets the group write shares a folder: whoever comes first must not lock the others out."""
    before = os.umask(0o002)
    try:
        with locked(tmp_path / "lock", wait=False) as held:
            assert held and (tmp_path / "lock").stat().st_mode & 0o777 == 0o664
    finally:
        os.umask(before)


def test_a_lock_outlives_no_process(tmp_path: Path) -> None:
    hold = ("import sys,time; from pathlib import Path; from taro.core.files import locked\n"
            "with locked(Path(sys.argv[1]), wait=False): print('held', flush=True); time.sleep(60)")
    with subprocess.Popen([sys.executable, "-c", hold, str(tmp_path / "lock")], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with locked(tmp_path / "lock", wait=False) as mine:
            assert not mine
        holder.kill()
        holder.wait()
    with locked(tmp_path / "lock", wait=False) as mine:
        assert mine


def test_the_digest_of_an_open_file_begins_where_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abcdef")
    with path.open("rb") as file:
        file.seek(2)
        assert file_sha256(file) == hashlib.sha256(b"cdef").hexdigest()
    assert file_sha256(path) == hashlib.sha256(b"abcdef").hexdigest()


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.json", b"1")
    left, kept = tmp_path / f".a.json.{'0' * 32}.tmp", tmp_path / f".b.json.{'0' * 32}.tmp"
    for path in (left, kept):
        path.touch()
    remove_temporary(tmp_path, "a.json")
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", kept.name}
