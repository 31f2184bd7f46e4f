"""A training run, opened: the folder, the policy and its frozen reference, the shard set, the order of the data.

`open_run` does everything that happens once, and refuses what does not fit before anything is loaded: a folder that
holds another run, a shard set of another vision tower, an empty split. Left out: the loop (`train.grpo`).
One process at a time trains in a folder. Run folder: config.yaml, metrics.jsonl, rollouts/step-N.jsonl,
checkpoints/step-N/, export/.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from shards.order import QueryOrder
from shards.reader import QueryRef, Sample, ShardSet, check_encoder, open_shards
from shards.variants import VariantSettings
from taro.config import read_yaml
from taro.disk import telling
from taro.errors import ConfigError
from taro.features import FrameSampling
from taro.mllm import Policy, load_policy
from taro.mllm.folder import pixel_settings
from taro.prompts import PromptTemplate, load_template
from train.checkpoint import RunState, checkpoints, resume_checkpoint, write_text
from train.config import TrainConfig
from train.rollouts import uses_bf16
from train.trackers import Tracker, check_trackers, cut_back, open_trackers
from train.update import make_optimizer

__all__ = ["Run", "compute_device", "load_frozen", "open_encoded_shards", "open_run", "policy_folder",
           "policy_template", "with_variants"]

log = logging.getLogger(__name__)

RESUME_MAY_CHANGE = {"length", "checkpoint", "trackers", "device"}
"""settings that a resumed run may change: none of them reaches the numbers of a step that both runs have"""

AGAIN = "Make room or mend the disk, then run the same command again; nothing is lost"

OnStep = Callable[[dict[str, Any]], None]


@dataclass
class _Lock:
    """The run folder's lock; the system drops it when its holder dies, `kill -9` included."""

    descriptor: int

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Drops the lock; a second time does nothing."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1


@dataclass
class Run:
    """Everything that a step needs. `state` and the tensors change; the rest is fixed for the run."""

    config: TrainConfig
    policy: Policy
    reference: Policy | None
    template: PromptTemplate
    shard_set: ShardSet
    refs: list[QueryRef]
    order: QueryOrder
    optimizer: torch.optim.Optimizer
    state: RunState
    trackers: list[Tracker]
    lock: _Lock
    on_step: OnStep | None = None
    resumed_at: int | None = None
    last: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.config.out

    @property
    def steps(self) -> int:
        """Updates in the whole run."""
        return self.config.length.amount * (self.steps_per_epoch if self.config.length.unit == "epochs" else 1)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass over the data."""
        return self.order.steps_per_epoch(self.config.rollout.prompts)

    def samples(self, step: int) -> tuple[int, list[Sample]]:
        """Epoch and samples of a step; a function of (seed, step) alone."""
        epoch, indices = self.order.step(step, self.config.rollout.prompts)
        return epoch, [self.shard_set.sample(self.refs[index]) for index in indices]

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Hands one line to every tracker and to the caller's callback."""
        for tracker in self.trackers:
            tracker.log(step, values)
        if self.on_step is not None:
            self.on_step({"step": step, "steps": self.steps, **values})

    def close(self) -> None:
        """Closes the trackers, then leaves the folder to others, whatever the trackers meet."""
        try:
            for tracker in self.trackers:
                tracker.close()
        finally:
            self.lock.close()

    def kept(self) -> str:
        """What a message says of a run that stops: what is kept, and how to go on."""
        found = checkpoints(self.folder / "checkpoints")
        last = f"Checkpoint {found[-1].name} is kept" if found else "There is no checkpoint yet"
        return f"{last}; make room or mend the disk, then run the same command with --resume"


def open_run(config: TrainConfig, *, resume: bool, on_step: OnStep | None = None) -> Run:
    """Opens a new run, or an interrupted one from its newest checkpoint. Raises TaroError where something does not
    fit, before any weight is read where that can be told."""
    _check_folder(config, resume=resume)
    check_trackers(config.trackers)
    folder, device = policy_folder(config.policy), compute_device(config.device)
    policy = load_policy(folder, device=device, dtype=torch.float32, trainable=True)
    pixel_settings(folder)  # training needs no processor, but whoever loads the export does
    shard_set = open_encoded_shards(config.shards, policy, encoder=config.data.encoder)
    if config.reward.disruption == "frame":
        shard_set, _ = with_variants(shard_set, dt_s=config.reward.dt_s)
    refs = list(shard_set.queries(split=config.data.split, difficulty=config.data.difficulty))
    if len(refs) < config.rollout.prompts:
        wanted = f"split {config.data.split!r}"
        wanted += "" if config.data.difficulty is None else f" and difficulty {list(config.data.difficulty)}"
        raise ConfigError(f"{config.shards}: {wanted} has {len(refs)} queries, a step takes rollout.prompts="
                          f"{config.rollout.prompts}; choose other queries or fewer prompts")
    if config.validation.split is not None and not shard_set.queries(split=config.validation.split):
        raise ConfigError(f"{config.shards}: no query has the split {config.validation.split!r} of validation.split; "
                          "name one that exists, or null")
    _tell_unguided(config, shard_set, refs)
    template = policy_template(policy, config.template)
    with telling(config.out, lambda: AGAIN):
        lock = _lock(config, resume=resume)
        for name in ("checkpoints", "rollouts"):
            (config.out / name).mkdir(parents=True, exist_ok=True)
    optimizer = make_optimizer(policy, config.optimizer)
    found = resume_checkpoint(config.out / "checkpoints", policy.named_parameters(), optimizer) if resume else None
    state, data_sha256 = found or RunState(), _data_sha256(shard_set, refs)
    if state.data_sha256 not in ("", data_sha256):
        raise ConfigError(f"{config.shards}: the queries or features are not those that the run in {config.out} was "
                          "started with; restore the shard set, or start a new run on this one")
    state.data_sha256 = data_sha256
    with telling(config.out, lambda: AGAIN):
        cut_back(config.out, state.step)
        write_text(config.out / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    return Run(config, policy, _reference(config, folder, device), template, shard_set, refs,
               QueryOrder(len(refs), seed=config.seed), optimizer, state,
               open_trackers(config.trackers, config.out, config.model_dump(mode="json"), resumed_at=state.step),
               lock, on_step, None if found is None else state.step)


def _tell_unguided(config: TrainConfig, shard_set: ShardSet, refs: list[QueryRef]) -> None:
    """Warns, once, of queries that have nothing to guide a rollout with: theirs will all be free."""
    source = config.rollout.paths
    if config.curriculum.schedule == "off":
        return
    if source == "online":
        bare = len(refs) - sum(bool(shard_set.clip(ref.key).captions) for ref in refs)
    else:
        bare = sum(not any(getattr(ref.query.paths, source)) for ref in refs)
    if bare:
        log.warning("%s: %s of %s queries have no captions to guide a rollout with (rollout.paths=%s): their rollouts "
                    "are free, in the guided phase too; preprocess with captions, or set curriculum.schedule=off",
                    config.shards, "all" if bare == len(refs) else f"{bare:,}", f"{len(refs):,}", source)  # fmt: skip


def _data_sha256(shard_set: ShardSet, refs: list[QueryRef]) -> str:
    """Digest of what is trained on: every query in order, with its clip's record and features, however they are
    sliced."""
    digest = hashlib.sha256()
    for ref in refs:
        listed = [shard_set.listed(kind, ref.key) for kind in shard_set.kinds_of_a_sample]
        members = [m.sha256 for record in listed if record is not None for m in record.members if m.ext != "jpg"]
        digest.update(json.dumps([ref.key, ref.query.id, *members]).encode() + b"\n")
    return digest.hexdigest()


def _lock(config: TrainConfig, *, resume: bool) -> _Lock:
    """Keeps the run folder to this process: two that wrote into one would leave a mixture of both."""
    config.out.mkdir(parents=True, exist_ok=True)
    lock = _Lock(os.open(config.out / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644))
    try:
        fcntl.flock(lock.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(f"{config.out}: another process trains in this folder now; wait for it, end it, or choose "
                          "another folder with --set out=DIR") from None
    except OSError as error:  # a file system without locks
        log.warning("%s: no lock (%s); see that no other process trains in it", config.out, error)
    _check_folder(config, resume=resume)  # again: the folder may have been begun since
    return lock


def _check_folder(config: TrainConfig, *, resume: bool) -> None:
    old = config.out / "config.yaml"
    if old.is_file() and not resume:
        raise ConfigError(f"{config.out} holds a run already; go on with it (--resume), or choose another folder with "
                          "--set out=DIR")
    if old.is_file():
        then = _settings(old)
        now = config.model_dump(mode="json")
        changed = [f"{key}: {then.get(key)!r} -> {now[key]!r}" for key in now
                   if key not in RESUME_MAY_CHANGE and then.get(key) != now[key]]
        if changed:
            raise ConfigError(f"{config.out} was started with other settings; resume with the same ones, or start a "
                              f"new run. Changed: {'; '.join(changed)}")
    elif resume:
        raise ConfigError(f"{config.out}: nothing to resume (no config.yaml); leave --resume out to start a run")


def _settings(path: Path) -> dict[str, Any]:
    try:
        data = read_yaml(path)
    except ConfigError as error:
        raise ConfigError(f"{path}: not the YAML that a run wrote ({error}); start a new run") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected the settings of a run, got a {type(data).__name__}; start a new run")
    return data


def _reference(config: TrainConfig, folder: Path, device: torch.device) -> Policy | None:
    if config.loss.kl == 0:
        return None
    return load_frozen(folder, device, bf16=uses_bf16(config, device))


def load_frozen(folder: Path, device: torch.device, *, bf16: bool) -> Policy:
    """A policy to compute with, not to train. With `bf16` its matrices are bfloat16, its embeddings and norms are not:
    under autocast it then rounds exactly where the float32 policy in training does, so that a reference equal to the
    policy has KL 0."""
    policy = load_policy(folder, device="cpu" if bf16 else device, dtype=torch.float32)
    if bf16:
        tied = policy.head.weight is policy.lm.embed_tokens.weight
        for module in policy.model.modules():
            if isinstance(module, torch.nn.Linear) and not (tied and module is policy.head):
                module.to(torch.bfloat16)
        policy.model.to(device)
    return policy


def compute_device(name: str) -> torch.device:
    """The device of "auto", "cpu" or "cuda". Raises ConfigError where there is no GPU for "cuda"."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda: torch finds no GPU here; use device=auto or device=cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def policy_folder(name: str) -> Path:
    """The folder of a policy: a path, or `sandbox:NAME` for one that ships with taro."""
    kind, colon, rest = name.partition(":")
    if kind == "sandbox" and colon:
        from taro.sandbox import weights_folder

        return Path(weights_folder(rest))
    return Path(name)


def policy_template(policy: Policy, name: str | None = None) -> PromptTemplate:
    """The prompt template asked for; else the one that the policy's folder names; else "taro"."""
    return load_template(name or policy.template_name or "taro")


def open_encoded_shards(path: str | Path, policy: Policy, *, encoder: str | None = None) -> ShardSet:
    """A shard set with the features that this policy's own vision tower made. Raises ShardError where it has none."""
    shard_set = open_shards(path, encoder=encoder)
    held = list(shard_set.manifest.encoders)
    if encoder is not None:
        held = [fingerprint for fingerprint in held if fingerprint.name == shard_set.encoder]
    sampling, dtype = (held[0].sampling, held[0].dtype) if held else (FrameSampling(), "float32")
    ours = policy.fingerprint(sampling, dtype)  # reads and hashes the tower's tensors, once
    for fingerprint in held:
        mine = ours.model_copy(update={"sampling": fingerprint.sampling, "dtype": fingerprint.dtype})
        if mine.hex8 == fingerprint.hex8:
            return shard_set.reading(fingerprint.name)
    check_encoder(shard_set, ours)  # raises, naming both fingerprints
    raise AssertionError("check_encoder accepts a fingerprint that no encoder of the set has")


def with_variants(shard_set: ShardSet, *, dt_s: float | None = None) -> tuple[ShardSet, VariantSettings]:
    """The same set, its samples with frame variants, and how those were made. Raises ConfigError where it has none, or
    none of `dt_s` (None: any)."""
    found, root, wanted = shard_set.variant_settings(), shard_set.store.root, 3.0 if dt_s is None else dt_s
    command = (f"`taro preprocess RECIPE --set out={root} --only variants --set variants.count=4 --set "
               f"variants.dt_s={wanted:g}` (it needs the videos)")
    if found is None:
        raise ConfigError(f"{root}: the disruption frame needs frame variants of {shard_set.encoder}, and the set has "
                          f"none; make them with {command}, or use another disruption")
    if dt_s is not None and found.dt_s != dt_s:
        raise ConfigError(f"{root}: its frame variants shuffle frames within {found.dt_s:g} s, reward.dt_s is "
                          f"{dt_s:g}; set reward.dt_s={found.dt_s:g}, or make others with {command}")
    return shard_set.reading(shard_set.encoder, variants=True), found
