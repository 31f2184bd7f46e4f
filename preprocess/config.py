"""Settings of `taro preprocess`: one frozen model per concept, every field with its unit.

`shaping` is what decides the bytes of a shard set; the plan freezes it. Where the work runs, how many processes decode
and how much may fail do not shape the output and may change between runs."""

from __future__ import annotations

import re
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from taro.annotations import LintPolicy
from taro.core.config import Config
from taro.core.errors import ConfigError
from taro.core.places import DataName, LocalPath, ModelName, SetPlace, TemplateName
from taro.models.features import FrameSampling
from taro.preprocess.video.decode import Decoder
from taro.shards.variants import MAX_VARIANTS

__all__ = ["BudgetConfig", "CaptionConfig", "DecodeConfig", "EndpointConfig", "Licences", "PathsConfig",
           "PreprocessConfig", "SegmentConfig", "VariantsConfig"]


CaptionMethod = Literal["transformers", "openai", "file", "annotations", "none"]
"""the rows of `taro.preprocess.captioners.registry.METHODS`"""
ASKED = {"transformers", "openai"}
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


class EndpointConfig(Config):
    """The endpoint of the method openai (docs/endpoints.md). `model`, `temperature` and what is sent of the frames are
    part of the captioner's fingerprint; the rest may change between runs."""

    base_url: SetPlace | None = None
    """an OpenAI-compatible endpoint, such as http://localhost:8000/v1; frames of the videos are sent there"""
    model: str | None = None
    """the model's name there"""
    key_env: str | None = "OPENAI_API_KEY"
    """the environment variable that holds the API key; null: no key is needed"""
    temperature: float | None = Field(0.0, ge=0, le=2)
    """of sampling; null: not sent, for models that refuse it"""
    limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """the name under which the endpoint takes caption.max_new_tokens"""
    image_px: int = Field(512, ge=28, le=4096)
    """longest side of a frame as it is sent; smaller ones are not made larger"""
    jpeg_quality: int = Field(90, ge=1, le=100)
    """of the frames as they are sent"""
    max_images: int = Field(64, ge=1, le=1024)
    """frames of a request at most, evenly chosen"""
    concurrency: int = Field(8, ge=1, le=256)
    """requests under way at once"""
    timeout_s: float = Field(120.0, gt=0)
    """seconds after which a request without its whole answer is given up, and tried again"""
    max_retries: int = Field(5, ge=0, le=100)
    """tries after the first one, where the endpoint is busy, fails, is cut off or answers nonsense"""
    max_wait_s: float = Field(60.0, ge=0)
    """seconds between two tries at most, whatever the endpoint asks for"""
    probe: bool = True
    """ask about four frames of known colours first, and stop where the answer is wrong"""

    @field_validator("key_env", mode="before")
    @classmethod
    def _names_a_variable(cls, name: Any) -> Any:
        if isinstance(name, str) and not re.fullmatch("[A-Z_][A-Z0-9_]{0,63}", name):  # ValueError would show the value
            raise ConfigError("caption.endpoint.key_env: expected the NAME of an environment variable, such as "
                              "OPENAI_API_KEY; a key itself never stands in settings")
        return name


class BudgetConfig(Config):
    """What one run may spend at an endpoint; null: no bound."""

    price_in: float | None = Field(None, ge=0)
    """of a million tokens that are sent, in any currency"""
    price_out: float | None = Field(None, ge=0)
    """of a million tokens that are answered"""
    max_cost: float | None = Field(None, gt=0)
    """cost of a run, in the currency of the prices"""
    max_tokens: int | None = Field(None, ge=1)
    """tokens of a run, sent and answered"""
    max_requests: int | None = Field(None, ge=1)
    """requests of a run, repeated ones and the probe included"""

    @property
    def prices(self) -> tuple[float, float] | None:
        """Of a million tokens in and out; None where they are not known."""
        return None if self.price_in is None or self.price_out is None else (self.price_in, self.price_out)


class CaptionConfig(Config):
    """Who writes the dense captions."""

    method: CaptionMethod = "transformers"
    """transformers: a model folder, in process; openai: an endpoint; file: JSONL of captions; annotations: those of the
    annotation rows"""
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
    endpoint: EndpointConfig = EndpointConfig()
    budget: BudgetConfig = BudgetConfig()


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
            raise ValueError("segment.method captioner needs caption.method transformers or openai, got "
                             f"{self.caption.method}")
        if self.caption.method == "openai":
            _check_endpoint(self.caption)
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
        del data["caption"]["endpoint"], data["caption"]["budget"]  # the fingerprint has what shapes answers
        if self.caption.template is not None:  # the plan holds the prompt: where its file lies is nobody's business
            data["caption"]["template"] = self.caption.template.rpartition("/")[2]
        return data


def _check_endpoint(caption: CaptionConfig) -> None:
    """Raises ValueError where the method openai lacks something."""
    endpoint, budget = caption.endpoint, caption.budget
    if endpoint.base_url is None or not endpoint.model:
        raise ValueError("caption.method openai needs caption.endpoint.base_url, such as http://localhost:8000/v1, and "
                         "caption.endpoint.model, the model's name there")
    if not endpoint.base_url.startswith(("http://", "https://")):
        raise ValueError("caption.endpoint.base_url: expected http://HOST/v1 or https://HOST/v1")
    if caption.repetition_penalty != 1:
        raise ValueError("caption.repetition_penalty is of the method transformers; leave it at 1 for openai")
    if budget.max_cost is not None and budget.prices is None:
        raise ValueError("caption.budget.max_cost needs caption.budget.price_in and price_out, of a million tokens")
