"""Annotations as values: rows, the outcome of each line, and the report of a whole file.

Outcomes are values: every line of the input ends as `Kept`, `Repaired` or `Dropped`, and the report counts them, so
that `lines == kept + repaired + dropped` can be checked by whoever goes on with the rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from taro.core.text import one_line
from taro.grounding.moment import Moment
from taro.grounding.records import DenseCaption

__all__ = ["AnnotationRow", "Dropped", "Kept", "LintReport", "Outcome", "Repaired", "Saliency"]


@dataclass(frozen=True)
class Saliency:
    """How much 2 s clips of a video have to do with its query (QVHighlights): `clips` counts them from the start of the
    video, `scores` has for each the marks of every annotator, 0 to 4. A clip that is not named has 0."""

    clips: tuple[int, ...]
    scores: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class AnnotationRow:
    """One query of one clip. `row_id` is unique in its file (its qid, else its line number); `line` counts from 1;
    `video` is the name as annotated; `windows` are seconds from the start of the clip; `duration_s` is the clip's, None
    where the annotation does not say; `clip` is the part of the file that was annotated, None for all of it;
    `may_be_cut`: the file at hand may be that part already, see `part_of_file`; `saliency`: of highlight detection;
    `unclipped`: the windows before they were clipped to the clip, None where that changed none (some evaluations score
    against them; how a row came to be is no part of what it is, so rows compare without)."""

    row_id: str
    line: int
    video: str
    query: str
    windows: tuple[Moment, ...]
    duration_s: float | None
    clip: Moment | None
    split: str
    difficulty: float | None
    captions: tuple[DenseCaption, ...] | None
    may_be_cut: bool = False
    saliency: Saliency | None = None
    unclipped: tuple[Moment, ...] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Kept:
    """A row that was fine."""

    row: AnnotationRow


@dataclass(frozen=True)
class Repaired:
    """A row that was made fine; `repairs` names what was done, in order."""

    row: AnnotationRow
    repairs: tuple[str, ...]


@dataclass(frozen=True)
class Dropped:
    """A line that gives no row. `repairs`: what had been found and done before the `reason` ended it."""

    line: int
    row_id: str
    reason: str
    repairs: tuple[str, ...] = ()


Outcome = Kept | Repaired | Dropped


@dataclass(frozen=True)
class LintReport:
    """An annotation file, read: one outcome for every line, and the hash of what was read."""

    dataset: str
    source_sha256: str
    outcomes: tuple[Outcome, ...]

    @property
    def rows(self) -> list[AnnotationRow]:
        """The usable rows, in the order of the file."""
        return [outcome.row for outcome in self.outcomes if not isinstance(outcome, Dropped)]

    @property
    def counts(self) -> dict[str, int]:
        """`lines`, `kept`, `repaired`, `dropped`; then `repair: NAME` (what was found, on dropped lines too) and
        `drop: REASON` (a reason without its details)."""
        kinds = Counter(type(outcome).__name__.lower() for outcome in self.outcomes)
        counts = {"lines": len(self.outcomes), **{kind: kinds[kind] for kind in ("kept", "repaired", "dropped")}}
        details: Counter[str] = Counter()
        for outcome in self.outcomes:
            if not isinstance(outcome, Kept):
                details.update(f"repair: {repair}" for repair in outcome.repairs)
            if isinstance(outcome, Dropped):
                details[f"drop: {outcome.reason.partition(': ')[0]}"] += 1
        return counts | dict(sorted(details.items(), key=lambda item: (-item[1], item[0])))

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the counts, and every line that was not simply kept."""
        return {"dataset": self.dataset, "source_sha256": self.source_sha256, "counts": self.counts,
                "repaired": [{"line": o.row.line, "row_id": o.row.row_id, "repairs": list(o.repairs)}
                             for o in self.outcomes if isinstance(o, Repaired)],
                "dropped": [{"line": o.line, "row_id": o.row_id, "reason": o.reason, "repairs": list(o.repairs)}
                            for o in self.outcomes if isinstance(o, Dropped)]}

    def table(self, *, show: int = 10) -> str:
        """Plain text: the counts, then the first `show` dropped and the first `show` repaired lines."""
        counts = self.counts
        width = max(len(name) for name in counts)
        lines = [f"{name.ljust(width)}  {count:>9,}" for name, count in counts.items()]
        dropped = [f"line {o.line}: dropped: {one_line(o.reason)}" for o in self.outcomes if isinstance(o, Dropped)]
        repaired = [f"line {o.row.line}: repaired: {one_line(', '.join(o.repairs))}" for o in self.outcomes
                    if isinstance(o, Repaired)]
        for notes in (dropped, repaired):
            lines += notes[:show]
            if len(notes) > show > 0:
                lines.append(f"... and {len(notes) - show:,} more")
        return "\n".join(lines)
