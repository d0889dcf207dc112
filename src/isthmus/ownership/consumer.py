"""`DestinationOwner`: a decode worker's side of its hand-offs, from reserved blocks and staging to freed ones.

    reserve ─► submit ─► arrived ─► converted ─► verified ─► install ─► finish
    any of these ─► abort (─► drained, if something of ours was still touching the blocks)

Owns the commit: blocks become decode's in `install`, on the owner's confirmation, and nowhere else (I1, I9).
"""

from isthmus.core.clock import Clock
from isthmus.core.errors import IsthmusError
from isthmus.core.ids import Epoch, GrantId, HandoffId, Incarnation, TenantId, WorkerId
from isthmus.core.limits import GRANTS_PER_WORKER_MAX, TOMBSTONES_MAX
from isthmus.core.units import Duration
from isthmus.ownership.capacity import Capacity
from isthmus.ownership.journal import Journal, Side
from isthmus.ownership.ledger import Ledger
from isthmus.ownership.owner import Owner, Stop, nothing_to_stop
from isthmus.ownership.protocol.destination import step
from isthmus.ownership.protocol.drain import Evidence, TransportKind
from isthmus.ownership.protocol.effects import StopDecode, StopRead
from isthmus.ownership.protocol.events import (
    Abort,
    Arrived,
    Confirmed,
    ConfirmRefused,
    ConvertDone,
    DestinationEvent,
    Doubt,
    Drained,
    Fence,
    Finish,
    PeerLost,
    ReserveDestination,
    Submit,
    VerifyBad,
    VerifyOk,
)
from isthmus.ownership.protocol.states import DestinationHandoff, LogicalOutcome
from isthmus.ownership.rows import Row, destination_row, with_timeline

__all__ = ["DestinationOwner"]


class DestinationOwner(Owner[DestinationHandoff, DestinationEvent]):
    """Authority over the hand-offs that this worker consumes."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        capacity: Capacity,
        clock: Clock,
        worker: WorkerId,
        incarnation: Incarnation,
        transport: TransportKind,
        stop_read: Stop = nothing_to_stop,
        stop_decode: Stop = nothing_to_stop,
        live_max: int = GRANTS_PER_WORKER_MAX,
        tombstones_max: int = TOMBSTONES_MAX,
        journal: Journal | None = None,
    ) -> None:
        super().__init__(
            side=Side.CONSUMER,
            step=step,
            stops={StopRead: stop_read, StopDecode: stop_decode},
            ledger=ledger,
            capacity=capacity,
            clock=clock,
            worker=worker,
            incarnation=incarnation,
            live_max=live_max,
            tombstones_max=tombstones_max,
            journal=journal,
        )
        self._transport = transport

    async def reserve(
        self,
        handoff: HandoffId,
        *,
        producer: WorkerId,
        producer_incarnation: Incarnation,
        tenant: TenantId,
        blocks: int,
        staging_bytes: int,
        deadline: Duration,
        transport: TransportKind | None = None,
    ) -> DestinationHandoff:
        """Blocks for the prompt and all decode growth, and staging, before prefill is asked for; all or nothing."""
        self._refuse_unwelcome(handoff, producer, producer_incarnation)
        self._reserving.add(handoff)
        try:
            assignment = await self._capacity.acquire(
                handoff, tenant=tenant, blocks=blocks, staging_bytes=staging_bytes, deadline=deadline
            )
        finally:
            self._reserving.discard(handoff)
        try:
            self._refuse_unwelcome(handoff, producer, producer_incarnation)  # the world went on while we waited
        except IsthmusError:
            self._capacity.give_back(assignment, staging_bytes=staging_bytes)
            raise
        event = ReserveDestination(
            handoff=handoff,
            producer=producer,
            producer_incarnation=producer_incarnation,
            tenant=tenant,
            transport=self._transport if transport is None else transport,
            blocks=assignment.blocks,
            staging_bytes=staging_bytes,
            epoch=assignment.epoch,
        )
        return self._begin(handoff, event, step(None, event))

    # towards the commit; each raises TransferFailed if the hand-off was given up meanwhile

    def submit(self, handoff: HandoffId, *, grant: GrantId, epoch: Epoch, tenant: TenantId) -> DestinationHandoff:
        """An offer has come and the read begins. An offer of another tenant is refused: `NotAuthorised` (I7)."""
        return self._apply(self._known(handoff), Submit(tenant=tenant, grant=grant, epoch=epoch))

    def arrived(self, handoff: HandoffId) -> DestinationHandoff:
        """The last byte is in staging: conversion begins."""
        return self._apply(self._known(handoff), Arrived())

    def converted(self, handoff: HandoffId) -> DestinationHandoff:
        """The KV is in our blocks: checking begins."""
        record = self._known(handoff)
        self._ledger.check_assigned(record.state.blocks, record.state.epoch)  # I2: we wrote what was ours to write
        return self._apply(record, ConvertDone())

    def verified(self, handoff: HandoffId, *, ok: bool) -> DestinationHandoff:
        """Digests and bounds hold, or not; if not, everything is freed and the hand-off has failed."""
        return self._apply(self._known(handoff), VerifyOk() if ok else VerifyBad())

    def install(self, handoff: HandoffId, confirmed_epoch: Epoch) -> DestinationHandoff:
        """Commit. `confirmed_epoch` is the owner's answer; another epoch than the one read raises `StaleEpoch`."""
        return self._apply(self._known(handoff), Confirmed(epoch=confirmed_epoch))  # I9: decode starts after this line

    def confirm_refused(self, handoff: HandoffId) -> DestinationHandoff:
        """The owner said no."""
        return self._apply(self._known(handoff), ConfirmRefused())

    def finish(self, handoff: HandoffId) -> DestinationHandoff:
        """Decode has ended; the blocks are freed."""
        return self._apply(self._known(handoff), Finish())

    # giving up

    def abort(
        self, handoff: HandoffId, reason: str, *, outcome: LogicalOutcome = LogicalOutcome.FAILED
    ) -> DestinationHandoff:
        """Give up, at any moment. ABORTING or DRAINING in the answer means: call `drained` once our own work stops."""
        return self._apply(self._known(handoff), Abort(outcome=outcome), note=f"abort: {reason}")

    def drained(self, handoff: HandoffId, evidence: Evidence = Evidence.OWN_TRANSFER_ENDED) -> DestinationHandoff:
        """Our own read, conversion, check or decode touches the blocks no more. Idempotent."""
        return self._apply(self._known(handoff), Drained(evidence=evidence), note=f"drained: {evidence}")

    def doubt(self, handoff: HandoffId) -> DestinationHandoff:
        """An aborted transfer cannot be shown to have stopped: quarantine until `drained` or the peer's death."""
        return self._apply(self._known(handoff), Doubt())

    def peer_lost(
        self, worker: WorkerId, incarnation: Incarnation, evidence: Evidence = Evidence.FENCED_AND_CLOSED
    ) -> list[HandoffId]:
        """A producer's incarnation is gone: what was not installed is given up. Only proof counts.

        Returns the hand-offs whose read has been asked to stop; each wants `drained` once it has.
        """
        self._note_lost(worker, incarnation, evidence)
        return self._apply_to_all(PeerLost(worker=worker, incarnation=incarnation, evidence=evidence))

    def fence(self) -> list[HandoffId]:
        """Our own incarnation has been fenced: install nothing more, stop decoding. Returns as `peer_lost`."""
        self._fenced = True
        return self._apply_to_all(Fence())

    # questions

    def snapshot(self) -> list[Row]:
        """Who owns what now, one JSON-able row for each hand-off."""
        now = self._clock.now()
        block_bytes = self._ledger.block_bytes
        return [destination_row(record, now, self.worker, block_bytes) for record in self._records.live()]

    def finished(self) -> list[Row]:
        """The last ended hand-offs, latest first, with their timelines."""
        now = self._clock.now()
        block_bytes = self._ledger.block_bytes
        return [
            with_timeline(destination_row(record, now, self.worker, block_bytes), record)
            for record in self._records.logged()
        ]
