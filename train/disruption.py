"""Where a video's order is broken for the log-probability drop: the method's `patch`, and kinds to compare it with.

A temporal patch is encoded on its own by the frozen tower, so moving features equals moving pixels and no video is
needed. Every kind but `frame` is an order [S] for `VideoFeatures.permuted`: patch i gets the content of patch order[i].

- `patch`: the patches within `dt_s` of each boundary are permuted. The method's own (TaRO, section 3.2).
- `reverse`: they stand in reverse order. Nothing is drawn; neighbours stay neighbours, only the arrow of time turns.
- `elsewhere`: stretches of the same numbers of patches away from every boundary are permuted. The control: what drops
  here too is not about the boundaries.
- `noise`: each patch near a boundary shows one drawn, with replacement, from those away from every boundary: the
  event's edges are gone, not out of order. Patches of the clip itself and no Gaussian: a feature that no frame has
  would also measure how the policy takes what it never saw.
- `frame`: single frames near each boundary are shuffled, the released code's operation. It mixes frames across patches,
  which is no order of features: the shard set holds variants encoded offline, one of which is drawn.

One disruption per (seed, epoch, sample), shared by the group; never the identity. None, which callers count, where a
video cannot be disrupted or has no variant.
Legend: S temporal patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from taro.core import draws
from taro.grounding.boundaries import Boundary, boundary_windows, shuffled
from taro.grounding.moment import Moment

if TYPE_CHECKING:
    from taro.models.features import VideoFeatures
    from taro.shards.variants import FrameVariants

__all__ = ["KINDS", "Disruption", "Kind"]

Kind = Literal["patch", "reverse", "elsewhere", "noise", "frame"]
KINDS: tuple[Kind, ...] = get_args(Kind)

PLACING_TRIES = 32
"""random placements of `elsewhere` before its stretches are packed to the left"""


@dataclass(frozen=True)
class Disruption:
    """One way to break the order of a video: patches within `dt_s` seconds of both boundaries, or of one alone."""

    kind: Kind
    dt_s: float = 3.0
    boundary: Boundary = "both"

    @property
    def name(self) -> str:
        """As tables write it."""
        return f"{self.kind} {self.dt_s:g} s {self.boundary}"

    def apply(self, features: VideoFeatures, windows: Sequence[Moment], *, variants: FrameVariants | None, seed: int,
              epoch: int, sample: str) -> VideoFeatures | None:
        """Disrupted features. Of `frame`, one of the query's `variants`, drawn uniformly, is put over them. None where
        the video has no such disruption, or the query no variant."""
        if self.kind == "frame":
            assert self.boundary == "both", "variants shuffle both boundaries"
            if variants is None:
                return None
            drawn = draws.rng("disruption", "frame", seed, epoch, sample).integers(variants.settings.count)
            return variants.spliced(features, int(drawn))
        order_S = self.order(features.times_S, windows, seed=seed, epoch=epoch, sample=sample)
        return None if order_S is None else features.permuted(order_S)

    def order(self, times_S: np.ndarray, windows: Sequence[Moment], *, seed: int, epoch: int,
              sample: str) -> np.ndarray | None:
        """Order [S] of a disruption of any kind but `frame`; see the module for what each does.

        None for all kinds where the video has fewer than 2 patches or the query no window; for `elsewhere` where its
        stretches do not fit between the boundaries'; for `noise` where every patch is near a boundary. Both keep away
        from all boundaries, whichever of them `boundary` names.

        >>> name = {"seed": 0, "epoch": 0, "sample": "v:1"}
        >>> Disruption("patch", 1.0).order(np.arange(8.0), [Moment(0, 7)], **name).tolist()
        [1, 0, 2, 3, 4, 5, 7, 6]
        >>> Disruption("reverse", 1.0).order(np.arange(8.0), [Moment(1, 6)], **name).tolist()
        [2, 1, 0, 3, 4, 7, 6, 5]
        >>> Disruption("elsewhere", 1.0).order(np.arange(8.0), [Moment(0, 7)], **name).tolist()
        [0, 1, 3, 2, 5, 4, 6, 7]
        >>> Disruption("noise", 1.0).order(np.arange(5.0), [Moment(0, 4)], **name).tolist()
        [2, 2, 2, 2, 2]
        """
        stretches = boundary_windows(times_S, windows, dt_s=self.dt_s, boundary=self.boundary)
        if not stretches:
            return None
        order_S = np.arange(len(times_S))
        if self.kind == "reverse":
            for stretch in stretches:
                order_S[stretch] = stretch[::-1]
            return order_S
        if self.kind == "patch":
            return _permute(order_S, stretches, draws.rng("disruption", seed, epoch, sample))
        generator = draws.rng("disruption", self.kind, seed, epoch, sample)
        away_S = np.ones(len(times_S), dtype=bool)
        away_S[np.concatenate(boundary_windows(times_S, windows, dt_s=self.dt_s))] = False
        if self.kind == "noise":
            near = np.concatenate(stretches)
            if not away_S.any():
                return None
            order_S[near] = generator.choice(np.flatnonzero(away_S), size=len(near))
            return order_S
        placed = _place([len(stretch) for stretch in stretches], away_S, generator)
        return None if placed is None else _permute(order_S, placed, generator)


def _permute(order_S: np.ndarray, stretches: Sequence[np.ndarray], generator: np.random.Generator) -> np.ndarray:
    """`order_S` with each stretch under a permutation drawn uniformly from all but the identity."""
    for stretch in stretches:
        order_S[stretch] = shuffled(stretch, generator)
    return order_S


def _place(lengths: Sequence[int], free_S: np.ndarray, generator: np.random.Generator) -> list[np.ndarray] | None:
    """Disjoint stretches of these lengths where `free_S`, longest first, each at a start drawn uniformly from those
    where it fits. Where no try places all, each goes as far left as it fits; None where that fails too."""
    for attempt in range(PLACING_TRIES + 1):
        left_S, placed = free_S.copy(), []
        for length in sorted(lengths, reverse=True):
            fits = np.flatnonzero(np.convolve(left_S, np.ones(length), "valid") == length)
            if not len(fits):
                break
            start = int(fits[0] if attempt == PLACING_TRIES else generator.choice(fits))
            left_S[start : start + length] = False
            placed.append(np.arange(start, start + length))
        if len(placed) == len(lengths):
            return placed
    return None
