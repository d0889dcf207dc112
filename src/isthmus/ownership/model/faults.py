"""What befalls a worker: it dies and another is started under its name; it pauses, and goes on; it is fenced meanwhile.

A worker that dies loses its memory, its ledger and its hand-offs; its peers learn of it later, one by one. What it had
sent may still arrive; a copy from its memory sees nothing any more, and a copy into it is lost. A paused worker neither
sends nor receives nor copies, and goes on as if nothing had been; leases run out meanwhile. A fenced one begins nothing
new; its process is ended sooner or later, before which it may wake up and go on.
"""

from collections.abc import Iterator

from isthmus.ownership.model.packing import HEAD_MASK, REQUEST_MASK, SLOT_MASK, Packing, World
from isthmus.ownership.model.records import ABSENT, FREE_SLOT, Engine, Image, Part, Request, Stage, Worker, Writing
from isthmus.ownership.model.rules import Steps
from isthmus.ownership.model.tidying import end, forgotten
from isthmus.ownership.model.turn import Turn, View

__all__ = ["Faulty"]


class Faulty:
    """Moves of workers. Worker `number` counts producers first, then consumers."""

    def __init__(self, packing: Packing, steps: Steps, marks: set[str]) -> None:
        self._packing = packing
        self._steps = steps
        self._marks = marks
        self._scope = packing.scope
        self._heads: dict[tuple[int, int], tuple[tuple[str, int, bool], ...]] = {}
        self._orphans: dict[tuple[int, bool, int], tuple[int, int]] = {}
        self._cleared: dict[tuple[int, int], int] = {}
        self.any = bool(self._scope.faults.crashes or self._scope.faults.pauses)

    def expand(self, state: int) -> tuple[bool, list[int]]:
        """As `Space.expand`."""
        progress = False
        found: list[int] = []
        for _, after, going in self._all(state):
            progress = progress or going
            found.append(after)
        return progress, found

    def moves(self, world: World) -> Iterator[tuple[str, World]]:
        """As `Space.moves`."""
        for label, after, _ in self._all(self._packing.pack(world)):
            yield label, self._packing.unpack(after)

    def _all(self, state: int) -> Iterator[tuple[str, int, bool]]:
        for number, shift in enumerate(self._packing.head_shifts):
            before = state >> shift & HEAD_MASK
            known = self._heads.get((number, before))
            if known is None:
                known = self._heads[number, before] = tuple(self._of_head(number, before))
            for label, head, progress in known:
                moved = state + (head - before << shift)
                yield label, self._died(moved, number) if label.endswith("dies") else moved, progress

    def _of_head(self, number: int, before: int) -> Iterator[tuple[str, int, bool]]:
        """What may happen to a worker, and its head afterwards."""
        faults, heads = self._scope.faults, self._packing.heads
        head = heads.records[before]
        consumer = number >= self._scope.producers
        name = f"consumer {number - self._scope.producers}" if consumer else f"producer {number}"
        if head.lives < faults.crashes or head.fenced:
            reborn = head._replace(lives=min(head.lives + 1, faults.crashes), paused=False, fenced=False)
            yield f"{name} dies", heads(reborn), head.fenced
        if head.paused:
            yield f"{name} goes on", heads(head._replace(paused=False)), True
        elif head.naps < faults.pauses:
            yield f"{name} pauses", heads(head._replace(paused=True, naps=head.naps + 1)), False
        if faults.fences and consumer and head.paused and not head.fenced:
            yield f"the registry fences {name}", heads(head._replace(fenced=True)), False

    # death

    def _died(self, state: int, number: int) -> int:
        """The state once a worker's memory, ledger and hand-offs are gone. Its head has been replaced already."""
        packing = self._packing
        consumer = number >= self._scope.producers
        index_of = number - self._scope.producers if consumer else number
        for index, shift in enumerate(packing.request_shifts):
            before = state >> shift & REQUEST_MASK
            request = packing.requests.records[before]
            if not request.begun or request.ended or (request.consumer if consumer else request.producer) != index_of:
                continue
            after, pointing = self._orphaned(index, consumer, before)
            state += after - before << shift
            if packing.requests.records[after].ended:
                state = self._forgotten(state, self._scope.producers + request.consumer, self._claims(index))
            if consumer:  # it reads no more
                state = self._forgotten(state, request.producer, self._claims(index) & ~pointing)
        for shift in packing.slot_shifts[number]:
            before = state >> shift & SLOT_MASK
            state += packing.slots(FREE_SLOT) - before << shift
        return state

    def _orphaned(self, index: int, consumer: bool, number: int) -> tuple[int, int]:
        """A request one of whose workers has died, and its claims that still have an address at the producer."""
        key = (index, consumer, number)
        known = self._orphans.get(key)
        if known is None:
            request = self._packing.requests.records[number]
            self._mark(request, consumer)
            parts = tuple(_part_left(part, consumer) for part in request.parts)
            if consumer:
                left = request._replace(parts=parts, destination=ABSENT, over=False, consumer_died=True)
            else:
                left = request._replace(parts=parts, producer_died=True)
            claims = [index * self._scope.parts + part for part in range(self._scope.parts)]
            slots = tuple(FREE_SLOT._replace(pointers=1 << claim) for claim in claims)
            worker = Worker(lives=0, naps=0, paused=False, fenced=False, slots=slots)
            turn = Turn(self._scope, self._steps, index, View(left, worker, worker._replace(slots=())), self._marks)
            after = end(turn, accounts=False)
            pointing = sum(slot.pointers for slot in after.producer.slots)
            known = self._orphans[key] = (self._packing.requests(after.request), pointing)
        return known

    def _claims(self, index: int) -> int:
        return (1 << self._scope.parts) - 1 << index * self._scope.parts

    def _forgotten(self, state: int, number: int, claims: int) -> int:
        """The state once nobody will use the addresses that `claims` had at a producer."""
        packing = self._packing
        for shift in packing.slot_shifts[number]:
            before = state >> shift & SLOT_MASK
            key = (before, claims)
            after = self._cleared.get(key)
            if after is None:
                worker = Worker(lives=0, naps=0, paused=False, fenced=False, slots=(packing.slots.records[before],))
                for claim in range(self._scope.requests * self._scope.parts):
                    if claims >> claim & 1:
                        worker = forgotten(worker, claim, self._scope)
                after = self._cleared[key] = packing.slots(worker.slots[0])
            state += after - before << shift
        return state

    def _mark(self, request: Request, consumer: bool) -> None:
        if consumer:
            state = self._steps.destinations[request.destination]
            phase = "nothing was under way" if state is None else f"{state.phase.value}"
            self._marks.add(f"a consumer died: {phase}")
        else:
            for part in request.parts:
                source = self._steps.sources[part.source]
                if source is not None:
                    self._marks.add(f"a producer died: {source.phase.value}")


def _part_left(part: Part, consumer: bool) -> Part:
    if consumer:
        image = Image.WITHDRAWN if part.image else Image.NONE  # gone with its memory
        return part._replace(stage=Stage.NOTHING, copied=(), committed=False, image=image)
    return part._replace(source=ABSENT, engine=Engine.OFF, over=False, barred=True, writes=Writing.OFF)
