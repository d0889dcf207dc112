"""A request as it crosses: token ids, how to sample, and how far it has come."""

from typing import Annotated

import msgspec
from msgspec import Meta

from isthmus.core.ids import RequestId, TenantId
from isthmus.core.limits import TOKENS_PER_REQUEST_MAX
from isthmus.core.units import TokenCount
from isthmus.state.structs import NAME, WireStruct, refuse
from isthmus.state.tokens import TOKEN_BYTES, unpack_tokens, well_packed

__all__ = ["Request", "Sampling", "TokenId"]

TokenId = Annotated[int, Meta(ge=0, lt=1 << 31)]


class Sampling(WireStruct, frozen=True, kw_only=True):
    """How tokens are chosen. `temperature` 0 is greedy. A token is a pure function of logits, `seed` and its index.

    `max_tokens` counts all tokens of the answer, those sampled on an earlier worker included.
    """

    max_tokens: Annotated[int, Meta(ge=1, le=TOKENS_PER_REQUEST_MAX)] = 16
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] = 0.0
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0
    seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] = 0
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.max_tokens <= TOKENS_PER_REQUEST_MAX:
            refuse("max_tokens", self.max_tokens, "1 or more")
        if not 0.0 <= self.temperature <= 2.0:
            refuse("temperature", self.temperature, "0 to 2")
        if not 0.0 < self.top_p <= 1.0:
            refuse("top_p", self.top_p, "more than 0, up to 1")
        if not 0 <= self.seed < 1 << 63:
            refuse("seed", self.seed, "0 to 2**63 - 1")


class Request(WireStruct, frozen=True, kw_only=True):
    """`tokens` is the prompt and then the `sampled` tokens that an earlier attempt has already sent, packed
    (`state.tokens`). On the wire it is `token_ids`.
    """

    request_id: Annotated[RequestId, NAME]
    attempt: Annotated[int, Meta(ge=0)]
    tenant: Annotated[TenantId, NAME]
    tokens: Annotated[bytes, Meta(min_length=TOKEN_BYTES, max_length=TOKEN_BYTES * TOKENS_PER_REQUEST_MAX)] = (
        msgspec.field(name="token_ids")
    )
    sampling: Sampling
    sampled: Annotated[int, Meta(ge=0)] = 0

    def __post_init__(self) -> None:
        if not well_packed(self.tokens):
            refuse("token_ids", f"{len(self.tokens)} bytes", "32-bit words, each below 2**31")
        if not self.sampled < self.sampling.max_tokens:
            refuse("sampled", self.sampled, f"below max_tokens = {self.sampling.max_tokens}")

    @property
    def tokens_max(self) -> int:
        """The longest this request's KV can become: its tokens and all that may still be sampled."""
        return self.num_tokens + self.sampling.max_tokens - self.sampled

    @property
    def num_tokens(self) -> TokenCount:
        return TokenCount(len(self.tokens) // TOKEN_BYTES)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Unpacked anew each time: for engines, and whoever else looks at single ids."""
        return unpack_tokens(self.tokens)
