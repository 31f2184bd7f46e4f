"""AdamW's moments as they are kept: in full, in bfloat16, or in 8 bits with a scale for each block.

A store gives a part of a moment as float numbers and takes it back; what rounds, rounds by chance (`rounding`), since a
second moment that decays by .999 would stand still under rounding to nearest. Legend: N elements of a slice."""

from __future__ import annotations

from typing import Protocol

import torch

from taro.train.optimizer.pieces import BLOCK
from taro.train.optimizer.rounding import round_bfloat16

__all__ = ["Bfloat16", "EightBit", "Full", "Moment"]


class Moment(Protocol):
    """One moment of a slice."""

    def read(self, part: slice) -> torch.Tensor:
        """Its numbers, to be changed in place and given back."""

    def write(self, part: slice, values: torch.Tensor, bits: torch.Tensor | None) -> None:
        """Keeps changed numbers; `bits`: int32 random bits of each element, where it rounds."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is kept, by the end of its kind: "" of the elements, "_scale" of the blocks."""


class Full:
    """In the parameter's own precision."""

    def __init__(self, n: int, dtype: torch.dtype, device: torch.device) -> None:
        self._values = torch.zeros(n, dtype=dtype, device=device)

    def read(self, part: slice) -> torch.Tensor:
        """A view: what is done to it is done."""
        return self._values[part]

    def write(self, part: slice, values: torch.Tensor, bits: torch.Tensor | None) -> None:
        """Nothing is left to do."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """See `Moment`."""
        return {"": self._values}


class Bfloat16:
    """Two bytes an element."""

    def __init__(self, n: int, device: torch.device) -> None:
        self._values = torch.zeros(n, dtype=torch.bfloat16, device=device)

    def read(self, part: slice) -> torch.Tensor:
        """float32."""
        return self._values[part].float()

    def write(self, part: slice, values: torch.Tensor, bits: torch.Tensor | None) -> None:
        """Rounds by chance."""
        assert bits is not None
        self._values[part] = round_bfloat16(values, bits)

    def tensors(self) -> dict[str, torch.Tensor]:
        """See `Moment`."""
        return {"": self._values}


class EightBit:
    """A byte an element and a float32 scale a block of 256: the largest size in it.

    A code k of K stands for `scale * (k / K) ** power`. First moments have a sign, K = 127 and power 2; second ones
    K = 255 and power 4, since they span more: the smallest code is 2.4e-10 of the largest. A second moment that is not
    0 never gets the code 0: AdamW divides by its root."""

    def __init__(self, n: int, device: torch.device, *, signed: bool) -> None:
        self._signed, self._top, self._power = signed, 127 if signed else 255, 2 if signed else 4
        self._codes = torch.zeros(n, dtype=torch.int8 if signed else torch.uint8, device=device)
        self._scales = torch.zeros(-(-n // BLOCK), dtype=torch.float32, device=device)

    def read(self, part: slice) -> torch.Tensor:
        """float32."""
        codes = self._codes[part].float()
        sizes = (codes.abs() / self._top) ** self._power
        sizes = sizes * self._scales[_blocks(part)].repeat_interleave(BLOCK)[: len(sizes)]
        return torch.where(codes < 0, -sizes, sizes)

    def write(self, part: slice, values: torch.Tensor, bits: torch.Tensor | None) -> None:
        """Takes the lower or the upper code by chance, so that the mean is right."""
        assert bits is not None
        n = len(values)
        sizes = values.abs()
        padded = torch.nn.functional.pad(sizes, (0, -n % BLOCK)).view(-1, BLOCK)
        scales = padded.amax(1)
        self._scales[_blocks(part)] = scales
        relative = sizes / scales.clamp(min=torch.finfo(torch.float32).tiny).repeat_interleave(BLOCK)[:n]
        low = (relative ** (1 / self._power) * self._top).floor_().clamp_(0, self._top - 1)
        below, above = (low / self._top) ** self._power, ((low + 1) / self._top) ** self._power
        chance = (bits & 0xFFFF).float() / 65536
        codes = low + (chance < (relative - below) / (above - below))
        if not self._signed:
            codes = torch.where(relative > 0, codes.clamp_(min=1), codes)
        self._codes[part] = torch.where(values < 0, -codes, codes).to(self._codes.dtype)

    def tensors(self) -> dict[str, torch.Tensor]:
        """See `Moment`."""
        return {"": self._codes, "_scale": self._scales}


def _blocks(part: slice) -> slice:
    assert part.start % BLOCK == 0
    return slice(part.start // BLOCK, -(-part.stop // BLOCK))
