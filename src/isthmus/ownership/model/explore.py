"""Breadth first through a state space, level by level, checking every state; and the shortest way to what is wrong.

A state that will not go on though no message arrives any more (nobody works, every lease and death has been dealt
with) must hold nothing but what is kept for a peer that lives and has not been heard, and every request must have an
outcome (I5, I8). Neither progress nor messages ever lead a request back (`Space.check_progress`), so that such a state
is reached from everywhere, whatever went wrong before and whichever messages are lost.
"""

from collections.abc import Callable
from dataclasses import dataclass

from isthmus.core.clock import Clock
from isthmus.core.errors import Bug
from isthmus.ownership.accounts import BlockState
from isthmus.ownership.model.counterexample import Counterexample, retrace
from isthmus.ownership.model.packing import World
from isthmus.ownership.model.records import ABSENT, NOBODY, PREFIX
from isthmus.ownership.model.space import Space
from isthmus.ownership.model.violations import Violation

__all__ = ["Explored", "Tell", "explore", "left_behind"]

NS_PER_SECOND = 1_000_000_000

Tell = Callable[[int, int, float], None]
"""Hears of (depth, states, seconds) after each level."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explored:
    """What a search found. `exhausted`: there was nothing left to visit."""

    states: int
    transitions: int
    quiescent: int
    depth: int
    exhausted: bool
    seconds: float
    counterexample: Counterexample | None


class _Wrong(Exception):
    def __init__(self, violation: Violation, state: int) -> None:
        super().__init__(str(violation))
        self.violation = violation
        self.state = state


@dataclass(slots=True)
class _Search:
    """The levels so far. All states of a level are as many moves from the beginning."""

    space: Space
    visited: set[int]
    levels: list[list[int]]
    transitions: int = 0
    quiescent: int = 0

    def level(self) -> None:
        """Visit the last level, and find the next. Raises _Wrong."""
        space, expand = self.space, self.space.expand
        after: set[int] = set()
        for state in self.levels[-1]:
            try:
                going, found = expand(state)
            except Violation as violation:
                raise _Wrong(violation, state) from violation
            self.transitions += len(found)
            after.update(found)
            if not going:
                self._check_quiescent(state)
        # What is known as it stands need not be renamed first.
        after -= self.visited
        if space.scope.reduced:
            after = {space.canonical(state) for state in after} - self.visited
        self.visited |= after
        self.levels.append(list(after))

    def _check_quiescent(self, state: int) -> None:
        self.quiescent += 1
        wrong = left_behind(self.space.packing.unpack(state))
        if wrong is not None:
            raise _Wrong(wrong, state)


def explore(space: Space, clock: Clock, *, tell: Tell | None = None, states_max: int | None = None) -> Explored:
    """Visit every state of `space` up to its scope's depth; stop at the first that is wrong."""
    began = clock.now()
    first = space.canonical(space.initial())
    search = _Search(space, {first}, [[first]])
    counterexample: Counterexample | None = None
    depth_max = space.scope.depth_max
    while search.levels[-1] and (depth_max is None or len(search.levels) <= depth_max):
        if states_max is not None and len(search.visited) >= states_max:
            break
        try:
            search.level()
        except _Wrong as wrong:
            counterexample = retrace(space, _path(search, wrong.state), wrong.violation)
            break
        if tell is not None:
            tell(len(search.levels) - 1, len(search.visited), (clock.now() - began) / NS_PER_SECOND)
    exhausted = not search.levels[-1] and counterexample is None
    return Explored(
        states=len(search.visited),
        transitions=search.transitions,
        quiescent=search.quiescent,
        depth=len(search.levels) - 1 - exhausted,
        exhausted=exhausted,
        seconds=(clock.now() - began) / NS_PER_SECOND,
        counterexample=counterexample,
    )


def left_behind(world: World) -> Violation | None:
    """What a system that will not go on by itself still holds, or has not answered."""
    waiting = _waiting_for_the_living(world)
    for number, worker in enumerate(world.producers + world.consumers):
        for slot in worker.slots:
            kept = slot.account != BlockState.FREE and slot.owner != PREFIX
            source = number < len(world.producers)
            if source and slot.owner in waiting and slot.account == BlockState.QUARANTINED:
                continue
            if kept or slot.grants or slot.active or slot.pointers or slot.staged != NOBODY:
                return Violation("I8", f"a block is left behind: {slot}")
    for index, request in enumerate(world.requests):
        if not request.begun or request.destination != ABSENT:
            return Violation("I5", f"request {index} never has an outcome")
    return None


def _waiting_for_the_living(world: World) -> set[int]:
    """Claims whose source is kept for a consumer that has stopped, is alive, and whose word of it has not arrived."""
    return {
        index * len(request.parts) + part
        for index, request in enumerate(world.requests)
        for part in range(len(request.parts))
        if request.abandoned and not request.consumer_died
    }


def _path(search: _Search, state: int) -> list[int]:
    """Back through the levels to the beginning. Found again, so that no state has to remember where it came from."""
    depth = next(depth for depth, level in enumerate(search.levels) if state in level)
    path = [state]
    for level in reversed(search.levels[:depth]):
        path.append(_predecessor(search.space, level, path[-1]))
    path.reverse()
    return path


def _predecessor(space: Space, level: list[int], wanted: int) -> int:
    for state in level:
        try:
            _, found = space.expand(state)
        except Violation:
            continue
        if any(space.canonical(after) == wanted for after in found):
            return state
    raise Bug("a visited state was not reached from the level before")
