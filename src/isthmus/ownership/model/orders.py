"""How blocks are taken, in every mode: a consumer reserves and orders, and the order makes a producer reserve."""

from collections.abc import Iterator

from isthmus.ownership.model.accounts import assign, owned, pin, point, staged, takeable
from isthmus.ownership.model.options import Option, Why
from isthmus.ownership.model.records import ABSENT, NOBODY, PREFIX, Engine, Worker
from isthmus.ownership.model.turn import CONSUMER, HANDOFF, LIFE, OWN_BLOCKS, OWN_EPOCH, PRODUCER, Turn, tenant
from isthmus.ownership.protocol.events import ReserveDestination, ReserveSource

__all__ = ["begin_options", "order_options"]


def free_slots(turn: Turn, worker: Worker) -> list[int]:
    """Any of them may be given away next: in which order a ledger does so is its own affair."""
    return [index for index, slot in enumerate(worker.slots) if takeable(turn.scope, slot)]


def begin_options(turn: Turn, producer: int, consumer: int) -> Iterator[Option]:
    """A consumer takes a request on: blocks and staging at once, or not at all."""
    budget = turn.scope.staging
    room = budget is None or staged(turn.consumer) < budget or turn.scope.switches.admit_without_staging
    if turn.consumer.paused or turn.consumer.fenced or not room:
        return
    for slot in free_slots(turn, turn.consumer):
        label = f"consumer {consumer} reserves block {slot}, and orders from producer {producer}"
        yield Option(label, _Begin(producer, consumer, slot))


def order_options(turn: Turn) -> Iterator[Option]:
    """The order reaches the producer, and there is room."""
    if turn.producer.paused or turn.producer.fenced:
        return
    for index, part in enumerate(turn.request.parts):
        if part.source == ABSENT and not part.barred:
            for slot in free_slots(turn, turn.producer):
                label = f"the order reaches the producer, which reserves block {slot}"
                retained = owned(turn.producer, PREFIX)
                if retained in (NOBODY, slot):
                    yield Option(label, _Reserve(index, slot, prefix=False), Why.DELIVERY)
                else:
                    yield Option(f"{label} after the retained prefix", _Reserve(index, slot, prefix=True), Why.DELIVERY)


class _Begin:
    """The consumer reserves."""

    def __init__(self, producer: int, consumer: int, slot: int) -> None:
        self.producer, self.consumer, self.slot = producer, consumer, slot

    def __call__(self, turn: Turn) -> None:
        scope = turn.scope
        turn.request = turn.request._replace(begun=True, producer=self.producer, consumer=self.consumer)
        turn.consumer = assign(turn.consumer, self.slot, turn.claim(), staging=True)
        turn.check_staging()
        reserve = ReserveDestination(
            handoff=HANDOFF,
            producer=PRODUCER,
            producer_incarnation=LIFE,
            tenant=tenant(scope.tenant(turn.index)),
            transport=scope.transport,
            blocks=OWN_BLOCKS,
            staging_bytes=1,
            epoch=OWN_EPOCH,
            mode=scope.mode,
            num_parts=scope.parts,
        )
        turn.destination(reserve)


class _Reserve:
    """The producer reserves, and its engine starts."""

    def __init__(self, index: int, slot: int, *, prefix: bool) -> None:
        self.index, self.slot, self.prefix = index, slot, prefix

    def __call__(self, turn: Turn) -> None:
        claim = turn.claim(self.index)
        if turn.producer.slots[self.slot].pointers & ~(1 << claim):
            turn.marks.add("a block was reused under somebody who may still read it")
        if turn.producer.slots[self.slot].owner == PREFIX:
            turn.marks.add("a retained prefix was evicted")
        turn.producer = assign(turn.producer, self.slot, claim, staging=False)
        if self.prefix:
            turn.producer = pin(turn.producer, claim + turn.scope.claims)
            turn.change_part(self.index, prefix=True)
            if turn.producer.slots[owned(turn.producer, PREFIX)].active == 2:
                turn.marks.add("two hand-offs shared one source block")
        reserve = ReserveSource(
            handoff=HANDOFF,
            holder=CONSUMER,
            holder_incarnation=LIFE,
            tenant=tenant(turn.scope.tenant(turn.index)),
            transport=turn.scope.transport,
            sole_tenant=turn.scope.sole_tenant,
            blocks=OWN_BLOCKS,
            epoch=OWN_EPOCH,
            mode=turn.scope.mode,
        )
        turn.source(self.index, reserve)
        turn.change_part(self.index, engine=Engine.STARTED)
        turn.producer = point(turn.producer, claim, claim)
