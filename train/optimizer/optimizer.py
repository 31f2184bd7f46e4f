"""AdamW over a policy that every rank holds whole, its states spread over the ranks (ZeRO-2, arXiv 1910.02054).

A micro-batch's gradients leave as soon as backward has them: where autograd itself does not add them up, they go to
their owner's slice (in float32; of one rank with 8-bit states in bfloat16) and their memory is free again. Over ranks a
decoder layer's are summed at once, layers in one fixed order, so that ranks meet in the same order whatever came first.
After the update each rank sends its slices of the new weights to all. Why not FSDP2: every rank decodes with the whole
bfloat16 model; to gather its layers again for forward and backward would cost memory and time and save neither.
Legend: W ranks, N elements of a layer's slices."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from taro.train.optimizer.pieces import Piece, slice_length
from taro.train.optimizer.slot import CHUNK, AdamW, Slot
from taro.train.ranks import ALONE, Ranks
from taro.train.settings.update import OptimizerConfig

__all__ = ["Optimizer", "Read"]

Read = Callable[[str, str, int, int], torch.Tensor]
"""(name, kind, start, n) -> n elements of a kept tensor, flattened, from `start`"""
LAYER = re.compile(r"(?:^|\.)layers\.([^.]+)\.")


class Optimizer:
    """Of those parameters that require gradients. `steps`: updates done, AdamW's own count."""

    def __init__(self, named_parameters: Iterable[tuple[str, torch.nn.Parameter]], config: OptimizerConfig,
                 ranks: Ranks = ALONE, *, seed: int = 0) -> None:
        """`seed`: of roundings."""
        self.config, self.ranks, self.steps, self._seed = config, ranks, 0, seed
        self.slots = [Slot(name, one, config.states, ranks.rank, ranks.world)
                      for name, one in named_parameters if one.requires_grad]
        layers: dict[str, list[Slot]] = {}
        for slot in reversed(self.slots):  # about the order in which backward comes to them
            found = LAYER.search(slot.name)
            layers.setdefault(found[1] if found else slot.name, []).append(slot)
        self._layers, self._next = list(layers.values()), 0
        self._place = {slot.name: at for at, layer in enumerate(self._layers) for slot in layer}
        self._waiting = [len(layer) for layer in self._layers]
        for slot in self.slots:
            if slot.accumulates:
                slot.parameter.register_post_accumulate_grad_hook(self._hook(slot))

    @property
    def bytes_per_parameter(self) -> float:
        """Held on this rank: compute weights, trained weights, gradients and moments."""
        held = sum(sum(slot.bytes().values()) + slot.whole * slot.parameter.element_size() for slot in self.slots)
        return held / max(sum(slot.whole for slot in self.slots), 1)

    def begin(self) -> None:
        """Clears the gradients."""
        for slot in self.slots:
            slot.clear()
        self._restart()

    def collect(self) -> None:
        """Ends a micro-batch: what backward left is added up over the ranks. A rank without work calls it too."""
        if self.ranks.world > 1:
            while self._next < len(self._layers):
                self._reduce(self._layers[self._next])
        self._restart()

    @torch.no_grad()
    def norm(self) -> float:
        """Of the whole gradient, over all ranks."""
        mine = [one for slot in self.slots if (one := slot.slice_of_gradient()) is not None]
        if self.ranks.world == 1 and not any(one.dtype == torch.bfloat16 for one in mine):
            return float(torch.nn.utils.get_total_norm(mine)) if mine else 0.0
        squares = [torch.linalg.vector_norm(part, dtype=torch.float64).square()  # a float64 copy of each chunk is made
                   for one in mine for part in one.split(CHUNK)]
        return math.sqrt(float(self.ranks.sum([float(torch.stack(squares).sum()) if squares else 0.0])[0]))

    def clipped(self, norm: float) -> float:
        """The factor that brings a gradient of that norm to `grad_clip` at most, in the precision of the gradient."""
        dtype = torch.promote_types(torch.float32, self.slots[0].parameter.dtype)
        return float(torch.clamp(self.config.grad_clip / (torch.tensor(norm, dtype=dtype) + 1e-6), max=1.0))

    def step(self, lr: float, scale: float = 1.0) -> None:
        """One update with the gradients times `scale`."""
        self.steps += 1
        config = self.config
        how = AdamW(lr, scale, self.steps, config.betas, config.eps, config.weight_decay, self._seed)
        for slot in self.slots:
            slot.update(how)
        self._share()

    def pieces(self) -> list[Piece]:
        """What a checkpoint keeps of this rank; the tensors are live. `steps` goes with them."""
        return [piece for slot in self.slots for piece in slot.pieces()]

    @torch.no_grad()
    def load(self, read: Read, steps: int) -> None:
        """Fills weights and moments from what was kept, whatever number of ranks kept it."""
        self.steps = steps
        for piece in self.pieces():
            if piece.tensor.numel():
                piece.tensor.copy_(read(piece.name, piece.kind, piece.start, piece.tensor.numel()))
        for slot in self.slots:
            if slot.is_copy:
                slot.flat[slot.start : slot.stop].copy_(slot.weight)
        self._share()

    def _hook(self, slot: Slot) -> Callable[[torch.Tensor], None]:
        def taken(_: torch.Tensor) -> None:
            if self.ranks.world == 1:
                slot.add(self._seed, self.steps)
                return
            self._waiting[self._place[slot.name]] -= 1
            while self._next < len(self._layers) and self._waiting[self._next] <= 0:
                self._reduce(self._layers[self._next])

        return taken

    def _restart(self) -> None:
        self._next, self._waiting = 0, [len(layer) for layer in self._layers]

    @torch.no_grad()
    def _reduce(self, layer: list[Slot]) -> None:
        """Adds a layer's gradients over the ranks, each slice to its owner's."""
        self._next += 1
        places, length = _side_by_side(layer, self.ranks.world)
        first = layer[0].gradient
        assert first is not None
        parts_WN = first.new_zeros((self.ranks.world, length))
        for slot, columns in places:
            if slot.parameter.grad is not None:
                for part_n, room_n in _slices(slot.parameter.grad.reshape(-1), parts_WN[:, columns]):
                    room_n.copy_(part_n)
                slot.parameter.grad = None
        sum_N = self.ranks.reduce_scatter(parts_WN)
        for slot, columns in places:
            assert slot.gradient is not None
            slot.gradient += sum_N[columns][: len(slot.gradient)]

    @torch.no_grad()
    def _share(self) -> None:
        """Sends each rank's slices of the compute weights to all, a layer at a time."""
        for layer in self._layers if self.ranks.world > 1 else ():
            for dtype in {slot.parameter.dtype: None for slot in layer}:
                places, length = _side_by_side([slot for slot in layer if slot.parameter.dtype == dtype],
                                               self.ranks.world)
                mine_N = places[0][0].flat.new_zeros(length)
                for slot, columns in places:
                    mine_N[columns][: slot.stop - slot.start].copy_(slot.flat[slot.start : slot.stop])
                all_WN = self.ranks.all_gather(mine_N)
                for slot, columns in places:
                    for part_n, room_n in _slices(slot.flat, all_WN[:, columns]):
                        part_n.copy_(room_n)


def _side_by_side(slots: Sequence[Slot], world: int) -> tuple[list[tuple[Slot, slice]], int]:
    """Which columns of [W, N] each slot has, where row r holds the slices of rank r; and N."""
    places, at = [], 0
    for slot in slots:
        end = at + slice_length(slot.whole, world)
        places.append((slot, slice(at, end)))
        at = end
    return places, at


def _slices(flat: torch.Tensor, rows_WL: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Views of each rank's slice of a flattened tensor, and of its room in that rank's row."""
    length = rows_WL.shape[1]
    for rank, row_L in enumerate(rows_WL):
        part_n = flat[rank * length : (rank + 1) * length]
        yield part_n, row_L[: len(part_n)]
