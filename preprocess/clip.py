"""The open_clip model: features of frames, and how well a caption agrees with its own segment against the rest.

Alignment of a caption with text feature u (unit length) and frame features f_t (unit length):

    mean of u . f_t over the frames inside its segment  -  mean of u . f_t over the frames outside

so 0 is a caption that fits everywhere alike. It is null where no frame is inside or none is outside.

Legend: T frames, D width, C captions."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np

from taro.core.errors import MissingPackageError, ModelError, full_memory
from taro.core.places import expand_home
from taro.grounding.moment import Moment
from taro.models.resolve import SANDBOX, folder_sha256, resolve_model
from taro.models.tokenizer_files import check_files, check_tokenizer_files
from taro.shards.format import ClipEncoder

__all__ = ["ClipModel", "alignment", "check_clip", "clip_encoder"]

FRAMES_AT_ONCE = 64
HUB_TIMEOUT_S = 10
WITHOUT = "do without CLIP: clip_model=null segment.method=uniform (sandbox:clip knows the sandbox's videos alone)"


class ClipModel:
    """An open_clip model by name: a folder (open_clip_config.json and weights), `sandbox:clip`, or MODEL/PRETRAINED as
    open_clip lists them."""

    def __init__(self, name: str, device: Any) -> None:
        import torch

        check_clip(name)
        import open_clip

        self._torch, self._device = torch, device
        self.encoder, source, pretrained = _source(name)
        try:
            self._model, _, self._transform = open_clip.create_model_and_transforms(
                source, pretrained=pretrained, device=device)
            self._tokenizer = open_clip.get_tokenizer(source)
        except (RuntimeError, ValueError, OSError, KeyError) as error:
            if full_memory(error):
                raise
            raise ModelError(f"clip_model {name}: open_clip cannot load it ({str(error)[:300]}); expected a folder "
                             "with open_clip_config.json and weights, or MODEL/PRETRAINED") from None
        self._model.eval()

    def frames(self, frames_THWC: np.ndarray) -> np.ndarray:
        """Unit features [T, D], float32, of uint8 frames."""
        from PIL import Image

        parts = []
        for start in range(0, len(frames_THWC), FRAMES_AT_ONCE):
            images = [self._transform(Image.fromarray(frame)) for frame in frames_THWC[start : start + FRAMES_AT_ONCE]]
            with self._torch.no_grad():
                x = self._model.encode_image(self._torch.stack(images).to(self._device), normalize=True)
            parts.append(x.float().cpu().numpy())
        return np.concatenate(parts)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit features [C, D], float32, of sentences (cut to the model's context)."""
        with self._torch.no_grad():
            x = self._model.encode_text(self._tokenizer(list(texts)).to(self._device), normalize=True)
        return np.asarray(x.float().cpu().numpy())


def alignment(texts_CD: np.ndarray, frames_TD: np.ndarray, times_s: np.ndarray, segments: Sequence[Moment]
              ) -> list[float | None]:
    """One number a caption, see the module; `segments` are the captions' own, `times_s` [T] the frames' times.

    >>> frames = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> alignment(np.array([[1.0, 0.0]]), frames, np.array([0.0, 1.0]), [Moment(0, 0.5)])
    [1.0]
    """
    found: list[float | None] = []
    for text_D, segment in zip(texts_CD, segments, strict=True):
        inside = (times_s >= segment.start_s) & (times_s < segment.end_s)
        if not inside.any() or inside.all():
            found.append(None)
            continue
        likeness = frames_TD @ text_D
        found.append(round(float(likeness[inside].mean() - likeness[~inside].mean()), 6))
    return found


def clip_encoder(name: str) -> ClipEncoder:
    """What a `clip_model` setting means, without loading it: name of its shards, model, digest of its folder (of
    MODEL/PRETRAINED, the name stands for the weights)."""
    return _source(name)[0]


def check_clip(name: str) -> None:
    """Raises TaroError where the model cannot be loaded here, at once and without loading it: open_clip is not
    installed or has no weights of that name, or they are not in the hub's cache and the hub cannot be reached."""
    if importlib.util.find_spec("open_clip") is None:
        raise MissingPackageError(f"clip_model {name} is loaded by open_clip, which is not installed; pip install "
                                  f"open_clip_torch, or {WITHOUT}")
    _, model, pretrained = _source(name)
    if pretrained is None:
        return
    import open_clip

    weights = open_clip.get_pretrained_cfg(model, pretrained)
    if not weights:
        tags = open_clip.list_pretrained_tags_by_model(model)
        known = tags or difflib.get_close_matches(model, open_clip.list_models()) or ["ViT-B-32"]
        raise ModelError(f"clip_model {name}: open_clip has no {'PRETRAINED' if tags else 'MODEL'} of that name; near "
                         f"it: {', '.join(known[:8])}")
    repository, _, file = weights["hf_hub"].rpartition("/")
    text = (open_clip.get_model_config(model) or {}).get("text_cfg", {})
    file = file or "open_clip_pytorch_model.bin"
    safe = [f"{file.rpartition('.')[0]}.safetensors", "open_clip_model.safetensors"]
    _check_hub(name, repository, repository, [file, *safe])
    for kind, files in (("hf_tokenizer_name", ["tokenizer_config.json", "tokenizer.json"]),
                        ("hf_model_name", ["config.json"])):
        if text.get(kind):
            _check_hub(name, repository, text[kind], files)


def _check_hub(name: str, weights: str, repository: str, files: Sequence[str]) -> None:
    """Raises ModelError where none of `files` is in the hub's cache and the hub cannot be asked for them now: with one
    question, where open_clip asks for a minute. `weights`: the repository that holds the model as a folder."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    if any(isinstance(try_to_load_from_cache(repository, file), str) for file in files):
        return
    try:
        get_hf_file_metadata(hf_hub_url(repository, files[0]), timeout=HUB_TIMEOUT_S)
    except EntryNotFoundError:
        return  # the hub answers: open_clip looks under other names too
    except Exception as error:  # noqa: BLE001  what a broken connection raises differs between versions 1 and 2
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else reason
        raise ModelError(f"clip_model {name}: {repository} is not in the hub's cache, and the hub does not give it "
                         f"({reason}). Fetch it on a machine with a network, `hf download {weights} --local-dir DIR`, "
                         f"copy DIR and set clip_model=DIR; or {WITHOUT}") from None


def _source(name: str) -> tuple[ClipEncoder, str, str | None]:
    """(encoder, what open_clip is asked for, pretrained tag)."""
    if name.startswith(SANDBOX) or expand_home(name).is_dir():
        folder = resolve_model(name)
        check_files(folder)
        check_tokenizer_files(folder)
        model = name.replace(":", "-") if name.startswith(SANDBOX) else folder.name
        sha256: str | None = folder_sha256(folder)
        source, pretrained = f"local-dir:{folder}", None
    else:
        source, slash, pretrained = name.partition("/")
        model, sha256 = f"{source}-{pretrained}", None
        if not slash or not pretrained or "/" in pretrained:
            raise ModelError(f"clip_model {name}: neither a folder nor MODEL/PRETRAINED (such as "
                             "ViT-B-32/laion2b_s34b_b79k)")
    slug = "".join(c if c.isascii() and c.isalnum() else "-" for c in model.lower()).strip("-")[:60] or "clip"
    label = f"{slug}-{(sha256 or hashlib.sha256(model.encode()).hexdigest())[:8]}"
    return ClipEncoder(name=label, model=model, weights_sha256=sha256), source, pretrained
