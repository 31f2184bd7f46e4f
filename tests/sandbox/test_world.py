"""Worlds: possible for every seed, a function of the seed alone, and what each setting says they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import pytest
from pydantic import ValidationError

from taro.sandbox.world import (
    CELL_S,
    ENTERS,
    GROWTH,
    LEAVES,
    ORDINALS,
    Event,
    World,
    WorldSettings,
    duration_cells,
    make_world,
)

SEEDS = range(3_950_000, 3_950_200)


def worlds(**changed: float) -> list[World]:
    settings = WorldSettings(**changed)
    return [make_world(seed, settings) for seed in SEEDS]


def check_worlds(seeds: Iterable[int], settings: WorldSettings | None = None) -> list[str]:
    """What is impossible in the worlds of `seeds`, one line each; empty where all is well."""
    settings = settings or WorldSettings()
    return [f"seed {seed}: {problem}" for seed in seeds for problem in _problems(make_world(seed, settings), settings)]


def _problems(world: World, settings: WorldSettings) -> list[str]:
    found = []
    if world.cells < 4 or world.cells % 2:
        found.append(f"{world.cells} cells are not two whole patches")
    if not 1 <= len(world.events) <= settings.max_events:
        found.append(f"{len(world.events)} events")
    if len(set(world.objects)) != len(world.objects):
        found.append("two objects look the same")
    if max(Counter((e.thing, e.action) for e in world.events).values()) > len(ORDINALS):
        found.append("an event happens too often to be named")
    if len({world.query(n) for n in range(len(world.events))}) != len(world.events):
        found.append("two events have one name")
    for event in world.events:
        if not 0 < event.start < event.end <= world.cells:
            found.append(f"{event} is outside {world.cells} cells")
    for one, two in zip(world.events, world.events[1:], strict=False):
        if one.end >= two.start and (settings.overlap == 0 or one.thing == two.thing):
            found.append(f"{one} and {two} meet")
    if not np.isfinite(world.state).all():
        found.append("a state is not finite")
    return found


def test_no_world_of_two_thousand_seeds_is_impossible() -> None:
    assert check_worlds(range(2000)) == []


@pytest.mark.parametrize("changed", [
    {"min_duration_s": 8, "max_duration_s": 8, "min_events": 12, "max_events": 12, "max_distractors": 4, "overlap": 1},
    {"min_duration_s": 60, "max_duration_s": 600, "min_events": 1, "max_events": 1, "max_distractors": 0, "repeat": 0},
    {"overlap": 0.7}, {"repeat": 0, "min_events": 12, "max_events": 12}, {"repeat": 1, "size_px": 280},
])  # fmt: skip
def test_no_world_is_impossible_at_the_ends_of_the_settings(changed: dict[str, float]) -> None:
    assert check_worlds(SEEDS, WorldSettings(**changed)) == []


def test_the_check_sees_what_is_impossible(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that finds nothing proves nothing: hand it worlds that are broken in one way each."""
    good = make_world(5)
    first, end = good.events[0], good.cells
    broken = {
        "outside": Event(end - 1, end + 3, 0, 2), "meet": Event(first.end, first.end + 4, 0, 3),
    }  # fmt: skip
    for word, event in broken.items():
        events = tuple(sorted((first, event)))
        monkeypatch.setattr("tests.sandbox.test_world.make_world", lambda *_, events=events: World(
            5, good.cells, good.objects, events, good.state))  # fmt: skip
        assert any(word in problem for problem in check_worlds([5])), word


def test_a_world_is_a_function_of_its_seed() -> None:
    one, again, other = make_world(7), make_world(7), make_world(8)
    assert one.events == again.events and np.array_equal(one.state, again.state)
    assert one.as_json() != other.as_json()
    assert duration_cells(7, WorldSettings()) == one.cells


def test_ordinals_count_in_order_of_time() -> None:
    repeated = 0
    for world in worlds(repeat=1, min_events=3):
        seen: Counter[str] = Counter()
        totals = Counter(world.phrase(event) for event in world.events)
        for number, event in enumerate(world.events):
            phrase = world.phrase(event)
            ordinal = f" for the {ORDINALS[seen[phrase]]} time" if totals[phrase] > 1 else ""
            assert world.query(number) == phrase + ordinal
            seen[phrase] += 1
            repeated += bool(ordinal)
    assert repeated > len(SEEDS)


def test_state_shows_what_events_say_and_nothing_else_changes() -> None:
    """Outside of events every object is still; inside, an event changes its own object and no other."""
    for world in worlds():
        busy = np.zeros((len(world.objects), world.cells + 1), bool)
        for event in world.events:
            busy[event.thing, event.start : event.end + 1] = True
            own = world.state[event.thing]
            before, inside = own[:, event.start - 1], own[:, event.start : event.end]
            moved = not np.array_equal(inside, np.broadcast_to(before[:, None], inside.shape))
            assert moved, f"{world.phrase(event)}: nothing to see"
            if event.action == ENTERS:
                assert not own[3, : event.start].any() and own[3, event.start]
            if event.action == LEAVES:
                assert not own[3, event.end :].any() and own[3, event.end - 1]
        still = ~busy[:, 1:-1]
        assert not np.diff(world.state, axis=2)[np.broadcast_to(still[:, None], (*still.shape[:1], 4, still.shape[1]))
                                                ].any()  # fmt: skip


def test_growth_is_that_of_its_constant() -> None:
    world = next(w for w in worlds() if any(w.phrase(e).endswith("grows") for e in w.events))
    event = next(e for e in world.events if world.phrase(e).endswith("grows"))
    radius = world.state[event.thing, 2]
    assert radius[event.start] / radius[event.start - 1] == pytest.approx(GROWTH, rel=1e-5)


def test_a_crop_holds_the_part_of_each_event_that_it_shows() -> None:
    world = make_world(11)
    event = world.events[1]
    part = world.crop(event.start + 1, event.end + 1)
    assert part.cells == event.end - event.start
    assert part.events[0] == Event(0, event.end - event.start - 1, event.thing, event.action)
    assert np.array_equal(part.state[:, :, 0], world.state[:, :, event.start + 1])


def test_duration_and_number_of_events_stay_within_their_settings() -> None:
    made = worlds(min_duration_s=20, max_duration_s=23, min_events=2, max_events=4)
    assert {w.duration_s for w in made} == {20.0, 21.0, 22.0, 23.0}
    assert {len(w.events) for w in made} == {2, 3, 4}
    assert {len(w.events) for w in worlds(min_events=3, max_events=3)} == {3}


def test_repeat_is_a_probability() -> None:
    def share(repeat: float) -> float:
        made = worlds(repeat=repeat, min_duration_s=30, min_events=4, max_events=5)
        return float(np.mean([max(Counter(w.phrase(e) for e in w.events).values()) > 1 for w in made]))

    assert share(0) == 0
    assert share(1) > 0.95
    assert 0.4 < share(0.5) < 0.75


def test_distractors_are_objects_to_which_nothing_happens() -> None:
    without, many = worlds(max_distractors=0), worlds(max_distractors=4)
    more = [len(b.objects) - len(a.objects) for a, b in zip(without, many, strict=True)]
    assert set(more) == {0, 1, 2, 3, 4}
    for a, b in zip(without, many, strict=True):
        assert max(e.thing for e in b.events) < len(a.objects)


def test_overlap_is_between_objects_and_only_where_asked() -> None:
    def overlapping(overlap: float) -> int:
        return sum(any(a.end > b.start for a, b in pairwise(w.events))
                   for w in worlds(overlap=overlap, min_events=4))  # fmt: skip

    assert overlapping(0) == 0
    assert overlapping(1) > 0.9 * len(SEEDS)
    for world in worlds(overlap=1, min_events=4):
        for thing in range(len(world.objects)):
            own = [e for e in world.events if e.thing == thing]
            assert all(a.end < b.start for a, b in pairwise(own))


def test_size_scales_the_scene() -> None:
    small, large = make_world(3), make_world(3, WorldSettings(size_px=168))
    assert small.events == large.events
    np.testing.assert_allclose(large.state[:, 2], 2 * small.state[:, 2], rtol=1e-5)
    assert large.state[:, :2].max() > 84


@pytest.mark.parametrize("changed", [{"size_px": 85}, {"fps": 7}, {"min_duration_s": 33}, {"min_events": 7},
                                     {"repeat": 1.5}, {"noize": 0.1}])  # fmt: skip
def test_settings_that_cannot_be_are_refused(changed: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        WorldSettings(**changed)


def test_cells_are_half_seconds() -> None:
    assert CELL_S == 0.5
    assert all(w.cells % 2 == 0 and w.duration_s == int(w.duration_s) for w in worlds())
