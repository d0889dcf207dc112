"""Seeded random walks through a space that is too large to be visited whole: every state on the way is checked.

A walk goes from the beginning to where nothing may follow, choosing evenly among what may, so that it comes deep: its
faults are spread over a whole course of events, where a search by levels has seen only the first of them.
"""

from dataclasses import dataclass

from isthmus.core.clock import ManualClock
from isthmus.core.limits import MODEL_WALK_MOVES_MAX
from isthmus.ownership.model.counterexample import Counterexample, retrace
from isthmus.ownership.model.explore import left_behind
from isthmus.ownership.model.space import Space
from isthmus.ownership.model.violations import Violation

__all__ = ["Walked", "walk"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Walked:
    """What walks found: how many there were, the moves they made, and the distinct states they saw."""

    walks: int
    moves: int
    states: int
    longest: int
    counterexample: Counterexample | None


def walk(space: Space, *, walks: int, seed: int) -> Walked:
    """Walk `walks` times; stop at the first state that is wrong. The same seed walks the same ways."""
    chance = ManualClock(seed)
    visited: set[int] = set()
    moves = longest = walked = 0
    counterexample: Counterexample | None = None
    while walked < walks and counterexample is None:
        path = [space.canonical(space.initial())]
        wrong = _go(space, chance, path)
        visited.update(path)
        moves += len(path) - 1
        longest = max(longest, len(path) - 1)
        walked += 1
        if wrong is not None:
            counterexample = retrace(space, path, wrong)
    return Walked(walks=walked, moves=moves, states=len(visited), longest=longest, counterexample=counterexample)


def _go(space: Space, chance: ManualClock, path: list[int]) -> Violation | None:
    """One walk, added to `path`."""
    while len(path) <= MODEL_WALK_MOVES_MAX:
        try:
            going, found = space.expand(path[-1])
        except Violation as violation:
            return violation
        wrong = None if going else left_behind(space.packing.unpack(path[-1]))
        if wrong is not None or not found:
            return wrong
        path.append(space.canonical(found[int(chance.token(), 16) % len(found)]))
    return None
