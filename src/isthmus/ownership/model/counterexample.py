"""From a path of canonical states to a story: one set of names from beginning to end, a label for every move."""

from dataclasses import dataclass

from isthmus.core.errors import Bug
from isthmus.ownership.model.packing import World
from isthmus.ownership.model.space import Space
from isthmus.ownership.model.violations import Violation

__all__ = ["Counterexample", "Step", "retrace"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One move, and the state after it (None after a move that went wrong)."""

    label: str
    world: World | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Counterexample:
    """A way to a violation, from the beginning."""

    violation: Violation
    steps: tuple[Step, ...]


def retrace(space: Space, path: list[int], violation: Violation) -> Counterexample:
    """`path` leads from the first state to one that is wrong, or from which one move goes wrong."""
    state = space.initial()
    steps: list[Step] = []
    for wanted in path[1:]:
        label, state = _step_to(space, state, wanted)
        steps.append(Step(label=label, world=space.packing.unpack(state)))
    for move in space.moves(state):
        if move.violation is not None and move.violation.invariant == violation.invariant:
            steps.append(Step(label=move.label, world=None))
            return Counterexample(violation=move.violation, steps=tuple(steps))
    return Counterexample(violation=violation, steps=tuple(steps))


def _step_to(space: Space, state: int, wanted: int) -> tuple[str, int]:
    for move in space.moves(state):
        if move.world is not None:
            after = space.packing.pack(move.world)
            if after != state and space.canonical(after) == wanted:
                return move.label, after
    raise Bug("a state is not followed by what follows its canonical form, renamed")
