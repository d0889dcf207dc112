"""The embedded engine on either side of a hand-off: `handoff.seams.KVWriter` and `KVReader`.

Hand-off ids are the engine's request ids. Conversions run in a thread of their own, beside the engine's steps: they
write blocks that no step reads, because a request is given to the engine only after its commit.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from isthmus.core.clock import Clock, Instant, SystemClock
from isthmus.core.errors import ConfigInvalid, Lost, TransferFailed
from isthmus.core.ids import BlockId, Digest, HandoffId, RegionId, RequestId
from isthmus.core.waiting import in_thread
from isthmus.engines.embedded.config import EmbeddedConfig
from isthmus.engines.embedded.engine import EmbeddedEngine
from isthmus.engines.embedded.lender import lender_of
from isthmus.engines.embedded.request import EngineRequest, StepOutput
from isthmus.engines.embedded.runner import AsyncEngine
from isthmus.handoff.request import Request
from isthmus.handoff.seams import OnFilled, Prefilled
from isthmus.kernels.binding import bind
from isthmus.kernels.report import Verified
from isthmus.kernels.torch_digest import warm_up
from isthmus.kernels.torch_execute import execute
from isthmus.state.identity import Identity
from isthmus.state.plan import TransformPlan
from isthmus.state.runtime_kv_state import KVRepresentation, Residency, RuntimeKVState
from isthmus.transport.base import Lender

__all__ = ["Decoded", "EmbeddedKV"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """A token of an answer, its number in it, and the reason where it is the last."""

    index: int
    token: int
    finish_reason: str | None


class EmbeddedKV:
    """One engine, its thread, and its pool as a hand-off sees them."""

    def __init__(self, engine: EmbeddedEngine, clock: Clock) -> None:
        self._engine = engine
        self._async = AsyncEngine(engine)
        self._clock = clock
        self._converting = ThreadPoolExecutor(max_workers=1, thread_name_prefix="isthmus-convert")
        self.lender: Lender = lender_of(engine.pool)
        self._following: dict[HandoffId, OnFilled] = {}

    @classmethod
    def build(cls, config: EmbeddedConfig, allocate: Callable[[int], Any] | None = None) -> Self:
        """Load the model and allocate the pool; `allocate` is a transport's where the pool is to be shared.

        Raises:
            ConfigInvalid, Unsupported: as `EmbeddedEngine.create`.
        """
        engine = EmbeddedEngine.create(config) if allocate is None else EmbeddedEngine.create(config, allocate=allocate)
        warm_up(engine.pool.device)
        return cls(engine, SystemClock())

    @property
    def identity(self) -> Identity:
        return self._engine.model.identity

    @property
    def representation(self) -> KVRepresentation:
        return self._engine.pool.representation

    @property
    def residency(self) -> Residency:
        tier = "host" if self._engine.pool.device.type == "cpu" else "device"
        return Residency(tier=tier, num_blocks=self._engine.pool.num_blocks)

    @property
    def context_length(self) -> int:
        return self._engine.model.context_length

    @property
    def block_bytes(self) -> int:
        """What one block takes, over all regions."""
        return self._engine.pool.block_bytes

    def host_memory(self, size_bytes: int) -> memoryview:
        """As `BlockStore.host_memory`."""
        pinned = self._engine.pool.device.type == "cuda"
        try:
            memory = torch.empty(size_bytes, dtype=torch.uint8, pin_memory=pinned)
        except RuntimeError as error:
            raise ConfigInvalid(
                f"prefix_caching.host_bytes_max: {size_bytes} bytes of {'pinned ' if pinned else ''}host memory cannot "
                f"be had: {error}",
                field="host_bytes_max",
            ) from None
        return memory.numpy().data

    def take_block(self, block: BlockId, into: memoryview) -> None:
        """As `BlockStore.take_block`."""
        self._engine.pool.take_block(block, into)

    def put_block(self, block: BlockId, data: memoryview) -> None:
        """As `BlockStore.put_block`."""
        self._engine.pool.put_block(block, data)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the engine's thread for the body. A step that raises ends the body with what it raised."""
        self._async.start()
        body = asyncio.current_task()
        failed: list[BaseException] = []

        async def watch() -> None:
            failed.append(await self._async.failed())
            if body is not None:
                body.cancel()

        watching = asyncio.create_task(watch())
        try:
            yield
        except asyncio.CancelledError:
            if failed:
                raise failed[0] from None
            raise
        finally:
            watching.cancel()
            await self._async.close()
            self._converting.shutdown(wait=True)

    async def prefill(self, handoff: HandoffId, request: Request, blocks: Sequence[BlockId]) -> Prefilled:
        """As `KVWriter.prefill`. Raises TransferFailed where it was stopped meanwhile."""
        return await self.prefill_from(handoff, request, blocks, computed_tokens=0)

    async def prefill_from(
        self, handoff: HandoffId, request: Request, blocks: Sequence[BlockId], *, computed_tokens: int
    ) -> Prefilled:
        """As `PrefixWriter.prefill_from`. A row does not depend on which step computes it, nor do those after it, so
        what is filled behind a prefix is, bit for bit, what would be filled without one.
        """
        start, on_filled = self._clock.now(), self._following.pop(handoff, None)
        stream = self._async.submit(
            EngineRequest(
                request_id=RequestId(handoff),
                token_ids=request.token_ids,
                sampling=request.sampling,
                block_ids=tuple(blocks),
                computed_tokens=computed_tokens,
                sampled_before=request.sampled,
                stop_after_prefill=True,
                exported=True,
                followed=on_filled is not None,
            )
        )
        async for output in stream:
            if output.prefilled:
                return self._prefilled(output, start)
            if on_filled is not None and output.filled_tokens is not None:
                on_filled(output.filled_tokens)
        raise TransferFailed(f"hand-off {handoff}: its prefill was stopped", field="handoff")

    def _prefilled(self, output: StepOutput, start: Instant) -> Prefilled:
        if output.token is None or output.digest is None:
            raise Lost("prefill: the engine reported no token or no digest", field="digest")
        return Prefilled(
            token=output.token,
            finish_reason=output.finish_reason,
            digests=(output.digest,),
            token_digests=(output.token_digests,),
            prefill_ms=(self._clock.now() - start) / 1e6,
        )

    def watch_fill(self, handoff: HandoffId, on_filled: OnFilled) -> None:
        """As `WatchFill.watch_fill`: told after each step."""
        self._following[handoff] = on_filled

    async def stop_prefill(self, handoff: HandoffId) -> None:
        """As `KVWriter.stop_prefill`."""
        self._following.pop(handoff, None)
        await self._stop(handoff)

    async def stop_decode(self, handoff: HandoffId) -> None:
        """Return once no step touches the hand-off's blocks any more."""
        await self._stop(handoff)

    async def _stop(self, handoff: HandoffId) -> None:
        self._async.abort(RequestId(handoff))
        await self._async.drained(RequestId(handoff))

    async def decode(
        self, handoff: HandoffId, request: Request, token: int, blocks: Sequence[BlockId]
    ) -> AsyncGenerator[Decoded]:
        """Go on after `token`, which prefill sampled; the KV of all before it lies in `blocks`. Call after the commit.

        Raises:
            Lost: the engine failed.
        """
        stream = self._async.submit(
            EngineRequest(
                request_id=RequestId(handoff),
                token_ids=(*request.token_ids, token),
                sampling=request.sampling,
                block_ids=tuple(blocks),
                computed_tokens=request.num_tokens,
                sampled_before=request.sampled + 1,
                start="decode",
            )
        )
        async for output in stream:
            if output.token is None or output.token_index is None:
                raise Lost(f"hand-off {handoff}: its decode was stopped", field="handoff")
            yield Decoded(index=output.token_index, token=output.token, finish_reason=output.finish_reason)

    async def convert(
        self,
        plans: Sequence[TransformPlan],
        state: RuntimeKVState,
        image: Mapping[RegionId, memoryview],
        blocks: Sequence[BlockId],
    ) -> tuple[Verified, ...]:
        """As `KVReader.convert`."""

        def work(_: threading.Event) -> tuple[Verified, ...]:
            with torch.inference_mode():
                return tuple(self._convert(plan, state, image, blocks) for plan in plans)

        return await in_thread(self._converting, work)

    def _convert(
        self,
        plan: TransformPlan,
        state: RuntimeKVState,
        image: Mapping[RegionId, memoryview],
        blocks: Sequence[BlockId],
    ) -> Verified:
        offered, pool = state.groups[plan.producer_group], self._engine.pool
        crossed = len(offered.block_ids)
        binding = bind(
            plan,
            state.token_range,
            producer_blocks=range(crossed),  # an image holds the blocks in token order
            producer_num_blocks=crossed,
            consumer_blocks=blocks,
            consumer_num_blocks=pool.num_blocks,
        )
        return execute(
            plan,
            binding,
            self._staged(plan, image),
            self._regions(),
            offered=Digest(offered.logical_digest),
        )

    def _staged(self, plan: TransformPlan, image: Mapping[RegionId, memoryview]) -> list[list[Tensor]]:
        """The image's regions by [rank][region], on the pool's device."""
        return [
            [
                torch.frombuffer(image[region.id], dtype=torch.uint8).to(self._engine.pool.device)
                for region in shard.regions
            ]
            for shard in plan.producer_shards
        ]

    def _regions(self) -> list[list[Tensor]]:
        """The pool's regions by [rank][region]."""
        pool = self._engine.pool
        by_id = {region.id: region.data for region in pool.regions}
        return [[by_id[region.id] for region in shard.regions] for shard in pool.representation.address()[0]]
