"""Decodes and encodes some clips of a set again and compares: what no digest can say, that the numbers are the videos'.

Digests prove that a set is as it was written. Whether its frame times, contact sheets and features are those of the
videos, only the videos and the model can say. One clip in N is drawn by name; each part of it ends as one of

    equal      the same bits
    near       within a tolerance: libraries of other versions, another kind of CPU or GPU
    different  anything else

A manifest names versions, not hardware, so `near` is no fault unless the caller expects the same machine (`exact`).
Compared are the sampled frames' times and pixels, the contact sheet, and for every encoder of the set whose tower the
policy has, features and frame variants. Left out: captions, paths and CLIP features, which need models that the set
names and does not hold.

Legend: S temporal patches, N tokens of a patch, D width."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from taro.core.counting import OnProgress, counted
from taro.core.draws import rng
from taro.core.errors import ShardError, VideoError
from taro.core.files import file_sha256
from taro.grounding.moment import Moment
from taro.grounding.records import ClipRecord
from taro.models.features import EncoderFingerprint, FrameSampling
from taro.models.resolve import compute_device, resolve_model
from taro.preprocess.config import DecodeConfig
from taro.preprocess.encode import encode_clip
from taro.preprocess.listing import list_videos
from taro.preprocess.run import VERSIONS, library_versions
from taro.preprocess.sheets import contact_sheet
from taro.preprocess.variants import encode_variants
from taro.preprocess.video.decode import DecodeJob, Frames
from taro.preprocess.video.pool import DecodePool
from taro.shards.encoders import check_encoder, encoder_numbers
from taro.shards.reader import ShardSet, open_shards

if TYPE_CHECKING:
    import torch

    from taro.models.encoder import Encoder

__all__ = ["DeepReport", "FEATURES_TOLERANCE", "SHEET_TOLERANCE", "TIMES_TOLERANCE_S", "Found", "deep_check",
           "drawn_keys"]

Verdict = Literal["equal", "near", "different"]
ORDER: tuple[Verdict, ...] = ("equal", "near", "different")

TIMES_TOLERANCE_S = 1e-6
SHEET_TOLERANCE = 4.0
"""mean difference of a contact sheet's pixels, of 255: JPEG encoders and frames of other library versions"""
FEATURES_TOLERANCE = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}
"""largest difference of a tensor's numbers, as a share of its largest magnitude, by the dtype that computed it"""


@dataclass(frozen=True)
class Found:
    """A part of a clip after the comparison. `part`: times, frames, contact sheet, features/ENCODER or
    variants/ENCODER; `off`: the largest difference, as `said` puts it in words; None where there is no measure."""

    part: str
    verdict: Verdict
    off: float | None
    said: str


@dataclass
class DeepReport:
    """What a deep check found. `drawn`: clips that were to be compared; by clip key `near` and `different` (what was,
    in words) and `uncompared` (why not); `largest`: by part, the largest difference of all clips; `parts`: which were
    compared; `left_out`: encoders whose tower the policy does not have; `versions`: libraries of another version here
    than where the set was made."""

    place: str
    one_in: int
    drawn: int
    clips: int
    equal: int = 0
    near: dict[str, str] = field(default_factory=dict)
    different: dict[str, str] = field(default_factory=dict)
    uncompared: dict[str, str] = field(default_factory=dict)
    largest: dict[str, float] = field(default_factory=dict)
    parts: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    tolerances: dict[str, float] = field(default_factory=lambda: {
        "times_s": TIMES_TOLERANCE_S, "contact sheet": SHEET_TOLERANCE, **FEATURES_TOLERANCE})

    @property
    def compared(self) -> int:
        """Clips that were compared."""
        return self.equal + len(self.near) + len(self.different)

    def ok(self, *, exact: bool = False) -> bool:
        """Whether nothing differs and something was compared; `exact`: bit for bit."""
        return not self.different and not (exact and self.near) and (self.compared > 0 or not self.drawn)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {**asdict(self), "compared": self.compared}

    def add(self, key: str, parts: Sequence[Found]) -> None:
        """One clip that was compared."""
        worst = max(parts, key=lambda one: ORDER.index(one.verdict)).verdict
        said = "; ".join(f"{one.part}: {one.said}" for one in parts if one.verdict != "equal")
        for one in parts:
            self.parts += [] if one.part in self.parts else [one.part]
            if one.off is not None:
                self.largest[one.part] = max(self.largest.get(one.part, 0.0), one.off)
        if worst == "equal":
            self.equal += 1
        else:
            (self.near if worst == "near" else self.different)[key] = said


@dataclass(frozen=True)
class _Model:
    """An encoder that is loaded, and the fingerprint of the set's features that it is compared with."""

    encoder: Encoder
    held: EncoderFingerprint
    factor: int


def deep_check(place: str | Path, videos: Path, *, one_in: int, policy: str | None = None, seed: int = 0,
               device: str = "auto", workers: int = 2, progress: OnProgress | None = None) -> DeepReport:
    """Compares one clip in `one_in` (at least one) with its video under `videos`.

    Args:
        policy: model whose tower encodes; None: frames and contact sheets alone are compared.
        seed: another one draws other clips.

    Raises ShardError where the set is damaged or none of its features are of the policy's tower, TaroError where the
    folder or the model is not there."""
    shard_set, listed = open_shards(place), list_videos(videos).videos
    keys = shard_set.keys
    picked = drawn_keys(keys, one_in=one_in, seed=seed)
    report = DeepReport(shard_set.place, one_in, len(picked), len(keys))
    models: list[_Model | None] = [None]
    if policy is not None:
        models = [*_load(shard_set, policy, device)]
    report.versions = _other_versions(shard_set.manifest.versions)
    report.left_out = sorted({*shard_set.encoders} - {one.held.name for one in models if one is not None})
    by_name: dict[str, list[Path]] = {}
    for name in listed:
        by_name.setdefault(Path(name).name, []).append(videos / name)
    clips = [shard_set.clip(key).model_copy(update={"captions": []}) for key in picked]
    wanted = [(clip, path) for clip in clips if (path := _video(clip, by_name, report)) is not None]
    steps = [(model, pair) for model in models for pair in wanted]
    found: dict[str, list[Found]] = {}
    with ExitStack() as stack:
        pool = stack.enter_context(DecodePool(workers, deadline_s=DecodeConfig().deadline_s))
        frames_of = pool.map((_job(shard_set, model, *pair) for model, pair in steps), ahead=2 * workers)
        for (model, (clip, _)), frames in zip(counted(steps, progress), frames_of, strict=True):
            if isinstance(frames, VideoError):
                report.uncompared[clip.key] = str(frames)
            elif frames.facts.sha256 != clip.video.sha256:
                report.uncompared[clip.key] = f"{clip.video.path_hint}: another file (its sha256 is not the set's)"
            else:
                found.setdefault(clip.key, []).extend(_compare(shard_set, clip, frames, model))
    for key, parts in found.items():
        if key not in report.uncompared:
            report.add(key, _judged(parts))
    return report


def drawn_keys(keys: Sequence[str], *, one_in: int, seed: int) -> list[str]:
    """One key in `one_in`, at least one where there are keys, in the order of `keys`.

    >>> len(drawn_keys("abcdefg", one_in=3, seed=0))
    3
    """
    picked = rng("deep check", seed).permutation(len(keys))[: -(-len(keys) // one_in)]
    return [keys[index] for index in sorted(picked)]


def _load(shard_set: ShardSet, policy: str, device: str) -> list[_Model]:
    """The policy's tower, for each of the set's encoders that it is. Raises ShardError where it is none."""
    import torch

    from taro.models.encoder import load_encoder
    from taro.models.fingerprint import encoder_fingerprint
    from taro.models.folder import pixel_settings

    folder, at, found = resolve_model(policy), compute_device(device), []
    for held in shard_set.manifest.encoders:
        mine = encoder_fingerprint(folder, held.sampling, held.dtype)
        if encoder_numbers(mine) == encoder_numbers(held) and held.name in shard_set.encoders:
            pixels = pixel_settings(folder)
            found.append(_Model(load_encoder(folder, device=at, dtype=getattr(torch, held.dtype)), held,
                                pixels.patch_size * pixels.merge))
    if not found:
        sampling = _sampling(shard_set)  # raises where there is no encoder at all
        mine = encoder_fingerprint(folder, sampling, shard_set.manifest.encoders[0].dtype)
        check_encoder(shard_set, mine, policy=policy)
    return found


def _sampling(shard_set: ShardSet) -> FrameSampling:
    """How the frames of a set were chosen: the same for all its encoders."""
    if shard_set.manifest.encoders:
        return shard_set.manifest.encoders[0].sampling
    raise ShardError(f"{shard_set.place}: the set names no encoder, so it does not say how its frames were chosen; a "
                     "deep check needs a set with features")


def _other_versions(made_with: Mapping[str, str]) -> dict[str, str]:
    """Libraries that may show in the bytes and are of another version here, with both."""
    here = library_versions()
    return {name: f"{made_with[name][:40]} there, {here.get(name, 'none')} here" for name in ("python", *VERSIONS)
            if name in made_with and made_with[name] != here.get(name)}


def _video(clip: ClipRecord, by_name: dict[str, list[Path]], report: DeepReport) -> Path | None:
    """The file that a clip is of; where several have its name, the one with its digest."""
    files = by_name.get(clip.video.path_hint, [])
    if len(files) > 1:
        files = [path for path in files if file_sha256(path) == clip.video.sha256]
    if not files:
        report.uncompared[clip.key] = f"{clip.video.path_hint}: no such file in the videos folder"
    return files[0] if files else None


def _job(shard_set: ShardSet, model: _Model | None, clip: ClipRecord, path: Path) -> DecodeJob:
    """What the decoder was asked for when the set was made."""
    whole = clip.clip.start_s == 0 and clip.clip.end_s == clip.video.duration_s
    span = None if whole else Moment(clip.clip.start_s, clip.clip.end_s)
    sampling = _sampling(shard_set) if model is None else model.held.sampling
    return DecodeJob(path.absolute(), sampling, span, clip.video.decoder,
                     factor=DecodeJob.factor if model is None else model.factor)


def _compare(shard_set: ShardSet, clip: ClipRecord, frames: Frames, model: _Model | None) -> Iterator[Found]:
    yield _times(clip, frames)
    same = frames.facts.frames_sha256 == clip.video.frames_sha256
    yield Found("frames", "equal" if same else "near", None, "" if same else "pixels have another digest")
    sheet = shard_set.thumbnail(clip.key)
    if sheet is not None:
        yield _sheet(sheet, contact_sheet(frames.views))
    if model is None:
        return
    held = shard_set.reading(model.held.name)
    features, made = held.features(clip.key), encode_clip(model.encoder, frames, model.held.sampling)
    part = f"features/{model.held.name}"
    if (features.grid_thw, features.seconds_per_patch) != (made.grid_thw, made.seconds_per_patch):
        yield Found(part, "different", None, f"a grid of {features.grid_thw} and {features.seconds_per_patch:g} s a "
                    f"patch, made again {made.grid_thw} and {made.seconds_per_patch:g} s")
        return
    yield _tensors(part, [features.main_SND, *features.deepstack_LSND], [made.main_SND, *made.deepstack_LSND],
                   model.held.dtype)
    variants, part = held.variants(clip.key), f"variants/{model.held.name}"
    if variants is not None:
        again = encode_variants(model.encoder, frames, clip, model.held.sampling, variants.settings,
                                factor=model.factor)
        if again is None or not np.array_equal(again.rows_M5, variants.rows_M5):
            yield Found(part, "different", None, "other frames were shuffled")
        else:
            yield _tensors(part, [variants.main_MND, *variants.deepstack_LMND],
                           [again.main_MND, *again.deepstack_LMND], model.held.dtype)


def _judged(parts: Sequence[Found]) -> list[Found]:
    """Parts of a clip. A digest of pixels has no measure: where it differs, the parts that come from the pixels say by
    how much; where these are all equal, the digest is wrong."""
    others = [one for one in parts if one.part not in ("times", "frames")]
    if not others or all(one.verdict == "equal" for one in others):
        return [Found(one.part, "different", None, one.said) if one.part == "frames" and one.verdict == "near" else one
                for one in parts]
    return list(parts)


def _times(clip: ClipRecord, frames: Frames) -> Found:
    held = np.array(clip.times_s)
    if held.shape != frames.times_s.shape:
        return Found("times", "different", None, f"{len(held)} frames, sampled again {len(frames.times_s)}")
    off = float(np.abs(held - frames.times_s).max())
    return _found("times", off, TIMES_TOLERANCE_S, f"up to {off:.3g} s apart")


def _sheet(held: bytes, made: bytes) -> Found:
    """Compares contact sheets. The set's is decoded only where it is a JPEG of the size that it must have."""
    from PIL import Image

    if held == made:
        return Found("contact sheet", "equal", 0.0, "")
    try:
        with Image.open(io.BytesIO(held), formats=["JPEG"]) as one, Image.open(io.BytesIO(made)) as other:
            if one.size != other.size:
                return Found("contact sheet", "different", None, f"{one.size} pixels, made again {other.size}")
            pixels = [np.asarray(image.convert("RGB"), dtype=np.float32) for image in (one, other)]
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return Found("contact sheet", "different", None, f"not a JPEG that can be read ({type(error).__name__})")
    off = float(np.abs(pixels[0] - pixels[1]).mean())
    return _found("contact sheet", max(off, 1e-9), SHEET_TOLERANCE, f"pixels {off:.2f} of 255 apart on average")


def _tensors(part: str, held: Sequence[torch.Tensor], made: Sequence[torch.Tensor], dtype: str) -> Found:
    """Compares tensors one by one; the farthest counts."""
    off = 0.0
    if len(held) != len(made):
        return Found(part, "different", None, f"{len(held)} tensors, made again {len(made)}")
    for one, other in zip(held, made, strict=True):
        if one.shape != other.shape or one.dtype != other.dtype:
            return Found(part, "different", None, f"{one.dtype} {tuple(one.shape)}, made again {other.dtype} "
                         f"{tuple(other.shape)}")
        if one.equal(other):
            continue
        share = float((one.double() - other.double()).abs().max()) / max(float(other.abs().max()), 1e-30)
        if not np.isfinite(share):
            return Found(part, "different", None, "numbers that are not finite")
        off = max(off, share)
    return _found(part, off, FEATURES_TOLERANCE[dtype], f"up to {off:.2g} of the largest number apart")


def _found(part: str, off: float, tolerance: float, said: str) -> Found:
    return Found(part, "equal" if off == 0 else "near" if off <= tolerance else "different", off, said)
