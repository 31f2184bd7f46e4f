"""Shard sets out of shard sets, and what can be said of them: filter, split, merge, diff, stats."""

from __future__ import annotations

__all__: list[str] = []
