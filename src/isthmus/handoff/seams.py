"""What an engine implements to take part, and what a consumer needs of a producer. Protocols only."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from isthmus.core.ids import BlockId, Digest, HandoffId, RegionId
from isthmus.core.units import Duration
from isthmus.handoff.orders import (
    AbortOrder,
    ConfirmOrder,
    ConfirmReply,
    PrefillOrder,
    PrefillReply,
    RegisterOrder,
    RenewOrder,
    WrittenOrder,
)
from isthmus.handoff.request import Request
from isthmus.kernels.report import Verified
from isthmus.state.identity import Identity
from isthmus.state.plan import TransformPlan
from isthmus.state.runtime_kv_state import KVRepresentation, Residency, RuntimeKVState

__all__ = [
    "BlockStore",
    "Engine",
    "KVReader",
    "KVWriter",
    "OnFilled",
    "Prefilled",
    "PrefixWriter",
    "Producer",
    "WatchFill",
]

OnFilled = Callable[[int], None]
"""Told, on the event loop, that the KV of the first so many tokens is filled and will not change."""


class Engine(Protocol):
    """What both sides say of themselves; fixed for the engine's life."""

    @property
    def identity(self) -> Identity: ...
    @property
    def representation(self) -> KVRepresentation: ...
    @property
    def residency(self) -> Residency: ...
    @property
    def context_length(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefilled:
    """A finished prefill: the token sampled after it, and the logical digest of each layer group's KV as filled.

    `token_digests` are the same by group and token, from an engine that can begin behind a prefix.
    """

    token: int
    finish_reason: str | None
    digests: tuple[Digest, ...]
    prefill_ms: float
    token_digests: tuple[tuple[Digest, ...], ...] = ()


class KVWriter(Engine, Protocol):
    """The producer's engine."""

    async def prefill(self, handoff: HandoffId, request: Request, blocks: Sequence[BlockId]) -> Prefilled:
        """Fill `blocks` with the KV of all the request's tokens, and sample one token."""
        ...

    async def stop_prefill(self, handoff: HandoffId) -> None:
        """Return once the engine touches the hand-off's blocks no more: that is drain evidence."""
        ...


class PrefixWriter(KVWriter, Protocol):
    """A producer's engine that can begin behind a prefix whose KV lies in its blocks."""

    async def prefill_from(
        self, handoff: HandoffId, request: Request, blocks: Sequence[BlockId], *, computed_tokens: int
    ) -> Prefilled:
        """As `prefill`, but the KV of the first `computed_tokens` is in `blocks`: it is read and not written.

        Digests are of the tokens from there on.
        """
        ...


class WatchFill(Protocol):
    """The producer's engine, where it fills step by step and says how far it is."""

    def watch_fill(self, handoff: HandoffId, on_filled: OnFilled) -> None:
        """Call `on_filled` as the prefill of this hand-off, which begins next, goes on."""
        ...


class BlockStore(Engine, Protocol):
    """An engine's blocks as bytes, to be kept elsewhere and brought back."""

    @property
    def block_bytes(self) -> int: ...

    def take_block(self, block: BlockId, into: memoryview) -> None:
        """Copy a whole block as stored, `block_bytes` of it; nobody writes to it meanwhile."""
        ...

    def put_block(self, block: BlockId, data: memoryview) -> None:
        """Write a whole block that no step reads yet. From any thread; afterwards `data` is read no more."""
        ...

    def host_memory(self, size_bytes: int) -> memoryview:
        """Writable memory outside of the pool, to keep blocks in; pinned, where the pool is on an accelerator.

        Raises:
            ConfigInvalid: there is not so much.
        """
        ...


class KVReader(Engine, Protocol):
    """The consumer's engine."""

    async def convert(
        self,
        plans: Sequence[TransformPlan],
        state: RuntimeKVState,
        image: Mapping[RegionId, memoryview],
        blocks: Sequence[BlockId],
    ) -> tuple[Verified, ...]:
        """Rewrite a pool image of `state` into `blocks` and verify, group by group.

        When it returns or raises, also when cancelled, it writes no more: that is drain evidence.

        Raises:
            DigestMismatch, ConversionOutOfBounds: the bytes are in doubt.
        """
        ...


class Producer(Protocol):
    """The producer as the consumer sees it. Each raises DeadlineExceeded where no answer has come within `deadline`."""

    async def prefill(self, order: PrefillOrder, deadline: Duration) -> PrefillReply: ...
    async def register(self, order: RegisterOrder, deadline: Duration) -> None: ...
    async def written(self, order: WrittenOrder, deadline: Duration) -> None: ...
    async def confirm(self, order: ConfirmOrder, deadline: Duration) -> ConfirmReply: ...
    async def renew(self, order: RenewOrder, deadline: Duration) -> None: ...
    async def abort(self, order: AbortOrder, deadline: Duration) -> None: ...
