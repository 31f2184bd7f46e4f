"""What is trained on, and how long."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from taro.core.config import Config
from taro.core.places import SetPlace, Word

__all__ = ["DataConfig", "Gaussian", "Length", "NAME", "ShardSource", "Shards"]

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
"""names of sets; without the characters that part a draw's name"""


def _regex(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"expected a regular expression, but {error}") from None
    return text


def _ascending(ends: tuple[float, float]) -> tuple[float, float]:
    if not ends[0] <= ends[1]:
        raise ValueError("expected [low, high], low first")
    return ends


Regex = Annotated[str, AfterValidator(_regex)]
Range = Annotated[tuple[float, float], AfterValidator(_ascending)]


class Length(Config):
    """How long to train."""

    unit: Literal["epochs", "steps"] = "epochs"
    """of `amount`; an epoch draws every selected query once"""
    amount: int = Field(3, ge=1, le=10_000_000)
    """epochs or steps of the whole run, guided ones counted in"""


class Gaussian(Config):
    """Queries drawn once, without repeats, by a normal density at their difficulty (TimeLens). A query without
    difficulty is left out."""

    mean: float
    """difficulty that is drawn most, in the annotations' own unit"""
    std: float = Field(gt=0)
    """spread around it, in the same unit"""
    queries: int = Field(ge=1)
    """queries drawn of each set, or all where a set has fewer"""


class DataConfig(Config):
    """Which queries of the shard sets are trained on, and how many make an epoch. A set of several may say otherwise
    for itself, see `ShardSource`."""

    split: str = "train"
    """train on queries of this split"""
    encoder: str | None = None
    """features to read; null: the ones that this policy's tower made"""
    difficulty: Range | None = None
    """keep queries whose difficulty is in [low, high], in the annotations' own unit; null: all"""
    queries: tuple[Word, ...] | None = None
    """keep these query ids; "@FILE": one a line; null: all"""
    keys: tuple[Word, ...] | None = None
    """keep queries of the clips with these keys; "@FILE": one a line; null: all"""
    text: Regex | None = None
    """keep queries in whose text this regular expression is found, capitals or not; null: all"""
    gaussian: Gaussian | None = None
    """of what the other filters keep, draw queries by a normal density at their difficulty; null: all of them"""
    draws: int | None = Field(None, ge=1)
    """queries drawn in an epoch, from all sets together; null: all selected queries"""
    reading: Literal["indexed", "stream"] = "indexed"
    """indexed: any record when its query is drawn; stream: shards from their beginnings to their ends, in a drawn
    order, for sets larger than the cache of a remote store (docs/streaming.md)"""
    buffer: int = Field(256, ge=1, le=1_000_000)
    """of reading=stream: queries in the shuffle buffers of all ranks together; they hold their clips' features in the
    machine's memory"""


class ShardSource(Config):
    """One of several shard sets. A filter that is null is that of `data`; a list `["A", "B"]` of paths is enough where
    the sets are alike."""

    path: SetPlace
    """the set's folder"""
    name: str | None = Field(None, pattern=NAME)
    """in metrics, rollouts and messages; null: the folder's name"""
    weight: float = Field(1.0, ge=0)
    """share of an epoch's draws, against the other sets' weights; 0: nothing is drawn, for validation alone"""
    split: str | None = None
    """queries of this split; null: as in data"""
    encoder: str | None = None
    """features to read; null: as in data"""
    difficulty: Range | None = None
    """keep queries whose difficulty is in [low, high]; null: as in data"""
    queries: tuple[Word, ...] | None = None
    """keep these query ids; null: as in data"""
    keys: tuple[Word, ...] | None = None
    """keep queries of the clips with these keys; null: as in data"""
    text: Regex | None = None
    """keep queries in whose text this is found; null: as in data"""
    gaussian: Gaussian | None = None
    """draw queries by a normal density at their difficulty; null: as in data"""

    @model_validator(mode="before")
    @classmethod
    def _a_path_alone(cls, data: Any) -> Any:
        return {"path": data} if isinstance(data, str | Path) else data

    def filled(self, data: DataConfig) -> Self:
        """With its name, and the filters of `data` where it has none of its own."""
        inherited = {field: getattr(data, field) for field in type(self).model_fields
                     if field in type(data).model_fields and getattr(self, field) is None}
        return self.model_copy(update={"name": self.name or Path(self.path).resolve().name, **inherited})


Shards = Annotated[Annotated[SetPlace, Tag("path")]
                   | Annotated[tuple[ShardSource, ...], Field(min_length=1), Tag("sets")],
                   Discriminator(lambda value: "path" if isinstance(value, str | Path) else "sets")]
"""The folder of one set, or a list of several."""
