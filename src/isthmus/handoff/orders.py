"""What consumer and producer say to each other. These are the wire messages, and the arguments in one process too."""

from typing import Annotated

from msgspec import Meta

from isthmus.core.ids import Epoch, GrantId
from isthmus.core.limits import MANIFEST_BYTES_MAX, TOKENS_PER_REQUEST_MAX
from isthmus.handoff.request import Request, TokenId
from isthmus.ownership.protocol.states import TriggerMode
from isthmus.state.structs import GrantToken, Name, Token, WireStruct

__all__ = [
    "AbortOrder",
    "Ack",
    "ConfirmOrder",
    "ConfirmReply",
    "PrefillOrder",
    "PrefillReply",
    "RegisterOrder",
    "Registration",
    "RenewOrder",
    "WrittenOrder",
]


class Registration(WireStruct, frozen=True, kw_only=True):
    """Memory of a consumer's that is ready to be written under `grant`, by the transport of this name.

    Its shape follows from what is offered, and where it is from the registry.
    """

    grant: GrantToken
    epoch: Annotated[int, Meta(ge=1)]
    transport: Name

    def grant_id(self) -> GrantId:
        return GrantId(self.grant)

    def fence(self) -> Epoch:
        return Epoch(self.epoch)


class PrefillOrder(WireStruct, frozen=True, kw_only=True, tag="prefill"):
    """Fill KV for a request's tokens, sample the next one, and offer the KV to `holder`, which has reserved for it.

    The holder has the KV of the first `have_tokens` already: what is offered begins there. Under push it registers
    memory to be written by an order of its own; under send with this one.
    """

    handoff: Token
    holder: Name
    holder_incarnation: Token
    request: Request
    have_tokens: Annotated[int, Meta(ge=0, lt=TOKENS_PER_REQUEST_MAX)] = 0
    mode: TriggerMode = TriggerMode.PULL
    registration: Registration | None = None


class PrefillReply(WireStruct, frozen=True, kw_only=True, tag="prefilled"):
    """The next token, and the offer; there is none where that token ended the answer (`finish_reason`).

    The KV of the first `reused_tokens` was not computed for it, but kept from an earlier prompt.
    """

    token: TokenId
    finish_reason: Annotated[str, Meta(pattern=r"^(stop|length)\Z")] | None
    manifest: Annotated[bytes, Meta(max_length=MANIFEST_BYTES_MAX)]
    prefill_ms: float
    reused_tokens: Annotated[int, Meta(ge=0)] = 0


class RegisterOrder(WireStruct, frozen=True, kw_only=True, tag="register"):
    """Push: write here once you have filled. May come before or after the order to prefill, and counts once."""

    handoff: Token
    holder: Name
    holder_incarnation: Token
    registration: Registration


class WrittenOrder(WireStruct, frozen=True, kw_only=True, tag="written"):
    """Push and send: answer when your last byte is in my memory and you write no more."""

    handoff: Token
    holder: Name
    holder_incarnation: Token


class ConfirmOrder(WireStruct, frozen=True, kw_only=True, tag="confirm"):
    """My last byte has arrived and I read no more: are you still the owner at this epoch? Yes also releases.

    Where it was written and not read: I have installed it.
    """

    grant: GrantToken
    epoch: int
    holder: Name
    holder_incarnation: Token


class ConfirmReply(WireStruct, frozen=True, kw_only=True, tag="confirmed"):
    """Yes, at this epoch; and the blocks are free from now on."""

    epoch: int


class RenewOrder(WireStruct, frozen=True, kw_only=True, tag="renew"):
    """I am still reading: begin the lease anew. Never shortens it."""

    grant: GrantToken
    epoch: int
    holder: Name
    holder_incarnation: Token


class AbortOrder(WireStruct, frozen=True, kw_only=True, tag="abort_handoff"):
    """I do not want this any more and read nothing of it from now on."""

    handoff: Token
    holder: Name
    holder_incarnation: Token


class Ack(WireStruct, frozen=True, kw_only=True, tag="ack"):
    """Done."""
