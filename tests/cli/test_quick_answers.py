"""A mistake in a name or a setting is answered before torch, a decoder or a weight is loaded.

Counted in modules instead of seconds, in a fresh process a mistake: what is not loaded costs nothing on any machine.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.shards.helpers_sets import write_set

HEAVY = ("torch", "transformers", "datasets", "av", "decord", "open_clip", "PIL", "pyarrow", "scipy", "pandas")
RUN = f"""
import sys
from taro.cli.app import main
sys.argv[0] = "taro"
try:
    main()
finally:
    print("LOADED", *(name for name in {HEAVY!r} if name in sys.modules))
"""
RUN_IN = ["--set", "out=run"]
VIDEOS = ["--set", "videos=.", "--set", "annotations=a.jsonl", "--set", "out=made"]


@pytest.mark.parametrize(("words", "message"), [
    (["train", "tarro-7b"], "tarro-7b: no such recipe"),
    (["train", "sandbox", "--set", "nosuch=1"], "nosuch: unknown key"),
    (["train", "sandbox", *RUN_IN, "--set", "shards=nowhere"], "nowhere: no such folder; expected a shard set"),
    (["train", "sandbox", *RUN_IN, "--set", "shards=."], "no manifest.json: not a shard set"),
    (["train", "sandbox", *RUN_IN, "--set", "shards=set", "--set", "policy=nowhere"], "nowhere: no such model folder"),
    (["train", "sandbox", *RUN_IN, "--set", "shards=set", "--resume"], "nothing to resume"),
    (["preprocess", "sandbx"], "sandbx: no such recipe"),
    (["preprocess", "sandbox", *VIDEOS, "--set", "nosuch=1"], "nosuch: unknown key"),
    (["preprocess", "sandbox", *VIDEOS, "--policy", "nowhere"], "nowhere: no such model folder"),
    (["preprocess", "sandbox", *VIDEOS, "--policy", "sandbox:teacher"], "no such sandbox model"),
    (["preprocess", "sandbox", *VIDEOS, "--set", "annotations=b.jsonl"], "b.jsonl: no such file"),
    (["preprocess", "sandbox", *VIDEOS, "--set", "device=gpu"], "expected auto, cpu, cuda or cuda:N"),
])
def test_a_mistake_costs_no_heavy_import(tmp_path: Path, words: list[str], message: str) -> None:
    (tmp_path / "a.jsonl").touch()
    if "shards=set" in words:
        write_set(tmp_path / "set", [[1]])
    done = subprocess.run([sys.executable, "-c", RUN, *words], cwd=tmp_path, capture_output=True, text=True)
    assert message in done.stderr + done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED", done.stdout
    assert done.returncode in (1, 2) and not list(tmp_path.glob("made/*"))
