"""Videos: looked at, decoded by timestamp, in processes that can be killed."""

from __future__ import annotations

__all__: list[str] = []
