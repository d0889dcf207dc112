"""A decode worker: takes requests from the gateway, brings their KV here, decodes, and posts tokens."""

import asyncio
from collections.abc import Callable

import structlog

from isthmus.core.clock import Clock
from isthmus.core.errors import BadInput, Lost
from isthmus.core.ids import Incarnation, WorkerId
from isthmus.core.limits import TOMBSTONES_MAX
from isthmus.core.waiting import settle, through
from isthmus.engines.embedded.adapter import EmbeddedKV
from isthmus.handoff.consumer import ConsumerSide
from isthmus.handoff.handoff import hand_off
from isthmus.handoff.orders import Ack, PrefillReply
from isthmus.handoff.request import Request
from isthmus.handoff.stages import Installed, Placed, Reserved
from isthmus.handoff.watch import Watch
from isthmus.serve.messages import CancelRequest, Generate, HandoffReport, Message, TokenEvent
from isthmus.serve.worker.peers import Peers

__all__ = ["DecodeService"]

log = structlog.get_logger(__name__)


class DecodeService:
    """One task for each request. Cancelling the task gives everything up, wherever it stands."""

    def __init__(
        self,
        engine: EmbeddedKV,
        consumer: ConsumerSide,
        peers: Peers,
        clock: Clock,
        *,
        worker: WorkerId,
        post: Callable[[Message], None],
    ) -> None:
        self._engine = engine
        self._consumer = consumer
        self._peers = peers
        self._clock = clock
        self._worker = worker
        self._post = post
        self._tasks: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._cancelled: dict[tuple[str, int], None] = {}

    def cancel(self, message: CancelRequest) -> None:
        """Nobody waits for this request any more."""
        key = (message.request_id, message.attempt)
        task = self._tasks.get(key)
        if task is not None:
            task.cancel()
            return
        # It may overtake the call it is about, which then must not begin: calls are handled in tasks of their own.
        self._cancelled[key] = None
        while len(self._cancelled) > TOMBSTONES_MAX:
            del self._cancelled[next(iter(self._cancelled))]

    async def generate(self, order: Generate) -> Message:
        """Answer one request; returns after its last token was posted, or raises why not."""
        key = (order.request.request_id, order.request.attempt)
        if key in self._tasks:
            raise BadInput(f"request: {key} is under way already", field="request_id")
        if key in self._cancelled:
            raise Lost("request: cancelled before it began", field="request_id")
        task = asyncio.create_task(self._answer(order))
        self._tasks[key] = task
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()  # does nothing to a task that is done
            try:
                await settle(task)
            finally:
                del self._tasks[key]
        if task.cancelled():
            raise Lost("request: cancelled", field="request_id")
        task.result()
        return Ack()

    async def _answer(self, order: Generate) -> None:
        request, watch = order.request, Watch(self._clock)
        placed = Placed(
            request=request,
            producer=WorkerId(order.producer),
            producer_incarnation=Incarnation(order.producer_incarnation),
        )
        producer = await self._peers.producer(placed.producer, placed.producer_incarnation)

        def on_token(reply: PrefillReply) -> None:
            self._send(request, request.sampled, reply.token, reply.finish_reason)

        released = await hand_off(placed, producer, self._consumer, watch=watch, on_token=on_token)
        if released.installed is None:
            return
        reserved = released.filled.reserved
        try:
            self._post(self._report(released.installed, watch))
            stream = self._engine.decode(reserved.handoff, request, released.filled.reply.token, reserved.blocks)
            async for step in stream:
                self._send(request, step.index, step.token, step.finish_reason)
        finally:
            # A second cancellation must not come between the engine's stop and the release: the blocks would leak.
            await through(self._finish(reserved))

    async def _finish(self, reserved: Reserved) -> None:
        await self._engine.stop_decode(reserved.handoff)
        self._consumer.finish(reserved)

    def _send(self, request: Request, index: int, token: int, finish_reason: str | None) -> None:
        self._post(
            TokenEvent(
                request_id=request.request_id,
                attempt=request.attempt,
                index=index,
                token=token,
                finish_reason=finish_reason,
            )
        )

    def _report(self, installed: Installed, watch: Watch) -> HandoffReport:
        verified = installed.verified
        arrived = verified.arrived
        planned = arrived.planned
        filled = planned.offered.filled
        placed = filled.reserved.placed
        return HandoffReport(
            handoff=filled.reserved.handoff,
            request_id=placed.request.request_id,
            attempt=placed.request.attempt,
            producer=placed.producer,
            consumer=self._worker,
            tokens=placed.request.num_tokens,
            reused_tokens=filled.reply.reused_tokens,
            have_tokens=filled.reserved.have_tokens,
            have_bytes=round(filled.reserved.have_tokens * planned.offered.state.representation.bytes_per_token),
            wire_bytes=arrived.wire_bytes,
            transport=arrived.transport,
            outcome=planned.verdict.outcome.value,
            lossless=planned.verdict.lossless,
            fingerprints=tuple(plan.fingerprint for plan in planned.plans),
            assumptions=planned.verdict.gate.assumptions,
            producer_digest=" ".join(f"{checked.producer_digest:016x}" for checked in verified.checked),
            consumer_digest=" ".join(f"{checked.consumer_digest:016x}" for checked in verified.checked),
            rows_checked=sum(checked.rows for checked in verified.checked),
            error_max=max(checked.error_max for checked in verified.checked),
            prefill_ms=filled.reply.prefill_ms,
            stage_ms=watch.ms,
        )
