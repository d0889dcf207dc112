"""States of one hand-off, on each side. Immutable, small, and equal by value, so that a checker can count them.

Two axes: the *logical* outcome (what the request gets) and *physical access* (who may touch the blocks). Phases:

    source        COMPUTING ─► HELD ─► PUBLISHED ─► EXPOSED ─► RELEASED          (confirmed by the reader)
                      │          │         └────────────┴────► EXPIRED           (lease over, one tenant: freed)
                      ▼          ▼                      └────► IN_DOUBT          (lease over, many tenants: quarantined)
                  DRAINING ─► RELEASED                         IN_DOUBT ─► RELEASED (real evidence)

    destination   RESERVED ─► EXPOSED ─► RECEIVING ─► CONVERTING ─► VERIFYING ─► INSTALLED ─► RELEASED
                      │          └──────────┴────────────┴─────────────┘            └► DRAINING ─► RELEASED
                      ▼                            ▼
                  RELEASED                     ABORTING ─► RELEASED, or IN_DOUBT ─► RELEASED

Who is EXPOSED is who may be touched by the other side: under pull the source, which the consumer reads; under push and
send the destination, which the producer writes. A source that writes goes COMPUTING ─► HELD ─► PUBLISHED ─► RELEASED.
A hand-off has one part for each pair of ranks and layer group: it is in the phase of its slowest part.
"""

import enum

import msgspec

from isthmus.core.clock import Instant
from isthmus.core.ids import BlockId, Epoch, GrantId, HandoffId, Incarnation, TenantId, WorkerId
from isthmus.ownership.protocol.drain import Evidence, TransportKind

__all__ = [
    "DestinationHandoff",
    "DestinationPhase",
    "LogicalOutcome",
    "Part",
    "PartStage",
    "PhysicalAccess",
    "SourceHandoff",
    "SourcePhase",
    "TriggerMode",
]


class TriggerMode(enum.StrEnum):
    """Who moves the bytes, and when."""

    PULL = "pull"  # the consumer reads, under a lease, once the producer has filled
    PUSH = "push"  # the producer writes what it has filled into what the consumer has registered
    SEND = "send"  # the same, and it may begin before all is filled: the consumer has preallocated


class SourcePhase(enum.StrEnum):
    """Where a producer's side stands."""

    COMPUTING = "computing"
    HELD = "held"
    PUBLISHED = "published"
    EXPOSED = "exposed"
    DRAINING = "draining"
    RELEASED = "released"
    EXPIRED = "expired"
    IN_DOUBT = "in_doubt"


class DestinationPhase(enum.StrEnum):
    """Where a consumer's side stands."""

    RESERVED = "reserved"
    EXPOSED = "exposed"
    RECEIVING = "receiving"
    CONVERTING = "converting"
    VERIFYING = "verifying"
    INSTALLED = "installed"
    ABORTING = "aborting"
    DRAINING = "draining"
    RELEASED = "released"
    IN_DOUBT = "in_doubt"


class LogicalOutcome(enum.StrEnum):
    """What became of the hand-off. `succeeded` means installed: decode may still fail afterwards."""

    PENDING = "pending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class PhysicalAccess(enum.StrEnum):
    """Whether anybody but the ledger's owner may still touch the blocks."""

    UNEXPOSED = "unexposed"
    POSSIBLY_EXPOSED = "possibly_exposed"
    DRAINING = "draining"
    DRAINED = "drained"
    IN_DOUBT = "in_doubt"


class PartStage(enum.IntEnum):
    """How far one part has come at the consumer. ENDED: given up, and touched by nobody."""

    WAITING = 0
    RECEIVING = 1
    CONVERTING = 2
    VERIFYING = 3
    VERIFIED = 4
    CONFIRMED = 5
    ENDED = 6


class Part(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One pair of ranks and layer group: the grant that its bytes cross under, and the epoch that the grant is of.

    Under pull both are the producer's, under push and send our own.
    """

    stage: PartStage = PartStage.WAITING
    grant: GrantId | None = None
    epoch: Epoch | None = None


class SourceHandoff(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A producer's side. `epoch` is of the assignment of its blocks, and the grant carries it.

    Invariants: `grant` is set from PUBLISHED on; `blocks` is empty once released, `num_blocks` still says how many.
    `sole_tenant` says that the whole pool serves one tenant, so that a freed block cannot reach another's.
    Under push and send: `target` is the grant that the consumer has registered; `computing` and `sending` say which of
    our own engine and our own transfer use the blocks; `sent` that all has been written.
    """

    handoff: HandoffId
    holder: WorkerId
    holder_incarnation: Incarnation
    tenant: TenantId
    transport: TransportKind
    sole_tenant: bool
    blocks: tuple[BlockId, ...]
    num_blocks: int
    epoch: Epoch
    mode: TriggerMode = TriggerMode.PULL
    phase: SourcePhase = SourcePhase.COMPUTING
    outcome: LogicalOutcome = LogicalOutcome.PENDING
    access: PhysicalAccess = PhysicalAccess.UNEXPOSED
    grant: GrantId | None = None
    lease_ends: Instant | None = None
    evidence: Evidence | None = None
    target: GrantId | None = None
    target_epoch: Epoch | None = None
    computing: bool = False
    sending: bool = False
    sent: bool = False

    @property
    def grant_open(self) -> bool:
        """A reader may read, renew and confirm."""
        if self.mode is not TriggerMode.PULL:
            return False
        return self.phase is SourcePhase.PUBLISHED or self.phase is SourcePhase.EXPOSED

    @property
    def ended(self) -> bool:
        """Nothing is held any more; what is left is a tombstone."""
        return self.phase is SourcePhase.RELEASED or self.phase is SourcePhase.EXPIRED


class DestinationHandoff(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A consumer's side. `epoch` is of the assignment of its own blocks and staging.

    Invariants: INSTALLED only with every part verified, and under pull confirmed at the epoch that it was read at (I1,
    I9); `parts` are never added to. `lease_ends` is for push and send: until when the producer may write.
    """

    handoff: HandoffId
    producer: WorkerId
    producer_incarnation: Incarnation
    tenant: TenantId
    transport: TransportKind
    blocks: tuple[BlockId, ...]
    num_blocks: int
    staging_bytes: int
    epoch: Epoch
    mode: TriggerMode = TriggerMode.PULL
    parts: tuple[Part, ...] = (Part(),)
    phase: DestinationPhase = DestinationPhase.RESERVED
    outcome: LogicalOutcome = LogicalOutcome.PENDING
    access: PhysicalAccess = PhysicalAccess.UNEXPOSED
    lease_ends: Instant | None = None
    evidence: Evidence | None = None

    @property
    def ended(self) -> bool:
        """Nothing is held any more; what is left is a tombstone."""
        return self.phase is DestinationPhase.RELEASED

    @property
    def grant_open(self) -> bool:
        """The producer may write."""
        return self.mode is not TriggerMode.PULL and self.phase in (
            DestinationPhase.EXPOSED,
            DestinationPhase.RECEIVING,
        )

    @property
    def prepared(self) -> bool:
        """Every part has arrived and been verified: the commit may be asked for."""
        return all(PartStage.VERIFIED <= part.stage <= PartStage.CONFIRMED for part in self.parts)
