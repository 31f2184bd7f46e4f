"""Checkpoints: any number of ranks reads what any number wrote, whatever is kept of each parameter; damage is found by
all; errors of the thread that writes come out; the older version is read."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import logging
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from taro.core.errors import TaroError
from taro.train import checkpoint
from taro.train.checkpoint import (
    DamagedError,
    RunState,
    Saver,
    blocks,
    checkpoints,
    load_checkpoint,
    prune_checkpoints,
    read_state,
    resume_checkpoint,
    save_checkpoint,
    staging,
)
from taro.train.optimizer.optimizer import Optimizer
from taro.train.ranks import ALONE, Ranks
from taro.train.settings.update import OptimizerConfig, States
from tests.helpers_faults import ROOT
from tests.train.ranks_of_threads import on_ranks

ONE = "rank-00000-of-00001.safetensors"
SHAPES = {"lm.layers.0.a": (3, 2), "lm.layers.0.b": (700,), "lm.layers.1.c": (40, 30), "head": (257,)}
STATES: tuple[States, ...] = ("float32", "bfloat16", "8bit")


def optimizer_of(states: States = "float32", ranks: Ranks = ALONE, *, seed: int = 0,
                 dtype: torch.dtype = torch.float32, shapes: dict[str, Any] = SHAPES) -> Optimizer:
    """Of parameters that the seed draws."""
    generator = torch.Generator().manual_seed(seed)
    named = {name: torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
             for name, shape in shapes.items()}
    return Optimizer(named.items(), OptimizerConfig(states=states, lr=0.1), ranks)


def fill(optimizer: Optimizer) -> dict[tuple[str, str], list[float]]:
    """Fills every piece with numbers that say which element of which tensor they are; those."""
    optimizer.steps, found = 7, {}
    for piece in optimizer.pieces():
        numbers = torch.arange(piece.start, piece.start + piece.tensor.numel()) + sum(map(ord, piece.name + piece.kind))
        piece.tensor.copy_(numbers % 101)
        found[piece.name, piece.kind] = (torch.arange(piece.whole) + sum(map(ord, piece.name + piece.kind))) % 101
    return {key: values.tolist() for key, values in found.items()}


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


class Bare:
    """A small optimizer that has taken steps, and its checkpoints."""

    def __init__(self, folder: Path) -> None:
        self.optimizer, self.folder = optimizer_of(), folder

    def save(self, step: int, **state: Any) -> Path:
        self.optimizer.begin()
        for slot in self.optimizer.slots:
            slot.parameter.grad = torch.full_like(slot.parameter, float(step))
        self.optimizer.step(0.1)
        return save_checkpoint(self.folder, self.optimizer, RunState(step=step, **state))


def assert_equal(one: Optimizer, other: Optimizer) -> None:
    for a, b in zip(one.pieces(), other.pieces(), strict=True):
        assert torch.equal(a.tensor, b.tensor), (a.name, a.kind)
    assert one.steps == other.steps


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("states", STATES)
def test_any_number_of_ranks_reads_what_any_number_wrote(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, states: States, background: bool) -> None:
    """1 -> 2 -> 3 -> 1 ranks; blocks and chunks so small that pieces lie in several."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(staging, "CHUNK_BYTES", 4096)
    dtype = torch.bfloat16 if states == "8bit" else torch.float32
    expected: dict[Any, Any] = {}

    def turn(ranks: Ranks) -> list[Any]:
        optimizer = optimizer_of(states, ranks, dtype=dtype)
        state = resume_checkpoint(tmp_path, optimizer, ranks=ranks)
        if state is None:
            expected.update(fill(optimizer))
            state = RunState()
        state.step += 1
        saver = Saver(tmp_path, optimizer, ranks=ranks, keep=1, background=background)
        saver.save(state)
        kept = [(one.name, one.kind, one.start, one.tensor.tolist()) for one in optimizer.pieces()]
        for one in optimizer.pieces():  # training goes on: what is staged is not what is in the optimizer now
            if background:
                one.tensor.zero_()
        saver.finish()
        saver.close()
        assert optimizer.steps == 7
        whole = [optimizer.slots[0].parameter.data.flatten().tolist()] if not background else []
        return [kept, whole]

    for step, world in enumerate((1, 2, 3, 1), 1):
        found = on_ranks(world, turn)
        files = {path.name for path in (tmp_path / f"step-{step:06d}").iterdir()}
        assert files == {"state.json", *(f"rank-{rank:05d}-of-{world:05d}.{end}" for rank in range(world)
                                         for end in ("json", "safetensors"))}
        assert [path.name for path in tmp_path.iterdir()] == [f"step-{step:06d}"]
        for one in found:
            assert isinstance(one, list), one
            for name, kind, start, values in one[0]:
                assert values == expected[name, kind][start : start + len(values)], (name, kind, world)
            if one[1]:  # the compute weights of every rank are whole
                assert one[1][0] == expected["lm.layers.0.a", "weight"]
    assert len(load_file(tmp_path / "step-000004" / ONE)) == len(expected), "the library reads it"


def test_master_weights_come_back_to_compute_weights(tmp_path: Path) -> None:
    optimizer = optimizer_of(dtype=torch.bfloat16)
    for piece in optimizer.pieces():
        piece.tensor.copy_(torch.rand(piece.tensor.shape))
    save_checkpoint(tmp_path, optimizer, RunState(step=1))
    other = optimizer_of(dtype=torch.bfloat16, seed=1)
    resume_checkpoint(tmp_path, other)
    assert_equal(optimizer, other)
    for slot in other.slots:
        assert slot.is_copy and torch.equal(slot.flat, slot.weight.bfloat16())


def test_a_checkpoint_of_an_older_taro_is_read(tmp_path: Path) -> None:
    """Written by taro 0.2: two AdamW steps, gradients 1 and 2, of `a` and `b`; `unused` never had one."""
    shutil.copytree(Path(__file__).parent / "data/version-1/step-000002", tmp_path / "step-000002")
    torch.manual_seed(0)
    named = {"a": torch.nn.Parameter(torch.randn(3, 2)), "b": torch.nn.Parameter(torch.randn(700)),
             "unused": torch.nn.Parameter(torch.ones(3))}
    plain = torch.optim.AdamW(named.values(), lr=0.1)
    for step in (1.0, 2.0):
        for name in ("a", "b"):
            named[name].grad = torch.full_like(named[name], step)
        plain.step()
    shapes = {name: tuple(one.shape) for name, one in named.items()}

    def read(ranks: Ranks) -> dict[Any, Any]:
        optimizer = optimizer_of(ranks=ranks, shapes=shapes)
        state = resume_checkpoint(tmp_path, optimizer, ranks=ranks, facts={"optimizer.states": "float32"})
        assert state == RunState(step=2, skipped=1, best_step=2, best_score=0.5) and optimizer.steps == 2
        return {(one.name, one.kind): (one.start, one.tensor) for one in optimizer.pieces()}

    for world in (1, 2):
        for found in on_ranks(world, read):
            assert isinstance(found, dict), found
            for (name, kind), (start, tensor) in found.items():
                whole = named[name].data if kind == "weight" else plain.state[named[name]].get(kind, torch.zeros(3))
                assert torch.equal(tensor, whole.reshape(-1)[start : start + len(tensor)]), (name, kind)
    with pytest.raises(TaroError, match=r"holds float32 weights and moments\); resume with optimizer.states=float32"):
        resume_checkpoint(tmp_path, optimizer_of("8bit", dtype=torch.bfloat16, shapes=shapes))


@pytest.mark.parametrize("what", ["states", "lora", "size", "name", "dtype"])
def test_what_another_run_wrote_is_refused_with_what_differs(tmp_path: Path, what: str) -> None:
    save_checkpoint(tmp_path, optimizer_of(), RunState(step=1))
    facts, other, said = dict[str, Any](), optimizer_of(), ""
    if what == "states":
        facts, said = {"optimizer.states": "8bit"}, "Changed: optimizer.states: None -> 8bit"
    elif what == "lora":
        save_checkpoint(tmp_path, optimizer_of(), RunState(step=1), facts={"lora.rank": 16, "lora.targets": ["a"]})
        facts, said = {"lora.rank": 8, "lora.targets": ["a"]}, "Changed: lora.rank: 16 -> 8$"
    elif what == "size":
        other = optimizer_of(shapes={**SHAPES, "head": (258,)})
        said = "not this policy's.*'head'.*257 x F32 there, 258 x F32 here"
    elif what == "name":
        other = optimizer_of(shapes={**SHAPES, "lora": (4,)})
        said = "weights are not this policy's.*'lora'.*none there, 4 x F32 here"
    else:
        other, said = optimizer_of("bfloat16"), "optimizer state is not this run's.*F32 there, .*BF16 here"
    with pytest.raises(TaroError, match=said) as caught:
        resume_checkpoint(tmp_path, other, facts=facts)
    assert not isinstance(caught.value, DamagedError) and len(checkpoints(tmp_path)) == 1


def test_what_one_rank_finds_damaged_all_leave_out(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1000)

    def write(ranks: Ranks) -> None:
        optimizer = optimizer_of(ranks=ranks)
        fill(optimizer)
        for step in (1, 2):
            save_checkpoint(tmp_path, optimizer, RunState(step=step), ranks=ranks)

    assert on_ranks(2, write) == [None, None]
    flip(tmp_path / "step-000002/rank-00001-of-00002.safetensors", -1)
    with caplog.at_level(logging.WARNING):
        found = on_ranks(3, lambda ranks: resume_checkpoint(tmp_path, optimizer_of(ranks=ranks), ranks=ranks))
    assert found == [RunState(step=1)] * 3
    assert {path.name for path in tmp_path.iterdir()} == {"step-000001", "damaged-step-000002"}
    assert caplog.text.count("the run goes on from step-000001") == 1
    flip(tmp_path / "step-000001/rank-00000-of-00002.json", 20)
    for error in on_ranks(2, lambda ranks: resume_checkpoint(tmp_path, optimizer_of(ranks=ranks), ranks=ranks)):
        assert isinstance(error, TaroError) and "expected a whole checkpoint, got 1 damaged" in str(error)


class FullDisk:
    """Lets one rank's thread meet a full disk, once it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.go = threading.Event()

        def write(path: Path, *args: Any, **knobs: Any) -> list[str]:
            if path.name == name:
                assert self.go.wait(30)
                path.write_bytes(b"half")
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            return blocks.write_blocks(path, *args, **knobs)

        monkeypatch.setattr("taro.train.checkpoint.save.write_blocks", write)


@pytest.mark.parametrize("world", [1, 2])
def test_a_disk_that_fills_up_in_the_background_is_said_by_all_and_nothing_is_left(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: int) -> None:
    disk = FullDisk(monkeypatch, f"rank-{world - 1:05d}-of-{world:05d}.safetensors")

    def work(ranks: Ranks) -> Any:
        saver = Saver(tmp_path, optimizer_of(ranks=ranks), ranks=ranks, keep=1)
        saver.save(RunState(step=1))
        saver.poll()  # nobody waits
        ranks.gather(b"")
        disk.go.set()
        try:
            saver.finish()
        except OSError as error:
            return error.errno, Path(error.filename).name, saver.newest
        finally:
            saver.close()

    name = f"rank-{world - 1:05d}-of-{world:05d}.safetensors"
    assert on_ranks(world, work) == [(errno.ENOSPC, name, None)] * world
    assert list(tmp_path.iterdir()) == []


def test_training_does_not_wait_for_the_disk_and_the_next_checkpoint_does(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, plain = threading.Event(), blocks.write_blocks

    def slow(*args: Any, **knobs: Any) -> list[str]:
        assert go.wait(30)
        return plain(*args, **knobs)

    monkeypatch.setattr("taro.train.checkpoint.save.write_blocks", slow)
    bare = Bare(tmp_path)
    saver = Saver(tmp_path, bare.optimizer, keep=1)
    saver.save(RunState(step=1))
    saver.poll()
    assert checkpoints(tmp_path) == [] and saver.newest == 1
    threading.Timer(0.05, go.set).start()
    saver.save(RunState(step=2))
    assert (tmp_path / "step-000001").is_dir(), "the one before is whole when the next begins"
    saver.close()
    assert [path.name for path in tmp_path.iterdir()] == ["step-000002"]


def test_where_host_memory_is_short_training_waits_and_that_is_said(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("taro.train.checkpoint.save.free_host_bytes", lambda: 1000)
    with caplog.at_level(logging.WARNING):
        saver = Saver(tmp_path, optimizer_of(), keep=1)
    assert "written while training waits: to stage 0.0 GB takes as much host memory" in caplog.text
    saver.save(RunState(step=1))
    assert checkpoints(tmp_path), "it is there when `save` returns"
    saver.close()


@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "flipped", "folder"])
@pytest.mark.parametrize("name", [ONE, "rank-00000-of-00001.json", "state.json"])
def test_whatever_happens_to_a_file_the_newest_whole_checkpoint_is_loaded(
        tmp_path: Path, damage: str, name: str) -> None:
    bare = Bare(tmp_path)
    first, second = bare.save(1), bare.save(2)
    kept = {path.name: path.read_bytes() for path in first.iterdir()}
    path = second / name
    data = path.read_bytes()
    if damage in ("gone", "folder"):
        path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage == "flipped":
        flip(path, len(data) // 2)
    elif damage != "gone":
        path.write_bytes(data[: len(data) // 2 if damage == "cut" else 0])
    fresh = Bare(tmp_path)
    assert resume_checkpoint(tmp_path, fresh.optimizer) == RunState(step=1)
    assert (tmp_path / "damaged-step-000002").is_dir() and checkpoints(tmp_path) == [first]
    assert {path.name: path.read_bytes() for path in first.iterdir()} == kept
    bare.save(2)
    flip(tmp_path / "step-000002" / ONE, -1)
    resume_checkpoint(tmp_path, fresh.optimizer)
    assert {path.name for path in tmp_path.iterdir()} == {"step-000001", "damaged-step-000002", "damaged-step-000002-2"}


def test_any_flipped_bit_of_a_state_is_found(tmp_path: Path) -> None:
    path = Bare(tmp_path).save(7, best_step=5, best_score=0.25) / "state.json"
    whole = path.read_bytes()
    found = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            assert read_state(path.parent) == RunState(step=7, best_step=5, best_score=0.25), place
        except TaroError:
            found += 1
    assert found > 0.8 * len(whole), "only a blank may change unseen"


def test_a_lie_with_right_digests_is_damage_and_no_traceback(tmp_path: Path) -> None:
    """The table says what the file does not hold."""
    path = Bare(tmp_path).save(1)
    table, state = path / "rank-00000-of-00001.json", path / "state.json"
    content, said = checkpoint.state.read_content(path), json.loads(table.read_bytes())
    for change in ([["x", "weight", 9, 0, 9, "F32"]], [[*said["pieces"][0][:3], 1, *said["pieces"][0][4:]]],
                   [[*said["pieces"][0][:5], "I8"]], [5], [*said["pieces"], said["pieces"][0]], 3):
        data = json.dumps({**said, "pieces": change}).encode()
        table.write_bytes(data)
        content.files[table.name] = hashlib.sha256(data).hexdigest()
        checkpoint.state.write_content(path, content)
        with pytest.raises(DamagedError, match="damaged"):
            load_checkpoint(path, optimizer_of())
    assert state.is_file()


def test_where_no_checkpoint_is_whole_the_run_is_refused_and_nothing_is_moved(tmp_path: Path) -> None:
    bare = Bare(tmp_path)
    for step in (1, 2):
        flip(bare.save(step) / ONE, -1)
    with pytest.raises(TaroError, match=r"got 2 damaged ones \(.*step-000002.*step-000001.*move the checkpoints"):
        resume_checkpoint(tmp_path, bare.optimizer)
    assert {path.name for path in tmp_path.iterdir()} == {"step-000001", "step-000002"}


def test_a_kept_checkpoint_keeps_its_best_too_and_steps_are_numbers(tmp_path: Path) -> None:
    bare = Bare(tmp_path)
    for step, best in ((1, None), (2, 2), (3, 2), (4, 4), (999_999, 4), (1_000_000, 1_000_000)):
        bare.save(step, best_step=best)
    (tmp_path / ".tmp-pruned-step-000001/of a pruning that was killed").mkdir(parents=True)
    prune_checkpoints(tmp_path, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000004", "step-999999", "step-1000000"]
    assert len(list(tmp_path.iterdir())) == 3
    assert load_checkpoint(checkpoints(tmp_path)[-1], bare.optimizer).step == 1_000_000


def test_blocks_are_the_files_own_whatever_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 10)
    monkeypatch.setattr(blocks, "FORCE_BLOCKS", 2)
    data = bytes(range(95))
    expected = [hashlib.sha256(data[at : at + 10]).hexdigest() for at in range(0, 95, 10)]
    for cuts, ahead in itertools.product(([95], [0, 7, 0, 3, 30, 55], [1] * 95), (None, 0, 1)):
        ends = [0, *itertools.accumulate(cuts)]
        parts = [memoryview(data)[a:b] for a, b in itertools.pairwise(ends)]
        assert blocks.write_blocks(tmp_path / "x", parts, ahead=ahead, stop=threading.Event()) == expected
        assert (tmp_path / "x").read_bytes() == data
    assert blocks.wrong_blocks(tmp_path / "x", expected, 95, range(10)) == []
    flip(tmp_path / "x", 25)
    assert blocks.wrong_blocks(tmp_path / "x", expected, 95, [1, 2, 9]) == [2]
    assert blocks.wrong_blocks(tmp_path / "x", expected, 94, [1]) == [1], "another size is no block's fault"


def test_ranks_killed_at_any_moment_end_as_one_process_that_was_not() -> None:
    """Real processes, killed while they write; started again as two, one or three."""
    done = subprocess.run([sys.executable, "benchmarks/kill_ranks.py", "--kills", "4"], cwd=ROOT, capture_output=True,
                          text=True, check=False)
    found = json.loads(done.stdout or "{}")
    assert done.returncode == 0 and found["kills"] == 4 and not found["problems"], (done.stdout, done.stderr)
    assert found["left"].get(".tmp-step-", 0) >= 1, "some were killed while they wrote"
