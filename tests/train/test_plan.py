"""The plan of a run: sizes equal what torch holds, and for what does not fit it names what would."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer
from typer.testing import CliRunner

from benchmarks.shapes import random_config
from taro.cli.app import app
from taro.core.config import load_config, recipe_names
from taro.models import logprobs
from taro.models.adapters import Lora, add_adapters
from taro.models.attention import masked
from taro.models.families import FAMILIES
from taro.models.features import VideoFeatures
from taro.models.folder import read_config
from taro.models.grouped import _Prefix, _Rows
from taro.models.language_model import LanguageModel
from taro.models.load import load_policy
from taro.models.packing import PackedBatch, pack
from taro.models.policy import Policy
from taro.models.prompt import Prompt
from taro.train.config import OptimizerConfig, TrainConfig
from taro.train.optimizer.optimizer import Optimizer
from taro.train.plan import memory
from taro.train.plan.fits import LADDER, ways_to_fit
from taro.train.plan.lengths import Lengths
from taro.train.plan.make import ASSUMED, Machine, job_of, make_plan, with_job
from taro.train.plan.memory import Adapters, Job, cache_bytes, kept_bytes, states_bytes
from taro.train.plan.open import open_plan
from taro.train.plan.shapes import RELEASED, ModelShape, released_shape, shape_of_config, shape_of_folder
from taro.train.plan.show import plan_lines, use_text
from taro.train.plan.speed import H100, measured_speed, seconds_of_step, speed_of, write_speed
from taro.train.ranks import Ranks
from tests.helpers_models import TINY
from tests.train.conftest import Tiny
from tests.train.live_bytes import LiveBytes
from tests.train.tiny import TEMPLATE, clip_record

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"3b": "qwen2.5-vl-3b", "7b": "qwen2.5-vl-7b", "qwen3-8b": "qwen3-vl-8b"}
LENGTHS = Lengths(4000, 3900.0, 3600, 2500)


def config_of(**changes: Any) -> TrainConfig:
    return TrainConfig.model_validate({"policy": "Qwen/Qwen2.5-VL-7B-Instruct", "shards": "shards", "out": "run",
                                       **changes})


@pytest.mark.parametrize("size", SIZES)
def test_parameters_are_those_of_the_stock_modules(size: str) -> None:
    """At released shapes, on the meta device: all of them, those of matrices, those of a layer."""
    config = random_config(size)
    family, shape = FAMILIES[config.model_type], shape_of_config(config)
    assert shape == RELEASED[SIZES[size]]
    with torch.device("meta"):
        lm: Any = family.build_lm(config)
        head = torch.nn.Linear(shape.D, shape.V, bias=False)
    if shape.tied:
        head.weight = lm.embed_tokens.weight
    model = LanguageModel(lm, head)
    assert shape.parameters == sum(one.numel() for one in model.parameters())
    matrices = {id(one): one.numel() for module in model.modules()
                if isinstance(module, torch.nn.Linear | torch.nn.Embedding) for one in module.parameters()}
    assert shape.matrices == sum(matrices.values())
    assert shape.layer_matrices + shape.layer_norms == sum(one.numel() for one in lm.layers[0].parameters())


def saved_bytes(model: LanguageModel, T: int) -> int:
    """Bytes of all tensors that a packed pass under autocast keeps for its backward, weights left out."""
    weights, kept = {one.untyped_storage().data_ptr() for one in model.parameters()}, dict[int, torch.Tensor]()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    mask = torch.ones(T, T, dtype=torch.bool).tril()[None, None]
    with (torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
          torch.autocast("cpu", torch.bfloat16)):
        model(torch.arange(T)[None] % 300, torch.arange(T).expand(3, 1, T), masked(mask))
    return sum(one.untyped_storage().nbytes() for place, one in kept.items() if place not in weights)


def kept_by_autograd(size: str, layers: int, T: int) -> tuple[int, ModelShape]:
    """Bytes of all tensors that a packed pass under autocast keeps for its backward, weights left out."""
    config = random_config(size)
    text, second = config.text_config, size.startswith("qwen3")
    text.num_hidden_layers, text.hidden_size, text.intermediate_size = layers, 160, 352
    text.num_attention_heads, text.num_key_value_heads, text.head_dim = 4, 2, 48 if second else 40
    half = text.head_dim // 2
    text.rope_parameters = {**text.rope_parameters, "mrope_section": [half - 4, 2, 2]}
    lm: Any = FAMILIES[config.model_type].build_lm(config)
    model = LanguageModel(lm, torch.nn.Linear(160, text.vocab_size, bias=False))
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            module.to(torch.bfloat16)
    return saved_bytes(model, T), shape_of_config(config)


@pytest.mark.parametrize("size", ["tiny", "qwen3-tiny"])
def test_what_a_layer_keeps_is_what_autograd_keeps(size: str) -> None:
    """The bytes of one layer more, exactly: with the mask that attention was given."""
    T = 200
    one, _ = kept_by_autograd(size, 1, T)
    two, shape = kept_by_autograd(size, 2, T)
    job = replace(job_of(config_of(), shape, LENGTHS), shape=shape)
    assert two - one == T * kept_bytes(job) + 2 * T * T


def small_policy(family: str, folder: Path, *, layers: int = 2) -> Policy:
    """A small policy, its MLP five times as wide as itself and its vocabulary large as in released ones, with the
    compute weights of a GPU: bfloat16 matrices, float32 norms."""
    config = read_config(TINY[family](folder, width=64, tied=False))
    text = config.text_config
    text.intermediate_size, text.vocab_size, text.num_hidden_layers = 320, 4000, layers
    text.layer_types = ["full_attention"] * layers
    model = LanguageModel(FAMILIES[family].build_lm(config), torch.nn.Linear(64, 4000, bias=False))
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            module.to(torch.bfloat16)
    return Policy(folder, config, FAMILIES[family], AutoTokenizer.from_pretrained(folder), model, None)


@pytest.fixture(scope="module", params=sorted(TINY))
def bf16_policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """One of each family."""
    return small_policy(request.param, tmp_path_factory.mktemp("model") / "model")


@pytest.mark.parametrize("family", sorted(TINY))
def test_what_a_layer_with_adapters_keeps(family: str, tmp_path: Path) -> None:
    """Exactly: the bytes of one layer more, with the mask and bfloat16 copies of the layer's adapters."""
    T, rank, kept = 150, 4, list[int]()
    for layers in (2, 3):
        policy = small_policy(family, tmp_path / str(layers), layers=layers)
        shape = shape_of_config(policy.config)
        add_adapters(policy, Lora(rank, 8.0, 0.0, tuple(shape.linears)), seed=0)
        kept.append(saved_bytes(policy.language_model, T))
    job = replace(job_of(config_of(), shape, LENGTHS), adapters=Adapters(rank, tuple(shape.linears)))
    copies = rank * sum(map(sum, shape.linears.values())) * 2
    assert kept[1] - kept[0] == T * kept_bytes(job) + 2 * T * T + copies


@pytest.mark.parametrize(("way", "chunk"), [
    ("recomputed", 40), ("recomputed", 4096), ("kept", 40), ("scored", 40), ("scored", 4096), ("entropy", 40),
    ("entropy", 4096)])
def test_peaks_of_a_row_are_those_of_torch(bf16_policy: Policy, way: str, chunk: int,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward, and backward where it is an update, of one packed row on a CPU: all tensors alive at once, within 4 %.
    Where many tokens' logits exist at once these are the peak, else it lies inside a layer."""
    policy, G, R = bf16_policy, 4, 60
    monkeypatch.setattr(logprobs, "TOKENS_AT_ONCE", chunk)
    monkeypatch.setattr(memory, "TOKENS_AT_ONCE", chunk)
    monkeypatch.setattr(PackedBatch, "attention",  # as a GPU's, which the plan is of
                        lambda row, device: masked(row.mask_TT(device)[None, None]))
    shape = shape_of_config(policy.config)
    main, *deep = (torch.zeros(4, 4, shape.D) for _ in range(1 + shape.levels))
    prompt = policy.prompt(VideoFeatures(main, np.arange(4.0), (4, 4, 4), 2.0, tuple(deep)), "a" * 150)
    ids = torch.full((1, G, R), 70)
    row = pack([prompt], ids, torch.ones_like(ids, dtype=torch.bool), groups=[0])
    live = LiveBytes(policy.parameters())
    removed = [one.register_post_accumulate_grad_hook(lambda one: setattr(one, "grad", None))
               for one in policy.parameters()]
    assert policy.banned_V.any()  # made before anything is counted
    with live, torch.set_grad_enabled(way != "scored"):
        with torch.autocast("cpu", torch.bfloat16):
            if way == "entropy":
                found_N = logprobs.score_also(policy, [prompt], ids, torch.ones_like(ids, dtype=torch.bool),
                                              also=["entropy"], checkpoint_activations=True)
            else:
                found_N = logprobs.row_logprobs(policy, row, temperature=1.0, checkpoint=way == "recomputed")
        if way != "scored":
            found_N.mean().backward()
    for hook in removed:
        hook.remove()
    job = replace(job_of(config_of(), shape, LENGTHS), recompute=way in {"recomputed", "entropy"},
                  entropy=way == "entropy", prompts=1, batch=1, G=G, R=R,
                  P=len(prompt.ids_P), M=16, reference="none")
    parts = memory.peak_by_phase(job)["scores" if way == "scored" else "update"]
    planned = sum(size for name, size in parts.items() if name != "disrupted videos")
    assert planned == pytest.approx(live.peak, rel=0.04), f"{live.peak:,} bytes, planned {parts}"


def test_caches_are_those_of_grouped_decoding(tiny: Tiny) -> None:
    """Keys and values of prompts and rollouts, and the tokens seen, byte for byte."""
    policy = load_policy(tiny.policy)
    prompts: list[Prompt] = [policy.prompt(clip_record(number, "train")[1], TEMPLATE.user_text("ab"))
                             for number in range(3)]
    with torch.no_grad():
        prefix = _Prefix(policy, prompts)
        rows = _Rows(policy, prefix, prompts, 4, 24)
    job = tiny_job(tiny.policy, batch=3, G=4, R=24, P=prefix.P)
    held = [sum(one.nbytes for one in (*prefix.keys, *prefix.values)),
            sum(one.nbytes for pair in rows.own for one in pair), rows.seen.nbytes]
    assert list(cache_bytes(job).values()) == held


def tiny_job(folder: Path, **changes: Any) -> Job:
    """A job of a tiny policy in float32."""
    return replace(job_of(config_of(), shape_of_folder(folder), LENGTHS, bf16=False), **changes)


def test_weights_of_a_tiny_policy(tiny: Tiny) -> None:
    policy = load_policy(tiny.policy)
    planned = states_bytes(tiny_job(tiny.policy))
    whole = sum(one.nbytes for one in policy.parameters())
    assert planned["compute weights"] == planned["reference"] == planned["gradients"] == whole
    assert planned["moments"] == 2 * whole and planned["master weights"] == 0


def test_states_on_a_gpu() -> None:
    """Bytes a parameter of each setting, and the share of a rank."""
    shape = RELEASED["qwen2.5-vl-7b"]
    job = job_of(config_of(), shape, LENGTHS)
    found = {states: sum(states_bytes(replace(job, states=states))[name]
                         for name in ("master weights", "gradients", "moments")) / shape.parameters
             for states in ("float32", "bfloat16", "8bit")}
    assert found == pytest.approx({"float32": 16, "bfloat16": 12, "8bit": 4.03125})
    whole, half = states_bytes(job), states_bytes(replace(job, world=2))
    assert half["moments"] * 2 == whole["moments"] and half["compute weights"] == whole["compute weights"]


@pytest.mark.parametrize("states", ["float32", "bfloat16", "8bit"])
@pytest.mark.parametrize("world", [1, 2])
def test_states_are_those_of_the_optimizer(tiny: Tiny, states: str, world: int) -> None:
    """What the optimizer holds of bfloat16 matrices on the rank that has most, within the norms' share: they are
    float32 and their own masters."""
    shape = shape_of_folder(tiny.policy)
    policy = load_policy(tiny.policy, trainable=True)
    for module in policy.language_model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            module.to(torch.bfloat16)
    policy.language_model.head.weight = policy.language_model.lm.embed_tokens.weight
    config = OptimizerConfig.model_validate({"states": states})
    optimizer = Optimizer(policy.named_parameters(), config, Ranks(0, world))
    held = Counter[str]()
    for slot in optimizer.slots:
        held.update(slot.bytes())
    planned = states_bytes(tiny_job(tiny.policy, bf16=True, states=states, world=world))
    bound = shape.norms * 4 / world + 256 * 8 * len(optimizer.slots) * (world > 1)  # slices end at whole blocks
    for part, name in (("master", "master weights"), ("gradient", "gradients"), ("moments", "moments")):
        assert abs(held[part] - planned[name]) <= bound, f"{part}: {held[part]}, planned {planned[name]}"


def test_7b_in_full_does_not_fit_one_gpu_and_is_told_what_would() -> None:
    """What is proposed fits, and each line of it is needed."""
    plan = make_plan(config_of(), RELEASED["qwen2.5-vl-7b"], LENGTHS)
    assert not plan.fits and plan.peak > 1.5 * plan.memory
    ways = ways_to_fit(plan)
    assert [way.gpus for way in ways] == [1, 1, 4] and ways[1].settings[0] == "lora.rank=64"
    known = dict(LADDER)
    for way in (ways[0],):
        changes = [known[line] for line in way.settings]
        assert with_job(plan, **{name: value for one in changes for name, value in one.items()}).fits
        for left_out in range(len(changes)):
            rest = changes[:left_out] + changes[left_out + 1 :]
            assert not with_job(plan, **{name: value for one in rest for name, value in one.items()}).fits
    assert ways_to_fit(make_plan(config_of(), RELEASED["qwen2.5-vl-3b"], LENGTHS, Machine(memory_gib=200))) == []


def test_the_peak_is_the_largest_phase() -> None:
    plan = make_plan(config_of(), RELEASED["qwen2.5-vl-3b"], LENGTHS)
    sizes = {phase: plan.allocated(phase) for phase in plan.phases}
    assert plan.peak_phase == max(sizes, key=lambda phase: sizes[phase])
    assert plan.peak == sizes[plan.peak_phase] + plan.context + plan.gaps
    assert plan.steps == 3 * (2500 // 16)
    assert plan.response_tokens[1] == plan.steps * 16 * 8 * 1024


def test_lengths_are_those_of_the_prompts(tiny: Tiny, make_config: Callable[..., TrainConfig]) -> None:
    """Video tokens by the records' own headers; the text by the policy's tokenizer, within the chat template's turn."""
    plan = open_plan(make_config(), memory_gib=8)
    policy = load_policy(tiny.policy)
    prompt = policy.prompt(clip_record(0, "train")[1], TEMPLATE.user_text("ab"))
    assert plan.lengths.video == prompt.features.tokens == 16
    assert abs(plan.lengths.longest - len(prompt.ids_P)) <= 30
    assert plan.lengths.queries == 6 and plan.lengths.known and plan.steps == 6


def test_the_command_plans_without_data_and_weights() -> None:
    """A released model by its hub id alone, offline; the JSON has the same numbers as the table."""
    line = ["train", "taro-7b", "--plan", "--set", "policy=Qwen/Qwen2.5-VL-7B-Instruct", "--memory", "79.2"]
    text, found = (CliRunner().invoke(app, [*line, *more]) for more in ((), ("--json",)))
    values = json.loads(found.stdout)
    assert text.exit_code == 0 and "it does not fit a GPU with 79.2 GiB" in text.stdout
    assert f"peak: {values['peak'] / 2**30:.1f} GiB" in text.stdout and values["fits"] is False
    assert values["parameters"] == RELEASED["qwen2.5-vl-7b"].parameters
    for way in values["would_fit"]:
        assert way["peak"] <= 79.2 * 2**30 and "".join(f" --set {one}" for one in way["set"]) in text.stdout


RECIPES = [name for name in recipe_names("taro.train.recipes") if name not in {"sandbox", "quickstart"}]


@pytest.mark.parametrize("name", RECIPES)
def test_each_recipe_says_what_its_plan_says(name: str) -> None:
    """GPUs, memory and hours in a recipe's head, at the lengths that stand there; it fits."""
    text = (ROOT / "train" / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    said = re.search(r"^# GPUs: (\d) of 80 GB; memory: ([\d.]+) GiB of each \(`--plan`; prompts of 3,950 tokens, "
                     r"responses of ([\d,]+)\)\n# hours: ([\d.]+) for 2,500 samples \((\d+) steps", text, re.MULTILINE)
    policy = re.search(r"--set policy=(\S+) --set shards", text)
    assert said and policy, text
    config = load_config(TrainConfig, name, [f"policy={policy[1]}", "shards=s", "out=o"], package="taro.train.recipes")
    shape = released_shape(policy[1])
    assert shape is not None
    plan = make_plan(config, shape, ASSUMED, Machine(int(said[1])), cache=Path("nothing.json"))
    assert plan.fits and config.optimizer.checkpoint_activations
    assert [f"{plan.peak / 2**30:.1f}", f"{plan.job.R:,}", f"{plan.hours[0]:.1f}", str(plan.steps)] == [
        said[2], said[3], said[4], said[5]]


def test_a_machine_remembers_how_fast_it_was(tmp_path: Path) -> None:
    """Of a run's lines the first two are left out; the newest entry of this GPU and kind counts, a damaged file not."""
    job = job_of(config_of(), RELEASED["qwen2.5-vl-7b"], LENGTHS)
    lines = [{"length": 100.0, "length_max": 200, "phases": {"rollouts": s, "scores": 6.0 * s, "update": 8.0 * s}}
             for s in (50.0, 50.0, 2.0, 2.0, 2.0)]
    assert measured_speed(lines[:4], job, gpu="g", prompt=900.0, kl=0.01) is None
    found = measured_speed(lines, job, gpu="g", prompt=900.0, kl=0.01)
    assert found is not None and found.steps == 3
    assert found.decode_s == pytest.approx(2 / 200) and found.update_s == pytest.approx(16 / (16 * 1700))
    assert found.score_s == pytest.approx(6 / (16 * 1700))
    seconds = seconds_of_step(job, found, prompt=900.0, response=100.0, kl=0.01)
    assert seconds == pytest.approx(2 + 12 + 16)
    cache = tmp_path / "taro" / "speed.json"
    assert speed_of(job, "g", cache) == H100[1]
    write_speed(replace(found, steps=9), cache)
    write_speed(found, cache)
    assert speed_of(job, "g", cache) == found and speed_of(job, "other", cache).steps == 0
    cache.write_text('{"entries": [{"gpu": 3}, 7]}')
    assert speed_of(job, "g", cache) == H100[1]
    cache.write_text("{")
    assert speed_of(job, "g", cache) == H100[1]


def test_use_is_told_beside_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures of a GPU are handed in: there is none here. `tests/gpu` fills a real one."""
    plan = make_plan(config_of(), RELEASED["qwen2.5-vl-3b"], LENGTHS)
    for name, size in (("memory_allocated", 60), ("max_memory_allocated", 70), ("memory_reserved", 75)):
        monkeypatch.setattr(torch.cuda, name, lambda size=size: size * 2**30)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1 * 2**30, 80 * 2**30))
    text = use_text(plan)
    assert text.startswith("In use of 80.00 GiB: 60.00 GiB by the run (at most 70.00 GiB; 75.00 GiB with gaps), 4.00 ")
    assert "master weights" in text and text.endswith(plan_lines(plan)[-1])
