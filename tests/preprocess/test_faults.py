"""What may happen to `taro preprocess` from outside: each ends in a message, and in the same bytes once fixed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taro.core.errors import ConfigError, TaroError
from taro.preprocess.captioners.cache import CaptionCache
from taro.preprocess.config import PreprocessConfig
from taro.preprocess.job import begin, open_job
from taro.preprocess.ledger import slice_lock
from taro.preprocess.plan import STATE
from taro.preprocess.run import preprocess
from tests.helpers_faults import ROOT, TARO, dies, mad_clock, small_disk
from tests.preprocess.test_run import digests

Make = Callable[..., PreprocessConfig]


def recipe(config: PreprocessConfig, folder: Path) -> str:
    path = folder / "recipe.yaml"
    path.write_text(config.model_dump_json())
    return str(path)


def tars(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in digests(folder).items() if name.endswith(".tar")}


@pytest.mark.slow
def test_a_kill_between_a_slices_new_ledger_and_its_shards(job: Make, tmp_path: Path, videos: Path) -> None:
    folder = tmp_path / "copies"
    shutil.copytree(videos, folder)
    reference = digests(preprocess(job(videos=folder, out=tmp_path / "whole")).out)
    config = job(videos=folder, max_skipped=1.0)
    kept = (folder / "v0.mp4").read_bytes()
    open_job(config)  # plans
    (folder / "v0.mp4").write_bytes(kept + b"\0")
    assert preprocess(config).reasons == {"decode: changed since the plan": 2}
    (folder / "v0.mp4").write_bytes(kept)
    # At the fsync of its folder the new ledger has its name, and no shard has.
    dies("preprocess", recipe(config, tmp_path), "--retry", "transient", at="open", name="/ledger")
    healed = preprocess(config)
    assert (healed.made, healed.written, healed.skipped) == (1, 12, 0)
    assert tars(config.out) == {name: digest for name, digest in reference.items() if name.endswith(".tar")}


@pytest.mark.slow
def test_small_and_read_only_disks_are_one_message_and_cost_nothing(
    job: Make, tmp_path: Path, tiny_policy: Path
) -> None:
    captions = {"method": "transformers", "model": str(tiny_policy), "max_new_tokens": 4}
    whole = preprocess(job(out=tmp_path / "whole", caption=captions))
    config = job(out=tmp_path / "disk" / "out", caption=captions)
    size = sum(path.stat().st_size for path in whole.out.rglob("*")) // 1024
    # They end in the plan, the journal, a record, the end of a shard, and a ledger.
    tries = small_disk(tmp_path / "disk", config.out, [4, 12, 16, 32, size], "preprocess",
                       recipe(config, tmp_path))  # fmt: skip
    for what, code, said, left in tries[:-1]:
        assert code == 1 and "Traceback" not in said and left == [], (what, said, left)
        words = " ".join(said.split())
        reason = "Read-only file system" if what == "read-only" else "No space left on device"
        assert f"expected a folder with room to write in, got: {reason}" in words, said
        assert "Make room or fix the disk, then run the same command again" in words
    assert tries[-1][1] == 0, tries
    assert digests(tmp_path / "copied") == digests(whole.out)


@pytest.mark.slow
def test_two_jobs_on_one_folder_with_mad_clocks_make_each_slice_once(job: Make, tmp_path: Path) -> None:
    reference = digests(preprocess(job(out=tmp_path / "whole", slice_clips=1)).out)
    config = job(slice_clips=1)
    command = [*TARO, "preprocess", recipe(config, tmp_path), "--json"]
    env = mad_clock(tmp_path / "clock")
    jobs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=env) for _ in range(2)]
    reports = [json.loads(running.communicate()[0]) for running in jobs]
    assert [running.returncode for running in jobs] == [0, 0]
    assert sum(report["made"] for report in reports) == 6 and any(report["complete"] for report in reports)
    assert digests(config.out) == reference


def test_a_slice_that_another_job_holds_is_left_to_it(job: Make) -> None:
    config = job()
    state = open_job(config).state
    with slice_lock(state, 1) as mine:
        assert mine
        report = preprocess(config)
        assert (report.made, report.slices, report.complete) == (2, (2, 3), False)
        assert "not complete yet, run it again" in report.table() and not (config.out / "manifest.json").exists()
    assert preprocess(config).complete  # the lock file is still there; nobody holds it


def test_a_file_system_without_locks_is_warned_of_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(file: Any, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with slice_lock(tmp_path, 0) as held:
        assert held and "slice-000000.lock: no lock" in caplog.text
    CaptionCache(tmp_path).add(0, [("a", "one")])
    assert CaptionCache(tmp_path).get("a") == "one"


def test_the_plan_of_the_job_that_was_first_counts(job: Make, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    """Two jobs looked at the folder before either had a plan there: the plan that is begun first stays."""
    from taro.preprocess.job import _first

    first, other = open_job(job()), open_job(job(rows[:4], out=tmp_path / "elsewhere")).plan
    begin(first)
    assert _first(other, first.config.out).sha256 == first.plan.sha256 != other.sha256
    (first.state / "begun").unlink()
    assert _first(other, first.config.out).sha256 == other.sha256
    with pytest.raises(ConfigError, match="another job began here with other settings a moment ago"):
        begin(first)


@pytest.mark.slow
def test_sigterm_stops_the_job_with_a_message_and_no_leftovers(job: Make, tmp_path: Path) -> None:
    config = job(slice_clips=1)
    running = subprocess.Popen([*TARO, "preprocess", recipe(config, tmp_path)], stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True, cwd=ROOT)  # fmt: skip
    while running.poll() is None and not list((config.out / "paths").glob("*.json")):
        time.sleep(0.005)
    for number in (signal.SIGTERM, signal.SIGTERM):
        running.send_signal(number)
    said = running.communicate()[1]
    assert running.returncode == 143, said
    assert "interrupted; what was finished is on disk" in said and "Traceback" not in said
    assert not list(config.out.glob("*/**/*.tmp"))
    assert 0 < preprocess(config).made < 6


def test_videos_that_vanish_after_the_plan_come_back_with_retry(job: Make, tmp_path: Path, videos: Path) -> None:
    reference = tars(preprocess(job(out=tmp_path / "whole")).out)
    link = tmp_path / "mount"
    link.symlink_to(videos)
    config = job(videos=link)
    open_job(config)
    link.unlink()
    link.mkdir()  # a mount that is gone
    with pytest.raises(TaroError, match=r"none of 12 rows.*12 decode: missing.*--retry transient"):
        preprocess(config)
    link.rmdir()
    link.symlink_to(videos)
    assert preprocess(config, retry="transient").written == 12
    assert tars(config.out) == reference


def test_a_damaged_plan_is_named_and_made_again(job: Make) -> None:
    config = job()
    reference = digests(preprocess(config).out)
    plan = config.out / STATE / "plan.json"
    plan.write_bytes(plan.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=r"plan\.json: expected a plan.*remove it and run again"):
        preprocess(config)
    plan.unlink()
    assert preprocess(config).made == 0 and digests(config.out) == reference


def test_a_caption_that_the_disk_changed_is_asked_for_again(tmp_path: Path) -> None:
    CaptionCache(tmp_path).add(0, [("a", "one"), ("b", "two")])
    path = tmp_path / "captions-000000.jsonl"
    whole = path.read_bytes()
    lost = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        cache = CaptionCache(tmp_path)
        said = {asked: cache.get(asked) for asked in ("a", "b")}
        assert said["a"] in ("one", None) and said["b"] in ("two", None), (place, said)
        lost += None in said.values()
    assert lost > 0.9 * len(whole)
    path.write_text('{"question": "c", "text": "of an older taro"}\n')
    assert CaptionCache(tmp_path).get("c") == "of an older taro"


WRITER = """
import sys
from pathlib import Path
from taro.preprocess.captioners.cache import CaptionCache
cache = CaptionCache(Path(sys.argv[1]))
for number in range(60):
    cache.add(0, [(f"{sys.argv[2]}-{number}-{k}", "x" * 4000 + sys.argv[2]) for k in range(8)])
"""


def test_two_jobs_that_share_a_journal_spoil_no_line(tmp_path: Path) -> None:
    jobs = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), name], cwd=ROOT) for name in "ab"]
    assert [running.wait() for running in jobs] == [0, 0]
    cache = CaptionCache(tmp_path)
    assert len(cache) == 2 * 60 * 8 and cache.get("b-59-7") == "x" * 4000 + "b"
    assert len((tmp_path / "captions-000000.jsonl").read_bytes().splitlines()) == 2 * 60 * 8
