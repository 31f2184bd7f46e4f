"""Every random draw of taro, as a function of its name: no global state, nothing to save for a resume.

`rng("disruption", seed, epoch, sample)` gives the same generator on every machine, in every process and order, so a
resumed run repeats its draws and two ranks never share one. The key is hashed (sha256) into Philox, a counter-based
generator; numpy guarantees its stream."""

from __future__ import annotations

import hashlib

import numpy as np

__all__ = ["rng", "uniforms"]


def rng(*key: int | str) -> np.random.Generator:
    """A fresh generator that depends on `key` alone.

    >>> bool(rng("shuffle", 0, 1).integers(100) == rng("shuffle", 0, 1).integers(100))
    True
    >>> bool(rng("ab", "c").integers(2**60) == rng("a", "bc").integers(2**60))
    False
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    digest = hashlib.sha256(text.encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def uniforms(count: int, *key: int | str) -> np.ndarray:
    """`count` draws from [0, 1) in float64, shape [count], that depend on `key` alone."""
    return rng(*key).random(count)
