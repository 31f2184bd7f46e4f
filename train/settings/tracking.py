"""How a run appears in wandb, trackio and tensorboard; metrics.jsonl needs none of it."""

from __future__ import annotations

from pydantic import Field

from taro.core.config import Config

__all__ = ["TrackingConfig"]


class TrackingConfig(Config):
    """Names under which `trackers` list the run, and the rollouts that they show."""

    project: str = Field("taro", min_length=1, max_length=128)
    """of wandb and trackio"""
    entity: str | None = None
    """user or team of wandb; null: the one that is logged in"""
    name: str | None = Field(None, min_length=1, max_length=128)
    """of the run; null: the name of its folder"""
    group: str | None = None
    """of wandb and trackio: runs that belong together"""
    tags: tuple[str, ...] = ()
    """of wandb"""
    rollout_table_every: int | None = Field(20, ge=1)
    """steps from one table of rollouts to the next; null: none"""
    rollouts: int = Field(8, ge=1, le=256)
    """rollouts of a table, drawn from the step's by the seed"""
