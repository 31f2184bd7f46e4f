"""A plan: what a run will take of each GPU, how many steps it has, and whether it fits.

Sizes are for the longest prompt of the selected queries and for responses that all reach `rollout.max_new_tokens`,
since a run must survive its worst step. Beside what torch allocates a GPU holds CUDA's own context and the gaps between
blocks: both are lines of their own, so that the other lines can be compared with torch's figures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from taro.train.config import LoraConfig, TrainConfig
from taro.train.plan.lengths import Lengths
from taro.train.plan.memory import Adapters, Job, peak_by_phase, states_bytes
from taro.train.plan.shapes import ModelShape
from taro.train.plan.speed import Speed, seconds_of_step, speed_file, speed_of

__all__ = ["ASSUMED", "CONTEXT", "GAPS", "Machine", "Plan", "job_of", "make_plan", "with_job"]

GIB = 2**30
CONTEXT = (0.6, 1.4)
"""GiB of CUDA's context, of cuBLAS and, on several GPUs, of NCCL"""
GAPS = 0.02
"""share of what is allocated that lies in gaps between blocks"""
ASSUMED = Lengths(3950, 3950.0, 3584, 2500, known=False)
"""prompts where there is no shard set to ask: 2,500 of them, videos of the released budget of 3,584 tokens, and the
template's text"""
MEAN_RESPONSE = 0.3
"""share of rollout.max_new_tokens that a response is assumed to take where no run tells"""
NAMES = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@dataclass(frozen=True)
class Machine:
    """gpus: that train together; memory_gib: of each; name: of the GPU, "" where it is not here."""

    gpus: int = 1
    memory_gib: float = 79.2
    name: str = ""


@dataclass(frozen=True)
class Plan:
    """What is planned, in bytes of one GPU. always: parts that stay; phases: the parts of each phase besides; memory:
    of the GPU, gpu: its name; steps: of the run; response: tokens of one on average, and whether a run told; speed: of
    this machine or another; kl: of the loss."""

    job: Job
    always: dict[str, int]
    phases: dict[str, dict[str, int]]
    memory: int
    gpu: str
    steps: int
    lengths: Lengths
    response: tuple[float, bool]
    speed: Speed
    kl: float

    @property
    def hours(self) -> float:
        """Of all steps; validation, checkpoints and the start are not counted."""
        return self.steps * seconds_of_step(self.job, self.speed, prompt=self.lengths.mean, response=self.response[0],
                                            kl=self.kl) / 3600

    def allocated(self, phase: str) -> int:
        """What torch holds in a phase at its fullest."""
        return sum(self.always.values()) + sum(self.phases[phase].values())

    @property
    def peak_phase(self) -> str:
        """The phase that takes most."""
        return max(self.phases, key=self.allocated)

    @property
    def context(self) -> int:
        """CUDA's own."""
        return int(CONTEXT[self.job.world > 1] * GIB)

    @property
    def gaps(self) -> int:
        """Between blocks, at the peak."""
        return int(GAPS * self.allocated(self.peak_phase))

    @property
    def peak(self) -> int:
        """All of it, at the peak."""
        return self.allocated(self.peak_phase) + self.context + self.gaps

    @property
    def fits(self) -> bool:
        """Whether the GPU holds it."""
        return self.peak <= self.memory

    @property
    def response_tokens(self) -> tuple[float, int]:
        """(expected, at most) tokens of all responses of the run."""
        rollouts = self.steps * self.job.prompts * self.job.world * self.job.G
        return rollouts * self.response[0], rollouts * self.job.R


def job_of(config: TrainConfig, shape: ModelShape, lengths: Lengths, *, world: int = 1, bf16: bool = True) -> Job:
    """What of a run decides its memory. Ranks take the prompts of a step in turn: the first has most."""
    rollout, optimizer, lora = config.rollout, config.optimizer, config.lora
    prompts = -(-rollout.prompts // world)
    mini = -(-rollout.prompts // optimizer.mini_batches // world)
    return Job(
        shape=shape, bf16=bf16, states=optimizer.states,
        reference="none" if config.loss.kl == 0 else config.reference,
        adapters=None if lora is None else _adapters(lora), recompute=optimizer.checkpoint_activations,
        offload=optimizer.offload_activations, world=world, prompts=prompts,
        batch=min(rollout.batch_prompts, prompts), micro=min(optimizer.micro_prompts, max(mini, 1)), G=rollout.group,
        R=rollout.max_new_tokens, P=lengths.longest, M=lengths.video, top_p=rollout.top_p < 1)


def _adapters(lora: LoraConfig) -> Adapters:
    names = {one.rpartition(".")[2] for one in lora.targets}
    return Adapters(lora.rank, tuple(sorted(names & NAMES)), lora.dora)


def make_plan(config: TrainConfig, shape: ModelShape, lengths: Lengths, machine: Machine | None = None, *,
              bf16: bool = True, response: float | None = None, cache: Path | None = None) -> Plan:
    """The plan of a run. response: mean tokens of a response in an earlier run; cache: the file of this machine's
    speeds, None: `speed_file`."""
    machine = machine or Machine()
    job = job_of(config, shape, lengths, world=machine.gpus, bf16=bf16)
    drawn = config.data.draws or lengths.queries
    steps = config.length.amount * (drawn // config.rollout.prompts if config.length.unit == "epochs" else 1)
    mean = (response or MEAN_RESPONSE * job.R, response is not None)
    speed = speed_of(job, machine.name, cache or speed_file())
    return Plan(job, states_bytes(job), peak_by_phase(job), int(machine.memory_gib * GIB), machine.name, steps, lengths,
                mean, speed, config.loss.kl)


def with_job(plan: Plan, **changes: Any) -> Plan:
    """The same run with another `Job`."""
    job = replace(plan.job, **changes)
    return replace(plan, job=job, always=states_bytes(job), phases=peak_by_phase(job))
