"""The files of a checkpoint as tensors: checked, compared with those of a run, and read slice by slice.

Version 2 has one file a rank (`taro.train.checkpoint.pieces`); version 1, of taro 0.1 and 0.2, has two files of whole
tensors, model.safetensors and optimizer.safetensors. Both are places of (name, kind), so that all above reads them
alike. In host memory there is one tensor at a time: a slice, of version 1 the whole tensor."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from taro.core.errors import TaroError
from taro.core.files import file_sha256, open_regular
from taro.core.json import MAX_JSON_BYTES
from taro.core.tensors import DTYPES
from taro.train.checkpoint.blocks import wrong_blocks
from taro.train.checkpoint.pieces import Row, Table, rank_file, read_table
from taro.train.checkpoint.state import DamagedError, read_content
from taro.train.ranks import ALONE, Ranks

__all__ = ["Reader", "Tensors"]

OLD_FILES = ("model.safetensors", "optimizer.safetensors")
OLD_MOMENTS = ("exp_avg", "exp_avg_sq")

Tensors = dict[tuple[str, str], tuple[int, str]]
"""(name, kind) -> elements of the whole tensor, safetensors' name of its dtype"""


@dataclass(frozen=True)
class _Place:
    """A piece and where it lies: in which file, under which name, of which shape."""

    row: Row
    file: str
    key: str
    shape: tuple[int, ...]


class Reader(contextlib.AbstractContextManager["Reader"]):
    """A checkpoint, open. Raises DamagedError where its files are not what they say."""

    def __init__(self, path: Path) -> None:
        self.path, self.content = path, read_content(path)
        self._stack = contextlib.ExitStack()
        self._open: dict[str, Any] = {}
        self._tables = self._read_tables()
        self.steps = self.content.steps
        self._places: dict[tuple[str, str], list[_Place]] = {}

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._stack.close()

    def check(self, ranks: Ranks = ALONE, *, hashes: bool = True) -> Self:
        """Checks this rank's share of the blocks of all files (unless `hashes` is false), then opens them. Raises
        DamagedError."""
        from safetensors import SafetensorError

        try:
            if hashes:
                self._check_old(ranks) if self.content.version == 1 else self._check_blocks(ranks)
            for place in self._old_places() if self.content.version == 1 else self._new_places():
                stored = self._file(place.file).get_slice(place.key)
                if tuple(stored.get_shape()) != place.shape or stored.get_dtype() != place.row.dtype:
                    raise DamagedError(f"{self.path / place.file}: damaged ({place.key[:200]!a} is not as announced)")
                self._places.setdefault((place.row.name, place.row.kind), []).append(place)
        except SafetensorError as error:
            raise DamagedError(f"{self.path}: damaged ({error!s:.200})") from None
        for (name, kind), places in self._places.items():
            places.sort(key=lambda place: (place.row.start, place.row.length))
            ends = [0, *(place.row.start + place.row.length for place in places)]
            alike = len({(place.row.whole, place.row.dtype) for place in places}) == 1
            if not alike or ends[-1] != places[0].row.whole or any(
                    place.row.start != end for place, end in zip(places, ends[:-1], strict=True)):
                raise DamagedError(f"{self.path}: damaged (the pieces of {name[:200]!a}, {kind[:40]!a}, do not fit)")
        return self

    @property
    def tensors(self) -> Tensors:
        """What there is."""
        return {key: (places[0].row.whole, places[0].row.dtype) for key, places in self._places.items()}

    def fits(self, wanted: Tensors, facts: Mapping[str, Any]) -> None:
        """Raises TaroError where a run wants other tensors, or was begun with other facts; it says which."""
        held, old = self.tensors, self.content.version == 1
        changed = [] if old else [f"{key}: {self.content.facts.get(key)} -> {facts.get(key)}"
                                  for key in sorted({*facts, *self.content.facts})
                                  if facts.get(key) != self.content.facts.get(key)]
        if changed:
            raise TaroError(f"{self.path}: its settings are not this run's; resume with those that the run was started "
                            f"with. Changed: {'; '.join(changed)}")
        if old and {kind for _, kind in wanted} - {"weight", *OLD_MOMENTS}:
            raise TaroError(f"{self.path}: its optimizer state is not this run's (a checkpoint of taro 0.2 holds "
                            "float32 weights and moments); resume with optimizer.states=float32 and no lora")
        if old:  # a parameter that never had a gradient has no moments there
            held = {key: (one[0], wanted.get(key, one)[1]) for key, one in held.items()}
            held = {**{key: one for key, one in wanted.items() if key[1] != "weight"}, **held}
        differ = [key for key in sorted({*held, *wanted}, key=lambda key: (key[1] != "weight", key))
                  if held.get(key) != wanted.get(key)]
        if differ:
            name, kind = differ[0]
            what = (f"{len(differ)} tensors differ; {name[:200]!a}, {kind[:40]!a}: {_described(held.get(differ[0]))} "
                    f"there, {_described(wanted.get(differ[0]))} here")
            if kind == "weight":
                raise TaroError(f"{self.path}: its weights are not this policy's ({what}); resume with the policy that "
                                "the run was started with")
            raise TaroError(f"{self.path}: its optimizer state is not this run's ({what}); resume with the settings "
                            "that the run was started with")

    def read(self, name: str, kind: str, start: int, length: int) -> torch.Tensor:
        """Elements `start` and on of a tensor, flattened, on the CPU."""
        places = self._places.get((name, kind), [])
        if not places:  # of version 1, see `fits`
            return torch.zeros(length)
        found = torch.empty(length, dtype=getattr(torch, DTYPES[places[0].row.dtype]))
        for place in places:
            row = place.row
            first, last = max(start, row.start), min(start + length, row.start + row.length)
            if first < last:
                found[first - start : last - start] = self._slice(place, first - row.start, last - row.start)
        return found

    def _slice(self, place: _Place, start: int, stop: int) -> torch.Tensor:
        handle = self._file(place.file)
        whole = handle.get_tensor(place.key).reshape(-1) if len(place.shape) != 1 else handle.get_slice(place.key)
        found: torch.Tensor = whole[start:stop]
        return found

    def _file(self, name: str) -> Any:
        from safetensors import safe_open

        if name not in self._open:
            self._open[name] = self._stack.enter_context(safe_open(self.path / name, framework="pt"))
        return self._open[name]

    def _read_tables(self) -> list[Table]:
        names = list(self.content.files)
        if self.content.version == 1:
            if set(names) != set(OLD_FILES):
                raise DamagedError(f"{self.path / 'state.json'}: damaged (it names other files)")
            return []
        if not names or names != [rank_file(rank, len(names), "json") for rank in range(len(names))]:
            raise DamagedError(f"{self.path / 'state.json'}: damaged (it names other files)")
        tables = []
        for name in names:
            try:
                with open_regular(self.path / name) as file:
                    data = file.read(MAX_JSON_BYTES)
            except OSError as error:
                raise DamagedError(f"{self.path / name}: damaged or missing ({error.strerror})") from None
            if hashlib.sha256(data).hexdigest() != self.content.files[name]:
                raise DamagedError(f"{self.path / name}: damaged (its sha256 is not the one in state.json)")
            tables.append(read_table(self.path / name, data))
        return tables

    def _check_blocks(self, ranks: Ranks) -> None:
        """Block i of all is checked by rank i mod world."""
        before = 0
        for number, table in enumerate(self._tables):
            path, count = self.path / rank_file(number, len(self._tables), "safetensors"), len(table.sha256)
            mine = [at for at in range(count) if (before + at) % ranks.world == ranks.rank]
            before += count
            try:
                wrong = wrong_blocks(path, table.sha256, table.size_bytes, mine)
            except OSError as error:
                raise DamagedError(f"{path}: damaged or missing ({error.strerror})") from None
            if wrong:
                raise DamagedError(f"{path}: damaged (block {wrong[0]} of {count} is not as its table says)")

    def _check_old(self, ranks: Ranks) -> None:
        for number, name in enumerate(OLD_FILES):
            try:
                found = file_sha256(self.path / name) if number % ranks.world == ranks.rank else None
            except OSError as error:
                raise DamagedError(f"{self.path / name}: damaged or missing ({error.strerror})") from None
            if found not in (None, self.content.files[name]):
                raise DamagedError(f"{self.path / name}: damaged (its sha256 is not the one in state.json)")

    def _new_places(self) -> list[_Place]:
        return [_Place(row, rank_file(number, len(self._tables), "safetensors"), row.key, (row.length,))
                for number, table in enumerate(self._tables) for row in table.rows]

    def _old_places(self) -> list[_Place]:
        """Of version 1; the step count of its moments becomes a scalar."""
        found, steps = [], [0.0]
        for file in OLD_FILES:
            handle = self._file(file)
            for key in list(handle.keys()):
                name, _, kind = (key, "", "weight") if file == OLD_FILES[0] else key.rpartition(".")
                shape = tuple(handle.get_slice(key).get_shape())
                if kind == "step" and not shape:
                    steps.append(float(handle.get_tensor(key)))
                    continue
                length = torch.Size(shape).numel()
                row = Row(name, kind, length, 0, length, handle.get_slice(key).get_dtype())
                found.append(_Place(row, file, key, shape))
        self.steps = int(max(steps))
        return found


def _described(one: tuple[int, str] | None) -> str:
    return "none" if one is None else f"{one[0]:,} x {one[1]}"
