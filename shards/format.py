"""Format version 1: names, bounds and the models of every JSON file of a shard set except KEY.json
(taro/grounding/records.py).

A set is a folder. A *kind* is a folder of shards inside it: `paths`, `features/ENCODER`, `clip/ENCODER`,
`variants/ENCODER`; slice 7 of the plan is shard 7 of each kind. The bounds below are checked before anything is
allocated, since shards are untrusted. Newer minor versions may add keys to the manifest and the sidecars, so
unknown keys are ignored there; a newer major version is refused.

Legend: S temporal patches, N tokens of a patch, D width."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from taro.core.errors import ShardError
from taro.grounding.moment import Moment
from taro.models.features import EncoderFingerprint

__all__ = [
    "BLOCK", "CARD", "FORMAT_VERSION", "INDEX", "KEY_LENGTH", "MANIFEST", "MAX_BYTES", "MAX_DIM", "MAX_ELEMENTS",
    "MAX_HEADER_BYTES", "MAX_INDEX_BYTES", "MAX_INDEX_ROWS", "MAX_KINDS", "MAX_SHARDS",
    "MAX_JPEG_BYTES", "MAX_JSON_BYTES", "MAX_MANIFEST_BYTES", "MAX_MEMBER_BYTES", "MAX_RANK", "MAX_RECORDS",
    "MAX_TENSORS", "MEMBERS", "SIDECAR_VERSION", "SKIPPED", "TENSORS_EXT", "ClipEncoder", "Counts",
    "IndexEntry", "Manifest", "Member", "Provenance", "ShardEntry", "Sidecar", "SidecarRecord", "check_version",
    "clip_key", "key_ok", "kind_label", "kind_ok", "shard_path", "sidecar_path", "split_kind"]

FORMAT_VERSION = "1.2"
SIDECAR_VERSION = "1.0"
"""sidecars have not changed since"""
MANIFEST = "manifest.json"
CARD = "README.md"
SKIPPED = "skipped.parquet"
INDEX = "queries.parquet"
TENSORS_EXT = "safetensors"

BLOCK = 512
"""bytes of a tar block: headers and data start at multiples of it"""
KEY_LENGTH = 88
"""characters of a key: with `.safetensors` it must fit the 100 bytes that a plain tar header has for a name"""
MAX_JSON_BYTES = 64 * 2**20
MAX_JPEG_BYTES = 16 * 2**20
MAX_MEMBER_BYTES = 8 * 2**30 - BLOCK
"""what the size field of a plain tar header can say"""
MAX_BYTES = {"jpg": MAX_JPEG_BYTES, "json": MAX_JSON_BYTES, TENSORS_EXT: MAX_MEMBER_BYTES}
"""of a member by its extension: a sidecar or a tar header that announces more is refused before anything is read"""
MAX_HEADER_BYTES = 2**20
MAX_TENSORS = 64
MAX_RANK = 4
MAX_DIM = 2**24
MAX_MANIFEST_BYTES = 256 * 2**20
MAX_RECORDS = 100_000
"""of one shard"""
MAX_SHARDS = 100_000
MAX_INDEX_BYTES = 2**30
MAX_INDEX_ROWS = 4_000_000
MAX_KINDS = 100
MAX_ELEMENTS = {MANIFEST: 2_000_000, "sidecar": 2_000_000, "clip": 2_000_000}
"""values in the JSON of a file, counted before it is parsed: `[],` is 3 bytes of a file and 64 of memory"""

MEMBERS: dict[str, tuple[str, ...]] = {
    "paths": ("jpg", "json"), "features": (TENSORS_EXT,), "clip": (TENSORS_EXT,), "variants": (TENSORS_EXT,)}
"""which members a record of a kind may have, in the order in which they lie in the tar"""

_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]+)*"
_KIND = re.compile(rf"paths|(?:features|clip|variants)/{_NAME}")
_KEY = re.compile(rf"[A-Za-z0-9_-]{{1,{KEY_LENGTH}}}")
_SHA256 = r"^[0-9a-f]{64}$"

Sha256 = Annotated[str, Field(pattern=_SHA256)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Text = Annotated[str, Field(max_length=20_000)]


def kind_ok(kind: str) -> bool:
    """Whether `kind` is `paths`, or `features/`, `clip/` or `variants/` and one plain folder name.

    >>> [kind_ok(kind) for kind in ("paths", "features/qwen2_5_vl-7b-0a1b2c3d", "features/..", "features/a/b", "x")]
    [True, True, False, False, False]
    """
    return len(kind) <= 200 and _KIND.fullmatch(kind) is not None


def key_ok(key: str) -> bool:
    """Whether `key` is 1 to 88 of `A-Z a-z 0-9 _ -` (a dot would merge samples in every WebDataset reader)."""
    return _KEY.fullmatch(key) is not None


def split_kind(kind: str) -> tuple[str, str | None]:
    """`features/ENCODER` -> ("features", "ENCODER"); `paths` -> ("paths", None)."""
    stem, _, encoder = kind.partition("/")
    return stem, encoder or None


def kind_label(kind: str) -> str:
    """A kind as one word, for the card's configurations: `features/x` -> `features-x`."""
    return kind.replace("/", "-")


def shard_path(kind: str, index: int) -> str:
    """Path of a shard inside its set.

    >>> shard_path("features/qwen2_5_vl-7b-0a1b2c3d", 12)
    'features/qwen2_5_vl-7b-0a1b2c3d/features-000012.tar'
    """
    return f"{kind}/{split_kind(kind)[0]}-{index:06d}.tar"


def sidecar_path(kind: str, index: int) -> str:
    """Path of a shard's sidecar inside its set: the shard's, with `.json`."""
    return shard_path(kind, index).removesuffix(".tar") + ".json"


def clip_key(video: str, clip: Moment | None) -> str:
    """The key of a clip, from the video's name as annotated and the cut in seconds of the file (None: whole file).

    The last part of the name without its extension, every character outside `A-Za-z0-9_-` as `_`, at most 48; for a
    cut `_START-END` in whole milliseconds; `-` and the first 12 hex digits of sha256 over `NAME` or
    `NAME\\nSTART-END`. The digest keeps names apart that look alike; it is always there, so the rule has no cases.

    >>> clip_key("3MSZA.mp4", None), clip_key("a/3MSZA.mp4", Moment(2.0, 9.5))
    ('3MSZA-64269aabff3e', '3MSZA_2000-9500-d1f9b1a73e25')
    """
    cut = "" if clip is None else f"{round(clip.start_s * 1000)}-{round(clip.end_s * 1000)}"
    named = video if clip is None else f"{video}\n{cut}"
    digest = hashlib.sha256(named.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    last = re.split(r"[/\\]", video.rstrip("/\\"))[-1]
    stem = last[: last.rindex(".")] if "." in last[1:] else last
    slug = re.sub(r"[^A-Za-z0-9_-]", "_", stem)[:48] or "clip"
    return f"{slug}{'_' + cut if cut else ''}-{digest}"


class _Part(BaseModel):
    """Base of the manifest's and sidecars' models: frozen; unknown keys of newer minor versions are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Member(_Part):
    """One file of a record: `offset` of its data in the tar (its header is the 512 bytes before), bytes, digest."""

    ext: Literal["jpg", "json", "safetensors"]
    offset: Annotated[int, Field(ge=BLOCK, multiple_of=BLOCK, le=2**53)]
    size: Annotated[int, Field(ge=0, le=MAX_MEMBER_BYTES)]
    sha256: Sha256

    @model_validator(mode="after")
    def _bounded(self) -> Member:
        if self.size > MAX_BYTES[self.ext]:
            raise ValueError(f".{self.ext} of {self.size:,} bytes, at most {MAX_BYTES[self.ext]:,} are read")
        return self


class SidecarRecord(_Part):
    """One clip in one shard. `queries`: how many queries it has."""

    key: Annotated[str, Field(pattern=rf"^[A-Za-z0-9_-]{{1,{KEY_LENGTH}}}$")]
    queries: Count
    members: Annotated[list[Member], Field(min_length=1, max_length=2, fail_fast=True)]


class Sidecar(_Part):
    """What lies where in one shard; written after the shard was reread and hashed, so its presence means complete."""

    format_version: str
    kind: str
    index: Annotated[int, Field(ge=0, le=999_999)]
    bytes: Count
    sha256: Sha256
    records: Annotated[list[SidecarRecord], Field(max_length=MAX_RECORDS, fail_fast=True)]

    @model_validator(mode="after")
    def _consistent(self) -> Sidecar:
        if not kind_ok(self.kind):
            raise ValueError(f"kind {self.kind!r} is not one of the format's")
        keys = [record.key for record in self.records]
        if keys != sorted(set(keys)):
            raise ValueError("keys are not ascending and distinct")
        end = 0
        for record in self.records:
            may_hold = MEMBERS[split_kind(self.kind)[0]]
            if [member.ext for member in record.members] not in ([*may_hold], [may_hold[-1]]):
                raise ValueError(f"record {record.key}: a {self.kind} shard's record is .{may_hold[-1]}"
                                 + (f", and may have .{may_hold[0]} before it" if len(may_hold) > 1 else ""))
            for member in record.members:
                if member.offset < end + BLOCK:
                    raise ValueError(f"record {record.key}: offset {member.offset} overlaps what comes before")
                end = member.offset + member.size
        if end > self.bytes:
            raise ValueError(f"records end at byte {end}, the shard has {self.bytes}")
        return self

    @property
    def queries(self) -> int:
        """Queries of all records."""
        return sum(record.queries for record in self.records)


class ShardEntry(_Part):
    """A shard in the manifest."""

    kind: str
    index: Annotated[int, Field(ge=0, le=999_999)]
    bytes: Count
    records: Count
    queries: Count
    sha256: Sha256
    sidecar_sha256: Sha256

    @model_validator(mode="after")
    def _known_kind(self) -> ShardEntry:
        if not kind_ok(self.kind):
            raise ValueError(f"kind {self.kind!r} is not one of the format's")
        return self

    @classmethod
    def of(cls, sidecar: Sidecar, sidecar_sha256: str) -> ShardEntry:
        """The entry of a shard from its sidecar and the digest of the sidecar's own bytes."""
        return cls(kind=sidecar.kind, index=sidecar.index, bytes=sidecar.bytes, records=len(sidecar.records),
                   queries=sidecar.queries, sha256=sidecar.sha256, sidecar_sha256=sidecar_sha256)

    @property
    def path(self) -> str:
        """Where the shard lies inside the set."""
        return shard_path(self.kind, self.index)


class Counts(_Part):
    """`inputs` rows of the annotations end as `queries` (written) or in skipped.parquet: inputs = queries + skipped."""

    clips: Count = 0
    queries: Count = 0
    captions: Count = 0
    inputs: Count = 0
    skipped: Count = 0

    @model_validator(mode="after")
    def _add_up(self) -> Counts:
        if self.inputs != self.queries + self.skipped:
            raise ValueError(f"{self.inputs} inputs are not {self.queries} queries + {self.skipped} skipped")
        return self


class Provenance(_Part):
    """Where the data came from, and under which terms ("unknown" where nobody said)."""

    dataset: Text = "unknown"
    split: Text = "train"
    annotations_file: Text = ""
    annotations_sha256: Sha256 | None = None
    licence_videos: Text = "unknown"
    licence_annotations: Text = "unknown"
    licence_captions: Text = "unknown"


class ClipEncoder(_Part):
    """What made the CLIP frame features of `clip/NAME`. `weights_sha256`: over the tensors sorted by name."""

    name: Text
    model: Text
    weights_sha256: Sha256 | None = None
    dtype: Text = "float32"


class IndexEntry(_Part):
    """queries.parquet in the manifest; `rows`: of queries, and one for each clip without a query."""

    bytes: Count
    rows: Count
    sha256: Sha256


class Manifest(_Part):
    """manifest.json: written last; a set without it is not complete."""

    format: Literal["taro-shards"] = "taro-shards"
    format_version: str = FORMAT_VERSION
    name: Text = "shards"
    taro_version: Text = ""
    counts: Counts = Counts()
    shards: Annotated[list[ShardEntry], Field(max_length=MAX_SHARDS, fail_fast=True)] = []
    encoders: Annotated[list[EncoderFingerprint], Field(max_length=MAX_KINDS, fail_fast=True)] = []
    clip_encoders: Annotated[list[ClipEncoder], Field(max_length=MAX_KINDS, fail_fast=True)] = []
    provenance: Provenance = Provenance()
    captioner: dict[str, Any] = {}
    """method, fingerprint, prompt and its sha256; {} where there are no captions"""
    versions: dict[str, str] = {}
    """decoders and libraries whose version may show in the bytes"""
    config: dict[str, Any] = {}
    """the settings that shaped the output"""
    plan_sha256: Sha256 | None = None
    skipped_sha256: Sha256 | None = None
    """of skipped.parquet"""
    index: IndexEntry | None = None
    """queries.parquet; None where the set has none (before 1.2)"""

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        places = [(entry.kind, entry.index) for entry in self.shards]
        if places != sorted(set(places)):
            raise ValueError("shards are not listed in order of (kind, index), each once")
        for prefix, named in (("features", self.encoders), ("clip", self.clip_encoders)):
            wrong = [one.name for one in named if not kind_ok(f"{prefix}/{one.name}")]
            if wrong:
                raise ValueError(f"encoder {wrong[0][:80]!r}: expected letters, digits, _, - and single dots inside")
        if len(self.kinds) > MAX_KINDS:
            raise ValueError(f"{len(self.kinds):,} kinds, at most {MAX_KINDS} are read")
        return self

    @property
    def kinds(self) -> list[str]:
        """Kinds that the set holds, sorted."""
        return sorted({entry.kind for entry in self.shards})


def check_version(version: str, where: str) -> str | None:
    """None if this reader knows the version, a warning if the minor is newer; raises ShardError on another major."""
    match = re.fullmatch(r"(\d{1,4})\.(\d{1,4})", version)
    ours = [int(part) for part in FORMAT_VERSION.split(".")]
    if match is None or int(match[1]) != ours[0]:
        raise ShardError(f"{where}: format version {version[:40]!r}, this taro reads {ours[0]}.x; "
                         f"use the taro that wrote it, or make the set again with `taro preprocess`")
    if int(match[2]) > ours[1]:
        return f"{where}: format version {version} is newer than {FORMAT_VERSION}; keys unknown here are ignored"
    return None
