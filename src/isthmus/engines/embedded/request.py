"""What is asked of the engine and what it answers. Imports no torch.

Prefill computes the KV of all of `token_ids` and samples the next token, t1, whose own KV is not computed yet. A decode
start is the same state from the other side: the KV of `token_ids[:-1]` lies in the blocks (somebody installed it), and
the last of `token_ids` is t1. So a prefilled request goes on elsewhere as

    EngineRequest(token_ids=(*prompt, t1), computed_tokens=len(prompt), start="decode", sampled_before=1, ...)
"""

from dataclasses import dataclass, field
from typing import Literal

from isthmus.core.errors import BadInput, IsthmusError
from isthmus.core.ids import Digest, RequestId
from isthmus.handoff.request import Sampling
from isthmus.state.identity import TokenRange

__all__ = ["EngineRequest", "FinishReason", "StepOutput"]

FinishReason = Literal["stop", "length"]


def _require(condition: bool, name: str, got: object, wanted: str) -> None:
    if not condition:
        raise BadInput(f"{name}: got {got!r}, wanted {wanted}", field=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """Tokens, and blocks to compute their KV in.

    token_ids: the prompt, and whatever of the answer is already known.
    block_ids: block i holds tokens [i * block_size, (i+1) * block_size); enough for all KV this engine will compute.
    computed_tokens: KV of token_ids[:computed_tokens] lies in the blocks already.
    sampled_before: tokens of the answer that are already known (the sampler's counter).
    start: "decode" computes the last token's KV only and is scheduled like any decode; "prefill" computes the rest.
    stop_after_prefill: the request leaves the engine with its first token.
    exported: the prefilled rows' logical digest is reported.
    followed: each step that fills a part of the prompt is reported.

    Raises:
        BadInput: a field contradicts another.
    """

    request_id: RequestId
    token_ids: tuple[int, ...]
    sampling: Sampling
    block_ids: tuple[int, ...]
    computed_tokens: int = 0
    sampled_before: int = 0
    start: Literal["prefill", "decode"] = "prefill"
    stop_after_prefill: bool = False
    exported: bool = False
    followed: bool = False

    def __post_init__(self) -> None:
        length = len(self.token_ids)
        _require(length >= 1, "token_ids", length, "at least one token")
        _require(len(set(self.block_ids)) == len(self.block_ids), "block_ids", self.block_ids, "unique ids")
        if self.start == "decode":
            _require(
                self.computed_tokens == length - 1,
                "computed_tokens",
                self.computed_tokens,
                f"{length - 1} for a decode start: all but the last token",
            )
        _require(0 <= self.computed_tokens < length, "computed_tokens", self.computed_tokens, f"0 to {length - 1}")
        _require(
            0 <= self.sampled_before < self.sampling.max_tokens,
            "sampled_before",
            self.sampled_before,
            f"less than max_tokens = {self.sampling.max_tokens}",
        )

    @property
    def tokens_max(self) -> int:
        """Tokens, prompt and answer, that the request can come to."""
        return len(self.token_ids) + self.sampling.max_tokens - self.sampled_before

    @property
    def kv_tokens_max(self) -> int:
        """Tokens whose KV this engine will compute or be given: a request's last token never has any."""
        return len(self.token_ids) if self.stop_after_prefill else self.tokens_max - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutput:
    """What one step did for one request.

    token: the token sampled, or None.
    token_index: its number in the answer, from 0 (the sampler's counter), or None.
    finish_reason: why the answer has ended, or None while it has not (a hand-off goes on elsewhere).
    prefilled: this step computed the last of the prompt's KV.
    done: the request has left the engine, which will not touch its blocks again.
    digest, digest_range: with `prefilled` and an exported request, the logical digest of the KV computed here.
    token_digests: the same by token, so that a part of it can be offered.
    filled_tokens: of a request that is followed, how many tokens of the prompt have KV now.
    error: the request has failed (and is done).
    """

    request_id: RequestId
    token: int | None = None
    token_index: int | None = None
    finish_reason: FinishReason | None = None
    prefilled: bool = False
    done: bool = False
    digest: Digest | None = None
    digest_range: TokenRange | None = None
    token_digests: tuple[Digest, ...] = ()
    filled_tokens: int | None = None
    error: IsthmusError | None = field(default=None)
