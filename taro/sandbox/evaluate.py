"""What a trained sandbox model can do, measured as users would: the saved folder, its own processor settings, grouped
decoding, held-out worlds read back from mp4.

Legend: M videos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from taro.core.draws import rng, uniforms
from taro.grounding.answers import format_ok, parse_answer, parse_reasoning
from taro.grounding.moment import Moment, iou
from taro.grounding.prompts import load_template, parse_captions
from taro.metrics.scores import Prediction, evaluate_predictions
from taro.models.decoding import generate
from taro.models.features import FrameSampling, VideoFeatures
from taro.models.load import load_policy
from taro.models.policy import Policy
from taro.models.sampler import Decoding
from taro.sandbox.tasks import segment_sentences, shown_times_s
from taro.sandbox.world import CELL_S, World

__all__ = ["evaluate_model", "responses"]

MAX_NEW_TOKENS = 128
AT_ONCE = 64


def responses(policy: Policy, features: list[VideoFeatures], users: list[str], *, temperature: float = 0.0,
              seed: int = 0) -> list[str]:
    """One response to each prompt, as text."""
    texts: list[str] = []
    for low in range(0, len(users), AT_ONCE):
        part = range(low, min(low + AT_ONCE, len(users)))
        prompts = [policy.prompt(features[n], users[n]) for n in part]
        draws = np.stack([uniforms(MAX_NEW_TOKENS, "sandbox evaluation", seed, n)[None] for n in part])
        rollouts = generate(policy, prompts, G=1, decoding=Decoding(MAX_NEW_TOKENS, temperature=temperature),
                            uniforms_BGR=draws)
        texts += [policy.decode(ids[mask]) for ids, mask in
                  zip(rollouts.ids_BGR[:, 0], rollouts.mask_BGR[:, 0], strict=True)]
    return texts


def evaluate_model(folder: Path, worlds: list[World], frames_FHWC: torch.Tensor, *, device: torch.device,
                   perception: bool) -> dict[str, float]:
    """Scores of the model in `folder` on held-out worlds.

    Greedy grounding of one query a video; sampled_*: the same at temperature 1; with `perception`, also captions_right
    and captions_found (share of emitted captions whose words are true at IoU >= 0.5, share of true ones so found) and
    segments_right (exact sentences for one event's segment)."""
    policy = load_policy(folder, device=device, tower=True)
    template = load_template("sandbox")
    with torch.no_grad():
        features = _encode(policy, worlds, frames_FHWC)
    numbers = [int(rng("sandbox evaluation", world.seed).integers(len(world.events))) for world in worlds]
    users = [template.user_text(world.query(n)) for world, n in zip(worlds, numbers, strict=True)]
    scores: dict[str, float] = {}
    for name, temperature in (("", 0.0), ("sampled_", 1.0)):
        texts = responses(policy, features, users, temperature=temperature)
        scores |= {name + key: value for key, value in _grounding(worlds, numbers, texts).items()}
    if perception:
        texts = responses(policy, features, [template.caption_prompt] * len(worlds))
        scores |= _captions(worlds, texts)
        scores["segments_right"] = _segments(policy, worlds, frames_FHWC, template.segment_prompt)
    return {name: round(value, 4) for name, value in scores.items()}


def _encode(policy: Policy, worlds: list[World], frames_FHWC: torch.Tensor) -> list[VideoFeatures]:
    features, start = [], 0
    for world in worlds:
        features.append(_features(policy, frames_FHWC[start : start + world.cells]))
        start += world.cells
    return features


def _features(policy: Policy, frames: torch.Tensor) -> VideoFeatures:
    times = shown_times_s(len(frames))
    return policy.encode(frames.cpu().numpy(), times, FrameSampling(), duration_s=len(frames) * CELL_S)


def _grounding(worlds: list[World], numbers: list[int], texts: list[str]) -> dict[str, float]:
    predictions = [Prediction(query_id=str(world.seed), video=str(world.seed), predicted=parse_answer(text),
                              windows=(world.events[n].moment,), duration_s=world.duration_s,
                              reasoning=parse_reasoning(text).text)
                   for world, n, text in zip(worlds, numbers, texts, strict=True)]
    table = evaluate_predictions(predictions).as_dict()
    scores = {name: float(table[name]) for name in ("miou", "r1@0.3", "r1@0.5", "r1@0.7")}
    scores["format"] = float(np.mean([format_ok(text) for text in texts]))
    scores["timestamps"] = float(np.mean([parse_reasoning(text).has_timestamp for text in texts]))
    return scores


def _captions(worlds: list[World], texts: list[str]) -> dict[str, float]:
    emitted, true, right, found = 0, 0, 0, 0
    for world, text in zip(worlds, texts, strict=True):
        answered = [(Moment(c.start_s, c.end_s), c.text) for c in parse_captions(text)]
        emitted, true = emitted + len(answered), true + len(world.captions)
        right += sum(any(_same(one, other) for other in world.captions) for one in answered)
        found += sum(any(_same(one, other) for other in answered) for one in world.captions)
    return {"captions_right": right / max(1, emitted), "captions_found": found / max(1, true)}


def _same(one: tuple[Moment, str], other: tuple[Moment, str]) -> bool:
    return one[1].rstrip(".") == other[1].rstrip(".") and iou(one[0], other[0]) >= 0.5


def _segments(policy: Policy, worlds: list[World], frames_FHWC: torch.Tensor, prompt: str) -> float:
    features, wanted, start = [], [], 0
    for world in worlds:
        event = world.events[0]
        low, high = event.start, event.end - (event.end - event.start) % 2
        with torch.no_grad():
            features.append(_features(policy, frames_FHWC[start + low : start + high]))
        wanted.append(segment_sentences(world, low, high))
        start += world.cells
    answers = responses(policy, features, [prompt] * len(worlds))
    return float(np.mean([a.strip() == b for a, b in zip(answers, wanted, strict=True)]))
