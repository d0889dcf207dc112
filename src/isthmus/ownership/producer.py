"""`SourceOwner`: a prefill worker's side of its hand-offs, from reserved blocks to freed ones.

    reserve ─► complete ─► publish ─► check_read* ─► confirm        (the reader has all: freed)
                                         renew*      abandon        (the reader wants none: freed)
    reap · peer_lost · abort + drained                              (everything else that ends it)

Owns the grants, which are capabilities (`capability.py`). Refuses to know what the bytes mean and how they move: a
transport asks `check_read`.
"""

from collections.abc import Iterable, Sequence

from isthmus.core.clock import Clock
from isthmus.core.errors import CapacityExceeded, NotAuthorised, StaleEpoch
from isthmus.core.ids import BlockId, Epoch, GrantId, HandoffId, Incarnation, TenantId, WorkerId
from isthmus.core.limits import GRANTS_PER_PEER_MAX, GRANTS_PER_WORKER_MAX, TOMBSTONES_MAX
from isthmus.core.units import Duration
from isthmus.ownership.capacity import RETRY_AFTER, Capacity
from isthmus.ownership.journal import Journal
from isthmus.ownership.leases import left
from isthmus.ownership.ledger import Ledger
from isthmus.ownership.owner import Owner, Stop, nothing_to_stop
from isthmus.ownership.prefix_cache import PrefixCache
from isthmus.ownership.protocol.drain import Evidence, TransportKind
from isthmus.ownership.protocol.effects import StopCompute, StopSend
from isthmus.ownership.protocol.events import (
    Abandon,
    Abort,
    Complete,
    Confirm,
    Drained,
    Publish,
    ReadSeen,
    Register,
    Renew,
    ReserveSource,
    Sent,
    SourceEvent,
)
from isthmus.ownership.protocol.source import step
from isthmus.ownership.protocol.source_ends import lease_over
from isthmus.ownership.protocol.states import LogicalOutcome, SourceHandoff, TriggerMode
from isthmus.ownership.records import Remembered
from isthmus.ownership.rows import source_row
from isthmus.ownership.side import Side

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
        stop_send: Stop = nothing_to_stop,
        sole_tenant: TenantId | None = None,
        live_max: int = GRANTS_PER_WORKER_MAX,
        of_peer_max: int = GRANTS_PER_PEER_MAX,
        tombstones_max: int = TOMBSTONES_MAX,
        journal: Journal | None = None,
        prefixes: PrefixCache | None = None,
    ) -> None:
        super().__init__(
            side=Side.PRODUCER,
            step=step,
            lease_over=lease_over,
            row=source_row,
            stops={StopCompute: stop_compute, StopSend: stop_send},
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
        self.lease = lease
        self._transport = transport
        self._sole_tenant = sole_tenant
        self._of_peer_max = of_peer_max
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
        mode: TriggerMode = TriggerMode.PULL,
        prefix: Sequence[bytes] = (),
    ) -> SourceHandoff:
        """Blocks for the engine to fill, and `holder` to read or us to write from; waits for room, up to `deadline`.

        Before them lie the retained blocks named by `prefix`, which `holder` may read too. Raises PrefixGone if they do
        not any more.
        """
        if self._sole_tenant is not None and tenant != self._sole_tenant:
            raise NotAuthorised(f"this pool serves one tenant, not {tenant!r}", field="tenant")
        assignment = await self._acquire(
            handoff,
            holder,
            holder_incarnation,
            tenant=tenant,
            blocks=blocks,
            staging_bytes=0,
            deadline=deadline,
            prefix=prefix,
        )
        event = ReserveSource(
            handoff=handoff,
            holder=holder,
            holder_incarnation=holder_incarnation,
            tenant=tenant,
            transport=self._transport if transport is None else transport,
            sole_tenant=self._sole_tenant is not None,
            blocks=assignment.blocks,
            epoch=assignment.epoch,
            mode=mode,
        )
        return self._begin(handoff, event, step(None, event))

    def complete(self, handoff: HandoffId) -> SourceHandoff:
        """The engine has filled the blocks. Raises `TransferFailed` if the hand-off was given up meanwhile."""
        return self._apply(self._known(handoff), Complete())

    def publish(self, handoff: HandoffId, lease: Duration | None = None) -> SourceHandoff:
        """Open the grant, or (push, send) begin to write into what is registered, which may take up to `lease`.

        The state returned carries `grant` and `epoch`, which the holder confirms under.

        Raises:
            TransferFailed: given up meanwhile.
        """
        record = self._known(handoff)
        claims = self._claims(record)
        grant = self._grants.mint(claims)
        state = self._apply(record, Publish(now=self._clock.now(), grant=grant, lease=lease or self.lease))
        self._grants.open(grant, claims)
        return state

    def sent(self, handoff: HandoffId, *, ok: bool) -> SourceHandoff:
        """Push and send: our own transfer has ended, with all bytes written or not, and reads the blocks no more."""
        return self._apply(self._known(handoff), Sent(ok=ok))

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
            if not self._ledger.assigned_to(BlockId(block), state.epoch) and not self._lends(state, BlockId(block)):
                raise NotAuthorised(f"block {block} is not under this grant", field="blocks")

    def register(
        self, handoff: HandoffId, *, grant: GrantId, epoch: Epoch, holder: WorkerId, holder_incarnation: Incarnation
    ) -> SourceHandoff:
        """Push and send: the holder has memory ready, to be written under its own `grant`. In any order, once."""
        life = holder_incarnation
        event = Register(grant=grant, epoch=epoch, holder=holder, holder_incarnation=life)
        return self._apply(self._known(handoff), event)

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

    # questions

    def lease_left(self, handoff: HandoffId) -> Duration:
        """What to tell the holder of the lease: a duration, never an instant."""
        lease_ends = self._known(handoff).state.lease_ends
        return Duration(0) if lease_ends is None else left(lease_ends, self._clock.now())

    # inside

    def _lends(self, state: SourceHandoff, block: BlockId) -> bool:
        """Whether the block is of a prefix that lies before the hand-off's own, and stays while the grant does."""
        return self._prefixes is not None and self._prefixes.lends(state.handoff, block)

    def _refuse_unwelcome(self, handoff: HandoffId, holder: WorkerId, holder_incarnation: Incarnation) -> None:
        super()._refuse_unwelcome(handoff, holder, holder_incarnation)
        if self._records.of_peer(holder) >= self._of_peer_max:  # one peer must not take the places of all others
            raise CapacityExceeded(
                f"{holder} has {self._of_peer_max} hand-offs here already", field="holder", retry_after=RETRY_AFTER
            )
        if (handoff, holder, holder_incarnation) in self._abandoned:
            raise StaleEpoch(f"hand-off {handoff} was abandoned before it began", field="handoff")

    def _forget(self, state: SourceHandoff) -> None:
        if state.grant is not None:
            self._grants.forget(state.grant)
