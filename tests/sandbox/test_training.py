"""The program that made the sandbox's models: its forward pass is taro.models's, its examples are what they claim."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taro.core.errors import ConfigError
from taro.grounding.answers import format_ok, parse_answer
from taro.grounding.prompts import parse_captions
from taro.models.families.pixels import resize_frames
from taro.models.families.positions import interleaved_positions, video_positions
from taro.models.families.tower import encode_patches
from taro.models.features import FrameSampling
from taro.models.load import load_policy
from taro.models.logprobs import score
from taro.models.policy import Policy
from taro.sandbox import weights_folder
from taro.sandbox.build import BuildSettings, build_sandbox
from taro.sandbox.data import Plan, Videos, make_videos
from taro.sandbox.labels import QUIET, SENTENCES, sentence_labels
from taro.sandbox.models import FAMILIES, STD, build_model, save_model
from taro.sandbox.net import BEFORE, FlatPatches, batch_positions, pixels, text_logits, token_losses, tower_features
from taro.sandbox.net_qwen3 import row_positions
from taro.sandbox.sft import Schedule, train_model
from taro.sandbox.tasks import (
    SHIFT_CELLS,
    TASKS,
    WEAK_SILENT,
    WEAK_WRONG,
    mixed_example,
    shown_times_s,
    weak_example,
)
from taro.sandbox.tokens import build_tokenizer
from taro.sandbox.world import ACTIONS, CELL_S, World, WorldSettings, make_world

HEAD = "<|im_start|>user\n<|vision_start|>"


@pytest.fixture(scope="module")
def videos() -> Videos:
    return make_videos(Plan(4, 3_950_100, mixed=3, labelled=2), WorldSettings(), lambda _: None)


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as a build leaves it, untrained: exactness does not wait for training."""
    return save_model(build_model(3, request.param), tmp_path_factory.mktemp("model") / request.param)


@pytest.fixture(scope="module")
def policy(folder: Path) -> Policy:
    return load_policy(folder, tower=True)


@pytest.fixture(scope="module")
def stock(folder: Path) -> Any:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def captioner() -> Any:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(weights_folder("captioner"), dtype=torch.float32).eval()


def before_ids() -> torch.Tensor:
    return torch.tensor(build_tokenizer()(HEAD)["input_ids"])


def test_tower_is_that_of_taro_mllm(captioner: Any, videos: Videos) -> None:
    patches = pixels(videos.frames_FHWC[None, :24], torch.tensor([False]), 0.0)
    visual = captioner.model.visual
    with torch.no_grad():
        general = encode_patches(visual, patches, (6, 6))
        torch.testing.assert_close(tower_features(visual, patches), general, atol=1e-5, rtol=1e-5)
        kept, visual.patch_embed = visual.patch_embed, FlatPatches(visual.patch_embed)
        torch.testing.assert_close(tower_features(visual, patches), general, atol=1e-5, rtol=1e-5)
        visual.patch_embed = kept


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(st.integers(1, 32), st.floats(0.3, 4.0)), min_size=1, max_size=5),
       grid=st.sampled_from([(3, 3), (2, 5), (4, 1)]))  # fmt: skip
def test_positions_are_those_of_taro_mllm(rows: list[tuple[int, float]], grid: tuple[int, int]) -> None:
    S, text = 32, 7
    patches, seconds = torch.tensor([r[0] for r in rows]), torch.tensor([r[1] for r in rows], dtype=torch.float64)
    made = batch_positions(patches, seconds, (S, *grid), text, 2.0)
    for row, (count, rate) in enumerate(rows):
        used = count * grid[0] * grid[1]
        mine = torch.cat([made[:, row, : BEFORE + used], made[:, row, BEFORE + S * grid[0] * grid[1] :]], 1)
        cell, extent = video_positions(0, (count, 2 * grid[0], 2 * grid[1]), rate, tokens_per_second=2.0, merge=2)
        wanted, _ = interleaved_positions((BEFORE, text), cell, extent)
        assert torch.equal(mine, wanted)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.integers(1, 32), min_size=1, max_size=5), cells=st.integers(1, 5))
def test_positions_of_stamped_rows_are_those_of_taro_mllm(rows: list[int], cells: int) -> None:
    S, text, run = 32, 7, 3 + cells**2
    made = row_positions(torch.tensor(rows), S, cells, before=BEFORE, text=text)
    cell, extent = video_positions(0, (1, 2 * cells, 2 * cells), 0.0, tokens_per_second=0.0, merge=2)
    for row, count in enumerate(rows):
        mine = torch.cat([made[:, row, : BEFORE + count * run], made[:, row, BEFORE + S * run :]], 1)
        wanted, _ = interleaved_positions((BEFORE + 2, *[3] * (count - 1), 1 + text), cell, extent)
        assert torch.equal(mine, wanted)


def shown(frames_BTHWC: torch.Tensor, patch_px: int) -> torch.Tensor:
    """At the size at which preprocessing shows them, rounded to uint8 as it rounds."""
    B, T = frames_BTHWC.shape[:2]
    side = round(84 / (2 * patch_px)) * 2 * patch_px
    return torch.from_numpy(resize_frames(frames_BTHWC.flatten(0, 1).numpy(), (side, side))).view(B, T, side, side, 3)


def test_log_probabilities_of_examples_are_those_of_taro_mllm(policy: Policy, stock: Any, videos: Videos) -> None:
    """Prompt ids too: what the trainer showed the model is what a user's prompt shows it."""
    batch = videos.mixed.to(torch.device("cpu"))
    patch_px = stock.model.visual.patch_size
    unturned = torch.zeros(len(batch), dtype=torch.bool)
    patches = pixels(shown(videos.frames_FHWC[batch.cells_NT], patch_px), unturned, 0.0, patch_px)
    with torch.no_grad():
        logits = text_logits(stock, batch, patches, before_ids()).masked_fill(policy.banned_V, float("-inf"))
    ours = torch.log_softmax(logits, -1).gather(-1, batch.ids_NR[:, 1:, None])[..., 0]
    for n in range(len(batch)):
        S, start, end = int(batch.patches_N[n]), int(batch.prompt_N[n]), int(batch.total_N[n])
        rate, frames = float(batch.seconds_N[n]), videos.frames_FHWC[batch.cells_NT[n, : 2 * S]].numpy()
        times_s = shown_times_s(round(rate * S / CELL_S))
        features = policy.encode(frames, times_s, FrameSampling(), duration_s=rate * S)
        user = policy.decode(batch.ids_NR[n, 1:start]).removesuffix("\n<|im_start|>assistant\n")
        prompt = policy.prompt(features, user)
        video = video_ids(policy, batch.stamps_NS[n, :S].tolist())
        assert prompt.ids_P.tolist() == [*before_ids().tolist(), *video, *batch.ids_NR[n, :start].tolist()]
        ids = batch.ids_NR[n, start:end][None, None]
        with torch.no_grad():
            wanted = score(policy, [prompt], ids, torch.ones_like(ids, dtype=torch.bool))[0, 0]
        torch.testing.assert_close(ours[n, start - 1 : end - 1], wanted, atol=1e-4, rtol=0)


def video_ids(policy: Policy, stamps: list[int]) -> list[int]:
    pad, start, end = policy.tokenizer.convert_tokens_to_ids(["<|video_pad|>", "<|vision_start|>", "<|vision_end|>"])
    if policy.family.name == "qwen2_5_vl":
        return [pad] * (9 * len(stamps))
    return [i for token in stamps for i in (token, start, *[pad] * 9, end)]


def test_frames_are_resized_as_preprocessing_resizes_them(videos: Videos) -> None:
    """Up to its rounding to uint8, once for rows and once for columns."""
    frames, unturned = videos.frames_FHWC[None, :24], torch.tensor([False])
    apart = (pixels(frames, unturned, 0.0, 16) - pixels(shown(frames, 16), unturned, 0.0, 16)).abs() * 255 * STD[0]
    assert 0 < float(apart.max()) < 3 and float(apart.mean()) < 0.5


def test_the_loss_is_over_the_assistants_tokens_alone(stock: Any, videos: Videos) -> None:
    batch = videos.mixed.to(torch.device("cpu")).select(torch.arange(2))
    patch_px = stock.model.visual.patch_size
    patches = pixels(videos.frames_FHWC[batch.cells_NT], torch.zeros(2, dtype=torch.bool), 0.0, patch_px)
    with torch.no_grad():
        logprobs = torch.log_softmax(text_logits(stock, batch, patches, before_ids()), -1)
        picked = [-logprobs[n, place - 1, batch.ids_NR[n, place]]
                  for n in range(2) for place in range(int(batch.prompt_N[n]), int(batch.total_N[n]))]  # fmt: skip
        loss = token_losses(stock, batch, patches, before_ids())
    torch.testing.assert_close(loss, torch.stack(picked).mean())


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_lower_the_loss_and_leave_the_model_stock(family: str, videos: Videos, tmp_path: Path) -> None:
    model, said = build_model(0, family), []
    tower = {name: x.clone() for name, x in model.model.visual.state_dict().items()}
    embedding = model.model.visual.patch_embed
    schedule = Schedule(12, 4, warmup=2, tower=False, every=100)
    made = train_model(model, videos.frames_FHWC, videos.weak.to(torch.device("cpu")), schedule, compiled=False,
                       say=lambda **facts: said.append(facts), evaluate=lambda _: None)  # fmt: skip
    losses = [facts["loss"] for facts in said if "loss" in facts]
    assert made == 12 and losses[0] > 5 and losses[-1] < losses[0] - 0.1  # the last is a slow average
    assert model.model.visual.patch_embed is embedding
    assert all(torch.equal(x, tower[name]) for name, x in model.model.visual.state_dict().items())
    saved = load_policy(save_model(model, tmp_path / "model"))
    kept = model.model.language_model.layers[0].mlp.up_proj.weight
    torch.testing.assert_close(saved.language_model.lm.layers[0].mlp.up_proj.weight, kept.bfloat16().float())


def test_a_seed_repeats_its_weights_to_the_bit_on_a_cpu(videos: Videos) -> None:
    made = []
    for seed in (0, 0, 1):
        model = build_model(seed)
        train_model(model, videos.frames_FHWC, videos.mixed.to(torch.device("cpu")), Schedule(2, 2, seed=seed, every=9),
                    compiled=False, say=lambda **_: None, evaluate=lambda _: None)  # fmt: skip
        made.append(model.model.language_model.embed_tokens.weight.detach().clone())
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


def test_the_schedule_warms_up_and_falls_by_step_count() -> None:
    schedule = Schedule(100, rate=1.0, warmup=10, floor=0.02)
    rates = [schedule.rate_at(step) for step in range(1, 101)]
    assert rates[4] == pytest.approx(0.5) and max(rates) == rates[9] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.02) and all(a > b for a, b in pairwise(rates[9:]))


def many(make: Any, count: int = 3000) -> list[tuple[World, Any]]:
    draw = np.random.default_rng(0)
    worlds = [make_world(3_950_000 + n) for n in range(300)]
    return [(worlds[n % 300], make(worlds[n % 300], draw)) for n in range(count)]


def close(share: float, expected: float, count: int) -> None:
    """Within four standard errors."""
    assert abs(share - expected) < 4 * (expected * (1 - expected) / count) ** 0.5, f"{share:.3f}, {expected:.3f}"


def test_mixed_examples_have_the_shares_of_their_constants_and_are_true() -> None:
    made, kinds = many(mixed_example), Counter[str]()
    for world, example in made:
        kind = {"when": "ground", "what": "at"}.get(example.user.split()[0], example.user.split()[-1].rstrip("."))
        kinds[{"events": "describe"}.get(kind, kind)] += 1
        if kind not in ("ground", "events"):
            continue
        first = example.cells[0]
        assert example.cells == tuple(range(first, first + len(example.cells))) and len(example.cells) % 2 == 0
        seen = world.crop(first, first + len(example.cells))
        captions = [(c.start_s, c.end_s, c.text) for c in parse_captions(example.assistant)]
        assert captions == [(m.start_s, m.end_s, text) for m, text in seen.captions]
        if kind == "ground":
            query = example.user.removeprefix("when does ").removesuffix(" happen?")
            number = [seen.query(n) for n in range(len(seen.events))].index(query)
            assert format_ok(example.assistant) and parse_answer(example.assistant) == seen.events[number].moment
    for kind, share in TASKS.items():
        close(kinds[kind] / len(made), share, len(made))


def test_weak_examples_are_as_silent_and_as_wrong_as_their_constants_say() -> None:
    made = many(weak_example)
    silent, wrong, shifts = [], [], set()
    for world, example in made:
        assert format_ok(example.assistant)
        captions = parse_captions(example.assistant)
        assert {(c.start_s, c.text) for c in captions} <= {(m.start_s, text) for m, text in world.captions}
        silent.append(not captions)
        query = example.user.removeprefix("when does ").removesuffix(" happen?")
        event = next(e for n, e in enumerate(world.events) if world.query(n) == query)
        answer = parse_answer(example.assistant)
        assert answer is not None
        low, high = round(answer.start_s / CELL_S) - event.start, round(answer.end_s / CELL_S) - event.end
        wrong.append(max(abs(low), abs(high)) > SHIFT_CELLS)
        shifts |= set() if wrong[-1] else {low}
    assert shifts == set(range(-SHIFT_CELLS, SHIFT_CELLS + 1))
    # a random subset may be empty, a random event may be the right one
    events = np.array([len(world.events) for world, _ in made])
    close(float(np.mean(silent)), float(np.mean(WEAK_SILENT + (1 - WEAK_SILENT) / (events + 1))), len(made))
    close(float(np.mean(wrong)), float(np.mean(WEAK_WRONG * (1 - 1 / events))), len(made))


def test_labels_are_true_of_their_cells(videos: Videos) -> None:
    assert len(SENTENCES) == len(set(SENTENCES)) == videos.labels_FL.shape[1]
    actions, start = tuple(f"{action}." for action in ACTIONS), 0
    for seed in (3_950_100, 3_950_101):
        world = make_world(seed)
        labels = videos.labels_FL[start : start + world.cells].numpy()
        assert np.array_equal(labels, sentence_labels(world, WorldSettings()))
        start += world.cells
        for cell in range(world.cells):
            going_on = {f"{world.phrase(e)}." for e in world.events if e.start <= cell < e.end}
            labelled = {text for text, true in zip(SENTENCES, labels[cell], strict=True)
                        if true and text.endswith(actions)}  # fmt: skip
            assert labelled == going_on and labels[cell, QUIET] == (not going_on)


def test_videos_do_not_depend_on_the_number_of_processes(videos: Videos) -> None:
    again = make_videos(Plan(4, 3_950_100, mixed=3, labelled=2, processes=2), WorldSettings(), lambda _: None)
    assert torch.equal(again.frames_FHWC, videos.frames_FHWC)
    assert torch.equal(again.mixed.ids_NR, videos.mixed.ids_NR) and torch.equal(again.labels_FL, videos.labels_FL)


@pytest.mark.slow
def test_a_tiny_build_leaves_models_that_stock_classes_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import open_clip
    from transformers import AutoModelForImageTextToText, AutoProcessor

    size = BuildSettings.quick(videos=16, steps=2, weak_steps=1, clip_steps=2, held_out=2)
    scores = build_sandbox(tmp_path, size)
    models = ["captioner", "policy", "captioner-qwen3-vl", "policy-qwen3-vl"]
    assert set(scores) == {*models, "clip"}
    for name in models:
        AutoModelForImageTextToText.from_pretrained(tmp_path / name)
        AutoProcessor.from_pretrained(tmp_path / name)
        assert "segments_right" in scores["captioner"]
    open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'clip'}")
    stages = [json.loads(line)["stage"] for line in (tmp_path / "training-log.jsonl").read_text().splitlines()]
    assert [s for s, before in zip(stages, ["", *stages], strict=False) if s != before] == [
        "build", "data", "held-out", *models, "clip", "done"]  # fmt: skip
    (tmp_path / "training-log.jsonl").write_text("".join(
        line for line in (tmp_path / "training-log.jsonl").read_text().splitlines(keepends=True)
        if not (json.loads(line)["stage"] == "policy" and "finished" in json.loads(line))) + '{"stage": "to')
    assert build_sandbox(tmp_path, size) == scores  # goes on: the policy again, from the captioner on disk
    text = (tmp_path / "training-log.jsonl").read_text()
    assert [json.loads(line)["stage"] for line in text.splitlines() if "taken_up" in line] == [
        "captioner", "captioner-qwen3-vl", "policy-qwen3-vl", "clip"]  # fmt: skip
    with pytest.raises(ConfigError, match="steps: 2 there, 3 now"):
        build_sandbox(tmp_path, replace(size, steps=3))
    assert "own_caption" in (tmp_path / "clip" / "README.md").read_text()
    assert "boundary_recall" in capsys.readouterr().out
