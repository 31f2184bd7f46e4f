"""Ctrl-C and SIGTERM while a server is silent: the command ends, and does not wait for the server."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.shards.helpers_http import Request, serving
from tests.shards.helpers_sets import write_set


@pytest.mark.parametrize(("silent", "number", "code"), [(".json", signal.SIGINT, 130), (".tar", signal.SIGTERM, 143)])
def test_a_signal_ends_a_command_whose_server_is_silent(tmp_path: Path, silent: str, number: signal.Signals,
                                                        code: int) -> None:
    """Several sidecars are fetched at the same time, by threads; several shards too."""
    write_set(tmp_path / "set", [[1], [2], [3]])
    free, waiting = threading.Event(), threading.Semaphore(0)

    def stands_still(request: Request) -> bool:
        if request.command == "GET" and request.path.endswith(silent) and "manifest" not in request.path:
            waiting.release()
            free.wait(300)
        return False

    what = ["pull", "--jobs", "3"] if silent == ".tar" else ["filter", "--split", "train"]
    with serving(tmp_path) as web:
        web.faults = [stands_still]
        process = subprocess.Popen(
            [sys.executable, "-m", "taro", "shards", *what, f"{web.url}/set", str(tmp_path / "out")],
            stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
        try:
            assert all(waiting.acquire(timeout=200) for _ in range(3)), "three files were asked for at the same time"
            process.send_signal(number)
            began = time.monotonic()
            said = process.communicate(timeout=250)[1]
            assert process.returncode == code and "interrupted" in said and "Traceback" not in said
            assert time.monotonic() - began < 200, "the server was not waited for"
        finally:
            free.set()
            process.kill()
            process.communicate()
    assert not (tmp_path / "out" / "manifest.json").exists()
