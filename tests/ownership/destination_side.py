"""A consumer's side of two parts, and what its own work, decode and its writers really do."""

from collections.abc import Iterator

from msgspec.structs import replace

from isthmus.core.clock import after
from isthmus.core.ids import Epoch
from isthmus.ownership.protocol import destination, destination_push
from isthmus.ownership.protocol.drain import Evidence, TransportKind
from isthmus.ownership.protocol.effects import FreeBlocks, ReplyRefused
from isthmus.ownership.protocol.events import (
    Arrived,
    Confirmed,
    ConfirmRefused,
    ConvertDone,
    DestinationEvent,
    Doubt,
    Drained,
    Expire,
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
from isthmus.ownership.protocol.states import (
    DestinationHandoff,
    DestinationPhase,
    LogicalOutcome,
    TriggerMode,
)
from tests.ownership.sides import (
    ABORT,
    DIED,
    EPOCHS,
    GRANTS,
    HANDOFF,
    LEASE,
    LIFE,
    PEER,
    STRANGER,
    TENANT,
    WORLDLY,
    Side,
)

_ORDINARY = (Submit, Arrived, ConvertDone, VerifyOk, Confirmed, Expose, WriteSeen, Written, Install, Finish)


class Destination(Side[DestinationHandoff]):
    """A consumer's side, of two parts."""

    def __init__(self, mode: TriggerMode, transport: TransportKind) -> None:
        super().__init__(mode, transport)
        assignment = self.ledger.try_reserve(HANDOFF, tenant=TENANT, blocks=2, staging_bytes=9)
        assert assignment is not None
        reserve = ReserveDestination(
            handoff=HANDOFF,
            producer=PEER,
            producer_incarnation=LIFE,
            tenant=TENANT,
            transport=transport,
            blocks=assignment.blocks,
            staging_bytes=9,
            epoch=assignment.epoch,
            mode=mode,
            num_parts=2,
        )
        self.epoch = assignment.epoch
        self.next_of: list[tuple[DestinationEvent, ...]] = [(), ()]  # how what we do on a part can end
        self.begun = [False, False]
        self.written_by_peer = [False, False]
        self.exposed = False
        self.checked = [False, False]
        self.decoding = False
        self.in_doubt = False
        state, effects = destination.step(None, reserve)
        self.take(state, state, reserve, effects)

    def possible(self) -> Iterator[DestinationEvent]:
        """Our own events that can be, and whatever a peer or the world may say."""
        for part in (0, 1):
            yield from self.next_of[part]
            if self.pulls() and not self.begun[part] and self._reading():
                yield Submit(tenant=TENANT, grant=GRANTS[part], epoch=EPOCHS[part], part=part)
                yield Submit(tenant=STRANGER, grant=GRANTS[part], epoch=EPOCHS[part], part=part)
        if all(self.checked):
            yield from self._commits()
        if self.decoding:
            yield Finish()
        if not self.pulls() and not self.exposed:
            yield Expose(now=self.now, grants=GRANTS, lease=LEASE)
        if destination_push.lease_over(self.state, self.now):
            yield Expire(now=self.now)
        yield from self._drained()
        if self.state.phase is DestinationPhase.ABORTING:
            yield Doubt()
        yield from self._said_by_peer()
        yield from WORLDLY

    def ordinary(self) -> list[DestinationEvent]:
        """What happens when nothing goes wrong, in no order."""
        usual = [event for event in self.possible() if isinstance(event, _ORDINARY)]
        return [event for event in usual if getattr(event, "tenant", TENANT) == TENANT and self._of_its_part(event)]

    def _of_its_part(self, event: DestinationEvent) -> bool:
        if self.pulls() and isinstance(event, WriteSeen | Written):
            return False
        if isinstance(event, Confirmed):
            return event.epoch == EPOCHS[event.part]
        return not isinstance(event, Written) or event.grant == GRANTS[event.part]

    def _reading(self) -> bool:
        over = (DestinationPhase.INSTALLED, DestinationPhase.DRAINING)
        return self.state.phase not in over and self.state.outcome is not LogicalOutcome.SUCCEEDED

    def _commits(self) -> Iterator[DestinationEvent]:
        if not self.pulls():
            yield Install()
            return
        for part in (0, 1):
            yield Confirmed(epoch=EPOCHS[part], part=part)
        yield Confirmed(epoch=Epoch(9), part=0)
        yield ConfirmRefused()

    def _drained(self) -> Iterator[DestinationEvent]:
        if self.state.phase is DestinationPhase.DRAINING:
            yield Drained(evidence=Evidence.OWN_WORK_ENDED)
        elif self.state.phase in (DestinationPhase.ABORTING, DestinationPhase.IN_DOUBT):
            yield Drained(evidence=Evidence.OWN_TRANSFER_ENDED)
            if not self.pulls():
                yield Drained(evidence=Evidence.OWN_WORK_ENDED)
                yield Drained(evidence=Evidence.CONNECTION_CLOSED)

    def _said_by_peer(self) -> Iterator[DestinationEvent]:
        arrived = Evidence.ACKNOWLEDGED if self.transport is TransportKind.SHM else Evidence.OWN_TRANSFER_ENDED
        now, epoch = self.now, self.epoch
        for part in (0, 1):
            yield WriteSeen(now=now, grant=GRANTS[part], epoch=epoch, writer=PEER, lease=LEASE, part=part)
            written = Written(
                now=now,
                grant=GRANTS[part],
                epoch=epoch,
                writer=PEER,
                writer_incarnation=LIFE,
                tenant=TENANT,
                evidence=arrived,
                part=part,
            )
            yield from (written, replace(written, tenant=STRANGER), replace(written, grant=GRANTS[1 - part]))

    def happen(self, event: DestinationEvent) -> None:
        """Something happens: first in the world, then to the protocol."""
        before = self.state
        if event in (*self.next_of[0], *self.next_of[1]):
            self.next_of[event.part] = ()  # type: ignore[union-attr]
        self._world_moves(event)
        state, effects = destination.step(before, event)
        refused = any(isinstance(effect, ReplyRefused) for effect in effects)
        if not refused:
            self._began(event, state)
        if isinstance(event, Written) and not refused and state != before:
            self.next_of[event.part] = (ConvertDone(part=event.part),)
        installed = state.phase is DestinationPhase.INSTALLED
        if installed and before.phase is not DestinationPhase.INSTALLED:
            assert all(self.checked), "I9: installed before all was verified"
            self.decoding = True
        self.take(before, state, event, effects)
        grants = 2 if state.grant_open else 0
        assert self.ledger.held().grants == grants, "I4: an open grant and the count on its blocks differ"

    def _world_moves(self, event: DestinationEvent) -> None:
        """What the event says has ended has ended."""
        if isinstance(event, Finish) or (isinstance(event, Drained) and event.evidence is Evidence.OWN_WORK_ENDED):
            self.decoding = False
        if isinstance(event, Drained):
            of_ours = Evidence.OWN_TRANSFER_ENDED if self.pulls() else Evidence.OWN_WORK_ENDED
            if event.evidence is of_ours:
                self.next_of = [(), ()]
            if event.evidence is Evidence.OWN_TRANSFER_ENDED and self.transport is not TransportKind.SHM:
                self.written_by_peer = [False, False]  # over these it is loops of ours that write
        if isinstance(event, Written) and event.grant == GRANTS[event.part]:
            self.written_by_peer[event.part] = False
        if self.proves_death(event):
            self.written_by_peer = [False, False]
            if self.in_doubt:
                self.next_of = [(), ()]  # pull: what was in doubt is taken to have ended with its peer

    def _began(self, event: DestinationEvent, state: DestinationHandoff) -> None:
        match event:
            case Submit():
                self.begun[event.part] = True
                self.next_of[event.part] = (Arrived(part=event.part),)
            case Arrived():
                self.next_of[event.part] = (ConvertDone(part=event.part),)
            case ConvertDone():
                self.next_of[event.part] = (VerifyOk(part=event.part), VerifyBad(part=event.part))
            case VerifyOk():
                self.checked[event.part] = True
            case Expose():
                self.exposed = True
                self.written_by_peer = [True, True]
            case WriteSeen():
                assert state.grant_open, "I2: a write was let through without a grant"
                assert self.written_by_peer[event.part], "I2: a write was let through after the last one"
            case Doubt():
                self.in_doubt = True

    def check_free(self, effect: FreeBlocks) -> None:
        assert not any(self.next_of), "freed under our own work"
        assert not self.decoding, "freed under decode"
        assert not any(self.written_by_peer), "I2: freed under a writer"

    def end(self) -> None:
        """Everything ends, and is said to have ended."""
        self.happen(ABORT)
        if self.state.phase in (DestinationPhase.ABORTING, DestinationPhase.DRAINING):
            pulled = self.pulls() and self.state.phase is DestinationPhase.ABORTING
            self.happen(Drained(evidence=Evidence.OWN_TRANSFER_ENDED if pulled else Evidence.OWN_WORK_ENDED))
        self.now = after(self.now, LEASE * 2)
        if destination_push.lease_over(self.state, self.now):
            self.happen(Expire(now=self.now))
        self.happen(DIED)
