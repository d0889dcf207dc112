"""What a trace says happened, production does: each change of a side is one of its steps."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from isthmus.core.clock import ManualClock
from isthmus.ownership.model.packing import World
from isthmus.ownership.model.rules import PRODUCTION
from isthmus.ownership.model.space import Space
from isthmus.ownership.model.walk import walk
from tests.ownership.model.worlds import SMALL, visited, without_evidence


def history(space: Space, seed: int) -> list[World]:
    """One way through the space, with labels chosen by chance, in the names it began with."""
    chance = ManualClock(seed)
    worlds = [space.packing.unpack(space.initial())]
    while True:
        moves = [move.world for move in space.moves(space.packing.pack(worlds[-1])) if move.world not in worlds]
        following = [world for world in moves if world is not None]
        if not following:
            return worlds
        worlds.append(following[int(chance.token(), 16) % len(following)])


def test_every_change_of_a_side_in_a_trace_is_a_step_of_production() -> None:
    for scope in SMALL.values():
        space, _ = visited(scope)
        sources, destinations = space.steps.sources, space.steps.destinations
        taken = {(source, after) for source, after in _taken(space)}
        changes = 0
        for seed in range(3):
            for before, after in pairwise(history(space, seed)):
                for one, other in zip(before.requests, after.requests, strict=True):
                    for part, next_ in zip(one.parts, other.parts, strict=True):
                        if next_.source and next_.source != part.source:
                            assert (sources[part.source], sources[next_.source]) in taken
                            changes += 1
                    if other.destination and other.destination != one.destination:
                        # A move may take several steps: arrived and then, say, stopped.
                        assert _leads(taken, destinations[one.destination], destinations[other.destination])
                        changes += 1
        assert changes > 3


def _taken(space: Space) -> Iterator[tuple[Any, Any]]:
    """Every pair of states that production itself, asked again, makes of what the checker asked it."""
    steps = space.steps
    for state, event in steps._source_memo:
        yield steps.sources[state], without_evidence(PRODUCTION.source(steps.sources[state], event)[0])
    for state, event in steps._destination_memo:
        yield steps.destinations[state], without_evidence(PRODUCTION.destination(steps.destinations[state], event)[0])


def _leads(taken: set[tuple[Any, Any]], before: Any, after: Any) -> bool:
    return (before, after) in taken or any(one == before and (other, after) in taken for one, other in taken)


def test_the_same_seed_walks_the_same_way() -> None:
    one, again = (walk(SMALL["tenants"], PRODUCTION, walks=20, seed=7) for _ in range(2))
    other = walk(SMALL["tenants"], PRODUCTION, walks=20, seed=8)
    assert one == again
    assert one != other
    assert one.counterexample is None
