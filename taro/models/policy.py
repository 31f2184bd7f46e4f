"""A policy: language model, head and tokenizer of a checkpoint, with its vision tower only where asked.

The modules are transformers' own, filled tensor by tensor from safetensors; the stock loading of the whole model is
left out because training must not hold the tower. `export_checkpoint` is the way back: base names, base files.

Legend: P prompt tokens, M video tokens among them, R response tokens, T frames, S temporal patches, N tokens of a
patch, D width.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from taro.core.errors import ModelError
from taro.core.files import write_tensors
from taro.core.json import read_json
from taro.models.families import family_of
from taro.models.families.base import Family, PixelSettings
from taro.models.families.pixels import normalise, resize_frames, to_patches
from taro.models.features import EncoderFingerprint, FrameSampling, VideoFeatures, patch_times_s, resized_hw
from taro.models.folder import (
    chat_template,
    check_tokenizer,
    pixel_settings,
    read_config,
    template_name,
    tensor_files,
    tensors,
    tower_sha256,
)

__all__ = ["Policy", "Prompt", "export_checkpoint", "load_policy"]

SENTINEL = "\ue000taro-user-text\ue000"
"""stands for the user's text while the chat template is rendered; a private-use character no template holds"""

MAX_TOKENS_PER_CHARACTER = 4
"""of a byte-level tokenizer: a character of UTF-8 has at most four bytes"""


@dataclass(frozen=True)
class Prompt:
    """A prompt with one video. ids_P: token ids, video placeholders expanded; positions_3P: M-RoPE; next_position:
    where every rollout starts; places_M: where in the prompt the video's tokens stand, patch by patch (text may stand
    between patches)."""

    ids_P: torch.Tensor
    positions_3P: torch.Tensor
    next_position: int
    places_M: torch.Tensor
    features: VideoFeatures

    def __post_init__(self) -> None:
        assert self.positions_3P.shape == (3, len(self.ids_P)), f"{self.positions_3P.shape}, {len(self.ids_P)} ids"
        assert self.places_M.shape == (self.features.tokens,), f"{self.places_M.shape}, {self.features.tokens} tokens"

    def with_features(self, features: VideoFeatures) -> Prompt:
        """The same tokens and positions over other features of the same shape (a disruption)."""
        assert features.main_SND.shape == self.features.main_SND.shape
        assert len(features.deepstack_LSND) == len(self.features.deepstack_LSND)
        return replace(self, features=features)


class Policy:
    """See the module. Made by `load_policy`."""

    def __init__(
        self, folder: Path, config: Any, family: Family, tokenizer: Any, lm: Any, head: torch.nn.Linear, tower: Any
    ) -> None:
        self.folder, self.config, self.family, self.tokenizer = folder, config, family, tokenizer
        self.model = torch.nn.ModuleDict({"lm": lm, "head": head})
        self.lm, self.head, self.tower = lm, head, tower
        self._chat_template = chat_template(folder, tokenizer)
        self._pieces: dict[tuple[int, ...], str] = {}
        self._video_id = tokenizer.convert_tokens_to_ids(family.video_token)

    @property
    def device(self) -> torch.device:
        """Where the language model is."""
        return self.head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the language model's weights."""
        return self.head.weight.dtype

    @property
    def template_name(self) -> str | None:
        """The prompt template that the checkpoint was trained with, by name or file; None if its folder names none."""
        return template_name(self.folder)

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Language model and head (once, where tied); never the tower."""
        return self.model.named_parameters()

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """As `named_parameters`, without names."""
        return self.model.parameters()

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end a response: of generation_config.json, the config and the tokenizer."""
        found: list[int] = []
        for value in (
            read_json(self.folder / "generation_config.json").get("eos_token_id"),
            getattr(self.config.text_config, "eos_token_id", None),
            self.tokenizer.eos_token_id,
        ):
            found += [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int)]
        return tuple(dict.fromkeys(found))

    @cached_property
    def pad_id(self) -> int:
        """Fills ids past the end of a response."""
        return int(self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.eos_ids[0])

    @cached_property
    def banned_V(self) -> torch.Tensor:
        """[V] True for tokens that a response must never hold: vision tokens, padding (unless it ends a response) and
        ids past the tokenizer's. Sampling and scoring both exclude them."""
        banned = torch.zeros(self.head.weight.shape[0], dtype=torch.bool)
        banned[len(self.tokenizer) :] = True
        names = [name for name in self.family.vision_tokens if name in self.tokenizer.get_vocab()]
        ids = [*self.tokenizer.convert_tokens_to_ids(names), self.pad_id]
        banned[[i for i in ids if i not in self.eos_ids]] = True
        return banned.to(self.device)

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a piece of a response, no special tokens added."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Sequence[int] | torch.Tensor) -> str:
        """Text of a response, end and padding dropped, tags kept."""
        ends = {*self.eos_ids, self.pad_id}
        kept = [int(i) for i in ids if int(i) not in ends]
        return str(self.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def reasoning_mask(self, ids: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """bool [R]: tokens strictly between `<think>` and `</think>`. A token that holds a piece of a tag does not
        count; where `</think>` never comes, everything after `<think>` counts; without `<think>`, nothing does."""
        text, spans = self._spans(ids)
        ends = {*self.eos_ids, self.pad_id}
        start = text.find("<think>")
        stop = text.find("</think>", max(start, 0))
        start, stop = (len(text), 0) if start < 0 else (start + len("<think>"), stop if stop >= 0 else len(text))
        inside = [
            start <= a and b <= stop and b > a and int(i) not in ends for (a, b), i in zip(spans, ids, strict=True)
        ]
        return torch.tensor(inside, dtype=torch.bool)

    def _piece(self, ids: tuple[int, ...]) -> str:
        """Text of a few tokens, remembered: a step asks for that of every response token, one by one."""
        if ids not in self._pieces:
            self._pieces[ids] = self.tokenizer.decode(
                list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        return self._pieces[ids]

    def _spans(self, ids: Sequence[int] | torch.Tensor) -> tuple[str, list[tuple[int, int]]]:
        """Text of the tokens and where in it each stands; the tokens of one character share its place."""
        whole, run, text = [int(i) for i in ids], 0, ""
        spans: list[tuple[int, int]] = []
        for end in range(1, len(whole) + 1):
            piece = self._piece(tuple(whole[run:end]))
            if piece.endswith("\ufffd") and end - run < MAX_TOKENS_PER_CHARACTER and end < len(whole):
                continue
            spans += [(len(text), len(text) + len(piece))] * (end - run)
            text, run = text + piece, end
        return text, spans

    def encode(
        self, frames_THWC: np.ndarray, frame_times_s: np.ndarray, sampling: FrameSampling, *, duration_s: float
    ) -> VideoFeatures:
        """Features of a clip from its sampled frames.

        Args:
            frames_THWC: uint8, T even.
            frame_times_s: true times [T], seconds from the start of the clip.
            sampling: decides the size at which frames are shown.
            duration_s: of the clip; the effective rate is T / duration_s, as the stock processor computes it.
        """
        assert self.tower is not None, "load the policy with tower=True to encode"
        pixels = self._pixels
        S = len(frames_THWC) // 2
        height, width = frames_THWC.shape[1:3]
        hw = resized_hw(height, width, S, sampling, factor=pixels.patch_size * pixels.merge)
        grid = (hw[0] // pixels.patch_size, hw[1] // pixels.patch_size)
        weight = next(self.tower.parameters())
        frames = torch.from_numpy(np.ascontiguousarray(resize_frames(frames_THWC, hw))).to(weight.device)
        patches_SPC = to_patches(
            normalise(frames, mean=pixels.mean, std=pixels.std), patch_size=pixels.patch_size, merge=pixels.merge
        )
        with torch.no_grad():
            main, deep = self.family.encode(self.tower, patches_SPC.to(weight.dtype), grid)
        return VideoFeatures(main, patch_times_s(frame_times_s), (S, *grid), duration_s / S, deep)

    @cached_property
    def _pixels(self) -> PixelSettings:
        settings, vision = pixel_settings(self.folder), self.config.vision_config
        wanted = vision.patch_size, vision.spatial_merge_size
        if (settings.patch_size, settings.merge) != wanted:
            raise ModelError(f"{self.folder}: the processor file says patch_size {settings.patch_size}, merge_size "
                             f"{settings.merge}; the vision tower has {wanted[0]} and {wanted[1]}: copy the processor "
                             "files from the base model")
        return settings

    def fingerprint(self, sampling: FrameSampling, dtype: str) -> EncoderFingerprint:
        """What identifies features of this checkpoint's tower; reads the files, the tower need not be loaded."""
        return EncoderFingerprint(
            family=self.family.name,
            model_id=self.folder.name,
            tower_sha256=tower_sha256(self.folder, self.family),
            dtype=dtype,
            sampling=sampling,
            size=self.family.size_label(self.config),
        )

    def prompt(self, features: VideoFeatures, user_text: str) -> Prompt:
        """The prompt of one user turn, video first: the stock processor's token ids, our positions.

        Raises ModelError where the features are not of this family and width."""
        shape = (features.main_SND.shape[-1], len(features.deepstack_LSND))
        wanted = (self.config.text_config.hidden_size, self.family.levels(self.config))
        if shape != wanted:
            raise ModelError(
                f"{self.folder}: features of width {shape[0]} with {shape[1]} deepstack levels; this "
                f"{self.family.name} takes width {wanted[0]} with {wanted[1]}. Encode the videos with its own tower "
                "(taro preprocess)."
            )
        texts = self._texts(self.family.video_text(features), user_text)
        run = features.tokens // (len(texts) - 1)
        assert run * (len(texts) - 1) == features.tokens, f"{features.tokens} tokens in {len(texts) - 1} runs"
        ids, places = [*texts[0]], []
        for text in texts[1:]:
            places.append(torch.arange(len(ids), len(ids) + run))
            ids += [*[self._video_id] * run, *text]
        positions, following = self.family.positions(self.config, [len(text) for text in texts], features)
        return Prompt(torch.tensor(ids), positions, following, torch.cat(places), features)

    def _texts(self, around: tuple[str, ...], user_text: str) -> list[list[int]]:
        """Token ids of the prompt's texts, the video's tokens left out between them. The user's text is tokenised with
        special tokens as plain text, so a query that spells `<|video_pad|>` stays a query."""
        content = [{"type": "video"}, {"type": "text", "text": SENTINEL}]
        try:
            rendered = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": content}],
                chat_template=self._chat_template,
                tokenize=False,
                add_generation_prompt=True,
            )
        except Exception as error:  # noqa: BLE001  the template is a program of the folder; transformers boxes it in
            raise ModelError(f"{self.folder}: the chat template cannot be used: {error!s:.200}") from None
        placeholder = self.family.placeholder
        head, video, rest = rendered.partition(placeholder)
        lead, sentinel, tail = rest.partition(SENTINEL)
        if not video or not sentinel:
            raise ModelError(f"{self.folder}: the chat template shows no video before the text; expected {placeholder}")
        opening = self.tokenizer([head + around[0], *around[1:-1]], add_special_tokens=False)["input_ids"]
        lead = around[-1] + lead
        if any(token in user_text for token in self.tokenizer.all_special_tokens):
            plain = self.tokenizer(user_text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            return [*opening, [*self.encode_text(lead), *plain, *self.encode_text(tail)]]
        return [*opening, self.encode_text(lead + user_text + tail)]


def load_policy(
    folder: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    tower: bool = False,
    trainable: bool = False,
) -> Policy:
    """A policy from a Hugging Face model folder.

    Args:
        folder: config.json, *.safetensors, tokenizer and (to encode) processor files.
        tower: also load the frozen vision tower, to encode frames; training leaves it out.
        trainable: parameters of language model and head require gradients.

    Raises ModelError: a missing or damaged file, an unknown family, tensors that do not fit the config.
    """
    from transformers import AutoTokenizer

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: no config.json; expected a Hugging Face model folder (weights, config, tokenizer)")
    config = read_config(folder)
    family = family_of(config, folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001  as above
        raise ModelError(f"{folder}: not a usable model folder: {error!s:.300}") from None
    check_tokenizer(folder, tokenizer, family, config)
    modules = _build(folder, config, family, tower=tower)
    _fill(modules, folder, config, family, device=torch.device(device), dtype=dtype)
    for name, module in modules.items():
        if module is not None:
            module.eval().requires_grad_(trainable and name != "tower")
    return Policy(folder, config, family, tokenizer, modules["lm"], modules["head"], modules["tower"])


def _build(folder: Path, config: Any, family: Family, *, tower: bool) -> dict[str, Any]:
    """The modules without memory, as config.json has them."""
    try:
        with torch.device("meta"):
            text = config.text_config
            return {
                "lm": family.build_lm(config),
                "head": torch.nn.Linear(text.hidden_size, text.vocab_size, bias=False),
                "tower": family.build_tower(config) if tower else None,
            }
    except Exception as error:  # noqa: BLE001  as above
        raise ModelError(f"{folder}: config.json describes no {family.name}: {error!s:.300}") from None


def _fill(
    modules: dict[str, Any], folder: Path, config: Any, family: Family, *, device: torch.device, dtype: torch.dtype
) -> None:
    states: dict[str, dict[str, torch.Tensor]] = {"lm": {}, "head": {}, "tower": {}}
    places = {name: where for name in tensor_files(folder)
              if (where := family.split_name(name)) is not None and modules[where[0]] is not None}  # fmt: skip
    for name, tensor in tensors(folder, places.__contains__):
        part, inner = places[name]
        states[part][inner] = tensor.to(device=device, dtype=dtype)
    tied = "weight" not in states["head"]
    if tied and "embed_tokens.weight" in states["lm"]:
        states["head"]["weight"] = states["lm"]["embed_tokens.weight"]
    for part, module in modules.items():
        if module is None:
            continue
        try:
            module.load_state_dict(states[part], assign=True, strict=True)
        except RuntimeError as error:
            raise ModelError(f"{folder}: the weights do not fit config.json: {str(error)[:600]}") from None
        _rebuild_buffers(module, device)
    if tied:
        modules["head"].weight = modules["lm"].embed_tokens.weight


def _rebuild_buffers(module: torch.nn.Module, device: torch.device) -> None:
    """Rotary tables are not in checkpoints: a module built without memory makes them anew."""
    for name, child in module.named_children():
        if name.startswith("rotary") and any(buffer.is_meta for buffer in child.buffers()):
            setattr(module, name, type(child)(child.config).to(device))


def export_checkpoint(
    policy: Policy, base: str | Path, out: str | Path, *, dtype: torch.dtype | None = None
) -> Path:
    """Writes `out`: `base` with the policy's language model and head in place of its own, everything else copied, the
    tower's tensors included, so that it loads unedited wherever `base` does. Tensors keep `base`'s names; its dtypes
    too, but for language model and head where `dtype` is given, which config.json then names."""
    base, out = Path(base), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for file in sorted(base.iterdir()):
        if file.is_file() and file.suffix != ".safetensors":
            shutil.copyfile(file, out / file.name)
    trained = {"lm": dict(policy.lm.state_dict()), "head": dict(policy.head.state_dict())}
    shards: dict[Path, dict[str, torch.Tensor]] = {}
    files = tensor_files(base)
    for name, tensor in tensors(base):
        where = policy.family.split_name(name)
        if where is not None and where[0] in trained:
            ours = trained[where[0]][where[1]].detach()
            tensor = ours.to(device="cpu", dtype=dtype or tensor.dtype).contiguous()
        shards.setdefault(files[name], {})[name] = tensor
    for file, content in shards.items():
        write_tensors(out / file.name, content, metadata={"format": "pt"})
    if dtype is not None:
        config, name = read_json(out / "config.json"), str(dtype).removeprefix("torch.")
        for part in (config, config.get("text_config") or {}):
            part.update({key: name for key in ("dtype", "torch_dtype") if key in part})
        (out / "config.json").write_text(json.dumps({"dtype": name, **config}, indent=2) + "\n", encoding="utf-8")
    return out
