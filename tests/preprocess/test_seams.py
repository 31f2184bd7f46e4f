"""The seams of stage 1, each with a second implementation: a captioner that fails, an engine that runs backwards."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest

from taro.core.errors import TaroError
from taro.preprocess.captioners.base import Captioner, Failure, Request
from taro.preprocess.captioners.cache import CaptionCache
from taro.preprocess.captioners.registry import METHODS, Method
from taro.preprocess.config import ASKED, CaptionMethod, EngineName, PreprocessConfig
from taro.preprocess.engines.base import Engine, SliceResult, Worker
from taro.preprocess.engines.registry import ENGINES
from taro.preprocess.job import Job
from taro.preprocess.report import Progress
from taro.preprocess.run import preprocess
from taro.preprocess.slices import SliceTask
from taro.shards.manifest import read_skipped
from taro.shards.verify import verify
from tests.helpers_models import tiny_qwen2_5_vl
from tests.preprocess.test_run import digests

Make = Callable[..., PreprocessConfig]
CAPTIONED = {"caption": {"method": "transformers", "model": "none", "batch": 4},
             "segment": {"method": "uniform", "window_s": 1.5}, "max_skipped": 1.0}


class Thirds:
    """Describes stretches by their times and fails every third request that it gets; every second failure is for
    good. `well`: no request fails any more."""

    fingerprint, prompt = "thirds", "say it"

    def __init__(self, *, well: bool = False) -> None:
        self.well, self.got, self.failed = well, list[tuple[str, float]](), list[tuple[str, float]]()

    def describe(self, requests: Sequence[Request]) -> list[str | Failure]:
        return [self._one(request) for request in requests]

    def _one(self, request: Request) -> str | Failure:
        asked = request.frames.facts.path_hint, request.stretch.start_s
        self.got.append(asked)
        if self.well or len(self.got) % 3:
            return f"from {request.stretch.start_s}"
        self.failed.append(asked)
        transient = bool(len(self.failed) % 2)
        return Failure("busy" if transient else "refused", transient, f"no answer for {asked}")


@pytest.fixture
def captioner(monkeypatch: pytest.MonkeyPatch) -> Callable[[Captioner], None]:
    """Puts a captioner into the table of methods."""

    def put(one: Captioner) -> None:
        monkeypatch.setitem(METHODS, "transformers", Method(
            facts=lambda config, whole, dtype: {"fingerprint": one.fingerprint},
            captioner=lambda config, facts, encoder: one))

    return put


def test_requests_that_fail_end_in_the_ledger_and_those_that_may_pass_are_asked_again(
        job: Make, tmp_path: Path, captioner: Callable[[Captioner], None]) -> None:
    captioner(Thirds(well=True))
    whole = preprocess(job(out=tmp_path / "whole", **CAPTIONED))
    assert whole.skipped == 0 and whole.captions == 17

    one, config = Thirds(), job(**CAPTIONED)
    captioner(one)
    report = preprocess(config)
    assert len(one.got) == 17 and len(one.failed) == 5
    clips = {clip for clip, _ in one.failed}
    rows = read_skipped(config.out)
    assert report.complete and verify(config.out).problems == []
    assert {row["video"] for row in rows} == clips and all(row["stage"] == "caption" for row in rows)
    assert all(row["detail"].startswith("no answer for ('v") for row in rows)
    assert report.written + report.skipped == report.inputs == 12 and report.skipped == 2 * len(clips)
    assert set(report.reasons) == {"caption: busy", "caption: refused"}
    for row in rows:  # one failure for good is enough: asking the others again would not help
        mine = [i for i, (clip, _) in enumerate(one.failed) if clip == row["video"]]
        assert row["transient"] == all(i % 2 == 0 for i in mine) == (row["reason"] == "busy")

    assert preprocess(config).made == 0, "a slice with failures is done"
    one.well, one.got = True, []
    healed = preprocess(config, retry="transient")
    slices = {int(row["key"][1]) // 2 for row in rows if row["transient"]}
    assert healed.made == len(slices) and healed.written > report.written
    assert set(one.got) <= set(one.failed), "what was answered is not asked again"

    for path in (config.out / ".preprocess" / "ledger").iterdir():
        path.unlink()
    assert preprocess(config).skipped == 0 and digests(config.out) == digests(whole.out)


def test_the_cache_is_read_once_a_job(job: Make, tmp_path: Path, captioner: Callable[[Captioner], None]) -> None:
    one, config = Thirds(well=True), job(**CAPTIONED)
    captioner(one)
    preprocess(config)
    journal = config.out / ".preprocess" / "journal"
    assert len(list(journal.iterdir())) == 3
    for name in ("paths", ".preprocess/ledger"):
        for path in (config.out / name).glob("*.json"):
            path.unlink()
    opened: list[str] = []
    watching = [True]

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if watching and event == "open" and str(args[0]).startswith(str(journal)):
            opened.append(str(args[0]))

    sys.addaudithook(watch)
    one.got = []
    assert preprocess(config).made == 3
    watching.clear()
    assert one.got == [] and sorted(opened) == sorted(map(str, journal.iterdir()))


def test_what_another_job_adds_to_the_cache_is_seen(tmp_path: Path) -> None:
    mine, other = CaptionCache(tmp_path), CaptionCache(tmp_path)
    mine.add(0, [("a", "one")])
    other.add(0, [("b", "two")])
    other.add(1, [("c", "three")])
    assert mine.get("b") is None
    mine.refresh()
    assert [mine.get(asked) for asked in "abc"] == ["one", "two", "three"]
    (tmp_path / "captions-000000.jsonl").unlink()
    CaptionCache(tmp_path).add(0, [("d", "of a file made anew")])
    mine.refresh()
    assert mine.get("d") == "of a file made anew" and len(mine) == 4


class Backwards:
    """An engine that runs slices from the last to the first, each by a worker of its own."""

    def __init__(self) -> None:
        self.ran: list[int] = []

    def run(self, job: Job, tasks: Sequence[SliceTask], progress: Callable[[Progress], None]) -> list[SliceResult]:
        results = []
        for task in reversed(tasks):
            with Worker(job, [task]) as worker:
                results.append(worker.run(task, lambda note: progress(Progress("clips", 1, 1, note))))
            self.ran.append(task.index)
        return results


def test_an_engine_that_runs_backwards_makes_the_same_bytes(job: Make, tmp_path: Path) -> None:
    other = tiny_qwen2_5_vl(tmp_path / "other", seed=7)
    variants = {"variants": {"count": 2, "dt_s": 0.8}}
    folders = []
    for engine in (None, Backwards()):
        config = job(out=tmp_path / f"by-{engine is None}", **variants)
        assert preprocess(config, engine=engine).made == 3
        added = preprocess(config.model_copy(update={"policy": str(other)}), only="features", engine=engine)
        assert added.complete and added.made == 3
        folders.append(config.out)
    assert isinstance(engine, Backwards) and engine.ran == [2, 1, 0, 2, 1, 0]
    assert digests(folders[0]) == digests(folders[1])


class Broken:
    """An engine whose second slice dies."""

    def run(self, job: Job, tasks: Sequence[SliceTask], progress: Callable[[Progress], None]) -> list[SliceResult]:
        with Worker(job, tasks) as worker:
            worker.run(tasks[0], lambda note: None)
        raise TaroError("the machine is gone")


def test_engines_can_be_mixed(job: Make, tmp_path: Path) -> None:
    reference = digests(preprocess(job(out=tmp_path / "whole")).out)
    config = job()
    broken: Engine = Broken()
    with pytest.raises(TaroError, match="the machine is gone"):
        preprocess(config, engine=broken)
    assert preprocess(config, engine=Backwards()).made == 2 and digests(config.out) == reference


def test_the_tables_hold_what_the_settings_name() -> None:
    assert set(METHODS) == set(get_args(CaptionMethod)) and set(ENGINES) == set(get_args(EngineName))
    assert {name for name, method in METHODS.items() if method.captioner is not None} == ASKED
    assert {name for name, method in METHODS.items() if method.given is Method.given} == {*ASKED, "none"}
