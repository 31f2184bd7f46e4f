"""The optimizer beside torch's own, its short states beside full ones, and its slices beside the whole."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from taro.train.config import OptimizerConfig
from taro.train.optimizer.moments import Bfloat16, EightBit
from taro.train.optimizer.optimizer import Optimizer
from taro.train.optimizer.pieces import BLOCK, bounds
from taro.train.optimizer.rounding import element_bits, name_key, round_bfloat16
from taro.train.optimizer.slot import AdamW, adamw, adamw_fused
from taro.train.ranks import Ranks

STATES = ("float32", "bfloat16", "8bit")
SHAPES = {"embed.weight": (40, 24), "layers.0.a": (33, 17), "layers.0.norm": (17,), "layers.1.a": (64, 32),
          "head": (3,)}  # fmt: skip


def parameters(dtype: torch.dtype, seed: int = 0) -> dict[str, torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.nn.Parameter((torch.randn(shape, generator=generator, dtype=torch.float64) * 0.02).to(dtype))
            for name, shape in SHAPES.items()}  # fmt: skip


def gradients(step: int, micro: int, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * step + micro)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            for name, shape in SHAPES.items()}  # fmt: skip


def backward(named: dict[str, torch.nn.Parameter], found: dict[str, torch.Tensor], missing: str = "") -> None:
    """Leaves these gradients by a real backward pass."""
    parts = [(one * found[name].to(one.dtype)).sum() for name, one in named.items() if name != missing]
    torch.stack(parts).sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_in_full_precision_it_is_torchs_adamw_bit_for_bit(dtype: torch.dtype) -> None:
    config = OptimizerConfig(lr=1e-3, weight_decay=0.1, grad_clip=0.5, betas=(0.9, 0.95))
    ours, theirs = parameters(dtype), parameters(dtype)
    optimizer = Optimizer(ours.items(), config)
    stock = torch.optim.AdamW(theirs.values(), lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95), eps=config.eps)
    for step in range(20):
        for micro in range(3):
            backward(ours, gradients(step, micro))
            backward(theirs, gradients(step, micro))
            optimizer.collect()
        norm = optimizer.norm()
        assert norm == float(torch.nn.utils.clip_grad_norm_(theirs.values(), 0.5))
        optimizer.step(1e-3, optimizer.clipped(norm))
        optimizer.begin()
        stock.step()
        stock.zero_grad()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_fused_update_is_the_plain_one_to_its_last_bits() -> None:
    """The kernel that a GPU runs has a CPU version: ten updates with decay, 1e-6 relative."""
    generator = torch.Generator().manual_seed(0)
    plain = [torch.randn(1000, generator=generator), torch.zeros(1000), torch.zeros(1000)]
    fused = [one.clone() for one in plain]
    for step in range(1, 11):
        gradient = torch.randn(1000, generator=generator)
        how = AdamW(1e-2, 1.0, step, (0.9, 0.99), 1e-8, 0.1, 0)
        adamw(plain[0], gradient, plain[1], plain[2], how)
        adamw_fused(fused[0], gradient, fused[1], fused[2], how)
    for ours, theirs in zip(plain, fused, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_a_parameter_is_cut_at_blocks_and_no_element_is_lost() -> None:
    for elements in (1, 255, 256, 257, 5000):
        for world in (1, 2, 3, 7):
            cuts = [bounds(elements, rank, world) for rank in range(world)]
            assert cuts[0][0] == 0 and cuts[-1][1] == elements
            assert all(a[1] == b[0] and b[0] % BLOCK in (0, elements % BLOCK) for a, b in itertools.pairwise(cuts))


def test_rounding_by_chance_is_right_in_the_mean_and_has_names() -> None:
    n = 1 << 18
    bits = element_bits(name_key(1, 2, "a"), 0, n, torch.device("cpu"))
    assert torch.equal(bits[1000:1256], element_bits(name_key(1, 2, "a"), 1000, 1256, torch.device("cpu")))
    assert not torch.equal(bits, element_bits(name_key(1, 3, "a"), 0, n, torch.device("cpu")))
    for value in (0.02 * (1 + 5e-5), -3.0 - 1e-3, 1e-30):
        rounded = round_bfloat16(torch.full((n,), value), bits).double()
        step = float((rounded.max() - rounded.min()).abs())
        assert abs(float(rounded.mean()) - value) < 4 * step * 0.5 / n**0.5 + abs(value) * 1e-7
        assert len(rounded.unique()) <= 2
    odd = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0])
    assert torch.equal(round_bfloat16(odd, bits[:4]).isfinite(), odd.isfinite())


def test_the_bits_are_those_of_whole_numbers() -> None:
    """The formula in Python's numbers, modulo 2^32, near 0 and where the elements pass 2^31 and 2^32."""
    for key in (0, 1, name_key("x"), 2**63 - 1):
        for start in (0, 999, 2**31 - 2, 2**32 - 2):
            wanted = []
            for element in range(start, start + 4):
                x = (element * (key >> 31 | 1) + key) % 2**32
                x ^= x >> 16
                for _ in range(2):
                    x = x * 0x45D9F3B % 2**32
                    x ^= x >> 16
                wanted.append(x)
            got = element_bits(key, start, start + 4, torch.device("cpu"))
            assert got.dtype == torch.int32 and [int(one) % 2**32 for one in got] == wanted


@pytest.mark.parametrize("shift", [0, 16])
def test_the_bits_of_an_element_are_even_and_do_not_go_together(shift: int) -> None:
    """Their mean, their spread over 256 equal parts, and how they go with the element before, the other half of the
    bits, the step before and the next name: as of chance, within 5 standard deviations."""
    n = 1 << 16

    def uniform(key: int, shift: int) -> torch.Tensor:
        bits = element_bits(key, 0, n, torch.device("cpu"))
        return ((bits >> shift) & 0xFFFF).double() / 65536

    here = uniform(name_key("x", 1), shift)
    assert abs(float(here.mean()) - 0.5) < 5 / (12 * n) ** 0.5
    counts = torch.histc(here, 256, 0, 1)
    assert abs(float(((counts - n / 256) ** 2 / (n / 256)).sum()) - 255) < 5 * (2 * 255) ** 0.5
    others = {"element": here.roll(1), "block": here.roll(BLOCK), "half": uniform(name_key("x", 1), 16 - shift),
              "step": uniform(name_key("x", 2), shift), "name": uniform(name_key("y", 1), shift)}
    for what, other in others.items():
        assert abs(float(torch.corrcoef(torch.stack([here, other]))[0, 1])) < 5 / n**0.5, what


@pytest.mark.parametrize("signed", [True, False])
def test_moments_of_8_bits_are_right_in_the_mean(signed: bool) -> None:
    """Of numbers that span six orders of magnitude: each code is a neighbour of the number, the mean is the number."""
    values = 10 ** torch.linspace(-8, -2, 1000) * (torch.tensor([1.0, -1.0]).repeat(500) if signed else 1)
    total, draws = torch.zeros(1000, dtype=torch.float64), 2000
    store = EightBit(1000, torch.device("cpu"), signed=signed)
    part = slice(0, 1000)
    for draw in range(draws):
        store.write(part, values.clone(), element_bits(name_key(draw), 0, 1000, torch.device("cpu")))
        got = store.read(part)
        assert ((got > 0) == (values > 0)).all() if not signed else ((got == 0) | (got.sign() == values.sign())).all()
        total += got
    largest = values.abs().view(-1, 250).amax(1).repeat_interleave(250)[:1000] if False else values.abs()
    codes = 127 if signed else 255
    step = 2 * largest / codes * (values.abs().max() / values.abs()) ** (0.5 if signed else 0.25) * (1 if signed else 2)
    smallest = float(values.abs().max()) * (1 / codes) ** (2 if signed else 4)
    error = (total / draws - values).abs()
    assert (error < 5 * (step + smallest) / draws**0.5 + smallest * (not signed) + 1e-12).all()


@pytest.mark.parametrize("states", STATES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_small_rate_moves_short_weights_by_the_right_amount_in_the_mean(states: str, dtype: torch.dtype) -> None:
    """lr 1e-6 over 200 steps on weights of .02, whose bfloat16 neighbours are 1e-4 away: the mean movement of 65,536
    weights against AdamW in float64."""
    n, lr, steps = 65_536, 1e-6, 200
    generator = torch.Generator().manual_seed(0)
    start = (torch.rand(n, generator=generator) * 0.02 + 0.01).bfloat16()
    short, full = torch.nn.Parameter(start.clone().to(dtype)), torch.nn.Parameter(start.double())
    config = OptimizerConfig.model_validate({"lr": lr, "states": states, "weight_decay": 0.0})
    optimizer, exact = Optimizer([("w", short)], config), torch.optim.AdamW([full], lr=lr, weight_decay=0.0)
    for _ in range(steps):
        gradient = torch.randn(n, generator=generator) * 0.5 + 1
        (short * gradient.to(dtype)).sum().backward()
        full.grad = gradient.to(dtype).double()
        optimizer.step(lr)
        optimizer.begin()
        exact.step()
    weights = optimizer.slots[0].weight.double()
    wanted = float((full.detach() - start).mean())
    assert wanted < -100 * lr
    assert float((weights - start).mean()) == pytest.approx(wanted, rel=0.03)


def test_rounding_to_nearest_would_not_move_at_all() -> None:
    weight = torch.full((1000,), 0.02, dtype=torch.bfloat16)
    for _ in range(200):
        weight = (weight.float() - 1e-6).bfloat16()
    assert float(weight.double().mean()) == pytest.approx(0.02, rel=1e-2) and len(weight.unique()) == 1


@pytest.mark.parametrize(("states", "dtype", "held"), [
    ("float32", torch.float32, 16), ("bfloat16", torch.float32, 12), ("8bit", torch.bfloat16, 6),
    ("float32", torch.bfloat16, 18), ("bfloat16", torch.bfloat16, 14)])  # fmt: skip
def test_bytes_of_a_parameter_are_those_that_the_setting_says(states: str, dtype: torch.dtype, held: int) -> None:
    config = OptimizerConfig.model_validate({"states": states})
    optimizer = Optimizer([("w", torch.nn.Parameter(torch.ones(1 << 16, dtype=dtype)))], config)
    assert optimizer.bytes_per_parameter == pytest.approx(held, abs=0.05)


def test_many_small_micro_batches_add_up_in_a_bfloat16_gradient() -> None:
    """1 and then 300 times 1/1000: to nearest, each of them would leave 1 as it is. A float32 norm is beside it."""
    n = 8192
    short, norm = torch.nn.Parameter(torch.zeros(n, dtype=torch.bfloat16)), torch.nn.Parameter(torch.zeros(4))
    optimizer = Optimizer([("w", short), ("norm", norm)], OptimizerConfig(states="8bit"))
    for micro in range(301):
        ((short.float().sum() + norm.sum()) * (1e-3 if micro else 1.0)).backward()
        optimizer.collect()
    gradient = optimizer.slots[0].gradient
    assert short.grad is None and gradient is not None and gradient.dtype == torch.bfloat16
    assert float(gradient.double().mean()) == pytest.approx(1.3, abs=0.01) and gradient.unique().numel() > 2
    exact = (float((gradient.double() ** 2).sum()) + 4 * 1.3**2) ** 0.5
    assert optimizer.norm() == pytest.approx(exact, rel=1e-5), "not rounded to bfloat16"
    optimizer.begin()
    assert optimizer.norm() == 0.0


def test_a_second_moment_in_bfloat16_does_not_stand_still() -> None:
    store, n = Bfloat16(4096, torch.device("cpu")), 4096
    store.write(slice(0, n), torch.ones(n), torch.zeros(n, dtype=torch.int32))
    for step in range(1000):
        value = store.read(slice(0, n)).mul_(0.999)
        store.write(slice(0, n), value, element_bits(name_key(step), 0, n, torch.device("cpu")))
    assert float(store.read(slice(0, n)).double().mean()) == pytest.approx(0.999**1000, rel=0.02)


@pytest.mark.parametrize("states", STATES)
def test_a_kept_optimizer_goes_on_as_another_number_of_ranks(states: str) -> None:
    """What one rank keeps is read as slices of three; each goes on to the same codes."""
    config = OptimizerConfig.model_validate({"states": states, "lr": 1e-3})
    dtype = torch.bfloat16 if states == "8bit" else torch.float32
    named = parameters(dtype)
    whole = Optimizer(named.items(), config)
    for step in range(3):
        backward(named, gradients(step, 0))
        whole.step(1e-3)
        whole.begin()
    kept = {(piece.name, piece.kind): piece.tensor.clone() for piece in whole.pieces()}
    for rank in range(3):
        other = Optimizer(parameters(dtype, seed=1).items(), config, Ranks(rank, 1))
        for slot in other.slots:  # as of three, without processes
            slot.__init__(slot.name, slot.parameter, states, rank, 3)  # type: ignore[misc]
        other.load(lambda name, kind, start, n: kept[name, kind][start : start + n], 3)
        assert other.steps == 3
        for piece in other.pieces():
            wanted = kept[piece.name, piece.kind][piece.start : piece.start + piece.tensor.numel()]
            assert torch.equal(piece.tensor, wanted) and piece.whole == len(kept[piece.name, piece.kind])


WORKER = """
import json, os, sys, torch, torch.distributed as dist
from tests.train.test_optimizer import backward, gradients, parameters
from taro.train.config import OptimizerConfig
from taro.train.optimizer.optimizer import Optimizer
from taro.train.ranks import Ranks
rank, world, states, dtype = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], getattr(torch, sys.argv[4])
if world > 1:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{sys.argv[5]}", rank=rank, world_size=world)
named, whole = parameters(dtype), len(sys.argv) > 6
config = OptimizerConfig.model_validate({"states": states, "weight_decay": 0.1, "grad_clip": 3.0})
optimizer = Optimizer(named.items(), config, Ranks(rank, world), seed=5)
for step in range(20):
    mine = range(rank, 4 if step % 2 else 2, world)  # of three ranks one has no work in every other step
    for at in range(4):
        if at < len(mine):
            found = gradients(step, mine[at])
            found = {name: one.round() for name, one in found.items()} if whole else found
            backward(named, found, missing="layers.0.a" if mine[at] == 1 else "")
        optimizer.collect()
    norm = optimizer.norm()
    optimizer.step(1e-2, optimizer.clipped(norm))
    optimizer.begin()
print(json.dumps([{name: one.detach().double().tolist() for name, one in named.items()}, norm,
                  sum(p.tensor.numel() for p in optimizer.pieces() if p.kind == "exp_avg"),
                  [(p.name, p.kind, p.start, p.tensor.double().tolist()) for p in optimizer.pieces() if whole]]))
"""


def run_ranks(world: int, states: str, dtype: str, *more: str) -> list[list]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    jobs = [subprocess.Popen([sys.executable, "-c", WORKER, str(rank), str(world), states, dtype, str(port), *more],
                             stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
                             env={**os.environ, "OMP_NUM_THREADS": "1"}) for rank in range(world)]  # fmt: skip
    try:
        return [json.loads(job.communicate(timeout=600)[0]) for job in jobs]
    finally:
        for job in jobs:
            job.kill()
            job.communicate()


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_together_are_one_process(world: int) -> None:
    """20 steps in float64, groups that do not divide by the ranks, one rank without work, a parameter without a
    gradient: 1e-9 relative."""
    alone = run_ranks(1, "float32", "float64")[0]
    every = run_ranks(world, "float32", "float64")
    assert sum(one[2] for one in every) == alone[2], "each element has one owner"
    for weights, norm, *_ in every:
        assert norm == pytest.approx(alone[1], rel=1e-9)
        for name, values in alone[0].items():
            torch.testing.assert_close(torch.tensor(weights[name], dtype=torch.float64),
                                       torch.tensor(values, dtype=torch.float64), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("states", ["float32", "8bit"])
def test_ranks_hold_the_same_bfloat16_weights(states: str) -> None:
    first, second = run_ranks(2, states, "bfloat16")
    assert first[0] == second[0]
    alone = run_ranks(1, states, "bfloat16")[0]
    for name, values in alone[0].items():  # gradients are added up in another precision: near, not equal
        torch.testing.assert_close(torch.tensor(first[0][name]), torch.tensor(values), rtol=0.1, atol=2e-2)


def test_codes_of_8_bits_do_not_depend_on_the_ranks() -> None:
    """Where sums of gradients are exact (whole numbers), three ranks have the bits of one: weights, codes, scales."""
    alone, every = run_ranks(1, "8bit", "bfloat16", "whole")[0], run_ranks(3, "8bit", "bfloat16", "whole")
    together: dict[tuple[str, str], list[float]] = {}
    for *_, pieces in every:
        for name, kind, start, values in pieces:
            held = together.setdefault((name, kind), [])
            assert not values or start == len(held), "ranks own slices in their order"
            held += values
    assert together == {(name, kind): values for name, kind, _, values in alone[3]}
    assert all(weights == alone[0] for weights, *_ in every)
    assert {kind for _, kind in together} == {"weight", "exp_avg", "exp_avg_scale", "exp_avg_sq", "exp_avg_sq_scale"}
