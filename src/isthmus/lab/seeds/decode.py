"""A decode worker of the simulation. One task for each request, as in `serve/worker/decode.py`."""

import asyncio
from contextlib import aclosing
from functools import partial

from isthmus.core.clock import Chance
from isthmus.core.errors import BadInput, FrameInvalid, Lost
from isthmus.core.ids import HandoffId, Incarnation, WorkerId
from isthmus.core.units import Duration
from isthmus.core.waiting import settle, through, within
from isthmus.handoff.consumer import Deadlines, Peer
from isthmus.handoff.exposure import WriteGuard
from isthmus.handoff.handoff import hand_off
from isthmus.handoff.orders import Ack, PrefillReply
from isthmus.handoff.remote import Order, RemoteProducer
from isthmus.handoff.request import Request
from isthmus.handoff.stages import Placed, Reserved
from isthmus.handoff.watch import Watch as Stopwatch
from isthmus.lab.seeds.forms import IDENTITY, Form
from isthmus.lab.seeds.network import Body, Life
from isthmus.lab.seeds.reads import OneSidedReader, ServedReader, copy_faults, watched
from isthmus.lab.seeds.watch import Events
from isthmus.lab.seeds.worker import Common, Worker
from isthmus.lab.seeds.writes import Imports, TakenImporter, WatchedImporter
from isthmus.ownership import DestinationOwner, TransportKind
from isthmus.ownership.protocol.drain import Evidence
from isthmus.ownership.protocol.states import TriggerMode
from isthmus.serve.messages import CancelRequest, Generate, TokenEvent
from isthmus.transport.base import Importer, Reader
from isthmus.transport.faulty import FaultyReader
from isthmus.transport.memory import MemoryImporter, MemoryReader

__all__ = ["Consumer"]


class Consumer(Worker):
    """Takes requests from the gateway, brings their KV here, decodes, and posts tokens."""

    owner: DestinationOwner

    def __init__(
        self, common: Common, chance: Chance, name: WorkerId, form: Form, gateway: Life, staging_bytes: int
    ) -> None:
        mix = common.mix
        super().__init__(common, chance, name, form, mix.consumer_blocks, staging_bytes)
        self.gateway = gateway
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
        self.importer = self._importer()
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
        schedule = copy_faults(
            mix, self.chance.fork(), self.clock, common.transcript, self.name, lambda: common.network.healed
        )
        faulty = FaultyReader(inner, schedule, self.clock)
        return watched(faulty, common.watch.read_began(self.ledger), common.watch.read_ended(self.ledger))

    def _importer(self) -> Importer:
        common, watch = self.common, self.common.watch
        guard = WriteGuard(self.owner, common.mix.lease * 2)
        inner: Importer
        if common.mix.transport is TransportKind.MEMORY:
            memory = MemoryImporter(common.hub, guard, self.clock)
            common.hub.put_importer(self.key, memory)
            inner = memory
        else:
            imports = Imports(process=self.process, guard=guard, late=watch.late_write)
            common.imports[self.endpoint] = imports
            kind = common.kinds.importer if common.mix.transport is TransportKind.SHM else TakenImporter
            inner = kind(imports, self.endpoint)
        return WatchedImporter(inner, watch.read_began(self.ledger), watch.withdrawn(self.ledger))

    def _peer(self, worker: WorkerId, incarnation: Incarnation) -> Peer:
        member, mode = self.find(worker, incarnation), self.common.mix.mode
        return Peer(
            identity=IDENTITY,
            representation=member.form.representation,
            endpoint=member.endpoint,
            reader=self.reader,
            mode=mode,
            importer=None if mode is TriggerMode.PULL else self.importer,
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

    async def _ask(self, producer: Life, order: Order, deadline: Duration) -> Body:
        return await within(self.clock, deadline, self.call(producer, order), type(order).__name__)

    async def _answer(self, order: Generate) -> None:
        request = order.request
        placed = Placed(
            request=request,
            producer=WorkerId(order.producer),
            producer_incarnation=Incarnation(order.producer_incarnation),
        )
        producer = RemoteProducer(partial(self._ask, (placed.producer, placed.producer_incarnation)))

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

    def act_on(self, peer: Life, evidence: Evidence) -> None:
        asyncio.create_task(self.side.producer_lost(*peer, evidence))  # noqa: RUF006  the loop keeps it

    def fence(self) -> None:
        self.owner.fence()
        for task in self._tasks.values():
            task.cancel()
