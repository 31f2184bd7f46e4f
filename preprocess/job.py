"""A job: a configuration resolved against its models, its plan frozen in the set's folder.

Everything here reads files; nothing is decoded and no weights are loaded. `open_job` is where a changed configuration
meets an existing folder and is refused with the difference."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from taro.core.config import changed_settings
from taro.core.errors import AnnotationError, ConfigError, TaroError
from taro.core.files import file_sha256
from taro.models.features import EncoderFingerprint
from taro.models.resolve import compute_device, resolve_model
from taro.preprocess.captioners.endpoint import check_installed as check_openai
from taro.preprocess.captioners.registry import METHODS
from taro.preprocess.clip import check_clip, clip_encoder
from taro.preprocess.config import PreprocessConfig
from taro.preprocess.ledger import SkippedRow, count_reasons, plan_lock
from taro.preprocess.listing import check_videos
from taro.preprocess.plan import STATE, Plan, freeze, load_plan, make_plan
from taro.preprocess.video.decord import check_installed
from taro.shards.format import MANIFEST

if TYPE_CHECKING:
    import torch

__all__ = ["Job", "Only", "begin", "check_known", "open_job"]

Only = Literal["features", "variants"]
"""what a run can add to a complete set"""

BYTES = {"float32": 4, "bfloat16": 2}
BEGUN = "begun"
"""file in the state folder: a slice of the plan was begun"""


@dataclass(frozen=True)
class Job:
    """What a run works from. `encoder`: of this run, which with `only features` need not be the plan's; `width`: of
    its features; `factor`: pixels of a merged patch's side."""

    config: PreprocessConfig
    plan: Plan
    device: torch.device
    dtype: str
    encoder: EncoderFingerprint
    width: int
    """numbers that a video token takes in a shard, deepstack levels included"""
    factor: int

    @cached_property
    def plan_sha256(self) -> str:
        """The plan's digest, taken once: it is over every clip, and each slice needs it."""
        return self.plan.sha256

    @property
    def state(self) -> Path:
        """Folder of plan, locks, journal and ledgers."""
        return self.config.out / STATE

    @property
    def variants_kind(self) -> str | None:
        """The kind of the frame variants that this job makes, None where it makes none."""
        return f"variants/{self.encoder.name}" if self.config.variants.count else None

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of shard without which a slice of this job is not done; variants come on top."""
        kinds = ["paths", f"features/{self.encoder.name}"]
        return tuple(kinds if self.plan.clip_encoder is None else [*kinds, f"clip/{self.plan.clip_encoder.name}"])

    @property
    def equal_steps(self) -> bool:
        """Whether the policy reads times from positions at equal steps."""
        from taro.models.families import FAMILIES  # torch comes with them

        return any(family.equal_steps for family in FAMILIES.values() if family.name == self.encoder.family)

    def bytes_per_clip(self, duration_s: float | None = None) -> int:
        """Most that a clip's features can take; less for a short clip: a patch holds a bounded number of tokens."""
        sampling = self.config.sampling
        tokens = sampling.total_tokens
        if duration_s is not None:
            patches = max(duration_s * sampling.sample_fps, sampling.min_frames) / 2
            tokens = min(tokens, int(patches * sampling.max_tokens_per_patch))
        return tokens * self.width * BYTES[self.dtype]


def open_job(config: PreprocessConfig, *, only: Only | None = None, save: bool = True) -> Job:
    """Resolves a configuration and makes, or checks, the plan of its folder. Raises ConfigError where the folder was
    begun with other settings, AnnotationError where no row can become a query, TaroError where too few can; none claims
    the folder, nor does a plan of which no slice was begun."""
    if only == "variants" and not config.variants.count:
        raise ConfigError("--only variants needs variants.count above 0, such as --set variants.count=4")
    if config.decode.decoder == "decord":
        check_installed()
    if config.caption.method == "openai":
        check_openai()
    folder, annotations_sha256 = resolve_model(config.policy), _annotations_sha256(config)
    check_videos(config.videos)
    device = compute_device(config.device)
    dtype = config.dtype if config.dtype != "auto" else "bfloat16" if device.type == "cuda" else "float32"
    from taro.models.fingerprint import encoder_fingerprint, token_width  # only now, since torch comes with them
    from taro.models.folder import pixel_settings

    encoder, width = encoder_fingerprint(folder, config.sampling, dtype), token_width(folder)
    facts = METHODS[config.caption.method].facts(config.caption, config.segment.method == "captioner", dtype)
    clip = None if config.clip_model is None else clip_encoder(config.clip_model)
    if config.clip_model is not None and only is None and not (config.out / MANIFEST).is_file():
        check_clip(config.clip_model)  # a set that is complete needs it no more
    shaping: dict[str, Any] = {**config.shaping(), "annotations_sha256": annotations_sha256, "captioner": facts,
                               "clip_encoder": None if clip is None else clip.name,
                               "lengths_sha256": None if config.lengths is None else file_sha256(config.lengths)}
    plan = load_plan(config.out)
    if plan is not None and ((plan.shaping, plan.encoder) != (shaping, encoder) or plan.skipped) and _unbegun(
            config.out):
        plan = None
    if plan is None:
        if only is not None and (config.out / MANIFEST).is_file():
            raise ConfigError(f"out {config.out}: --only {only} decodes the clips of the plan that the set was made by "
                              f"({STATE}/), and this set came without one (it was downloaded, merged or filtered). "
                              "Bring the plan from where the set was made, or preprocess videos and annotations anew")
        if only is not None:
            raise ConfigError(f"out {config.out}: --only {only} adds to a set, and here is none; run without it first")
        plan = make_plan(config, shaping, encoder=encoder, clip_encoder=clip, captioner=facts,
                         bytes_per_clip=config.sampling.total_tokens * width * BYTES[dtype])
        _check_rows(config, plan)
        check_known(config, plan.inputs, plan.skipped)  # before it is frozen: a video that is brought back counts
        if save:
            plan = _first(plan, config.out)
    _check(config, plan, shaping, encoder, only)
    pixels = pixel_settings(folder)
    return Job(config, plan, device, dtype, encoder, width, pixels.patch_size * pixels.merge)


def begin(job: Job) -> None:
    """To be called when everything is loaded, before the first slice: from here on the plan of the folder stays. Raises
    ConfigError where another job has replaced it since."""
    with plan_lock(job.state):
        there = load_plan(job.config.out)
        if there is None or there.sha256 != job.plan_sha256:
            raise ConfigError(f"out {job.config.out}: another job began here with other settings a moment ago; run "
                              "this one again with those settings, or with another out folder")
        (job.state / BEGUN).touch()


def _first(plan: Plan, out: Path) -> Plan:
    """Freezes a plan; where another job froze one a moment ago, that one counts, unless it was never begun."""
    with plan_lock(out / STATE):
        there = load_plan(out)
        if there is None or (there.sha256 != plan.sha256 and _unbegun(out)):
            freeze(plan, out)
            return plan
        return there


def _unbegun(out: Path) -> bool:
    """Whether no slice of the folder's plan was ever begun: a wrong setting was found before, and may be fixed."""
    state = out / STATE
    return not (state / BEGUN).exists() and not any(
        any(state.glob(pattern)) for pattern in ("ledger/*", "journal/*", "locks/slice-*"))


def _check_rows(config: PreprocessConfig, plan: Plan) -> None:
    if plan.rows:
        return
    why = _reasons(plan.skipped)
    raise AnnotationError(f"{config.annotations}: none of its {plan.inputs:,} rows became a query ({why}); nothing was "
                          f"written. Check that its format is {config.dataset} and that its videos are in "
                          f"{config.videos}")


def check_known(config: PreprocessConfig, inputs: int, skipped: Sequence[SkippedRow]) -> None:
    """Raises TaroError where the rows that are known to be skipped are more than `max_skipped` allows already: the job
    would fail after all its work."""
    if len(skipped) > config.max_skipped * inputs:
        why = _reasons(skipped)
        raise TaroError(f"{config.out}: {len(skipped):,} of {inputs:,} rows ({len(skipped) / inputs:.1%}) are skipped "
                        f"before a video is read, more than max_skipped = {config.max_skipped:.1%}: {why}. Nothing was "
                        "made; fix the input, or allow it with --max-skipped")


def _reasons(skipped: Sequence[SkippedRow]) -> str:
    """How many rows are skipped why, and the first of each: no file of the job says more at this time."""
    first = {f"{row.stage}: {row.reason}": row for row in reversed(skipped)}
    said = [f"{count:,} {reason} (line {first[reason].line}{_detail(first[reason])})"
            for reason, count in list(count_reasons(skipped).items())[:5]]
    return ", ".join(said)


def _detail(row: SkippedRow) -> str:
    return f" {row.video!a:.100}: {row.detail.removeprefix(row.video + ': ')[:200]}" if row.stage == "plan" else ""


def _check(config: PreprocessConfig, plan: Plan, shaping: dict[str, Any], encoder: EncoderFingerprint,
           only: Only | None) -> None:
    changed = changed_settings(_comparable(plan.shaping), _comparable(shaping))
    if changed:
        listed = "; ".join(changed[:20])
        raise ConfigError(f"out {config.out}: begun with other settings ({len(changed)} differ): {listed}. Use another "
                          "out folder, or the settings that it was begun with")
    if only is None and encoder.name != plan.encoder.name:
        raise ConfigError(f"out {config.out}: its features are {plan.encoder.name}, this policy's are {encoder.name}; "
                          "add them beside with --only features, or use another out folder")


def _comparable(shaping: dict[str, Any]) -> dict[str, Any]:
    """Without what only features depend on: the size at which frames enter the tower."""
    sampling = {key: value for key, value in shaping["sampling"].items() if "tokens" not in key}
    return {**shaping, "sampling": sampling}


def _annotations_sha256(config: PreprocessConfig) -> str:
    path = config.annotations
    if config.dataset == "hf" and not path.exists():
        return hashlib.sha256(str(path).encode()).hexdigest()  # a hub id: the rows' own digest is in the plan
    path = path / "annotations.jsonl" if path.is_dir() else path
    if not path.is_file():
        raise AnnotationError(f"annotations {path}: no such file; give the annotation file")
    return file_sha256(path)
