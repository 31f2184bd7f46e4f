"""Rounding that is right in the mean, with draws that have names.

Rounded to nearest, a bfloat16 weight never moves by less than 1/256 of itself, and a learning rate of 1e-6 changes
nothing at all. Rounded up or down by chance, in proportion to what is lost, it moves by the right amount in the mean.
Chance is a hash of (seed, step, parameter, element): no generator has a state, so that a resumed run goes on bit for
bit, and the numbers do not depend on how a parameter is cut. It is computed in 32 bits, which a GPU moves in half the
time of 64, with whole numbers alone, so that every device has the same."""

from __future__ import annotations

import hashlib

import torch

__all__ = ["element_bits", "name_key", "round_bfloat16"]


def name_key(*names: object) -> int:
    """A number of 63 bits for a sequence of names."""
    text = "\0".join(str(name) for name in names)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def element_bits(key: int, start: int, stop: int, device: torch.device) -> torch.Tensor:
    """int32 [stop - start]: 32 random bits of each element; those of elements 2^32 apart are the same.

    The key gives the multiplier and the offset of a counter, which two rounds of multiplication and folding spread over
    all bits (the constants are Mueller's). All products wrap at 32 bits."""
    multiplier, offset = (key >> 31) | 1, key + start * ((key >> 31) | 1)
    x = torch.arange(stop - start, dtype=torch.int32, device=device).mul_(_signed(multiplier)).add_(_signed(offset))
    low, high = x.view(torch.int16).view(-1, 2).unbind(1)
    low ^= high  # x ^= x >> 16, as one pass over memory
    for _ in range(2):
        x.mul_(0x45D9F3B)
        low ^= high
    return x


def _signed(number: int) -> int:
    """The number of 32 bits with a sign that is equal modulo 2^32."""
    return (number + 2**31) % 2**32 - 2**31


def round_bfloat16(values_N: torch.Tensor, bits_N: torch.Tensor) -> torch.Tensor:
    """float32 values as bfloat16, up or down by the lowest 16 of `bits_N`; what is not finite stays as it is.

    >>> bits = torch.arange(0, 2**16, 2**10, dtype=torch.int32)
    >>> round(float(round_bfloat16(torch.full((64,), 1 + 2**-9), bits).double().mean()), 6)  # between 1 and 1 + 2^-7
    1.001953
    """
    moved = (values_N.view(torch.int32) + (bits_N & 0xFFFF)).bitwise_and_(-65536).view(torch.float32)
    return torch.where(torch.isfinite(values_N), moved, values_N).to(torch.bfloat16)
