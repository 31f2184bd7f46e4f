"""A plan from settings: finds out what the formulas need, and loads nothing.

Read are config.json (of a released model not even that), the beginnings of the features' records, the queries, and the
policy's tokenizer where its folder is here."""

from __future__ import annotations

from pathlib import Path

from taro.core.places import hub_id
from taro.grounding.prompts import Asking, load_template
from taro.models.asking import asking_of
from taro.models.resolve import resolve_model
from taro.shards.reader import open_shards
from taro.train.config import ShardSource, TrainConfig
from taro.train.data import TrainingData, TrainingSet, select
from taro.train.plan.lengths import Lengths, lengths_of
from taro.train.plan.make import ASSUMED, Plan, make_plan
from taro.train.plan.shapes import ModelShape, released_shape, shape_of_folder
from taro.train.plan.speed import mean_response

__all__ = ["gpu_here", "open_plan"]

GIB = 2**30
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
    return make_plan(config, shape, lengths, world=gpus, memory_gib=memory_gib or found, bf16=bf16,
                     gpu=name if memory_gib is None else "", response=mean_response(config.out))


def _policy(config: TrainConfig) -> tuple[Path | None, ModelShape]:
    """The policy's folder, where it is here, and its shape."""
    known = released_shape(config.policy)
    if hub_id(config.policy) is not None and known is not None and not Path(config.policy).exists():
        return None, known
    folder = resolve_model(config.policy)
    return folder, shape_of_folder(folder)


def _lengths(config: TrainConfig, folder: Path | None, shape: ModelShape) -> Lengths:
    data = TrainingData([_selected(source, shape) for source in config.sources], prompts=config.rollout.prompts,
                        draws=config.data.draws)
    no_think = config.reward.no_think
    asking = (Asking(load_template(config.template or "taro"), no_think) if folder is None
              else asking_of(folder, template=config.template, no_think=no_think))
    return lengths_of(data, asking, shape.levels, folder)


def _selected(source: ShardSource, shape: ModelShape) -> TrainingSet:
    """The queries of a set, with features of the policy's width: which tower made them is checked when a run opens."""
    shard_set = open_shards(source.path, encoder=source.encoder)
    if source.encoder is None and len(shard_set.encoders) > 1:
        key = shard_set.keys[0]
        fitting = [one for one in map(shard_set.reading, shard_set.encoders) if one.features_shape(key)[2] == shape.D]
        shard_set = (fitting or [shard_set])[0]
    return select(source, shard_set)
