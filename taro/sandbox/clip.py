"""The sandbox's open_clip model: a small ViT and a small text tower, trained to tell what a single frame shows.

Every sentence of the world is scored against every frame of a batch, with a sigmoid loss over all pairs: which pairs
match is known exactly (taro.sandbox.labels), and many do at once. The folder loads through
`open_clip.create_model_and_transforms("local-dir:...")`, its tokenizer through `open_clip.get_tokenizer`.

Legend: B frames, L sentences."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

from taro.sandbox.labels import SENTENCES
from taro.sandbox.models import MEAN, STD
from taro.sandbox.tokens import VOCABULARY_SIZE, build_tokenizer
from taro.sandbox.world import World

__all__ = ["build_clip", "clip_config", "clip_scores", "frame_features", "save_clip", "train_clip"]

CONTEXT = 32


def clip_config(size_px: int = 84) -> dict[str, Any]:
    """open_clip_config.json."""
    tokenizer = build_tokenizer()
    vision = {"image_size": size_px, "layers": 3, "width": 96, "head_width": 32, "mlp_ratio": 4.0, "patch_size": 14}
    text = {"context_length": CONTEXT, "vocab_size": VOCABULARY_SIZE, "hf_tokenizer_name": "sandbox", "width": 96,
            "heads": 3, "layers": 2, "pool_type": "eos", "eos_id": tokenizer.eos_token_id,
            "pad_id": tokenizer.pad_token_id}
    return {"model_cfg": {"embed_dim": 96, "init_logit_bias": -6.0, "vision_cfg": vision, "text_cfg": text},
            "preprocess_cfg": {"size": [size_px, size_px], "mean": list(MEAN), "std": list(STD), "mode": "RGB",
                               "interpolation": "bicubic", "resize_mode": "shortest"}}


def build_clip(seed: int, size_px: int = 84) -> Any:
    """A fresh `open_clip.CLIP`."""
    from open_clip import CLIP

    torch.manual_seed(seed)
    config = clip_config(size_px)["model_cfg"]
    text = {key: value for key, value in config["text_cfg"].items() if key != "hf_tokenizer_name"}
    return CLIP(config["embed_dim"], config["vision_cfg"], text, init_logit_bias=config["init_logit_bias"])


def save_clip(model: Any, folder: Path, size_px: int = 84) -> Path:
    """Writes the folder: config, fp16 weights, tokenizer."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = json.dumps(clip_config(size_px), indent=2)
    (folder / "open_clip_config.json").write_text(config + "\n", encoding="utf-8")
    state = {name: (x.detach().cpu().half() if x.is_floating_point() else x.detach().cpu()).contiguous()
             for name, x in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    build_tokenizer(ends_with_eos=True).save_pretrained(folder)
    return folder


def _sentences(device: torch.device) -> torch.Tensor:
    tokenizer = build_tokenizer(ends_with_eos=True)
    ids = tokenizer(list(SENTENCES), padding="max_length", max_length=CONTEXT, truncation=True)["input_ids"]
    return torch.tensor(ids, device=device)


def _images(frames_BHWC: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(value, device=frames_BHWC.device) for value in (MEAN, STD))
    return ((frames_BHWC.float() / 255 - mean) / std).permute(0, 3, 1, 2)


def train_clip(model: Any, frames_FHWC: torch.Tensor, labels_FL: torch.Tensor, *, steps: int, batch: int = 512,
               rate: float = 1e-3, seed: int = 0, say: Callable[..., None]) -> None:
    """Trains in place on single cells, noise added; linear warm-up, then linear decay."""
    device = frames_FHWC.device
    texts = _sentences(device)
    draws = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.05)
    model.train()
    for step in range(1, steps + 1):
        optimizer.param_groups[0]["lr"] = rate * min(1.0, step / 100) * (1 - 0.95 * step / steps)
        index = torch.randint(len(labels_FL), (batch,), generator=draws).to(device)
        images = _images(frames_FHWC[index])
        images = images + 0.05 * torch.randn_like(images)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            image, text = model.encode_image(images), model.encode_text(texts)
        logits = normalize(image.float(), dim=-1) @ normalize(text.float(), dim=-1).T
        logits = logits * model.logit_scale.exp() + model.logit_bias
        loss = binary_cross_entropy_with_logits(logits, labels_FL[index].float(), reduction="sum") / batch
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 250 == 0 or step in (1, steps):
            say(step=step, loss=round(float(loss.detach()), 4))
    model.eval()


@torch.no_grad()
def frame_features(model: Any, frames_FHWC: torch.Tensor) -> torch.Tensor:
    """Unit features [F, D] of frames."""
    return normalize(model.encode_image(_images(frames_FHWC)).float(), dim=-1)


@torch.no_grad()
def clip_scores(model: Any, worlds: list[World], frames_FHWC: torch.Tensor) -> dict[str, float]:
    """Held-out scores.

    own_segment: share of captions that agree more with the frames of their own segment than with the video's others;
    own_caption: share of events whose own caption, of all captions of the video, agrees most with their frames, and
    chance for it; boundary_recall: share of event boundaries among the video's 2k largest changes from cell to cell,
    give or take a cell (k events), and chance for it."""
    device = frames_FHWC.device
    texts = normalize(model.encode_text(_sentences(device)).float(), dim=-1)
    features = torch.cat([frame_features(model, part) for part in frames_FHWC.split(1024)])
    own, best, chance, found, luck = list[bool](), list[bool](), list[float](), list[bool](), list[bool]()
    start = 0
    draws = np.random.default_rng(0)
    for world in worlds:
        frames = features[start : start + world.cells]
        start += world.cells
        captions = [text for _, text in world.captions]
        agreement = (frames @ texts[[SENTENCES.index(text) for text in captions]].T).cpu().numpy()
        for number, event in enumerate(world.events):
            inside = np.zeros(world.cells, bool)
            inside[event.start : event.end] = True
            own.append(agreement[inside, number].mean() > agreement[~inside, number].mean())
            relative = agreement[inside].mean(0) - agreement[~inside].mean(0)
            best.append(captions[int(relative.argmax())] == captions[number])
            chance.append(captions.count(captions[number]) / len(captions))
        change = (1 - (frames[1:] * frames[:-1]).sum(-1)).cpu().numpy()
        borders = [cell for event in world.events for cell in (event.start, event.end) if cell < world.cells]
        for scores, into in ((change, found), (draws.random(len(change)), luck)):
            top = np.argsort(-scores)[: len(borders)] + 1
            into += [bool((np.abs(top - border) <= 1).any()) for border in borders]
    named: dict[str, list[Any]] = {"own_segment": own, "own_caption": best, "own_caption_chance": chance,
                                   "boundary_recall": found, "boundary_recall_chance": luck}
    return {name: round(float(np.mean(values)), 4) for name, values in named.items()}
