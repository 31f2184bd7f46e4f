"""Every numerical shortcut of taro.models against the plain computation it replaces, on stock transformers classes, for
every registered family: these are the checks that a new family must pass (docs/families.md)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from taro.core.errors import ModelError
from taro.models.attention import causal
from taro.models.decoding import DECODERS, generate
from taro.models.export import export_checkpoint
from taro.models.families import FAMILIES
from taro.models.families.pixels import normalise, resize_frames, to_patches
from taro.models.families.positions import video_positions
from taro.models.features import VideoFeatures
from taro.models.folder import pixel_settings
from taro.models.load import load_policy
from taro.models.logprobs import score
from taro.models.policy import Policy
from taro.models.prompt import Prompt
from taro.models.sampler import Decoding
from tests.helpers_models import TINY
from tests.models.helpers import CASES, SAMPLING, full_row_logprobs, make_frames, make_prompt, sampled


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TINY[request.param](tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def policy(folder: Path) -> Policy:
    return load_policy(folder, tower=True, trainable=True)


@pytest.fixture(params=sorted(DECODERS))
def decoder(request: pytest.FixtureRequest, policy: Policy) -> Iterator[str]:
    """The name of each decoder, while the policy draws with it."""
    before, policy.decoder = policy.decoder, request.param
    yield policy.decoder
    policy.decoder = before


@pytest.fixture(scope="module")
def stock(folder: Path):
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()


@pytest.fixture(scope="module")
def processor(folder: Path):
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(folder)


def test_every_registered_family_is_checked_here() -> None:
    assert set(TINY) == set(FAMILIES)
    assert all(family.name == family.model_type == key for key, family in FAMILIES.items())


def stock_inputs(processor, frames: np.ndarray, duration_s: float, text: str):
    from transformers.video_utils import VideoMetadata

    T = len(frames)
    message = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": text}]}]
    rendered = processor.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    metadata = VideoMetadata(total_num_frames=T, fps=T / duration_s, frames_indices=list(range(T)), duration=duration_s)
    video = torch.from_numpy(frames).permute(0, 3, 1, 2)
    return processor(
        text=[rendered], videos=[video], video_metadata=[metadata], do_sample_frames=False, return_tensors="pt"
    )


@pytest.mark.parametrize("case", CASES)
def test_prompt_ids_and_patches_equal_the_stock_processor(policy: Policy, processor, case) -> None:
    text = 'when does "x" {happen}\nfor the second time?'
    prompt, frames = make_prompt(policy, case, text)
    inputs = stock_inputs(processor, frames, case[3], text)
    assert inputs["input_ids"][0].tolist() == prompt.ids_P.tolist()
    assert tuple(inputs["video_grid_thw"][0].tolist()) == prompt.features.grid_thw
    if "second_per_grid_ts" in inputs:
        assert float(inputs["second_per_grid_ts"][0]) == pytest.approx(prompt.features.seconds_per_patch, rel=1e-6)
    assert prompt.places_M.tolist() == (prompt.ids_P == processor.video_token_id).nonzero()[:, 0].tolist()
    _, h, w = prompt.features.grid_thw
    pixels = pixel_settings(policy.folder)
    resized = torch.from_numpy(resize_frames(frames, (h * pixels.patch_size, w * pixels.patch_size)))
    mine = to_patches(
        normalise(resized, mean=pixels.mean, std=pixels.std), patch_size=pixels.patch_size, merge=pixels.merge
    )
    torch.testing.assert_close(mine.flatten(0, 1), inputs["pixel_values_videos"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_cached_features_give_the_logits_of_pixels_through_the_stock_model(policy, stock, processor, case) -> None:
    prompt, frames = make_prompt(policy, case, "when does the red square blink?")
    inputs = stock_inputs(processor, frames, case[3], "when does the red square blink?")
    with torch.no_grad():
        plain = stock(
            input_ids=inputs["input_ids"],
            pixel_values_videos=inputs["pixel_values_videos"],
            video_grid_thw=inputs["video_grid_thw"],
            position_ids=prompt.positions_3P[:, None],
        ).logits[0]
        cached = cached_logits(policy, prompt)
    assert float(plain.std()) > 0.1
    torch.testing.assert_close(cached, plain, atol=1e-5, rtol=0)


def cached_logits(policy: Policy, prompt: Prompt) -> torch.Tensor:
    model = policy.language_model
    return model.head(model(prompt.ids_P[None], prompt.positions_3P[:, None], causal, video=prompt.video))[0]


def test_disrupted_features_give_the_logits_of_disrupted_pixels(policy: Policy, stock, processor) -> None:
    """Content moves, time does not: the stock model over moved pixels, at the undisturbed video's ids and positions."""
    order = np.array([2, 0, 3, 1])
    prompt, frames = make_prompt(policy, CASES[0], "when?")
    moved = frames.reshape(4, 2, *frames.shape[1:])[order].reshape(frames.shape)
    inputs = stock_inputs(processor, moved, CASES[0][3], "when?")
    with torch.no_grad():
        plain = stock(
            input_ids=prompt.ids_P[None],
            pixel_values_videos=inputs["pixel_values_videos"],
            video_grid_thw=inputs["video_grid_thw"],
            position_ids=prompt.positions_3P[:, None],
        ).logits[0]
        cached = cached_logits(policy, prompt.with_features(prompt.features.permuted(order)))
        undisturbed = cached_logits(policy, prompt)
    torch.testing.assert_close(cached, plain, atol=1e-5, rtol=0)
    assert float((cached - undisturbed).abs().max()) > 0.01


def test_tower_over_many_patches_equals_the_stock_tower(policy: Policy, stock, processor) -> None:
    for T, height, width, duration_s in CASES:
        frames = make_frames(T, height, width, seed=1)
        inputs = stock_inputs(processor, frames, duration_s, "x")
        with torch.no_grad():
            plain = stock.model.visual(inputs["pixel_values_videos"], grid_thw=inputs["video_grid_thw"])
        mine = policy.encode(frames, np.arange(T) * 1.0, SAMPLING, duration_s=duration_s)
        torch.testing.assert_close(mine.main_SND.flatten(0, 1), plain.pooler_output, atol=1e-5, rtol=0)
        levels = getattr(plain, "deepstack_features", None) or []
        assert len(levels) == len(mine.deepstack_LSND) == policy.family.levels(policy.config)
        for level, wanted in zip(mine.deepstack_LSND, levels, strict=True):
            torch.testing.assert_close(level.flatten(0, 1), wanted, atol=1e-5, rtol=0)


def test_permuting_patches_in_pixels_equals_permuting_features(policy: Policy) -> None:
    frames = make_frames(12, 84, 84)
    order = np.array([3, 1, 0, 5, 2, 4])
    moved = frames.reshape(6, 2, 84, 84, 3)[order].reshape(frames.shape)
    times = np.arange(12) / 2
    plain = policy.encode(moved, times, SAMPLING, duration_s=6.0)
    cached = policy.encode(frames, times, SAMPLING, duration_s=6.0).permuted(order)
    assert torch.equal(plain.main_SND, cached.main_SND)
    for a, b in zip(plain.deepstack_LSND, cached.deepstack_LSND, strict=True):
        assert torch.equal(a, b)


def test_positions_of_the_released_models() -> None:
    for seconds, following in ((1.0, 78), (0.5, 47), (1.9, 133)):
        positions, after = video_positions(15, (32, 12, 20), seconds, tokens_per_second=2, merge=2)
        assert after == following
        assert positions[:, 0].tolist() == [15, 15, 15]
        assert positions[1].max() == 15 + 5 and positions[2].max() == 15 + 9


@pytest.mark.parametrize("checkpointed", [False, True])
def test_packed_scoring_and_its_gradient_equal_full_rows(policy: Policy, checkpointed: bool) -> None:
    prompts, rollouts = sampled(policy)
    weights = torch.randn(rollouts.ids_BGR.shape, generator=torch.Generator().manual_seed(0))
    plain = torch.zeros(rollouts.ids_BGR.shape)
    for b, prompt in enumerate(prompts):
        for g in range(rollouts.ids_BGR.shape[1]):
            valid = rollouts.mask_BGR[b, g]
            row = full_row_logprobs(policy, prompt, rollouts.ids_BGR[b, g][valid])
            plain = plain.index_put((torch.tensor(b), torch.tensor(g), valid.nonzero()[:, 0]), row)
    (plain * weights).sum().backward()
    wanted = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    policy.language_model.zero_grad()
    packed = score(policy, prompts, rollouts.ids_BGR, rollouts.mask_BGR, checkpoint_activations=checkpointed)
    (packed * weights).sum().backward()
    torch.testing.assert_close(packed, plain, atol=1e-4, rtol=0)
    assert len(wanted) > 10
    for name, parameter in policy.named_parameters():
        if name in wanted:
            gap = (parameter.grad - wanted[name]).norm() / wanted[name].norm()
            assert gap < 1e-3, f"{name}: relative gradient gap {gap:.1e}"
    policy.language_model.zero_grad()


def test_logprobs_of_decoding_equal_those_of_scoring(policy: Policy, decoder: str) -> None:
    prompts, rollouts = sampled(policy)
    scored = score(policy, prompts, rollouts.ids_BGR, rollouts.mask_BGR)
    torch.testing.assert_close(scored, rollouts.logprobs_BGR, atol=1e-4, rtol=0)
    assert bool((scored[rollouts.mask_BGR] < 0).all())


def test_a_row_does_not_depend_on_what_shares_its_batch(policy: Policy) -> None:
    prompts, rollouts = sampled(policy)
    alone = score(policy, prompts[1:], rollouts.ids_BGR[1:], rollouts.mask_BGR[1:])
    together = score(policy, prompts, rollouts.ids_BGR, rollouts.mask_BGR)
    assert torch.equal(alone[0], together[1])


def test_forced_prefixes_open_the_responses_and_stay_in_them(policy: Policy) -> None:
    _, rollouts = sampled(policy)
    assert rollouts.forced_BG.tolist() == [[5, 1, 0], [0, 2, 1]]
    assert rollouts.ids_BGR[0, 0, :5].tolist() == [65, 66, 67, 68, 69]
    assert bool(rollouts.mask_BGR[0, 0, :5].all())


def test_greedy_decoding_equals_stock_generate_with_our_positions(policy: Policy, decoder: str, stock,
                                                                  processor) -> None:
    prompt, frames = make_prompt(policy, CASES[0], "when does it happen?")
    mine = generate(policy, [prompt], G=1, decoding=Decoding(16, temperature=0.0, repetition_penalty=1.05))
    inputs = stock_inputs(processor, frames, CASES[0][3], "when does it happen?")
    ids, P = inputs["input_ids"], len(prompt.ids_P)
    penalty = 1.05
    for _ in range(int(mine.mask_BGR.sum())):  # plain greedy over the whole row, no cache
        tail = torch.arange(prompt.next_position, prompt.next_position + ids.shape[1] - P).expand(3, -1)
        with torch.no_grad():
            logits = stock(
                input_ids=ids,
                pixel_values_videos=inputs["pixel_values_videos"],
                video_grid_thw=inputs["video_grid_thw"],
                position_ids=torch.cat([prompt.positions_3P, tail], 1)[:, None],
            ).logits[0, -1]
        seen = torch.zeros_like(logits, dtype=torch.bool)
        seen[ids[0]] = True
        logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
        ids = torch.cat([ids, logits.masked_fill(policy.banned_V, float("-inf")).argmax()[None, None]], 1)
    assert ids[0, P:].tolist() == mine.ids_BGR[0, 0][mine.mask_BGR[0, 0]].tolist()


def test_sampling_follows_the_distribution_and_its_draws(policy: Policy, decoder: str) -> None:
    prompt, _ = make_prompt(policy, CASES[1], "when?")
    G = 4096
    draws = (np.arange(G, dtype=np.float64) + 0.5)[None, :, None] / G
    first = generate(policy, [prompt], G=G, decoding=Decoding(1), uniforms_BGR=draws).ids_BGR[0, :, 0]
    ids = torch.arange(len(policy.banned_V))[:, None]
    with torch.no_grad():
        expected = torch.cat([full_row_logprobs(policy, prompt, row) for row in ids]).exp()
    counts = torch.bincount(first, minlength=len(expected)) / G
    assert float((counts - expected).abs().max()) <= 1.5 / G  # evenly spread draws hit each token as often as it weighs
    assert not bool(policy.banned_V[first].any())


def test_export_loads_unedited_and_keeps_the_tower(policy: Policy, folder: Path, stock, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    trained = load_policy(folder, trainable=True)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.01)
    out = export_checkpoint(trained, folder, tmp_path / "export")
    loaded = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32)
    AutoProcessor.from_pretrained(out)
    for name, tensor in loaded.state_dict().items():
        before = stock.state_dict()[name]
        if "visual" in name:
            assert torch.equal(tensor, before), name
        else:
            torch.testing.assert_close(tensor, before + 0.01, msg=name)
    assert policy.fingerprint(SAMPLING, "float32") == trained.fingerprint(SAMPLING, "float32")


def test_an_export_in_float32_of_a_bf16_model_holds_the_weights_as_trained(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    base = tmp_path / "base"
    AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(base)
    for file in folder.iterdir():
        if not (base / file.name).exists():
            shutil.copyfile(file, base / file.name)
    trained = load_policy(base, trainable=True)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(1 + 2**-12)  # less than bf16 keeps
    rounded, exact = (load_policy(export_checkpoint(trained, base, tmp_path / str(dtype), dtype=dtype))
                      for dtype in (None, torch.float32))  # fmt: skip
    weight = trained.language_model.lm.layers[0].mlp.up_proj.weight
    assert torch.equal(exact.language_model.lm.layers[0].mlp.up_proj.weight, weight)
    assert not torch.equal(rounded.language_model.lm.layers[0].mlp.up_proj.weight, weight)
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "torch.float32", dtype="auto")
    assert torch.equal(stock.model.language_model.layers[0].mlp.up_proj.weight, weight)
    assert exact.fingerprint(SAMPLING, "float32") == trained.fingerprint(SAMPLING, "float32").model_copy(
        update={"model_id": "torch.float32"})


def test_features_of_another_model_are_refused(policy: Policy) -> None:
    features = make_prompt(policy, CASES[1], "when?")[0].features
    deep = features.deepstack_LSND
    with pytest.raises(ModelError, match=r"deepstack levels; this .* takes width 32 with"):
        policy.prompt(replace(features, deepstack_LSND=(*deep, features.main_SND)), "when?")
    with pytest.raises(ModelError, match="features of width 16 with"):
        narrow = replace(
            features, main_SND=features.main_SND[..., :16], deepstack_LSND=tuple(level[..., :16] for level in deep)
        )
        policy.prompt(narrow, "when?")


def test_a_policy_without_tower_holds_none_of_it(folder: Path) -> None:
    lean = load_policy(folder)
    assert lean.encoder is None and not any("visual" in name for name, _ in lean.named_parameters())


def test_features_move_to_where_they_are_told() -> None:
    main = torch.arange(12.0).view(3, 2, 2)
    features = VideoFeatures(main, np.arange(3.0), (3, 2, 4), 1.0, (main + 100, main + 200))
    moved = features.permuted(np.array([2, 0, 1]))
    assert moved.main_SND[:, 0, 0].tolist() == [8.0, 0.0, 4.0]
    assert [level[:, 0, 0].tolist() for level in moved.deepstack_LSND] == [[108, 100, 104], [208, 200, 204]]
    assert moved.times_S.tolist() == [0.0, 1.0, 2.0]
