"""The simulation's gateway and registry in one: who lives, who is fenced, and every request answered.

Its process never fails. It tells members only what is true: that a life is fenced (and then no connection of it is
served any more), and later, if the process has really ended, that too. Requests are tried again elsewhere with prompt +
tokens sent, a bounded number of times (I5).
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from isthmus.core.clock import Chance
from isthmus.core.errors import BadInput, Bug, CapacityExceeded, ContextTooLong, FrameInvalid, IsthmusError, Lost
from isthmus.core.ids import Incarnation, RequestId, TenantId, WorkerId
from isthmus.core.waiting import within
from isthmus.handoff.request import Request, Sampling
from isthmus.lab.seeds.clocks import SkewedClock
from isthmus.lab.seeds.decode import Consumer
from isthmus.lab.seeds.mix import Fault, Prompt
from isthmus.lab.seeds.network import Body, Life, Station
from isthmus.lab.seeds.paper import answer
from isthmus.lab.seeds.prefill import Producer
from isthmus.lab.seeds.worker import Common, Worker
from isthmus.ownership import TransportKind
from isthmus.ownership.protocol.drain import Evidence
from isthmus.serve.messages import CancelRequest, Generate, TokenEvent
from isthmus.state.tokens import pack_tokens

__all__ = ["ATTEMPTS_MAX", "Ask", "Gateway"]

ATTEMPTS_MAX = 4
ATTEMPT_LEASES = 8
"""An attempt that takes longer than so many leases is given up."""

FINAL = (BadInput, ContextTooLong)


@dataclass(slots=True, kw_only=True)
class Ask:
    """What a client wants, what it has, and what it was told in the end."""

    request_id: str
    prompt: Prompt
    sent: list[int] = field(default_factory=list)
    attempt: int = 0
    done: bool = False
    error: IsthmusError | None = None
    running: "asyncio.Task[None] | None" = None

    @property
    def answered(self) -> bool:
        """Tokens to the end, or a clear error."""
        return self.done or self.error is not None

    def request(self) -> Request:
        return Request(
            request_id=RequestId(self.request_id),
            attempt=self.attempt,
            tenant=TenantId(self.prompt.tenant),
            tokens=pack_tokens((*self.prompt.token_ids, *self.sent)),
            sampling=Sampling(max_tokens=self.prompt.max_tokens),
            sampled=len(self.sent),
        )


class Gateway(Station):
    """One life, of the name `gateway`."""

    def __init__(self, common: Common, chance: Chance) -> None:
        super().__init__(common.network, WorkerId("gateway"), Incarnation(chance.token()))
        self._common = common
        self._chance = chance
        self._clock = SkewedClock(common.loop, chance)
        self._streams: dict[tuple[str, int], asyncio.Queue[TokenEvent | None]] = {}
        self.members: dict[WorkerId, Worker] = {}
        self.fenced: list[Worker] = []
        self._admitted = 0
        self.asks: list[Ask] = []

    # who lives

    def admit(self, worker: Worker) -> None:
        """A worker joins. Whoever had its name before is fenced first: a name is one life's at a time."""
        before = self.members.get(worker.name)
        if before is not None:
            self.fence(before, "another life of its name has come")
        self._common.transcript.note("gateway", f"admits {worker.name}", worker.life[1][:8])
        for over in self.fenced:
            worker.shut_out.add(over.life)
        self.members[worker.name] = worker
        self._admitted += 1
        worker.number = self._admitted
        for member in list(self.members.values()):
            if type(member) is not type(worker):
                self._announce(worker, member)
                self._announce(member, worker)

    def _announce(self, worker: Worker, to: Worker) -> None:
        delay = self._delay()
        if self._hit(Fault.STALE_VIEW, to):
            delay += int(self._common.mix.lease.ns * self._chance.between(1, 4))
        self._common.loop.call_in_of(to.process, delay, to.seen, worker.member())

    def fence(self, worker: Worker, reason: str) -> None:
        """A life is declared over, for good."""
        if worker.fenced:
            return
        worker.fenced = True
        self._common.transcript.note("gateway", f"fences {worker.name}", worker.life[1][:8], reason)
        if self.members.get(worker.name) is worker:
            del self.members[worker.name]
        self.fenced.append(worker)
        self.lose(worker.life, reason)
        self.shut_out.add(worker.life)
        self._common.loop.call_in_of(worker.process, self._delay(), worker.fence)
        for member in list(self.members.values()):
            self._tell(member, worker)

    def exited(self, worker: Worker) -> None:
        """The kernel says that a process has ended. Only ever called of one that has."""
        if not worker.process.dead:
            raise Bug(f"{worker.name} is said to have ended and has not", field="process")
        self.fence(worker, "its process has ended")
        for member in list(self.members.values()):
            self._tell(member, worker)

    def _tell(self, member: Worker, over: Worker) -> None:
        if self._hit(Fault.LOST_NOTICE, member):
            return
        self._common.loop.call_in_of(member.process, self._delay(), self._told, member, over)

    def _told(self, member: Worker, over: Worker) -> None:
        """Runs in the member. What is true at this moment is said, and no more than that."""
        if over.process.dead:
            member.peer_over(over.life, Evidence.PROCESS_EXITED)
        elif self._common.mix.transport is not TransportKind.MEMORY:
            # Within one process a reader cannot be cut off: there only its end counts.
            member.peer_over(over.life, Evidence.FENCED_AND_CLOSED)

    def tell_all(self, dead: Sequence[Worker]) -> None:
        """Say everything again, to everybody: for the healed world."""
        for over in dead:
            for member in list(self.members.values()):
                self._common.loop.call_in_of(member.process, self._delay(), self._told, member, over)
        for worker in list(self.members.values()):
            for other in list(self.members.values()):
                if type(worker) is not type(other):
                    self._announce(worker, other)

    # requests

    def take(self, prompt: Prompt) -> Ask:
        """A client asks."""
        ask = Ask(request_id=f"request-{len(self.asks)}", prompt=prompt)
        self.asks.append(ask)
        ask.running = self._common.loop.spawn(self.process, self._answer(ask))
        return ask

    def cancel(self, ask: Ask) -> None:
        """The client has gone: nobody waits for its answer any more."""
        if ask.running is not None and not ask.answered:
            ask.running.cancel()
            ask.error = Lost("the client has closed its connection")

    def posted(self, sender: Life, message: Body) -> None:
        if isinstance(message, TokenEvent):
            stream = self._streams.get((message.request_id, message.attempt))
            if stream is not None:
                stream.put_nowait(message)

    async def handle(self, caller: Life, message: Body) -> Body:
        raise FrameInvalid(f"call: a worker does not call {type(message).__name__}", field="call")

    async def _answer(self, ask: Ask) -> None:
        mix = self._common.mix
        error: IsthmusError = Lost("no attempt was made")
        for attempt in range(ATTEMPTS_MAX):
            ask.attempt = attempt
            try:
                await within(self._clock, mix.lease * ATTEMPT_LEASES, self._attempt(ask), "attempt")
            except Bug:
                raise
            except IsthmusError as failed:
                error = failed
                self._common.transcript.note(ask.request_id, "attempt failed", attempt, failed.code, str(failed))
                if isinstance(failed, FINAL):
                    break
                await self._clock.sleep(mix.lease / 4 * 2**attempt)
                continue
            ask.done = True
            self._common.transcript.note(ask.request_id, "answered", *ask.sent)
            return
        ask.error = error
        self._common.transcript.note(ask.request_id, "given up", error.code, str(error))

    async def _attempt(self, ask: Ask) -> None:
        producer, consumer = await self._place()
        request = ask.request()
        stream: asyncio.Queue[TokenEvent | None] = asyncio.Queue()
        self._streams[request.request_id, request.attempt] = stream
        order = Generate(request=request, producer=producer[0], producer_incarnation=producer[1])
        call = asyncio.create_task(self.call(consumer, order))
        call.add_done_callback(lambda _: stream.put_nowait(None))
        try:
            while (event := await stream.get()) is not None:
                if event.index < len(ask.sent):
                    continue  # a message that came twice
                if event.index > len(ask.sent):
                    raise Lost(f"token.index: got {event.index}, {len(ask.sent)} is next", field="token.index")
                self._check_token(ask, event.token)
                ask.sent.append(event.token)
                if event.finish_reason is not None:
                    return
            call.result()
            raise Lost("the worker ended without a last token", field="token.finish_reason")
        finally:
            del self._streams[request.request_id, request.attempt]
            if not call.done():
                call.cancel()
                self.post(consumer, CancelRequest(request_id=request.request_id, attempt=request.attempt))
            elif not call.cancelled():
                call.exception()

    def _check_token(self, ask: Ask, token: int) -> None:
        wanted = answer(ask.prompt.token_ids, ask.prompt.max_tokens)[len(ask.sent)]
        if token != wanted:
            self._common.transcript.violated(
                "I1", f"{ask.request_id}: token {len(ask.sent)} is {token}, the reference says {wanted}"
            )

    async def _place(self) -> tuple[Life, Life]:
        for _ in range(20):
            producers = [worker.life for worker in self.members.values() if isinstance(worker, Producer)]
            consumers = [worker.life for worker in self.members.values() if isinstance(worker, Consumer)]
            if producers and consumers:
                return self._chance.pick(producers), self._chance.pick(consumers)
            await self._clock.sleep(self._common.mix.lease / 4)
        raise CapacityExceeded("placement: no workers", field="placement")

    # chance

    def _delay(self) -> int:
        return int(self._common.mix.latency.ns * self._chance.between(0.2, 2))

    def _hit(self, fault: Fault, who: Worker) -> bool:
        rate = self._common.mix.rate(fault)
        if self._common.network.healed or not rate or not self._chance.happens(rate):
            return False
        self._common.transcript.fault(fault, who.name)
        return True
