"""Frame-shuffled boundary patches of a clip's queries: the released code's disruption, encoded offline
(docs/sensitivity.md, "frames").

Single sampled frames within `dt_s` of each boundary of a query's windows are permuted, so that frames mix across
temporal patches, which no permutation of features can do; then the patches that show other frames than their own, and
no others, go through the frozen tower at the clip's own size. Stretches that share a frame merge; each is drawn
uniformly from all orders that change what is shown. Where fewer than two frames lie in a stretch, or all of them are
one frame sampled twice (a very short clip), it is widened to the two nearest that differ: a disruption must change
something. A clip of a single frame has no variants.

Draws are a function of (seed, clip, boundaries, variant). With two frames in a stretch there is one other order, so its
variants are the same.
Legend: T sampled frames, S temporal patches, M rows (changed patches of all variants), N tokens, D width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from taro.core import draws
from taro.core.errors import ConfigError
from taro.grounding.boundaries import boundary_windows, shuffled
from taro.grounding.moment import Moment
from taro.grounding.records import ClipRecord
from taro.models.features import FrameSampling, resized_hw
from taro.preprocess.config import VariantsConfig
from taro.shards.format import MAX_MEMBER_BYTES
from taro.shards.variants import FrameVariants, VariantSettings, wanted_groups

if TYPE_CHECKING:
    import torch

    from taro.models.encoder import Encoder
    from taro.preprocess.video.decode import Frames

__all__ = ["encode_variants", "frame_order", "frame_stretches", "settings_of"]


def settings_of(config: VariantsConfig) -> VariantSettings:
    """The settings as the shards name them."""
    return VariantSettings(config.count, config.dt_s, config.seed)


def frame_stretches(times_T: np.ndarray, boundaries: Sequence[float], *, dt_s: float) -> list[np.ndarray]:
    """Ascending indices of each stretch of frames to shuffle; at least two different frames (times) in each. Empty
    where the clip shows one frame alone.

    >>> [s.tolist() for s in frame_stretches(np.arange(8) * 0.5, [1.0, 3.0], dt_s=0.5)]
    [[1, 2, 3], [5, 6, 7]]
    >>> [s.tolist() for s in frame_stretches(np.array([0.0, 0.0, 2.0, 2.0]), [0.0], dt_s=0.5)]
    [[0, 1, 2, 3]]
    """
    times_U, frame_T = np.unique(times_T, return_inverse=True)
    found = boundary_windows(times_U, [Moment(edge, edge) for edge in boundaries], dt_s=dt_s)
    return [np.flatnonzero((frame_T >= stretch[0]) & (frame_T <= stretch[-1])) for stretch in found]


def frame_order(times_T: np.ndarray, boundaries: Sequence[float], settings: VariantSettings, *, key: str,
                variant: int) -> np.ndarray:
    """Order [T] of one variant: place t shows sampled frame `order[t]`."""
    generator = draws.rng("frame-variant", settings.seed, key, *map(repr, boundaries), variant)
    order_T = np.arange(len(times_T))
    for stretch in frame_stretches(times_T, boundaries, dt_s=settings.dt_s):
        order_T[stretch] = shuffled(stretch, generator, content=times_T)
    return order_T


def encode_variants(encoder: Encoder, frames: Frames, record: ClipRecord, sampling: FrameSampling,
                    settings: VariantSettings, *, factor: int) -> FrameVariants | None:
    """The variants of all queries of a clip, None where it can have none. `factor`: pixels of a merged patch's side."""
    groups = wanted_groups(record)
    if not groups:
        return None
    duration_s, S = frames.duration_s, len(frames.times_s) // 2
    rows: list[tuple[int, int, int, int, int]] = []
    for group, boundaries in enumerate(groups):
        edges = [min(max(edge, 0.0), duration_s) for edge in boundaries]
        for variant in range(settings.count):
            order_T = frame_order(frames.times_s, edges, settings, key=record.key, variant=variant)
            pairs_S2 = order_T.reshape(S, 2)
            for patch in np.flatnonzero((pairs_S2 != np.arange(2 * S).reshape(S, 2)).any(axis=1)):
                rows.append((group, variant, int(patch), int(pairs_S2[patch, 0]), int(pairs_S2[patch, 1])))
    rows_M5 = np.array(rows, dtype=np.int64)
    main, deep = _encode(encoder, frames, rows_M5[:, 3:], sampling, factor)
    return FrameVariants(settings, tuple(groups), rows_M5, main, deep)


def _encode(encoder: Encoder, frames: Frames, pairs_M2: np.ndarray, sampling: FrameSampling,
            factor: int) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Features [M, N, D] of pairs of sampled frames, shown at the size that the whole clip has, and their levels."""
    import torch

    from taro.models.families.pixels import resize_frames

    S = len(frames.times_s) // 2
    used, place_M2 = np.unique(pairs_M2, return_inverse=True)
    place_M2 = place_M2.reshape(-1, 2)
    height, width = frames.frames_THWC.shape[1:3]
    hw = resized_hw(height, width, S, sampling, factor=factor)
    shown_UHWC = resize_frames(frames.frames_THWC[used], hw)
    main, deep = [], []
    for start in range(0, len(pairs_M2), S):  # no more at once than the clip itself took
        place = place_M2[start : start + S].reshape(-1)
        x = encoder.encode(shown_UHWC[place], frames.times_s[used][place], sampling, duration_s=frames.duration_s)
        patch_px = hw[0] // x.grid_thw[1]
        assert (x.grid_thw[1] * patch_px, x.grid_thw[2] * patch_px) == hw, f"{x.grid_thw} patches of {hw} px"
        row_bytes = x.main_SND[0].numel() * x.main_SND.element_size() * (1 + len(x.deepstack_LSND))
        if row_bytes * len(pairs_M2) > MAX_MEMBER_BYTES // 2:
            raise ConfigError(f"{frames.facts.path_hint}: the frame variants of its queries would take "
                              f"{row_bytes * len(pairs_M2):,} bytes, more than the "
                              f"{MAX_MEMBER_BYTES // 2:,} allowed; lower variants.count or variants.dt_s")
        main.append(x.main_SND.cpu())
        deep.append([level.cpu() for level in x.deepstack_LSND])
    return torch.cat(main), tuple(torch.cat(level) for level in zip(*deep, strict=True))
