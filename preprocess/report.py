"""Progress of a job while it runs, and its report at the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taro.core.text import one_line

__all__ = ["PreprocessReport", "Progress"]


@dataclass(frozen=True)
class Progress:
    """Where a job is: `done` of `total` clips, and what was last worked on; `stage`: models, clips, or captions, where
    `note` says how an endpoint goes."""

    stage: str
    done: int
    total: int
    note: str = ""

    @property
    def label(self) -> str:
        """For people."""
        if self.stage == "captions":
            return f"clips: {self.note}"
        return "loading models" if self.stage == "models" else f"clips {self.note[-40:]}".rstrip()


@dataclass(frozen=True)
class PreprocessReport:
    """What a run did. inputs, written, skipped: annotation rows of the whole plan, as far as slices are done;
    uncaptioned: clips without any caption, where captions were asked for;
    complete: every slice is done and the manifest written; slices: (done, all); made: slices made by this run; reasons:
    skipped rows by "stage: reason"; transient: skipped rows that may pass now; lint: the linter's counts;
    given: how the captions that a file or the annotations gave ended, "used", "repaired: ..." or "skipped: ...", each
    counted once for each clip that it was offered to; off_clips: clips with a patch over 1 s from the time that its
    position tells, where the model reads times from positions; off_s: the farthest."""

    out: Path
    inputs: int
    written: int
    skipped: int
    clips: int
    captions: int
    slices: tuple[int, int]
    made: int
    complete: bool
    seconds: float
    reasons: dict[str, int] = field(default_factory=dict)
    lint: dict[str, int] = field(default_factory=dict)
    uncaptioned: int = 0
    transient: int = 0
    given: dict[str, int] = field(default_factory=dict)
    off_clips: int = 0
    off_s: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**self.__dict__, "out": str(self.out), "slices": list(self.slices), "seconds": round(self.seconds, 2)}

    def table(self) -> str:
        """Plain text."""
        lines = [f"{self.inputs:,} annotation rows: {self.written:,} queries written, {self.skipped:,} skipped",
                 f"{self.clips:,} clips, {self.captions:,} captions, slices {self.slices[0]} of {self.slices[1]} "
                 f"({self.made} made now), {self.seconds:.1f} s"]
        lines += [f"  {count:>14,}  {what}" for what, count in self.lint.items() if what.startswith("repair: ")]
        if self.uncaptioned:
            lines.append(f"  {self.uncaptioned:>14,}  clips without a caption: their rollouts cannot be guided")
        if self.off_clips:
            lines.append(f"  {self.off_clips:>14,}  clips of variable rate: frames up to {self.off_s:.1f} s from the "
                         "times that positions tell; sampling.policy=uniform-2fps-time chooses by time")
        if set(self.given) - {"used"}:
            lines.append(f"{sum(self.given.values()):,} captions were given:")
            lines += [f"  {count:>14,}  {fate}" for fate, count in self.given.items()]
        lines += [f"  skipped {count:>6,}  {reason}" for reason, count in self.reasons.items()]
        if self.transient:
            lines.append(f"  {self.transient:>14,}  of them may pass now: --retry transient makes their slices again")
        lines.append(f"{self.out}: complete" if self.complete else f"{self.out}: not complete yet, run it again")
        return "\n".join(map(one_line, lines))
