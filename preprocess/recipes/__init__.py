"""Recipes of stage 1: `taro preprocess NAME` reads NAME.yaml of this folder."""

from __future__ import annotations

__all__: list[str] = []
