"""Notices a run that learns nothing, and says so once, with the likely cause.

Each sign is one function of the last lines of metrics.jsonl. Left out: stopping the run; the one who reads decides."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["WINDOW", "Watch"]

WINDOW = 5
"""steps in a row that must show a sign"""
FALLEN, NOTHING = 0.1, 0.005
"""entropy has collapsed below this share of what it was in the run's first steps, or below this many nats a token"""

Line = Mapping[str, Any]


class Watch:
    """Sees every step's line. It begins anew in a resumed run.

    counts: what may come in every step, by name: said at the first time, and in all at the end."""

    def __init__(self) -> None:
        self.counts = Counter[str]()
        self._last: deque[Line] = deque(maxlen=WINDOW)
        self._first: list[Line] = []
        self._said: set[str] = set()

    def see(self, line: Line) -> list[str]:
        """What this step's line gives reason to say, each sign once in a run."""
        self._last.append(line)
        if len(self._first) < WINDOW:
            self._first.append(line)
        if len(self._last) < WINDOW:
            return []
        found = []
        for name, sign in SIGNS.items():
            text = None if name in self._said else sign(list(self._last), self._first)
            if text is not None:
                self._said.add(name)
                found.append(text)
        return found


def _fallbacks(last: Sequence[Line], first: Sequence[Line]) -> str | None:
    if not all(line["guided"] == 0 and line["guided_fallbacks"] > 0 for line in last):
        return None
    return (f"all rollouts that were to be guided in the last {WINDOW} steps were free: their clips have no captions "
            "or candidate paths, or none that fits into rollout.max_new_tokens - rollout.min_free_tokens. Preprocess "
            "with captions, or set curriculum.schedule=off")


def _equal(last: Sequence[Line], first: Sequence[Line]) -> str | None:
    if not all(line["zero_variance"] == 1 for line in last):
        return None
    formats, truncated = (_mean(last, name) for name in ("format", "truncated"))
    if truncated > 0.5:
        why = f"{truncated:.0%} of the responses are cut off at the limit; raise rollout.max_new_tokens"
    elif formats < 0.05:
        why = ("hardly any response has the form that is asked for; look at rollouts/ for what the policy writes, and "
               "at `template` for what it is asked")
    else:
        why = ("the responses of a group are too much alike, or the queries too easy or too hard; raise "
               "rollout.temperature or rollout.group, or choose others by data.difficulty")
    return (f"all groups of the last {WINDOW} steps had equal rewards (mean {_mean(last, 'reward'):.2f}), so nothing "
            f"is learned from them: {why}")


def _gradient(last: Sequence[Line], first: Sequence[Line]) -> str | None:
    if not all(line["grad_norm"] == 0 for line in last) or all(line["zero_variance"] == 1 for line in last):
        return None
    return (f"the gradient was zero in the last {WINDOW} steps though rewards differ: every token is clipped or "
            "masked, or the loss has no weight; look at clip_fraction and at the settings of `loss`")


def _entropy(last: Sequence[Line], first: Sequence[Line]) -> str | None:
    now, before = _mean(last, "entropy"), _mean(first, "entropy")
    if not now < max(FALLEN * before, NOTHING):
        return None
    return (f"entropy fell from {before:.3f} to {now:.4f} nats a token: the policy writes nearly the same in every "
            "rollout, and groups will stop to differ. Lower optimizer.lr, raise rollout.temperature, or keep it near "
            "the start policy with loss.kl")


def _mean(lines: Sequence[Line], name: str) -> float:
    """nan where no line has a number."""
    values = [line[name] for line in lines if line[name] is not None and math.isfinite(line[name])]
    return sum(values) / len(values) if values else math.nan


SIGNS: dict[str, Callable[[Sequence[Line], Sequence[Line]], str | None]] = {
    "fallbacks": _fallbacks, "equal": _equal, "gradient": _gradient, "entropy": _entropy}
