"""Who runs the slices of a job: one file each."""

from __future__ import annotations

__all__: list[str] = []
