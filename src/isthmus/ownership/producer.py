"""`SourceOwner`: a prefill worker's side of its hand-offs, from reserved blocks to freed ones.

    reserve ─► complete ─► publish ─► check_read* ─► confirm        (the reader has all: freed)
                                         renew*      abandon        (the reader wants none: freed)
    reap · peer_lost · abort + drained                              (everything else that ends it)

Owns the grants, which are capabilities (`capability.py`). Refuses to know what the bytes mean and how they move: a
transport asks `check_read`.
"""

from collections.abc import Iterable

from msgspec.structs import replace

from isthmus.core.clock import Clock
from isthmus.core.errors import Bug, GrantUnknown, IsthmusError, NotAuthorised, StaleEpoch
from isthmus.core.ids import BlockId, Epoch, GrantId, HandoffId, Incarnation, TenantId, WorkerId
from isthmus.core.limits import GRANTS_PER_WORKER_MAX, TOMBSTONES_MAX
from isthmus.core.units import Duration
from isthmus.ownership.capability import Claims, check, digest_of_blocks, draw_secret, mint
from isthmus.ownership.capacity import Capacity
from isthmus.ownership.journal import Journal, Side
from isthmus.ownership.leases import left
from isthmus.ownership.ledger import Ledger
from isthmus.ownership.owner import Owner, Stop, nothing_to_stop
from isthmus.ownership.protocol.drain import Evidence, TransportKind
from isthmus.ownership.protocol.effects import StopCompute
from isthmus.ownership.protocol.events import (
    Abandon,
    Abort,
    Complete,
    Confirm,
    Drained,
    Expire,
    Fence,
    PeerLost,
    Publish,
    ReadSeen,
    Renew,
    ReserveSource,
    SourceEvent,
)
from isthmus.ownership.protocol.source import step
from isthmus.ownership.protocol.source_ends import lease_over
from isthmus.ownership.protocol.states import LogicalOutcome, SourceHandoff
from isthmus.ownership.records import Record, Remembered
from isthmus.ownership.rows import Row, source_row, with_timeline

__all__ = ["SourceOwner"]


class SourceOwner(Owner[SourceHandoff, SourceEvent]):
    """Authority over the hand-offs that this worker produces.

    `sole_tenant`: this pool serves that tenant alone (others are refused), so that an expired lease frees at once.
    None: it serves many, and blocks whose lease has expired stay in quarantine until real evidence comes.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        capacity: Capacity,
        clock: Clock,
        worker: WorkerId,
        incarnation: Incarnation,
        lease: Duration,
        transport: TransportKind,
        stop_compute: Stop = nothing_to_stop,
        sole_tenant: TenantId | None = None,
        live_max: int = GRANTS_PER_WORKER_MAX,
        tombstones_max: int = TOMBSTONES_MAX,
        journal: Journal | None = None,
    ) -> None:
        super().__init__(
            side=Side.PRODUCER,
            step=step,
            stops={StopCompute: stop_compute},
            ledger=ledger,
            capacity=capacity,
            clock=clock,
            worker=worker,
            incarnation=incarnation,
            live_max=live_max,
            tombstones_max=tombstones_max,
            journal=journal,
        )
        self.lease = lease
        self._transport = transport
        self._sole_tenant = sole_tenant
        self._secret = draw_secret(clock)
        self._by_grant: dict[GrantId, Claims] = {}
        self._abandoned: Remembered[tuple[HandoffId, WorkerId, Incarnation]] = Remembered(tombstones_max)

    # our own code's

    async def reserve(
        self,
        handoff: HandoffId,
        *,
        holder: WorkerId,
        holder_incarnation: Incarnation,
        tenant: TenantId,
        blocks: int,
        deadline: Duration,
        transport: TransportKind | None = None,
    ) -> SourceHandoff:
        """Blocks for the engine to fill and `holder` to read; waits for room for `deadline` at most."""
        if self._sole_tenant is not None and tenant != self._sole_tenant:
            raise NotAuthorised(f"this pool serves one tenant, not {tenant!r}", field="tenant")
        self._refuse(handoff, holder, holder_incarnation)
        self._reserving.add(handoff)
        try:
            assignment = await self._capacity.acquire(
                handoff, tenant=tenant, blocks=blocks, staging_bytes=0, deadline=deadline
            )
        finally:
            self._reserving.discard(handoff)
        try:
            self._refuse(handoff, holder, holder_incarnation)  # the world went on while we waited
        except IsthmusError:
            self._capacity.give_back(assignment, staging_bytes=0)
            raise
        event = ReserveSource(
            handoff=handoff,
            holder=holder,
            holder_incarnation=holder_incarnation,
            tenant=tenant,
            transport=self._transport if transport is None else transport,
            sole_tenant=self._sole_tenant is not None,
            blocks=assignment.blocks,
            epoch=assignment.epoch,
        )
        return self._begin(handoff, event, step(None, event))

    def complete(self, handoff: HandoffId) -> SourceHandoff:
        """The engine has filled the blocks. Raises `TransferFailed` if the hand-off was given up meanwhile."""
        return self._apply(self._known(handoff), Complete())

    def publish(self, handoff: HandoffId) -> SourceHandoff:
        """Open the grant; the state returned carries `grant` and `epoch`. Raises `TransferFailed` if given up."""
        record = self._known(handoff)
        claims = self._claims(record.state)
        grant = mint(self._secret, self._clock.token(), claims)
        state = self._apply(record, Publish(now=self._clock.now(), grant=grant, lease=self.lease))
        self._by_grant[grant] = claims
        return state

    def abort(
        self, handoff: HandoffId, reason: str = "given up", *, outcome: LogicalOutcome = LogicalOutcome.FAILED
    ) -> SourceHandoff:
        """Give up; asks the engine to stop if it computes. Blocks that a reader may be reading wait for evidence."""
        return self._apply(self._known(handoff), Abort(outcome=outcome), note=f"abort: {reason}")

    def drained(self, handoff: HandoffId, evidence: Evidence = Evidence.OWN_WORK_ENDED) -> SourceHandoff:
        """The engine touches the blocks no more; or, with other evidence, the reader does not. Idempotent."""
        return self._apply(self._known(handoff), Drained(evidence=evidence), note=f"drained: {evidence}")

    # the holder's, by way of the transport and the control channel

    def check_read(self, grant: GrantId, epoch: Epoch, reader: WorkerId, blocks: Iterable[int]) -> None:
        """The transport's guard: returns if `reader` may read `blocks`, else raises and nothing is to be sent."""
        record = self._granted(grant, epoch, reader)
        state = self._apply(record, ReadSeen(now=self._clock.now(), grant=grant, epoch=epoch, reader=reader))
        for block in blocks:
            # Asked of the ledger, block by block: a grant is worth what its blocks are still assigned to (I1, I7).
            if not self._ledger.assigned_to(BlockId(block), state.epoch):
                raise NotAuthorised(f"block {block} is not under this grant", field="blocks")

    def confirm(self, grant: GrantId, epoch: Epoch, holder: WorkerId, holder_incarnation: Incarnation) -> Epoch:
        """Yes: returns the epoch, and the blocks are freed on the reader's acknowledgement. No: raises. Idempotent."""
        record = self._granted(grant, epoch, holder, holder_incarnation)
        now = self._clock.now()
        confirm = Confirm(now=now, grant=grant, epoch=epoch, holder=holder, holder_incarnation=holder_incarnation)
        return self._apply(record, confirm).epoch

    def renew(self, grant: GrantId, epoch: Epoch, holder: WorkerId, holder_incarnation: Incarnation) -> Duration:
        """Extend the lease to a whole one from now; returns how long it lasts."""
        record = self._granted(grant, epoch, holder, holder_incarnation)
        now = self._clock.now()
        life, lease = holder_incarnation, self.lease
        renew = Renew(now=now, grant=grant, epoch=epoch, holder=holder, holder_incarnation=life, lease=lease)
        return self.lease_left(self._apply(record, renew).handoff)

    def abandon(self, handoff: HandoffId, holder: WorkerId, holder_incarnation: Incarnation) -> SourceHandoff | None:
        """The holder does not want the KV and reads no more: also an acknowledgement. Idempotent, in any order.

        DRAINING in the answer means: our engine has been asked to stop, and wants `drained` once it has.
        """
        record = self._records.find(handoff)
        if record is None:
            # It may have overtaken the request to reserve, which then must not begin.
            self._abandoned.add((handoff, holder, holder_incarnation))
            return None
        return self._apply(record, Abandon(holder=holder, holder_incarnation=holder_incarnation))

    # the world's

    def peer_lost(
        self, worker: WorkerId, incarnation: Incarnation, evidence: Evidence = Evidence.FENCED_AND_CLOSED
    ) -> list[HandoffId]:
        """An incarnation is gone. Only proof counts; what it frees is the drain table's to say.

        Returns the hand-offs whose engine has been asked to stop; each wants `drained` once it has.
        """
        self._note_lost(worker, incarnation, evidence)
        return self._apply_to_all(PeerLost(worker=worker, incarnation=incarnation, evidence=evidence))

    def fence(self) -> list[HandoffId]:
        """Our own incarnation has been fenced: grant and confirm nothing more. Returns as `peer_lost`."""
        self._fenced = True
        return self._apply_to_all(Fence())

    def reap(self) -> int:
        """End every lease that has run out; returns how many. Looks at all hand-offs, whatever their order."""
        now = self._clock.now()
        overdue = [record for record in self._records.live() if lease_over(record.state, now)]
        for record in overdue:
            self._apply(record, Expire(now=now))
        return len(overdue)

    # questions

    def lease_left(self, handoff: HandoffId) -> Duration:
        """What to tell the holder of the lease: a duration, never an instant."""
        lease_ends = self._known(handoff).state.lease_ends
        return Duration(0) if lease_ends is None else left(lease_ends, self._clock.now())

    def snapshot(self) -> list[Row]:
        """Who owns what now, one JSON-able row for each hand-off."""
        now = self._clock.now()
        block_bytes = self._ledger.block_bytes
        return [source_row(record, now, self.worker, block_bytes) for record in self._records.live()]

    def finished(self) -> list[Row]:
        """The last ended hand-offs, latest first, with their timelines."""
        now = self._clock.now()
        block_bytes = self._ledger.block_bytes
        return [
            with_timeline(source_row(record, now, self.worker, block_bytes), record)
            for record in self._records.logged()
        ]

    # inside

    def _refuse(self, handoff: HandoffId, holder: WorkerId, holder_incarnation: Incarnation) -> None:
        self._refuse_unwelcome(handoff, holder, holder_incarnation)
        if (handoff, holder, holder_incarnation) in self._abandoned:
            raise StaleEpoch(f"hand-off {handoff} was abandoned before it began", field="handoff")

    def _claims(self, state: SourceHandoff) -> Claims:
        """What a grant on this hand-off is for."""
        return Claims(
            handoff=state.handoff,
            epoch=state.epoch,
            tenant=state.tenant,
            owner=self.worker,
            owner_incarnation=self.incarnation,
            holder=state.holder,
            holder_incarnation=state.holder_incarnation,
            blocks=digest_of_blocks(state.blocks),
        )

    def _granted(
        self, grant: GrantId, epoch: Epoch, holder: WorkerId, life: Incarnation | None = None
    ) -> Record[SourceHandoff]:
        """The hand-off of a grant that is genuine for what the peer says, and for what our record says.

        `step` judges the same once more, by the record. A reader of bytes says its name only (`life` is None).
        """
        # A lookup by hash tells a guesser nothing of how close the guess was; both checks compare in constant time.
        minted = self._by_grant.get(grant)
        if minted is None:
            raise GrantUnknown("no such grant", field="grant")
        record = self._known(minted.handoff)
        ours = self._claims(record.state)
        if record.state.ended:
            ours = replace(ours, blocks=minted.blocks)  # a tombstone has no blocks left to be read
        if not check(self._secret, grant, ours):
            raise Bug(f"hand-off {minted.handoff}: its grant was not minted for it as it is now", field="grant")  # I1
        presented = replace(ours, epoch=epoch, holder=holder, holder_incarnation=life or ours.holder_incarnation)
        if not check(self._secret, grant, presented):
            if (holder, presented.holder_incarnation) == (ours.holder, ours.holder_incarnation):
                raise StaleEpoch(f"epoch: {epoch}, the grant is of another", field="epoch")
            raise NotAuthorised("the hand-off is of another worker, incarnation or tenant", field="holder")
        return record

    def _forget(self, state: SourceHandoff) -> None:
        if state.grant is not None:
            del self._by_grant[state.grant]
