"""Trains the sandbox's models from seeds: `taro sandbox build OUT`, or `python -m taro.sandbox.build --out OUT`.

Order: videos (real mp4s, written and read back); for each family the captioner (perception and grounding) and the weak
policy (the captioner, taught bad habits; its tower stays, so both read the same features); the open_clip model. Each is
saved and scored on held-out worlds as soon as it exists; every line printed also goes to training-log.jsonl. A build
that stopped goes on with the first model that its log does not score. Seeds below one million are for training; the
worlds that users make, and those that score, start higher up."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from taro.core.errors import ConfigError
from taro.sandbox.card import write_cards
from taro.sandbox.clip import build_clip, clip_scores, save_clip, train_clip
from taro.sandbox.data import Plan, Videos, make_videos
from taro.sandbox.evaluate import evaluate_model
from taro.sandbox.models import FAMILIES, build_model, save_model
from taro.sandbox.sft import Schedule, train_model
from taro.sandbox.world import World, WorldSettings, make_world

__all__ = ["EVALUATION_SEED", "PARTS", "BuildSettings", "build_sandbox", "main"]

EVALUATION_SEED = 3_900_000
"""held-out worlds that score the models while they are made"""
PARTS = (*FAMILIES, "clip")
"""what can be built on its own"""
SHAPING = ("videos", "steps", "weak_steps", "clip_steps", "held_out", "batch", "clip_batch", "seed")
"""settings that a build which goes on must share with the one that stopped"""


@dataclass(frozen=True)
class BuildSettings:
    """Sizes of a build; `quick` makes all of it tiny, to see it run. evaluations: how often a captioner is scored
    while it trains; parts: which of PARTS are built."""

    videos: int = 24_000
    steps: int = 7000
    weak_steps: int = 240
    clip_steps: int = 3000
    held_out: int = 192
    evaluations: int = 4
    limit_s: float = 210.0
    batch: int = 128
    clip_batch: int = 512
    processes: int = 1
    device: str = "cpu"
    seed: int = 0
    compiled: bool = False
    parts: tuple[str, ...] = PARTS

    @classmethod
    def quick(cls, **changed: Any) -> BuildSettings:
        """About a minute on a CPU."""
        small: dict[str, Any] = {"videos": 48, "steps": 6, "weak_steps": 3, "clip_steps": 12, "held_out": 6,
                                 "evaluations": 1, "batch": 4, "clip_batch": 64}
        return cls(**(small | changed))


class _Build:
    """Where a build stands: its folder, its log, its data."""

    def __init__(self, out: Path, settings: BuildSettings) -> None:
        self.out, self.settings, self.began = out, settings, time.monotonic()
        self.device = torch.device(settings.device)
        self.scores: dict[str, dict[str, float]] = {}
        self.steps: dict[str, int] = {}
        try:
            out.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise ConfigError(f"{out}: expected a folder to write, got a path with a file in it; "
                              "name another") from None
        self.log = out / "training-log.jsonl"
        self._earlier = _earlier(self.log, settings)

    def takes_up(self, name: str) -> bool:
        """Whether an earlier run of this build finished the model; its steps and scores are then taken over."""
        if name not in self._earlier or not (self.out / name).is_dir():
            return False
        self.steps[name], self.scores[name] = self._earlier[name]
        self.say(name, taken_up=self.steps[name])
        return True

    def say(self, stage: str, **facts: Any) -> None:
        """Prints a line and writes it down."""
        row = {"stage": stage, "at_s": round(time.monotonic() - self.began, 1), **facts}
        with self.log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")
        sys.stdout.write(" ".join(f"{key}={value}" for key, value in row.items()) + "\n")
        sys.stdout.flush()

    def finish(self, name: str, steps: int) -> None:
        """A model is trained, saved and scored."""
        self.steps[name] = steps
        self.say(name, finished=steps, scores=self.scores.get(name, {}))

    def plan(self) -> tuple[Plan, Plan]:
        """Videos to train on, videos to score with."""
        s = self.settings
        train = Plan(s.videos, s.seed * 100_000, labelled=min(s.videos, 6000), processes=s.processes)
        held = Plan(s.held_out, EVALUATION_SEED, mixed=1, labelled=0, processes=s.processes)
        return train, held

    def evaluate(self, name: str, model: Any, held: Videos, worlds: list[World], *, perception: bool,
                 step: int) -> None:
        """Saves a model and scores what was saved."""
        began = time.monotonic()
        folder = save_model(model, self.out / name)
        scores = evaluate_model(folder, worlds, held.frames_FHWC, device=self.device, perception=perception)
        self.scores[name] = scores
        self.say(name, step=step, took_s=round(time.monotonic() - began, 1), **scores)


def _earlier(log: Path, settings: BuildSettings) -> dict[str, tuple[int, dict[str, float]]]:
    """Steps and scores of the models that the log says are finished; ConfigError where it is of another build."""
    text = log.read_bytes() if log.is_file() else b""
    whole = text[: text.rfind(b"\n") + 1]
    if whole != text:
        log.write_bytes(whole)  # a kill or a full disk tore the last line
    rows = [json.loads(line) for line in whole.splitlines()]
    done: dict[str, tuple[int, dict[str, float]]] = {}
    for row in rows:
        if row["stage"] == "build":
            now = vars(settings)
            changed = [f"{key}: {row.get(key)} there, {now[key]} now" for key in SHAPING if row.get(key) != now[key]]
            if changed:
                raise ConfigError(f"{log.parent} holds a build with other settings ({'; '.join(changed)}); go on with "
                                  "those, or name another folder")
        elif "finished" in row:
            done[row["stage"]] = row["finished"], row["scores"]
    return done


def build_sandbox(out: Path, settings: BuildSettings) -> dict[str, dict[str, float]]:
    """Makes OUT/captioner, OUT/policy, both again as -qwen3-vl, OUT/clip, training-log.jsonl; returns the held-out
    scores of each.

    Raises ConfigError where the device is not there, a part is not known or OUT cannot be a folder."""
    if unknown := sorted({*settings.parts} - {*PARTS}):
        raise ConfigError(f"parts {', '.join(unknown)}: expected some of {', '.join(PARTS)}")
    if settings.device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device {settings.device}: torch {torch.__version__} sees no CUDA GPU; to see the program "
                          "run on a CPU, add --quick and leave --device out")
    torch.set_float32_matmul_precision("high")
    build = _Build(out, settings)
    build.say("build", torch=torch.__version__, **vars(settings))
    world_settings = WorldSettings()
    train_plan, held_plan = build.plan()
    videos = make_videos(train_plan, world_settings, lambda text: build.say("data", text=text))
    held = make_videos(held_plan, world_settings, lambda text: build.say("held-out", text=text))
    worlds = [make_world(EVALUATION_SEED + number, world_settings) for number in range(settings.held_out)]
    frames = videos.frames_FHWC.to(build.device)
    if build.device.type == "cuda":
        build.say("data", device=torch.cuda.get_device_name(), frames_gib=round(frames.nbytes / 2**30, 2))
    for family in (family for family in FAMILIES if family in settings.parts):
        model = build_model(settings.seed, family).to(build.device)
        ending = "" if family == FAMILIES[0] else f"-{family.replace('_', '-')}"
        _train_captioner(build, f"captioner{ending}", model, frames, videos, held, worlds)
        _train_policy(build, f"policy{ending}", model, frames, videos, held, worlds)
    if "clip" in settings.parts:
        _train_clip(build, frames, videos, held, worlds)
    write_cards(out, settings, build.steps, build.scores)
    build.say("done", total_mb=round(sum(f.stat().st_size for f in out.rglob("*.safetensors")) / 1e6, 2))
    for name, scores in build.scores.items():
        sys.stdout.write("\n".join([name, *(f"  {key:24} {value:.3f}" for key, value in scores.items()), ""]))
    return build.scores


def _train_captioner(build: _Build, name: str, model: Any, frames: torch.Tensor, videos: Videos, held: Videos,
                     worlds: list[World]) -> None:
    s = build.settings
    if build.takes_up(name):
        model.load_state_dict(load_file(build.out / name / "model.safetensors"), strict=False)  # the head is tied
        return

    def evaluate(step: int) -> None:
        try:
            build.evaluate(name, model, held, worlds, perception=True, step=step)
        except RuntimeError as error:  # minutes of training must not be lost to a score
            build.say(name, step=step, not_scored=f"{type(error).__name__}: {str(error)[:300]}")

    schedule = Schedule(s.steps, s.batch, limit_s=s.limit_s, every=max(1, s.steps // s.evaluations), seed=s.seed,
                        warmup=min(200, s.steps // 4))
    steps = train_model(model, frames, videos.mixed.to(build.device), schedule, evaluate=evaluate, compiled=s.compiled,
                        say=lambda **facts: build.say(name, **facts))
    evaluate(steps)
    build.finish(name, steps)


def _train_policy(build: _Build, name: str, model: Any, frames: torch.Tensor, videos: Videos, held: Videos,
                  worlds: list[World]) -> None:
    s = build.settings
    if build.takes_up(name):
        return
    schedule = Schedule(s.weak_steps, s.batch, rate=3e-4, warmup=min(20, s.weak_steps // 4), tower=False,
                        every=s.weak_steps + 1, limit_s=1e9, seed=s.seed + 1)
    steps = train_model(model, frames, videos.weak.to(build.device), schedule, evaluate=lambda step: None,
                        compiled=False, say=lambda **facts: build.say(name, **facts))
    build.evaluate(name, model, held, worlds, perception=False, step=steps)
    build.finish(name, steps)


def _train_clip(build: _Build, frames: torch.Tensor, videos: Videos, held: Videos, worlds: list[World]) -> None:
    s = build.settings
    if build.takes_up("clip"):
        return
    model = build_clip(s.seed).to(build.device)
    labels = videos.labels_FL.to(build.device)
    train_clip(model, frames, labels, steps=s.clip_steps, batch=s.clip_batch, seed=s.seed,
               say=lambda **facts: build.say("clip", **facts))
    save_clip(model, build.out / "clip")
    build.scores["clip"] = clip_scores(model, worlds, held.frames_FHWC.to(build.device))
    build.say("clip", step=s.clip_steps, **build.scores["clip"])
    build.finish("clip", s.clip_steps)


def main(arguments: list[str] | None = None) -> None:
    """The program."""
    parser = argparse.ArgumentParser(description="Train the sandbox's models.")
    defaults = BuildSettings()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see it run")
    parser.add_argument("--compiled", action="store_true", help="torch.compile the captioner's training")
    parser.add_argument("--device", default=defaults.device)
    for name in ("videos", "steps", "weak_steps", "clip_steps", "held_out", "limit_s", "batch", "clip_batch",
                 "processes", "seed"):
        kind = type(getattr(defaults, name))
        parser.add_argument("--" + name.replace("_", "-"), type=kind, default=None)
    parser.add_argument("--parts", type=lambda text: tuple(text.split(",")), help="of " + ",".join(PARTS))
    given = {key: value for key, value in vars(parser.parse_args(arguments)).items() if value is not None}
    out, quick = given.pop("out"), given.pop("quick")
    build_sandbox(out, BuildSettings.quick(**given) if quick else BuildSettings(**given))


if __name__ == "__main__":
    main()
