"""Workers of the simulation: one life of one process each, made of the real owners, sides, ledgers and reapers.

They do what `serve/worker` does around these: answer calls, keep their view of who is a member, and act on a fence.
"""

import asyncio
from contextlib import aclosing
from dataclasses import dataclass

from isthmus.core.clock import Chance
from isthmus.core.errors import BadInput, FrameInvalid, Lost, PeerLost
from isthmus.core.ids import HandoffId, Incarnation, TenantId, WorkerId
from isthmus.core.waiting import settle, through
from isthmus.handoff.consumer import Deadlines, Peer
from isthmus.handoff.handoff import hand_off
from isthmus.handoff.orders import AbortOrder, Ack, ConfirmOrder, PrefillOrder, PrefillReply, RenewOrder
from isthmus.handoff.producer import ProducerSide
from isthmus.handoff.request import Request
from isthmus.handoff.stages import Placed, Reserved
from isthmus.handoff.watch import Watch as Stopwatch
from isthmus.lab.seeds.clocks import SkewedClock
from isthmus.lab.seeds.engine import PaperEngine, image_bytes
from isthmus.lab.seeds.forms import IDENTITY, Form
from isthmus.lab.seeds.loop import VirtualLoop
from isthmus.lab.seeds.mix import Mix
from isthmus.lab.seeds.network import Body, Life, Network, RemoteProducer, Station
from isthmus.lab.seeds.reads import Export, OneSidedReader, ServedReader, read_faults, watched
from isthmus.lab.seeds.transcript import Transcript
from isthmus.lab.seeds.watch import Events, Watch, WatchedConsumer, WatchedSource
from isthmus.ownership import Capacity, DestinationOwner, Ledger, SourceOwner, TransportKind, reap_forever
from isthmus.ownership.protocol.drain import Evidence
from isthmus.serve.messages import CancelRequest, Generate, TokenEvent
from isthmus.transport.base import Endpoint, MemoryEndpoint, Reader
from isthmus.transport.faulty import FaultyReader
from isthmus.transport.memory import MemoryExporter, MemoryHub, MemoryReader

__all__ = ["Common", "Consumer", "Kinds", "Member", "Producer", "Worker"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kinds:
    """The classes that a world is made of. A canary puts one in that leaves a check out."""

    source: type[WatchedSource] = WatchedSource
    destination: type[DestinationOwner] = DestinationOwner
    consumer: type[WatchedConsumer] = WatchedConsumer
    producer: type[ProducerSide] = ProducerSide
    engine: type[PaperEngine] = PaperEngine
    ledger: type[Ledger] = Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """What all workers of a world share."""

    loop: VirtualLoop
    mix: Mix
    network: Network
    transcript: Transcript
    watch: Watch
    hub: MemoryHub
    exports: dict[str, Export]
    kinds: Kinds


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A producer as the registry knows it."""

    life: Life
    form: Form
    endpoint: Endpoint


class Worker(Station):
    """What both roles share."""

    owner: SourceOwner | DestinationOwner

    def __init__(
        self, common: Common, chance: Chance, name: WorkerId, form: Form, num_blocks: int, staging_bytes: int
    ) -> None:
        super().__init__(common.network, name, Incarnation(chance.token()))
        mix = common.mix
        self.common = common
        self.form = form
        self.chance = chance
        self.fenced = False
        self.clock = SkewedClock(
            common.loop,
            chance,
            rate=chance.between(0.8, 1.2) if mix.skewed else 1.0,
            ahead=chance.below(10**12) if mix.skewed else 0,
        )
        block_bytes = image_bytes(form, form.block_size)
        self.ledger = common.kinds.ledger(num_blocks=num_blocks, block_bytes=block_bytes, staging_bytes=staging_bytes)
        self.capacity = Capacity(ledger=self.ledger, clock=self.clock)
        self.engine = common.kinds.engine(form, num_blocks, self.clock, mix.pace, common.watch.touches(self.ledger))

    @property
    def name(self) -> WorkerId:
        return self.life[0]

    def peer_over(self, peer: Life, evidence: Evidence) -> None:
        """The registry's word that a life is over, and on what evidence."""
        raise NotImplementedError

    def fence(self) -> None:
        """Our own life is over: the registry says so."""
        raise NotImplementedError

    def leftovers(self) -> str:
        """What is still held; empty in a drained worker (I8)."""
        held = self.ledger.held()
        found = {
            "blocks": held.blocks,
            "staging": held.staging_bytes,
            "grants": held.grants,
            "active": held.active,
            "retention": held.retention,
            "waiting": self.capacity.waiting,
            "handoffs": self.handoffs(),
            "work": int(self.engine.busy),
        }
        return ", ".join(f"{name} {count}" for name, count in found.items() if count)

    def handoffs(self) -> int:
        raise NotImplementedError

    def live(self) -> str:
        """The hand-offs that hold something."""
        return "; ".join(
            f"{str(row['handoff'])[:8]} with {row['peer']}: {row['phase']} ({row['outcome']})"
            for row in self.owner.snapshot()
        )


class Producer(Worker):
    """A prefill worker."""

    owner: WatchedSource

    def __init__(self, common: Common, chance: Chance, name: WorkerId, form: Form) -> None:
        mix = common.mix
        super().__init__(common, chance, name, form, mix.producer_blocks, 0)
        self.owner = common.kinds.source(
            ledger=self.ledger,
            capacity=self.capacity,
            clock=self.clock,
            worker=name,
            incarnation=self.life[1],
            lease=mix.lease,
            transport=mix.transport,
            sole_tenant=TenantId("tenant-0") if mix.sole_tenant else None,
            journal=Events(common.transcript, name),
        )
        self.owner.watch = common.watch
        self.side = common.kinds.producer(
            self.engine, self.owner, worker=name, incarnation=self.life[1], wait=mix.lease * 2
        )
        self.export = Export(
            process=self.process,
            lender=self.engine.lender,
            guard=self.owner,
            clock=self.clock,
            copied=common.watch.copied(self.ledger),
            serving={},
        )
        # What MemoryExporter.start does, without a wait: a hub has no other way in.
        exporter = MemoryExporter(common.hub, self.engine.lender, self.owner, self.clock)
        self.key = chance.token()
        common.hub.put(self.key, exporter)
        common.exports[self.key] = self.export
        common.loop.spawn(self.process, reap_forever(self.clock, mix.lease, self.owner.reap))

    def member(self) -> Member:
        return Member(life=self.life, form=self.form, endpoint=MemoryEndpoint(hub=self.common.hub.id, key=self.key))

    def handoffs(self) -> int:
        return len(self.owner)

    async def handle(self, caller: Life, message: Body) -> Body:
        match message:
            case PrefillOrder():
                self.common.watch.reserved(HandoffId(message.handoff), message.request.tenant_id())
                return await self.side.prefill(message)
            case ConfirmOrder():
                return await self.side.confirm(message)
            case RenewOrder():
                await self.side.renew(message)
            case AbortOrder():
                await self.side.abort(message)
            case _:
                raise FrameInvalid(f"call: a consumer does not call {type(message).__name__}", field="call")
        return Ack()

    def peer_over(self, peer: Life, evidence: Evidence) -> None:
        self.shut_out.add(peer)
        self.lose(peer, "its incarnation was fenced")
        asyncio.create_task(self._peer_over(peer, evidence))  # noqa: RUF006  the loop keeps it

    async def _peer_over(self, peer: Life, evidence: Evidence) -> None:
        """Closed, then said to be: the evidence is true when the owner hears it."""
        await self.ended(peer)
        await self.export.close_to(peer)
        await self.side.peer_lost(*peer, evidence)

    def fence(self) -> None:
        for handoff in self.owner.fence():
            asyncio.create_task(self._stop(handoff))  # noqa: RUF006  the loop keeps it

    async def _stop(self, handoff: HandoffId) -> None:
        await self.engine.stop_prefill(handoff)
        self.owner.drained(handoff)


class Consumer(Worker):
    """A decode worker. One task for each request, as in `serve/worker/decode.py`."""

    owner: DestinationOwner

    def __init__(
        self, common: Common, chance: Chance, name: WorkerId, form: Form, gateway: Life, staging_bytes: int
    ) -> None:
        mix = common.mix
        super().__init__(common, chance, name, form, mix.consumer_blocks, staging_bytes)
        self.gateway = gateway
        self.view: dict[WorkerId, Member] = {}
        self._tasks: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._cancelled: set[tuple[str, int]] = set()
        self._by_handoff: dict[HandoffId, asyncio.Task[object]] = {}
        self.owner = common.kinds.destination(
            ledger=self.ledger,
            capacity=self.capacity,
            clock=self.clock,
            worker=name,
            incarnation=self.life[1],
            transport=mix.transport,
            stop_read=self._stop,
            stop_decode=self._stop,
            journal=Events(common.transcript, name),
        )
        self.reader = self._reader()
        lease = mix.lease
        self.side = common.kinds.consumer(
            self.engine,
            self.owner,
            self._peer,
            self.clock,
            worker=name,
            incarnation=self.life[1],
            deadlines=Deadlines(reserve=lease * 2, prefill=lease * 3, transfer=lease * 2, confirm=lease / 2),
        )
        self.side.watch = common.watch
        self.side.engine = self.engine
        self.side.ledger = self.ledger
        self.side.owner = self.owner
        self.side.begun = self._begun

    def _reader(self) -> Reader:
        common, mix = self.common, self.common.mix
        inner: Reader
        if mix.transport is TransportKind.MEMORY:
            inner = MemoryReader(common.hub, self.clock, mix.chunk_bytes)
        else:
            kind = OneSidedReader if mix.transport is TransportKind.SHM else ServedReader
            step = mix.lease / self.chance.pick((8, 40, 200))
            inner = kind(common.loop, self.clock, common.exports, self.life, mix.chunk_bytes, step)
        schedule = read_faults(
            mix, self.chance.fork(), self.clock, common.transcript, self.name, lambda: common.network.healed
        )
        faulty = FaultyReader(inner, schedule, self.clock)
        return watched(faulty, common.watch.read_began(self.ledger), common.watch.read_ended(self.ledger))

    def _peer(self, worker: WorkerId, incarnation: Incarnation) -> Peer:
        member = self.view.get(worker)
        if member is None or member.life[1] != incarnation:
            raise PeerLost(f"{worker}: this incarnation is not a member", field="worker")
        return Peer(
            identity=IDENTITY,
            representation=member.form.representation,
            endpoint=member.endpoint,
            reader=self.reader,
        )

    def handoffs(self) -> int:
        return len(self.owner) + len(self._tasks)

    # calls

    async def handle(self, caller: Life, message: Body) -> Body:
        if not isinstance(message, Generate):
            raise FrameInvalid(f"call: nobody calls {type(message).__name__} here", field="call")
        key = (message.request.request_id, message.request.attempt)
        if key in self._tasks:
            raise BadInput(f"request: {key} is under way already", field="request_id")
        if key in self._cancelled:
            raise Lost("request: cancelled before it began", field="request_id")
        task = asyncio.create_task(self._answer(message))
        self._tasks[key] = task
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()
            try:
                await settle(task)
            finally:
                del self._tasks[key]
        if task.cancelled():
            raise Lost("request: cancelled", field="request_id")
        task.result()
        return Ack()

    def posted(self, sender: Life, message: Body) -> None:
        if isinstance(message, CancelRequest):
            key = (message.request_id, message.attempt)
            self._cancelled.add(key)
            task = self._tasks.get(key)
            if task is not None:
                task.cancel()

    async def _answer(self, order: Generate) -> None:
        request = order.request
        placed = Placed(
            request=request,
            producer=WorkerId(order.producer),
            producer_incarnation=Incarnation(order.producer_incarnation),
        )
        producer = RemoteProducer(self, (placed.producer, placed.producer_incarnation))

        def on_token(reply: PrefillReply) -> None:
            self._send(request, request.sampled, reply.token, reply.finish_reason)

        released = await hand_off(placed, producer, self.side, watch=Stopwatch(self.clock), on_token=on_token)
        if released.installed is None:
            return
        reserved = released.filled.reserved
        try:
            self.common.watch.decoding(self.owner, reserved.handoff)
            stream = self.engine.decode(reserved.handoff, request, released.filled.reply.token, reserved.blocks)
            async with aclosing(stream):
                async for step in stream:
                    self._send(request, step.index, step.token, step.finish_reason)
        finally:
            await through(self._finish(reserved))

    async def _finish(self, reserved: Reserved) -> None:
        await self.engine.stop_decode(reserved.handoff)
        self.side.finish(reserved)

    def _send(self, request: Request, index: int, token: int, finish_reason: str | None) -> None:
        self.post(
            self.gateway,
            TokenEvent(
                request_id=request.request_id,
                attempt=request.attempt,
                index=index,
                token=token,
                finish_reason=finish_reason,
            ),
        )

    # what ends them

    def _begun(self, reserved: Reserved) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._by_handoff[reserved.handoff] = task

    def _stop(self, handoff: HandoffId) -> None:
        task = self._by_handoff.get(handoff)
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    def peer_over(self, peer: Life, evidence: Evidence) -> None:
        member = self.view.get(peer[0])
        if member is not None and member.life == peer:
            del self.view[peer[0]]
        self.shut_out.add(peer)
        self.lose(peer, "its incarnation was fenced")
        self.owner.peer_lost(*peer, evidence)

    def fence(self) -> None:
        self.owner.fence()
        for task in self._tasks.values():
            task.cancel()
