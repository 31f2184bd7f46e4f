"""What sharing a set costs: requests and bytes of each thing that a team does, counted by the servers on loopback."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from taro.shards.index_build import add_index
from taro.shards.reader import open_shards
from taro.shards.transfer.pull import pull
from taro.shards.transfer.push import Choices, push
from taro.train.ahead import SamplesAhead
from taro.train.config import ShardSource
from taro.train.data import TrainingData, select
from tests.shards.helpers_http import serving as serving_web
from tests.shards.helpers_hub import WRITER, use_hub
from tests.shards.helpers_hub_server import serving as serving_hub
from tests.shards.helpers_sets import FINGERPRINT, fingerprint, write_set
from tests.shards.remote.helpers_remote import moto_s3

__all__ = ["PLACES", "Cost", "costs", "make_set"]

OTHER = fingerprint("1", "float16")
FREE = Choices(i_may_share=True)


@dataclass
class Cost:
    """Requests by kind ("GET", ... ; of a hub "hub", which it counts, and "content"), bytes of bodies both ways."""

    requests: Counter[str] = field(default_factory=Counter)
    bytes: int = 0

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.requests - other.requests, self.bytes - other.bytes)


def make_set(root: Path, slices: int, clips: int) -> Path:
    """A set of so many slices, each of so many clips with two queries, with features of two towers."""
    numbers = iter(range(slices * clips))
    write_set(root, [[next(numbers) for _ in range(clips)] for _ in range(slices)],
              encoders={"float32": FINGERPRINT, "float16": OTHER})
    add_index(str(root))
    return root


@contextlib.contextmanager
def _s3(folder: Path) -> Iterator[tuple[str, Callable[[], Cost]]]:
    total = Cost()

    def counted(make: Any) -> Any:
        app = make

        def call(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
            total.requests["LIST" if "list-type" in environ.get("QUERY_STRING", "") else environ["REQUEST_METHOD"]] += 1
            total.bytes += int(environ.get("CONTENT_LENGTH") or 0)
            pieces = list(app(environ, start))
            total.bytes += sum(map(len, pieces))
            return pieces

        return call

    from moto.moto_server import threaded_moto_server as moto

    plain = moto.DomainDispatcherApplication
    with patch.object(moto, "DomainDispatcherApplication", lambda make: counted(plain(make))), moto_s3() as bucket:
        yield f"{bucket}/costs/set", lambda: Cost(Counter(total.requests), total.bytes)


@contextlib.contextmanager
def _web(folder: Path) -> Iterator[tuple[str, Callable[[], Cost]]]:
    with serving_web(folder) as web:
        yield f"{web.url}/set", lambda: Cost(Counter(method for method, _, _ in web.asked), web.sent)


@contextlib.contextmanager
def _hub(folder: Path) -> Iterator[tuple[str, Callable[[], Cost]]]:
    with serving_hub() as hub, pytest.MonkeyPatch.context() as patched:
        use_hub(patched, hub, WRITER)

        def cost() -> Cost:
            kinds = ("content" if call.split()[1].startswith(("/upload", "/content")) else "hub" for call in hub.calls)
            return Cost(Counter(kinds), hub.uploaded + hub.served)

        yield "hf://datasets/team/set", cost


PLACES = {"s3": _s3, "http": _web, "hub": _hub}
"""what serves a place on loopback, and counts"""


def costs(place: str, folder: Path, *, prompts: int = 2) -> Iterator[tuple[str, Cost]]:
    """Each thing that is done with the set `folder`/set at a place of that kind, and what it cost, in this order."""
    whole = folder / "set"
    with PLACES[place](folder) as (url, now), pytest.MonkeyPatch.context() as patched:
        patched.setenv("TARO_CACHE", str(folder / "cache"))

        def cost(act: Callable[[], object]) -> Cost:
            before = now()
            act()
            return now() - before

        if place != "http":
            yield "first push", cost(lambda: push(whole, url, Choices(i_may_share=True,
                                                                      without=(f"features/{OTHER.name}",))))
            yield "push of one more kind", cost(lambda: push(whole, url, FREE))
            yield "push again, unchanged", cost(lambda: push(whole, url, FREE))
        yield "pull", cost(lambda: pull(url, folder / "copy"))
        yield "pull again, unchanged", cost(lambda: pull(url, folder / "copy"))
        yield "open", cost(lambda: open_shards(url))
        yield "an epoch of training", cost(lambda: _epoch(url, prompts))
        yield "an epoch, all in the cache", cost(lambda: _epoch(url, prompts))


def _epoch(url: str, prompts: int) -> None:
    """Opens a set and reads what an epoch of training reads."""
    one = select(ShardSource(path=url, name="set", split=None), open_shards(url).reading(FINGERPRINT.name))
    data = TrainingData([one], prompts=prompts)
    ahead = SamplesAhead(data, data.steps_per_epoch)
    for step in range(data.steps_per_epoch):
        ahead.take(step)
    ahead.close()
