"""S3 on loopback, in two makes, with one bucket; credentials as the environment has them."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

__all__ = ["KEY", "SECRET", "moto_s3", "rclone_s3"]

KEY, SECRET = "AKIDTEST", "a-key-that-nobody-may-read"
PATIENCE_S = 120
"""of a wait for a server, which imports its own libraries first, beside other tests"""


@contextlib.contextmanager
def _environment(url: str) -> Iterator[None]:
    with patch.dict(os.environ, {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET,
                                 "AWS_REGION": "us-east-1"}):
        yield


@contextlib.contextmanager
def moto_s3() -> Iterator[str]:
    """moto's server; yields the bucket's URL. All of a process share objects: each test names its own."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        request = urllib.request.Request(f"http://{host}:{port}/bucket", method="PUT")
        urllib.request.urlopen(request, timeout=PATIENCE_S).close()
        with _environment(f"http://{host}:{port}"):
            yield "s3://bucket"
    finally:
        server.stop()


@contextlib.contextmanager
def rclone_s3(folder: Path) -> Iterator[str]:
    """`rclone serve s3` over a folder; yields the bucket's URL."""
    (folder / "bucket").mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rclone = Path(sys.executable).with_name("rclone")
    server = subprocess.Popen([rclone, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{KEY},{SECRET}",
                               folder], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.05)
        with _environment(f"http://127.0.0.1:{port}"):
            yield "s3://bucket"
    finally:
        server.terminate()
        server.wait(PATIENCE_S)
