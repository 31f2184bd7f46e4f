"""The model side: families, loading and export, the language model, sampling, scoring, encoding."""

from __future__ import annotations

__all__: list[str] = []
