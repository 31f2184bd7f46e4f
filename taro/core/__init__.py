"""What everything stands on: errors, settings, random draws, durable files, strict JSON, text fit to show."""

from __future__ import annotations

__all__: list[str] = []
