"""Which slots a request has to do with, so that its view is no wider than it must be.

A slot concerns a request that owns it, may still touch it, or staged with it; and a free slot concerns one that may
take it. What is looked up is the *shapes* of all slots (who is concerned, and whether it is free), of which there are
few.
"""

from typing import NamedTuple

from isthmus.ownership.model.accounts import takeable
from isthmus.ownership.model.packing import HEAD_MASK, REQUEST_MASK, SLOT_MASK, Packing
from isthmus.ownership.model.records import PREFIX, Request, Slot

__all__ = ["Relations", "Sight"]

Shifts = tuple[int, ...]
Known = list[dict[int, tuple["Sight", ...]]]


class Sight(NamedTuple):
    """One view of a request: which worker pair and which slots, and the bits of a state that these are."""

    mask: int
    producer: int
    consumer: int
    producer_slots: Shifts
    consumer_slots: Shifts
    taking: bool


class Relations:
    """Views of every request in a state."""

    def __init__(self, packing: Packing) -> None:
        self._packing = packing
        self._shifts = tuple(shift for shifts in packing.slot_shifts for shift in shifts)
        self._shape_ids: dict[tuple[int, bool], int] = {}
        self._shapes: list[int] = []
        self._by_slots: dict[int, Known] = {}
        self._by_shapes: dict[tuple[int, ...], Known] = {}
        self._slots_from = min(self._shifts)

    def known(self, state: int) -> Known:
        """For each request, its views by the id of its record, as far as they have been asked for."""
        found = self._by_slots.get(state >> self._slots_from)
        return self._meet(state) if found is None else found

    def _meet(self, state: int) -> Known:
        records = self._packing.slots.records
        while len(self._shapes) < len(records):
            slot = records[len(self._shapes)]
            shape = (_concerned(slot), takeable(self._packing.scope, slot))
            self._shapes.append(self._shape_ids.setdefault(shape, len(self._shape_ids)))
        shapes = tuple(self._shapes[state >> shift & SLOT_MASK] for shift in self._shifts)
        found = self._by_shapes.get(shapes)
        if found is None:
            found = self._by_shapes[shapes] = [{} for _ in self._packing.request_shifts]
        self._by_slots[state >> self._slots_from] = found
        return found

    def look(self, index: int, state: int) -> tuple[Sight, ...]:
        """The views of one request."""
        number = state >> self._packing.request_shifts[index] & REQUEST_MASK
        sights = self.known(state)[index][number] = self._look(index, state)
        return sights

    # one request

    def _look(self, index: int, state: int) -> tuple[Sight, ...]:
        request = self._packing.requests.records[state >> self._packing.request_shifts[index] & REQUEST_MASK]
        scope = self._packing.scope
        if request.ended:
            return ()
        if not request.begun:
            pairs = [(one, other) for one in range(scope.producers) for other in range(scope.consumers)]
            return tuple(sight for pair in pairs for sight in self._beginning(index, state, *pair))
        own = self._sight(index, request.producer, request.consumer, *self._own(index, state, request))
        return (own, *self._ordering(index, state, request, own))

    def _own(self, index: int, state: int, request: Request) -> tuple[Shifts, Shifts]:
        parts = self._packing.scope.parts
        claims = (1 << parts) - 1 << index * parts
        claims |= claims << self._packing.scope.claims  # of a prefix
        return (
            tuple(shift for shift, slot in self._slots(state, request.producer) if _concerned(slot) & claims),
            tuple(
                shift
                for shift, slot in self._slots(state, self._consumer(request.consumer))
                if _concerned(slot) & claims
            ),
        )

    def _ordering(self, index: int, state: int, request: Request, own: Sight) -> list[Sight]:
        """A producer may still reserve for the request: one view for each block that it might take."""
        if all(part.source or part.barred for part in request.parts):
            return []
        retained = [shift for shift, slot in self._slots(state, request.producer) if slot.owner == PREFIX]
        return [
            self._sight(
                index,
                request.producer,
                request.consumer,
                tuple(sorted({*own.producer_slots, *retained, shift})),
                own.consumer_slots,
                taking=True,
            )
            for shift, slot in self._slots(state, request.producer)
            if takeable(self._packing.scope, slot)
        ]

    def _beginning(self, index: int, state: int, producer: int, consumer: int) -> list[Sight]:
        """A consumer may take the request on. A budget of staging is of the whole pool, so that all of it is seen."""
        slots = self._slots(state, self._consumer(consumer))
        if self._packing.scope.staging is not None:
            return [self._sight(index, producer, consumer, (), tuple(shift for shift, _ in slots), taking=True)]
        return [
            self._sight(index, producer, consumer, (), (shift,), taking=True)
            for shift, slot in slots
            if takeable(self._packing.scope, slot)
        ]

    def _sight(
        self, index: int, producer: int, consumer: int, own: Shifts, others: Shifts, *, taking: bool = False
    ) -> Sight:
        packing = self._packing
        mask = REQUEST_MASK << packing.request_shifts[index]
        for number in (producer, self._consumer(consumer)):
            mask |= HEAD_MASK << packing.head_shifts[number]
        for shift in own + others:
            mask |= SLOT_MASK << shift
        return Sight(mask, producer, consumer, own, others, taking)

    def _slots(self, state: int, number: int) -> list[tuple[int, Slot]]:
        records = self._packing.slots.records
        return [(shift, records[state >> shift & SLOT_MASK]) for shift in self._packing.slot_shifts[number]]

    def _consumer(self, consumer: int) -> int:
        return self._packing.scope.producers + consumer


def _concerned(slot: Slot) -> int:
    """The claims that have to do with a slot, as a bit mask."""
    claims = slot.pointers
    for claim in (slot.owner, slot.staged):
        if claim >= 0:
            claims |= 1 << claim
    return claims
