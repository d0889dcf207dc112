"""What can happen to a hand-off. Time comes in as `now`; nothing here reads a clock.

Events whose docstring says *peer's* come from another process: they can be lost, repeated, late or forged, and are
answered, never trusted. All others come from our own code: one that cannot be is a `Bug`.
"""

import msgspec

from isthmus.core.clock import Instant
from isthmus.core.ids import BlockId, Epoch, GrantId, HandoffId, Incarnation, TenantId, WorkerId
from isthmus.core.units import Duration
from isthmus.ownership.protocol.drain import Evidence, TransportKind
from isthmus.ownership.protocol.states import LogicalOutcome, TriggerMode

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
    "Expose",
    "Fence",
    "Finish",
    "Install",
    "PeerLost",
    "PeerReincarnated",
    "Publish",
    "ReadSeen",
    "Register",
    "Renew",
    "ReserveDestination",
    "ReserveSource",
    "Sent",
    "SourceEvent",
    "Submit",
    "VerifyBad",
    "VerifyOk",
    "WriteSeen",
    "Written",
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


class PeerReincarnated(_Event, frozen=True, kw_only=True, gc=False):
    """The registry knows a new life of this worker. It answers for none of the old one's hand-offs; its coming proves
    nothing about who still touches the blocks.
    """

    worker: WorkerId
    incarnation: Incarnation


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
    mode: TriggerMode = TriggerMode.PULL


class Complete(_Event, frozen=True, kw_only=True, gc=False):
    """The engine has filled the blocks and touches them no more."""


class Publish(_Event, frozen=True, kw_only=True, gc=False):
    """Start the lease. Under pull: open the grant. Under push and send: begin to write into what is registered."""

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


class Register(_Event, frozen=True, kw_only=True, gc=False):
    """Peer's, push and send: the holder has memory ready, to be written under this grant of its own."""

    grant: GrantId
    epoch: Epoch
    holder: WorkerId
    holder_incarnation: Incarnation


class Sent(_Event, frozen=True, kw_only=True, gc=False):
    """Push and send: our own transfer has ended, all bytes written (`ok`) or not, and touches the blocks no more."""

    ok: bool


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
    mode: TriggerMode = TriggerMode.PULL
    num_parts: int = 1


class Submit(_Event, frozen=True, kw_only=True, gc=False):
    """An offer of one part has been accepted and its read begins. `tenant` is what the offer says."""

    tenant: TenantId
    grant: GrantId
    epoch: Epoch
    part: int = 0


class Expose(_Event, frozen=True, kw_only=True, gc=False):
    """Push and send: open a grant for each part to the producer, for `lease`."""

    now: Instant
    grants: tuple[GrantId, ...]
    lease: Duration


class WriteSeen(_Event, frozen=True, kw_only=True, gc=False):
    """Peer's: the producer writes. It is alive, and may go on for at least `lease`."""

    now: Instant
    grant: GrantId
    epoch: Epoch
    writer: WorkerId
    lease: Duration
    part: int = 0


class Written(_Event, frozen=True, kw_only=True, gc=False):
    """Peer's: "my last byte is out and I write no more". `evidence`: what else shows that it has arrived.

    `tenant` is what the offer that comes with it says.
    """

    now: Instant
    grant: GrantId
    epoch: Epoch
    writer: WorkerId
    writer_incarnation: Incarnation
    tenant: TenantId
    evidence: Evidence
    part: int = 0


class Arrived(_Event, frozen=True, kw_only=True, gc=False):
    """Pull: the last byte of a part has arrived in staging."""

    part: int = 0


class ConvertDone(_Event, frozen=True, kw_only=True, gc=False):
    """The conversion of a part into our blocks has ended."""

    part: int = 0


class VerifyOk(_Event, frozen=True, kw_only=True, gc=False):
    """A part's digests and bounds hold."""

    part: int = 0


class VerifyBad(_Event, frozen=True, kw_only=True, gc=False):
    """They do not."""

    part: int = 0


class Confirmed(_Event, frozen=True, kw_only=True, gc=False):
    """Pull, peer's: the owner of a part says yes, at `epoch`."""

    epoch: Epoch
    part: int = 0


class ConfirmRefused(_Event, frozen=True, kw_only=True, gc=False):
    """Pull, peer's: the owner of a part says no."""


class Install(_Event, frozen=True, kw_only=True, gc=False):
    """Push and send: commit. We own the epoch that was written, so nobody else is asked."""


class Doubt(_Event, frozen=True, kw_only=True, gc=False):
    """Our own transfer could neither be completed nor be shown to have stopped."""


class Finish(_Event, frozen=True, kw_only=True, gc=False):
    """Decode has ended and touches the blocks no more."""


SourceEvent = (
    ReserveSource
    | Register
    | Sent
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
    | PeerReincarnated
    | Fence
)
DestinationEvent = (
    ReserveDestination
    | Submit
    | Expose
    | WriteSeen
    | Written
    | Install
    | Expire
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
    | PeerReincarnated
    | Fence
)
