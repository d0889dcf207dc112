"""What the two owners share: run `step`, store the state, execute the effects, remember, refuse the dead.

The shell is mutable and thin: every decision is `step`'s, every sum the ledger's. It lives on one event loop, and no
method awaits between a decision and its effects, so that each event is atomic.
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

from isthmus.core.clock import Clock, Instant
from isthmus.core.errors import (
    Bug,
    CapacityExceeded,
    GrantUnknown,
    IsthmusError,
    NotAuthorised,
    PeerLost,
    StaleEpoch,
    TransferFailed,
)
from isthmus.core.ids import Epoch, GrantId, HandoffId, Incarnation, TenantId, WorkerId
from isthmus.core.limits import INCARNATIONS_LOST_MAX
from isthmus.core.units import Duration
from isthmus.ownership.accounts import Assignment, Count
from isthmus.ownership.capability import Claims
from isthmus.ownership.capacity import RETRY_AFTER, Capacity
from isthmus.ownership.fair_queue import Want
from isthmus.ownership.grants import Grants
from isthmus.ownership.journal import Journal
from isthmus.ownership.ledger import Ledger
from isthmus.ownership.prefix_cache import PrefixCache
from isthmus.ownership.protocol import events
from isthmus.ownership.protocol.drain import DEATH_PROVEN, Evidence
from isthmus.ownership.protocol.effects import (
    BeginUse,
    CloseGrant,
    Effect,
    EndUse,
    FreeBlocks,
    MarkFilling,
    MarkResident,
    OpenGrant,
    QuarantineBlocks,
    Refusal,
    ReleaseStaging,
    RememberTombstone,
    ReplyRefused,
)
from isthmus.ownership.protocol.events import DestinationEvent, SourceEvent
from isthmus.ownership.protocol.states import DestinationHandoff, SourceHandoff
from isthmus.ownership.records import Moment, Record, Records, Remembered, peer_of
from isthmus.ownership.rows import Row, with_timeline
from isthmus.ownership.side import Side

__all__ = ["Owner", "Stop", "execute", "nothing_to_stop"]

Stop = Callable[[HandoffId], None]
"""Ask somebody in this process to stop touching a hand-off's blocks. Returns at once; the end is reported later."""


def nothing_to_stop(handoff: HandoffId) -> None:
    """For whoever stops its work by the answers of `abort`, `abandon` and `peer_lost` instead of by callbacks."""


StateT = TypeVar("StateT", SourceHandoff, DestinationHandoff)
EventT = TypeVar("EventT", SourceEvent, DestinationEvent)


class Owner(Generic[StateT, EventT]):
    """One worker's hand-offs on one side."""

    def __init__(
        self,
        *,
        side: Side,
        step: Callable[[StateT, EventT], tuple[StateT | None, tuple[Effect, ...]]],
        lease_over: Callable[[StateT, Instant], bool],
        row: Callable[[Record[StateT], Instant, WorkerId, int], Row],
        stops: Mapping[type[Effect], Stop],
        ledger: Ledger,
        capacity: Capacity,
        clock: Clock,
        worker: WorkerId,
        incarnation: Incarnation,
        live_max: int,
        tombstones_max: int,
        journal: Journal | None,
        prefixes: PrefixCache | None,
    ) -> None:
        self.worker = worker
        self.incarnation = incarnation
        self._side = side
        self._journal = journal
        self._step: Callable[[StateT, EventT], tuple[StateT | None, tuple[Effect, ...]]] = step
        self._lease_over: Callable[[StateT, Instant], bool] = lease_over
        self._row: Callable[[Record[StateT], Instant, WorkerId, int], Row] = row
        self._stops = stops
        self._ledger = ledger
        self._capacity = capacity
        self._prefixes = prefixes
        self._clock = clock
        self._live_max = live_max
        self._records: Records[StateT] = Records(tombstones_max)
        self._reserving: set[HandoffId] = set()
        self._lost: Remembered[tuple[WorkerId, Incarnation]] = Remembered(INCARNATIONS_LOST_MAX)
        self._fenced = False
        self._grants = Grants(clock, self._claims_of)

    def __len__(self) -> int:
        """How many hand-offs hold something now."""
        return len(self._records)

    def state(self, handoff: HandoffId) -> StateT:
        """Where a live or recently ended hand-off stands."""
        return self._known(handoff).state

    def timeline(self, handoff: HandoffId) -> list[Moment]:
        """What happened to a live or recently ended hand-off; empty if it is not known any more."""
        for record in (*self._records.live(), *self._records.logged()):
            if record.state.handoff == handoff:
                return record.timeline
        return []

    def _known(self, handoff: HandoffId) -> Record[StateT]:
        record = self._records.find(handoff)
        if record is None:
            raise GrantUnknown(f"hand-off {handoff} is not known to {self.worker}", field="handoff")
        return record

    # the world's

    def peer_lost(
        self, worker: WorkerId, incarnation: Incarnation, evidence: Evidence = Evidence.FENCED_AND_CLOSED
    ) -> list[HandoffId]:
        """An incarnation is gone. Only proof counts; what it frees is the drain table's to say.

        Returns the hand-offs of which something of ours has been asked to stop; each wants `drained` once it has.
        """
        if evidence in DEATH_PROVEN:
            self._note_lost(worker, incarnation)
        return self._apply_to_all(events.PeerLost(worker=worker, incarnation=incarnation, evidence=evidence))

    def peer_reincarnated(self, worker: WorkerId, incarnation: Incarnation) -> list[HandoffId]:
        """The registry knows a new life of this worker: what was begun with another fails. Returns as `peer_lost`."""
        return self._apply_to_all(events.PeerReincarnated(worker=worker, incarnation=incarnation))

    def fence(self) -> list[HandoffId]:
        """Our own incarnation has been fenced: grant, confirm and install nothing more. Returns as `peer_lost`."""
        self._fenced = True
        return self._apply_to_all(events.Fence())

    def reap(self) -> int:
        """End every lease that has run out; returns how many. Looks at all hand-offs, whatever their order."""
        now = self._clock.now()
        overdue = [record for record in self._records.live() if self._lease_over(record.state, now)]
        for record in overdue:
            self._apply(record, events.Expire(now=now))
        return len(overdue)

    # what people ask

    def snapshot(self) -> list[Row]:
        """Who owns what now, one JSON-able row for each hand-off."""
        now = self._clock.now()
        return [self._row_of(record, now) for record in self._records.live()]

    def finished(self) -> list[Row]:
        """The last ended hand-offs, latest first, with their timelines."""
        now = self._clock.now()
        return [with_timeline(self._row_of(record, now), record) for record in self._records.logged()]

    def _row_of(self, record: Record[StateT], now: Instant) -> Row:
        return self._row(record, now, self.worker, self._ledger.block_bytes)

    # reservation

    async def _acquire(
        self,
        handoff: HandoffId,
        peer: WorkerId,
        incarnation: Incarnation,
        *,
        tenant: TenantId,
        blocks: int,
        staging_bytes: int,
        deadline: Duration,
        prefix: Sequence[bytes],
    ) -> Assignment:
        """Room for a hand-off with this peer, and its prefix pinned; whatever this raises, nothing is left behind."""
        self._refuse_unwelcome(handoff, peer, incarnation)
        want = Want(handoff=handoff, tenant=tenant, side=self._side, blocks=blocks, staging_bytes=staging_bytes)
        assignment = self._capacity.at_once(want)
        waited = assignment is None
        if assignment is None:
            self._reserving.add(handoff)
            try:
                assignment = await self._capacity.wait_for(want, deadline)
            finally:
                self._reserving.discard(handoff)
        try:
            if waited:
                self._refuse_unwelcome(handoff, peer, incarnation)  # the world went on meanwhile
            if prefix:
                self._pin(handoff, prefix)
        except IsthmusError:
            self._capacity.give_back(assignment, staging_bytes=staging_bytes)
            raise
        return assignment

    def _refuse_unwelcome(self, handoff: HandoffId, peer: WorkerId, incarnation: Incarnation) -> None:
        """Raise unless a hand-off with this peer may begin."""
        if self._fenced:
            raise PeerLost(f"{self.worker} incarnation {self.incarnation} has been fenced", field="incarnation")
        if (peer, incarnation) in self._lost:
            # Evidence of its death has been used up (I8): what it began now could stay in quarantine for ever.
            raise PeerLost(f"{peer} incarnation {incarnation} has been declared dead", field="incarnation")
        if self._records.find(handoff) is not None or handoff in self._reserving:
            raise NotAuthorised(f"hand-off {handoff} exists already: an id is used once", field="handoff")
        if len(self._records) + len(self._reserving) >= self._live_max:
            raise CapacityExceeded(
                f"{self.worker} has {self._live_max} hand-offs already", field="handoff", retry_after=RETRY_AFTER
            )

    def _pin(self, handoff: HandoffId, prefix: Sequence[bytes]) -> None:
        """Retained blocks that the hand-off counts on stay while it lives. Raises PrefixGone."""
        if self._prefixes is None:
            raise Bug(f"hand-off {handoff} counts on a prefix where none is retained", field="prefix")
        self._prefixes.pin(handoff, prefix)

    def _begin(self, handoff: HandoffId, event: EventT, stepped: tuple[StateT | None, tuple[Effect, ...]]) -> StateT:
        state, effects = stepped
        if state is None:
            raise Bug(f"hand-off {handoff}: reserving made no state", field="handoff")
        now = self._clock.now()
        record = Record(state=state, began=now)
        record.note(now, "reserve")
        if self._journal is not None:
            self._journal.record(side=self._side, at=now, handoff=handoff, event=event)
        self._records.begin(handoff, record)
        for effect in effects:
            execute(self._ledger, effect)
        return state

    # grants

    def _claims(self, record: Record[StateT]) -> Claims:
        """What a grant of ours on this hand-off is for."""
        state = record.state
        peer, life = peer_of(state)
        return Claims(
            handoff=state.handoff,
            epoch=state.epoch,
            tenant=state.tenant,
            owner=self.worker,
            owner_incarnation=self.incarnation,
            holder=peer,
            holder_incarnation=life,
            blocks=record.digest_of(state.blocks),
        )

    def _claims_of(self, handoff: HandoffId) -> Claims | None:
        record = self._records.find(handoff)
        return None if record is None else self._claims(record)

    def _granted(self, grant: GrantId, epoch: Epoch, peer: WorkerId, life: Incarnation | None = None) -> Record[StateT]:
        """The hand-off that a peer speaks of under a grant. Raises as `Grants.handoff`."""
        return self._known(self._grants.handoff(grant, epoch, peer, life))

    # events

    def _apply(self, record: Record[StateT], event: EventT, note: str = "") -> StateT:
        """One event: decide, store, note, execute; raise if the answer is a refusal."""
        before = record.state
        state, effects = self._step(before, event)
        if state is None:
            raise Bug(f"hand-off {before.handoff} vanished", field="handoff")
        record.state = state
        now = self._clock.now()
        if self._journal is not None:
            self._journal.record(side=self._side, at=now, handoff=state.handoff, event=event)
        if state is not before or effects:
            record.note(now, note or _name(type(event)))
        refusal: Refusal | None = None
        for effect in effects:
            if isinstance(effect, ReplyRefused):
                refusal = effect.reason
            elif isinstance(effect, RememberTombstone):
                for forgotten in self._records.bury(state.handoff):
                    self._forget(forgotten)
            elif type(effect) in self._stops:
                record.asked_to_stop = True
                self._stops[type(effect)](state.handoff)
            else:
                if self._prefixes is not None and isinstance(effect, FreeBlocks):
                    self._prefixes.ending(state.handoff, effect.blocks, effect.epoch)
                execute(self._ledger, effect)
        if refusal is not None:
            raise _error(refusal, record.state)
        return record.state  # read again: a stop may have been answered within the call

    def _forget(self, state: StateT) -> None:
        """A tombstone has made room for a younger one."""

    def _apply_to_all(self, event: EventT) -> list[HandoffId]:
        """Returns those of which something of ours was asked to stop and has not answered yet."""
        stopping: list[HandoffId] = []
        for record in self._records.live():
            asked = record.asked_to_stop
            state = self._apply(record, event)
            if record.asked_to_stop and not asked and not state.ended:
                stopping.append(state.handoff)
        return stopping

    def _note_lost(self, worker: WorkerId, incarnation: Incarnation) -> None:
        self._lost.add((worker, incarnation))


def execute(ledger: Ledger, effect: Effect) -> None:
    """Carry out an effect on blocks or staging."""
    match effect:
        case MarkFilling():
            ledger.fill(effect.blocks, effect.epoch)
        case MarkResident():
            ledger.settle(effect.blocks, effect.epoch, in_use=effect.in_use)
        case EndUse():
            ledger.unhold(effect.blocks, effect.epoch, Count.ACTIVE)
        case FreeBlocks():
            ledger.free(effect.blocks, effect.epoch, effect.evidence)
        case ReleaseStaging():
            ledger.release_staging(effect.epoch)
        case OpenGrant():
            ledger.hold(effect.blocks, effect.epoch, Count.GRANTS)
        case CloseGrant():
            ledger.unhold(effect.blocks, effect.epoch, Count.GRANTS)
        case BeginUse():
            ledger.hold(effect.blocks, effect.epoch, Count.ACTIVE)
        case QuarantineBlocks():
            ledger.quarantine(effect.blocks, effect.epoch)
        case _:
            pass  # replies and stops are not the ledger's


def _error(refusal: Refusal, state: SourceHandoff | DestinationHandoff) -> IsthmusError:
    what = f"hand-off {state.handoff} at epoch {state.epoch} is {state.phase} ({state.outcome})"
    match refusal:
        case Refusal.GRANT_UNKNOWN:
            return GrantUnknown("no such grant", field="grant")  # says nothing of the hand-off to who only guesses
        case Refusal.NOT_AUTHORISED:
            return NotAuthorised("the hand-off is of another worker, incarnation or tenant", field="holder")
        case Refusal.STALE_EPOCH:
            return StaleEpoch(what, field="epoch")
        case Refusal.ENDED:
            return TransferFailed(f"{what}: given up meanwhile", field="handoff")


@functools.cache
def _name(event: type) -> str:
    """VerifyOk → verify_ok."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", event.__name__).lower()
