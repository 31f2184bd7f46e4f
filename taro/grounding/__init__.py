"""The vocabulary of temporal grounding: moments, boundaries, prompts, answers, protocols."""

from __future__ import annotations

__all__: list[str] = []
