"""`taro train`: reads a recipe, shows the run as it goes, prints where the checkpoint is.

Thin: the work is `taro.train.loop.train`, on many GPUs in a process for each (`taro.cli.ranks`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from taro.cli.live import Panel, heard_warnings
from taro.cli.options import Json, Overrides, takes_options, train_recipes, train_settings
from taro.cli.output import say, say_json
from taro.cli.progress import progress
from taro.cli.ranks import is_quiet, start_ranks, stopping

__all__ = ["TrainOptions", "train"]

SHOWN = (("reward", "reward"), ("format", "format"), ("tiou", "tIoU"), ("bonus", "bonus"), ("timestamps", "timestamps"),
         ("kl", "KL"), ("length", "tokens"))
SHOWN_SFT = (("loss", "loss"), ("accuracy", "accuracy"), ("length", "tokens"))
NO_THINK = ("reward.no_think=true", "reward.drop_over=response", "curriculum.schedule=off")


@dataclass(frozen=True)
class TrainOptions:
    """What is trained, and how the run is begun."""

    recipe: Annotated[str, typer.Argument(help="A shipped recipe (taro-7b, taro-8b, sandbox, quickstart) or a .yaml "
                                          "file.", autocompletion=train_recipes)]
    overrides: Annotated[
        Overrides, typer.Option("--set", metavar="KEY=VALUE", autocompletion=train_settings,
                                help="Replace a setting, e.g. optimizer.lr=2e-6; repeatable."),
    ] = None
    no_think: Annotated[bool, typer.Option("--no-think", help="Train answers without reasoning: reward.no_think, the "
                                           "drop over the response, no guided phase.")] = False
    objective: Annotated[str | None, typer.Option("--objective", metavar="rl|sft", show_default=False, help="sft: "
                         "learn responses written from candidate paths and ground truth, a cold start for rl.")] = None
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run folder's newest checkpoint.")] = False
    plan: Annotated[bool, typer.Option("--plan", help="Print what the run would take of each GPU, its steps and hours, "
                                       "and train nothing; no weight is read, and no GPU is needed.")] = False
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of this machine, a process each, see docs/gpus.md.")] = 1
    memory: Annotated[float | None, typer.Option("--memory", metavar="GIB", min=1, max=100_000, show_default=False,
                      help="With --plan: memory of each GPU; default: that of the GPU here, else 79.2 (sold as 80 "
                      "GB).")] = None
    profile: Annotated[int, typer.Option("--profile", metavar="N", min=0, help="Trace N steps, after one that warms "
                                         "up, into OUT/profile, and print where their time goes.")] = 0
    as_json: Json = False

    @property
    def settings(self) -> list[str]:
        """What replaces the recipe's settings, as --set takes it."""
        objective = [f"objective={self.objective}"] if self.objective else []
        return [*(NO_THINK if self.no_think else ()), *objective, *(self.overrides or ())]


@takes_options
def train(options: TrainOptions) -> None:
    """Stage 2: train a policy on shards, guided then free; no video is opened and no vision tower is loaded."""
    from taro.core.config import load_config
    from taro.train.config import TrainConfig
    from taro.train.run_dir import check_run

    given = options.settings
    if options.plan:
        from taro.cli.plan import plan_run, show_plan

        found = plan_run(options.recipe, given, gpus=options.gpus, memory_gib=options.memory)
        show_plan(found, as_json=options.as_json)
        return
    config = load_config(TrainConfig, options.recipe, given, package="taro.train.recipes")
    check_run(config, resume=options.resume)
    start_ranks(options.gpus, config.device)
    panel = Panel()
    with (progress("loading", quiet=options.as_json or is_quiet(), below=panel.render) as shown,
          heard_warnings(panel, shown)):
        from taro.train.data import data_lines  # only now, since torch comes with the loop
        from taro.train.launch.join import joined
        from taro.train.loop import Together
        from taro.train.loop import train as run_training

        def show(line: dict[str, Any]) -> None:
            panel.see(line)
            if "eval" in line:
                shown.say(_validated(line))
                return
            values = " ".join(["", *(f"{label} {line[key]:.2f}" for key, label in
                                     (SHOWN_SFT if line["phase"] == "sft" else SHOWN))])
            shown.update(line["step"] + 1, line["steps"], line["phase"] + ("" if shown.panel else values))

        def begin(data: dict[str, Any]) -> None:
            for line in data_lines(data):
                shown.say(line)
            shown.stage("training")

        with joined(config.device) as ranks:
            report = run_training(config, resume=options.resume, on_step=show, on_start=begin, on_work=shown.beside,
                                  on_phase=panel.phase, profile=options.profile,
                                  together=Together(ranks, stopping))
    if is_quiet():
        return
    if options.as_json:
        say_json(_as_json(report))
    else:
        _summary(report, config.sources[0].path, export=config.checkpoint.export)


def _validated(line: dict[str, Any]) -> str:
    """An evaluation as a line."""
    found = line["eval"]
    return (f"step {line['step']}: validation mIoU {found['miou']:.3f}, R1@0.5 {found['r1@0.5']:.3f} "
            f"({found['queries']} queries)"
            + "".join(f", {name} {of['miou']:.3f}" for name, of in found.get("sets", {}).items()))


def _as_json(report: Any) -> dict[str, Any]:
    from taro.train.trackers import finite

    return {"run": str(report.run), "export": str(report.export), "steps": report.steps, "skipped": report.skipped,
            "best_step": report.best_step, "best_score": report.best_score, "seconds": round(report.seconds, 3),
            "last": finite(report.last), **({"profile": finite(report.profile)} if report.profile else {})}


def _summary(report: Any, shards: str, *, export: str) -> None:
    if report.profile is not None:
        from taro.train.tracing import split_lines

        say(*split_lines(report.profile), f"traces, for ui.perfetto.dev: {report.run / 'profile'}")
    say(f"{report.steps} steps in {report.seconds:.0f} s; metrics: {report.run / 'metrics.jsonl'}")
    if report.skipped:
        say(f"{report.skipped} updates skipped: loss or gradient not finite")
    of = ""
    if report.best_step is not None:
        held = report.best_step if export == "best" else report.steps
        how = "" if held == report.best_step else "; to export it: --resume --set checkpoint.export=best"
        say(f"best on validation: step {report.best_step}, mIoU {report.best_score:.3f}{how}")
        of = f" (step {held})"
    say(f"checkpoint: {report.export}{of}", f"next: taro eval --policy {report.export} --shards {shards}")
