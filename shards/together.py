"""The samples of many queries, several clips read at once: what a step of training or a batch of an evaluation needs.

A digest takes a core longer than reading the bytes does, and both let other threads run. So clips are read, checked and
parsed by several threads (`Store.at_once`); the samples come in the order of the queries, the same as one by one. The
features go from the store to their tensors without a copy; of a remote store they are used as they come, and are in its
cache for the next time.

The threads are daemons: an interruption does not wait for a server that is silent (`taro.core.parallel`).
Memory: all samples of the queries at most, so whoever has many asks for them in batches. Left out: queries of one clip
in two batches, whose clip is read for each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from threading import Thread

from taro.shards.reader import QueryRef, Sample, ShardSet
from taro.shards.store import Wanted

__all__ = ["read_samples"]


def read_samples(shard_set: ShardSet, refs: Sequence[QueryRef]) -> Iterator[Sample]:
    """The sample of each query, in their order; queries of one clip share its features. What is wrong with a clip is
    raised when its first sample comes."""
    refs, clips = list(refs), dict[str, dict[int, QueryRef]]()
    for place, ref in enumerate(refs):
        clips.setdefault(ref.key, {})[place] = ref
    shard_set.prefetch(refs, features=False)
    there = {shard_set.features_place(key): key for key in clips}
    store = shard_set.store
    groups = store.groups([*there]) if len(there) > 1 else [[*there]]

    def read(group: list[Wanted]) -> list[tuple[int, Sample]]:
        spans = [(one.start, one.stop or 0) for one in group]
        pieces = store.read_ranges(group[0].name, spans)
        pieces.reverse()
        found: list[tuple[int, Sample]] = []
        for one in group:
            places, of_clip = zip(*clips[there[one]].items(), strict=True)
            found += zip(places, shard_set.samples(of_clip, pieces.pop()), strict=True)
        return found

    group_of = {there[one]: number for number, group in enumerate(groups) for one in group}
    turns = deque(groups[number] for number in dict.fromkeys(group_of[ref.key] for ref in refs))
    running: deque[Future[list[tuple[int, Sample]]]] = deque()
    held: dict[int, Sample] = {}
    todo: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
    threads = [Thread(target=_work, args=(todo,), daemon=True) for _ in range(min(store.at_once, len(turns)))]
    for thread in threads:
        thread.start()
    try:
        for place in range(len(refs)):
            while place not in held:
                while turns and len(running) <= store.at_once:
                    running.append(Future())
                    todo.put(partial(_fulfil, running[-1], partial(read, turns.popleft())))
                held.update(running.popleft().result())
            yield held.pop(place)
    finally:
        for one in running:
            one.cancel()
        for _ in threads:
            todo.put(None)


def _work(todo: SimpleQueue[Callable[[], None] | None]) -> None:
    """Runs what comes, until None does."""
    while (task := todo.get()) is not None:
        task()


def _fulfil(promise: Future[list[tuple[int, Sample]]], read: Callable[[], list[tuple[int, Sample]]]) -> None:
    """Reads, unless nobody waits for it any more."""
    if promise.set_running_or_notify_cancel():
        try:
            promise.set_result(read())
        except BaseException as error:  # noqa: BLE001 - raised where the sample is taken
            promise.set_exception(error)
