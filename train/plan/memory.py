"""Bytes of one GPU, part by part and phase by phase, from shapes alone.

Each function follows one piece of code and counts what it holds at its fullest: the tensors that autograd keeps, and
those that are alive in the same moment. What is smaller than a thousandth of the whole is left out (ids, positions,
rotary tables of a pass), as are biases. `tests/train/test_plan.py` compares the parts with what torch holds,
`benchmarks/plan_check.py` the peaks with a GPU's.
Legend: B prompts decoded at once, G rollouts, P prompt tokens, R response tokens, T = P + G * R tokens of a packed row;
D, F, L, H, K, d, V as in shapes.py."""

from __future__ import annotations

from dataclasses import dataclass, replace

from taro.models.logprobs import TOKENS_AT_ONCE
from taro.train.plan.shapes import ModelShape

__all__ = ["Adapters", "Job", "attention_bytes", "cache_bytes", "kept_bytes", "peak_by_phase", "states_bytes"]

STATES = {"float32": (4, 8), "bfloat16": (4, 4), "8bit": (0, 2 + 8 / 256)}
"""setting -> bytes a parameter of the master weight and of both moments; the gradient has 4, with 8bit on one GPU 2"""
SAMPLING = {False: 20, True: 48}
"""bytes of a logit while a token is picked: float32 logits, float64 probabilities and their sums; with top_p sorted"""
MIXING = 10
"""bytes of an attention score while a token is decoded: both parts in bfloat16, the softmax and its input in float32"""
MASKS = 5
"""bools of a packed row's mask [T, T] while it is made"""
AWAY = 3
"""layers whose inputs are on the GPU with offloaded activations: this one's, one on its way, the last one's"""
UPDATED_AT_ONCE = 1 << 24
"""elements of a parameter that the optimizer updates at a time"""
UPDATING = {"float32": 16, "bfloat16": 48, "8bit": 72}
"""bytes of one of them meanwhile: numbers in float32, and the random bits of rounding"""


@dataclass(frozen=True)
class Adapters:
    """LoRA: rank, the names of the Linears that have one, whether rows have norms of their own, and in how many layers
    each of the Linears has one (None: in all)."""

    rank: int
    targets: tuple[str, ...]
    dora: bool = False
    layers: tuple[int, ...] | None = None

    def places(self, shape: ModelShape) -> list[tuple[int, int, int]]:
        """(layers, inputs, outputs) of each target."""
        layers = self.layers or (shape.L,) * len(self.targets)
        return [(count, *shape.linears[name]) for name, count in zip(self.targets, layers, strict=True)]


@dataclass(frozen=True)
class Job:
    """What of a run decides its memory. bf16: computes in bfloat16; P: tokens of the longest prompt, M of them its
    video's; prompts, batch, micro: of a rank in a step, decoded at once, in one backward pass; sft: responses are
    given, not drawn; validation: prompts decoded at once and tokens of an answer, None: there is none; one_pass: the
    disrupted videos are scored inside the update (`taro.train.one_pass`)."""

    shape: ModelShape
    bf16: bool
    states: str
    reference: str
    adapters: Adapters | None
    recompute: bool
    offload: bool
    world: int
    prompts: int
    batch: int
    micro: int
    G: int
    R: int
    P: int
    M: int
    top_p: bool = False
    sft: bool = False
    entropy: bool = False
    redraws: int = 0
    validation: tuple[int, int] | None = None
    one_pass: bool = False

    @property
    def T(self) -> int:
        """Tokens of a packed row at most."""
        return self.P + self.G * self.R

    @property
    def size(self) -> int:
        """Bytes of a number in products of matrices."""
        return 2 if self.bf16 else 4

    @property
    def trained(self) -> int:
        """Parameters that are trained."""
        if self.adapters is None:
            return self.shape.parameters
        rank, dora = self.adapters.rank, self.adapters.dora
        return sum(layers * (rank * (inputs + outputs) + outputs * dora)
                   for layers, inputs, outputs in self.adapters.places(self.shape))


def states_bytes(job: Job) -> dict[str, int]:
    """What stays on a GPU from the first step to the last."""
    shape, matrices = job.shape, job.shape.matrices
    whole = matrices * job.size + shape.norms * 4
    master, moments = STATES[job.states]
    if not job.bf16 or job.adapters is not None:  # then the weights that compute are those that are trained
        master = 0
    gradient = 2 if (job.states, job.world, job.bf16, job.adapters) == ("8bit", 1, True, None) else 4
    mine = job.trained / job.world
    parts = {"compute weights": whole, "master weights": int(mine * master), "gradients": int(mine * gradient),
             "moments": int(mine * moments)}
    if job.adapters is not None:
        parts["adapters"] = job.trained * 4
        parts["replica"] = job.size * sum(layers * inputs * outputs for layers, inputs, outputs
                                          in job.adapters.places(shape))
    elif job.reference in {"gpu", "sharded"}:
        parts["reference"] = whole // (1 if job.reference == "gpu" else job.world)
    parts["videos"] = job.prompts * job.M * shape.D * job.size * (1 + shape.levels)
    return parts


def cache_bytes(job: Job) -> dict[str, int]:
    """Keys and values of the prompts decoded at once, and of their rollouts (`taro.models.decoding`)."""
    shape, rows = job.shape, job.batch * job.G
    one = 2 * shape.K * shape.d * job.size * shape.L
    return {"prompts' keys and values": job.batch * job.P * one, "rollouts' keys and values": rows * job.R * one,
            "tokens seen": rows * shape.V}


def _decoding(job: Job) -> int:
    """Sampling a token, or a token's forward pass, whichever is more; and one layer's copy where prompts leave."""
    rows, shape = job.batch * job.G, job.shape
    mixing = MIXING * rows * shape.H * (job.P + job.R)
    caches = cache_bytes(job)
    copies = (caches["prompts' keys and values"] + caches["rollouts' keys and values"]) // shape.L
    return max(SAMPLING[job.top_p] * rows * shape.V, mixing, copies)


def kept_bytes(job: Job) -> int:
    """Bytes a token that autograd keeps of one layer, the layer's input counted in."""
    shape, size, full = job.shape, job.size, job.adapters is None
    D, F, Hd, Kd = shape.D, shape.F, shape.H * shape.d, shape.K * shape.d
    targets = tuple(shape.linears) if job.adapters is None else job.adapters.targets
    norms = 2 * D * 4 * (2 if full else 1)  # input of each norm; normed values, where the norm's weight is trained
    norms += 2 * 4  # one over the root mean square, of each norm
    head = (Hd + Kd) * (4 + (size if full else 0)) + (shape.H + shape.K) * 4 if shape.head_norms else 0
    # Under autocast each Linear that needs its input makes its own copy of it; in float32 they share one.
    inputs = [name for name in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj") if name in targets]
    copies = size * D * len(inputs) if job.bf16 else 4 * D * (bool(inputs[:3]) + ("gate_proj" in targets)) // 1
    attention = 4 * Hd * size + 4 * shape.H
    attention += 0 if full else Hd * size * ("o_proj" in targets)
    mlp = F * size * (4 if "down_proj" in targets else 3)
    mlp += 0 if job.adapters is None else job.adapters.rank * size * len(targets)  # what each A puts out
    return norms + head + copies + attention + mlp


def attention_bytes(job: Job) -> int:
    """What a packed row's mask takes: as bools, and in the dtype of attention."""
    return job.T**2 * (1 + job.size)


def _forward(job: Job) -> int:
    """A layer of a packed row without autograd: inside the MLP, or inside attention."""
    shape, size = job.shape, job.size
    mlp = job.T * (4 * 4 * shape.D + 3 * size * shape.F) + job.T**2  # embeddings, input, residual, normed; 3 products
    attention = job.T * (3 * 4 * shape.D + (4 + 4 * size) * shape.H * shape.d) + attention_bytes(job)
    return max(mlp, attention) + job.T * 2 * 4 * shape.d  # cosines and sines of the positions


def _logits(job: Job) -> int:
    """fp32 logits of a chunk [TOKENS_AT_ONCE, V], once."""
    return min(TOKENS_AT_ONCE, job.G * job.R) * job.shape.V * 4


def _update(job: Job) -> dict[str, int]:
    """Forward and backward of a micro-batch: where the logits stand, or inside the last layer, whichever is more."""
    shape, kept = job.shape, kept_bytes(job)
    rows = job.micro
    mask = rows * job.T * (job.T + 2 * 4 * shape.d)  # and cosines and sines of the positions
    ends = rows * (2 * job.T + job.G * job.R) * 4 * shape.D  # of the last norm, and hidden states that predict tokens
    if job.recompute:
        layers = min(AWAY, shape.L) if job.offload else shape.L
        held = rows * job.T * 4 * shape.D * layers
        layer = job.T * (kept - 4 * shape.D) + job.size * job.T**2
    else:
        held, layer = rows * shape.L * (job.T * kept + job.size * job.T**2), 0
    layer += job.T * (2 * job.size * shape.F + (4 + job.size) * shape.D)  # gradients inside the MLP
    chunks = -(-job.G * job.R // TOKENS_AT_ONCE)
    # Gradients of bfloat16 weights leave as soon as they are whole. A head that is the embeddings waits for those.
    full = job.adapters is None
    head = shape.V * shape.D * job.size if full else 0
    waiting = head if shape.tied else 0
    inside = shape.D * shape.F * job.size if full and job.world > 1 else 0
    moments = [
        {"activations": held + mask + layer, "gradients on the way": inside + waiting},
        {"activations": held + mask + ends, "logits": (5 if job.entropy else 3) * _logits(job),
         "gradients on the way": head * (chunks > 1)}]
    if chunks > 1:  # autograd adds up the head's gradient of two chunks: both, and their sum
        moments.append({"activations": held + mask + ends, "gradients on the way": 3 * head})
    if job.states == "8bit" and full and job.world == 1 and job.prompts > job.micro:  # added up in parts, by chance
        most = max(shape.layer_matrices, shape.V * shape.D) * job.size + UPDATING["8bit"] * UPDATED_AT_ONCE // 2
        moments.append({"activations": held + mask, "gradients on the way": most + waiting})
    if job.world > 1 and full:  # a layer's gradients, or the head's, in float32 for all ranks, beside themselves
        most = max(shape.layer_matrices, shape.V * shape.D)
        moments.append({"activations": held + mask + ends,
                        "gradients on the way": most * (job.size + 4) + most * 4 // job.world})
    if job.one_pass:
        moments.append({"activations": held + mask + ends + _scoring(job), **_disrupted(job, rows)})
    if rows > 1:  # the ends of the other rows wait while one goes back
        moments[0]["activations"] += ends * (rows - 1) // rows
    return max(moments, key=lambda parts: sum(parts.values()))


def _video(job: Job) -> int:
    """A row's video, as it is put in place."""
    return job.M * job.shape.D * (job.size + 4) * (1 + job.shape.levels)


def _scoring(job: Job) -> int:
    """A row that is scored without a gradient."""
    longest = max(_forward(job), MASKS * job.T**2, 2 * _logits(job) + (job.T + job.G * job.R) * 4 * job.shape.D)
    return longest + (0 if job.adapters is None or not job.bf16 else job.trained * job.size)  # autocast's copies


def _disrupted(job: Job, prompts: int) -> dict[str, int]:
    """What stands beside the row of a disrupted video: those videos, and what the plain pass kept of its prompts."""
    shape = job.shape
    return {"disrupted videos": prompts * job.M * shape.D * job.size * (1 + shape.levels) + _video(job),
            "kept keys and values": prompts * job.P * 2 * shape.K * shape.d * job.size * shape.L}


def _step(job: Job) -> int:
    """The optimizer's temporaries for the elements that it updates at a time."""
    return UPDATING[job.states] * min(UPDATED_AT_ONCE, job.shape.V * job.shape.D)


def _streamed(job: Job) -> int:
    """A reference that comes a layer at a time scores the rows of a batch side by side (`taro.models.streamed`): 0 for
    one that lies on the GPU."""
    if job.adapters is not None or job.reference not in {"sharded", "host"}:
        return 0
    shape, row = job.shape, job.T * 4 * job.shape.D
    rows = job.batch * (row + job.M * shape.D * job.size * (1 + shape.levels))
    hidden = job.batch * job.G * job.R * 4 * shape.D
    return max(rows + 2 * shape.layer_matrices * job.size + _forward(job), rows + hidden + 3 * row,
               hidden + shape.V * shape.D * job.size + 2 * _logits(job))


def peak_by_phase(job: Job) -> dict[str, dict[str, int]]:
    """The parts of each phase at its fullest, without those that stay all the time (`states_bytes`)."""
    D, video, videos = job.shape.D, _video(job), states_bytes(job)["videos"]
    streamed, scoring = _streamed(job), _scoring(job) + _video(job)
    scores = {"streamed reference" if streamed > scoring else "activations": max(streamed, scoring)}
    if not job.one_pass:
        scores |= _disrupted(job, 1)
    rollouts = {**cache_bytes(job), "decoding": _decoding(job)}
    if job.redraws:  # those that are drawn again stand beside those that were
        rollouts["videos drawn again"] = scores["videos drawn again"] = videos
    phases = {"update": {**_update(job), "row's video": video}, "step": {"optimizer": _step(job)}}
    if not job.sft:
        phases = {"rollouts": rollouts, "scores": scores, **phases}
    if job.validation is not None:
        batch, longest = job.validation
        answers = replace(job, batch=batch, G=1, R=longest, top_p=False)
        phases["validation"] = {**cache_bytes(answers), "decoding": _decoding(answers),
                                "videos of answers": batch * job.M * D * job.size * (1 + job.shape.levels)}
    return phases
