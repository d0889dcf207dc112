"""The state space of a scope under given rules: what follows from a state.

A move of a request sees only its own record, the two workers it is between, and the slots that it has to do with (its
*view*). So what follows from a view is computed once, by production's own code, and remembered as differences to add to
any state with that view.
"""

from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from typing import NamedTuple

from isthmus.ownership.model import pull, push
from isthmus.ownership.model.adversary import consumer_forgeries, producer_forgeries, renewals
from isthmus.ownership.model.endings import consumer_endings, producer_endings, time_options
from isthmus.ownership.model.faults import Faulty
from isthmus.ownership.model.options import Option, Why
from isthmus.ownership.model.orders import begin_options, order_options
from isthmus.ownership.model.packing import REQUEST_MASK, Packing, World, initial_world
from isthmus.ownership.model.records import Request
from isthmus.ownership.model.relations import Relations, Sight
from isthmus.ownership.model.rules import Rules, Steps
from isthmus.ownership.model.scope import Scope
from isthmus.ownership.model.symmetry import Symmetry
from isthmus.ownership.model.tidying import end
from isthmus.ownership.model.turn import Turn, View
from isthmus.ownership.model.violations import Violation
from isthmus.ownership.protocol.states import TriggerMode

__all__ = ["Move", "Space"]


class Move(NamedTuple):
    """One step of a trace, readable. After a violation there is no world."""

    label: str
    world: World | None
    violation: Violation | None


class _Follows(NamedTuple):
    """What follows from a view: whether something will happen though no message arrives, and differences to add."""

    progress: bool
    differences: tuple[int, ...]


class Space:
    """States as integers, in canonical form if the scope is `reduced`."""

    def __init__(self, scope: Scope, rules: Rules) -> None:
        self.scope = scope
        self.steps = Steps(rules)
        self.packing = Packing(scope)
        self.marks: set[str] = set()
        self._symmetry = Symmetry(self.packing)
        self._relations = Relations(self.packing)
        self._faulty = Faulty(self.packing, self.steps, self.marks)
        self._mode = pull if scope.mode is TriggerMode.PULL else push
        self._nearer: dict[Request, set[Request]] = {}
        # Apart, because a free block that somebody may still read is in both kinds of view.
        self._own: dict[int, _Follows] = {}
        self._taking: dict[int, _Follows] = {}

    def initial(self) -> int:
        return self.packing.pack(initial_world(self.scope))

    def canonical(self, state: int) -> int:
        return self._symmetry.canonical(state) if self.scope.reduced else state

    @property
    def views(self) -> int:
        """How many views have been worked out."""
        return len(self._own) + len(self._taking)

    def expand(self, state: int) -> tuple[bool, list[int]]:
        """Whether `state` goes on though no message arrives, and what may follow it, not yet canonical.

        Raises Violation.
        """
        found: list[int] = []
        progress = False
        own, taking, shifts = self._own, self._taking, self.packing.request_shifts
        for index, known in enumerate(self._relations.known(state)):
            shift = shifts[index]
            sights = known.get(state >> shift & REQUEST_MASK)
            if sights is None:
                sights = self._relations.look(index, state)
            for sight in sights:
                view = state & sight[0]
                follows = taking if sight.taking else own
                after = follows.get(view)
                if after is None:
                    after = follows[view] = self._follow(index, state, sight)
                going, differences = after
                progress = progress or going
                found += [state + difference for difference in differences]
        if self._faulty.any:
            going, faults = self._faulty.expand(state)
            progress = progress or going
            found += faults
        return progress, found

    def check_progress(self) -> None:
        """That a request which only goes on comes to an end: progress never leads it back to where it was.

        Raises Violation. It is asked of the records alone, which is stricter than of whole states.
        """
        try:
            TopologicalSorter(self._nearer).prepare()
        except CycleError as cycle:
            raise Violation("I5", f"a request goes round in circles: {cycle.args[1]}") from cycle

    def moves(self, state: int) -> Iterator[Move]:
        """As `expand`, for people: with labels, every violation, whole workers, and no renaming."""
        world = self.packing.unpack(state)
        for index, request in enumerate(world.requests):
            for producer, consumer in self._pairs(index, world):
                view = View(request, world.producers[producer], world.consumers[consumer])
                turn = self._turn(index, view)
                for option in (*self._takes(turn, producer, consumer), *self._goes_on(turn)):
                    label = f"request {index}: {option.label}"
                    try:
                        after = self._applied(index, view, option)
                    except Violation as violation:
                        yield Move(label, None, violation)
                    else:
                        yield Move(label, _placed(world, index, (producer, consumer), after), None)
        yield from (Move(label, after, None) for label, after in self._faulty.moves(world))

    # one view

    def _follow(self, index: int, state: int, sight: Sight) -> _Follows:
        view = self._view(index, state, sight)
        turn = self._turn(index, view)
        options = self._takes(turn, sight.producer, sight.consumer) if sight.taking else self._goes_on(turn)
        progress = False
        differences: dict[int, None] = {}
        for option in options:
            after = self._applied(index, view, option)
            if after != view:
                progress = progress or option.why is Why.PROGRESS
                if option.why is not Why.FAULT:
                    self._nearer.setdefault(view.request, set()).add(after.request)
                differences[self._difference(index, sight, view, after)] = None
        return _Follows(progress, tuple(differences))

    def _takes(self, turn: Turn, producer: int, consumer: int) -> Iterator[Option]:
        """What needs a free block."""
        return order_options(turn) if turn.request.begun else begin_options(turn, producer, consumer)

    def _goes_on(self, turn: Turn) -> Iterator[Option]:
        """What needs no more than the request has."""
        if not turn.request.begun:
            return
        for part in range(self.scope.parts):
            yield from time_options(turn, part)
            if not turn.producer.paused:
                yield from self._mode.producer_options(turn, part)
                yield from producer_endings(turn, part)
                yield from renewals(turn, part)
                if self.scope.faults.forges:
                    yield from producer_forgeries(turn, part)
            if not turn.consumer.paused:
                yield from self._mode.consumer_options(turn, part)
                if self.scope.faults.forges:
                    yield from consumer_forgeries(turn, part)
        if not turn.consumer.paused:
            yield from consumer_endings(turn)

    def _turn(self, index: int, view: View) -> Turn:
        return Turn(self.scope, self.steps, index, view, self.marks)

    def _applied(self, index: int, view: View, option: Option) -> View:
        turn = self._turn(index, view)
        option.act(turn)
        if (turn.request, turn.producer, turn.consumer) == view:
            return view  # nothing has changed, and there is nothing to tidy
        return end(turn)

    def _pairs(self, index: int, world: World) -> list[tuple[int, int]]:
        """The workers a request is between; all pairs while it has not begun."""
        request = world.requests[index]
        if request.ended:
            return []
        if request.begun:
            return [(request.producer, request.consumer)]
        return [(one, other) for one in range(self.scope.producers) for other in range(self.scope.consumers)]

    # from a state to a view, and back

    def _view(self, index: int, state: int, sight: Sight) -> View:
        packing = self.packing
        return View(
            packing.requests.records[state >> packing.request_shifts[index] & REQUEST_MASK],
            packing.worker(state, sight.producer, sight.producer_slots),
            packing.worker(state, self.scope.producers + sight.consumer, sight.consumer_slots),
        )

    def _difference(self, index: int, sight: Sight, before: View, after: View) -> int:
        packing = self.packing
        request = packing.requests(after.request) - packing.requests(before.request)
        difference = request << packing.request_shifts[index]
        for shifts, was, is_ in (
            (sight.producer_slots, before.producer.slots, after.producer.slots),
            (sight.consumer_slots, before.consumer.slots, after.consumer.slots),
        ):
            for shift, old, new in zip(shifts, was, is_, strict=True):
                difference += packing.slots(new) - packing.slots(old) << shift
        return difference


def _placed(world: World, index: int, pair: tuple[int, int], view: View) -> World:
    requests, producers, consumers = list(world.requests), list(world.producers), list(world.consumers)
    requests[index], producers[pair[0]], consumers[pair[1]] = view
    return World(tuple(requests), tuple(producers), tuple(consumers))
