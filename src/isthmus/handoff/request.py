"""A request as it crosses: token ids, how to sample, and how far it has come."""

from typing import Annotated

from msgspec import Meta

from isthmus.core.ids import RequestId, TenantId
from isthmus.core.limits import TOKENS_PER_REQUEST_MAX
from isthmus.state.structs import Name, WireStruct, require

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
        require(1 <= self.max_tokens <= TOKENS_PER_REQUEST_MAX, "max_tokens", self.max_tokens, "1 or more")
        require(0.0 <= self.temperature <= 2.0, "temperature", self.temperature, "0 to 2")
        require(0.0 < self.top_p <= 1.0, "top_p", self.top_p, "more than 0, up to 1")
        require(0 <= self.seed < 1 << 63, "seed", self.seed, "0 to 2**63 - 1")


class Request(WireStruct, frozen=True, kw_only=True):
    """`token_ids` is the prompt and then the `sampled` tokens that an earlier attempt has already sent."""

    request_id: Name
    attempt: Annotated[int, Meta(ge=0)]
    tenant: Name
    token_ids: Annotated[tuple[TokenId, ...], Meta(min_length=1, max_length=TOKENS_PER_REQUEST_MAX)]
    sampling: Sampling
    sampled: Annotated[int, Meta(ge=0)] = 0

    def __post_init__(self) -> None:
        require(
            self.sampled < self.sampling.max_tokens,
            "sampled",
            self.sampled,
            f"below max_tokens = {self.sampling.max_tokens}",
        )

    @property
    def tokens_max(self) -> int:
        """The longest this request's KV can become: its tokens and all that may still be sampled."""
        return len(self.token_ids) + self.sampling.max_tokens - self.sampled

    def id(self) -> RequestId:
        return RequestId(self.request_id)

    def tenant_id(self) -> TenantId:
        return TenantId(self.tenant)
