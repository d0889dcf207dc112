"""Push and send at the consumer: images that producers write into, and the end of their access.

    expose ─► (the producer writes) ─► take: withdrawn, and said to be written ─► converted like a read image
       └────► let_go: withdrawn; where that proves nothing, quarantine, and asked again until it does

Owns the second half of I2: what was exposed is freed on a withdrawal's proof and on nothing else. Refuses to know what
the bytes mean.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from isthmus.core.clock import Clock
from isthmus.core.errors import TransferFailed
from isthmus.core.ids import Epoch, GrantId, HandoffId, Incarnation, RegionId, WorkerId
from isthmus.core.units import BlockCount, Duration
from isthmus.core.waiting import settle
from isthmus.handoff.orders import PrefillOrder, PrefillReply, RegisterOrder, Registration
from isthmus.handoff.seams import Producer
from isthmus.ownership.consumer import DestinationOwner
from isthmus.ownership.protocol.drain import Evidence, TransportKind
from isthmus.ownership.protocol.states import DestinationPhase
from isthmus.state.runtime_kv_state import KVRepresentation, Ownership
from isthmus.transport.base import Importer, Target

__all__ = ["Exposed", "Exposures", "WriteGuard", "order_prefill"]

ASK_AGAIN: Final = Duration.of_ms(50)
"""How soon a withdrawal that proved nothing is tried again: the writer lets go within one piece of its copy."""

PROOF: Final = {
    TransportKind.MEMORY: Evidence.OWN_TRANSFER_ENDED,
    TransportKind.TCP: Evidence.OWN_TRANSFER_ENDED,
    TransportKind.SHM: Evidence.REVOKED,
}
"""What it proves, by transport, that `Importer.withdraw` has said yes."""


class WriteGuard:
    """Asks the owner whether a write may begin, and lets it go on for `lease`: `transport.WriteGuard`."""

    def __init__(self, owner: DestinationOwner, lease: Duration) -> None:
        self._owner = owner
        self._lease = lease

    def check_write(self, grant: GrantId, epoch: Epoch, writer: WorkerId) -> None:
        self._owner.check_write(grant, epoch, writer, self._lease)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposed:
    """One hand-off's image, and what its producer is told of it."""

    handoff: HandoffId
    target: Target
    transport: TransportKind
    importer: Importer
    image: Mapping[RegionId, memoryview]

    @property
    def registration(self) -> Registration:
        """A name for the transport and a capability for the image: no address."""
        return Registration(grant=self.target.grant, epoch=self.target.epoch, transport=self.transport)


class Exposures:
    """What this worker has exposed, by hand-off."""

    def __init__(self, owner: DestinationOwner, clock: Clock) -> None:
        self._owner = owner
        self._clock = clock
        self._exposed: dict[HandoffId, Exposed] = {}

    def expose(
        self,
        handoff: HandoffId,
        importer: Importer,
        representation: KVRepresentation,
        num_blocks: BlockCount,
        lease: Duration,
    ) -> Exposed:
        """An image of `num_blocks` of the producer's blocks, for it to write within `lease`.

        Raises:
            CapacityExceeded: the system has no memory for it. TransferFailed: the hand-off was given up meanwhile.
        """
        state = self._owner.expose(handoff, lease)
        grant, epoch = state.parts[0].grant, state.epoch
        if grant is None:
            raise TransferFailed(f"hand-off {handoff}: exposed without a grant", field="grant")
        target = Target(
            grant=grant,
            epoch=epoch,
            writer=state.producer,
            regions=representation.regions,
            num_blocks=num_blocks,
        )
        exposed = Exposed(
            handoff=handoff,
            target=target,
            transport=state.transport,
            importer=importer,
            image=importer.expose(target),
        )
        self._exposed[handoff] = exposed
        return exposed

    def of(self, handoff: HandoffId) -> Exposed | None:
        """What is exposed for a hand-off now."""
        return self._exposed.get(handoff)

    async def take(self, exposed: Exposed, offered: Ownership) -> None:
        """The producer says that it has written all: end its access, and only then believe it.

        Raises:
            TransferFailed: it still has access; or the hand-off was given up meanwhile.
            NotAuthorised, StaleEpoch: its word comes from another, or too late.
        """
        if not await exposed.importer.withdraw(exposed.target.grant):
            raise TransferFailed("image: its writer says that it has done, and still has it mapped", field="image")
        self._owner.written(
            exposed.target.grant,
            exposed.target.epoch,
            writer=offered.owner,
            writer_incarnation=offered.incarnation,
            tenant=offered.tenant,
            evidence=PROOF[exposed.transport],
        )
        del self._exposed[exposed.handoff]

    async def let_go(self, handoff: HandoffId) -> bool:
        """The hand-off was given up: end the producer's access. False: not proven yet, and in quarantine until it is.

        Whoever gets False has the producer told, and calls `until_let_go`.
        """
        exposed = self._exposed.get(handoff)
        if exposed is None:
            return True
        if await exposed.importer.withdraw(exposed.target.grant):
            self._drained(exposed)
            return True
        if self._owner.state(handoff).phase is DestinationPhase.ABORTING:
            self._owner.doubt(handoff)
        return False

    async def producer_lost(self, worker: WorkerId, life: Incarnation, evidence: Evidence) -> None:
        """A life of a producer is proven over. What it could write into is ended first: what the ledger then frees must
        be free in memory as well (I10).
        """
        ended: set[HandoffId] = set()
        while left := [each for each in self._of_producer(worker, life) if each.handoff not in ended]:
            for exposed in left:
                await exposed.importer.withdraw(exposed.target.grant)
                ended.add(exposed.handoff)
        self._owner.peer_lost(worker, life, evidence)

    def _of_producer(self, worker: WorkerId, life: Incarnation) -> list[Exposed]:
        states = ((exposed, self._owner.state(exposed.handoff)) for exposed in self._exposed.values())
        return [exposed for exposed, state in states if (state.producer, state.producer_incarnation) == (worker, life)]

    async def until_let_go(self, handoff: HandoffId) -> None:
        """Ask again until the end of the producer's access is proven: by its having let go, or by its death."""
        while (exposed := self._exposed.get(handoff)) is not None:
            if await exposed.importer.withdraw(exposed.target.grant):
                self._drained(exposed)
            else:
                await self._clock.sleep(ASK_AGAIN)

    def _drained(self, exposed: Exposed) -> None:
        if self._exposed.pop(exposed.handoff, None) is not None:
            self._owner.drained(exposed.handoff, PROOF[exposed.transport])


async def order_prefill(
    producer: Producer, order: PrefillOrder, exposed: Exposed | None, deadline: Duration
) -> PrefillReply:
    """Have the producer prefill; under push, register what is exposed beside that, in whichever order they arrive.

    Raises whatever either of the two raises, and leaves none of them under way.
    """
    if exposed is None or order.registration is not None:
        return await producer.prefill(order, deadline)
    register = RegisterOrder(
        handoff=order.handoff,
        holder=order.holder,
        holder_incarnation=order.holder_incarnation,
        registration=exposed.registration,
    )
    prefilling = asyncio.create_task(producer.prefill(order, deadline))
    registering = asyncio.create_task(producer.register(register, deadline))
    both = (prefilling, registering)
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in both:
            task.cancel()
        for task in both:
            await settle(task)
    if registering.done() and not registering.cancelled():
        registering.result()
    return prefilling.result()
