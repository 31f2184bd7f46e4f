"""What `taro quickstart` does, as a paragraph of stages without any display.

Worlds are drawn and written as mp4 files, both stages run over them through their public functions, the start policy
and the trained one answer the same held-out queries, and a report is written. Every stage leaves its files in `out`
and takes them up again, so that an interrupted quickstart goes on where it stopped. Evaluation worlds are the same for
every seed, so that seeds can be compared; training worlds are not, and no shipped model was trained on either.
Everything runs on the CPU, a GPU or not, so that two machines show nearly the same numbers.

Left out: anything on a screen (taro/cli/quickstart.py)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from taro.cli.options import as_overrides

if TYPE_CHECKING:
    from taro.preprocess.report import Progress
    from taro.train.report.data import Evaluation

__all__ = ["STAGES", "Quickstart", "Show", "run_quickstart"]

GUIDED_SHARE = 0.3
"""of the steps that open with captions"""
SAMPLED = "sampled, T = 1"

POLICIES = {"qwen2_5_vl": ("sandbox:policy", "Qwen2.5-VL"), "qwen3_vl": ("sandbox:policy-qwen3-vl", "Qwen3-VL")}
"""a family's start policy and what people call it"""

STAGES = {
    "worlds": ("Worlds", "synthetic videos, some to train on, some held out"),
    "preprocess": ("Stage 1, shards", "decode, segment, caption, encode, paths"),
    "before": ("Asked before", "the start policy answers about the held-out videos"),
    "train": ("Stage 2, training", "guided, then free, on the shards alone"),
    "after": ("Asked after", "the trained policy answers the same"),
    "report": ("Report", "one page of what changed"),
}
"""name: its label and what it is about"""

NOTES = (
    "The start policy was weakened on purpose: its perception is trained, its answers are noisy and its reasonings "
    "seldom name times. Part of the greedy gain is a switch to reasonings that do; scores of sampled answers rise more "
    "slowly and are the better measure of what was learned.",
    "The videos are synthetic and the model has two or three million parameters: this shows that every part works, "
    "not how well the method does on real videos.",
    "One seed proves nothing: run it with other seeds. With --control permute the rewards are permuted inside each "
    "group; what still improves then comes from imitating the guided prefixes, not from the rewards.")


class Show(Protocol):
    """Where progress goes: `begin` a stage, tell how far it is, `end` it with what came of it."""

    def begin(self, stage: str) -> None:
        """A stage starts."""

    def step(self, stage: str, done: float, total: float, note: str = "") -> None:
        """`done` of `total` parts are finished."""

    def end(self, stage: str, note: str) -> None:
        """The stage is finished."""


@dataclass(frozen=True)
class Quickstart:
    """Settings of a quickstart. `control`: permute takes the meaning out of the rewards, for comparison."""

    out: Path
    steps: int = 40
    seed: int = 0
    control: Literal["none", "permute"] = "none"
    train_videos: int = 64
    held_out_videos: int = 40
    family: Literal["qwen2_5_vl", "qwen3_vl"] = "qwen2_5_vl"
    captioner: str = "sandbox:captioner"
    clip_model: str = "sandbox:clip"

    @property
    def policy(self) -> str:
        """What training starts from."""
        return POLICIES[self.family][0]

    def command(self) -> str:
        """The command that makes the same again."""
        parts = ["taro quickstart", f"--seed {self.seed}", f"--steps {self.steps}"]
        parts += [f"--family {self.family}"] if self.family != "qwen2_5_vl" else []
        return " ".join(parts + ([f"--control {self.control}"] if self.control != "none" else []))


def run_quickstart(settings: Quickstart, show: Show) -> dict[str, Any]:
    """Runs every stage and returns what quickstart.json holds."""
    from taro.core.files import write_atomically

    started = time.monotonic()
    _claim(settings)
    worlds = _worlds(settings, show)
    shards = _preprocess(settings, worlds, show)
    before = _answers(settings, shards["held-out"], settings.policy, "before", show)
    export = _train(settings, shards["train"], show)
    after = _answers(settings, shards["held-out"], str(export), "after", show)
    evaluations = _evaluations(before, after, shards["held-out"])
    show.begin("report")
    result = _result(settings, evaluations)
    page = _report(settings, shards, evaluations)
    result |= {"report": str(page), "checkpoint": str(export), "shards": {name: str(p) for name, p in shards.items()},
               "seconds": round(time.monotonic() - started, 1)}
    write_atomically(settings.out / "quickstart.json", (json.dumps(result, indent=1) + "\n").encode())
    show.end("report", str(page))
    return result


def _claim(settings: Quickstart) -> None:
    """The folder is empty, or holds this very quickstart; ConfigError otherwise."""
    from taro.core.config import changed_settings
    from taro.core.errors import ConfigError
    from taro.core.files import is_unused, make_folders, write_atomically
    from taro.core.json import read_json

    file = settings.out / "settings.json"
    now = {**asdict(settings), "out": "."}
    if file.is_file():
        changed = changed_settings(read_json(file, error=ConfigError), now)
        if changed:
            raise ConfigError(f"{settings.out} holds a quickstart with other settings ({'; '.join(changed)}); go on "
                              "with those, or choose another folder with --out")
    if not file.is_file() and not is_unused(settings.out, file.name):
        raise ConfigError(f"{settings.out}: expected a new folder or one of an earlier quickstart, got one with other "
                          "files in it; choose another with --out")
    make_folders(settings.out)
    write_atomically(file, json.dumps(now, indent=1).encode())


def _worlds(settings: Quickstart, show: Show) -> dict[str, Path]:
    from taro.sandbox.make import make_sandbox

    show.begin("worlds")
    wanted = {"train": ("train", settings.train_videos, settings.seed),
              "held-out": ("test", settings.held_out_videos, 0)}
    folders, total, before = {}, settings.train_videos + settings.held_out_videos, 0
    for name, (split, videos, seed) in wanted.items():
        folders[name] = settings.out / "worlds" / name

        def progress(done: int, _: int, before: int = before) -> None:
            show.step("worlds", before + done, total)

        if not (folders[name] / "world.json").is_file():
            make_sandbox(folders[name], videos=videos, seed=seed, split=split, progress=progress)
        before += videos
    show.end("worlds", f"{settings.train_videos} + {settings.held_out_videos} mp4 files")
    return folders


def _preprocess(settings: Quickstart, worlds: dict[str, Path], show: Show) -> dict[str, Path]:
    from taro.core.config import load_config
    from taro.preprocess.config import PreprocessConfig
    from taro.preprocess.run import preprocess

    show.begin("preprocess")
    shards, total, done, counts = {}, settings.train_videos + settings.held_out_videos, 0, [0, 0, 0]
    for name, world in worlds.items():
        shards[name] = settings.out / "shards" / name
        config = load_config(PreprocessConfig, "sandbox", as_overrides({
            "name": f"quickstart-{name}", "videos": world / "videos", "annotations": world / "annotations.jsonl",
            "out": shards[name], "policy": settings.policy, "clip_model": settings.clip_model, "device": "cpu",
            "caption.model": settings.captioner, "paths.seed": settings.seed}), package="taro.preprocess.recipes")
        report = preprocess(config, progress=_part(show, name, done, total))
        done += settings.train_videos if name == "train" else settings.held_out_videos
        show.step("preprocess", done, total)
        counts = [a + b for a, b in zip(counts, (report.inputs, report.written, report.skipped), strict=True)]
    show.end("preprocess", f"{counts[0]} rows in = {counts[1]} written + {counts[2]} skipped")
    return shards


def _part(show: Show, name: str, done: int, total: int) -> Callable[[Progress], None]:
    """A progress callback for one of the two sets."""

    def progress(at: Progress) -> None:
        show.step("preprocess", done + at.done, total, f"{name}: {at.stage if at.stage != 'clips' else at.note}")

    return progress


def _answers(settings: Quickstart, shards: Path, policy_name: str, when: str, show: Show) -> dict[str, list[Any]]:
    """Rows by decoding; read back where an earlier run of this folder wrote them."""
    from taro.metrics.answers import read_answers, write_answers
    from taro.models.asking import asking_of
    from taro.models.load import load_policy
    from taro.models.resolve import resolve_model
    from taro.models.sampler import Decoding
    from taro.train.evaluate import Questions, evaluate_policy
    from taro.train.sets import open_encoded_shards

    show.begin(when)
    decodings = {"greedy": Decoding(96, temperature=0.0), SAMPLED: Decoding(96, temperature=1.0)}
    files = {name: settings.out / "answers" / f"{when}-{name.partition(',')[0]}.jsonl" for name in decodings}
    answers: dict[str, list[Any]] = {name: read_answers(file) for name, file in files.items() if file.is_file()}
    missing = [name for name in decodings if name not in answers]
    if missing:
        policy = load_policy(resolve_model(policy_name))
        shard_set, asking = open_encoded_shards(shards, policy.folder), asking_of(policy.folder)
    for index, name in enumerate(missing):

        def progress(done: int, total: int, index: int = index) -> None:
            show.step(when, index * total + done, len(missing) * total)

        answers[name] = evaluate_policy(policy, shard_set, asking, decodings[name], batch_prompts=128,
                                        progress=progress, questions=Questions(seed=settings.seed))
        write_answers(answers[name], files[name])
    show.end(when, _scores_note(answers["greedy"]))
    return {name: answers[name] for name in decodings}


def _scores_note(rows: list[Any]) -> str:
    from taro.metrics.answers import score_rows

    scores = score_rows(rows)
    return f"{scores.queries} queries, greedy mIoU {scores.miou:.3f}, timestamps {100 * (scores.timestamps or 0):.0f} %"


def _train(settings: Quickstart, shards: Path, show: Show) -> Path:
    from taro.core.config import load_config
    from taro.train.config import TrainConfig
    from taro.train.loop import train

    show.begin("train")
    run = settings.out / "run"
    config = load_config(TrainConfig, "quickstart", as_overrides({
        "policy": settings.policy, "shards": shards, "out": run, "seed": settings.seed, "device": "cpu",
        "length.unit": "steps", "length.amount": settings.steps, "checkpoint.every": 10,
        "curriculum.unit": "steps", "curriculum.amount": max(1, round(GUIDED_SHARE * settings.steps)),
        "reward.control": "permute-rewards" if settings.control == "permute" else "none",
    }), package="taro.train.recipes")

    def on_step(line: dict[str, Any]) -> None:
        if "reward" in line:
            show.step("train", line["step"] + 1, settings.steps,
                      f"{line['phase']}: reward {line['reward']:.2f}, tIoU {line['tiou']:.2f}, "
                      f"timestamps {100 * line['timestamps']:.0f} %")

    if not (run / "export" / "config.json").is_file():
        train(config, resume=(run / "config.yaml").is_file(), on_step=on_step)
    show.end("train", f"{settings.steps} steps; a Hugging Face folder")
    return run / "export"


def _evaluations(before: dict[str, list[Any]], after: dict[str, list[Any]], shards: Path) -> list[Evaluation]:
    from taro.shards.reader import open_shards
    from taro.train.evaluate import missing_predictions
    from taro.train.report.data import Evaluation

    missing = missing_predictions(open_shards(shards), None)
    return [Evaluation(name, before[name], after[name], missing=missing) for name in before]


def _result(settings: Quickstart, evaluations: list[Evaluation]) -> dict[str, Any]:
    """quickstart.json: scores on both sides, the paired change with its interval, the ends of the training curves."""
    from taro.train.report.data import mean_of, read_run

    greedy, sampled = evaluations
    sides: dict[str, Any] = {}
    for side in ("before", "after"):
        scores = getattr(greedy, f"{side}_scores").as_dict()
        drawn = getattr(sampled, f"{side}_scores").as_dict()
        sides[side] = scores | {f"{key}_sampled": drawn[key] for key in ("miou", "r1@0.3", "r1@0.5", "r1@0.7",
                                                                        "timestamps", "first_span")}
    steps = read_run(settings.out / "run").steps
    keys = ("reward", "format", "tiou", "bonus", "drop_mean", "timestamps", "seconds")
    training = {end: {key: mean_of(part, key) for key in keys}
                for end, part in (("first_steps", steps[:5]), ("last_steps", steps[-5:]))}
    gains = {evaluation.name.partition(",")[0]: dict(zip(("miou", "low", "high"), evaluation.paired_gain, strict=True))
             for evaluation in evaluations}
    return {"queries": greedy.after_scores.queries, "seed": settings.seed, "steps": settings.steps,
            "family": settings.family, "control": settings.control, **sides, "gain": gains, "training": training}


def _report(settings: Quickstart, shards: dict[str, Path], evaluations: list[Evaluation]) -> Path:
    from taro.train.report.write import render_report

    control = "" if settings.control == "none" else " CONTROL: rewards were permuted inside each group."
    return render_report(
        settings.out / "run", shards, evaluations, settings.out / "report.html", title="taro quickstart",
        lead=f"A tiny {POLICIES[settings.family][1]} learns to say when things happen in synthetic videos, by "
             f"reinforcement learning on features that were encoded once.{control}",
        commands=["pip install taro-vtg", settings.command()], notes=NOTES)
