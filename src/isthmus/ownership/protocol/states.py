"""States of one hand-off, on each side. Immutable, small, and equal by value, so that a checker can count them.

Two axes: the *logical* outcome (what the request gets) and *physical access* (who may touch the blocks). Phases:

    source        COMPUTING ─► HELD ─► PUBLISHED ─► EXPOSED ─► RELEASED          (confirmed by the reader)
                      │          │         └────────────┴────► EXPIRED           (lease over, one tenant: freed)
                      ▼          ▼                      └────► IN_DOUBT          (lease over, many tenants: quarantined)
                  DRAINING ─► RELEASED                         IN_DOUBT ─► RELEASED (real evidence)

    destination   RESERVED ─► RECEIVING ─► CONVERTING ─► VERIFYING ─► INSTALLED ─► RELEASED
                      │           └────────────┴─────────────┘            └► DRAINING ─► RELEASED (decode stopped)
                      ▼                        ▼
                  RELEASED                  ABORTING ─► RELEASED, or IN_DOUBT ─► RELEASED

A destination has no phase EXPOSED yet: under pull its addresses never leave the process. Push will add it.
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
    "PhysicalAccess",
    "SourceHandoff",
    "SourcePhase",
]


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


class SourceHandoff(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A producer's side. `epoch` is of the assignment of its blocks, and the grant carries it.

    Invariants: `grant` is set from PUBLISHED on; `blocks` is empty once released, `num_blocks` still says how many.
    `sole_tenant` says that the whole pool serves one tenant, so that a freed block cannot reach another's.
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
    phase: SourcePhase = SourcePhase.COMPUTING
    outcome: LogicalOutcome = LogicalOutcome.PENDING
    access: PhysicalAccess = PhysicalAccess.UNEXPOSED
    grant: GrantId | None = None
    lease_ends: Instant | None = None
    evidence: Evidence | None = None

    @property
    def grant_open(self) -> bool:
        """A reader may read, renew and confirm."""
        return self.phase is SourcePhase.PUBLISHED or self.phase is SourcePhase.EXPOSED

    @property
    def ended(self) -> bool:
        """Nothing is held any more; what is left is a tombstone."""
        return self.phase is SourcePhase.RELEASED or self.phase is SourcePhase.EXPIRED


class DestinationHandoff(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A consumer's side. `epoch` is of the assignment of its own blocks; `grant_epoch` is the producer's.

    Invariants: `grant` and `grant_epoch` are set from RECEIVING on; INSTALLED only with `verified` and the owner's
    confirmation of `grant_epoch` (I1, I9).
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
    phase: DestinationPhase = DestinationPhase.RESERVED
    outcome: LogicalOutcome = LogicalOutcome.PENDING
    access: PhysicalAccess = PhysicalAccess.UNEXPOSED
    grant: GrantId | None = None
    grant_epoch: Epoch | None = None
    verified: bool = False
    evidence: Evidence | None = None

    @property
    def ended(self) -> bool:
        """Nothing is held any more; what is left is a tombstone."""
        return self.phase is DestinationPhase.RELEASED
