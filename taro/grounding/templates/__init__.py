"""Prompt templates, one YAML file each; `taro.grounding.prompts.load_template` reads them by name."""

from __future__ import annotations

__all__: list[str] = []
