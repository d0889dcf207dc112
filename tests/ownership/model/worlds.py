"""Small scopes, and renamings of worlds that know nothing of the checker's own."""

from collections.abc import Iterator
from functools import cache
from itertools import permutations
from typing import Any

from msgspec.structs import replace

from isthmus.core.clock import SystemClock
from isthmus.ownership.model.explore import Explored, explore
from isthmus.ownership.model.packing import World
from isthmus.ownership.model.records import NOBODY, Slot, Worker
from isthmus.ownership.model.rules import PRODUCTION, Rules
from isthmus.ownership.model.scope import Faults, Scope
from isthmus.ownership.model.space import Space
from isthmus.ownership.protocol.states import TriggerMode

SMALL = {
    "pull": Scope(name="pull", about="", requests=2),
    "push": Scope(name="push", about="", requests=2, mode=TriggerMode.PUSH, destination_slots=1),
    "send": Scope(name="send", about="", requests=2, mode=TriggerMode.SEND, source_slots=1, destination_slots=1),
    "parts": Scope(name="parts", about="", requests=1, parts=2),
    "tenants": Scope(
        name="tenants",
        about="",
        requests=2,
        source_slots=1,
        destination_slots=1,
        tenants=(0, 1),
        faults=Faults(crashes=1, source_gives_up=True, doubts=True, forges=True),
    ),
    "pauses": Scope(
        name="pauses",
        about="",
        requests=1,
        source_slots=1,
        destination_slots=1,
        tenants=(0,),
        faults=Faults(pauses=1, fences=True, renews=True, sees_reads=True, flips=True),
    ),
    "fleet": Scope(name="fleet", about="", requests=2, producers=2, consumers=2, source_slots=1, destination_slots=1),
}


@cache
def visited(scope: Scope, rules: Rules = PRODUCTION) -> tuple[Space, set[int]]:
    """Every state of a scope, by the plainest search there is. Shared: look, but do not touch."""
    space = Space(scope, rules)
    first = space.canonical(space.initial())
    found, frontier = {first}, [first]
    while frontier:
        _, following = space.expand(frontier.pop())
        new = {space.canonical(state) for state in following} - found
        found |= new
        frontier += new
    return space, found


def explored(scope: Scope, rules: Rules = PRODUCTION) -> Explored:
    return explore(Space(scope, rules), SystemClock())


def spelled_out(space: Space, state: int) -> World:
    """A state with protocol states in place of their ids, which another space numbers otherwise."""
    world = space.packing.unpack(state)
    requests = tuple(
        request._replace(
            destination=space.steps.destinations[request.destination],
            parts=tuple(part._replace(source=space.steps.sources[part.source]) for part in request.parts),
        )
        for request in world.requests
    )
    return world._replace(requests=requests)


def without_evidence(state: Any) -> Any:
    """A protocol state as the checker keeps it."""
    return None if state is None else replace(state, evidence=None)


def renamings(world: World, parts: int) -> Iterator[World]:
    """Every way to call requests, workers and blocks otherwise, once each."""
    seen = set()
    for order in permutations(range(len(world.requests))):
        for producers in permutations(range(len(world.producers))):
            for consumers in permutations(range(len(world.consumers))):
                for renamed in _slots_reordered(_renamed(world, order, producers, consumers, parts)):
                    if renamed not in seen:
                        seen.add(renamed)
                        yield renamed


def _renamed(
    world: World, order: tuple[int, ...], producers: tuple[int, ...], consumers: tuple[int, ...], parts: int
) -> World:
    names = {old * parts + part: new * parts + part for new, old in enumerate(order) for part in range(parts)}
    requests = []
    for old in order:
        request = world.requests[old]
        if request.begun and not request.ended:
            request = request._replace(
                producer=producers.index(request.producer), consumer=consumers.index(request.consumer)
            )
        requests.append(request)
    return World(
        tuple(requests),
        tuple(_worker(world.producers[old], names) for old in producers),
        tuple(_worker(world.consumers[old], names) for old in consumers),
    )


def _worker(worker: Worker, names: dict[int, int]) -> Worker:
    def of(claim: int) -> int:
        return claim if claim == NOBODY else names[claim]

    slots = tuple(
        slot._replace(
            owner=of(slot.owner),
            staged=of(slot.staged),
            stamps=tuple(stamp if stamp <= 0 else names[stamp - 1] + 1 for stamp in slot.stamps),
            pointers=sum(1 << new for old, new in names.items() if slot.pointers >> old & 1),
        )
        for slot in worker.slots
    )
    return worker._replace(slots=slots)


def _slots_reordered(world: World) -> Iterator[World]:
    def ways(workers: tuple[Worker, ...]) -> list[tuple[Worker, ...]]:
        found: list[tuple[Worker, ...]] = [()]
        for worker in workers:
            orders = set(permutations(worker.slots))
            found = [(*before, worker._replace(slots=slots)) for before in found for slots in orders]
        return found

    for producers in ways(world.producers):
        for consumers in ways(world.consumers):
            yield World(world.requests, producers, consumers)


def strangers_alike(world: World, parts: int) -> World:
    """The world where bytes whose writer has no more to do with their block say only that they are a stranger's."""

    def slot_of(slot: Slot) -> Slot:
        stamps = tuple(
            -1 if stamp > 0 and slot.owner != stamp - 1 and not slot.pointers >> (stamp - 1) & 1 else stamp
            for stamp in slot.stamps
        )
        return slot._replace(stamps=stamps)

    producers = tuple(worker._replace(slots=tuple(map(slot_of, worker.slots))) for worker in world.producers)
    return World(world.requests, producers, world.consumers)
