"""A decoder that hangs (holding the interpreter lock, as decord's does) and one that dies of SIGSEGV cost their own
clips alone: through `taro preprocess`, with the job's real child processes."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from taro.cli.app import app
from taro.preprocess.config import PreprocessConfig
from taro.shards.manifest import read_skipped
from taro.shards.reader import open_shards

DEADLY = """
import ctypes, sys

def _hook(event, args):
    if event == "open" and str(args[0]).endswith("hangs.mp4"):
        ctypes.PyDLL(None).pause()  # a C call that never returns and never lets go of the interpreter lock
    if event == "open" and str(args[0]).endswith("dies.mp4"):
        ctypes.string_at(0)

if any("taro.preprocess.video.pool" in word for word in sys.orig_argv):
    sys.addaudithook(_hook)
"""
"""sitecustomize.py of the decoding children: real system calls, at the moment when they open these files"""


def test_a_hang_and_a_segfault_cost_one_clip_each(
    tmp_path: Path, videos: Path, job: Callable[..., PreprocessConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, lines = tmp_path / "videos", []
    shutil.copytree(videos, folder)
    for source, name in (("v1.mp4", "hangs.mp4"), ("v3.mp4", "dies.mp4")):
        shutil.copyfile(videos / source, folder / name)
    for path in sorted(folder.iterdir()):
        lines += [{"video": path.name, "query": f"query {q}", "windows": [[q, q + 1.0]], "qid": f"{path.stem}-{q}"}
                  for q in range(2)]  # fmt: skip
    settings = {"videos": folder, "caption": {"method": "none"}, "decode": {"deadline_s": 3.0}, "max_skipped": 0.3}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(job(lines, **settings).model_dump_json())
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(DEADLY)

    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    began = time.monotonic()
    result = CliRunner().invoke(app, ["preprocess", str(recipe), "--json"])
    assert result.exit_code == 0, result.output
    assert time.monotonic() - began < 60
    report = json.loads(result.output)
    assert (report["inputs"], report["written"], report["skipped"]) == (16, 12, 4)
    assert report["reasons"] == {"decode: deadline": 2, "decode: decoder died": 2}
    skipped = read_skipped(tmp_path / "out")
    assert {(row["row_id"], row["reason"], row["transient"]) for row in skipped} == {
        (f"{name}-{q}", reason, True) for name, reason in (("hangs", "deadline"), ("dies", "decoder died"))
        for q in range(2)}  # fmt: skip
    assert all("-11" in row["detail"] for row in skipped if row["reason"] == "decoder died")

    # The others are what they are in a job that nothing goes wrong in; and then a retry writes the rest.
    monkeypatch.delenv("PYTHONPATH")
    assert CliRunner().invoke(app, ["preprocess", str(recipe), "--out", str(tmp_path / "healthy")]).exit_code == 0
    one, other = open_shards(tmp_path / "out"), open_shards(tmp_path / "healthy")
    assert len(one.keys) == 6 and len(other.keys) == 8
    for key in one.keys:
        assert one.clip(key) == other.clip(key)
        assert (one.features(key).main_SND == other.features(key).main_SND).all()
    retried = CliRunner().invoke(app, ["preprocess", str(recipe), "--json", "--retry", "transient"])
    assert json.loads(retried.output)["written"] == 16
