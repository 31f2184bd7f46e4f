"""Raw videos for `taro eval` and `taro ground`: preprocessed into a temporary shard set, which the rest then reads.

The stages meet in the shard format and nowhere else, so the features that a policy is scored on come out of the code
that makes its training set. No captions, no pictures, no CLIP. Left out: keeping the set (`taro preprocess` does that).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taro.cli.output import say

if TYPE_CHECKING:
    from taro.preprocess.report import PreprocessReport

__all__ = ["EVALUATION_SAMPLING", "RawVideos", "temporary_shards", "warn_of_times"]

EVALUATION_SAMPLING = {"max_frames": 1024, "total_tokens": 4096}
"""more frames and tokens than in training (TaRO, implementation details)"""


@dataclass(frozen=True)
class RawVideos:
    """A folder of videos and the annotations of what is asked about them. `lengths`: csv of video lengths; `columns`:
    of the format hf."""

    videos: Path
    annotations: Path
    dataset: str = "jsonl"
    split: str = "test"
    lengths: Path | None = None
    columns: dict[str, str] = field(default_factory=dict)


def temporary_shards(raw: RawVideos, out: Path, *, policy: str, device: str = "auto",
                     progress: Callable[..., Any] | None = None) -> PreprocessReport:
    """Preprocesses videos for one evaluation into the folder `out`; videos that cannot be read stay in its ledger."""
    from taro.core.errors import TaroError
    from taro.preprocess.config import PreprocessConfig
    from taro.preprocess.run import preprocess

    config = PreprocessConfig.model_validate({
        **asdict(raw), "name": "temporary", "out": out, "policy": policy, "sampling": EVALUATION_SAMPLING,
        "device": device, "segment": {"method": "uniform"}, "caption": {"method": "none"}, "paths": {"count": 0},
        "clip_model": None, "thumbnails": False, "max_skipped": 1.0})
    try:
        return preprocess(config, progress=progress)
    except TaroError as error:
        message, empty, _ = str(error).partition("; the set is empty")
        if not empty:
            raise
        raise TaroError(message.replace(str(out), str(raw.videos)) + "; give videos that can be read") from None


def warn_of_times(report: PreprocessReport) -> None:
    """Says on stderr where frames lie far from the times that positions tell: answers there are in those times."""
    if report.off_clips:
        say(f"warning: {report.off_clips:,} clips of variable rate: frames up to {report.off_s:.1f} s from the times "
            "that positions tell, and the answers with them; taro preprocess --set "
            "sampling.policy=uniform-2fps-time makes shards without that", err=True)
