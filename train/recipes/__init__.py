"""Training recipes that ship with taro, one YAML file each; `taro train NAME` reads them by name."""

from __future__ import annotations

__all__: list[str] = []
