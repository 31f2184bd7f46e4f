"""Settings of `taro preprocess`: one frozen model per concept, every field with its unit.

`shaping` is what decides the bytes of a shard set; the plan freezes it. Where the work runs, how many processes decode
and how much may fail do not shape the output and may change between runs."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from taro.annotations import LintPolicy
from taro.core.config import Config
from taro.core.places import DataName, LocalPath, ModelName, TemplateName
from taro.models.features import FrameSampling
from taro.preprocess.video.decode import Decoder
from taro.shards.variants import MAX_VARIANTS

__all__ = ["CaptionConfig", "DecodeConfig", "Licences", "PathsConfig", "PreprocessConfig", "SegmentConfig",
           "VariantsConfig"]


CaptionMethod = Literal["transformers", "file", "annotations", "none"]
"""the rows of `taro.preprocess.captioners.registry.METHODS`"""
ASKED = {"transformers"}
"""those that ask a captioner, for segments or for whole clips"""
EngineName = Literal["local"]
"""the rows of `taro.preprocess.engines.registry.ENGINES`"""


class DecodeConfig(Config):
    """How frames are read from files."""

    decoder: Decoder = "auto"
    """auto and pyav: PyAV for every file; decord (an extra): where it is known to be right, PyAV for the rest"""
    deadline_s: float = Field(300.0, gt=0)
    """seconds after which a clip's decoding process is killed; the clip is skipped as transient"""


class SegmentConfig(Config):
    """Where one caption ends and the next begins."""

    method: Literal["clip", "uniform", "captioner"] = "clip"
    """clip: change points of CLIP frame features; uniform: windows; captioner: the captioner gives times itself"""
    window_s: float = Field(5.0, gt=0)
    """length of uniform windows"""
    round_s: float = Field(0.1, gt=0, le=10)
    """boundaries are multiples of this"""
    min_s: float = Field(1.0, ge=0)
    """no segment between change points is shorter"""
    max_segments: int = Field(64, ge=1, le=1000)
    """segments of a clip at most"""
    penalty: float = Field(2.0, gt=0)
    """price of a change point, in units of the frame-to-frame noise times log T; higher means fewer segments"""
    kernel: Literal["cosine", "linear"] = "cosine"
    """how two frames' CLIP features are compared"""


class CaptionConfig(Config):
    """Who writes the dense captions."""

    method: CaptionMethod = "transformers"
    """transformers: a model folder, in process; file: JSONL of captions; annotations: those of the annotation rows"""
    model: ModelName | None = None
    """model folder, sandbox:NAME or hub id, of the method transformers"""
    file: LocalPath | None = None
    """JSONL of the method file: {"video": ..., "captions": [{"start_s", "end_s", "text"}, ...]}"""
    template: TemplateName | None = None
    """prompt template by name or path; null: the one that the model folder names, else taro"""
    prompt: str | None = None
    """replaces the template's prompt (for segments, or for the whole clip where segment.method is captioner)"""
    max_new_tokens: int = Field(256, ge=1, le=8192)
    """longest caption"""
    repetition_penalty: float = Field(1.0, gt=0)
    """of greedy decoding; 1: none"""
    batch: int = Field(16, ge=1, le=1024)
    """segments (or clips) described at once"""
    sampling: FrameSampling = FrameSampling()
    """size at which the captioner sees frames; they are chosen among the clip's sampled frames"""


class PathsConfig(Config):
    """Candidate reasoning paths (TaRO, arXiv 2606.09248; docs/method.md, "guided prefix")."""

    count: int = Field(32, ge=0, le=256)
    """subsets a query and tag"""
    seed: int = 0
    """of the draws"""


class VariantsConfig(Config):
    """Frame-shuffled boundary patches, for reward.disruption=frame (docs/sensitivity.md)."""

    count: int = Field(0, ge=0, le=MAX_VARIANTS)
    """variants of each query's windows; 0: none"""
    dt_s: float = Field(3.0, gt=0, lt=1e6)
    """frames within this many seconds of a boundary are shuffled"""
    seed: int = Field(0, ge=0, lt=2**62)
    """of the draws"""


class Licences(Config):
    """Terms of what goes into the set; the card repeats them."""

    videos: str = "unknown"
    """of the videos"""
    annotations: str = "unknown"
    """of the annotations"""
    captions: str = "unknown"
    """of the captions"""


class PreprocessConfig(Config):
    """Everything that `taro preprocess` takes."""

    name: str = "shards"
    """of the set, for its card and its manifest"""
    videos: LocalPath
    """folder of the video files"""
    annotations: DataName
    """the annotation file; a hub id for hf"""
    dataset: str
    """format of the annotations: jsonl, charades-sta, activitynet, ... (docs/annotations.md), or hf with `columns`"""
    columns: dict[str, str] = Field(default_factory=dict)
    """of the format hf: which column holds which field, such as {query: sentence}"""
    split: str = "train"
    """of rows that name none"""
    lengths: LocalPath | None = None
    """csv of video lengths (id,length), for charades-sta"""
    lint: LintPolicy = "repair"
    """what becomes of rows that are not fine: repair, drop or fail"""
    out: LocalPath
    """folder of the shard set"""
    policy: ModelName
    """model folder, sandbox:NAME or hub id, whose vision tower makes the features"""
    sampling: FrameSampling = FrameSampling()
    decode: DecodeConfig = DecodeConfig()
    segment: SegmentConfig = SegmentConfig()
    caption: CaptionConfig = CaptionConfig()
    paths: PathsConfig = PathsConfig()
    variants: VariantsConfig = VariantsConfig()
    clip_model: ModelName | None = None
    """open_clip: a folder, MODEL/PRETRAINED, or sandbox:clip; null: no CLIP features, no alignment"""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """of features; auto: bfloat16 on GPUs, float32 on CPUs"""
    device: str = "auto"
    """cpu, cuda, cuda:1; auto: a GPU where there is one"""
    slice_bytes: int = Field(1_000_000_000, ge=1)
    """features of a slice stay near this many bytes"""
    slice_clips: int = Field(256, ge=1, le=100_000)
    """and its clips at most this many: what a killed job has to do again"""
    thumbnails: bool = True
    """contact sheets in the set; leave them out where pictures may not be shared"""
    licences: Licences = Licences()
    max_skipped: float = Field(0.05, ge=0, le=1)
    """the job fails, after writing all it can, where more than this share of the rows is skipped"""
    engine: EngineName = "local"
    """where slices run; local: in this process"""
    workers: int = Field(2, ge=1, le=256)
    """decoding processes"""
    threads: int | None = Field(None, ge=1, le=1024)
    """CPU threads of the models; null: as torch chooses. Small models on few cores want 1, beside decoding processes"""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.caption.method == "transformers" and self.caption.model is None:
            raise ValueError("caption.method transformers needs caption.model, a model folder; or set caption.method "
                             "to file, annotations or none")
        if self.caption.method == "file" and self.caption.file is None:
            raise ValueError("caption.method file needs caption.file, a JSONL of captions")
        if self.segment.method == "captioner" and self.caption.method not in {*ASKED, "none"}:
            raise ValueError(f"segment.method captioner needs caption.method transformers, got {self.caption.method}")
        if self.needs_segments and self.segment.method == "clip" and self.clip_model is None:
            raise ValueError("segment.method clip needs clip_model; or set segment.method to uniform")
        return self

    @property
    def needs_segments(self) -> bool:
        """Whether the clip is cut before it is captioned (captions from elsewhere bring their own times)."""
        return self.caption.method in ASKED and self.segment.method != "captioner"

    def shaping(self) -> dict[str, Any]:
        """The settings that decide the bytes, as plain values. Folders are left out: the plan holds what was found in
        them, the fingerprints of the models stand for the models. Variants can be added to a set that is there, and say
        themselves how they were made."""
        data = self.model_dump(mode="json", exclude={"name", "videos", "annotations", "lengths", "out", "policy",
                                                     "clip_model", "device", "dtype", "max_skipped", "engine",
                                                     "workers", "threads", "licences", "variants"})
        del data["decode"]["deadline_s"], data["caption"]["model"], data["caption"]["file"]
        if self.caption.template is not None:  # the plan holds the prompt: where its file lies is nobody's business
            data["caption"]["template"] = self.caption.template.rpartition("/")[2]
        return data
