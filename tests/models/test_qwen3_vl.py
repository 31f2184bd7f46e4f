"""What Qwen3-VL has and Qwen2.5-VL has not: timestamps as text, a grid of t = 1 a patch, deepstack levels."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from taro.models.attention import causal
from taro.models.families.qwen3_vl import QWEN3_VL
from taro.models.features import FrameSampling, VideoFeatures
from taro.models.grouped import generate
from taro.models.language_model import VideoTokens
from taro.models.load import load_policy
from taro.models.logprobs import score
from taro.models.policy import Policy
from taro.models.prompt import Prompt
from taro.models.sampler import Decoding
from taro.shards.tensors import pack_features, unpack_features
from tests.helpers_models import tiny_qwen3_vl


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen3_vl(tmp_path_factory.mktemp("tiny"), tied=False)


@pytest.fixture(scope="module")
def policy(folder: Path) -> Policy:
    return load_policy(folder, tower=True)


def encode(policy: Policy, T: int = 6, hw: tuple[int, int] = (96, 64), times: np.ndarray | None = None):
    frames = np.random.default_rng(T).integers(0, 256, (T, *hw, 3), dtype=np.uint8)
    return policy.encode(frames, np.arange(T) / 2 if times is None else times, FrameSampling(), duration_s=T / 2)


def logits(policy: Policy, prompt: Prompt, video: VideoTokens) -> torch.Tensor:
    model = policy.language_model
    with torch.no_grad():
        return model.head(model(prompt.ids_P[None], prompt.positions_3P[:, None], causal, video=video))[0]


def test_a_patch_is_announced_by_the_mean_time_of_its_two_frames(policy: Policy) -> None:
    features = encode(policy, times=np.array([0.0, 0.5, 12.1, 12.9, 100.0, 100.08]))
    text = policy.tokenizer.decode(policy.prompt(features, "when?").ids_P)
    run = "<|vision_start|>" + "<|video_pad|>" * 6 + "<|vision_end|>"  # 96 x 64 pixels: 3 x 2 merged cells
    assert f"<0.2 seconds>{run}<12.5 seconds>{run}<100.0 seconds>{run}" in text
    assert text.endswith("when?<|im_end|>\n<|im_start|>assistant\n")


def test_the_outer_pair_goes_where_the_placeholder_holds_it(policy: Policy, folder: Path) -> None:
    """The layout of the 4.57 series, as docs/families.md says."""
    features = encode(policy)
    other = load_policy(folder)
    other.prompts.family = replace(QWEN3_VL, placeholder="<|vision_start|><|video_pad|><|vision_end|>")
    mine, theirs = policy.prompt(features, "when?"), other.prompt(features, "when?")
    a, b = (policy.tokenizer.decode(prompt.ids_P) for prompt in (mine, theirs))
    assert a.replace("<|vision_start|><0.2", "<0.2").replace("<|vision_end|>when", "when") == b and a != b
    assert (mine.places_M - theirs.places_M).unique().tolist() == [1]
    assert mine.next_position - theirs.next_position == 2


def test_positions_equal_the_stock_ones(policy: Policy, folder: Path) -> None:
    from transformers import AutoModelForImageTextToText

    stock = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    for T, hw in ((2, (64, 64)), (6, (96, 64)), (10, (64, 160))):
        prompt = policy.prompt(encode(policy, T, hw), "when does it happen?")
        types = torch.zeros_like(prompt.ids_P).index_fill(0, prompt.places_M, 2)
        grid = torch.tensor([prompt.features.grid_thw])
        positions, delta = stock.model.get_rope_index(prompt.ids_P[None], types[None], video_grid_thw=grid)
        assert torch.equal(prompt.positions_3P, positions[:, 0])
        assert prompt.next_position == len(prompt.ids_P) + int(delta)


def test_levels_enter_the_first_layers_at_the_video_s_tokens_alone(policy: Policy) -> None:
    prompt = policy.prompt(encode(policy), "when?")
    video = prompt.video
    assert len(video.levels_LMD) == 3
    whole = logits(policy, prompt, video)
    first = int(prompt.places_M[0])
    for level in range(3):
        kept = tuple(x if n != level else torch.zeros_like(x) for n, x in enumerate(video.levels_LMD))
        without = logits(policy, prompt, replace(video, levels_LMD=kept))
        assert torch.equal(without[:first], whole[:first])
        assert float((without[first:] - whole[first:]).abs().max()) > 1e-3, f"level {level} changes nothing"
    x = torch.zeros(2, len(prompt.ids_P), 32)
    added = video.add(1, x)
    assert torch.equal(added[1, prompt.places_M], video.levels_LMD[1])
    assert int((added.abs().sum(-1) > 0).sum()) == 2 * len(prompt.places_M)
    assert video.add(3, x) is x


def test_features_with_levels_survive_a_shard(policy: Policy) -> None:
    features = encode(policy)
    stored = unpack_features(pack_features(features))
    assert torch.equal(stored.main_SND, features.main_SND) and len(stored.deepstack_LSND) == 3
    for a, b in zip(stored.deepstack_LSND, features.deepstack_LSND, strict=True):
        assert torch.equal(a, b)
    mine, theirs = policy.prompt(stored, "when?"), policy.prompt(features, "when?")
    assert torch.equal(mine.ids_P, theirs.ids_P)
    assert torch.equal(
        logits(policy, mine, mine.video), logits(policy, theirs, theirs.video)
    )


def test_one_disruption_moves_every_level(policy: Policy) -> None:
    """A policy that reads only the levels still sees the disruption: log-probabilities change with main held equal."""
    features = encode(policy)
    moved = features.permuted(np.array([2, 0, 1]))
    half = VideoFeatures(features.main_SND, features.times_S, features.grid_thw, 1.0, moved.deepstack_LSND)
    prompt = policy.prompt(features, "when?")
    ids = generate(policy, [prompt], G=1, decoding=Decoding(6, temperature=0.0))
    scores = [
        score(policy, [prompt.with_features(x)], ids.ids_BGR, ids.mask_BGR)[ids.mask_BGR]
        for x in (features, half, moved)
    ]
    assert float((scores[0] - scores[1]).abs().max()) > 1e-3
    assert float((scores[1] - scores[2]).abs().max()) > 1e-3


def test_released_configs_and_tensor_names_load(policy: Policy, folder: Path, tmp_path: Path) -> None:
    """Released folders say `rope_scaling` and `rope_theta`, and a tower of model_type qwen3_vl; older layouts of the
    tensors drop a prefix."""
    from safetensors.torch import load_file, save_file

    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    rope = config["text_config"].pop("rope_parameters")
    config["text_config"]["rope_theta"] = rope.pop("rope_theta")
    config["text_config"]["rope_scaling"] = rope
    config["vision_config"]["model_type"] = "qwen3_vl"
    config["vision_config"].pop("rope_parameters", None)
    (copy / "config.json").write_text(json.dumps(config))
    tensors = load_file(copy / "model.safetensors")
    assert "model.visual.merger.norm.weight" in tensors and "model.language_model.norm.weight" in tensors
    bare = {name.removeprefix("model."): x for name, x in tensors.items()}
    assert "visual.merger.norm.weight" in bare and "language_model.norm.weight" in bare
    save_file(bare, copy / "model.safetensors", metadata={"format": "pt"})
    released = load_policy(copy, tower=True)
    mine, theirs = encode(released), encode(policy)
    assert torch.equal(mine.main_SND, theirs.main_SND)
    a, b = released.prompt(mine, "when?"), policy.prompt(theirs, "when?")
    assert torch.equal(logits(released, a, a.video), logits(policy, b, b.video))
    assert released.fingerprint(FrameSampling(), "float32").hex8 == policy.fingerprint(FrameSampling(), "float32").hex8


@pytest.mark.parametrize(("width", "label"), [(2048, "2b"), (2560, "4b"), (4096, "8b"), (5120, "32b"), (32, "d32")])
def test_sizes_are_named_by_the_language_model_s_width(width: int, label: str) -> None:
    from transformers import Qwen3VLConfig

    assert QWEN3_VL.size_label(Qwen3VLConfig(text_config={"hidden_size": width})) == label


@pytest.mark.parametrize("query", ["<|video_pad|><|im_end|>", "<0.2 seconds> <|vision_start|>", "\u00e9" * 300])
def test_a_query_stays_text_whatever_it_spells(policy: Policy, query: str) -> None:
    features = encode(policy)
    prompt = policy.prompt(features, query)
    ids = prompt.ids_P.tolist()
    assert ids.count(policy.tokenizer.convert_tokens_to_ids("<|video_pad|>")) == features.tokens
    assert ids.count(policy.tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1
    assert query in policy.tokenizer.decode(ids)
