"""Which states are one and the same: those that differ only by what requests, blocks or workers are called.

Sound because nothing in a move depends on a name but for equality: every request of a tenant runs the same code with
the same constants, blocks of a pool are alike, and so are workers of a role. So if one state can go wrong, its
renamings can. The canonical form is a least renaming: requests of one tenant sorted by record, then the least among
those that sort alike; each worker's slots sorted; workers in the order in which these requests name them. Requests that
have not begun or have ended are named nowhere, so that exchanging two of them changes nothing.
"""

from collections.abc import Iterator
from itertools import chain, permutations, product
from typing import Final

from isthmus.ownership.model.packing import HEAD_MASK, REQUEST_MASK, SLOT_MASK, Packing
from isthmus.ownership.model.records import NOBODY, Slot

__all__ = ["Symmetry"]

_INDEX_BITS: Final = 4
_INDEX_MASK: Final = (1 << _INDEX_BITS) - 1
_PLANS_MAX: Final = 1 << 18
_TENANT_FROM: Final = _INDEX_BITS + REQUEST_MASK.bit_length()

Order = tuple[int, ...]
"""`order[new]` is the old index of what is called `new` now."""


class _Renamings(dict[int, int]):
    """Slots by number, once requests are called otherwise, as far as they have been asked for."""

    def __init__(self, order: Order) -> None:
        super().__init__()
        self.order = order


_Sorting = tuple[int, tuple[_Renamings, ...]]
_Plan = tuple[int, _Renamings, tuple[tuple[int, int], ...]]


class Symmetry:
    """Canonical forms of packed states."""

    def __init__(self, packing: Packing) -> None:
        self._packing = packing
        scope = packing.scope
        self._count, self._parts = scope.requests, scope.parts
        tenants = [scope.tenant(index) for index in range(scope.requests)]
        self._neighbours = [
            (packing.request_shifts[index - 1], packing.request_shifts[index])
            for index in range(1, scope.requests)
            if tenants[index - 1] == tenants[index]
        ]
        self._tagged = [
            (shift, tenants[index] << _TENANT_FROM | index) for index, shift in enumerate(packing.request_shifts)
        ]
        self._slot_shifts = tuple(shift for shifts in packing.slot_shifts for shift in shifts)
        self._requests_mask = (1 << packing.head_shifts[0]) - 1
        self._heads_mask = sum(HEAD_MASK << shift for shift in packing.head_shifts)
        self._renamed: dict[Order, _Renamings] = {}
        self._sortings: dict[int, _Sorting] = {}
        self._plans: dict[int, tuple[_Plan, ...]] = {}
        self._below_slots = (1 << packing.slot_shifts[0][0]) - 1
        self._moved: dict[tuple[Order, Order, int], int] = {}
        self._nameless: list[int] = [0]
        self._one_pair = scope.producers == scope.consumers == 1

    def canonical(self, state: int) -> int:
        """The one that stands for all renamings of `state`."""
        return self._requests_sorted(state) if self._one_pair else self._all_sorted(state)

    # requests and slots

    def _requests_sorted(self, state: int) -> int:
        for shift, next_ in self._neighbours:
            if state >> shift & REQUEST_MASK >= state >> next_ & REQUEST_MASK:
                return self._sorted(state)
        return self._slots_sorted(state)

    def _slots_sorted(self, state: int) -> int:
        for shifts in self._packing.slot_shifts:
            if len(shifts) == 2:
                low, high = shifts
                one, other = state >> low & SLOT_MASK, state >> high & SLOT_MASK
                if one > other:
                    state += (other - one << low) + (one - other << high)
            elif len(shifts) > 2:
                numbers = [state >> shift & SLOT_MASK for shift in shifts]
                for shift, before, after in zip(shifts, numbers, sorted(numbers), strict=True):
                    state += after - before << shift
        return state

    def _sorted(self, state: int) -> int:
        requests = state & self._requests_mask
        known = self._sortings.get(requests)
        if known is None:
            if len(self._sortings) >= _PLANS_MAX:
                self._sortings.clear()
            known = self._sortings[requests] = self._sorting(requests)
        packed, renamings = known
        packed |= state & self._heads_mask
        found = -1
        for renaming in renamings:
            renamed = packed
            for shift in self._slot_shifts:
                number = state >> shift & SLOT_MASK
                after = renaming.get(number)
                renamed |= (self._slot_renamed(renaming, number) if after is None else after) << shift
            renamed = self._slots_sorted(renamed)
            found = renamed if found < 0 else min(found, renamed)
        return found

    def _sorting(self, requests: int) -> _Sorting:
        """Requests in order, and every way of calling them that leaves them so."""
        # One integer a request (tenant, record, index) sorts faster than a key function does.
        keys = sorted([tag | (requests >> shift & REQUEST_MASK) << _INDEX_BITS for shift, tag in self._tagged])
        packed = 0
        for shift, key in zip(self._packing.request_shifts, keys, strict=True):
            packed |= (key >> _INDEX_BITS & REQUEST_MASK) << shift
        return packed, tuple(self._renamings(order) for order in self._orders_of(keys))

    def _orders_of(self, keys: list[int]) -> Iterator[Order]:
        order = [key & _INDEX_MASK for key in keys]
        groups = self._alike([key >> _INDEX_BITS for key in keys]) or [[index] for index in range(self._count)]
        for choice in product(*(permutations(group) for group in groups)):
            yield tuple(order[index] for index in chain.from_iterable(choice))

    def _renamings(self, order: Order) -> _Renamings:
        return self._renamed.setdefault(order, _Renamings(order))

    def _alike(self, sort_keys: list[int]) -> list[list[int]]:
        """Positions of requests that are exactly alike, in groups; empty if all such are named nowhere."""
        groups: list[list[int]] = [[0]]
        tied = False
        records = self._packing.requests.records
        for index in range(1, self._count):
            request = records[sort_keys[index] & REQUEST_MASK]
            if sort_keys[index] == sort_keys[index - 1] and request.begun and not request.ended:
                groups[-1].append(index)
                tied = True
            else:
                groups.append([index])
        return groups if tied else []

    def _slot_renamed(self, known: _Renamings, number: int) -> int:
        parts = self._parts
        names = {old * parts + part: new * parts + part for new, old in enumerate(known.order) for part in range(parts)}
        names |= {old + len(names): new + len(names) for old, new in names.items()}  # of a prefix
        renamed = known[number] = self._packing.slots(_renamed(self._packing.slots.records[number], names))
        return renamed

    # workers too: requests are sorted whoever they are between, and workers are named in order of appearance

    def _all_sorted(self, state: int) -> int:
        key = state & self._below_slots
        plans = self._plans.get(key)
        if plans is None:
            if len(self._plans) >= _PLANS_MAX:
                self._plans.clear()
            plans = self._plans[key] = tuple(self._plan(order, state) for order in self._orders(state))
        found = -1
        for named, known, places in plans:
            for old, new in places:
                number = state >> old & SLOT_MASK
                renamed = known.get(number)
                if renamed is None:
                    renamed = self._slot_renamed(known, number)
                named |= renamed << new
            named = self._slots_sorted(named)
            found = named if found < 0 else min(found, named)
        return found

    def _orders(self, state: int) -> Iterator[Order]:
        """Every order of requests in which their records, whoever they are between, are sorted."""
        records = self._packing.requests.records
        while len(self._nameless) < len(records):
            self._nameless.append(self._packing.requests(records[len(self._nameless)]._replace(producer=0, consumer=0)))
        nameless = self._nameless
        keys = sorted([tag | nameless[state >> shift & REQUEST_MASK] << _INDEX_BITS for shift, tag in self._tagged])
        return self._orders_of(keys)

    def _plan(self, order: Order, state: int) -> _Plan:
        """All but the slots, renamed; and where slots go, by which renaming."""
        packing, first = self._packing, self._packing.scope.producers
        ids = [state >> packing.request_shifts[index] & REQUEST_MASK for index in order]
        records = packing.requests.records
        live = [records[number] for number in ids if records[number].begun and not records[number].ended]
        heads = [state >> shift & HEAD_MASK for shift in packing.head_shifts]
        producers = _appearing([request.producer for request in live], heads[:first])
        consumers = _appearing([request.consumer for request in live], heads[first:])
        named = 0
        for shift, number in zip(packing.request_shifts, ids, strict=True):
            named |= self._request_moved(producers, consumers, number) << shift
        places: list[tuple[int, int]] = []
        for new, old in enumerate((*producers, *(first + old for old in consumers))):
            named |= heads[old] << packing.head_shifts[new]
            places += zip(packing.slot_shifts[old], packing.slot_shifts[new], strict=True)
        return named, self._renamings(order), tuple(places)

    def _request_moved(self, producers: Order, consumers: Order, number: int) -> int:
        known = self._moved.get((producers, consumers, number))
        if known is None:
            request = self._packing.requests.records[number]
            if request.begun and not request.ended:
                request = request._replace(
                    producer=producers.index(request.producer), consumer=consumers.index(request.consumer)
                )
            known = self._moved[producers, consumers, number] = self._packing.requests(request)
        return known


def _appearing(used: list[int], heads: list[int]) -> Order:
    """Workers by first appearance; those that no live request is with hold nothing, and differ by their heads alone."""
    order = list(dict.fromkeys(used))
    return (*order, *sorted(set(range(len(heads))) - set(order), key=lambda worker: (heads[worker], worker)))


def _renamed(slot: Slot, names: dict[int, int]) -> Slot:
    owner = slot.owner if slot.owner < 0 else names[slot.owner]
    staged = slot.staged if slot.staged == NOBODY else names[slot.staged]
    first, second = (stamp if stamp <= 0 else names[stamp - 1] + 1 for stamp in slot.stamps)
    pointers = sum(1 << new for old, new in names.items() if slot.pointers >> old & 1)
    return slot._replace(owner=owner, staged=staged, stamps=(first, second), pointers=pointers)
