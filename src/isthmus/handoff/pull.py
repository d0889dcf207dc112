"""Pull at the consumer: read what is offered part by part, under a lease that is renewed meanwhile.

A part is what one rank of the producer has of one layer group (`KVRepresentation.parts`). Each is prepared by itself,
and all are installed together.
"""

import asyncio
from collections.abc import Mapping

from isthmus.core.clock import Clock, after
from isthmus.core.errors import Lost, Rejected
from isthmus.core.ids import HandoffId, Incarnation, RegionId, WorkerId
from isthmus.core.units import ByteCount, Duration
from isthmus.handoff.orders import RenewOrder
from isthmus.handoff.seams import Producer
from isthmus.ownership.consumer import DestinationOwner
from isthmus.ownership.leases import left, renewal_interval
from isthmus.state.runtime_kv_state import Ownership, RuntimeKVState
from isthmus.transport.base import BlockRead, Endpoint, Reader

__all__ = ["Pulls", "Renewing"]

Image = Mapping[RegionId, memoryview]


class Pulls:
    """The reads of one consumer."""

    def __init__(
        self, owner: DestinationOwner, clock: Clock, *, worker: WorkerId, incarnation: Incarnation, deadline: Duration
    ) -> None:
        """`deadline` is for all parts of a hand-off together: each read is given what is left of it."""
        self._owner = owner
        self._clock = clock
        self._worker = worker
        self._incarnation = incarnation
        self._deadline = deadline

    async def read(
        self, handoff: HandoffId, state: RuntimeKVState, reader: Reader, endpoint: Endpoint
    ) -> tuple[Image, ByteCount]:
        """Everything that `state` offers, and how many bytes moved. Raises as `Reader.read`.

        One part after another: how many reads a peer serves at once is for other hand-offs to share.
        """
        ends = after(self._clock.now(), self._deadline)
        grant, epoch, tenant = state.ownership.grant, state.ownership.epoch, state.ownership.tenant
        image: dict[RegionId, memoryview] = {}
        moved = 0
        for part, (group, regions) in enumerate(state.representation.parts):
            request = BlockRead(
                grant=grant,
                epoch=epoch,
                reader=self._worker,
                regions=regions,
                blocks=state.groups[group].block_ids,
                num_blocks=state.residency.num_blocks,
            )
            into = {region.id: memoryview(bytearray(region.size_bytes(len(request.blocks)))) for region in regions}
            self._owner.submit(handoff, grant=grant, epoch=epoch, tenant=tenant, part=part)
            moved += await reader.read(request, endpoint, into, left(ends, self._clock.now()))
            self._owner.arrived(handoff, part)
            image.update(into)
        return image, ByteCount(moved)

    def renewing(self, ownership: Ownership, producer: Producer) -> "Renewing":
        """Renew the lease every third of it while the body runs."""
        return Renewing(self._clock, ownership, producer, holder=self._worker, holder_incarnation=self._incarnation)


class Renewing:
    """The renewals of one lease, beside the body of `async with`.

    Most hand-offs are over before the first: until then it is a timer, and only then a task.
    """

    def __init__(
        self,
        clock: Clock,
        ownership: Ownership,
        producer: Producer,
        *,
        holder: WorkerId,
        holder_incarnation: Incarnation,
    ) -> None:
        self._clock = clock
        self._ownership = ownership
        self._producer = producer
        self._holder = (holder, holder_incarnation)
        self._interval = renewal_interval(Duration.of_ms(ownership.lease_ms))
        self._running: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        self._timer = self._clock.call_later(self._interval, self._begin)

    async def __aexit__(self, *_: object) -> None:
        self._timer.cancel()
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait({self._running})

    def _begin(self) -> None:
        self._running = asyncio.create_task(self._renew())

    async def _renew(self) -> None:
        grant, epoch, (holder, life) = self._ownership.grant, self._ownership.epoch, self._holder
        order = RenewOrder(grant=grant, epoch=epoch, holder=holder, holder_incarnation=life)
        while True:
            try:
                await self._producer.renew(order, self._interval / 4)
                pause = self._interval
            except Lost:
                pause = self._interval / 4  # it, or its answer: asked again while the lease still runs
            except Rejected:
                return  # the confirmation will meet the same refusal, and it is the one that decides
            await self._clock.sleep(pause)
