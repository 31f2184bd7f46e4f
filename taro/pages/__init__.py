"""Every HTML page of taro comes from here."""

from __future__ import annotations

__all__: list[str] = []
