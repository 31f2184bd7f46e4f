"""One parameter in the optimizer: this rank's slice of its weights, gradient and moments, and AdamW's arithmetic on it.

The weights that are trained are the slice of the parameter itself where its precision is that of training (float32,
float64; bfloat16 under 8-bit states), and a float32 copy of it where the parameter is a bfloat16 one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from taro.train.optimizer.moments import Bfloat16, EightBit, Full, Moment
from taro.train.optimizer.pieces import BLOCK, Piece, bounds
from taro.train.optimizer.rounding import element_bits, name_key, round_bfloat16
from taro.train.settings.update import States

__all__ = ["CHUNK", "AdamW", "Slot", "adamw", "adamw_fused"]

CHUNK = 1 << 24
"""elements updated at a time: bounds the temporary tensors; a multiple of BLOCK"""
MOMENT_BITS = 16
"""random bits that a rounding takes; both moments share the 32 of an element"""


@dataclass(frozen=True)
class AdamW:
    """One update: its learning rate, decay and betas, the factor of the gradient, its number (from 1) and seed."""

    lr: float
    scale: float
    step: int
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    seed: int


def adamw(weight: torch.Tensor, gradient: torch.Tensor, mean: torch.Tensor, square: torch.Tensor, how: AdamW) -> None:
    """In place, in the order of torch's own, to the bit."""
    beta1, beta2 = how.betas
    weight.mul_(1 - how.lr * how.weight_decay)
    mean.lerp_(gradient, 1 - beta1)
    square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    spread = (square.sqrt() / (1 - beta2**how.step) ** 0.5).add_(how.eps)
    weight.addcdiv_(mean, spread, value=-(how.lr / (1 - beta1**how.step)))


def adamw_fused(weight: torch.Tensor, gradient: torch.Tensor, mean: torch.Tensor, square: torch.Tensor,
                how: AdamW) -> None:
    """`adamw` as one kernel, which reads and writes each number once: on a GPU the step waits for memory alone. It
    differs in the last bits."""
    step = torch.full((), float(how.step), dtype=torch.float32, device=weight.device)
    torch._fused_adamw_([weight], [gradient], [mean], [square], [], [step], lr=how.lr, beta1=how.betas[0],
                        beta2=how.betas[1], weight_decay=how.weight_decay, eps=how.eps, amsgrad=False, maximize=False)


class Slot:
    """See the module. `gradient`: [n] accumulated; None where autograd's own is used, and where short ones have not
    begun."""

    def __init__(self, name: str, parameter: torch.nn.Parameter, states: States, rank: int, world: int) -> None:
        self.name, self.parameter, self._states = name, parameter, states
        self.whole = parameter.numel()
        self.start, self.stop = bounds(self.whole, rank, world)
        n, device, short = self.stop - self.start, parameter.device, parameter.dtype == torch.bfloat16
        own = self.flat[self.start : self.stop]
        self.weight = own.float() if short and states != "8bit" else own
        wide = torch.float32 if short else parameter.dtype
        self.accumulates, self._added = world > 1 or short, 0
        self._takes_over = world == 1 and short and states == "8bit"
        self.gradient: torch.Tensor | None = None
        if self.accumulates and not self._takes_over:
            self.gradient = torch.zeros(n, dtype=wide, device=device)
        self.moments: tuple[Moment, Moment]
        if states == "8bit":
            self.moments = EightBit(n, device, signed=True), EightBit(n, device, signed=False)
        elif states == "bfloat16":
            self.moments = Bfloat16(n, device), Bfloat16(n, device)
        else:
            self.moments = Full(n, wide, device), Full(n, wide, device)

    @property
    def flat(self) -> torch.Tensor:
        """The parameter's elements, a view."""
        return self.parameter.data.view(-1)

    @property
    def is_copy(self) -> bool:
        """Whether the trained weights are a copy that the parameter is rounded from."""
        return self.weight.dtype != self.parameter.dtype

    def slice_of_gradient(self) -> torch.Tensor | None:
        """[n] float; None where no gradient came."""
        if self.gradient is not None:
            return self.gradient
        found = self.parameter.grad
        return None if found is None else found.reshape(-1)[self.start : self.stop]

    def clear(self) -> None:
        """Forgets the gradient."""
        self.parameter.grad, self._added = None, 0
        if self._takes_over:
            self.gradient = None
        elif self.gradient is not None:
            self.gradient.zero_()

    @torch.no_grad()
    def add(self, seed: int, step: int) -> None:
        """Takes what backward left, of the one rank that there is. Under 8-bit states the sum is bfloat16, rounded by
        chance: to nearest, a micro-batch that adds less than 1/512 of the sum would add nothing."""
        assert self.parameter.grad is not None
        left, self.parameter.grad = self.parameter.grad.view(-1), None
        if self.gradient is None:
            self.gradient = left
        elif not self._takes_over:
            self.gradient.add_(left)
        else:
            key = name_key("gradient", seed, step, self._added, self.name)
            for start in range(0, self.whole, CHUNK):
                part = slice(start, min(start + CHUNK, self.whole))
                bits = element_bits(key, part.start, part.stop, left.device)
                self.gradient[part] = round_bfloat16(self.gradient[part].float().add_(left[part]), bits)
        self._added += 1

    @torch.no_grad()
    def update(self, how: AdamW) -> None:
        """AdamW (arXiv 1711.05101) on the slice; then the parameter takes the weights."""
        gradient = self.slice_of_gradient()
        if gradient is None:
            return
        for start in range(0, len(gradient), CHUNK):
            part = slice(start, min(start + CHUNK, len(gradient)))
            self._update(part, gradient[part], how)
        if self.is_copy:
            self.flat[self.start : self.stop].copy_(self.weight)

    def _update(self, part: slice, gradient: torch.Tensor, how: AdamW) -> None:
        weight = self.weight[part]
        rounded = weight.dtype == torch.bfloat16
        weight = weight.float() if rounded else weight
        gradient = gradient.to(weight.dtype)
        first, second = self.moments
        mean, square = first.read(part), second.read(part)
        if gradient.is_cuda:
            adamw_fused(weight, gradient if how.scale == 1 else gradient * how.scale, mean, square, how)
        else:
            adamw(weight, gradient * how.scale, mean, square, how)
        bits = None if self._states == "float32" else self._bits("moments", part, how)
        first.write(part, mean, bits)
        second.write(part, square, None if bits is None else bits >> MOMENT_BITS)
        if rounded:
            self.weight[part] = round_bfloat16(weight, self._bits("weight", part, how))

    def _bits(self, what: str, part: slice, how: AdamW) -> torch.Tensor:
        """int32 random bits of the part's elements, the same whichever rank has them."""
        key = name_key("round", what, how.seed, how.step, self.name)
        return element_bits(key, self.start + part.start, self.start + part.stop, self.weight.device)

    def pieces(self) -> list[Piece]:
        """What a checkpoint keeps of this slice; tensors are live."""
        found = [Piece(self.name, "weight", self.whole, self.start, self.weight)]
        for kind, moment in zip(("exp_avg", "exp_avg_sq"), self.moments, strict=True):
            for end, tensor in moment.tensors().items():
                blocks = end == "_scale"
                found.append(Piece(self.name, kind + end, -(-self.whole // BLOCK) if blocks else self.whole,
                                   self.start // BLOCK if blocks else self.start, tensor))
        return found

    def bytes(self) -> Mapping[str, int]:
        """Held on this rank beside the parameter, by part; a gradient that autograd keeps is counted."""
        def size(tensor: torch.Tensor) -> int:
            return tensor.numel() * tensor.element_size()

        kept = self.gradient if self.gradient is not None else self.flat
        return {"master": size(self.weight) if self.is_copy else 0, "gradient": size(kept),
                "moments": sum(size(one) for moment in self.moments for one in moment.tensors().values())}
