"""What consumer and producer say to each other. These are the wire messages, and the arguments in one process too."""

from typing import Annotated

from msgspec import Meta

from isthmus.core.limits import MANIFEST_BYTES_MAX, TOKENS_PER_REQUEST_MAX
from isthmus.handoff.request import Request, TokenId
from isthmus.state.structs import GrantToken, Name, Token, WireStruct

__all__ = ["AbortOrder", "Ack", "ConfirmOrder", "ConfirmReply", "PrefillOrder", "PrefillReply", "RenewOrder"]


class PrefillOrder(WireStruct, frozen=True, kw_only=True, tag="prefill"):
    """Fill KV for a request's tokens, sample the next one, and offer the KV to `holder`, which has reserved for it.

    The holder has the KV of the first `have_tokens` already: what is offered begins there.
    """

    handoff: Token
    holder: Name
    holder_incarnation: Token
    request: Request
    have_tokens: Annotated[int, Meta(ge=0, lt=TOKENS_PER_REQUEST_MAX)] = 0


class PrefillReply(WireStruct, frozen=True, kw_only=True, tag="prefilled"):
    """The next token, and the offer; there is none where that token ended the answer (`finish_reason`).

    The KV of the first `reused_tokens` was not computed for it, but kept from an earlier prompt.
    """

    token: TokenId
    finish_reason: Annotated[str, Meta(pattern=r"^(stop|length)\Z")] | None
    manifest: Annotated[bytes, Meta(max_length=MANIFEST_BYTES_MAX)]
    prefill_ms: float
    reused_tokens: Annotated[int, Meta(ge=0)] = 0


class ConfirmOrder(WireStruct, frozen=True, kw_only=True, tag="confirm"):
    """My last byte has arrived and I read no more: are you still the owner at this epoch? Yes also releases."""

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
