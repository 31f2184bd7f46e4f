"""What a run is trained on: one shard set or several, each filtered on its own, then mixed.

A step's samples are a function of (seed, step) alone (`taro.shards.mix`), whatever the number of sets or ranks. Where
there are several sets every sample carries its set's name: two sets may hold the same key, and their draws, dumps and
metrics must not meet. With one set it carries none: a list of one set gives the same run as that set alone.

Every query is accounted for: `summary` says for each set how many it holds, how many each filter left out (the first
that did, in the order split, difficulty, queries, keys, text, gaussian), how many an epoch draws, and what no step
takes.
Left out: weights that change over time."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from taro.core.draws import rng
from taro.core.errors import ConfigError
from taro.core.text import one_line
from taro.shards.lane_reader import LaneReader, Part
from taro.shards.lanes import LaneOrder
from taro.shards.mix import MixedOrder
from taro.shards.ops.filter import Selection, choose, named
from taro.shards.queries import IndexedQueries
from taro.shards.reader import QueryRef, Sample, ShardSet
from taro.shards.together import read_samples
from taro.train.config import ShardSource, ValidationConfig
from taro.train.prefixes import PathSource
from taro.train.settings.data import Gaussian

__all__ = ["TrainingData", "TrainingSet", "data_lines", "sample_name", "select"]

DIGESTED_RECORDS = 100_000
"""of the kinds of a sample: sets of more are told apart by the digests of their shards"""
log = logging.getLogger(__name__)


def sample_name(sample: Sample) -> str:
    """Names a query of a clip in every draw: of several sets with its set's name, and apart from itself where a step
    holds it again."""
    place = f"{sample.from_set}{f'#{sample.repeat}' if sample.repeat else ''}"
    return f"{f'{place}:' if place else ''}{sample.clip.key}/{sample.query.id}"


@dataclass(frozen=True)
class TrainingSet:
    """One set, open. `source`: as configured, its name and filters filled in; `refs`: the queries that the filters
    leave; `held`: queries of the whole set; `left_out`: of these, by the filter that left them out."""

    source: ShardSource
    shard_set: ShardSet
    refs: Sequence[QueryRef]
    held: int
    left_out: dict[str, int]

    @property
    def name(self) -> str:
        """As in metrics, rollouts and messages."""
        return str(self.source.name)

    @property
    def sha256(self) -> str:
        """Digest of what is trained on: every query in order, with its clip's record and features, however they are
        sliced."""
        return self.digest(self.refs)

    @property
    def shards(self) -> list[int]:
        """The number of the shards in which each query lies."""
        if isinstance(self.refs, IndexedQueries):
            return self.refs.slices
        return [self.shard_set.shard_of(ref.key) for ref in self.refs]

    def digest(self, refs: Sequence[QueryRef]) -> str:
        """The same of some of its queries. Of a large set with an index the digests of whole shards stand for those of
        records, which would have to be read from every sidecar: cut into other slices it is other data."""
        kinds = self.shard_set.kinds_of_a_sample
        shards = [entry for entry in self.shard_set.manifest.shards if entry.kind in kinds]
        if isinstance(refs, IndexedQueries) and sum(entry.records for entry in shards) > DIGESTED_RECORDS:
            used = set(refs.slices)
            return refs.digest([entry for entry in shards if entry.index in used])
        digest = hashlib.sha256()
        for ref in refs:
            listed = [self.shard_set.listed(kind, ref.key) for kind in kinds]
            members = [m.sha256 for record in listed if record is not None for m in record.members if m.ext != "jpg"]
            digest.update(json.dumps([ref.key, ref.known.id, *members]).encode() + b"\n")
        return digest.hexdigest()


def select(source: ShardSource, shard_set: ShardSet, *, seed: int = 0) -> TrainingSet:
    """The queries of an open set that the source's filters leave; `seed`: of those that are drawn. Raises ConfigError
    where a file of names cannot be read."""
    selection = Selection(split=source.split, difficulty=source.difficulty, text=source.text,
                          queries=None if source.queries is None else named(source.queries),
                          keys=None if source.keys is None else named(source.keys))
    refs, left_out = choose(shard_set, selection)
    if source.gaussian is not None:
        found = len(refs)
        refs = _drawn_by_difficulty(refs, source.gaussian, seed)
        left_out |= {"gaussian": found - len(refs)} if len(refs) < found else {}
    return TrainingSet(source, shard_set, refs, len(shard_set.queries()), left_out)


def _drawn_by_difficulty(refs: Sequence[QueryRef], knobs: Gaussian, seed: int) -> Sequence[QueryRef]:
    """Weighted sampling without replacement (Gumbel top-k): the largest of log density plus noise. Each query's noise
    is named by the query, so that what is drawn depends neither on order nor on what else is there."""
    def rank(ref: QueryRef) -> float:
        assert ref.known.difficulty is not None
        distance = (ref.known.difficulty - knobs.mean) / knobs.std
        noise = -math.log(rng("gaussian", seed, ref.key, ref.known.id).exponential() or 1e-300)
        return noise - distance**2 / 2

    ranks = {at: rank(ref) for at, ref in enumerate(refs) if ref.known.difficulty is not None}
    chosen = sorted(sorted(ranks, key=lambda at: ranks[at], reverse=True)[: knobs.queries])
    return refs.take(chosen) if isinstance(refs, IndexedQueries) else [refs[at] for at in chosen]


class TrainingData:
    """All sets of a run and the order in which their queries come."""

    def __init__(self, sets: Sequence[TrainingSet], *, prompts: int, seed: int = 0, draws: int | None = None,
                 validation: ValidationConfig | None = None, buffer: int | None = None) -> None:
        """Args: prompts: of a step; draws: of an epoch, None: every selected query once; buffer: queries in the shuffle
        buffers of `data.reading: stream`, None: records are read by the index.

        Raises ConfigError where a set has no query left, an epoch no whole step, or no set the validation split."""
        self.sets = tuple(sets)
        self.drawn = tuple(one for one in self.sets if one.source.weight)
        self._prompts, self._buffer = prompts, buffer
        self._reader: LaneReader | None = None
        self._next = 0
        for one in self.drawn if len(self.sets) > 1 else ():
            if not one.refs:
                raise ConfigError(f"{one.source.path} ({one.name}): its filters leave none of its {one.held:,} queries "
                                  f"({_left_out_text(one)}); change them, or leave the set out")
        found = sum(len(one.refs) for one in self.drawn)
        if (draws or found) < prompts or not found:
            raise ConfigError(self._too_few(draws, found))
        self.order = MixedOrder([len(one.refs) for one in self.drawn], [one.source.weight for one in self.drawn],
                                seed=seed, draws=draws, names=[one.name for one in self.drawn],
                                make=None if buffer is None else self._lanes)
        self._validation, self.validated = validation, self._validated(validation)
        self._warn_unknown_names()

    def _lanes(self, at: int, seed: int) -> LaneOrder:
        """The order of a set that is read as a stream."""
        assert self._buffer is not None
        return LaneOrder(self.drawn[at].shards, lanes=self._prompts, buffer=self._buffer // len(self.drawn), seed=seed)

    def _warn_unknown_names(self) -> None:
        """Warns of names that a filter asks for and none of its sets holds: they choose nothing."""
        for field in ("queries", "keys"):
            for asked in dict.fromkeys(getattr(one.source, field) for one in self.sets):
                mine = [one for one in self.sets if getattr(one.source, field) == asked]
                lost = [] if asked is None else sorted(named(asked).difference(*(
                    _names(one.shard_set, field) for one in mine)))
                if lost:
                    log.warning("%s: no %s named %s%s; the filter %s chooses nothing by them", ", ".join(
                        str(one.source.path) for one in mine), "query" if field == "queries" else "clip", ", ".join(
                        one_line(name[:80]) for name in lost[:5]), f" and {len(lost) - 5:,} more" * (len(lost) > 5),
                        field)

    def _too_few(self, draws: int | None, found: int) -> str:
        if len(self.sets) > 1 or draws is not None:
            return (f"{', '.join(str(one.source.path) for one in self.drawn)}: an epoch draws "
                    f"{draws or found} of {found} queries, a step takes rollout.prompts={self._prompts}; "
                    "raise data.draws, choose other queries or fewer prompts")
        source = self.sets[0].source
        wanted = f"split {source.split!r}{_splits_there(self.sets[0])}"
        wanted += "" if source.difficulty is None else f" and difficulty {list(source.difficulty)}"
        wanted += "".join(f" and the filter {name}" for name in ("queries", "keys", "text", "gaussian")
                          if getattr(source, name) is not None)
        return (f"{source.path}: {wanted} has {found} queries, a step takes rollout.prompts={self._prompts}; choose "
                "other queries or fewer prompts")

    def _validated(self, knobs: ValidationConfig | None) -> tuple[TrainingSet, ...]:
        if knobs is None or knobs.split is None:
            return ()
        asked = [one for one in self.sets if knobs.sets is None or one.name in knobs.sets]
        found = tuple(one for one in asked if knobs.split in one.shard_set.splits)
        if not found or (knobs.sets is not None and len(found) < len(asked)):
            lost = [one for one in asked if one not in found]
            held = "; ".join(dict.fromkeys(one.shard_set.splits_text for one in lost))
            raise ConfigError(f"{', '.join(str(one.source.path) for one in lost)}: no query has the split "
                              f"{knobs.split!r} of validation.split; the set has {held}; name one that exists, or null")
        return found

    @property
    def sha256(self) -> str:
        """Digest of what is trained on; of one set that set's own. Where shards make the order, also of which
        query lies in which."""
        if len(self.sets) == 1 and self._buffer is None:
            return self.drawn[0].sha256
        digests = [[one.name if len(self.sets) > 1 else "", one.sha256] for one in self.drawn]
        slices = [] if self._buffer is None else [one.shards for one in self.drawn]
        return hashlib.sha256(json.dumps(digests + slices).encode()).hexdigest()

    @property
    def validation_sha256(self) -> str:
        """Digest of what is validated on, wherever it lies; of nothing "nothing"."""
        split = None if self._validation is None else self._validation.split
        names = [one.name if len(self.sets) > 1 else "" for one in self.validated]
        found = [[name, one.digest(one.shard_set.queries(split=split))]
                 for name, one in zip(names, self.validated, strict=True)]
        return hashlib.sha256(json.dumps(found).encode()).hexdigest() if found else "nothing"

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        return self.order.steps_per_epoch(self._prompts)

    def samples(self, step: int, *, rank: int = 0, world: int = 1,
                steps: int | None = None) -> tuple[int, list[Sample]]:
        """(epoch, samples) that `rank` of `world` takes at a step: of its `rollout.prompts` every `world`-th. `steps`:
        of the run; a stream is read ahead until them, and begun anew where a step is not the one after the last."""
        epoch, whole = self.order.step(step, self._prompts)
        reader = None if self._buffer is None else self._reading(Part(
            self._prompts, range(step, steps or step + 1), rank, world))
        drawn = self.order.draws_of(step, self._prompts) if reader else []
        mine = range(rank, len(whole), world)
        indexed = [] if reader else self._read([whole[at] for at in mine])
        samples = []
        for at in mine:
            place, _ = self.order.place(index := whole[at])
            one = self.drawn[place]
            repeat = whole[:at].count(index)  # a small set may come twice in a step
            sample = reader.take(*drawn[at]) if reader else next(indexed[place])
            samples.append(replace(sample, from_set=one.name if len(self.sets) > 1 else "", repeat=repeat))
        self._next = step + 1
        return epoch, samples

    def _reading(self, part: Part) -> LaneReader:
        """The stream that is being read where it goes on with a step, else another from that step on."""
        held, step = self._reader, part.steps.start
        if held is None or self._next != step or step not in held.part.steps or (
                (held.part.rank, held.part.world) != (part.rank, part.world)):
            self.close()
            held = self._reader = LaneReader([(one.shard_set, one.refs) for one in self.drawn], self.order, part)
        self._next = -1  # until all samples of the step are taken
        return held

    def close(self) -> None:
        """Ends what is read ahead as a stream."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _read(self, indices: Sequence[int]) -> list[Iterator[Sample]]:
        """The samples of these indices, of each set those that are its own."""
        found = [self.order.place(index) for index in indices]
        return [read_samples(one.shard_set, [one.refs[query] for at, query in found if at == place])
                for place, one in enumerate(self.drawn)]

    def summary(self) -> dict[str, Any]:
        """For data.json of the run folder: what each set gave, what each filter left out, what an epoch draws."""
        shares = dict(zip((one.name for one in self.drawn), self.order.shares, strict=True))
        return {
            "sets": [{"name": one.name, "path": str(one.source.path), "encoder": one.shard_set.encoder,
                      "weight": one.source.weight, "queries": one.held, "kept": len(one.refs),
                      "left_out": one.left_out, "draws_per_epoch": shares.get(one.name, 0),
                      "validation": one in self.validated} for one in self.sets],
            "draws_per_epoch": self.order.n, "steps_per_epoch": self.steps_per_epoch, "prompts": self._prompts,
            "left_over_per_epoch": self.order.left_out(self._prompts)}

    def warn_missing_captions(self, source: PathSource) -> None:
        """Warns, once a set, of queries that have nothing to guide a rollout with (`rollout.paths`): theirs will all be
        free."""
        for one in self.drawn:
            refs = one.refs
            if isinstance(refs, IndexedQueries):
                bare = refs.held.count_without(refs.rows, "captions" if source == "online" else f"paths_{source}")
            elif source == "online":
                captioned = one.shard_set.captioned
                bare = sum(ref.key not in captioned for ref in refs)
            else:
                bare = sum(not any(getattr(ref.query.paths, source)) for ref in refs)
            if bare:
                log.warning("%s: %s of %s queries have no captions to guide a rollout with (rollout.paths=%s): their "
                            "rollouts are free, in the guided phase too; preprocess with captions, or set "
                            "curriculum.schedule=off", one.source.path, "all" if bare == len(refs) else f"{bare:,}",
                            f"{len(refs):,}", source)


def data_lines(summary: dict[str, Any]) -> list[str]:
    """A summary as lines of plain text.

    >>> one = {"name": "a", "queries": 9, "kept": 7, "left_out": {"split": 2}, "weight": 1.0, "draws_per_epoch": 7}
    >>> data_lines({"sets": [one], "draws_per_epoch": 7, "steps_per_epoch": 3, "prompts": 2, "left_over_per_epoch": 1})
    ['a: 7 of 9 queries (left out by split: 2), 7 draws an epoch', 'an epoch: 7 draws, 3 steps of 2, 1 left over']
    """
    lines = []
    for one in summary["sets"]:
        left_out = ", ".join(f"{name}: {count:,}" for name, count in one["left_out"].items())
        drawn = f"{one['draws_per_epoch']:,} draws an epoch" if one["weight"] else "for validation alone"
        weight = f", weight {one['weight']:g}" if len(summary["sets"]) > 1 and one["weight"] else ""
        lines.append(f"{one['name']}: {one['kept']:,} of {one['queries']:,} queries"
                     f"{f' (left out by {left_out})' if left_out else ''}{weight}, {drawn}")
    return [*lines, f"an epoch: {summary['draws_per_epoch']:,} draws, {summary['steps_per_epoch']:,} steps of "
                    f"{summary['prompts']}, {summary['left_over_per_epoch']} left over"]


def _names(shard_set: ShardSet, field: str) -> set[str]:
    """What the filter `field` can name in a set."""
    return set(shard_set.keys) if field == "keys" else shard_set.query_ids


def _left_out_text(one: TrainingSet) -> str:
    counts = ", ".join(f"{name}: {count:,}" for name, count in one.left_out.items()) or "it holds none"
    return f"{counts}{_splits_there(one)}"


def _splits_there(one: TrainingSet) -> str:
    """For a message: the splits of a set, where the one that is asked for is none of them."""
    split = one.source.split
    return "" if split is None or split in one.shard_set.splits else f" (the set has {one.shard_set.splits_text})"
