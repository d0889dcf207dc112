"""Either side of one hand-off, its effects carried out on a real ledger, and beside it what really goes on.

What goes on (an engine computes, a transfer runs, a writer writes) is kept by these worlds alone, from what they let
happen; the protocol is never asked. So a world knows when blocks may be free, and says which events are possible now.
"""

from typing import Generic, TypeVar

from msgspec.structs import replace

from isthmus.core.clock import Instant
from isthmus.core.ids import Epoch, GrantId, HandoffId, Incarnation, TenantId, WorkerId
from isthmus.core.units import Duration
from isthmus.ownership.ledger import Ledger
from isthmus.ownership.owner import execute
from isthmus.ownership.protocol.drain import Evidence, TransportKind
from isthmus.ownership.protocol.effects import Effect, FreeBlocks, ReplyConfirmed, ReplyRefused
from isthmus.ownership.protocol.events import (
    Abandon,
    Abort,
    Confirm,
    Drained,
    Fence,
    PeerLost,
    PeerReincarnated,
    ReadSeen,
    Register,
    Renew,
    WriteSeen,
    Written,
)
from isthmus.ownership.protocol.states import (
    DestinationHandoff,
    LogicalOutcome,
    SourceHandoff,
    TriggerMode,
)

PEER, LIFE, NEXT_LIFE = WorkerId("peer"), Incarnation("b" * 32), Incarnation("e" * 32)
TENANT, STRANGER = TenantId("t"), TenantId("stranger")
HANDOFF = HandoffId("a" * 32)
GRANT, TARGET = GrantId("c" * 32), GrantId("d" * 32)
GRANTS = (GrantId("1" * 32), GrantId("2" * 32))
EPOCHS = (Epoch(41), Epoch(42))
LEASE = Duration.of_seconds(2)
ABORT = Abort(outcome=LogicalOutcome.CANCELLED)
ENGINE_ENDED, SEND_ENDED = Drained(evidence=Evidence.OWN_WORK_ENDED), Drained(evidence=Evidence.OWN_TRANSFER_ENDED)
DIED = PeerLost(worker=PEER, incarnation=LIFE, evidence=Evidence.PROCESS_EXITED)
WORLDLY = (
    ABORT,
    Fence(),
    replace(DIED, evidence=Evidence.SILENCE),
    replace(DIED, evidence=Evidence.FENCED_AND_CLOSED),
    DIED,
    PeerReincarnated(worker=PEER, incarnation=NEXT_LIFE),
)
PEERS = (ReadSeen, Renew, Confirm, Abandon, Register, WriteSeen, Written)

StateT = TypeVar("StateT", SourceHandoff, DestinationHandoff)


class Side(Generic[StateT]):
    """What both have: a ledger, a clock, and the checks that hold whatever happens."""

    state: StateT

    def __init__(self, mode: TriggerMode, transport: TransportKind) -> None:
        self.mode, self.transport = mode, transport
        self.now = Instant(1_000)
        self.ledger = Ledger(num_blocks=4, block_bytes=8, staging_bytes=9)

    def pulls(self) -> bool:
        return self.mode is TriggerMode.PULL

    def take(self, before: StateT, state: StateT, event: object, effects: tuple[Effect, ...]) -> None:
        """Carry out what a step has asked for."""
        self.state = state
        replies = [effect for effect in effects if isinstance(effect, ReplyConfirmed | ReplyRefused)]
        assert len(replies) <= 1, "two answers to one question"
        if before.ended:
            # A tombstone only answers; its answer depends on it and the question alone, so it is always the same.
            assert state == before
            assert len(effects) == len(replies)
        for effect in effects:
            if isinstance(effect, FreeBlocks):
                self.check_free(effect)
            execute(self.ledger, effect)
        self.ledger.check_in_full()  # I3

    def check_free(self, effect: FreeBlocks) -> None:
        raise NotImplementedError

    def proves_death(self, event: object) -> bool:
        """Whether this really ends what the peer does, by what the transport is."""
        if isinstance(event, PeerLost):
            fenced = event.evidence is Evidence.FENCED_AND_CLOSED and self.transport is not TransportKind.SHM
            return event.evidence is Evidence.PROCESS_EXITED or fenced
        return False
