"""What a disk says reaches the user as it is, with the folder and the way on."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from taro.core.errors import TaroError
from taro.core.files import (
    explain_disk_errors,
    file_sha256,
    fsync,
    is_unused,
    locked,
    make_folders,
    new_file,
    remove_temporary,
    remove_temporary_folders,
    replace_folder,
    write_atomically,
)
from taro.core.tensors import write_tensors


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


DIES = """
import os, sys
from pathlib import Path
from taro.core.files import new_file
with new_file(Path(sys.argv[1])) as file:
    file.write(b"half")
    os._exit(9)
"""


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", DIES, str(tmp_path / "a[1].json")], check=False)
        assert done.returncode == 9 and [path.name for path in tmp_path.iterdir()] == [".a[1].json.tmp"]
    write_atomically(tmp_path / "a[1].json", b"whole")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a[1].json": b"whole"}


def test_a_folder_is_unused_where_a_killed_claim_alone_lies_in_it(tmp_path: Path) -> None:
    claim = tmp_path / "place" / "a.json"
    assert is_unused(claim.parent, claim.name), "no folder"
    claim.parent.mkdir()
    assert is_unused(claim.parent, claim.name), "an empty folder"
    subprocess.run([sys.executable, "-c", DIES, str(claim)], check=False)
    assert list(claim.parent.iterdir()) and is_unused(claim.parent, claim.name)
    assert not is_unused(claim.parent, "b.json"), "what another writer left"
    claim.with_name("mine.txt").touch()
    assert not is_unused(claim.parent, claim.name)


@pytest.mark.parametrize("stands", ["link", "folder", "pipe", "another's file"])
def test_what_stands_under_the_temporary_name_is_never_written_to(tmp_path: Path, stands: str) -> None:
    mine, temporary = tmp_path / "mine", tmp_path / ".a.tmp"
    mine.write_bytes(b"mine")
    if stands == "link":
        temporary.symlink_to(mine)
    elif stands == "folder":
        temporary.mkdir()
    elif stands == "pipe":
        os.mkfifo(temporary)
    else:
        os.link(mine, temporary)
    write_atomically(tmp_path / "a", b"new")
    remove_temporary(tmp_path)
    left = {"a", "mine"} | ({".a.tmp"} if stands == "folder" else set())
    assert {path.name for path in tmp_path.iterdir()} == left
    assert ((tmp_path / "a").read_bytes(), mine.read_bytes()) == (b"new", b"mine")


def test_writers_of_one_file_take_turns_and_a_living_ones_file_is_not_swept(tmp_path: Path) -> None:
    path, wrote = tmp_path / "a", []
    with new_file(path) as file:
        other = threading.Thread(target=lambda: (write_atomically(path, b"second"), wrote.append(1)))
        other.start()
        remove_temporary(tmp_path)
        file.write(b"first")
        assert (tmp_path / ".a.tmp").exists() and not wrote
    other.join()
    assert [one.name for one in tmp_path.iterdir()] == ["a"] and path.read_bytes() == b"second"


def test_many_writers_leave_one_whole_file(tmp_path: Path) -> None:
    write = ("import sys; from pathlib import Path; from taro.core.files import write_atomically\n"
             "for n in range(40): write_atomically(Path(sys.argv[1]), sys.argv[2].encode() * 5000)")
    jobs = [subprocess.Popen([sys.executable, "-c", write, str(tmp_path / "a"), name]) for name in "xyz"]
    assert [job.wait() for job in jobs] == [0, 0, 0]
    data = (tmp_path / "a").read_bytes()
    assert len(data) == 5000 and len(set(data)) == 1 and len(list(tmp_path.iterdir())) == 1


def test_a_file_that_must_not_replace_another_does_not_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(FileExistsError), new_file(tmp_path / "a", replace=False) as file:
        file.write(b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]
    with new_file(Path("/dev/null")) as file:
        file.write(b"a device is written as it is")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_the_names_of_new_folders_are_forced_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr("taro.core.files.fsync", lambda path: (synced.append(path.name), fsync(path)))
    make_folders(tmp_path / "a" / "b" / "c")
    make_folders(tmp_path / "a" / "b" / "c")
    assert synced == [tmp_path.name, "a", "b"]
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        make_folders(tmp_path / "file" / "x")


@pytest.mark.parametrize("killed", ["never", "before the new one has the name", "while the old one goes"])
def test_a_folder_is_replaced_whole_wherever_the_job_was_killed(tmp_path: Path, killed: str) -> None:
    final, new = tmp_path / "export", tmp_path / ".tmp-export"
    for folder, text in ((final, "old"), (new, "new")):
        folder.mkdir()
        (folder / "x").write_text(text)
    if killed == "never":
        replace_folder(new, final)
    else:
        final.rename(tmp_path / ".tmp-old-export")
        if killed.startswith("while"):
            new.rename(final)
    remove_temporary_folders(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    assert (final / "x").read_text() == ("old" if killed.startswith("before") else "new")
