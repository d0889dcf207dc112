"""One request, from placement to its last token, through failures.

A request is tried at most `attempts_max` times. What the client already has is never sent again: an attempt after a
failure prefills prompt + tokens sent, with the sampler's counter and seed, and goes on from there (I5). All requests
share one budget of retries (`retries`), and each has a deadline for the whole of its answer.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

import structlog

from isthmus.core.clock import Clock, after
from isthmus.core.errors import (
    BadInput,
    Bug,
    CapacityExceeded,
    ContextTooLong,
    DeadlineExceeded,
    IsthmusError,
    Lost,
    NotAuthorised,
    PeerLost,
)
from isthmus.core.ids import RequestId, TenantId, WorkerId
from isthmus.core.units import Duration
from isthmus.handoff.request import Request, Sampling
from isthmus.placement.routing import choose
from isthmus.serve.gateway.metrics import Metrics
from isthmus.serve.gateway.registry import Registry, Seat
from isthmus.serve.gateway.retries import RetryBudget
from isthmus.serve.messages import CancelRequest, Generate, Message, TokenEvent
from isthmus.state.tokens import pack_tokens

__all__ = ["Ask", "Dispatcher"]

log = structlog.get_logger(__name__)

FINAL = (Bug, BadInput, ContextTooLong)
"""What no other attempt can mend. All else is between workers: one is lost, or full, or refuses the other's word."""

BACKOFF = Duration.of_ms(100)
BACKOFF_MAX = Duration.of_seconds(5)
REQUEST_DEADLINE = Duration.of_seconds(1800)


@dataclass(slots=True, kw_only=True)
class Ask:
    """What a client wants, tokenised. Pins name a worker for this request alone (drills, and the demo)."""

    request_id: str
    tenant: str
    prompt: tuple[int, ...]
    sampling: Sampling
    pin_producer: WorkerId | None = None
    pin_consumer: WorkerId | None = None
    sent: list[int] = field(default_factory=list)
    attempts: int = 0

    def request(self) -> Request:
        return Request(
            request_id=RequestId(self.request_id),
            attempt=self.attempts,
            tenant=TenantId(self.tenant),
            tokens=pack_tokens((*self.prompt, *self.sent)),
            sampling=self.sampling,
            sampled=len(self.sent),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stream:
    """An attempt's tokens on their way, and the only worker that they may come from."""

    consumer: Seat
    events: "asyncio.Queue[TokenEvent | None]"


class Dispatcher:
    """Places requests on workers and hands their tokens on."""

    def __init__(
        self,
        registry: Registry,
        clock: Clock,
        metrics: Metrics,
        *,
        attempts_max: int,
        worker_wait: Duration,
        request_deadline: Duration = REQUEST_DEADLINE,
        retries: RetryBudget | None = None,
    ) -> None:
        self._registry = registry
        self._clock = clock
        self._metrics = metrics
        self._attempts_max = attempts_max
        self._worker_wait = worker_wait
        self._request_deadline = request_deadline
        self._retries = RetryBudget(clock) if retries is None else retries
        self._streams: dict[tuple[str, int], _Stream] = {}
        self._calls: set[asyncio.Task[Message]] = set()

    def on_token(self, event: TokenEvent, seat: Seat) -> None:
        """A worker's post. One that nobody waits for any more is dropped: its attempt was given up.

        Raises:
            NotAuthorised: it is about a request that another worker answers.
        """
        stream = self._streams.get((event.request_id, event.attempt))
        if stream is None:
            return
        if stream.consumer is not seat:
            raise NotAuthorised(f"token: {seat.worker} does not answer this request", field="request_id")
        stream.events.put_nowait(event)

    async def answer(self, ask: Ask) -> AsyncGenerator[TokenEvent]:
        """Tokens in order, each once; the last has a `finish_reason`. Close it to cancel the request.

        Raises:
            Rejected: the request cannot be served.
            CapacityExceeded, Lost: not now; every attempt failed, or no further one was granted.
            DeadlineExceeded: it took too long in all.
        """
        self._retries.request()
        alarm = asyncio.create_task(self._clock.sleep(self._request_deadline))
        try:
            async with aclosing(self._attempts(ask, alarm)) as events:
                async for event in events:
                    yield event
        finally:
            alarm.cancel()

    async def _attempts(self, ask: Ask, alarm: "asyncio.Task[None]") -> AsyncGenerator[TokenEvent]:
        avoid: set[WorkerId] = set()
        while True:
            producer, consumer = await self._place(ask, avoid, alarm)
            try:
                async with aclosing(self._attempt(ask, producer, consumer, alarm)) as events:
                    async for event in events:
                        ask.sent.append(event.token)
                        yield event
                        if event.finish_reason is not None:
                            return
            except IsthmusError as error:
                if isinstance(error, FINAL) or alarm.done():
                    raise
                ask.attempts += 1
                log.warning(
                    "attempt_failed",
                    request=ask.request_id,
                    attempt=ask.attempts,
                    producer=producer.worker,
                    consumer=consumer.worker,
                    code=error.code,
                    reason=str(error),
                    sent=len(ask.sent),
                )
                self._metrics.attempts_failed.labels(error.code).inc()
                full = isinstance(error, CapacityExceeded) and avoid >= {consumer.worker}
                if ask.attempts >= self._attempts_max or full:
                    raise _given_up(error) from error
                self._take_retry(error)
                avoid |= {producer.worker, consumer.worker}
            if ask.attempts > 1:  # the first retry is at once: one worker has died and others are there
                await self._clock.sleep(min(BACKOFF * 2 ** (ask.attempts - 2), BACKOFF_MAX))

    def _take_retry(self, error: IsthmusError) -> None:
        """Raise unless the budget grants one: what fails everywhere must not be computed again everywhere."""
        granted = self._retries.take()
        self._metrics.on_retry(granted=granted, tokens_left=self._retries.tokens)
        if not granted:
            raise CapacityExceeded(
                f"{error.code}: {error}; not tried again: retries are limited to {self._retries.ratio:.0%} of "
                "requests, and those are used up",
                field="retries",
                retry_after=self._retries.next_in(),
            ) from error

    async def _attempt(
        self, ask: Ask, producer: Seat, consumer: Seat, alarm: "asyncio.Task[None]"
    ) -> AsyncGenerator[TokenEvent]:
        request = ask.request()
        stream: asyncio.Queue[TokenEvent | None] = asyncio.Queue()
        self._streams[request.request_id, request.attempt] = _Stream(consumer=consumer, events=stream)
        order = Generate(request=request, producer=producer.worker, producer_incarnation=producer.member.incarnation)
        call = asyncio.create_task(consumer.channel.call(order))

        def wake(_: object) -> None:
            stream.put_nowait(None)

        call.add_done_callback(wake)
        alarm.add_done_callback(wake)
        self._account(call, request, (producer, consumer))
        finished = False
        try:
            while (event := await stream.get()) is not None:
                if event.index != len(ask.sent):
                    raise Lost(
                        f"token.index: {consumer.worker} sent {event.index}, {len(ask.sent)} is next",
                        field="token.index",
                    )
                finished = event.finish_reason is not None
                yield event
            if not call.done():
                raise self._too_late()
            call.result()
            # I5: an attempt ends in a last token or in an error, never in silence.
            raise Lost(f"{consumer.worker}: ended without a last token", field="token.finish_reason")
        finally:
            alarm.remove_done_callback(wake)
            del self._streams[request.request_id, request.attempt]
            if not call.done() and not finished:
                call.cancel()
                _cancel(consumer, request)

    def _account(self, call: asyncio.Task[Message], request: Request, seats: tuple[Seat, Seat]) -> None:
        """Count the request as outstanding on both workers until its call ends; keep the call until then."""

        def ended(_: asyncio.Task[Message]) -> None:
            self._calls.discard(call)
            for seat in seats:
                seat.outstanding_tokens -= request.tokens_max
            if not call.cancelled():
                call.exception()  # seen: an attempt that still listens raises it itself

        self._calls.add(call)
        for seat in seats:
            seat.outstanding_tokens += request.tokens_max
            seat.assigned += 1
        call.add_done_callback(ended)

    def _too_late(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"request: not answered within {self._request_deadline}, its deadline in all", field="deadlines.request_ms"
        )

    async def _place(self, ask: Ask, avoid: set[WorkerId], alarm: "asyncio.Task[None]") -> tuple[Seat, Seat]:
        """Choose a pair; where there is none, wait for workers to join, but not for long."""
        waited_until = after(self._clock.now(), self._worker_wait)
        while True:
            if alarm.done():
                raise self._too_late()
            try:
                return self._choose(ask, avoid)
            except PeerLost as lost:
                if self._clock.now() >= waited_until:
                    raise CapacityExceeded(
                        f"{lost}; waited {self._worker_wait}", field=lost.field, retry_after=self._worker_wait
                    ) from lost
            await self._clock.sleep(Duration.of_ms(50))

    def _choose(self, ask: Ask, avoid: set[WorkerId]) -> tuple[Seat, Seat]:
        sides = []
        for role, pin in (("prefill", ask.pin_producer), ("decode", ask.pin_consumer)):
            seats = [seat for seat in self._registry.seats(role) if pin in (None, seat.worker)]
            if not seats:
                raise PeerLost(
                    f"{role}: no worker of this role is a member" + (f" named {pin}" if pin else ""), field=role
                )
            healthy = [seat for seat in seats if seat.unhealthy is None]
            if not healthy:
                raise PeerLost(
                    f"{role}: no worker takes anything new; {seats[0].worker}: {seats[0].unhealthy}", field=role
                )
            sides.append([seat.candidate() for seat in healthy])
        chosen = choose(sides[0], sides[1], self._registry.compatible, avoid=avoid)
        if chosen is None:
            raise PeerLost("placement: no prefill worker's KV can be read by any decode worker here", field="placement")
        return self._registry.seat(chosen[0]), self._registry.seat(chosen[1])


def _given_up(error: IsthmusError) -> IsthmusError:
    """What to tell the client: that a worker refuses what another says is no fault of the request's."""
    if isinstance(error, CapacityExceeded) and error.retry_after is None:
        return ContextTooLong(str(error), field=error.field)  # it can never fit: asking again will not help
    if isinstance(error, Lost | CapacityExceeded):
        return error
    return Lost(f"{error.code}: {error}", field=error.field)


def _cancel(consumer: Seat, request: Request) -> None:
    try:
        consumer.channel.post(CancelRequest(request_id=request.request_id, attempt=request.attempt))
    except IsthmusError:
        return  # the channel is closed: the worker gives up its requests by itself
