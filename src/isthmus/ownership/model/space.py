"""The state space: global states as single integers, their successors, and their canonical forms.

A record (a request, a worker) is interned as a small int; a state is the ints of all records side by side in one. A move
of a request sees only its own record and the two workers it is between (its *view*), so what follows from a view is
computed once and remembered as differences to add. The visited set holds whole states, so nothing rests on hashes.
"""

from collections.abc import Iterator
from typing import Final, Generic, NamedTuple, TypeVar

from isthmus.core.errors import Bug
from isthmus.ownership.model.endings import begin_options, consumer_endings, producer_endings, time_options
from isthmus.ownership.model.options import Option
from isthmus.ownership.model.pull import consumer_options, producer_options
from isthmus.ownership.model.records import ABSENT, FREE_SLOT, IDLE, Request, Slot, Worker
from isthmus.ownership.model.rules import Rules, Steps
from isthmus.ownership.model.scope import Scope
from isthmus.ownership.model.turn import Turn, View
from isthmus.ownership.model.violations import Violation

__all__ = ["Move", "Space", "World"]

BITS: Final = 21
MASK: Final = (1 << BITS) - 1

RecordT = TypeVar("RecordT")


class World(NamedTuple):
    """A state, readable."""

    requests: tuple[Request, ...]
    producers: tuple[Worker, ...]
    consumers: tuple[Worker, ...]


class Move(NamedTuple):
    """One step of a trace."""

    label: str
    world: World | None
    violation: Violation | None
    progress: bool


class Follow(NamedTuple):
    """What follows from a view: differences to add to the state, and whether something will happen by itself."""

    progress: bool
    steps: tuple[int, ...]
    violation: Violation | None


class Interned(Generic[RecordT]):
    """Records as small ints, in the order in which they were met."""

    def __init__(self) -> None:
        self.ids: dict[RecordT, int] = {}
        self.records: list[RecordT] = []

    def __call__(self, record: RecordT) -> int:
        known = self.ids.get(record)
        if known is None:
            known = self.ids[record] = len(self.records)
            self.records.append(record)
            if known > MASK:
                raise Bug(f"{known} records of {type(record).__name__}, wanted at most {MASK}")
        return known


class Space:
    """All states of a scope under given rules."""

    def __init__(self, scope: Scope, rules: Rules) -> None:
        self.scope = scope
        self.steps = Steps(rules)
        self.marks: set[str] = set()
        self.requests: Interned[Request] = Interned()
        self.workers: Interned[Worker] = Interned()
        count, producers = scope.requests, scope.producers
        self.request_shifts = tuple(BITS * index for index in range(count))
        self.producer_shifts = tuple(BITS * (count + index) for index in range(producers))
        self.consumer_shifts = tuple(BITS * (count + producers + index) for index in range(scope.consumers))
        self._follows: tuple[dict[int, Follow], ...] = tuple({} for _ in range(count))

    # packing

    def pack(self, world: World) -> int:
        state = 0
        for shift, request in zip(self.request_shifts, world.requests, strict=True):
            state |= self.requests(request) << shift
        for shift, worker in zip(self.producer_shifts, world.producers, strict=True):
            state |= self.workers(worker) << shift
        for shift, worker in zip(self.consumer_shifts, world.consumers, strict=True):
            state |= self.workers(worker) << shift
        return state

    def unpack(self, state: int) -> World:
        return World(
            tuple(self.requests.records[state >> shift & MASK] for shift in self.request_shifts),
            tuple(self.workers.records[state >> shift & MASK] for shift in self.producer_shifts),
            tuple(self.workers.records[state >> shift & MASK] for shift in self.consumer_shifts),
        )

    def initial(self) -> World:
        request = Request(
            begun=False,
            ended=False,
            producer=0,
            consumer=0,
            destination=ABSENT,
            abandoned=False,
            registered=False,
            over=False,
            producer_died=False,
            consumer_died=False,
            parts=(IDLE,) * self.scope.parts,
        )
        return World(
            (request,) * self.scope.requests,
            (self._worker(self.scope.source_slots),) * self.scope.producers,
            (self._worker(self.scope.destination_slots),) * self.scope.consumers,
        )

    def _worker(self, slots: int) -> Worker:
        return Worker(lives=0, naps=0, paused=False, fenced=False, staging=0, slots=(FREE_SLOT,) * slots)

    # moves of one request

    def options(self, index: int, view: View, pair: tuple[int, int]) -> Iterator[Option]:
        """What may happen to a request next."""
        turn = Turn(self.scope, self.steps, index, view, self.marks)
        if view.request.ended:
            return
        if not view.request.begun:
            yield from begin_options(turn, *pair)
            return
        for part in range(self.scope.parts):
            yield from time_options(turn, part)
            if not view.producer.paused:
                yield from producer_options(turn, part)
                yield from producer_endings(turn, part)
            if not view.consumer.paused:
                yield from consumer_options(turn, part)
        if not view.consumer.paused:
            yield from consumer_endings(turn)

    def apply(self, index: int, view: View, option: Option) -> View:
        """The view after a move. Raises Violation."""
        turn = Turn(self.scope, self.steps, index, view, self.marks)
        option.act(turn)
        after = turn.end()
        if self.scope.reduced:
            return View(after.request, _sorted(after.producer), _sorted(after.consumer))
        return after


def _sorted(worker: Worker) -> Worker:
    """Blocks of a pool are alike: their order says nothing."""
    slots = worker.slots
    ordered = tuple(sorted(slots))
    return worker if ordered == slots else worker._replace(slots=ordered)
