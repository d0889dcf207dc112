"""The model on paper as an engine: a pool of real bytes, `handoff.seams.KVWriter` and `KVReader`, and decode.

It works beside its callers, as a real one does: a caller that is cancelled stops nothing. Work ends by itself or, one
step after it was asked to, by `stop_prefill` and `stop_decode`. Before each write the ledger is asked whose block it
is (I2): by the watch, from outside; no rule of the protocol is here.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from isthmus.core.clock import Clock
from isthmus.core.errors import ConversionOutOfBounds, DigestMismatch, Lost, TransferFailed
from isthmus.core.ids import BlockId, HandoffId, RegionId
from isthmus.core.units import ByteCount, Duration, blocks_for
from isthmus.core.waiting import settle
from isthmus.handoff.request import Request
from isthmus.handoff.seams import OnFilled, Prefilled
from isthmus.kernels.report import Verified
from isthmus.lab.seeds.forms import IDENTITY, Form, Rows, converted, decode, digest, encode, table, verdict
from isthmus.lab.seeds.paper import TOKENS_MAX, Values, history, kv, next_token
from isthmus.state.identity import Identity
from isthmus.state.plan import TransformPlan
from isthmus.state.runtime_kv_state import KVRepresentation, Residency, RuntimeKVState
from isthmus.transport.blocks import HostLender

__all__ = ["Decoded", "Pace", "PaperEngine"]

Touches = Callable[[HandoffId, Sequence[BlockId]], None]
"""Told before blocks are written for a hand-off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long a step takes, how many tokens of a prompt it computes, and how many a step of a conversion rewrites."""

    step: Duration
    prefill_tokens: int
    convert_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """A token of an answer, its number in it, and the reason where it is the last."""

    index: int
    token: int
    finish_reason: str | None


class _Work:
    """What the engine does for one hand-off."""

    def __init__(self) -> None:
        self.stop = False
        self.task: asyncio.Task[Prefilled | None] | None = None
        self.tokens: asyncio.Queue[Decoded | None] = asyncio.Queue()


class PaperEngine:
    """One engine and its pool. `touches` hears of every write before it happens."""

    context_length = TOKENS_MAX

    def __init__(self, form: Form, num_blocks: int, clock: Clock, pace: Pace, touches: Touches) -> None:
        self.form = form
        self.num_blocks = num_blocks
        self._clock = clock
        self._pace = pace
        self._touches = touches
        self._work: dict[HandoffId, _Work] = {}
        self._watching: dict[HandoffId, OnFilled] = {}
        self._own = verdict(form, form).plans[0]
        self._table = table(self._own, num_blocks, producer=True)
        regions = [region for shard in self._own.producer_shards for region in shard.regions]
        size = sum(region.size_bytes(num_blocks) for region in regions)
        self.memory: Rows = np.full(size, 0xFF, np.uint8)
        buffers: dict[RegionId, memoryview] = {}
        start, view = 0, self.memory.data
        for region in regions:
            stop = start + region.size_bytes(num_blocks)
            buffers[region.id] = view[start:stop]
            start = stop
        self.block_bytes = size // num_blocks
        self.lender = HostLender(tuple(regions), num_blocks, buffers)

    @property
    def identity(self) -> Identity:
        return IDENTITY

    @property
    def representation(self) -> KVRepresentation:
        return self.form.representation

    @property
    def residency(self) -> Residency:
        return Residency(tier="host", num_blocks=self.num_blocks)

    @property
    def busy(self) -> bool:
        return bool(self._work)

    # the pool

    def write(self, handoff: HandoffId, blocks: Sequence[BlockId], start: int, values: Values) -> Rows:
        """Store the KV of the tokens from `start` on; returns it as stored."""
        slots = self._slots(blocks, start, start + values.shape[2])
        self._touches(
            handoff, blocks[start // self.form.block_size : (start + values.shape[2] - 1) // self.form.block_size + 1]
        )
        rows = encode(values, self.form.storage)
        self.memory[self._table[:, :, slots]] = rows
        return rows

    def read(self, blocks: Sequence[BlockId], tokens: int) -> Values:
        """The KV of a hand-off's first tokens, whatever lies there."""
        return decode(self.memory[self._table[:, :, self._slots(blocks, 0, tokens)]], self.form.storage)

    def _slots(self, blocks: Sequence[BlockId], start: int, stop: int) -> NDArray[np.int64]:
        size = self.form.block_size
        return np.array([blocks[index // size] * size + index % size for index in range(start, stop)], np.int64)

    # the producer's side

    async def prefill(self, handoff: HandoffId, request: Request, blocks: Sequence[BlockId]) -> Prefilled:
        """As `KVWriter.prefill`."""
        work = self._begin(handoff)
        work.task = asyncio.create_task(self._fill(work, handoff, request, tuple(blocks)))
        await asyncio.wait({work.task})
        filled = work.task.result()
        if filled is None:
            raise TransferFailed(f"hand-off {handoff}: its prefill was stopped", field="handoff")
        return filled

    def watch_fill(self, handoff: HandoffId, on_filled: OnFilled) -> None:
        """As `WatchFill.watch_fill`."""
        self._watching[handoff] = on_filled

    async def stop_prefill(self, handoff: HandoffId) -> None:
        """As `KVWriter.stop_prefill`."""
        await self._stop(handoff)

    async def _fill(
        self, work: _Work, handoff: HandoffId, request: Request, blocks: tuple[BlockId, ...]
    ) -> Prefilled | None:
        try:
            numbers = history(request.token_ids)
            filled: list[Rows] = []
            for start in range(0, len(numbers), self._pace.prefill_tokens):
                await self._clock.sleep(self._pace.step)
                values = kv(numbers[start : start + self._pace.prefill_tokens])
                filled.append(self.write(handoff, blocks, start, values))
                if handoff in self._watching:
                    self._watching[handoff](start + values.shape[2])
                if work.stop:
                    return None
            token = next_token(self.read(blocks, len(numbers)), request.sampled)
            last = request.sampled + 1 == request.sampling.max_tokens
            return Prefilled(
                token=token,
                finish_reason="length" if last else None,
                digests=(digest(np.concatenate(filled, axis=2)),),  # of what was filled, not of what lies there now
                prefill_ms=0.0,
            )
        finally:
            del self._work[handoff]
            self._watching.pop(handoff, None)

    # the consumer's side

    async def convert(
        self,
        plans: Sequence[TransformPlan],
        state: RuntimeKVState,
        image: Mapping[RegionId, memoryview],
        blocks: Sequence[BlockId],
    ) -> tuple[Verified, ...]:
        """As `KVReader.convert`, in steps: another hand-off's work comes between them."""
        (plan,), (offered,) = plans, state.groups
        tokens = state.token_range.stop
        flat = np.concatenate([np.frombuffer(image[r.id], np.uint8) for s in plan.producer_shards for r in s.regions])
        # An image holds the blocks in token order, so that slot n holds token n.
        arrived: Rows = flat[table(plan, len(offered.block_ids), producer=True)[:, :, :tokens]]
        self.check_arrived(arrived, offered.logical_digest)
        rows, counts = converted(plan, arrived)
        if any(counts.saturated.values()) or any(counts.not_a_number.values()):
            raise ConversionOutOfBounds("value: beyond what the pool can hold", field="value")
        target = table(plan, self.num_blocks, producer=False)
        slots = self._slots(blocks, 0, tokens)
        handoff = state.ownership.handoff
        for start in range(0, tokens, self._pace.convert_tokens):
            stop = min(start + self._pace.convert_tokens, tokens)
            await self._clock.sleep(self._pace.step)
            self._touches(handoff, blocks[start // self.form.block_size : (stop - 1) // self.form.block_size + 1])
            self.memory[target[:, :, slots[start:stop]]] = rows[:, :, start:stop]
        written, wanted = digest(self.memory[target[:, :, slots]]), digest(rows)
        if written != wanted:
            raise DigestMismatch(f"logical_digest: converted {wanted:016x}, the pool holds {written:016x}")
        return (Verified(producer_digest=digest(arrived), consumer_digest=written, error_max=0.0, rows=rows.size),)

    def check_arrived(self, arrived: Rows, offered: int) -> None:
        """Hold what arrived against the digest of what was filled."""
        found = digest(arrived)
        if found != offered:
            raise DigestMismatch(f"logical_digest: the producer filled {offered:016x}, {found:016x} arrived")

    async def decode(
        self, handoff: HandoffId, request: Request, token: int, blocks: Sequence[BlockId]
    ) -> AsyncGenerator[Decoded, None]:
        """Go on after `token`, which prefill sampled. Raises Lost where it is stopped."""
        work = self._begin(handoff)
        work.task = asyncio.create_task(self._decode(work, handoff, request, token, tuple(blocks)))
        while True:
            decoded = await work.tokens.get()
            if decoded is None:
                raise Lost(f"hand-off {handoff}: its decode was stopped", field="handoff")
            yield decoded
            if decoded.finish_reason is not None:
                return

    async def stop_decode(self, handoff: HandoffId) -> None:
        """Return once no step touches the hand-off's blocks any more."""
        await self._stop(handoff)

    async def _decode(
        self, work: _Work, handoff: HandoffId, request: Request, token: int, blocks: tuple[BlockId, ...]
    ) -> Prefilled | None:
        try:
            numbers = history((*request.token_ids, token))
            for index in range(request.sampled + 1, request.sampling.max_tokens):
                await self._clock.sleep(self._pace.step)
                if work.stop:
                    break
                self.write(handoff, blocks, len(numbers) - 1, kv(numbers[-1:]))
                token = next_token(self.read(blocks, len(numbers)), index)
                last = index + 1 == request.sampling.max_tokens
                work.tokens.put_nowait(Decoded(index=index, token=token, finish_reason="length" if last else None))
                numbers += history((token,), numbers[-1])
            return None
        finally:
            del self._work[handoff]
            work.tokens.put_nowait(None)

    # both

    def _begin(self, handoff: HandoffId) -> _Work:
        if handoff in self._work:
            raise Lost(f"hand-off {handoff}: the engine works for it already", field="handoff")
        work = self._work[handoff] = _Work()
        return work

    async def _stop(self, handoff: HandoffId) -> None:
        work = self._work.get(handoff)
        if work is not None:
            work.stop = True
            if work.task is not None:
                await settle(work.task)


@lru_cache(maxsize=1024)
def image_bytes(form: Form, tokens: int) -> ByteCount:
    """What the staging image of a prompt takes."""
    blocks = blocks_for(tokens, form.block_size)
    return ByteCount(
        sum(region.size_bytes(blocks) for shard in form.representation.address()[0] for region in shard.regions)
    )
