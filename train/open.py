"""A run, opened: the policy and its frozen reference, the data, the optimizer, and where they stand.

`open_run` does everything that happens once, and refuses what does not fit before a weight is loaded: a folder that
holds another run, a shard set of another vision tower, an empty split. Left out: the loop (`taro.train.loop`)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taro.core.errors import ConfigError, Stopped
from taro.core.files import explain_disk_errors, make_folders
from taro.grounding.prompts import Asking
from taro.metrics.scores import Prediction
from taro.models.adapters import Lora, Merged, add_adapters
from taro.models.asking import asking_of, check_asking
from taro.models.folder import pixel_settings
from taro.models.load import load_compute
from taro.models.policy import Policy
from taro.models.resolve import compute_device, resolve_place
from taro.train.adapters import without_adapters
from taro.train.ahead import SamplesAhead
from taro.train.checkpoint import (
    DamagedError,
    RunState,
    Saver,
    checkpoints,
    prune_checkpoints,
    read_state,
    resume_checkpoint,
)
from taro.train.config import RewardConfig, ShardSource, TrainConfig
from taro.train.data import TrainingData, TrainingSet, select
from taro.train.optimizer.optimizer import Optimizer
from taro.train.phases import Phases
from taro.train.plan.make import Plan
from taro.train.plan.open import check_fits
from taro.train.ranks import ALONE, Ranks
from taro.train.reference import Reference, open_reference
from taro.train.run_dir import check_run, lock_folder, read_facts, write_facts
from taro.train.sets import open_encoded_shards, with_variants
from taro.train.trackers import Tracker, open_trackers, truncate_to_step
from taro.train.tracking import table_rows
from taro.train.update import make_optimizer
from taro.train.watch import Watch

__all__ = ["OnStep", "OnWork", "Run", "open_run"]

AGAIN = "Make room or fix the disk, then run the same command again; nothing is lost"

OnStep = Callable[[dict[str, Any]], None]
OnWork = Callable[[str | None, int, int | None], None]
"""(work beside the steps, parts done, parts in all or None where nobody knows); (None, 0, None) when it is over"""


@dataclass
class Run:
    """Everything that a step needs. `state` and the tensors change; the rest is fixed for the run. `merged`: the
    replica of a policy with adapters; `bf16`: it computes in bfloat16; `plan`: of its memory, on a GPU."""

    config: TrainConfig
    policy: Policy
    merged: Merged | None
    reference: Reference | None
    asking: Asking
    data: TrainingData
    optimizer: Optimizer
    state: RunState
    trackers: list[Tracker]
    lock: contextlib.ExitStack
    bf16: bool
    on_step: OnStep | None = None
    resumed_at: int | None = None
    last: dict[str, Any] = field(default_factory=dict)
    watch: Watch = field(default_factory=Watch)
    on_work: OnWork | None = None
    ranks: Ranks = ALONE
    phases: Phases = field(default_factory=Phases)
    asked: Sequence[int] = ()
    validated: bool = True
    """whether a run that goes on has the scores of its step, where they are due"""
    plan: Plan | None = None
    misses: dict[str, list[Prediction]] = field(default_factory=dict)
    """of each set that is validated on, read at the first validation"""
    ahead: SamplesAhead = field(init=False)
    saver: Saver = field(init=False)

    def __post_init__(self) -> None:
        self.phases.observers.append(lambda name, begins: self.ranks.note(name if begins else ""))
        self.ahead = SamplesAhead(self.data, self.steps, self.ranks)
        knobs = self.config.checkpoint
        self.saver = Saver(self.folder / "checkpoints", self.optimizer, ranks=self.ranks, keep=knobs.keep,
                           facts=self.must_stay, background=knobs.background)

    @property
    def must_stay(self) -> dict[str, Any]:
        """What a checkpoint says of the settings that its tensors depend on."""
        return _must_stay(self.config)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.config.out

    @property
    def sampling(self) -> Policy:
        """What rollouts and answers are drawn from: the policy, or the merged replica of one with adapters."""
        return self.policy if self.merged is None else self.merged.policy

    def refresh(self) -> None:
        """Brings `sampling` up to the policy, whose weights changed."""
        if self.merged is not None:
            self.merged.refresh()

    @property
    def steps(self) -> int:
        """Updates in the whole run."""
        return self.config.length.amount * (self.data.steps_per_epoch if self.config.length.unit == "epochs" else 1)

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Hands one line to every tracker and to the caller's callback."""
        for tracker in self.trackers:
            tracker.log(step, values)
        if self.on_step is not None:
            self.on_step({"step": step, "steps": self.steps, **values})

    def log_rollouts(self, step: int, lines: Sequence[str]) -> None:
        """When due, hands the trackers a table of some of the step's rollouts (JSON lines)."""
        knobs = self.config.tracking
        if self.config.trackers and knobs.rollout_table_every and step % knobs.rollout_table_every == 0:
            rows = table_rows(lines, knobs.rollouts, seed=self.config.seed, step=step)
            for tracker in self.trackers:
                tracker.rollouts(step, rows)

    def pause(self) -> None:
        """A moment at which a run can stop: raises Stopped where a signal has asked any of the ranks to (`asked`)."""
        if self.ranks.any(bool(self.asked)):
            raise Stopped

    @contextlib.contextmanager
    def working(self, what: str, unit: str = "") -> Iterator[Callable[[int, int], None]]:
        """Tells the caller's callback of work beside the steps while the block runs; yields what counts it, in `unit`
        where the work does not say it."""
        tell: OnWork = self.on_work or (lambda *_: None)
        shown = f"{what} ({unit})" if unit else what
        tell(shown, 0, None)
        self.ranks.note(what)
        try:
            yield lambda done, total: tell(shown, done, total)
            self.ranks.note(self.phases.now)
        finally:
            tell(None, 0, None)

    def close(self) -> None:
        """Ends what is being written, closes the trackers, then leaves the folder to others, whatever those meet."""
        self.ahead.close()
        try:
            self.saver.close()
            for tracker in self.trackers:
                tracker.close()
        finally:
            self.lock.close()

    def kept(self) -> str:
        """What a message says of a run that stops: what is kept, and how to go on."""
        found = checkpoints(self.folder / "checkpoints")
        last = f"Checkpoint {found[-1].name} is kept" if found else "There is no checkpoint yet"
        return f"{last}; make room or fix the disk, then run the same command with --resume"


def open_run(config: TrainConfig, *, resume: bool, on_step: OnStep | None = None, ranks: Ranks = ALONE) -> Run:
    """Opens a new run, or an interrupted one from its newest checkpoint; on every rank, of which the first writes.
    Raises TaroError where something does not fit, before any weight is read where that can be told."""
    ranks.note("opening the run")
    ranks.check_same("settings", config.model_dump_json().encode())
    if ranks.first:
        check_run(config, resume=resume)
    place, device = resolve_place(config.policy, config.adapter), compute_device(config.device)
    folder = place.base
    pixel_settings(folder)  # training needs no processor, but whoever loads the export does
    data = TrainingData([_open_set(source, folder, config.reward, config.seed) for source in config.sources],
                        prompts=config.rollout.prompts, seed=config.seed, draws=config.data.draws,
                        validation=config.validation,
                        buffer=config.data.buffer if config.data.reading == "stream" else None)
    if config.curriculum.schedule != "off" and config.objective == "rl":
        data.warn_missing_captions(config.rollout.paths)
    asking = asking_of(place.asked, template=config.template, no_think=config.reward.no_think,
                       protocol=config.reward.protocol)
    asking.text("")  # raises where the template has no such mode, before the folder is begun
    precision = config.dtype if config.dtype != "auto" else "bfloat16" if device.type == "cuda" else "float32"
    bf16 = precision == "bfloat16"
    facts = {"template_sha256": asking.template.sha256, "compute_dtype": precision,
             "validation_sha256": data.validation_sha256}
    ranks.check_same("queries or features", data.sha256.encode())
    if resume and ranks.first:
        _check_data(config.out, data)
        facts = _with_policy(config.out, facts)
    elif ranks.first:
        facts["policy_sha256"] = place.sha256()
    plan = check_fits(config, data, asking, folder, bf16=bf16)
    policy = load_compute(place, device, bf16=bf16, trainable=config.lora is None, double=precision == "float64")
    if config.lora is not None:
        add_adapters(policy, Lora(**config.lora.model_dump()), seed=config.seed)
    check_asking(policy, asking)
    with explain_disk_errors(config.out, lambda: AGAIN):
        lock = lock_folder(config, resume=resume) if ranks.first else contextlib.ExitStack()
        for name in ("checkpoints", "rollouts") if ranks.first else ():
            make_folders(config.out / name)
    ranks.barrier()
    optimizer = make_optimizer(policy, config.optimizer, ranks, seed=config.seed)
    found = resume_checkpoint(config.out / "checkpoints", optimizer, ranks=ranks,
                              facts=_must_stay(config)) if resume else None
    state = found or RunState()
    state.data_sha256 = data.sha256
    ranks.check_weights(policy.named_parameters())
    trackers, validated = _begin_files(config, {**data.summary(), **facts}, found) if ranks.first else ([], True)
    if config.lora is None:
        merged, reference = None, open_reference(config, place, device, bf16=bf16, ranks=ranks)
    else:
        merged, reference = Merged(policy), without_adapters(config, policy, bf16=bf16)
    return Run(config, policy, merged, reference, asking, data, optimizer, state, trackers, lock, bf16,
               on_step if ranks.first else None, None if found is None else state.step, ranks=ranks, plan=plan,
               validated=not ranks.any(not validated))


def _begin_files(config: TrainConfig, facts: dict[str, Any], found: RunState | None) -> tuple[list[Tracker], bool]:
    """Brings the files of the run folder to where the run stands; returns what is written on, and whether the scores of
    that step are there: a run that was stopped while it validated has none."""
    step = 0 if found is None else found.step
    with explain_disk_errors(config.out, lambda: AGAIN):
        if found is not None:  # a run that was killed between its last checkpoint and the pruning saves no other
            prune_checkpoints(config.out / "checkpoints", keep=config.checkpoint.keep)
        logged = truncate_to_step(config.out, step)
        write_facts(config, facts)
    trackers = open_trackers(config.trackers, config.out, config.tracking, config.model_dump(mode="json"),
                             resumed=(step, logged))
    return trackers, found is None or any(row["step"] == step and "eval" in row for row in logged)


def _must_stay(config: TrainConfig) -> dict[str, Any]:
    lora = {} if config.lora is None else config.lora.model_dump(mode="json")
    return {"optimizer.states": config.optimizer.states, **{f"lora.{key}": value for key, value in lora.items()}}


def _check_data(folder: Path, data: TrainingData) -> None:
    """Raises ConfigError where the newest checkpoint that can be read is of other queries or features."""
    for path in reversed(checkpoints(folder / "checkpoints")):
        try:
            started_with = read_state(path).data_sha256
        except DamagedError:
            continue
        if started_with not in ("", data.sha256):
            paths = ", ".join(one.source.path for one in data.drawn)
            raise ConfigError(f"{paths}: the queries or features are not those that the run in {folder} was "
                              "started with; restore the shard set, or start a new run on this one")
        return


def _with_policy(folder: Path, facts: dict[str, str]) -> dict[str, str]:
    """Facts of a run that goes on, with the digest of the policy that it was begun with. Raises ConfigError where the
    template, the precision or the validation split are others."""
    begun = read_facts(folder)
    differ = [f"{key}: {begun[key]} -> {value}" for key, value in facts.items() if begun.get(key, value) != value]
    if differ:
        raise ConfigError(f"{folder} was begun with another template, precision or validation split; restore what it "
                          "had (a run begun on a GPU goes on elsewhere with --set dtype=bfloat16), or start a new run. "
                          f"Changed: {'; '.join(differ)}")
    return {**facts, **({"policy_sha256": begun["policy_sha256"]} if "policy_sha256" in begun else {})}


def _open_set(source: ShardSource, policy: Path, reward: RewardConfig, seed: int) -> TrainingSet:
    shard_set = open_encoded_shards(source.path, policy, encoder=source.encoder)
    if reward.disruption == "frame" and source.weight:
        shard_set, _ = with_variants(shard_set, dt_s=reward.dt_s)
    return select(source, shard_set, seed=seed)
