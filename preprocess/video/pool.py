"""Decoding in child processes that can be killed: a hang or a crash costs one clip, never the job.

Each child is a Python process of its own (not a fork, not `multiprocessing.spawn`, so a user's script is not run
again) and a thread here that feeds it one clip at a time over a socket. A child whose whole answer is not here before
the deadline, or that dies, is killed and replaced. Results come back in the order asked for, decoded a bounded number
ahead. A child does not outlive its parent: on Linux the system kills it, elsewhere it ends with the clip at hand."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection

import numpy as np

from taro.core.errors import VideoError
from taro.core.json import strict_json
from taro.grounding.records import ClipSpan, VideoFacts
from taro.preprocess.video.decode import DecodeJob, Frames, decode_clip, most_frame_bytes

__all__ = ["DecodePool", "serve"]

log = logging.getLogger(__name__)

START_S = 120.0
"""seconds that a new child may take to import its libraries, beyond the deadline of its first clip"""
BOOT = """import json, sys
sys.path[:] = json.loads(sys.argv[1])
from taro.preprocess.video.pool import serve
serve(int(sys.argv[2]))"""
READY = b"ready"
MAX_HEAD_BYTES = 1 << 20
"""of an answer before its pixels: facts, and a time for each of at most 4,096 frames"""
PR_SET_PDEATHSIG = 1
"""of prctl(2): the signal that a process gets when the thread that started it ends"""
EXPECTED = (OSError, ValueError, RuntimeError, ArithmeticError, LookupError, TypeError, AttributeError)
"""what an untrusted file makes decoding libraries raise; anything else ends the child, which is replaced"""


def serve(descriptor: int) -> None:
    """The child's side: says that it is ready, then answers each job with frames or an error, until the socket
    closes. Runs in the child process alone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    connection = Connection(descriptor)  # closed already where the parent died before: nothing is begun
    connection.send_bytes(READY)
    while True:
        try:
            job: DecodeJob = connection.recv()
        except (EOFError, OSError):
            return
        try:
            _send(connection, decode_clip(job))
        except VideoError as error:
            _refuse(connection, str(error), error.reason, transient=error.transient)
        except MemoryError:
            _refuse(connection, f"{job.path.name}: its frames do not fit in memory", "out of memory", transient=True)
        except EXPECTED as error:
            _refuse(connection, f"{job.path.name}: {type(error).__name__} while decoding", "undecodable",
                    transient=False)


def _send(connection: Connection, frames: Frames) -> None:
    """Numbers as JSON, pixels as bytes: the parent never unpickles what a decoder of untrusted files says."""
    arrays = [frames.frames_THWC] if frames.views_THWC is None else [frames.frames_THWC, frames.views_THWC]
    head = {"facts": frames.facts.model_dump(), "clip": frames.clip.model_dump(), "times_s": frames.times_s.tolist(),
            "shapes": [array.shape for array in arrays]}
    connection.send_bytes(json.dumps(head).encode())
    for array in arrays:
        connection.send_bytes(np.ascontiguousarray(array).reshape(-1).data)


def _refuse(connection: Connection, message: str, reason: str, *, transient: bool) -> None:
    connection.send_bytes(json.dumps({"error": message, "reason": reason, "transient": transient}).encode())


def _receive(connection: Connection, job: DecodeJob) -> Frames:
    """The child's answer. Raises ValueError where it is none, OSError where a message is longer than it may be: what
    decodes untrusted files is not trusted itself, and nothing is allocated or read on its word."""
    head = strict_json(connection.recv_bytes(MAX_HEAD_BYTES))
    try:
        if "error" in head:
            raise VideoError(str(head["error"]), reason=str(head["reason"]), transient=head["transient"] is True)
        times_s = np.asarray(head["times_s"], dtype=np.float64)
        facts, clip = VideoFacts.model_validate(head["facts"]), ClipSpan.model_validate(head["clip"])
        shapes = [tuple(map(int, shape)) for shape in head["shapes"]]
    except (LookupError, TypeError) as error:
        raise ValueError(f"an answer without {error}") from None
    if times_s.ndim != 1 or not 1 <= len(shapes) <= 2:
        raise ValueError("an answer of other shapes")
    for shape in shapes:
        if len(shape) != 4 or min(shape) < 1 or shape[0] != len(times_s) or shape[3] != 3:
            raise ValueError(f"frames of the shape {shape}, {len(times_s)} times")
        if math.prod(shape) > most_frame_bytes(job, shape[0]):
            raise ValueError(f"{math.prod(shape):,} bytes of frames")
    frames = [_pixels(connection, shape) for shape in shapes]
    return Frames(frames[0], times_s, facts, clip, frames[1] if len(frames) > 1 else None)


def _pixels(connection: Connection, shape: tuple[int, ...]) -> np.ndarray:
    flat = np.frombuffer(connection.recv_bytes(math.prod(shape)), dtype=np.uint8)
    return flat.reshape(shape).copy()


class _Child:
    """One child process, started when it is first needed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._ready = False

    def ask(self, job: DecodeJob, deadline_s: float) -> Frames:
        """Decodes `job` in the child. Raises VideoError; transient where the child was too slow or died. The deadline
        is that of the whole answer: a timer kills the child, which ends what is waited for here."""
        connection, late = self.start(), threading.Event()
        try:
            self._await(connection)
            timer = threading.Timer(deadline_s, self._kill, [late])
            timer.start()
            try:
                connection.send(job)
                return _receive(connection, job)
            finally:
                timer.cancel()
                timer.join()
                if late.is_set():
                    self.stop()
        except (EOFError, OSError, ValueError):
            code = self.stop()
            if late.is_set():
                raise VideoError(f"{job.path.name}: no answer within {deadline_s:g} s; raise deadline_s or try again",
                                 reason="deadline", transient=True) from None
            raise VideoError(f"{job.path.name}: the decoder died (exit code {code}); try again or re-encode it",
                             reason="decoder died", transient=True) from None

    def _kill(self, late: threading.Event) -> None:
        late.set()
        if self._process is not None:
            self._process.kill()

    def stop(self) -> int | None:
        """Kills the child; its exit code."""
        if self._connection is not None:
            self._connection.close()
        code = None
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._process.wait(0.2)
            self._process.kill()
            self._process.wait()
        self._process = self._connection = None
        return code

    def start(self) -> Connection:
        """Starts the child where there is none, without waiting for it."""
        if self._connection is not None and self._process is not None and self._process.poll() is None:
            return self._connection
        self.stop()
        ours, theirs = socket.socketpair()
        with theirs:
            env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
            command = [sys.executable, "-c", BOOT, json.dumps(sys.path), str(theirs.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=env, stdin=subprocess.DEVNULL,
                                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._connection, self._ready = Connection(ours.detach()), False
        return self._connection

    def _await(self, connection: Connection) -> None:
        if self._ready:
            return
        if not connection.poll(START_S):
            raise EOFError
        connection.recv_bytes(len(READY))
        self._ready = True


class DecodePool:
    """`workers` processes; use it as a context manager, so that none is left behind."""

    def __init__(self, workers: int, *, deadline_s: float) -> None:
        self.workers, self.deadline_s = workers, deadline_s
        self._local = threading.local()
        self._children: list[_Child] = []
        self._closed = False
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="decode")

    def __enter__(self) -> DecodePool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kills every child; decoding under way is given up."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for child in self._children:
            if child._process is not None:
                child._process.kill()
        self._threads.shutdown(wait=True)
        for child in self._children:
            child.stop()

    def warm(self) -> None:
        """Starts every child now, so that they import their libraries while models load."""
        for _ in range(self.workers):
            self._threads.submit(self._child)

    def map(self, jobs: Iterable[DecodeJob], *, ahead: int) -> Iterator[Frames | VideoError]:
        """Results in the order of `jobs`, at most `ahead` of them decoded or under way beyond the one handed out.
        Decoding begins with the call, not with the first result taken."""
        source = iter(jobs)
        waiting = deque(self._threads.submit(self._run, job) for job in itertools.islice(source, ahead + 1))
        return self._results(source, waiting)

    def _results(self, source: Iterator[DecodeJob],
                 waiting: deque[Future[Frames | VideoError]]) -> Iterator[Frames | VideoError]:
        while waiting:
            result = waiting.popleft().result()
            following = next(source, None)
            if following is not None:
                waiting.append(self._threads.submit(self._run, following))
            yield result

    def _child(self) -> _Child:
        child: _Child | None = getattr(self._local, "child", None)
        if child is None:
            child = self._local.child = _Child()
            self._children.append(child)
            if not self._closed:
                child.start()
        return child

    def _run(self, job: DecodeJob) -> Frames | VideoError:
        child = self._child()
        if self._closed:
            return VideoError(f"{job.path.name}: decoding was given up", reason="interrupted", transient=True)
        try:
            return child.ask(job, self.deadline_s)
        except VideoError as error:
            return error
