"""`DestinationOwner`: a decode worker's side of its hand-offs, from reserved blocks and staging to freed ones.

    reserve ─► submit ─► arrived ─► converted ─► verified ─► install ─► finish
    any of these ─► abort (─► drained, if something of ours was still touching the blocks)

Owns the commit: blocks become decode's in `install`, on the owner's confirmation, and nowhere else (I1, I9).
"""

from collections.abc import Sequence

from isthmus.core.clock import Clock
from isthmus.core.ids import Epoch, GrantId, HandoffId, Incarnation, TenantId, WorkerId
from isthmus.core.limits import GRANTS_PER_WORKER_MAX, TOMBSTONES_MAX
from isthmus.core.units import Duration
from isthmus.ownership.capacity import Capacity
from isthmus.ownership.journal import Journal
from isthmus.ownership.ledger import Ledger
from isthmus.ownership.owner import Owner, Stop, nothing_to_stop
from isthmus.ownership.prefix_cache import PrefixCache
from isthmus.ownership.protocol.destination import step
from isthmus.ownership.protocol.destination_push import lease_over
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
    Expose,
    Finish,
    Install,
    ReserveDestination,
    Submit,
    VerifyBad,
    VerifyOk,
    WriteSeen,
    Written,
)
from isthmus.ownership.protocol.grants import same_grant
from isthmus.ownership.protocol.states import DestinationHandoff, DestinationPhase, LogicalOutcome, TriggerMode
from isthmus.ownership.rows import destination_row
from isthmus.ownership.side import Side

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
        prefixes: PrefixCache | None = None,
    ) -> None:
        super().__init__(
            side=Side.CONSUMER,
            step=step,
            lease_over=lease_over,
            row=destination_row,
            stops={StopRead: stop_read, StopDecode: stop_decode},
            ledger=ledger,
            capacity=capacity,
            clock=clock,
            worker=worker,
            incarnation=incarnation,
            live_max=live_max,
            tombstones_max=tombstones_max,
            journal=journal,
            prefixes=prefixes,
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
        mode: TriggerMode = TriggerMode.PULL,
        num_parts: int = 1,
        prefix: Sequence[bytes] = (),
    ) -> DestinationHandoff:
        """Blocks for the prompt and all decode growth, and staging, before prefill is asked for; all or nothing.

        Before them lie the retained blocks named by `prefix`, which must be here still: else PrefixGone.
        """
        assignment = await self._acquire(
            handoff,
            producer,
            producer_incarnation,
            tenant=tenant,
            blocks=blocks,
            staging_bytes=staging_bytes,
            deadline=deadline,
            prefix=prefix,
        )
        event = ReserveDestination(
            handoff=handoff,
            producer=producer,
            producer_incarnation=producer_incarnation,
            tenant=tenant,
            transport=self._transport if transport is None else transport,
            blocks=assignment.blocks,
            staging_bytes=staging_bytes,
            epoch=assignment.epoch,
            mode=mode,
            num_parts=num_parts,
        )
        return self._begin(handoff, event, step(None, event))

    # push and send: the producer writes; each grant is of one part

    def expose(self, handoff: HandoffId, lease: Duration) -> DestinationHandoff:
        """Open a grant to write for each part, in `parts` of the state returned, for `lease` at least."""
        record = self._known(handoff)
        claims = self._claims(record)
        grants = tuple(self._grants.mint(claims) for _ in record.state.parts)
        state = self._apply(record, Expose(now=self._clock.now(), grants=grants, lease=lease))
        for grant in grants:
            self._grants.open(grant, claims)
        return state

    def check_write(self, grant: GrantId, epoch: Epoch, writer: WorkerId, lease: Duration) -> DestinationHandoff:
        """The transport's guard: returns if `writer` may write now, and it may go on for `lease`; else raises."""
        record = self._granted(grant, epoch, writer)
        part = _part_of(record.state, grant)
        event = WriteSeen(now=self._clock.now(), grant=grant, epoch=epoch, writer=writer, lease=lease, part=part)
        return self._apply(record, event)

    def written(
        self,
        grant: GrantId,
        epoch: Epoch,
        *,
        writer: WorkerId,
        writer_incarnation: Incarnation,
        tenant: TenantId,
        evidence: Evidence,
    ) -> DestinationHandoff:
        """The producer says that it has written all and writes no more, and `evidence` that it has arrived.

        Raises:
            NotAuthorised, StaleEpoch, TransferFailed: it counts for nothing; but what it drains is drained.
        """
        record = self._granted(grant, epoch, writer, writer_incarnation)
        event = Written(
            now=self._clock.now(),
            grant=grant,
            epoch=epoch,
            writer=writer,
            writer_incarnation=writer_incarnation,
            tenant=tenant,
            evidence=evidence,
            part=_part_of(record.state, grant),
        )
        return self._apply(record, event)

    def install_written(self, handoff: HandoffId) -> DestinationHandoff:
        """Commit what was written here and verified. We own its epoch, so nobody else is asked."""
        return self._apply(self._known(handoff), Install())  # I9: decode starts after this line

    # towards the commit; each raises TransferFailed if the hand-off was given up meanwhile

    def submit(
        self, handoff: HandoffId, *, grant: GrantId, epoch: Epoch, tenant: TenantId, part: int = 0
    ) -> DestinationHandoff:
        """An offer has come and the read begins. An offer of another tenant is refused: `NotAuthorised` (I7)."""
        return self._apply(self._known(handoff), Submit(tenant=tenant, grant=grant, epoch=epoch, part=part))

    def arrived(self, handoff: HandoffId, part: int = 0) -> DestinationHandoff:
        """The last byte is in staging: conversion begins."""
        return self._apply(self._known(handoff), Arrived(part=part))

    def converted(self, handoff: HandoffId, part: int = 0) -> DestinationHandoff:
        """The KV is in our blocks: checking begins."""
        record = self._known(handoff)
        self._ledger.check_assigned(record.state.blocks, record.state.epoch)  # I2: we wrote what was ours to write
        return self._apply(record, ConvertDone(part=part))

    def verified(self, handoff: HandoffId, *, ok: bool, part: int = 0) -> DestinationHandoff:
        """Digests and bounds hold, or not; if not, everything is freed and the hand-off has failed."""
        return self._apply(self._known(handoff), VerifyOk(part=part) if ok else VerifyBad(part=part))

    def install(self, handoff: HandoffId, confirmed_epoch: Epoch, part: int = 0) -> DestinationHandoff:
        """Commit, with the last part that is confirmed. `confirmed_epoch` is the owner's answer.

        Raises:
            StaleEpoch: it is another epoch than the one that was read.
        """
        return self._apply(
            self._known(handoff), Confirmed(epoch=confirmed_epoch, part=part)
        )  # I9: decode starts after this line

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

    def drained(self, handoff: HandoffId, evidence: Evidence | None = None) -> DestinationHandoff:
        """Our own work (by default), or whoever `evidence` speaks of, touches the blocks no more. Idempotent.

        Our own work is decode once the hand-off is installed; before that a read, a conversion or a check.
        """
        record = self._known(handoff)
        if evidence is None:
            own_transfer = record.state.mode is TriggerMode.PULL and record.state.phase is not DestinationPhase.DRAINING
            evidence = Evidence.OWN_TRANSFER_ENDED if own_transfer else Evidence.OWN_WORK_ENDED
        return self._apply(record, Drained(evidence=evidence), note=f"drained: {evidence}")

    def doubt(self, handoff: HandoffId) -> DestinationHandoff:
        """Who was given access cannot be shown to have stopped: quarantine until `drained` or the peer's death."""
        return self._apply(self._known(handoff), Doubt())

    # inside

    def _forget(self, state: DestinationHandoff) -> None:
        if state.mode is not TriggerMode.PULL:
            for part in state.parts:
                if part.grant is not None:
                    self._grants.forget(part.grant)


def _part_of(state: DestinationHandoff, grant: GrantId) -> int:
    """Which part a grant of this hand-off is of. Its genuineness has been checked."""
    return next(
        (i for i, part in enumerate(state.parts) if part.grant is not None and same_grant(grant, part.grant)), 0
    )
