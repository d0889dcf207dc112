"""Two workers, their ledgers and owners, in one process, on one manual clock. Real code, real bytes, no mocks."""

from dataclasses import dataclass, field

from isthmus.core.clock import ManualClock
from isthmus.core.ids import Epoch, GrantId, HandoffId, Incarnation, TenantId, WorkerId
from isthmus.core.units import Duration
from isthmus.ownership import (
    Capacity,
    DestinationHandoff,
    DestinationOwner,
    Ledger,
    SourceHandoff,
    SourceOwner,
    TransportKind,
)

PREFILL = WorkerId("prefill-0")
DECODE = WorkerId("decode-0")
PREFILL_LIFE = Incarnation("a" * 32)
DECODE_LIFE = Incarnation("b" * 32)
TENANT = TenantId("tenant-0")
OTHER_TENANT = TenantId("tenant-1")
LEASE = Duration.of_seconds(2)
FAR = Duration.of_seconds(3600)


@dataclass(slots=True, kw_only=True)
class Stops:
    """What the owners asked to stop, in order."""

    compute: list[HandoffId] = field(default_factory=list)
    read: list[HandoffId] = field(default_factory=list)
    decode: list[HandoffId] = field(default_factory=list)


class World:
    """One prefill worker and one decode worker."""

    def __init__(
        self,
        *,
        source_blocks: int = 8,
        destination_blocks: int = 8,
        staging_bytes: int = 1000,
        transport: TransportKind = TransportKind.TCP,
        sole_tenant: TenantId | None = TENANT,
        live_max: int = 64,
        tombstones_max: int = 64,
        seed: int = 0,
    ) -> None:
        self.clock = ManualClock(seed)
        self.stops = Stops()
        self.source_ledger = Ledger(num_blocks=source_blocks, block_bytes=10, staging_bytes=0)
        self.source_capacity = Capacity(ledger=self.source_ledger, clock=self.clock)
        self.source = SourceOwner(
            ledger=self.source_ledger,
            capacity=self.source_capacity,
            clock=self.clock,
            worker=PREFILL,
            incarnation=PREFILL_LIFE,
            lease=LEASE,
            transport=transport,
            stop_compute=self.stops.compute.append,
            sole_tenant=sole_tenant,
            live_max=live_max,
            tombstones_max=tombstones_max,
        )
        self._destination_shape = (destination_blocks, staging_bytes, transport, live_max, tombstones_max)
        self.restart_destination(DECODE_LIFE)

    def restart_destination(self, life: Incarnation) -> None:
        """A decode worker begins its life: ledger and memory are new, and nothing is remembered."""
        num_blocks, staging_bytes, transport, live_max, tombstones_max = self._destination_shape
        self.destination_ledger = Ledger(num_blocks=num_blocks, block_bytes=20, staging_bytes=staging_bytes)
        self.destination_capacity = Capacity(ledger=self.destination_ledger, clock=self.clock)
        self.destination = DestinationOwner(
            ledger=self.destination_ledger,
            capacity=self.destination_capacity,
            clock=self.clock,
            worker=DECODE,
            incarnation=life,
            transport=transport,
            stop_read=self.stops.read.append,
            stop_decode=self.stops.decode.append,
            live_max=live_max,
            tombstones_max=tombstones_max,
        )

    def handoff(self) -> HandoffId:
        return HandoffId(self.clock.token())

    def far(self) -> Duration:
        return FAR

    async def reserve_source(
        self, handoff: HandoffId, *, blocks: int = 2, tenant: TenantId = TENANT, life: Incarnation = DECODE_LIFE
    ) -> SourceHandoff:
        return await self.source.reserve(
            handoff, holder=DECODE, holder_incarnation=life, tenant=tenant, blocks=blocks, deadline=self.far()
        )

    async def reserve_destination(
        self, handoff: HandoffId, *, blocks: int = 3, staging_bytes: int = 100, tenant: TenantId = TENANT
    ) -> DestinationHandoff:
        return await self.destination.reserve(
            handoff,
            producer=PREFILL,
            producer_incarnation=PREFILL_LIFE,
            tenant=tenant,
            blocks=blocks,
            staging_bytes=staging_bytes,
            deadline=self.far(),
        )

    async def publish(self, handoff: HandoffId, *, tenant: TenantId = TENANT, blocks: int = 2) -> SourceHandoff:
        """A source from nothing to PUBLISHED."""
        await self.reserve_source(handoff, tenant=tenant, blocks=blocks)
        self.source.complete(handoff)
        return self.source.publish(handoff)

    def confirm(self, offer: SourceHandoff, *, epoch: Epoch | None = None, life: Incarnation = DECODE_LIFE) -> Epoch:
        return self.source.confirm(grant_of(offer), offer.epoch if epoch is None else epoch, DECODE, life)

    async def verified(self, handoff: HandoffId, *, grant: GrantId, epoch: Epoch) -> DestinationHandoff:
        """A destination from nothing to verified bytes, with everything but the owner's word."""
        await self.reserve_destination(handoff)
        self.destination.submit(handoff, grant=grant, epoch=epoch, tenant=TENANT)
        self.destination.arrived(handoff)
        self.destination.converted(handoff)
        return self.destination.verified(handoff, ok=True)

    def check_in_full(self) -> None:
        self.source_ledger.check_in_full()
        self.destination_ledger.check_in_full()

    def holds_nothing(self) -> bool:
        self.check_in_full()
        source, destination = self.source_ledger.held(), self.destination_ledger.held()
        nobody = len(self.source) == len(self.destination) == 0
        return nobody and source.blocks == destination.blocks == destination.staging_bytes == 0


def grant_of(offer: SourceHandoff) -> GrantId:
    assert offer.grant is not None
    return offer.grant
