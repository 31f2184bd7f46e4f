"""A plan from settings: finds out what the formulas need, and loads nothing.

Read are config.json (of a released model not even that), the beginnings of the features' records, the queries, and the
policy's tokenizer where its folder is here."""

from __future__ import annotations

import logging
from pathlib import Path

from taro.core.errors import ConfigError
from taro.core.places import hub_id
from taro.grounding.prompts import Asking, load_template
from taro.models.asking import asking_of
from taro.models.resolve import resolve_place
from taro.shards.reader import open_shards
from taro.train.config import ShardSource, TrainConfig
from taro.train.data import TrainingData, TrainingSet, select
from taro.train.plan.fits import ways_to_fit
from taro.train.plan.lengths import Lengths, lengths_of
from taro.train.plan.make import ASSUMED, Machine, Plan, make_plan
from taro.train.plan.shapes import ModelShape, released_shape, shape_of_folder
from taro.train.plan.show import fit_lines, plan_lines
from taro.train.plan.speed import mean_response, measured_speed, metrics_lines, speed_file, write_speed

__all__ = ["check_fits", "gpu_here", "keep_speed", "open_plan"]

log = logging.getLogger(__name__)

GIB = 2**30
REFUSED = 1.15
"""planned peak, in the GPU's memory, from which a run is refused; a plan can be a little wrong, so below it warns"""
MEMORY_GIB = 79.2
"""of each GPU, where there is none to ask: what torch finds on one sold with 80 GB"""


def gpu_here() -> tuple[str, float] | None:
    """(name, GiB) of this machine's first GPU; None where torch finds none."""
    import torch

    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(0)
    return str(found.name), found.total_memory / GIB


def open_plan(config: TrainConfig, *, gpus: int = 1, memory_gib: float | None = None, shards: bool = True) -> Plan:
    """The plan of a run on `gpus` GPUs.

    Args: memory_gib: of each; None: of the GPU here, else of one with 80 GB; shards: whether the shard sets are there
    to ask for lengths.

    Raises TaroError where policy or shards are not what they should be."""
    here = gpu_here()
    name, found = here or ("", MEMORY_GIB)
    bf16 = config.dtype == "bfloat16" or (config.dtype == "auto" and config.device != "cpu")
    folder, shape = _policy(config)
    lengths = _lengths(config, folder, shape) if shards else ASSUMED
    machine = Machine(gpus, memory_gib or found, name)
    return make_plan(config, shape, lengths, machine, bf16=bf16, response=mean_response(config.out))


def check_fits(config: TrainConfig, data: TrainingData, asking: Asking, folder: Path, *, bf16: bool) -> Plan | None:
    """The plan of a run that opens, None where it has no GPU. Raises ConfigError where it is over the GPU's memory by
    far; warns where it is over."""
    import torch.distributed as dist

    here = gpu_here()
    if here is None or config.device == "cpu":
        return None
    shape = shape_of_folder(folder)
    world = dist.get_world_size() if dist.is_initialized() else 1
    plan = make_plan(config, shape, lengths_of(data, asking, shape.levels, folder), Machine(world, here[1], here[0]),
                     bf16=bf16)
    if plan.peak > REFUSED * plan.memory:
        text = "\n".join([*plan_lines(plan), *fit_lines(plan, ways_to_fit(plan))])
        raise ConfigError(f"{config.policy}: the run would take {plan.peak / GIB:.1f} GiB of a GPU with "
                          f"{plan.memory / GIB:.1f} GiB; expected settings that fit\n{text}")
    if not plan.fits:
        log.warning("the run may not fit: planned are %.1f GiB of %.1f, most in the phase %s (taro train ... --plan)",
                    plan.peak / GIB, plan.memory / GIB, plan.peak_phase)
    return plan


def keep_speed(plan: Plan, folder: Path, cache: Path | None = None) -> None:
    """Puts what the run in `folder` took into this machine's file of speeds, for later plans."""
    found = measured_speed(metrics_lines(folder), plan.job, gpu=plan.gpu, prompt=plan.lengths.mean, kl=plan.kl)
    if found is not None:
        write_speed(found, cache or speed_file())


def _policy(config: TrainConfig) -> tuple[Path | None, ModelShape]:
    """The policy's folder, where it is here, and its shape."""
    known = released_shape(config.policy)
    if hub_id(config.policy) is not None and known is not None and not Path(config.policy).exists():
        return None, known
    folder = resolve_place(config.policy, config.adapter).base
    return folder, shape_of_folder(folder)


def _lengths(config: TrainConfig, folder: Path | None, shape: ModelShape) -> Lengths:
    sets = [_selected(source, shape, config.seed) for source in config.sources]
    data = TrainingData(sets, prompts=config.rollout.prompts, draws=config.data.draws)
    no_think = config.reward.no_think
    asking = (Asking(load_template(config.template or "taro"), no_think) if folder is None
              else asking_of(folder, template=config.template, no_think=no_think))
    return lengths_of(data, asking, shape.levels, folder)


def _selected(source: ShardSource, shape: ModelShape, seed: int) -> TrainingSet:
    """The queries of a set, with features of the policy's width: which tower made them is checked when a run opens."""
    shard_set = open_shards(source.path, encoder=source.encoder)
    if source.encoder is None and len(shard_set.encoders) > 1:
        key = shard_set.keys[0]
        fitting = [one for one in map(shard_set.reading, shard_set.encoders) if one.features_shape(key)[2] == shape.D]
        shard_set = (fitting or [shard_set])[0]
    return select(source, shard_set, seed=seed)
