"""A plan: what a run will take of each GPU, how many steps it has, and whether it fits.

Sizes are for the longest prompt of the selected queries and for responses that all reach `rollout.max_new_tokens`,
since a run must survive its worst step. Beside what torch allocates a GPU holds CUDA's own context and the gaps between
blocks: both are lines of their own, so that the other lines can be compared with torch's figures."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from taro.models.adapters import targeted
from taro.train.config import LoraConfig, TrainConfig
from taro.train.one_pass import in_one_pass
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
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
"""Linears of a layer's attention; its others are the MLP's"""


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
    prompts: int
    """of a step, all GPUs together"""

    @property
    def hours(self) -> tuple[float, float]:
        """Of all steps (where no group is drawn again, where every group is in every round of `rollout.redraws`);
        validation, checkpoints and the start are not counted."""
        least, most = (self.steps * seconds_of_step(self.job, self.speed, prompt=self.lengths.mean,
                                                    response=self.response[0], kl=self.kl, redraws=redraws) / 3600
                       for redraws in (0, self.job.redraws))
        return least, most

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
        """(expected, at most) tokens of all responses of the run; those that are drawn again count in the second."""
        rollouts = self.steps * self.prompts * self.job.G
        return rollouts * self.response[0], rollouts * self.job.R * (1 + self.job.redraws)


def job_of(config: TrainConfig, shape: ModelShape, lengths: Lengths, *, world: int = 1, bf16: bool = True) -> Job:
    """What of a run decides its memory. Ranks take the prompts of a step in turn: the first has most."""
    rollout, optimizer, lora, answers = config.rollout, config.optimizer, config.lora, config.validation
    sft = config.objective == "sft"
    prompts = -(-rollout.prompts // world)
    mini = -(-rollout.prompts // optimizer.mini_batches // world)
    return Job(
        shape=shape, bf16=bf16, states=optimizer.states,
        reference="none" if config.loss.kl == 0 or sft else config.reference,
        adapters=None if lora is None else _adapters(lora, shape, config.policy),
        recompute=optimizer.checkpoint_activations, offload=optimizer.offload_activations, world=world, prompts=prompts,
        batch=min(rollout.batch_prompts, prompts), micro=min(optimizer.micro_prompts, max(mini, 1)), G=rollout.group,
        R=rollout.max_new_tokens, P=lengths.longest, M=lengths.video, top_p=rollout.top_p < 1, sft=sft,
        entropy=config.loss.entropy > 0 and not sft, redraws=0 if sft else rollout.redraws,
        validation=None if answers.split is None else (answers.batch_prompts, answers.max_new_tokens),
        one_pass=in_one_pass(config) and not sft)


def _adapters(lora: LoraConfig, shape: ModelShape, policy: str) -> Adapters:
    """Raises ConfigError where a target names no Linear."""
    names = [f"layers.{layer}.{'self_attn' if name in ATTENTION else 'mlp'}.{name}"
             for layer in range(shape.L) for name in shape.linears]
    counts = Counter(one.rpartition(".")[2] for one in targeted(names, lora.targets, policy))
    return Adapters(lora.rank, tuple(counts), lora.dora, tuple(counts.values()))


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
                mean, speed, config.loss.kl, config.rollout.prompts)


def with_job(plan: Plan, **changes: Any) -> Plan:
    """The same run with another `Job`."""
    job = replace(plan.job, **changes)
    return replace(plan, job=job, always=states_bytes(job), phases=peak_by_phase(job))
