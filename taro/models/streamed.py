"""A frozen policy whose weights are not on the GPU: they come a layer at a time, for all rows of a pass at once.

The embeddings, each decoder layer and the head are *units*: flat bytes that a `Store` keeps, all of it in the host's
memory (`HostStore`) or 1/world of it on every rank's GPU (`ShardedStore`). A pass goes through layers outside and rows
inside, so that a unit moves once a pass and not once a row; layer n + 1 moves on a stream of its own while layer n
computes, into the other of two buffers. Between passes nothing but the last norm is on the GPU. The layers are the
stock modules over views of the buffers, and a row is computed as it always is, so log-probs are those of the whole
policy to the last bit. Left out: gradients, decoding.
Legend: B prompts, G rollouts, R response tokens, N log-probs of a row, U bytes of a unit."""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

import torch

from taro.models.language_model import LanguageModel, RowPass
from taro.models.load import build_policy, compute_dtypes, fill_policy
from taro.models.logprobs import token_logprobs
from taro.models.packing import PackedBatch, one_group_a_row
from taro.models.prompt import Prompt
from taro.models.resolve import ModelFolder
from taro.models.weights import Dtypes, Place

__all__ = ["HostStore", "ShardedStore", "Store", "StreamedPolicy"]

log = logging.getLogger(__name__)

ALIGN = 512
"""bytes between starts of tensors in a unit: what the GPU's allocator gives, so that the same kernels are chosen"""
PAGE = 4096
"""bytes; memory is locked by pages"""


class Store(Protocol):
    """Keeps units, numbered as they are added."""

    def add(self, size: int) -> None:
        """Makes room for one more unit of so many bytes, a multiple of `ALIGN` times the ranks."""

    def write(self, unit: int, start: int, data_U: torch.Tensor) -> None:
        """Takes bytes (uint8, of any device) of a unit, from `start`."""

    def read(self, unit: int, out_U: torch.Tensor) -> None:
        """Puts a whole unit into `out_U`, on the current stream. With several ranks all of them call it together."""


class HostStore:
    """Units in the host's memory, pinned where the device is a GPU, and given back with it: memory that is freed while
    it is pinned leaves the GPU reading old pages at its address."""

    world = 1

    def __init__(self, device: torch.device) -> None:
        self._device, self._pin = device, device.type == "cuda"
        self._units: list[torch.Tensor] = []
        self._pinned: list[int] = []
        weakref.finalize(self, _unpin, self._units, self._pinned)  # which keeps the memory until then

    def add(self, size: int) -> None:
        """See `Store`. Memory that is touched, then locked: torch's own pinned memory takes four times as long, and up
        to twice the size."""
        room = torch.zeros(size + 2 * PAGE, dtype=torch.uint8)
        start = -room.data_ptr() % PAGE
        unit = room[start : start + size]
        self._units.append(unit)
        if self._pin:
            with torch.cuda.device(self._device):
                code = int(torch.cuda.cudart().cudaHostRegister(unit.data_ptr(), -(-size // PAGE) * PAGE, 0))
            self._pinned += [] if code else [unit.data_ptr()]
            if code:
                self._pin = False
                with suppress(RuntimeError):  # CUDA gives the error once more, to the next kernel
                    torch.zeros(1, device=self._device)
                log.warning("host memory of the reference could not be pinned (CUDA error %d): streaming it is slower; "
                            "see the limit of locked memory (ulimit -l)", code)

    def write(self, unit: int, start: int, data_U: torch.Tensor) -> None:
        """See `Store`."""
        self._units[unit][start : start + len(data_U)].copy_(data_U)

    def read(self, unit: int, out_U: torch.Tensor) -> None:
        """See `Store`."""
        out_U.copy_(self._units[unit], non_blocking=True)


def _unpin(units: list[torch.Tensor], pinned: list[int]) -> None:
    """Lets go of pinned memory, then of the memory."""
    for place in pinned:
        torch.cuda.cudart().cudaHostUnregister(place)
    units.clear()


class ShardedStore:
    """1/world of every unit on this rank's device. `gather` puts everyone's [U / world] into [U], in rank order."""

    def __init__(self, device: torch.device, rank: int, world: int,
                 gather: Callable[[torch.Tensor, torch.Tensor], None]) -> None:
        self.world, self._device, self._rank, self._gather = world, device, rank, gather
        self._mine: list[torch.Tensor] = []

    def add(self, size: int) -> None:
        """See `Store`."""
        self._mine.append(torch.zeros(size // self.world, dtype=torch.uint8, device=self._device))

    def write(self, unit: int, start: int, data_U: torch.Tensor) -> None:
        """See `Store`; bytes of other ranks are dropped."""
        mine = self._mine[unit]
        low = self._rank * len(mine)
        first, end = max(start, low), min(start + len(data_U), low + len(mine))
        if first < end:
            mine[first - low : end - low].copy_(data_U[first - start : end - start])

    def read(self, unit: int, out_U: torch.Tensor) -> None:
        """See `Store`."""
        self._gather(self._mine[unit], out_U)


@dataclass(frozen=True)
class _Tensor:
    """A parameter of a unit: whose it is, and where its bytes begin."""

    module: torch.nn.Module
    leaf: str
    dtype: torch.dtype
    shape: torch.Size
    start: int

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def attach(self, unit_U: torch.Tensor) -> None:
        """The parameter is a view of these bytes."""
        view = unit_U[self.start : self.start + self.size].view(self.dtype).view(self.shape)
        setattr(self.module, self.leaf, torch.nn.Parameter(view, requires_grad=False))

    def detach(self, device: torch.device) -> None:
        """The parameter holds nothing."""
        empty = torch.empty(0, dtype=self.dtype, device=device)
        setattr(self.module, self.leaf, torch.nn.Parameter(empty, requires_grad=False))


@dataclass(frozen=True)
class _Unit:
    number: int
    tensors: dict[Place, _Tensor]
    size: int


def _unit(number: int, modules: dict[Place, torch.nn.Module], dtypes: Dtypes, world: int) -> _Unit:
    """The unit of the parameters of `modules`, each under the place where its own names begin."""
    tensors: dict[Place, _Tensor] = {}
    start = 0
    for (part, prefix), module in modules.items():
        for name, parameter in module.named_parameters():
            place = (part, prefix + name)
            owner, _, leaf = name.rpartition(".")
            tensors[place] = _Tensor(module.get_submodule(owner), leaf, dtypes(place), parameter.shape, start)
            start += -(-tensors[place].size // ALIGN) * ALIGN
    return _Unit(number, tensors, -(-start // (ALIGN * world)) * ALIGN * world)


class StreamedPolicy:
    """The policy of a model folder over a store. Raises ModelError as `taro.models.load.load_policy`."""

    def __init__(self, folder: ModelFolder, device: torch.device, store: HostStore | ShardedStore, *,
                 bf16: bool, double: bool = False) -> None:
        self.policy, tied = build_policy(folder)
        self.device, self._store = device, store
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        model, dtypes = self.policy.language_model, compute_dtypes(self.policy, bf16=bf16, double=double)
        self._layers = [_unit(number, {("lm", f"layers.{number}."): layer}, dtypes, store.world)
                        for number, layer in enumerate(model.lm.layers)]
        for unit in self._layers:
            store.add(unit.size)
        homes = {place: (unit, tensor) for unit in self._layers for place, tensor in unit.tensors.items()}

        def keep(place: Place, tensor: torch.Tensor) -> torch.Tensor:
            if place not in homes:
                return tensor
            unit, home = homes[place]
            if tensor.shape == home.shape:  # any other is refused with its name when the module takes it
                store.write(unit.number, home.start, tensor.contiguous().view(-1).view(torch.uint8))
            return torch.empty_like(tensor, device="meta")

        fill_policy(self.policy, device=torch.device("cpu"), dtype=dtypes, tied=tied, keep=keep)
        head: dict[Place, torch.nn.Module] = {("head", ""): model.head}
        one = model.head.weight is model.lm.embed_tokens.weight
        self._embeddings = self._take(len(self._layers), {("lm", "embed_tokens."): model.lm.embed_tokens}, dtypes)
        self._head = (_unit(self._embeddings.number, head, dtypes, store.world) if one else
                      self._take(len(self._layers) + 1, head, dtypes))
        for unit in (self._embeddings, *self._layers, self._head):
            for tensor in unit.tensors.values():
                tensor.detach(device)
        model.to(device)
        if double:
            model.double()  # rotary tables

    def _take(self, number: int, modules: dict[Place, torch.nn.Module], dtypes: Dtypes) -> _Unit:
        """A unit of modules that were filled, moved into the store."""
        unit = _unit(number, modules, dtypes, self._store.world)
        self._store.add(unit.size)
        for tensor in unit.tensors.values():
            data = getattr(tensor.module, tensor.leaf).detach()
            self._store.write(number, tensor.start, data.contiguous().view(-1).view(torch.uint8))
        return unit

    @torch.no_grad()
    def score(self, prompts: Sequence[Prompt], ids_BGR: torch.Tensor, mask_BGR: torch.Tensor, *,
              temperature: float = 1.0) -> torch.Tensor:
        """As `taro.models.logprobs.score`: one pass of all prompts through the layers. B may be 0, for a rank that only
        takes part."""
        model = self.policy.language_model
        logprobs = torch.zeros(ids_BGR.numel(), dtype=torch.float32, device=self.device)
        packed = list(one_group_a_row(prompts, ids_BGR, mask_BGR))
        with self._whole(self._embeddings):
            rows = [self._begin(model, row) for row in packed]
        for number, layer in self._each_layer():
            for row in rows:
                row.through(number, layer)
        hidden_ND = [model.lm.norm(row.x_BTD)[0, one.before_N.to(self.device)]
                     for row, one in zip(rows, packed, strict=True)]
        rows.clear()
        with self._whole(self._head):
            for one, hidden in zip(packed, hidden_ND, strict=True):
                found_N = token_logprobs(self.policy, hidden, one.targets_N.to(self.device), temperature=temperature)
                logprobs = logprobs.to(found_N.dtype)  # float64 of a float64 policy
                logprobs[one.to_N.to(self.device)] = found_N
        return logprobs.view(ids_BGR.shape)

    def _begin(self, model: LanguageModel, row: PackedBatch) -> RowPass:
        embeds = model.embed(row.ids_T.to(self.device)[None], row.video)

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return row.attention(self.device)(layer, q, k, v)  # a mask [T, T] for every row would be gigabytes

        return RowPass(model.lm, embeds, row.positions_3T.to(self.device)[:, None], attend, row.video)

    @contextmanager
    def _whole(self, unit: _Unit) -> Iterator[None]:
        """Has a unit on the device while the block runs."""
        unit_U = torch.empty(unit.size, dtype=torch.uint8, device=self.device)
        self._store.read(unit.number, unit_U)
        for tensor in unit.tensors.values():
            tensor.attach(unit_U)
        yield
        for tensor in unit.tensors.values():
            tensor.detach(self.device)

    def _each_layer(self) -> Iterator[tuple[int, torch.nn.Module]]:
        """The layers one after another, the next one on its way while the caller computes with one."""
        size = max(unit.size for unit in self._layers)
        buffers = [torch.empty(size, dtype=torch.uint8, device=self.device) for _ in range(2)]
        self._fetch(self._layers[0], buffers[0])
        for number, (unit, layer) in enumerate(zip(self._layers, self.policy.language_model.lm.layers, strict=True)):
            if self._side is not None:
                torch.cuda.current_stream(self.device).wait_stream(self._side)
            if number + 1 < len(self._layers):  # sets out behind the layer before this one, which read that buffer
                self._fetch(self._layers[number + 1], buffers[(number + 1) % 2])
            for tensor in unit.tensors.values():
                tensor.attach(buffers[number % 2])
            yield number, layer
            for tensor in unit.tensors.values():
                tensor.detach(self.device)

    def _fetch(self, unit: _Unit, buffer_U: torch.Tensor) -> None:
        if self._side is None:
            self._store.read(unit.number, buffer_U[: unit.size])
            return
        self._side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._side):
            self._store.read(unit.number, buffer_U[: unit.size])
