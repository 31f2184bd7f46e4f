"""A decoding process that hangs or dies costs one clip."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taro.core.errors import VideoError
from taro.models.features import FrameSampling
from taro.preprocess.video.decode import DecodeJob, Frames, decode_clip
from taro.preprocess.video.pool import DecodePool, _receive
from tests.helpers_video import read_number, write_video

SAMPLING = FrameSampling()


def children(pid: int | str = "self") -> list[int]:
    """Process ids of a process's children that still run."""
    return [int(pid) for task in Path(f"/proc/{pid}/task").iterdir() for pid in (task / "children").read_text().split()]


def test_results_come_in_order_and_a_bad_file_costs_itself(tmp_path: Path) -> None:
    paths = [write_video(tmp_path / f"{i}.mp4", 8 + i) for i in range(5)]
    (tmp_path / "2.mp4").write_bytes(b"no video")
    before = set(children())
    with DecodePool(2, deadline_s=60) as pool:
        results = list(pool.map([DecodeJob(path, SAMPLING) for path in paths], ahead=3))
    assert [r.facts.frames if isinstance(r, Frames) else r.reason for r in results] == [8, 9, "not a video", 11, 12]
    first = results[0]
    assert isinstance(first, Frames)
    assert read_number(first.frames_THWC[-1]) == 7 and abs(first.times_s[-1] - 0.7) < 1e-9
    assert set(children()) <= before  # nothing is left behind


def test_a_hang_is_killed_at_its_deadline_and_the_next_clip_is_decoded(tmp_path: Path) -> None:
    job = DecodeJob(write_video(tmp_path / "v.mp4", 9), SAMPLING)
    before = set(children())  # of other tests in this process
    with DecodePool(1, deadline_s=2.0) as pool:
        assert isinstance(next(pool.map([job], ahead=0)), Frames)  # the worker is up
        (worker,) = set(children()) - before
        os.kill(worker, signal.SIGSTOP)  # a real hang: it neither answers nor ends
        began = time.monotonic()
        hung, after = list(pool.map([job, job], ahead=0))
        assert isinstance(hung, VideoError)
        assert hung.reason == "deadline" and hung.transient
        assert 1.5 < time.monotonic() - began < 60
        assert isinstance(after, Frames)
        assert worker not in children()


def test_a_crash_is_a_transient_failure_of_one_clip(tmp_path: Path) -> None:
    job = DecodeJob(write_video(tmp_path / "v.mp4", 9), SAMPLING)
    before = set(children())
    with DecodePool(1, deadline_s=60) as pool:
        assert isinstance(next(pool.map([job], ahead=0)), Frames)
        (worker,) = set(children()) - before
        os.kill(worker, signal.SIGSTOP)
        threading.Timer(0.5, os.kill, (worker, signal.SIGKILL)).start()
        dead, after = list(pool.map([job, job], ahead=0))
        assert isinstance(dead, VideoError)
        assert dead.reason == "decoder died" and dead.transient
        assert isinstance(after, Frames)


ANSWERS: dict[str, list[bytes]] = {
    "shapes": [b'{"shapes": [[4, 1000000, 1000000, 3]], "times_s": [0, 1, 2, 3]', b"x"],
    "frames": [b'{"shapes": [[4000000000, 1, 1, 3]], "times_s": [0, 1, 2, 3]', b"x"],
    "colours": [b'{"shapes": [[4, 2, 2, 9]], "times_s": [0, 1, 2, 3]', b"x" * 144],
    "no pixels": [b'{"shapes": [], "times_s": []', b"x"],
    "pixels": [b'{"shapes": [[4, 2, 2, 3]], "times_s": [0, 1, 2, 3]', b"x" * 10**6],
    "few pixels": [b'{"shapes": [[4, 2, 2, 3]], "times_s": [0, 1, 2, 3]', b"x"],
    "head": [b"x" * 10**7],
    "no JSON": [b"nonsense"],
    "no object": [b"[]"],
}  # fmt: skip
"""what a decoder says that something has taken over: a header (facts are put behind it), pixels"""


@pytest.mark.parametrize("kind", sorted(ANSWERS))
def test_what_a_decoder_says_is_bounded_and_costs_one_clip(tmp_path: Path, kind: str) -> None:
    job = DecodeJob(write_video(tmp_path / "v.mp4", 9), SAMPLING)
    facts = decode_clip(job)
    tail = json.dumps({"facts": facts.facts.model_dump(), "clip": facts.clip.model_dump()})[1:]
    head, *pixels = ANSWERS[kind]
    ours, theirs = multiprocessing.Pipe()

    def say() -> None:
        with contextlib.suppress(OSError):
            for message in (head + b", " + tail.encode() if pixels else head, *pixels):
                theirs.send_bytes(message)

    thread = threading.Thread(target=say)
    thread.start()
    tracemalloc.start()
    try:
        with pytest.raises((ValueError, OSError)):
            _receive(ours, job)
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()
        ours.close()
        thread.join()


def test_no_more_is_decoded_ahead_than_asked(tmp_path: Path) -> None:
    paths = [write_video(tmp_path / f"{i}.mp4", 4) for i in range(8)]
    taken: list[int] = []

    def jobs():  # type: ignore[no-untyped-def]
        for place, path in enumerate(paths):
            taken.append(place)
            yield DecodeJob(path, SAMPLING)

    with DecodePool(1, deadline_s=60) as pool:
        results = pool.map(jobs(), ahead=2)
        assert len(taken) == 3
        next(results)
        assert len(taken) == 4
        assert len(list(results)) == 7


STALLS = """
import ctypes, sys

def _patch():
    from multiprocessing.connection import Connection
    send = Connection.send_bytes

    def stalled(self, data, *args):
        if not isinstance(data, bytes):  # the pixels, after the header
            self._send(b"\\0\\0\\0\\x10")  # of 16 bytes that never come
            ctypes.PyDLL(None).pause()
        send(self, data, *args)

    Connection.send_bytes = stalled

if any("taro.preprocess.video.pool" in word for word in sys.orig_argv):
    _patch()
"""
"""sitecustomize.py of the decoding children: the header of an answer is sent, its pixels are not"""

HANGS = """
import ctypes, sys

def _hook(event, args):
    if event == "open" and str(args[0]).endswith("v.mp4"):
        open(f"{args[0]}.opened", "w").close()
        ctypes.PyDLL(None).pause()  # never lets go of the interpreter lock

if any("taro.preprocess.video.pool" in word for word in sys.orig_argv):
    sys.addaudithook(_hook)
"""

PARENT = """
import sys
from pathlib import Path
from taro.models.features import FrameSampling
from taro.preprocess.video.decode import DecodeJob
from taro.preprocess.video.pool import DecodePool

with DecodePool(1, deadline_s=600) as pool:
    print("begun", flush=True)
    list(pool.map([DecodeJob(Path(sys.argv[1]), FrameSampling())], ahead=0))
"""


def test_the_deadline_is_that_of_the_whole_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(STALLS)
    job = DecodeJob(write_video(tmp_path / "v.mp4", 9), SAMPLING)
    before = set(children())
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with DecodePool(1, deadline_s=2.0) as pool:
        stalled = next(pool.map([job], ahead=0))
        monkeypatch.delenv("PYTHONPATH")
        after = next(pool.map([job], ahead=0))  # by another process
    assert isinstance(stalled, VideoError) and stalled.reason == "deadline" and stalled.transient
    assert isinstance(after, Frames) and set(children()) <= before


@pytest.mark.skipif(sys.platform != "linux", reason="prctl(2)")
def test_a_hanging_decoder_dies_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(HANGS)
    path = write_video(tmp_path / "v.mp4", 9)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    with subprocess.Popen([sys.executable, "-c", PARENT, str(path)], env=env, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == b"begun\n"
        child = waited_for(lambda: next(iter(children(parent.pid)), None))
        waited_for(Path(f"{path}.opened").exists)
        parent.kill()
    waited_for(lambda: not Path(f"/proc/{child}").exists() or Path(f"/proc/{child}/stat").read_text().split()[2] == "Z")


def waited_for(look: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What `look` finds as soon as it is anything; fails after `seconds`."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, "nothing"
        time.sleep(0.05)
    return found
