"""Inputs of recomputed layers in host memory: they leave the GPU in the forward pass and are back when they are needed.

With recomputation a pass keeps one tensor a layer, its input: 86 MB of fp32 at 6,000 tokens and width 3584. Here it is
copied to pinned memory while the layer computes, and comes back while the layer behind it is recomputed, both on a
stream of their own. The numbers are copied and nothing else, so gradients are the same to the last bit.
How: what autograd sees between two layers is a tensor of the input's shape over a single number; what the layer
computes on is fetched inside the recomputed function. So torch's own checkpointing (random state, autocast) does the
rest. Left out: the last layer's input, which is needed at once. Legend: B rows, T tokens, D width."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

__all__ = ["Offload", "Recompute", "offloaded_bytes", "recomputing"]


def offloaded_bytes(layers: int, tokens: int, width: int) -> int:
    """Host memory that a row of `tokens` takes: of all layers but the last, fp32, each rounded up to a power of two as
    torch's cache of pinned memory does. A run with rows of many lengths holds at most twice that of its longest."""
    size = max(tokens * width * 4, 1)
    return (layers - 1) * (1 << (size - 1).bit_length())


class Offload:
    """Moves layer inputs of one device. `moved_bytes`: brought to the host so far."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.moved_bytes = 0


Recompute = bool | Offload
"""of layers in the backward pass: False: not at all; True: from inputs that stay; or from inputs that are offloaded"""


def recomputing(wanted: Recompute, layers: int) -> Callable[..., torch.Tensor] | None:
    """(layer, x, keywords) -> the layer's output, for one pass through so many layers; None: call the layer itself."""
    if isinstance(wanted, Offload) and torch.is_grad_enabled():
        return _Row(wanted, layers).recompute
    return partial(checkpoint, use_reentrant=False) if wanted else None


class _Row:
    """The inputs of one pass, in the order of the layers."""

    def __init__(self, offload: Offload, layers: int) -> None:
        self._offload, self._left = offload, layers
        self._before: _Input | None = None

    def recompute(self, layer: Callable[..., torch.Tensor], x_BTD: torch.Tensor, **others: Any) -> torch.Tensor:
        """`layer` of `x_BTD`, computed again in the backward pass."""
        self._left -= 1
        kept = _Input(self._offload, self._before, stays=self._left == 0)
        self._before = kept

        def computed(stand_in_BTD: torch.Tensor) -> torch.Tensor:
            return layer(_Back.apply(stand_in_BTD, kept), **others)

        out: torch.Tensor = checkpoint(computed, _Away.apply(x_BTD, kept), use_reentrant=False)
        kept.leave()
        return out


class _Input:
    """One layer's input. It is on the device while the layer runs forward, and from when the layer behind it is
    recomputed until it is recomputed itself; the host's copy lives as long as the graph."""

    def __init__(self, offload: Offload, before: _Input | None, *, stays: bool) -> None:
        self._offload, self._before, self._stays = offload, before, stays
        self._left = False
        self._x: torch.Tensor | None = None
        self._host: torch.Tensor | None = None
        self._device = torch.device("cpu")

    def store(self, x_BTD: torch.Tensor) -> None:
        """Begins the copy to the host."""
        self._x, self._device = x_BTD, x_BTD.device
        if self._stays:
            return
        stream = self._offload.stream
        self._host = torch.empty(x_BTD.shape, dtype=x_BTD.dtype, pin_memory=stream is not None)
        self._copy(self._host, x_BTD)
        self._offload.moved_bytes += x_BTD.nbytes

    def leave(self) -> None:
        """The layer has run forward."""
        self._left = True
        self._x = self._x if self._stays else None

    def fetch(self) -> None:
        """Begins the copy back."""
        if self._x is None:
            assert self._host is not None
            self._x = torch.empty_like(self._host, device=self._device)
            self._copy(self._x, self._host)

    def take(self) -> torch.Tensor:
        """The input, for the layer to compute on; in the backward pass the one before it sets out too."""
        self.fetch()
        assert self._x is not None
        x = self._x
        if self._left:
            if self._offload.stream is not None:
                torch.cuda.current_stream(self._device).wait_stream(self._offload.stream)
            if self._before is not None:
                self._before.fetch()
            self._x = x if self._stays else None
        return x

    def _copy(self, to: torch.Tensor, source: torch.Tensor) -> None:
        stream = self._offload.stream
        if stream is None:
            to.copy_(source)
            return
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            to.copy_(source, non_blocking=True)
        (to if to.is_cuda else source).record_stream(stream)


class _Away(torch.autograd.Function):
    """x [B, T, D] -> a tensor of its shape over one number, which stands for it in the graph."""

    @staticmethod
    def forward(ctx: Any, x_BTD: torch.Tensor, kept: _Input) -> torch.Tensor:
        kept.store(x_BTD.detach())
        return x_BTD.new_zeros(1).expand(x_BTD.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return gradients[0], None


class _Back(torch.autograd.Function):
    """What `_Away` gave -> x."""

    @staticmethod
    def forward(ctx: Any, stand_in_BTD: torch.Tensor, kept: _Input) -> torch.Tensor:
        return kept.take().detach()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return gradients[0], None
