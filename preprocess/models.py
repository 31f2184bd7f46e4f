"""Loading the policy whose tower a job uses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from taro.models.policy import Policy

__all__ = ["load_tower_policy"]


def load_tower_policy(folder: Path, device: torch.device, dtype: str) -> Policy:
    """A policy with its vision tower, frozen."""
    import torch

    from taro.models.load import load_policy

    return load_policy(folder, device=device, dtype=getattr(torch, dtype), tower=True)
