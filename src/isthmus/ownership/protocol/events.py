"""What can happen to a hand-off. Time comes in as `now`; nothing here reads a clock.

Events whose docstring says *peer's* come from another process: they can be lost, repeated, late or forged, and are
answered, never trusted. All others come from our own code: one that cannot be is a `Bug`.
"""

import msgspec

from isthmus.core.clock import Instant
from isthmus.core.ids import BlockId, Epoch, GrantId, HandoffId, Incarnation, TenantId, WorkerId
from isthmus.core.units import Duration
from isthmus.ownership.protocol.drain import Evidence, TransportKind
from isthmus.ownership.protocol.states import LogicalOutcome

__all__ = [
    "Abandon",
    "Abort",
    "Arrived",
    "Complete",
    "Confirm",
    "ConfirmRefused",
    "Confirmed",
    "ConvertDone",
    "DestinationEvent",
    "Doubt",
    "Drained",
    "Expire",
    "Fence",
    "Finish",
    "PeerLost",
    "Publish",
    "ReadSeen",
    "Renew",
    "ReserveDestination",
    "ReserveSource",
    "SourceEvent",
    "Submit",
    "VerifyBad",
    "VerifyOk",
]


class _Event(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Base of events."""


# both sides


class Abort(_Event, frozen=True, kw_only=True, gc=False):
    """Our own side gives the hand-off up, as `outcome`: failed or cancelled."""

    outcome: LogicalOutcome


class Drained(_Event, frozen=True, kw_only=True, gc=False):
    """`evidence` has come that the blocks are touched no more: by our engine, or by whoever had access."""

    evidence: Evidence


class PeerLost(_Event, frozen=True, kw_only=True, gc=False):
    """The registry or a transport reports an incarnation lost; `evidence` says how much is proven."""

    worker: WorkerId
    incarnation: Incarnation
    evidence: Evidence


class Fence(_Event, frozen=True, kw_only=True, gc=False):
    """Our own incarnation has been fenced: it may grant, confirm and install nothing more."""


# source


class ReserveSource(_Event, frozen=True, kw_only=True, gc=False):
    """The ledger has assigned `blocks` under `epoch`; the engine may fill them."""

    handoff: HandoffId
    holder: WorkerId
    holder_incarnation: Incarnation
    tenant: TenantId
    transport: TransportKind
    sole_tenant: bool
    blocks: tuple[BlockId, ...]
    epoch: Epoch


class Complete(_Event, frozen=True, kw_only=True, gc=False):
    """The engine has filled the blocks and touches them no more."""


class Publish(_Event, frozen=True, kw_only=True, gc=False):
    """Open the grant and start the lease."""

    now: Instant
    grant: GrantId
    lease: Duration


class ReadSeen(_Event, frozen=True, kw_only=True, gc=False):
    """Peer's: the holder reads."""

    now: Instant
    grant: GrantId
    epoch: Epoch
    reader: WorkerId


class Renew(_Event, frozen=True, kw_only=True, gc=False):
    """Peer's: the holder is alive and wants the lease to last at least `lease` from now."""

    now: Instant
    grant: GrantId
    epoch: Epoch
    holder: WorkerId
    holder_incarnation: Incarnation
    lease: Duration


class Confirm(_Event, frozen=True, kw_only=True, gc=False):
    """Peer's: "my last byte has arrived and I read no more; are you still the owner at this epoch?"."""

    now: Instant
    grant: GrantId
    epoch: Epoch
    holder: WorkerId
    holder_incarnation: Incarnation


class Abandon(_Event, frozen=True, kw_only=True, gc=False):
    """Peer's: the holder does not want the KV, and reads no more."""

    holder: WorkerId
    holder_incarnation: Incarnation


class Expire(_Event, frozen=True, kw_only=True, gc=False):
    """The reaper found the lease over at `now`."""

    now: Instant


# destination


class ReserveDestination(_Event, frozen=True, kw_only=True, gc=False):
    """The ledger has assigned `blocks` under `epoch` and `staging_bytes` of staging."""

    handoff: HandoffId
    producer: WorkerId
    producer_incarnation: Incarnation
    tenant: TenantId
    transport: TransportKind
    blocks: tuple[BlockId, ...]
    staging_bytes: int
    epoch: Epoch


class Submit(_Event, frozen=True, kw_only=True, gc=False):
    """An offer has been accepted and the read begins. `tenant` is what the offer says."""

    tenant: TenantId
    grant: GrantId
    epoch: Epoch


class Arrived(_Event, frozen=True, kw_only=True, gc=False):
    """The last byte has arrived in staging."""


class ConvertDone(_Event, frozen=True, kw_only=True, gc=False):
    """The conversion into our blocks has ended."""


class VerifyOk(_Event, frozen=True, kw_only=True, gc=False):
    """Digests and bounds hold."""


class VerifyBad(_Event, frozen=True, kw_only=True, gc=False):
    """They do not."""


class Confirmed(_Event, frozen=True, kw_only=True, gc=False):
    """Peer's: the owner says yes, at `epoch`."""

    epoch: Epoch


class ConfirmRefused(_Event, frozen=True, kw_only=True, gc=False):
    """Peer's: the owner says no."""


class Doubt(_Event, frozen=True, kw_only=True, gc=False):
    """Our own transfer could neither be completed nor be shown to have stopped."""


class Finish(_Event, frozen=True, kw_only=True, gc=False):
    """Decode has ended and touches the blocks no more."""


SourceEvent = (
    ReserveSource
    | Complete
    | Publish
    | ReadSeen
    | Renew
    | Confirm
    | Abandon
    | Expire
    | Abort
    | Drained
    | PeerLost
    | Fence
)
DestinationEvent = (
    ReserveDestination
    | Submit
    | Arrived
    | ConvertDone
    | VerifyOk
    | VerifyBad
    | Confirmed
    | ConfirmRefused
    | Doubt
    | Finish
    | Abort
    | Drained
    | PeerLost
    | Fence
)
