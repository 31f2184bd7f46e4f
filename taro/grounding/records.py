"""What a shard set says about a clip, as frozen models: the schema of KEY.json, shared by both stages.

The same classes validate untrusted files, so every list and string is bounded. Unknown keys are refused inside a
format version. Times are seconds from the start of the clip."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from taro.grounding.moment import Moment

__all__ = ["CandidatePaths", "ClipRecord", "ClipSpan", "DenseCaption", "QueryRecord", "Record", "VideoFacts"]

Seconds = Annotated[float, Field(ge=-1.0, le=1e6, allow_inf_nan=False)]
Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,160}$")]
Window = tuple[Seconds, Seconds]
Path = Annotated[list[int], Field(max_length=10_000, fail_fast=True)]
Paths = Annotated[list[Path], Field(max_length=256, fail_fast=True)]


class Record(BaseModel):
    """Base of all records: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DenseCaption(Record):
    """A sentence for a stretch of the clip. `alignment`: CLIP agreement with its own segment against the rest."""

    start_s: Seconds
    end_s: Seconds
    text: Annotated[str, Field(max_length=20_000)]
    alignment: Annotated[float, Field(allow_inf_nan=False)] | None = None

    @property
    def moment(self) -> Moment:
        """The stretch that the sentence describes."""
        return Moment(self.start_s, self.end_s)


class CandidatePaths(Record):
    """Seeded subsets of the clip's captions (indices, ascending) that open guided rollouts."""

    random: Paths = []
    overlap: Paths = []


class QueryRecord(Record):
    """One annotated query. `windows_s`: its ground truth, one or more windows, clipped to the clip; `unclipped_s`: the
    windows as annotated, where clipping changed them (some evaluations score against them), else None and not in the
    JSON."""

    id: Annotated[str, Field(max_length=500)]
    text: Annotated[str, Field(max_length=20_000)]
    split: Annotated[str, Field(max_length=100)] = "train"
    windows_s: Annotated[list[Window], Field(max_length=200, fail_fast=True)]
    difficulty: Annotated[float, Field(allow_inf_nan=False)] | None = None
    paths: CandidatePaths = CandidatePaths()
    unclipped_s: Annotated[list[Window], Field(max_length=200, fail_fast=True)] | None = None

    @model_serializer(mode="wrap")
    def _without_unclipped(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if name != "unclipped_s" or value is not None}

    @property
    def unclipped(self) -> tuple[Moment, ...] | None:
        """The windows as annotated, None where they are `windows`."""
        return None if self.unclipped_s is None else tuple(Moment(*window) for window in self.unclipped_s)

    @property
    def windows(self) -> tuple[Moment, ...]:
        """Ground-truth windows as moments."""
        return tuple(Moment(start_s, end_s) for start_s, end_s in self.windows_s)


class VideoFacts(Record):
    """Of the whole file. `path_hint` is a bare file name: local folders and signed URLs never enter a shard.

    `frames`: frames shown; `decoder`: "pyav" or "decord"; `frames_sha256`: digest of the sampled frames' pixels;
    `corrupt_frames`: sampled frames that the decoder called corrupt."""

    path_hint: Annotated[str, Field(max_length=500)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    duration_s: Seconds
    frames: Annotated[int, Field(ge=1, le=100_000_000)]
    fps: Annotated[float, Field(gt=0, le=10_000)]
    width: Annotated[int, Field(ge=1, le=100_000)]
    height: Annotated[int, Field(ge=1, le=100_000)]
    decoder: Literal["pyav", "decord"]
    frames_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    corrupt_frames: int = 0


class ClipSpan(Record):
    """Which part of the file the clip is, in seconds of the file."""

    start_s: Seconds
    end_s: Seconds


class ClipRecord(Record):
    """KEY.json: one clip. `times_s`: the sampled frames' true times, seconds from the start of the clip."""

    key: Key
    video: VideoFacts
    clip: ClipSpan
    times_s: Annotated[list[Seconds], Field(min_length=1, max_length=4096, fail_fast=True)]
    captions: Annotated[list[DenseCaption], Field(max_length=10_000, fail_fast=True)] = []
    queries: Annotated[list[QueryRecord], Field(max_length=10_000, fail_fast=True)] = []

    @property
    def duration_s(self) -> float:
        """Length of the clip in seconds."""
        return self.clip.end_s - self.clip.start_s

    @model_validator(mode="after")
    def _paths_point_at_captions(self) -> ClipRecord:
        for query in self.queries:
            for path in (*query.paths.random, *query.paths.overlap):
                if any(not 0 <= index < len(self.captions) for index in path):
                    raise ValueError(f"query {query.id}: a path names a caption outside 0..{len(self.captions) - 1}")
                if any(one >= other for one, other in itertools.pairwise(path)):
                    raise ValueError(f"query {query.id}: a path's captions are not ascending and distinct")
        return self
