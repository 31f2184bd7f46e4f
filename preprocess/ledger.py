"""Per-row outcomes: written, or skipped with a reason. `inputs == written + skipped`, checked.

Each slice leaves a small JSON beside its shards, written before their sidecars, so a slice that counts as done always
has one. The lock on a slice keeps two workers from making it at once; the system drops it when its holder dies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path

from pydantic import Field, ValidationError

from taro.core.config import Config
from taro.core.files import locked, make_folders, write_atomically

__all__ = ["SkippedRow", "SliceLedger", "count_reasons", "plan_lock", "read_ledger", "slice_lock", "write_ledger"]


class SkippedRow(Config):
    """A row that did not become a query. `stage`: annotations, plan, decode, caption, encode, windows; `transient`:
    trying again may help. Of a row that the linter kept also what is asked: its split, query, windows as annotated (not
    clipped), difficulty, and `duration_s` of the clip, as annotated or, where it was decoded, its real one."""

    row_id: str
    line: int
    video: str = ""
    key: str = ""
    stage: str
    reason: str
    detail: str = ""
    transient: bool = False
    split: str = ""
    query: str = ""
    windows_s: list[tuple[float, float]] = Field(default_factory=list)
    duration_s: float | None = None
    difficulty: float | None = None


def count_reasons(rows: Iterable[SkippedRow]) -> dict[str, int]:
    """How many rows were skipped by "stage: reason", most first."""
    return dict(Counter(f"{row.stage}: {row.reason}" for row in rows).most_common())


class SliceLedger(Config):
    """Of one slice: rows `written`, clips and captions in its shards, clips without any caption, windows clipped to the
    real length, rows skipped, seconds by key that a clip's patches lie at most from the times that positions tell
    (`taro.models.features.time_error_s`), how the captions that were given ended, seconds it took. `plan_sha256` says
    which plan it belongs to."""

    plan_sha256: str
    written: int
    clips: int
    captions: int
    uncaptioned: int = 0
    clipped_windows: int = 0
    skipped: list[SkippedRow] = Field(default_factory=list)
    time_error_s: dict[str, float] = Field(default_factory=dict)
    given: dict[str, int] = Field(default_factory=dict)
    seconds: float = 0.0


def _ledger_path(state: Path, index: int) -> Path:
    """Where a slice's ledger lies."""
    return state / "ledger" / f"slice-{index:06d}.json"


def write_ledger(state: Path, index: int, ledger: SliceLedger) -> None:
    """Writes a slice's ledger, whole or not at all."""
    path = _ledger_path(state, index)
    make_folders(path.parent)
    write_atomically(path, ledger.model_dump_json().encode())


def read_ledger(state: Path, index: int) -> SliceLedger | None:
    """A slice's ledger, None where there is none that can be read."""
    try:
        return SliceLedger.model_validate_json(_ledger_path(state, index).read_bytes())
    except (OSError, ValidationError):
        return None


def slice_lock(state: Path, index: int) -> AbstractContextManager[bool]:
    """Holds the lock of a slice for the block; False where another process holds it."""
    return locked(_lock_path(state, f"slice-{index:06d}"), wait=False)


def plan_lock(state: Path) -> AbstractContextManager[bool]:
    """Holds the lock of a folder's plan for the block, once it is free: two jobs that begin at once share one plan."""
    return locked(_lock_path(state, "plan"), wait=True)


def _lock_path(state: Path, name: str) -> Path:
    path = state / "locks" / f"{name}.lock"
    make_folders(path.parent)
    return path
