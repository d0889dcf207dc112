"""A producer's side, and what its engine, its transfer and its reader really do."""

from collections.abc import Iterator

from isthmus.core.ids import Epoch
from isthmus.ownership.protocol import source, source_ends
from isthmus.ownership.protocol.drain import Evidence, TransportKind
from isthmus.ownership.protocol.effects import Effect, FreeBlocks, ReplyRefused, StopCompute, StopSend
from isthmus.ownership.protocol.events import (
    Abandon,
    Complete,
    Confirm,
    Drained,
    Expire,
    Publish,
    ReadSeen,
    Register,
    Renew,
    ReserveSource,
    Sent,
    SourceEvent,
)
from isthmus.ownership.protocol.states import (
    SourceHandoff,
    SourcePhase,
    TriggerMode,
)
from tests.ownership.sides import (
    ABORT,
    DIED,
    ENGINE_ENDED,
    GRANT,
    HANDOFF,
    LEASE,
    LIFE,
    NEXT_LIFE,
    PEER,
    SEND_ENDED,
    TARGET,
    TENANT,
    WORLDLY,
    Side,
)

_ORDINARY = (Register, Complete, Publish, Sent, ReadSeen, Renew, Confirm)
_UNUSUAL = (Sent(ok=False), Register(grant=GRANT, epoch=Epoch(3), holder=PEER, holder_incarnation=LIFE))


class Source(Side[SourceHandoff]):
    """A producer's side."""

    def __init__(self, mode: TriggerMode, transport: TransportKind, *, sole_tenant: bool) -> None:
        super().__init__(mode, transport)
        assignment = self.ledger.try_reserve(HANDOFF, tenant=TENANT, blocks=2, staging_bytes=0)
        assert assignment is not None
        reserve = ReserveSource(
            handoff=HANDOFF,
            holder=PEER,
            holder_incarnation=LIFE,
            tenant=TENANT,
            transport=transport,
            sole_tenant=sole_tenant,
            blocks=assignment.blocks,
            epoch=assignment.epoch,
            mode=mode,
        )
        self.epoch = assignment.epoch
        self.computing = True
        self.filled = self.said_complete = self.said_sent = self.stopped_sending = False
        self.sending = False
        self.read_by_peer = False
        self.published = False
        self.stops: set[type[Effect]] = set()
        state, effects = source.step(None, reserve)
        assert state is not None
        self.take(state, state, reserve, effects)

    def possible(self) -> Iterator[SourceEvent]:
        """Our own events that can be, and whatever a peer or the world may say."""
        if not self.said_complete:
            yield Complete()  # also after it has reported that it stopped: it had just finished
        if StopCompute in self.stops:
            yield ENGINE_ENDED
        if not self.published and self._publishable():
            yield Publish(now=self.now, grant=GRANT, lease=LEASE)
        if not self.said_sent and (self.sending or self.stopped_sending):
            yield Sent(ok=False)
            if self.filled:
                yield Sent(ok=True)
        if StopSend in self.stops:
            yield SEND_ENDED
        if source_ends.lease_over(self.state, self.now):
            yield Expire(now=self.now)
        if self.pulls() and self.state.phase in (SourcePhase.DRAINING, SourcePhase.IN_DOUBT):
            yield Drained(evidence=Evidence.CONNECTION_CLOSED)
        yield from self._said_by_peer()
        yield from WORLDLY

    def ordinary(self) -> list[SourceEvent]:
        """What happens when nothing goes wrong, in no order."""
        usual = [event for event in self.possible() if isinstance(event, _ORDINARY) and event not in _UNUSUAL]
        return [event for event in usual if getattr(event, "grant", GRANT) == GRANT or isinstance(event, Register)]

    def _publishable(self) -> bool:
        if self.pulls():
            return self.filled
        return (self.filled or self.mode is TriggerMode.SEND) and self.state.target is not None

    def _said_by_peer(self) -> Iterator[SourceEvent]:
        life, epoch, now = LIFE, self.epoch, self.now
        yield Register(grant=TARGET, epoch=Epoch(3), holder=PEER, holder_incarnation=life)
        yield Register(grant=GRANT, epoch=Epoch(3), holder=PEER, holder_incarnation=life)
        yield Abandon(holder=PEER, holder_incarnation=life)
        for grant in (GRANT, TARGET):
            yield ReadSeen(now=now, grant=grant, epoch=epoch, reader=PEER)
            yield Renew(now=now, grant=grant, epoch=epoch, holder=PEER, holder_incarnation=life, lease=LEASE)
            yield Confirm(now=now, grant=grant, epoch=epoch, holder=PEER, holder_incarnation=life)
            yield Confirm(now=now, grant=grant, epoch=epoch, holder=PEER, holder_incarnation=NEXT_LIFE)

    def happen(self, event: SourceEvent) -> None:
        """Something happens: first in the world, then to the protocol."""
        before = self.state
        self.said_complete |= isinstance(event, Complete)
        self.said_sent |= isinstance(event, Sent)
        self.stopped_sending |= event == SEND_ENDED
        if isinstance(event, Complete) or event == ENGINE_ENDED:
            self.computing = False
        if isinstance(event, Sent) or event == SEND_ENDED:
            self.sending = False
        genuine = isinstance(event, Confirm) and event.grant == GRANT and event.holder_incarnation == LIFE
        if self.proves_death(event) or isinstance(event, Abandon) or genuine:
            self.read_by_peer = False
        state, effects = source.step(before, event)
        assert state is not None
        refused = any(isinstance(effect, ReplyRefused) for effect in effects)
        if isinstance(event, Complete):
            self.filled = not refused
        if isinstance(event, Publish):
            self.published = True
            self.sending = not refused and not self.pulls()
        if isinstance(event, ReadSeen) and not refused:
            assert self.pulls()
            self.read_by_peer = True
        if before.lease_ends is not None and isinstance(event, Renew):
            assert state.lease_ends is None or state.lease_ends >= before.lease_ends  # I6
        self.stops |= {type(effect) for effect in effects if isinstance(effect, StopCompute | StopSend)}
        self.take(before, state, event, effects)

    def check_free(self, effect: FreeBlocks) -> None:
        assert not self.computing, "freed under our own engine"
        assert not self.sending, "freed under our own transfer"
        if self.read_by_peer:
            assert effect.evidence is Evidence.LEASE_EXPIRED_ONE_TENANT, "freed under a reader"
            assert self.state.sole_tenant

    def end(self) -> None:
        """Everything ends, and is said to have ended."""
        self.happen(ABORT)
        if self.computing:
            self.happen(Complete())
        if self.sending:
            self.happen(Sent(ok=False))
        self.happen(DIED)
