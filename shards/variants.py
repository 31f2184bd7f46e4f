"""Frame-shuffled boundary patches of a clip, as a `variants` shard holds them: the `frame` disruption, made
before training.

Variants are named by what they depend on: the times of the boundaries (every start and end of a query's windows, each
once, ascending). Queries with the same boundaries share them, a set cut or joined carries the bytes as they are, and a
query whose windows changed finds none: it counts as not disrupted, never as disrupted somewhere else, and `taro shards
verify` says so. A *group* is one such list of boundaries; it has `count` variants. A variant is rows: temporal patches
that show other frames than their own, encoded again, and which two frames those are. The patches that it does not list
stay as the features have them. Left out: how frames are shuffled (`taro.preprocess.variants`).

Legend: M rows, S temporal patches, N tokens of a patch, D width, L deepstack levels, A patches of one variant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from taro.core.errors import ShardError
from taro.core.numbers import read_count, read_number
from taro.grounding.moment import Moment
from taro.grounding.records import ClipRecord
from taro.models.features import VideoFeatures
from taro.shards.tensors import encoder_levels, pack_tensors, unpack_tensors

if TYPE_CHECKING:
    import torch

__all__ = ["MAX_VARIANTS", "FrameVariants", "VariantSettings", "boundaries_s", "check_variants", "pack_variants",
           "patch_facts", "unpack_variants", "wanted_groups"]

MAX_VARIANTS = 256
"""of one group"""
MAX_BOUNDARIES = 4_000_000
"""of one clip: 10,000 queries of 200 windows"""

GROUP, VARIANT, PATCH, FIRST, SECOND = range(5)
"""columns of `rows_M5`: group, variant, patch, and the sampled frames that it shows first and second"""


@dataclass(frozen=True)
class VariantSettings:
    """How variants were made: `count` a group; frames within `dt_s` seconds of a boundary; the seed of the draws."""

    count: int
    dt_s: float
    seed: int

    def __str__(self) -> str:
        return f"count {self.count}, dt_s {self.dt_s:g}, seed {self.seed}"


@dataclass(frozen=True)
class FrameVariants:
    """The variants of one clip. boundaries: by group, ascending; rows_M5: int64, see the columns above, ascending;
    main_MND, deepstack_LMND: the features of each row."""

    settings: VariantSettings
    boundaries: tuple[tuple[float, ...], ...]
    rows_M5: np.ndarray
    main_MND: torch.Tensor
    deepstack_LMND: tuple[torch.Tensor, ...] = ()

    def __post_init__(self) -> None:
        shapes = {tuple(x.shape) for x in (self.main_MND, *self.deepstack_LMND)}
        assert len(shapes) == 1 and self.rows_M5.shape == (len(self.main_MND), 5), f"{self.rows_M5.shape}, {shapes}"

    def of(self, windows: Sequence[Moment]) -> FrameVariants | None:
        """Those of a query's windows alone, as group 0; None where there are none."""
        wanted = boundaries_s(windows)
        if wanted not in self.boundaries:
            return None
        at = np.flatnonzero(self.rows_M5[:, GROUP] == self.boundaries.index(wanted))
        rows_M5 = self.rows_M5[at].copy()
        rows_M5[:, GROUP] = 0
        first, last = int(at[0]), int(at[-1]) + 1
        return FrameVariants(self.settings, (wanted,), rows_M5, self.main_MND[first:last].clone(),
                             tuple(level[first:last].clone() for level in self.deepstack_LMND))

    def spliced(self, features: VideoFeatures, variant: int) -> VideoFeatures:
        """`features` with the patches of one variant of group 0 put over theirs, on their device: the features of the
        clip with its frames shuffled. Times and positions stay."""
        at = np.flatnonzero((self.rows_M5[:, GROUP] == 0) & (self.rows_M5[:, VARIANT] == variant))
        assert len(at), f"no variant {variant} of {self.settings.count}"
        patches_A, first, last = self.rows_M5[at, PATCH], int(at[0]), int(at[-1]) + 1

        def over(base_SND: torch.Tensor, rows_MND: torch.Tensor) -> torch.Tensor:
            out = base_SND.clone()
            out[patches_A] = rows_MND[first:last].to(base_SND)
            return out

        deep = tuple(over(base, rows) for base, rows in zip(features.deepstack_LSND, self.deepstack_LMND, strict=True))
        return replace(features, main_SND=over(features.main_SND, self.main_MND), deepstack_LSND=deep)


def boundaries_s(windows: Sequence[Moment]) -> tuple[float, ...]:
    """Every start and end of the windows, each once, ascending: what names their variants.

    >>> boundaries_s([Moment(4.0, 9.5), Moment(1.0, 4.0)])
    (1.0, 4.0, 9.5)
    """
    return tuple(sorted({edge for window in windows for edge in (window.start_s, window.end_s)}))


def wanted_groups(record: ClipRecord) -> list[tuple[float, ...]]:
    """The groups that a clip's variants must hold, ascending: of each query with a window, none where the clip shows
    one frame alone, so that nothing can be shuffled."""
    if len(set(record.times_s)) < 2:
        return []
    return sorted({boundaries_s(query.windows) for query in record.queries if query.windows_s})


def pack_variants(variants: FrameVariants) -> bytes:
    """KEY.safetensors of a variants shard: `rows` int64 [M, 5], `boundaries` float64 [B, 2] (group, seconds), `main`
    [M, N, D] and `deepstack.0`..; the settings as metadata."""
    import torch

    named = [(float(group), time_s) for group, times in enumerate(variants.boundaries) for time_s in times]
    tensors = {"rows": torch.from_numpy(variants.rows_M5), "main": variants.main_MND,
               "boundaries": torch.tensor(named, dtype=torch.float64)}
    tensors |= {f"deepstack.{level}": tensor for level, tensor in enumerate(variants.deepstack_LMND)}
    made = variants.settings
    return pack_tensors(tensors, {"count": str(made.count), "dt_s": repr(float(made.dt_s)), "seed": str(made.seed)})


def unpack_variants(data: bytes | memoryview, where: str = "variants") -> FrameVariants:
    """The variants that `pack_variants` wrote, with every rule of the format checked; else a ShardError."""
    import torch

    tensors, metadata = unpack_tensors(data, where)
    main, deepstack = encoder_levels(tensors, ("rows", "boundaries"), where)
    rows, named = tensors["rows"], tensors["boundaries"]
    if (rows.dtype, named.dtype) != (torch.int64, torch.float64):
        raise ShardError(f"{where}: rows are {rows.dtype}, boundaries {named.dtype}; expected I64 and F64")
    if rows.shape != (len(main), 5) or named.shape != (min(len(named), MAX_BOUNDARIES), 2):
        raise ShardError(f"{where}: rows have shape {tuple(rows.shape)}, boundaries {tuple(named.shape)}, main "
                         f"{tuple(main.shape)}; expected [M, 5], [B, 2] and [M, N, D]")
    settings = _settings(metadata, where)
    groups = _groups(named.numpy(), where)
    _check_rows(rows.numpy(), len(groups), settings.count, where)
    return FrameVariants(settings, groups, rows.numpy(), main, deepstack)


def _settings(metadata: dict[str, str], where: str) -> VariantSettings:
    count, seed = (read_count(metadata.get(name, "")) for name in ("count", "seed"))
    dt_s = read_number(metadata.get("dt_s", ""))
    if count is None or not 1 <= count <= MAX_VARIANTS or dt_s is None or not 0 < dt_s < 1e6 or seed is None:
        raise ShardError(f"{where}: metadata {str(metadata)[:200]}, expected count 1..{MAX_VARIANTS}, dt_s above 0 and "
                         "a seed")
    return VariantSettings(count, dt_s, seed)


def _groups(named_B2: np.ndarray, where: str) -> tuple[tuple[float, ...], ...]:
    """Boundaries by group: groups 0, 1, ... in turn, times ascending in each, no group twice."""
    if not np.isfinite(named_B2).all():
        raise ShardError(f"{where}: a boundary is not a finite number")
    group_B, step_B = named_B2[:, 0], np.diff(named_B2[:, 0])
    rising = np.diff(named_B2[:, 1])[step_B == 0] > 0
    if group_B[0] != 0 or not np.isin(step_B, (0.0, 1.0)).all() or not rising.all():
        raise ShardError(f"{where}: boundaries are not listed by group 0, 1, ..., ascending in each")
    starts = np.flatnonzero(step_B) + 1
    groups = tuple(tuple(part.tolist()) for part in np.split(named_B2[:, 1], starts))
    if list(groups) != sorted(set(groups)):
        raise ShardError(f"{where}: groups of boundaries are not ascending and distinct")
    return groups


def _check_rows(rows_M5: np.ndarray, groups: int, count: int, where: str) -> None:
    """Rows ascend, every variant of every group has some, and what its patches show is their own frames in another
    order: a permutation that changes each of them."""
    least, most = rows_M5.min(axis=0), rows_M5.max(axis=0)
    if least.min() < 0 or most[GROUP] >= groups or most[VARIANT] >= count or most[PATCH:].max() >= 2**20:
        raise ShardError(f"{where}: rows go from {least.tolist()} to {most.tolist()} (group, variant, patch, frames), "
                         f"expected {groups} groups, {count} variants, no negative number")
    named_M = rows_M5[:, GROUP] * count + rows_M5[:, VARIANT]
    place_M = named_M * 2**20 + rows_M5[:, PATCH]
    if not (np.diff(place_M) > 0).all() or len(np.unique(named_M)) != groups * count:
        raise ShardError(f"{where}: rows do not ascend by (group, variant, patch), or a variant has none")
    own_M2 = rows_M5[:, PATCH, None] * 2 + np.arange(2)
    shown_M2 = rows_M5[:, FIRST:]
    if (own_M2 == shown_M2).all(axis=1).any():
        raise ShardError(f"{where}: a row lists a patch that shows its own frames")
    if not np.array_equal(np.sort((named_M[:, None] * 2**21 + own_M2).reshape(-1)),
                          np.sort((named_M[:, None] * 2**21 + shown_M2).reshape(-1))):
        raise ShardError(f"{where}: a variant's patches do not show their own frames in another order")


def patch_facts(main_SND: torch.Tensor, deepstack_LSND: Sequence[torch.Tensor]) -> tuple[int, int, str, int]:
    """(N, D, dtype, L) of features or variants."""
    return int(main_SND.shape[1]), int(main_SND.shape[2]), str(main_SND.dtype), len(deepstack_LSND)


def check_variants(variants: FrameVariants, patches: int, facts: tuple[int, int, str, int], where: str) -> None:
    """Variants must fit the features that they are put over: S `patches` and their `patch_facts`."""
    mine, last = patch_facts(variants.main_MND, variants.deepstack_LMND), int(variants.rows_M5[:, PATCH].max())
    if mine != facts or last >= patches:
        raise ShardError(f"{where}: variants are of patch {last} and {mine} (tokens, width, dtype, levels), the "
                         f"features have {patches} patches and {facts}; make the variants again with `taro preprocess "
                         "... --only variants`")
