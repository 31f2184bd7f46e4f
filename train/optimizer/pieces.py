"""Slices of flattened parameters: what a rank owns of each, and what a checkpoint holds of it.

A parameter's elements, row by row, are cut into as many slices as there are ranks, at multiples of BLOCK elements. So a
block of 8-bit moments never lies on two ranks, and its codes do not depend on how many there are."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["BLOCK", "Piece", "bounds", "slice_length"]

BLOCK = 256
"""elements that share a scale in 8-bit moments"""


@dataclass(frozen=True)
class Piece:
    """A slice of a tensor to be kept. name: the parameter's; kind: "weight", "exp_avg", "exp_avg_sq", or one of these
    with "_scale" behind; whole: elements of the whole flattened tensor; start: of the slice; tensor: [n], its
    elements."""

    name: str
    kind: str
    whole: int
    start: int
    tensor: torch.Tensor


def slice_length(elements: int, world: int) -> int:
    """Elements of each rank's slice; the last ones may be shorter, or empty.

    >>> slice_length(1000, 1), slice_length(1000, 2), slice_length(1000, 8)
    (1024, 512, 256)
    """
    return -(-elements // (world * BLOCK)) * BLOCK


def bounds(elements: int, rank: int, world: int) -> tuple[int, int]:
    """[start, stop) of a rank's slice.

    >>> [bounds(1000, rank, 3) for rank in range(3)]
    [(0, 512), (512, 1000), (1000, 1000)]
    """
    length = slice_length(elements, world)
    return min(rank * length, elements), min((rank + 1) * length, elements)
