"""Captions from an OpenAI-compatible endpoint: a real server on loopback that sees, and fails in every way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from taro.core.errors import ConfigError, ModelError, TaroError
from taro.grounding.moment import Moment
from taro.models.features import FrameSampling
from taro.preprocess.captioners.base import Failure, Request
from taro.preprocess.captioners.openai import OpenAICaptioner, endpoint_facts
from taro.preprocess.config import CaptionConfig, EndpointConfig, PreprocessConfig
from taro.preprocess.estimate import estimate
from taro.preprocess.report import Progress
from taro.preprocess.run import preprocess
from taro.preprocess.video.decode import DecodeJob, Frames, decode_clip
from taro.shards.manifest import read_skipped
from taro.shards.verify import verify
from tests.helpers_video import write_video
from tests.preprocess.helpers_endpoint import (
    KEY,
    Server,
    completion,
    cut,
    endpoint,
    gone,
    huge,
    is_probe,
    pictures,
    says,
    silent,
    status,
)
from tests.preprocess.test_run import digests

Make = Callable[..., PreprocessConfig]
TRANSIENT = [
    status(429, Retry_After="0"), status(500), status(503, retry_after="0"), cut, silent, says(b"{"), gone, huge,
    says(b'{"choices": []}'), says(b'{"choices": [{"message": {"content": 7}}]}'), says(b"[" * 10_000),
    status(502, "<html>"), status(429, Retry_After="31536000"),
]
"""each may pass when it is asked again; the last asks for a year"""
ONCE = [1] * 15 + [2]
"""how often the server answers each question of a whole job: two of its 17 segments show the same frames"""


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[Server]:
    with endpoint() as one:
        yield one


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Frames:
    return decode_clip(DecodeJob(write_video(tmp_path_factory.mktemp("v") / "v.mp4", 60), FrameSampling()))


def settings(server: Server, budget: dict[str, Any] | None = None, **changed: Any) -> dict[str, Any]:
    return {"method": "openai", "budget": budget or {}, "endpoint": {
        "base_url": server.url, "model": "some-7b", "max_wait_s": 0.05, "max_retries": 2, "timeout_s": 30, **changed}}


def captioner(server: Server, **how: Any) -> OpenAICaptioner:
    config = CaptionConfig.model_validate(settings(server, **how))
    return OpenAICaptioner(config, endpoint_facts(config, False, "float32"))


def stretches(frames: Frames, count: int) -> list[Request]:
    """Requests whose frames differ."""
    return [Request(frames, Moment(0.25 * i, 0.25 * i + 1.5), whole=False) for i in range(count)]


def whole_job(job: Make, server: Server, **how: Any) -> PreprocessConfig:
    """17 segments in 6 clips and 3 slices."""
    out = {name: how.pop(name) for name in ("out", "slice_clips") if name in how}
    return job(caption=settings(server, **how), segment={"method": "uniform", "window_s": 1.5}, max_skipped=1.0, **out)


def test_the_endpoint_sees_frames_with_their_times(server: Server, frames: Frames) -> None:
    request = Request(frames, Moment(1, 4), whole=False)
    said = captioner(server, image_px=40, max_images=3).describe([request])
    probe, asked = server.bodies
    assert is_probe(probe) and [at for at, _ in pictures(probe)] == [0, 1, 2, 3]
    first, between, last = (at for at, _ in pictures(asked))
    times_s = request.cut()[1]
    assert (first, last) == (pytest.approx(times_s[0], abs=0.05), pytest.approx(times_s[-1], abs=0.05))
    assert min(abs(between - times_s[1:-1])) < 0.051
    assert {max(frame.shape) for _, frame in pictures(asked)} == {40}
    assert asked["model"] == "some-7b" and asked["max_tokens"] == 256 and asked["temperature"] == 0
    assert isinstance(said[0], str) and said[0].startswith("3 frames from")
    assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}


@pytest.mark.parametrize("at", range(len(TRANSIENT)))
def test_a_fault_that_passes_costs_a_try(server: Server, frames: Frames, at: int) -> None:
    server.faults = [TRANSIENT[at]]
    one = captioner(server, timeout_s=1 if TRANSIENT[at] is silent else 30)
    (said,) = one.describe(stretches(frames, 1))
    assert isinstance(said, str) and said.startswith("3 frames")
    assert sorted(server.seen.values()) == [1, 2] and list(server.answered.values()) == [1]


def test_a_fault_that_does_not_pass_is_transient(server: Server, frames: Frames) -> None:
    for fault, reason in ((status(503), "status 503"), (gone, "connection lost"), (says(b""), "malformed answer"),
                          (huge, "answer too large")):
        one = captioner(server)
        server.always = lambda question, fault=fault: fault
        server.seen.clear()
        (said,) = one.describe(stretches(frames, 1))
        assert isinstance(said, Failure) and said.transient and said.reason == reason, said
        assert [*server.seen.values()] == [3]
        server.always = lambda question: None


def test_what_costs_one_segment_is_not_asked_again(server: Server, frames: Frames) -> None:
    server.faults = [status(400, f"bad image\nfor {KEY}"), status(400, error_code="content_filter"), status(422),
                     says(completion(None, None, finish_reason="content_filter")),
                     says(completion("", None, finish_reason="length")), says(completion("x" * 20_001, None)),
                     says(completion("<think>without end", None)),
                     says(completion("\x1b[2Ja \u202edoor\r\n\x00 opens", None))]  # fmt: skip
    said = captioner(server, concurrency=1).describe(stretches(frames, 9))
    failures = [one for one in said if isinstance(one, Failure)]
    assert [one.reason for one in failures] == ["refused with status 400", "content filter", "refused with status 422",
                                                "content filter", "no text within max_new_tokens", "answer too long",
                                                "reasoning without end"]  # fmt: skip
    assert not any(one.transient for one in failures) and "bad image for [key]" in str(failures[0])
    assert said[7] == "[2Ja door\n opens" and str(said[8]).startswith("3 frames") and set(server.seen.values()) == {1}


@pytest.mark.parametrize(("fault", "words"), [
    (status(401, f"wrong key {KEY}"), "does not accept the API key, which is read from .* OPENAI_API_KEY"),
    (status(403), "does not accept the API key"), (status(404, "no such model"), "404: no such model"),
    (status(429, error_code="insufficient_quota"), "the account"), (status(307, Location="http://x/"), "a redirect"),
])
def test_what_no_request_escapes_ends_the_job(server: Server, frames: Frames, fault: Any, words: str) -> None:
    one = captioner(server, concurrency=3)
    server.always = lambda question: fault
    with pytest.raises(ConfigError, match=words) as raised:
        one.describe(stretches(frames, 12))
    assert KEY not in str(raised.value) and sum(server.seen.values()) <= 1 + 3
    with pytest.raises(ConfigError, match=words):
        captioner(server)


def test_requests_under_way_are_bounded(server: Server, frames: Frames) -> None:
    said = captioner(server, concurrency=3).describe(stretches(frames, 18))
    assert len(set(said)) > 10 and all(isinstance(one, str) for one in said) and server.most_under_way <= 3


def test_the_probe_refuses_a_model_that_does_not_see_the_order(server: Server, job: Make) -> None:
    def reverse(question: str) -> Any:
        return says(completion("0.0s green, 1.0s red, 2.0s yellow, 3.0s blue", (1, 1)))

    server.always = reverse
    with pytest.raises(ModelError, match=r"blue, yellow, red, green, in this order; .* got '0.0s green, 1.0s red"):
        preprocess(whole_job(job, server))
    server.always = lambda question: status(400, "no images")
    with pytest.raises(ModelError, match=r"no answer to the probe, .* 400: no images"):
        preprocess(whole_job(job, server))
    server.always = lambda question: None
    assert preprocess(whole_job(job, server, model="another")).complete, "a refused probe does not claim the folder"
    server.always, before = reverse, sum(server.seen.values())
    captioner(server, probe=False)
    assert sum(server.seen.values()) == before


def test_a_job_survives_every_fault_with_each_caption_once(server: Server, job: Make, tmp_path: Path) -> None:
    whole = preprocess(whole_job(job, server, out=tmp_path / "whole"))
    assert whole.captions == 17 and whole.skipped == 0 and sorted(server.answered.values()) == ONCE
    server.seen.clear()
    server.answered.clear()
    server.faults = [fault for fault in TRANSIENT if fault is not silent]
    shown: list[Progress] = []
    report = preprocess(whole_job(job, server, budget={"price_in": 10, "price_out": 20}), progress=shown.append)
    assert sorted(server.answered.values()) == ONCE and not server.faults
    assert sum(server.seen.values()) == 1 + 17 + 12, "the probe, the segments, a try more for each fault"
    assert report.complete and digests(report.out) == digests(whole.out) and verify(report.out).problems == []
    lines = [line for path in (report.out / ".preprocess" / "journal").iterdir()
             for line in path.read_text().splitlines()]
    assert len(lines) == len({json.loads(line)["question"] for line in lines}) == 17
    live = [one.label for one in shown if one.stage == "captions"]
    assert len(live) == 17 and live[-1].endswith("captions/min, cost 0.0216"), "18 answers of 100 and 10 tokens"
    for path in [*report.out.rglob("*"), *whole.out.rglob("*")]:
        assert not path.is_file() or (KEY.encode() not in path.read_bytes() and b"127.0.0.1" not in path.read_bytes())


def test_what_does_not_pass_is_transient_in_the_ledger_and_asked_again(server: Server, job: Make) -> None:
    """Every third question fails for as long as it is asked."""
    busy: set[str] = set()

    def every_third(question: str) -> Any:  # under the server's lock
        busy.update({question} if len(server.seen) % 3 == 0 and server.seen[question] == 1 else set())
        return status(503, "busy", Retry_After="0") if question in busy else None

    server.always = every_third
    config = whole_job(job, server)
    report = preprocess(config)
    rows, kept = read_skipped(config.out), server.answered.copy()
    assert rows and all(row["transient"] and row["reason"] == "status 503" and "503: busy; 3 tries" in row["detail"]
                        for row in rows)
    assert report.complete and report.transient == len(rows) and report.written + len(rows) == 12
    assert len(busy) == 5 and busy.isdisjoint(kept)
    server.always = lambda question: None
    healed = preprocess(config, retry="transient")
    assert healed.skipped == 0 and healed.captions == 17 and sorted(server.answered.values()) == ONCE
    assert set(server.answered) - set(kept) == busy


def test_a_job_killed_in_a_batch_keeps_every_answer(server: Server, job: Make, tmp_path: Path) -> None:
    """The server answers five questions and holds the others; SIGKILL; what was answered is not asked again."""
    free = [6]

    def hold(question: str) -> Any:  # under the server's lock; the first one is the probe
        free[0] -= 1
        return silent if free[0] < 0 else None

    server.always = hold
    config = whole_job(job, server, concurrency=2, slice_clips=6)
    settings_file = tmp_path / "job.json"
    settings_file.write_text(config.model_dump_json())
    code = ("import sys, pathlib; from taro.preprocess.config import PreprocessConfig; from taro.preprocess.run import "
            "preprocess; preprocess(PreprocessConfig.model_validate_json(pathlib.Path(sys.argv[1]).read_text()))")
    child = subprocess.Popen([sys.executable, "-c", code, str(settings_file)], start_new_session=True)
    journal = config.out / ".preprocess" / "journal" / "captions-000000.jsonl"
    try:
        until = time.monotonic() + 240
        while not journal.exists() or journal.read_bytes().count(b"\n") < 5:
            assert child.poll() is None and time.monotonic() < until
            time.sleep(0.05)
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    assert server.answered.total() == 5
    server.always = lambda question: None
    report = preprocess(config)
    assert report.complete and report.captions == 17
    assert sorted(server.answered.values()) == ONCE


def test_a_budget_stops_the_run_and_keeps_what_was_answered(server: Server, job: Make) -> None:
    with pytest.raises(TaroError, match="max_requests=6 is reached; this run sent 6 requests"):
        preprocess(whole_job(job, server, budget={"max_requests": 6}, slice_clips=6))
    assert server.seen.total() == 6 and server.answered.total() == 5
    report = preprocess(whole_job(job, server, slice_clips=6))
    assert report.complete and sorted(server.answered.values()) == ONCE


@pytest.mark.parametrize(("budget", "words"), [
    ({"max_tokens": 780}, r"max_tokens=780 is reached; this run sent 7 requests, for 770 tokens"),
    ({"max_cost": 0.0085, "price_in": 10, "price_out": 20}, r"max_cost=0.0085 is .* 7 requests, .* that cost 0.0084"),
])
def test_a_budget_is_not_passed_by_what_is_under_way(server: Server, frames: Frames, budget: dict[str, Any],
                                                     words: str) -> None:
    answers: dict[int, str | Failure] = {}
    with pytest.raises(TaroError, match=words):
        for at, answer in captioner(server, budget=budget, concurrency=8).describe_each(stretches(frames, 18)):
            answers[at] = answer
    assert server.seen.total() == 7
    assert sum(isinstance(one, str) for one in answers.values()) == server.answered.total() == 6


def test_a_budget_of_tokens_needs_them_told(server: Server, frames: Frames) -> None:
    server.tokens = None
    with pytest.raises(TaroError, match="does not tell tokens"):
        captioner(server, budget={"max_tokens": 10**6}).describe(stretches(frames, 3))
    assert captioner(server, budget={"max_requests": 4}).describe(stretches(frames, 3))


def test_a_clip_whole_brings_times_that_are_checked(server: Server, frames: Frames) -> None:
    whole = [Request(frames, Moment(0, 6), whole=True)]
    server.says = lambda text: "Sure:\nFrom 0.0s to 2.5s, a dog barks\nFrom 99s to 3e9s, later"
    (said,) = captioner(server).describe(whole)
    assert said == server.says("")
    server.says = lambda text: "A dog barks."
    (said,) = captioner(server).describe(whole)
    assert isinstance(said, Failure) and said.reason == "no times in the answer" and not said.transient
    server.says = lambda text: " "
    assert captioner(server).describe(whole) == [""]


def facts(**changed: Any) -> str:
    config = CaptionConfig(method="openai", endpoint=EndpointConfig(
        **{"base_url": "http://a/v1", "model": "m", **changed}))
    found = endpoint_facts(config, False, "float32")
    assert "http" not in json.dumps(found) and "KEY" not in json.dumps(found)
    return str(found["fingerprint"])


def test_the_fingerprint_is_of_what_shapes_answers() -> None:
    assert facts() == facts(base_url="https://b/v1", key_env="OTHER", concurrency=2, timeout_s=3, probe=False)
    shaped = [{"model": "n"}, {"temperature": 0.5}, {"temperature": None}, {"image_px": 64}, {"jpeg_quality": 50},
              {"max_images": 2}]
    assert len({facts(), *(facts(**one) for one in shaped)}) == 7


def test_settings_that_do_not_fit_are_refused(job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(words: str, endpoint: dict[str, Any], **caption: Any) -> None:
        with pytest.raises((ConfigError, ValueError), match=words) as raised:
            job(caption={"method": "openai", "endpoint": {"model": "m", **endpoint}, **caption})
        assert KEY not in str(raised.value)

    url = {"base_url": "http://127.0.0.1:1/v1"}
    refused("needs caption.endpoint.base_url", {})
    refused("expected http://HOST/v1", {"base_url": "ftp://a"})
    refused("without a password", {"base_url": f"http://me:{KEY}@a/v1"})
    refused("the NAME of an environment variable", {**url, "key_env": KEY})
    refused("price_in and price_out", url, budget={"max_cost": 1})
    refused("repetition_penalty", url, repetition_penalty=1.1)
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ConfigError, match="the environment variable OPENAI_API_KEY holds no API key"):
        OpenAICaptioner(job(caption={"method": "openai", "endpoint": {"model": "m", **url}}).caption,
                        {"prompt": "p", "fingerprint": "f"})


def test_a_dry_run_counts_requests_and_tokens_and_asks_nothing(server: Server, job: Make,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    found = estimate(whole_job(job, server, budget={"price_in": 10, "price_out": 20}))
    assert not server.seen and found.requests == found.captions == 16
    assert 16 * 3 * 6 < found.tokens_in < 16 * 150, "about 3 frames of 2 x 3 squares, times and prompt"
    assert found.tokens_out == 16 * 256
    assert found.cost == pytest.approx((found.tokens_in * 10 + found.tokens_out * 20) / 1e6)
    assert "16 requests" in found.table() and "at most" in found.table()


def test_no_key_is_sent_where_none_is_needed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    captioner(server, key_env=None)
    assert {headers["authorization"] for headers in server.headers} == {"Bearer none"}
