"""Rounding that is right in the mean, with draws that have names.

Rounded to nearest, a bfloat16 weight never moves by less than 1/256 of itself, and a learning rate of 1e-6 changes
nothing at all. Rounded up or down by chance, in proportion to what is lost, it moves by the right amount in the mean.
Chance is a hash of (seed, step, parameter, element): no generator has a state, so that a resumed run goes on bit for
bit, and the numbers do not depend on how a parameter is cut."""

from __future__ import annotations

import hashlib

import torch

__all__ = ["element_bits", "name_key", "round_bfloat16"]


def name_key(*names: object) -> int:
    """A number of 63 bits for a sequence of names."""
    text = "\0".join(str(name) for name in names)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def element_bits(key: int, start: int, stop: int, device: torch.device) -> torch.Tensor:
    """int64 [stop - start]: 63 random bits of each element, by the finaliser of splitmix64 (Steele et al., 2014)."""
    x = torch.arange(start, stop, dtype=torch.int64, device=device).mul_(-7046029254386353131).add_(key)
    x ^= (x >> 30) & 0x3FFFFFFFF
    x.mul_(-4658895280553007687)
    x ^= (x >> 27) & 0x1FFFFFFFFF
    x.mul_(-7723592293110705685)
    x ^= (x >> 31) & 0x1FFFFFFFF
    return x.bitwise_and_(0x7FFFFFFFFFFFFFFF)


def round_bfloat16(values_N: torch.Tensor, bits_N: torch.Tensor) -> torch.Tensor:
    """float32 values as bfloat16, up or down by the lowest 16 of `bits_N`; what is not finite stays as it is.

    >>> bits = torch.arange(0, 2**16, 2**10)
    >>> round(float(round_bfloat16(torch.full((64,), 1 + 2**-9), bits).double().mean()), 6)  # between 1 and 1 + 2^-7
    1.001953
    """
    moved = (values_N.view(torch.int32) + (bits_N & 0xFFFF).to(torch.int32)).bitwise_and_(-65536).view(torch.float32)
    return torch.where(torch.isfinite(values_N), moved, values_N).to(torch.bfloat16)
