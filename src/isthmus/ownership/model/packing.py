"""Global states as single integers: every record is interned as a small int, and a state is these side by side.

    requests ... | heads of workers (all but their slots) ... | slots of producers ... | slots of consumers ...

The visited set holds whole states in this form, not fingerprints of them: no state is ever taken for another. Ids begin
at 1, so that a field that is masked out is not mistaken for one that is there.
"""

from typing import Final, Generic, NamedTuple, TypeVar

from isthmus.core.errors import Bug
from isthmus.ownership.accounts import BlockState
from isthmus.ownership.model.records import (
    ABSENT,
    FREE_SLOT,
    IDLE,
    PREFIX,
    PREFIX_STAMP,
    Request,
    Slot,
    Worker,
)
from isthmus.ownership.model.scope import Scope

__all__ = ["HEAD_MASK", "REQUEST_MASK", "SLOT_MASK", "Packing", "World"]

_REQUEST_BITS, _HEAD_BITS, _SLOT_BITS = 16, 7, 14
REQUEST_MASK: Final = (1 << _REQUEST_BITS) - 1
HEAD_MASK: Final = (1 << _HEAD_BITS) - 1
SLOT_MASK: Final = (1 << _SLOT_BITS) - 1

RecordT = TypeVar("RecordT")


class World(NamedTuple):
    """A state, readable."""

    requests: tuple[Request, ...]
    producers: tuple[Worker, ...]
    consumers: tuple[Worker, ...]


class Interned(Generic[RecordT]):
    """Records as small ints from 1 on, in the order in which they were met."""

    def __init__(self, placeholder: RecordT, number_max: int) -> None:
        self.records: list[RecordT] = [placeholder]
        self._ids: dict[RecordT, int] = {}
        self._number_max = number_max

    def __call__(self, record: RecordT) -> int:
        known = self._ids.get(record)
        if known is None:
            known = self._ids[record] = len(self.records)
            self.records.append(record)
            if known > self._number_max:
                raise Bug(f"more than {self._number_max} records of {type(record).__name__}: the scope is too large")
        return known


class Packing:
    """Worlds as integers, and back. Workers are numbered through: producers, then consumers."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.workers = scope.producers + scope.consumers
        world = initial_world(scope)
        self.requests: Interned[Request] = Interned(world.requests[0], REQUEST_MASK)
        self.heads: Interned[Worker] = Interned(world.producers[0], HEAD_MASK)
        self.slots: Interned[Slot] = Interned(FREE_SLOT, SLOT_MASK)
        self.request_shifts = tuple(_REQUEST_BITS * index for index in range(scope.requests))
        heads = _REQUEST_BITS * scope.requests
        self.head_shifts = tuple(heads + _HEAD_BITS * index for index in range(self.workers))
        shift = heads + _HEAD_BITS * self.workers
        slot_shifts: list[tuple[int, ...]] = []
        for worker in range(self.workers):
            count = scope.source_slots if worker < scope.producers else scope.destination_slots
            slot_shifts.append(tuple(shift + _SLOT_BITS * index for index in range(count)))
            shift += _SLOT_BITS * count
        self.slot_shifts = tuple(slot_shifts)

    def pack(self, world: World) -> int:
        state = 0
        for shift, request in zip(self.request_shifts, world.requests, strict=True):
            state |= self.requests(request) << shift
        for number, worker in enumerate(world.producers + world.consumers):
            state |= self.heads(worker._replace(slots=())) << self.head_shifts[number]
            for shift, slot in zip(self.slot_shifts[number], worker.slots, strict=True):
                state |= self.slots(slot) << shift
        return state

    def unpack(self, state: int) -> World:
        workers = [self.worker(state, number, self.slot_shifts[number]) for number in range(self.workers)]
        return World(
            tuple(self.requests.records[state >> shift & REQUEST_MASK] for shift in self.request_shifts),
            tuple(workers[: self.scope.producers]),
            tuple(workers[self.scope.producers :]),
        )

    def worker(self, state: int, number: int, shifts: tuple[int, ...]) -> Worker:
        """A worker with those of its slots that are at `shifts`."""
        head = self.heads.records[state >> self.head_shifts[number] & HEAD_MASK]
        return head._replace(slots=tuple(self.slots.records[state >> shift & SLOT_MASK] for shift in shifts))


def initial_world(scope: Scope) -> World:
    """Nothing has begun, and every block is free."""
    request = Request(
        begun=False,
        ended=False,
        producer=0,
        consumer=0,
        destination=ABSENT,
        abandoned=False,
        over=False,
        producer_died=False,
        consumer_died=False,
        parts=(IDLE,) * scope.parts,
    )
    return World(
        (request,) * scope.requests,
        (_worker(scope.source_slots, retained=scope.prefix),) * scope.producers,
        (_worker(scope.destination_slots),) * scope.consumers,
    )


def _worker(slots: int, *, retained: bool = False) -> Worker:
    free = (FREE_SLOT,) * slots
    prefix = FREE_SLOT._replace(account=int(BlockState.RESIDENT), owner=PREFIX, stamps=(PREFIX_STAMP, PREFIX_STAMP))
    return Worker(lives=0, naps=0, paused=False, fenced=False, slots=(prefix, *free[1:]) if retained else free)
