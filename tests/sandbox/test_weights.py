"""The shipped models: stock classes load them, we compute what stock computes, their scores are near their cards'."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from taro.core.errors import ModelError
from taro.grounding.prompts import load_template
from taro.models.attention import causal
from taro.models.features import FrameSampling
from taro.models.folder import template_name
from taro.models.load import load_policy
from taro.models.policy import Policy
from taro.models.prompt import Prompt
from taro.models.resolve import SHIPPED
from taro.sandbox import weights_folder
from taro.sandbox.clip import clip_scores, frame_features
from taro.sandbox.evaluate import evaluate_model
from taro.sandbox.video import decode_cells, encode_video
from taro.sandbox.world import CELL_S, World, make_world

HELD_OUT = range(3_950_000, 3_950_016)
"""no training, no evaluation during training and no sandbox folder uses these seeds"""
QUERY = "when does the red square blinks for the second time happen?"


@pytest.fixture(scope="module")
def worlds() -> list[World]:
    return [make_world(seed) for seed in HELD_OUT]


@pytest.fixture(scope="module")
def cells(worlds: list[World]) -> list[np.ndarray]:
    return [decode_cells(io.BytesIO(encode_video(world))) for world in worlds]


@pytest.fixture(scope="module")
def frames_FHWC(cells: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(cells))


@pytest.fixture(scope="module", params=["policy", "policy-qwen3-vl", "captioner"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def stock(name: str) -> Any:
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(weights_folder(name), dtype=torch.float32)
    family = "Qwen3VL" if name == "policy-qwen3-vl" else "Qwen2_5_VL"
    assert type(model).__name__ == f"{family}ForConditionalGeneration"
    return model.eval()


@pytest.fixture(scope="module")
def inputs(name: str, cells: list[np.ndarray]) -> Any:
    """What the stock processor makes of one video and question."""
    from transformers import AutoProcessor
    from transformers.video_utils import VideoMetadata

    processor, frames = AutoProcessor.from_pretrained(weights_folder(name)), cells[0]
    message = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": QUERY}]}]
    rendered = processor.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    T = len(frames)
    metadata = VideoMetadata(total_num_frames=T, fps=1 / CELL_S, frames_indices=list(range(T)), duration=T * CELL_S)
    return processor(text=[rendered], videos=[torch.from_numpy(frames).permute(0, 3, 1, 2)],
                     video_metadata=[metadata], do_sample_frames=False, return_tensors="pt")  # fmt: skip


@pytest.fixture(scope="module")
def policy(name: str) -> Policy:
    return load_policy(weights_folder(name), tower=True)


@pytest.fixture(scope="module")
def prompt(policy: Policy, cells: list[np.ndarray]) -> Prompt:
    T = len(cells[0])
    features = policy.encode(cells[0], np.arange(T) * CELL_S, FrameSampling(), duration_s=T * CELL_S)
    return policy.prompt(features, QUERY)


def test_all_models_together_are_small() -> None:
    folder = weights_folder("policy").parent
    assert {path.name for path in folder.iterdir()} == {*SHIPPED, "training-log.jsonl", "training-log-qwen3-vl.jsonl"}
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 18e6


def test_prompt_ids_equal_the_stock_processors(prompt: Prompt, inputs: Any) -> None:
    assert prompt.ids_P.tolist() == inputs["input_ids"][0].tolist()
    assert prompt.features.grid_thw == tuple(inputs["video_grid_thw"][0].tolist())
    assert prompt.features.seconds_per_patch == 1.0
    if "second_per_grid_ts" in inputs:
        assert float(inputs["second_per_grid_ts"][0]) == 1.0


def test_logits_are_the_stock_models_at_our_positions(policy: Policy, stock: Any, prompt: Prompt, inputs: Any) -> None:
    with torch.no_grad():
        plain = stock(
            input_ids=inputs["input_ids"], pixel_values_videos=inputs["pixel_values_videos"],
            video_grid_thw=inputs["video_grid_thw"], position_ids=prompt.positions_3P[:, None],
        ).logits[0]  # fmt: skip
        hidden = policy.language_model(prompt.ids_P[None], prompt.positions_3P[:, None], causal, video=prompt.video)
        ours = policy.language_model.head(hidden)[0]
    assert float(plain.std()) > 1
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)


def test_the_folders_name_their_template(policy: Policy) -> None:
    assert template_name(policy.folder) == "sandbox"
    assert load_template("sandbox").user_text("the red square blinks for the second time") == QUERY


def test_policy_and_captioner_share_their_tower() -> None:
    """So that features encoded once serve both; the weak policy's tower was frozen."""
    policies = [load_policy(weights_folder(name)) for name in ("policy", "captioner")]
    towers = [policy.fingerprint(FrameSampling(), "float32") for policy in policies]
    assert towers[0].hex8 == towers[1].hex8


def card(name: str) -> dict[str, float]:
    """Scores of a model's card."""
    text = (weights_folder(name) / "README.md").read_text(encoding="utf-8")
    return {key: float(value) for key, value in re.findall(r"^\| (\S+) \| ([0-9.]+) \|$", text, re.MULTILINE)}


def near(scores: dict[str, float], key: str, name: str, count: int) -> None:
    """Within four standard errors of the card's value, for a mean over `count` values from 0 to 1."""
    expected = card(name)[key]
    error = 4 * max(expected * (1 - expected), 0.02) ** 0.5 / count**0.5
    assert abs(scores[key] - expected) <= error, f"{name}: {key} is {scores[key]:.3f}, its card says {expected:.3f}"


def test_held_out_scores_are_near_the_card(name: str, worlds: list[World], frames_FHWC: torch.Tensor) -> None:
    perception, device = name == "captioner", torch.device("cpu")
    scores = evaluate_model(weights_folder(name), worlds, frames_FHWC, device=device, perception=perception)
    assert scores["format"] == 1.0
    near(scores, "sampled_format", name, len(worlds))
    for key in ("miou", "r1@0.5", "sampled_miou", "sampled_timestamps"):
        near(scores, key, name, len(worlds))
    if perception:
        assert scores["captions_right"] > 0.9 and scores["captions_found"] > 0.9
        assert scores["timestamps"] == 1.0
        near(scores, "segments_right", name, len(worlds))
    else:
        assert scores["timestamps"] < 0.1
        assert 0.05 < scores["miou"] < 0.7  # weak, and not useless


@pytest.fixture(scope="module")
def clip() -> tuple[Any, Any, Any]:
    import open_clip

    where = f"local-dir:{weights_folder('clip')}"
    model, _, transform = open_clip.create_model_and_transforms(where)
    return model.eval(), transform, open_clip.get_tokenizer(where)


def test_open_clip_loads_the_clip_model_and_sees_what_training_saw(clip: Any, cells: list[np.ndarray]) -> None:
    from PIL import Image

    model, transform, _ = clip
    images = torch.stack([transform(Image.fromarray(frame)) for frame in cells[0][:4]])
    with torch.no_grad():
        theirs = model.encode_image(images, normalize=True)
    torch.testing.assert_close(theirs, frame_features(model, torch.from_numpy(cells[0][:4])), atol=1e-5, rtol=0)


def test_open_clips_tokenizer_ends_texts_as_the_text_tower_expects(clip: Any) -> None:
    model, _, tokenizer = clip
    ids = tokenizer(["the red square blinks.", "a word that nobody knows"])
    assert ids.shape == (2, model.context_length)
    eos = tokenizer.tokenizer.eos_token_id
    assert (ids == eos).sum(1).tolist() == [1, 1]
    last = [int((row != tokenizer.tokenizer.pad_token_id).nonzero().max()) for row in ids]
    assert [int(row[place]) for row, place in zip(ids, last, strict=True)] == [eos, eos]


def test_clip_ranks_captions_above_chance(clip: Any, worlds: list[World], frames_FHWC: torch.Tensor) -> None:
    """Boundaries are left out: the card's .499 against chance .420 is too little to see in 16 worlds."""
    scores = clip_scores(clip[0], worlds, frames_FHWC)
    events = sum(len(world.events) for world in worlds)
    near(scores, "own_segment", "clip", events)
    near(scores, "own_caption", "clip", events)
    assert scores["own_caption"] > scores["own_caption_chance"] + 0.1


def test_unknown_and_missing_models_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"expected one of: policy, policy-qwen3-vl, captioner, clip"):
        weights_folder("teacher")
    monkeypatch.setattr("taro.models.resolve.resources.files", lambda _: tmp_path)
    with pytest.raises(ModelError, match="taro sandbox build OUT"):
        weights_folder("policy")
