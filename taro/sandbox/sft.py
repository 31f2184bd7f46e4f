"""Supervised training of the sandbox's multimodal models: AdamW, warm-up and cosine by step count, bf16 on GPUs.

The schedule never depends on the clock, except once: where the first steps show that all of them would not fit in the
time given, the number of steps is cut before the rate has begun to fall, and the log says so."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from taro.sandbox.data import Examples
from taro.sandbox.net import FlatPatches, pixels, token_losses
from taro.sandbox.tokens import build_tokenizer

__all__ = ["Schedule", "train_model"]

MEASURE = (60, 160)
"""steps between which speed is measured, after compilation"""


@dataclass(frozen=True)
class Schedule:
    """steps, batch, peak rate, warm-up steps; floor: share of the rate left at the end; noise: pixels' deviation;
    tower: whether it is trained; limit_s: time that the steps may take; every: steps between evaluations."""

    steps: int
    batch: int = 128
    rate: float = 1e-3
    warmup: int = 200
    floor: float = 0.02
    noise: float = 0.02
    weight_decay: float = 0.05
    tower: bool = True
    limit_s: float = 210.0
    every: int = 1500
    seed: int = 0

    def rate_at(self, step: int) -> float:
        """Learning rate of step 1 .. steps."""
        progress = max(0, step - self.warmup) / max(1, self.steps - self.warmup)
        falling = self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return self.rate * min(1.0, step / max(1, self.warmup)) * falling


def train_model(model: Any, frames_FHWC: torch.Tensor, examples: Examples, schedule: Schedule, *,
                say: Callable[..., None], evaluate: Callable[[int], None], compiled: bool) -> int:
    """Trains in place; frames and examples are where the model is. Returns the number of steps made."""
    device = frames_FHWC.device
    before = torch.tensor(build_tokenizer()("<|im_start|>user\n<|vision_start|>")["input_ids"], device=device)
    stock = model.model.visual.patch_embed
    model.model.visual.patch_embed = FlatPatches(stock)
    model.requires_grad_(True)
    model.model.visual.requires_grad_(schedule.tower)
    optimizer = _optimizer(model, schedule)
    draws = torch.Generator().manual_seed(schedule.seed)
    torch.manual_seed(schedule.seed)
    noise, patch_px = schedule.noise, model.model.visual.patch_size

    def loss_of(batch: Examples, frames_BTHWC: torch.Tensor, flip_B: torch.Tensor) -> torch.Tensor:
        return token_losses(model, batch, pixels(frames_BTHWC, flip_B, noise, patch_px), before)

    losses = _compiled(loss_of, say) if compiled else loss_of
    step, began, marked = 0, time.monotonic(), 0.0
    average: torch.Tensor | None = None
    try:
        while step < schedule.steps:
            step += 1
            index = torch.randint(len(examples), (schedule.batch,), generator=draws).to(device)
            batch = examples.select(index)
            flip = torch.rand(schedule.batch, generator=draws).to(device) < 0.5
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate_at(step)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = losses(batch, frames_FHWC[batch.cells_NT], flip)
            loss.backward()
            torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            average = loss.detach() if average is None else average * 0.98 + loss.detach() * 0.02
            if step == MEASURE[0]:
                marked = _now(device)
            if step == MEASURE[1]:
                schedule = _fit(schedule, (_now(device) - marked) / (MEASURE[1] - MEASURE[0]), say)
            if step in (1, 20) or step % 250 == 0 or step == schedule.steps:
                say(step=step, loss=round(float(average), 4), seconds=round(time.monotonic() - began, 1))
            if step % schedule.every == 0 and step < schedule.steps:
                evaluate(step)
    finally:
        model.model.visual.patch_embed = stock
    return step


def _compiled(loss_of: Callable[..., torch.Tensor], say: Callable[..., None]) -> Callable[..., torch.Tensor]:
    """`loss_of` compiled; as it is, and said so, where this version of torch cannot compile it."""
    state: dict[str, Any] = {"call": torch.compile(loss_of), "tried": False}

    def loss(*arguments: Any) -> torch.Tensor:
        if state["tried"]:
            return torch.as_tensor(state["call"](*arguments))
        state["tried"] = True
        try:
            return torch.as_tensor(state["call"](*arguments))
        except torch._dynamo.exc.TorchDynamoException as error:
            say(not_compiled=f"{type(error).__name__}: {str(error)[:300]}")
            state["call"] = loss_of
            return loss_of(*arguments)

    return loss


def _optimizer(model: Any, schedule: Schedule) -> torch.optim.Optimizer:
    kept: list[torch.nn.Parameter] = []
    decayed: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            free = parameter.ndim < 2 or "norm" in name or "embed_tokens" in name
            (kept if free else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": schedule.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    fused = next(model.parameters()).device.type == "cuda"
    return torch.optim.AdamW(groups, lr=schedule.rate, betas=(0.9, 0.98), fused=fused)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.monotonic()


def _fit(schedule: Schedule, seconds_a_step: float, say: Callable[..., None]) -> Schedule:
    fitting = max(MEASURE[1] + 1, int(schedule.limit_s / seconds_a_step))
    say(ms_a_step=round(1000 * seconds_a_step, 1), steps=min(fitting, schedule.steps))
    return schedule if fitting >= schedule.steps else replace(schedule, steps=fitting)
