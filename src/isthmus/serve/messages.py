"""Everything that processes say to each other. Parsed by msgspec: unknown fields and types are refused.

worker  → gateway   Hello, then posts: TokenEvent, HandoffReport, Pulse
gateway → worker    Welcome; Generate, CancelRequest, SnapshotOrder; posts: Members, Fenced, Pulse
consumer → producer PeerHello; then the orders of `handoff.orders`
"""

from typing import Annotated

from msgspec import Meta

from isthmus.core.limits import HANDOFFS_SHOWN_MAX, NAME_CHARS_MAX, TP_SIZE_MAX, WORKERS_MAX
from isthmus.handoff.orders import (
    AbortOrder,
    Ack,
    ConfirmOrder,
    ConfirmReply,
    PrefillOrder,
    PrefillReply,
    RegisterOrder,
    RenewOrder,
    WrittenOrder,
)
from isthmus.handoff.request import Request, TokenId
from isthmus.serve.processes import ProcessIdentity
from isthmus.state.assumption import Assumption
from isthmus.state.identity import Identity
from isthmus.state.manifest import SCHEMA_VERSION, SCHEMA_VERSIONS_SPOKEN
from isthmus.state.runtime_kv_state import KVRepresentation
from isthmus.state.structs import Name, Token, WireStruct
from isthmus.transport.base import Endpoint

__all__ = [
    "LARGE",
    "CancelRequest",
    "Failure",
    "Fenced",
    "Generate",
    "HandoffReport",
    "Hello",
    "Member",
    "Members",
    "Message",
    "PeerHello",
    "Pulse",
    "Snapshot",
    "SnapshotOrder",
    "TokenEvent",
    "Welcome",
]

Role = Annotated[str, Meta(pattern=r"^(prefill|decode)\Z")]
Port = Annotated[int, Meta(ge=0, le=65535)]
Text = Annotated[str, Meta(max_length=4096)]


class Member(WireStruct, frozen=True, kw_only=True):
    """A worker as the registry knows it: one life, what it holds, where it is reached, and by what it reads.

    `endpoints` is where its KV can be read, `imports` where KV can be written to it.
    """

    worker: Name
    incarnation: Token
    role: Role
    process: ProcessIdentity
    identity: Identity
    representation: KVRepresentation
    num_blocks: int
    context_length: int
    host: Annotated[str, Meta(max_length=NAME_CHARS_MAX)]
    port: Port
    endpoints: Annotated[tuple[Endpoint, ...], Meta(max_length=TP_SIZE_MAX)]
    imports: Annotated[tuple[Endpoint, ...], Meta(max_length=TP_SIZE_MAX)] = ()
    schema_versions: Annotated[tuple[int, ...], Meta(min_length=1, max_length=16)] = SCHEMA_VERSIONS_SPOKEN
    transports: Annotated[tuple[Name, ...], Meta(max_length=TP_SIZE_MAX)]


class Hello(WireStruct, frozen=True, kw_only=True, tag="hello"):
    """A worker registers."""

    member: Member
    schema_versions: Annotated[tuple[int, ...], Meta(min_length=1, max_length=16)]


class Welcome(WireStruct, frozen=True, kw_only=True, tag="welcome"):
    """The worker is in. `heartbeat_ms`: how often each side says something; silence for `timeout_ms` is death."""

    schema_version: int
    heartbeat_ms: int
    timeout_ms: int


class Members(WireStruct, frozen=True, kw_only=True, tag="members"):
    """All workers there are now."""

    members: Annotated[tuple[Member, ...], Meta(max_length=WORKERS_MAX)]


class Fenced(WireStruct, frozen=True, kw_only=True, tag="fenced"):
    """This life of this worker is over, whether it knows or not: it will never be a member again."""

    worker: Name
    incarnation: Token


class PeerHello(WireStruct, frozen=True, kw_only=True, tag="peer_hello"):
    """A consumer introduces itself to a producer, says which life of it it means, and which version it will speak."""

    worker: Name
    incarnation: Token
    to: Name
    to_incarnation: Token
    version: int = SCHEMA_VERSION


class Pulse(WireStruct, frozen=True, kw_only=True, tag="pulse"):
    """A sign of life; a worker's also says how its blocks stand, and, if it takes nothing new, why."""

    blocks: dict[str, int] = {}  # noqa: RUF012 - msgspec copies empty defaults
    unhealthy: Text | None = None


class Generate(WireStruct, frozen=True, kw_only=True, tag="generate"):
    """Answer a request: have `producer` prefill it, take over its KV, decode. Tokens come as posts, in order;
    the answer (Ack) comes after the last of them.
    """

    request: Request
    producer: Name
    producer_incarnation: Token


class TokenEvent(WireStruct, frozen=True, kw_only=True, tag="token"):
    """Token number `index` of a request's answer, of this attempt. The last one says why it is the last."""

    request_id: Name
    attempt: int
    index: int
    token: TokenId
    finish_reason: Annotated[str, Meta(pattern=r"^(stop|length)\Z")] | None = None


class CancelRequest(WireStruct, frozen=True, kw_only=True, tag="cancel"):
    """Nobody waits for this any more."""

    request_id: Name
    attempt: int


class HandoffReport(WireStruct, frozen=True, kw_only=True, tag="handoff_report"):
    """One hand-off that was installed, for metrics and for people.

    Of `tokens`, the producer had kept the KV of `reused_tokens` and did not compute it; the consumer had kept that of
    `have_tokens`, `have_bytes` as the producer stores it, and did not read it.
    """

    handoff: Token
    request_id: Name
    attempt: int
    producer: Name
    consumer: Name
    tokens: int
    reused_tokens: int
    have_tokens: int
    have_bytes: int
    wire_bytes: int
    transport: Name
    outcome: Name
    lossless: bool
    fingerprints: tuple[str, ...]
    assumptions: tuple[Assumption, ...]
    producer_digest: str
    consumer_digest: str
    rows_checked: int
    error_max: float
    prefill_ms: float
    stage_ms: dict[str, float]


class SnapshotOrder(WireStruct, frozen=True, kw_only=True, tag="snapshot_order"):
    """Who owns what now? `limit`: rows in each list. `handoff`: only those whose id begins so, with timelines."""

    handoff: Annotated[str, Meta(pattern=r"^[0-9a-f]{0,32}\Z")] = ""
    limit: Annotated[int, Meta(ge=1, le=HANDOFFS_SHOWN_MAX)] = HANDOFFS_SHOWN_MAX


class Snapshot(WireStruct, frozen=True, kw_only=True, tag="snapshot"):
    """JSON text of a worker's ledger and hand-offs. The gateway passes it on and does not act on it."""

    json: bytes


class Failure(WireStruct, frozen=True, kw_only=True, tag="failure"):
    """The answer to a call that failed: an error of `core.errors`, by name."""

    code: Name
    message: Text
    field: Text = ""
    retry_after_ms: float | None = None


Message = (
    Hello
    | Welcome
    | Members
    | Fenced
    | PeerHello
    | Pulse
    | Generate
    | TokenEvent
    | CancelRequest
    | HandoffReport
    | SnapshotOrder
    | Snapshot
    | Failure
    | PrefillOrder
    | PrefillReply
    | RegisterOrder
    | WrittenOrder
    | ConfirmOrder
    | ConfirmReply
    | RenewOrder
    | AbortOrder
    | Ack
)

LARGE = (Generate, PrefillOrder, PrefillReply, Snapshot, Members, Hello)
"""Messages that may exceed `CONTROL_FRAME_BYTES_MAX`, up to `OFFER_BYTES_MAX`."""
