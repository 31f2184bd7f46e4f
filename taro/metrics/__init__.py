"""Scores of predictions: protocols applied, intervals, comparisons, figures that others published."""

from __future__ import annotations

__all__: list[str] = []
