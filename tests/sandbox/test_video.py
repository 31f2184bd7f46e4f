"""Sandbox videos: what is decoded is what was rendered, in equal bytes, and the stages read the folder as it is."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from taro.annotations import import_annotations
from taro.annotations.rows import Kept
from taro.core.errors import ConfigError
from taro.grounding.moment import Moment
from taro.models.features import FrameSampling
from taro.models.load import load_policy
from taro.preprocess.video.decode import DecodeJob, decode_clip
from taro.preprocess.video.inspect import inspect_video
from taro.sandbox import make_sandbox, weights_folder
from taro.sandbox.make import TEST_SEED, TRAIN_SEED
from taro.sandbox.tasks import mixed_example
from taro.sandbox.video import decode_cells, encode_video, render_cells
from taro.sandbox.world import CELL_S, World, WorldSettings, make_world

SEEDS = range(3_950_000, 3_950_006)
SETTINGS = [WorldSettings(), WorldSettings(fps=2), WorldSettings(fps=30, overlap=1), WorldSettings(size_px=140)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sandbox(tmp_path_factory.mktemp("sandbox"), videos=6, seed=1, queries_per_video=12)


def world_of(name: str) -> World:
    return make_world(int(name.removeprefix("world-").removesuffix(".mp4")))


@pytest.mark.parametrize("settings", SETTINGS, ids=["default", "fps 2", "fps 30 overlap", "140 px"])
def test_decoded_cells_show_what_was_rendered(settings: WorldSettings) -> None:
    for seed in SEEDS[:3]:
        world = make_world(seed, settings)
        rendered = render_cells(world, settings).astype(np.int16)
        decoded = decode_cells(io.BytesIO(encode_video(world, settings))).astype(np.int16)
        assert decoded.shape == rendered.shape
        error = np.abs(decoded - rendered).mean((1, 2, 3))
        assert error.max() < 4, f"seed {seed}: cell {error.argmax()} is {error.max():.1f} of 255 off"
        for cell, shown in enumerate(decoded):
            nearest = int(np.abs(rendered - shown).mean((1, 2, 3)).argmin())
            assert np.array_equal(rendered[nearest], rendered[cell]), f"cell {cell} shows cell {nearest}"


def test_only_visible_objects_are_drawn() -> None:
    world = make_world(SEEDS[0])
    bare = World(world.seed, world.cells, (), (), world.state[:0])
    assert np.unique(render_cells(bare)).tolist() == [31]
    hidden = World(world.seed, world.cells, world.objects, (), world.state * np.array([1, 1, 1, 0])[None, :, None])
    assert np.unique(render_cells(hidden)).tolist() == [31]
    assert len(np.unique(render_cells(world))) > 31


def test_equal_worlds_give_equal_bytes_and_noise_is_drawn_from_the_seed() -> None:
    world, noisy = make_world(SEEDS[1]), WorldSettings(noise=0.05)
    made: dict[bool, set[bytes]] = {False: set(), True: set()}
    for repeat in range(6):
        used = [np.full(20_000 + 61 * n, (repeat * 37 + n) % 256, np.uint8) for n in range(200)]
        del used  # memory that is not zero: what an encoder forgets to clear shows
        for noise in made:
            made[noise].add(encode_video(make_world(SEEDS[1]), noisy if noise else None))
    (plain,), (grainy,) = made.values()
    assert plain == encode_video(world)
    shown, still = (decode_cells(io.BytesIO(b)).astype(float) for b in (grainy, plain))
    assert 1 < np.abs(shown - still).mean() < 255 * 0.05


def test_a_folder_does_not_depend_on_the_number_of_processes(folder: Path, tmp_path: Path) -> None:
    other = make_sandbox(tmp_path / "again", videos=6, seed=1, queries_per_video=12, workers=2)
    files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(other) for p in other.rglob("*") if p.is_file())
    assert len(files) == 6 + 2
    assert all((folder / f).read_bytes() == (other / f).read_bytes() for f in files)


def test_annotations_are_the_worlds_truth_and_every_row_is_kept(folder: Path) -> None:
    report = import_annotations(folder / "annotations.jsonl", dataset="sandbox")
    assert all(isinstance(outcome, Kept) for outcome in report.outcomes)
    facts = json.loads((folder / "world.json").read_text())
    worlds = [make_world(TRAIN_SEED + 100_000 + n) for n in range(6)]
    assert len(report.rows) == facts["queries"] == sum(len(w.events) for w in worlds)
    for row in report.rows:
        world = world_of(row.video)
        number = [world.query(n) for n in range(len(world.events))].index(row.query)
        assert row.windows == (world.events[number].moment,)
        assert row.duration_s == world.duration_s == inspect_video(folder / "videos" / row.video).duration_s
        assert row.captions is not None
        assert [(c.start_s, c.end_s, c.text) for c in row.captions] == [
            (m.start_s, m.end_s, text) for m, text in world.captions
        ]


def test_splits_share_no_world_with_each_other_or_with_training(tmp_path: Path) -> None:
    held = make_sandbox(tmp_path, videos=2, split="test", queries_per_video=1)
    rows = import_annotations(held / "annotations.jsonl", dataset="sandbox").rows
    assert [row.video for row in rows] == [f"world-{TEST_SEED}.mp4", f"world-{TEST_SEED + 1}.mp4"]
    assert {row.split for row in rows} == {"test"}
    assert TRAIN_SEED > 1_000_000 and TRAIN_SEED + 10 * 100_000 <= TEST_SEED


@pytest.mark.parametrize("wrong", [{"videos": 0}, {"videos": 1, "seed": 10}, {"videos": 1, "seed": 9, "split": "test"},
                                   {"videos": 1, "queries_per_video": 0}])  # fmt: skip
def test_what_cannot_be_made_is_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="expected 1 to 100,000 videos"):
        make_sandbox(tmp_path, **wrong)  # type: ignore[arg-type]


def test_annotations_that_somebody_may_use_are_not_replaced(tmp_path: Path) -> None:
    out = make_sandbox(tmp_path / "a", videos=2, queries_per_video=1)
    before = (out / "annotations.jsonl").read_bytes()
    for how, told in (({"videos": 1}, "videos 2 there, 1 now"), ({"videos": 2, "seed": 3}, "seed 0 there, 3 now"),
                      ({"videos": 2, "queries_per_video": 2}, "queries_per_video 1 there, 2 now"),
                      ({"videos": 2, "settings": WorldSettings(noise=0.5)}, "settings .* now")):  # fmt: skip
        with pytest.raises(ConfigError, match=f"holds other annotations already .*{told}"):
            make_sandbox(out, **{"queries_per_video": 1, **how})  # type: ignore[arg-type]
    assert (out / "annotations.jsonl").read_bytes() == before and len(list((out / "videos").iterdir())) == 2
    (out / "world.json").unlink()  # killed just before the end: the same arguments finish it, others do not
    with pytest.raises(ConfigError, match="none of a sandbox"):
        make_sandbox(out, videos=1, queries_per_video=1)
    make_sandbox(out, videos=2, queries_per_video=1)
    assert (out / "annotations.jsonl").read_bytes() == before and (out / "world.json").is_file()


def test_preprocessing_sees_the_cells_at_exactly_one_second_per_patch(folder: Path) -> None:
    policy = load_policy(weights_folder("policy"), tower=True)
    for path in sorted((folder / "videos").iterdir()):
        world = world_of(path.name)
        frames = decode_clip(DecodeJob(path, FrameSampling()))
        assert frames.duration_s == world.duration_s
        assert np.array_equal(np.floor(frames.times_s / CELL_S), np.arange(world.cells))
        assert np.array_equal(frames.frames_THWC, decode_cells(path))
        features = policy.encode(frames.frames_THWC, frames.times_s, FrameSampling(), duration_s=frames.duration_s)
        assert features.seconds_per_patch == 1.0
        assert features.grid_thw == (world.cells // 2, 6, 6)


@pytest.mark.parametrize("duration_s", range(16, 33))
def test_every_duration_of_the_defaults_gives_exactly_one_second_per_patch(duration_s: int, tmp_path: Path) -> None:
    """The mp4's own numbers, without drawing much: one still object."""
    world = make_world(SEEDS[0])
    still = World(0, 2 * duration_s, world.objects[:1], (), np.repeat(world.state[:1, :, :1], 2 * duration_s, 2))
    path = tmp_path / "still.mp4"
    path.write_bytes(encode_video(still))
    frames = decode_clip(DecodeJob(path, FrameSampling()))
    assert frames.duration_s / (len(frames.frames_THWC) // 2) == 1.0


def test_segments_in_training_show_the_frames_that_preprocessing_shows(folder: Path) -> None:
    """A "describe the segment." example has the cells and the seconds per patch of a clip cut from the file."""
    checked = 0
    for path in sorted((folder / "videos").iterdir())[:3]:
        world = world_of(path.name)
        for number in range(30):
            example = mixed_example(world, np.random.default_rng(number))
            if example.user != "describe the segment.":
                continue
            span = Moment(example.cells[0] * CELL_S, (example.cells[-1] + 1) * CELL_S)
            frames = decode_clip(DecodeJob(path, FrameSampling(), clip=span))
            cells = np.floor((frames.times_s + span.start_s) / CELL_S).astype(int)
            assert cells.tolist() == list(example.cells)
            assert frames.duration_s / (len(cells) // 2) == pytest.approx(example.seconds_per_patch, abs=1e-9)
            checked += 1
    assert checked > 5


def test_frames_become_the_tensors_that_the_trainer_used(folder: Path) -> None:
    from taro.models.families.pixels import normalise, to_patches
    from taro.sandbox.models import MEAN, STD
    from taro.sandbox.net import pixels

    frames = torch.from_numpy(decode_cells(next((folder / "videos").iterdir())))
    mine = pixels(frames[None], torch.tensor([False]), 0.0)
    torch.testing.assert_close(mine, to_patches(normalise(frames, mean=MEAN, std=STD)), atol=1e-5, rtol=0)
    flipped = pixels(frames[None], torch.tensor([True]), 0.0)
    torch.testing.assert_close(flipped, pixels(frames.flip(2)[None], torch.tensor([False]), 0.0))
