"""The plan of a job: annotation rows grouped by clip, clips in slices, frozen before any work.

A clip is a file, or a cut of one. Clips are ordered by their key and cut into slices whose features stay near
`slice_bytes`; a slice is the unit of work, of retry, of checksum and of sharing. Rows that already cannot become
queries (dropped by the linter, no such video, a file whose first bytes are those of no video) are in the plan as
skipped, with their reason. The plan is written once, with the settings that shape the output; another run on the same
folder must bring the same settings, or is refused with the difference. File sizes are part of it: a video that changed
since is skipped, not silently mixed in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from taro.annotations import AnnotationRow, Dropped, LintReport, import_annotations
from taro.core.config import Config
from taro.core.errors import ConfigError, VideoError
from taro.core.files import make_folders, write_atomically
from taro.grounding.moment import Moment
from taro.grounding.records import DenseCaption
from taro.models.features import EncoderFingerprint
from taro.preprocess.config import PreprocessConfig
from taro.preprocess.ledger import SkippedRow
from taro.preprocess.listing import Finder, list_videos
from taro.preprocess.video.contents import check_contents
from taro.shards.format import ClipEncoder, clip_key

__all__ = ["STATE", "Plan", "PlannedClip", "PlannedRow", "freeze", "load_plan", "make_plan"]

STATE = ".preprocess"
"""folder of the job's own state inside the set: plan, locks, journal, ledgers; never shared"""
PLAN_VERSION = 1
LOOKS_AT_ONCE = 16
"""files that are looked at side by side"""


class PlannedRow(Config):
    """One annotation row; times in seconds of the clip. `unclipped_s`: the windows as annotated, where the linter
    clipped them; `duration_s`: of the clip, as annotated; `video`: as this row names it, where that differs."""

    row_id: str
    line: int
    query: str
    split: str
    windows_s: list[tuple[float, float]]
    difficulty: float | None = None
    captions: list[DenseCaption] | None = None
    unclipped_s: list[tuple[float, float]] | None = None
    duration_s: float | None = None
    video: str = ""


class PlannedClip(Config):
    """One clip. `path`: relative to the videos folder; `size`: bytes; `mtime_ns`: for the record; `clip_s`: the cut in
    seconds of the file, null for all of it; `video`: as annotated first."""

    key: str
    video: str
    path: str
    size: int
    mtime_ns: int
    clip_s: tuple[float, float] | None
    may_be_cut: bool = False
    """the file may hold the clip alone already (taro.grounding.moment.part_of_file)"""
    rows: list[PlannedRow]
    shared_names: list[str] = Field(default_factory=list)
    """short names of the file that other files have too: what is said of them is not said of it"""

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, path: str) -> str:
        if path.startswith("/") or ".." in path.split("/") or "\0" in path:
            raise ValueError("a path that leaves the videos folder")
        return path

    @property
    def clip(self) -> Moment | None:
        """The cut as a moment."""
        return None if self.clip_s is None else Moment(*self.clip_s)

    def skipped(self, row: PlannedRow, stage: str, reason: str, detail: str, *, transient: bool = False,
                duration_s: float | None = None) -> SkippedRow:
        """A row of the clip that did not become a query, as the ledger takes it. `duration_s`: the clip's real one."""
        return SkippedRow(row_id=row.row_id, line=row.line, video=row.video or self.video, key=self.key, stage=stage,
                          reason=reason, detail=detail[:2000], transient=transient, split=row.split, query=row.query,
                          windows_s=row.unclipped_s or row.windows_s, difficulty=row.difficulty,
                          duration_s=row.duration_s if duration_s is None else duration_s)


class Plan(Config):
    """plan.json. `slices`: [first, last) of `clips`; `inputs`: annotation rows, skipped ones included."""

    version: int = PLAN_VERSION
    shaping: dict[str, Any]
    encoder: EncoderFingerprint
    clip_encoder: ClipEncoder | None
    captioner: dict[str, Any]
    annotations_file: str
    annotations_sha256: str
    lint: dict[str, int]
    inputs: int = Field(ge=0)
    clips: list[PlannedClip]
    slices: list[tuple[int, int]]
    skipped: list[SkippedRow]

    @property
    def sha256(self) -> str:
        """Digest over everything that shapes the output (modification times do not). What has its default is left
        out, so that a field which a later taro adds does not change the digest of a plan that never had it."""
        data = self.model_dump(mode="json", exclude_defaults=True)
        for clip in data["clips"]:
            del clip["mtime_ns"]
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()

    def slice_clips(self, index: int) -> list[PlannedClip]:
        """Clips of a slice, in order of key."""
        first, last = self.slices[index]
        return self.clips[first:last]

    @property
    def rows(self) -> int:
        """Rows that have a clip to be looked at."""
        return sum(len(clip.rows) for clip in self.clips)


def make_plan(config: PreprocessConfig, shaping: dict[str, Any], *, encoder: EncoderFingerprint,
              clip_encoder: ClipEncoder | None, captioner: dict[str, Any], bytes_per_clip: int) -> Plan:
    """Reads annotations, lists videos and looks at the first bytes of each; decodes nothing.

    Args:
        shaping: settings and fingerprints that decide the bytes.
        encoder: what makes the features that the set begins with.
        clip_encoder: what makes the CLIP features, None for a set without.
        captioner: for the manifest, see `taro.preprocess.captioners.registry`.
        bytes_per_clip: most that a clip's features can take, for the slices.
    """
    report = import_annotations(config.annotations, dataset=config.dataset, split=config.split,
                                lengths=config.lengths, policy=config.lint, columns=config.columns)
    clips, skipped = _group(report, Finder(list_videos(config.videos)), config.videos)
    dropped = [SkippedRow(row_id=o.row_id, line=o.line, stage="annotations", reason=o.reason.partition(":")[0],
                          detail=o.reason) for o in report.outcomes if isinstance(o, Dropped)]
    per_slice = max(1, min(config.slice_clips, config.slice_bytes // max(bytes_per_clip, 1)))
    slices = [(at, min(at + per_slice, len(clips))) for at in range(0, len(clips), per_slice)]
    plan = Plan(shaping=shaping, encoder=encoder, clip_encoder=clip_encoder, captioner=captioner,
                annotations_file=config.annotations.name, annotations_sha256=report.source_sha256, lint=report.counts,
                inputs=len(report.outcomes), clips=clips, slices=slices, skipped=[*dropped, *skipped])
    assert plan.inputs == plan.rows + len(plan.skipped), f"{plan.inputs} != {plan.rows} + {len(plan.skipped)}"
    return plan


def freeze(plan: Plan, out: Path) -> None:
    """Writes plan.json, whole or not at all."""
    make_folders(out / STATE)
    write_atomically(out / STATE / "plan.json", (plan.model_dump_json(indent=1) + "\n").encode())


def load_plan(out: Path) -> Plan | None:
    """The plan of a folder, None where it has none. Raises ConfigError where it cannot be read."""
    path = out / STATE / "plan.json"
    if not path.is_file():
        return None
    try:
        return Plan.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ConfigError(f"{path}: expected a plan of this version of taro, got what has {error.error_count()} "
                          "problems. Restore it; or remove it and run again: from the same files the same plan is made "
                          "and finished slices are kept; or use another out folder") from None


def _group(report: LintReport, finder: Finder, folder: Path) -> tuple[list[PlannedClip], list[SkippedRow]]:
    found = finder.find_all(row.video for row in report.rows)
    unread, unsure = finder.listing.unread, sum(not finder.exact(row.video) for row in report.rows)
    if unread and unsure:
        raise ConfigError(f"videos {folder}: {', '.join(unread[:3])}{' and more' if len(unread) > 3 else ''} cannot be "
                          f"listed, and the videos of {unsure:,} rows may lie there; restore the mount or its rights "
                          "and run again")
    refused = _refused({path for path in found.values() if isinstance(path, str)}, folder)
    rows: dict[str, list[tuple[str, AnnotationRow]]] = {}
    skipped: list[SkippedRow] = []
    for row in report.rows:
        path = found[row.video]
        path = path if isinstance(path, VideoError) else refused.get(path, path)
        if isinstance(path, VideoError):
            skipped.append(SkippedRow(row_id=row.row_id, line=row.line, video=row.video, stage="plan",
                                      reason=path.reason, detail=str(path), split=row.split, query=row.query,
                                      windows_s=_pairs(row.unclipped or row.windows), duration_s=row.duration_s,
                                      difficulty=row.difficulty))
        else:  # cuts that differ by less than a millisecond are one clip
            rows.setdefault(clip_key(path, row.clip), []).append((path, row))
    return [_clip(key, here[0][0], [row for _, row in here], finder) for key, here in sorted(rows.items())], skipped


def _refused(paths: Iterable[str], folder: Path) -> dict[str, VideoError]:
    """Files that are no videos by their contents. What may pass later is left to decoding, which may come later."""

    def look(path: str) -> tuple[str, VideoError | None]:
        try:
            check_contents(folder / path)
        except VideoError as error:
            return path, None if error.transient else error
        return path, None

    with ThreadPoolExecutor(LOOKS_AT_ONCE) as threads:  # each waits for the disk, or for the network
        return {path: error for path, error in threads.map(look, sorted(paths)) if error is not None}


def _pairs(windows: Sequence[Moment]) -> list[tuple[float, float]]:
    return [(window.start_s, window.end_s) for window in windows]


def _clip(key: str, path: str, rows: list[AnnotationRow], finder: Finder) -> PlannedClip:
    planned = [PlannedRow(row_id=row.row_id, line=row.line, query=row.query, split=row.split, difficulty=row.difficulty,
                          windows_s=_pairs(row.windows), duration_s=row.duration_s,
                          unclipped_s=None if row.unclipped is None else _pairs(row.unclipped),
                          video="" if row.video == rows[0].video else row.video,
                          captions=None if row.captions is None else list(row.captions)) for row in rows]
    clip, stat = rows[0].clip, finder.listing.videos[path]
    span = None if clip is None else (clip.start_s, clip.end_s)
    return PlannedClip(key=key, video=rows[0].video, path=path, size=stat.st_size, mtime_ns=stat.st_mtime_ns,
                       clip_s=span, rows=planned, may_be_cut=any(row.may_be_cut for row in rows),
                       shared_names=finder.shared(path))
