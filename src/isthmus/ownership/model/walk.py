"""Seeded random walks through a scope that is too large to be visited whole: every state on the way is checked.

A walk goes from the beginning to where nothing may follow, choosing evenly among what may. Each draws a mix of the
scope's faults first, so that some walks come to the end of an undisturbed course and others are all trouble: a walk in
which everything may go wrong at every step rarely comes far. States that a mix reaches are states of the scope.
"""

from dataclasses import dataclass, replace
from itertools import product

from isthmus.core.clock import ManualClock
from isthmus.core.limits import MODEL_WALK_MOVES_MAX
from isthmus.ownership.model.counterexample import Counterexample, retrace
from isthmus.ownership.model.explore import left_behind
from isthmus.ownership.model.rules import Rules
from isthmus.ownership.model.scope import Faults, Scope
from isthmus.ownership.model.show import story
from isthmus.ownership.model.space import Space
from isthmus.ownership.model.violations import Violation

__all__ = ["Walked", "walk"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Walked:
    """What walks found: how many there were, their moves, the distinct states of each mix, and what happened."""

    walks: int
    moves: int
    states: int
    longest: int
    marks: frozenset[str]
    counterexample: Counterexample | None
    story: tuple[str, ...]


def walk(scope: Scope, rules: Rules, *, walks: int, seed: int) -> Walked:
    """Walk `walks` times; stop at the first state that is wrong. The same seed walks the same ways."""
    chance = ManualClock(seed)
    spaces = [Space(replace(scope, faults=faults), rules) for faults in _mixes(scope.faults)]
    visited: list[set[int]] = [set() for _ in spaces]
    moves = longest = walked = 0
    counterexample: Counterexample | None = None
    lines: tuple[str, ...] = ()
    while walked < walks and counterexample is None:
        mix = _draw(chance, len(spaces))
        space = spaces[mix]
        path = [space.canonical(space.initial())]
        wrong = _go(space, chance, path)
        visited[mix].update(path)
        moves += len(path) - 1
        longest = max(longest, len(path) - 1)
        walked += 1
        if wrong is not None:
            counterexample = retrace(space, path, wrong)
            lines = tuple(story(counterexample, space.steps, scope.parts))
    return Walked(
        walks=walked,
        moves=moves,
        states=sum(len(states) for states in visited),
        longest=longest,
        marks=frozenset().union(*(space.marks for space in spaces)),
        counterexample=counterexample,
        story=lines,
    )


def _mixes(faults: Faults) -> list[Faults]:
    """With and without deaths, pauses, and giving up, as far as the scope has them."""
    mixes = product({0, faults.crashes}, {0, faults.pauses}, {False, faults.gives_up})
    return [
        replace(faults, crashes=crashes, pauses=pauses, gives_up=gives_up)
        for crashes, pauses, gives_up in sorted(mixes)
    ]


def _draw(chance: ManualClock, number: int) -> int:
    return int(chance.token(), 16) % number


def _go(space: Space, chance: ManualClock, path: list[int]) -> Violation | None:
    """One walk, added to `path`."""
    while len(path) <= MODEL_WALK_MOVES_MAX:
        try:
            going, found = space.expand(path[-1])
        except Violation as violation:
            return violation
        # Where nobody ever gives up, one may wait for ever for what was lost: then nothing follows from being held.
        over = not going and space.scope.faults.gives_up
        wrong = left_behind(space.packing.unpack(path[-1])) if over else None
        if wrong is not None or not found:
            return wrong
        path.append(space.canonical(found[_draw(chance, len(found))]))
    return None
