"""Steps of `Rows`: plain calls; compiled; a CUDA graph of one of few sizes.

A graph belongs to its rows, slots and own keys looked at (`reach`). When `Rows` shrinks or reaches further, the next
run captures another; sizes fall by a quarter at a time and reaches double, so there are few of them.
The layer body is compiled once for all layers and sizes, and for all policies of its shape in a process. What the
compiler makes is kept on disk in the user's cache, so later runs begin at once (`cache_folder`)."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from taro.models.decoder.body import Caches, Chosen, LayerBody, Places, layer_of, next_token_of
from taro.models.decoder.prefix import PrefixAttention
from taro.models.decoder.rows import Rows
from taro.models.decoder.weights import Layer, Shape
from taro.models.sampler import Decoding

__all__ = ["Steps", "cache_folder", "compile_seconds", "sizes_of", "smallest"]

log = logging.getLogger(__name__)

LEAST_REACH = 64
"""own keys looked at, at least"""
BACKEND = "inductor"
"""of torch.compile"""


def sizes_of(most: int, ratio: float) -> list[int]:
    """Sizes from `most` down to 2, each about `ratio` of the one before: compiled code for one is not that for many."""
    sizes = [most]
    while sizes[-1] > 2:
        sizes.append(max(min(round(sizes[-1] * ratio), sizes[-1] - 1), 2))
    return sizes


def smallest(sizes: Sequence[int], wanted: int) -> int:
    """The smallest size that holds so many."""
    return min(size for size in sizes if size >= wanted)


def cache_folder() -> Path:
    """Where compiled code is kept between runs: TORCHINDUCTOR_CACHE_DIR, else taro/compiled in the user's cache
    (XDG_CACHE_HOME, else ~/.cache)."""
    named = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "taro" / "compiled"


class _Timed:
    """A compiled function; the plain one where it cannot be compiled, as on a machine without a C compiler. `seconds`:
    that calls took in which it was compiled, with what they computed."""

    def __init__(self, function: Callable[..., Any], what: str) -> None:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder()))
        self.seconds, self._what, self._kinds, self._plain = 0.0, what, set[Any](), function
        self._call = torch.compile(function, fullgraph=True, backend=BACKEND)

    def __call__(self, kind: Any, *args: Any) -> Any:
        """`kind`: calls of one kind are compiled together."""
        if kind in self._kinds:
            return self._call(*args)
        started = time.perf_counter()
        try:
            found = self._call(*args)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, OSError) as error:  # what torch.compile raises is of these
            log.warning("%s runs uncompiled, which is slower: %.300s", self._what, " ".join(str(error).split()))
            self._call = self._plain
            found = self._call(*args)
        if args[0].device.type == "cuda":
            torch.cuda.synchronize(args[0].device)
        took = time.perf_counter() - started
        self._kinds.add(kind)
        self.seconds += took
        log.info("compiled %s in %.1f s (kept in %s)", self._what, took, cache_folder())
        return found


@cache
def _compiled_layer(shape: Shape, prefix: PrefixAttention) -> _Timed:
    return _Timed(layer_of(shape, prefix), "the decoder's layer")


@cache
def _compiled_picking(decoding: Decoding) -> _Timed:
    return _Timed(next_token_of(decoding), "the choice of a token")


def compile_seconds() -> float:
    """Seconds of this process so far in which the decoder was compiled."""
    return sum(one.seconds for one in _MADE)


_MADE: list[_Timed] = []


def _layer(shape: Shape, prefix: PrefixAttention) -> LayerBody:
    compiled = _compiled_layer(shape, prefix)
    if compiled not in _MADE:
        _MADE.append(compiled)

    def layer(x_ND: torch.Tensor, weights: Layer, caches: Caches, places: Places) -> torch.Tensor:
        for tensor, dims in ((x_ND, [0]), (caches.prefix_k, [0, 2]), (caches.prefix_v, [0, 2]), (caches.own_k, [0, 2]),
                             (caches.own_v, [0, 2]), *((one, [0]) for one in places)):
            torch._dynamo.maybe_mark_dynamic(tensor, [dim for dim in dims if tensor.shape[dim] > 1])
        G = len(places.row_C) // len(places.lengths_B)
        kind = (G, len(x_ND) > 1, len(places.lengths_B) > 1, x_ND.dtype, weights.out.dtype, len(weights.qkv))
        found: torch.Tensor = compiled(kind, x_ND, weights, caches, places)
        return found

    return layer


def _picking(decoding: Decoding) -> Callable[..., Chosen]:
    compiled = _compiled_picking(decoding)
    if compiled not in _MADE:
        _MADE.append(compiled)

    def next_token(hidden_ND: torch.Tensor, head_VD: torch.Tensor, banned_V: torch.Tensor,
                   seen_NV: torch.Tensor | None, uniform_N: torch.Tensor | None) -> Chosen:
        for tensor in (hidden_ND, seen_NV, uniform_N):
            if tensor is not None and len(tensor) > 1:
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
        kind = len(hidden_ND) > 1, hidden_ND.dtype, head_VD.shape, head_VD.dtype, uniform_N is None
        found: Chosen = compiled(kind, hidden_ND, head_VD, banned_V, seen_NV, uniform_N)
        return found

    return next_token


class Steps:
    """See the module. captured: (rows, slots, reach) of the graphs so far."""

    def __init__(self, rows: Rows, *, compiled: bool, graphs: bool) -> None:
        self.rows, self._graphs = rows, graphs
        self.captured: list[tuple[int, int, int]] = []
        self._graph: Any = None
        self._reads: list[int] = []
        if compiled:
            rows.body, rows.next_token = _layer(rows.shape, rows.prefix), _picking(rows.decoding)

    def run(self, count: int, *, furthest: int) -> None:
        """So many tokens of every row. furthest: the furthest place of a row that is not done."""
        R = self.rows.drawn.R
        with torch.autocast(self.rows.policy.device.type, enabled=False):
            if self._graphs:
                self._replay(count, min(smallest(_reaches(R), min(furthest + count, R)), R))
                return
            for done in range(count):
                self.rows.choose()
                if bool(self.rows.done_N.all()):
                    return
                self.rows.forward(reach=min(furthest + done + 1, R))

    def _replay(self, count: int, reach: int) -> None:
        rows = self.rows
        size = len(rows.number_N), len(rows.lengths_B), reach
        if self._graph is None or self.captured[-1] != size:
            self._graph = None  # its memory is free before another's is taken
            self._graph, self._reads = self._capture(reach), rows.addresses()
            self.captured.append(size)
        assert self._reads == rows.addresses(), "a graph reads what was where when it was captured"
        for _ in range(count):
            self._graph.replay()

    def _capture(self, reach: int) -> Any:
        """A step as a graph, or on a CPU as a call that looks as far. Libraries set themselves up, and code is
        compiled, in passes before, in which every row counts as done, so that nothing is drawn."""
        rows = self.rows
        done_N, hidden_ND = rows.done_N.clone(), rows.hidden_ND.clone()
        rows.done_N.fill_(True)

        def step() -> None:
            rows.choose()
            rows.forward(reach=reach)

        if rows.policy.device.type != "cuda":
            step()
            rows.done_N.copy_(done_N)
            rows.hidden_ND.copy_(hidden_ND)
            return SimpleNamespace(replay=step)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                step()
        torch.cuda.current_stream().wait_stream(side)
        rows.done_N.copy_(done_N)
        rows.hidden_ND.copy_(hidden_ND)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return graph


def _reaches(R: int) -> list[int]:
    """Powers of two from `LEAST_REACH`, and R."""
    reaches = [LEAST_REACH]
    while reaches[-1] < R:
        reaches.append(2 * reaches[-1])
    return reaches
