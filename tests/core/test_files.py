"""What a disk says reaches the user as it is, with the folder and the way on."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from taro.core.errors import TaroError
from taro.core.files import telling, write_tensors


@pytest.mark.parametrize("name", [None, "set/paths/x.tar", "set", "."])
def test_a_refusal_about_the_folder_is_a_message_with_the_way_on(tmp_path: Path, name: str | None) -> None:
    said = os.strerror(errno.ENOSPC)
    with pytest.raises(TaroError, match=rf"set: expected a folder with room to write in, got: {said}.*\. Make room"):
        with telling(tmp_path / "set", lambda: "Make room"):
            raise OSError(errno.ENOSPC, said, None if name is None else str(tmp_path / name))


@pytest.mark.parametrize(("number", "name"), [
    (errno.EACCES, "videos/x.mp4"), (errno.EACCES, "set2/x"), (errno.ENOENT, "set/x"), (errno.EPIPE, None)])
def test_other_errors_pass_as_they_are(tmp_path: Path, number: int, name: str | None) -> None:
    error = OSError(number, os.strerror(number), None if name is None else str(tmp_path / name))
    with pytest.raises(OSError) as caught, telling(tmp_path / "set", lambda: "Make room"):
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
