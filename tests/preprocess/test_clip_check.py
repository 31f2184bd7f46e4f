"""A CLIP model that cannot be loaded here is one short message before any work."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest

from taro.core.errors import MissingPackageError, ModelError
from taro.preprocess.clip import check_clip
from taro.preprocess.config import PreprocessConfig
from taro.preprocess.job import open_job

NAME, REPOSITORY = "ViT-B-32/laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
SAY = """
import sys
from taro.core.errors import TaroError
from taro.preprocess.clip import check_clip
for name in sys.argv[1:]:
    try:
        print("fine", check_clip(name))
    except TaroError as error:
        print(error)
"""


@contextmanager
def hub() -> Iterator[tuple[str, list[str]]]:
    """(endpoint, what it was asked for) of a hub that gives REPOSITORY to nobody, and holds others without a file."""
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(404)
            self.send_header("X-Error-Code", "GatedRepo" if REPOSITORY in self.path else "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def checked(cache: Path, *names: str, endpoint: str) -> tuple[list[str], str]:
    """(a line a name, stderr) of a fresh process: huggingface_hub reads its environment when it is imported."""
    done = subprocess.run([sys.executable, "-c", SAY, *names], capture_output=True, text=True, check=True,
                          env={**os.environ, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint})
    return done.stdout.splitlines(), done.stderr


def cached(cache: Path, repository: str, *files: str) -> None:
    """As huggingface_hub keeps what it has fetched."""
    folder = cache / "hub" / f"models--{repository.replace('/', '--')}"
    for file in files:
        path = folder / "snapshots" / "c0ffee" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"weights")
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("c0ffee")


def what_to_do(line: str, name: str, repository: str) -> bool:
    """Whether a message is short, and names the setting, the command that fetches the folder, and the way without."""
    wanted = (f"clip_model {name}: ", f"`hf download {repository} --local-dir DIR`", "set clip_model=DIR",
              "clip_model=null segment.method=uniform")
    return len(line) < 600 and all(words in line for words in wanted)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, empty, of a process that must not ask the hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def test_a_hub_out_of_reach_is_one_line_and_one_question(tmp_path: Path) -> None:
    """Nothing of a library's beside it. A hub that answers, only not for that file, leaves the model to open_clip,
    which looks under several names."""
    with hub() as (endpoint, asked):
        lines, noise = checked(tmp_path, NAME, "ViT-B-16/laion2b_s34b_b88k", endpoint=endpoint)
    assert what_to_do(lines[0], NAME, REPOSITORY) and lines[1:] == ["fine None"]
    assert noise == "" and len(asked) == 2
    lines, noise = checked(tmp_path, NAME, endpoint=endpoint)  # nobody listens there any more
    assert len(lines) == 1 and what_to_do(lines[0], NAME, REPOSITORY) and noise == ""


@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_what_the_cache_holds_needs_no_network(offline: Path, file: str) -> None:
    with pytest.raises(ModelError) as caught:
        check_clip(NAME)
    assert what_to_do(str(caught.value), NAME, REPOSITORY) and "(HF_HUB_OFFLINE is set)" in str(caught.value)
    cached(offline, REPOSITORY, file)
    check_clip(NAME)


def test_weights_without_their_tokenizer_are_not_enough(offline: Path) -> None:
    name, repository = "roberta-ViT-B-32/laion2b_s12b_b32k", "laion/CLIP-ViT-B-32-roberta-base-laion2B-s12B-b32k"
    cached(offline, repository, "open_clip_pytorch_model.bin")
    with pytest.raises(ModelError, match="roberta-base is not in the hub's cache") as caught:
        check_clip(name)
    assert what_to_do(str(caught.value), name, repository)
    cached(offline, "roberta-base", "tokenizer.json", "config.json")
    check_clip(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [("ViT-B-32/laion", "no PRETRAINED of that name; near it: openai, "),
     ("ViT-B32/openai", "no MODEL of that name; near it: ViT-B-32"),
     (REPOSITORY, "no MODEL of that name"), ("ViT-B-32", "neither a folder nor MODEL/PRETRAINED")],
)  # fmt: skip
def test_a_name_that_open_clip_does_not_know(name: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        check_clip(name)


def test_without_open_clip_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MissingPackageError, match="pip install open_clip_torch, or do without CLIP: clip_model=null"):
        check_clip("sandbox:clip")


def test_a_job_and_its_dry_run_ask_before_any_work(
    job: Callable[..., PreprocessConfig], offline: Path
) -> None:
    """Nothing is written; a set that is complete is opened without the model."""
    config = job(clip_model=NAME)
    for save in (False, True):
        with pytest.raises(ModelError, match="is not in the hub's cache"):
            open_job(config, save=save)
    assert not config.out.exists()
    config.out.mkdir()
    (config.out / "manifest.json").write_text("{}")
    assert open_job(config, save=False).plan.clip_encoder is not None
