"""How a policy's reasonings depend on the order of a video: measured, tested, shown."""

from __future__ import annotations

__all__: list[str] = []
