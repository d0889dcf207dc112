"""Breadth first through a state space, level by level, checking every state; and the shortest way to what is wrong.

A state that will not go on by itself (no message that changes anything, nobody working, every lease and death dealt
with) must hold nothing, and every request must have ended (I5, I8). Since each move that counts as progress brings some
request nearer to its end (`rank`), such a state is reached from everywhere, whatever faults came before.
"""

from collections.abc import Callable
from dataclasses import dataclass

from isthmus.core.clock import Clock
from isthmus.ownership.accounts import BlockState
from isthmus.ownership.model.packing import World
from isthmus.ownership.model.records import NOBODY
from isthmus.ownership.model.space import Space
from isthmus.ownership.model.violations import Violation

__all__ = ["Counterexample", "Explored", "Step", "explore"]

_SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One move of a trace, and the state after it (None after the one that went wrong)."""

    label: str
    world: World | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Counterexample:
    """The shortest way to a violation."""

    violation: Violation
    steps: tuple[Step, ...]


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


class _Found(Exception):
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
        """Visit the last level, and find the next. Raises _Found."""
        space, expand = self.space, self.space.expand
        after: set[int] = set()
        for state in self.levels[-1]:
            try:
                progress, found = expand(state)
            except Violation as violation:
                raise _Found(violation, state) from violation
            self.transitions += len(found)
            after.update(found)
            if not progress:
                self._check_quiescent(state)
        after -= self.visited
        if space.scope.reduced:
            after = {space.canonical(state) for state in after} - self.visited
        self.visited |= after
        self.levels.append(list(after))

    def _check_quiescent(self, state: int) -> None:
        self.quiescent += 1
        wrong = _left(self.space.packing.unpack(state))
        if wrong is not None:
            raise _Found(wrong, state)


def explore(
    space: Space, clock: Clock, *, tell: Callable[[int, int, float], None] | None = None, states_max: int | None = None
) -> Explored:
    """Visit every state of `space` up to its scope's depth; stop at the first that is wrong.

    `tell` hears of (depth, states, seconds) after each level.
    """
    began = clock.now()
    first = space.canonical(space.initial())
    search = _Search(space, {first}, [[first]])
    found: _Found | None = None
    depth_max = space.scope.depth_max
    while search.levels[-1] and (depth_max is None or len(search.levels) <= depth_max):
        if states_max is not None and len(search.visited) >= states_max:
            break
        try:
            search.level()
        except _Found as stop:
            found = stop
            break
        if tell is not None:
            tell(len(search.levels) - 1, len(search.visited), (clock.now() - began) / _SECOND)
    exhausted = not search.levels[-1] and found is None
    return Explored(
        states=len(search.visited),
        transitions=search.transitions,
        quiescent=search.quiescent,
        depth=len(search.levels) - 1 - exhausted,
        exhausted=exhausted,
        seconds=(clock.now() - began) / _SECOND,
        counterexample=None if found is None else _counterexample(search, found),
    )


def _left(world: World) -> Violation | None:
    """What a system that will not go on by itself still holds."""
    for index, request in enumerate(world.requests):
        if not request.ended:
            return Violation("I5" if not request.begun else "I8", f"request {index} is never ended: {request}")
    for worker in world.producers + world.consumers:
        for slot in worker.slots:
            if slot.account != BlockState.FREE or slot.grants or slot.active or slot.staged != NOBODY:
                return Violation("I8", f"a block is left behind: {slot}")
    return None


# counterexamples


def _counterexample(search: _Search, found: _Found) -> Counterexample:
    """Back through the levels to the beginning, and forth again with labels and one set of names."""
    space = search.space
    path = [found.state]
    for level in reversed(search.levels[: _depth_of(search, found.state)]):
        path.append(_predecessor(space, level, path[-1]))
    path.reverse()
    state = space.initial()
    steps: list[Step] = []
    for wanted in path[1:]:
        label, state = _step_to(space, state, wanted)
        steps.append(Step(label=label, world=space.packing.unpack(state)))
    for move in space.moves(state):
        if move.violation is not None and move.violation.invariant == found.violation.invariant:
            steps.append(Step(label=move.label, world=None))
            return Counterexample(violation=move.violation, steps=tuple(steps))
    return Counterexample(violation=found.violation, steps=tuple(steps))


def _depth_of(search: _Search, state: int) -> int:
    return next(depth for depth, level in enumerate(search.levels) if state in level)


def _predecessor(space: Space, level: list[int], wanted: int) -> int:
    for state in level:
        try:
            _, found = space.expand(state)
        except Violation:
            continue
        if any(space.canonical(after) == wanted for after in found):
            return state
    raise AssertionError("every visited state was reached from the level before")


def _step_to(space: Space, state: int, wanted: int) -> tuple[str, int]:
    for move in space.moves(state):
        if move.world is not None:
            after = space.packing.pack(move.world)
            if after != state and space.canonical(after) == wanted:
                return move.label, after
    raise AssertionError("a state is followed by what follows its canonical form, renamed")
