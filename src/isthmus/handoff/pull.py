"""Pull at the consumer: read what is offered part by part, under a lease that is renewed meanwhile.

A part is what one rank of the producer has of one layer group (`images.parts_of`). Each is prepared by itself, and all
are installed together.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from isthmus.core.clock import Clock
from isthmus.core.errors import Lost, Rejected
from isthmus.core.ids import HandoffId, Incarnation, RegionId, WorkerId
from isthmus.core.units import ByteCount, Duration
from isthmus.core.waiting import within
from isthmus.handoff.images import parts_of
from isthmus.handoff.orders import RenewOrder
from isthmus.handoff.seams import Producer
from isthmus.ownership.consumer import DestinationOwner
from isthmus.ownership.leases import renewal_interval
from isthmus.state.runtime_kv_state import Ownership, RuntimeKVState
from isthmus.transport.base import BlockRead, Endpoint, Reader

__all__ = ["Pulls"]

Image = Mapping[RegionId, memoryview]


class Pulls:
    """The reads of one consumer."""

    def __init__(
        self, owner: DestinationOwner, clock: Clock, *, worker: WorkerId, incarnation: Incarnation, deadline: Duration
    ) -> None:
        """`deadline` is for all parts of a hand-off together."""
        self._owner = owner
        self._clock = clock
        self._worker = worker
        self._incarnation = incarnation
        self._deadline = deadline

    async def read(
        self, handoff: HandoffId, state: RuntimeKVState, reader: Reader, endpoint: Endpoint
    ) -> tuple[Image, ByteCount]:
        """Everything that `state` offers, and how many bytes moved. Raises as `Reader.read`, and DeadlineExceeded."""
        return await within(self._clock, self._deadline, self._read(handoff, state, reader, endpoint), "transfer")

    async def _read(
        self, handoff: HandoffId, state: RuntimeKVState, reader: Reader, endpoint: Endpoint
    ) -> tuple[Image, ByteCount]:
        """One part after another: how many reads a peer serves at once is for other hand-offs to share."""
        grant, epoch, tenant = state.ownership.grant_id(), state.ownership.fence(), state.ownership.tenant_id()
        image: dict[RegionId, memoryview] = {}
        moved = 0
        for part, (group, regions) in enumerate(parts_of(state.representation)):
            request = BlockRead(
                grant=grant,
                epoch=epoch,
                reader=self._worker,
                regions=regions,
                blocks=state.groups[group].blocks(),
                num_blocks=state.residency.num_blocks,
            )
            into = {region.id: memoryview(bytearray(region.size_bytes(len(request.blocks)))) for region in regions}
            self._owner.submit(handoff, grant=grant, epoch=epoch, tenant=tenant, part=part)
            moved += await reader.read(request, endpoint, into, self._deadline)
            self._owner.arrived(handoff, part)
            image.update(into)
        return image, ByteCount(moved)

    @asynccontextmanager
    async def renewing(self, ownership: Ownership, producer: Producer) -> AsyncIterator[None]:
        """Renew the lease every third of it while the body runs."""
        renewals = asyncio.create_task(self._renew(ownership, producer))
        try:
            yield
        finally:
            renewals.cancel()
            await asyncio.wait({renewals})

    async def _renew(self, ownership: Ownership, producer: Producer) -> None:
        order = RenewOrder(
            grant=ownership.grant, epoch=ownership.epoch, holder=self._worker, holder_incarnation=self._incarnation
        )
        interval = renewal_interval(Duration.of_ms(ownership.lease_ms))
        pause = interval
        while True:
            await self._clock.sleep(pause)
            try:
                await within(self._clock, interval / 4, producer.renew(order), "renew")
                pause = interval
            except Lost:
                pause = interval / 4  # it, or its answer: asked again while the lease still runs
            except Rejected:
                return  # the confirmation will meet the same refusal, and it is the one that decides
