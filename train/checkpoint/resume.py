"""Where a run goes on: from its newest whole checkpoint, with as many ranks as there are now.

Before anything is loaded the ranks check every block of every file, each its share, and agree: what one of them finds
damaged is damaged for all, and all take the checkpoint before. What is damaged is put aside, never deleted."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from taro.core.errors import TaroError
from taro.train.checkpoint.pieces import rows_of
from taro.train.checkpoint.read import Reader, Tensors
from taro.train.checkpoint.state import DamagedError, RunState, checkpoints
from taro.train.optimizer.pieces import Piece
from taro.train.ranks import ALONE, Ranks

__all__ = ["Owner", "load_checkpoint", "resume_checkpoint"]

log = logging.getLogger(__name__)


class Owner(Protocol):
    """Who has the tensors: an optimizer (`taro.train.optimizer.optimizer.Optimizer`). `steps`: its own count."""

    steps: int

    def pieces(self) -> list[Piece]:
        """This rank's."""

    def load(self, read: Callable[[str, str, int, int], torch.Tensor], steps: int) -> None:
        """Fills the pieces: `read` gives elements of (name, kind, start, number)."""


def resume_checkpoint(folder: Path, owner: Owner, *, ranks: Ranks = ALONE,
                      facts: Mapping[str, Any] | None = None) -> RunState | None:
    """Fills `owner` from the newest checkpoint that is whole; None where there is no checkpoint. All ranks call it.

    Newer ones that are damaged are renamed to damaged-step-N, so that training can write step-N again. Raises TaroError
    where all are damaged, or where a whole one is another policy's or has other `facts`."""
    damaged: list[tuple[Path, DamagedError]] = []
    names = json.loads(ranks.gather(json.dumps([path.name for path in checkpoints(folder)]).encode())[0])
    for path in (folder / name for name in reversed(names)):
        try:
            state = load_checkpoint(path, owner, ranks=ranks, facts=facts)
        except DamagedError as error:
            damaged.append((path, error))
            continue
        for bad, why in damaged if ranks.first else ():
            aside = _free_name(folder / f"damaged-{bad.name}")
            bad.rename(aside)
            log.warning("%s; it is kept as %s, and the run goes on from %s", why, aside.name, path.name)
        return state
    if damaged:
        raise TaroError(f"{folder}: expected a whole checkpoint, got {len(damaged)} damaged ones "
                        f"({'; '.join(str(error) for _, error in damaged)}). Bring one back from a copy; or move the "
                        "checkpoints folder away and resume, which begins again at step 0")
    return None


def load_checkpoint(path: Path, owner: Owner, *, ranks: Ranks = ALONE,
                    facts: Mapping[str, Any] | None = None) -> RunState:
    """Fills `owner` from a checkpoint, checking hashes, names and sizes; all ranks call it, and it ends alike for all.
    Raises DamagedError, or TaroError where it is another policy's or has other `facts`."""
    wanted, error = _wanted(owner, ranks), None
    with contextlib.ExitStack() as stack, torch.no_grad():
        try:
            reader = stack.enter_context(Reader(path)).check(ranks)
            reader.fits(wanted, facts or {})
        except TaroError as caught:
            error = caught
        _agree(error, ranks)
        owner.load(reader.read, reader.steps)
        return reader.content.state


def _wanted(owner: Owner, ranks: Ranks) -> Tensors:
    """The tensors of which the ranks together have pieces."""
    mine = [[row.name, row.kind, row.whole, row.dtype] for row in rows_of(owner.pieces())]
    return {(name, kind): (whole, dtype) for rows in ranks.gather(json.dumps(mine).encode())
            for name, kind, whole, dtype in json.loads(rows)}


def _agree(error: TaroError | None, ranks: Ranks) -> None:
    """Raises on every rank what a rank has met; damage first, since what is damaged may look like anything."""
    if ranks.world == 1 and error is not None:
        raise error
    mine = b"" if error is None else json.dumps([isinstance(error, DamagedError), str(error)]).encode()
    met = sorted((json.loads(one) for one in ranks.gather(mine) if one), key=lambda one: not one[0])
    if met:
        raise DamagedError(met[0][1]) if met[0][0] else TaroError(met[0][1])


def _free_name(path: Path) -> Path:
    names = [path, *(path.with_name(f"{path.name}-{number}") for number in range(2, 1000))]
    return next(name for name in names if not name.exists())
