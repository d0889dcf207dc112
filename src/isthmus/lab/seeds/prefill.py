"""A prefill worker of the simulation."""

import asyncio

from isthmus.core.clock import Chance
from isthmus.core.errors import FrameInvalid
from isthmus.core.ids import HandoffId, Incarnation, TenantId, WorkerId
from isthmus.handoff.orders import AbortOrder, Ack, ConfirmOrder, PrefillOrder, RegisterOrder, RenewOrder, WrittenOrder
from isthmus.handoff.push import Pusher
from isthmus.lab.seeds.forms import Form
from isthmus.lab.seeds.network import Body, Life
from isthmus.lab.seeds.reads import Export, write_faults
from isthmus.lab.seeds.watch import Events, WatchedSource
from isthmus.lab.seeds.worker import Common, Worker
from isthmus.lab.seeds.writes import OneSidedWriter, TakenWriter
from isthmus.ownership import TransportKind, reap_forever
from isthmus.ownership.protocol.drain import Evidence
from isthmus.transport.base import Writer
from isthmus.transport.faulty import FaultyWriter
from isthmus.transport.memory import MemoryExporter, MemoryWriter
from isthmus.transport.select import Route

__all__ = ["Producer"]


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
        self.writer = self._writer()
        self.pusher = Pusher(
            self.owner,
            self.engine.lender,
            self._route_to,
            self.clock,
            write=mix.lease * 2,
            lease=mix.lease,
            filling=self.engine,
        )
        self.side = common.kinds.producer(
            self.engine,
            self.owner,
            worker=name,
            incarnation=self.life[1],
            wait=mix.lease * 2,
            pusher=self.pusher,
        )
        self.export = Export(
            process=self.process,
            lender=self.engine.lender,
            guard=self.owner,
            clock=self.clock,
            copied=common.watch.copied(self.ledger),
            serving={},
        )
        # What MemoryExporter.start does, without a wait.
        common.hub.put(self.key, MemoryExporter(common.hub, self.engine.lender, self.owner, self.clock))
        common.exports[self.endpoint] = self.export
        common.loop.spawn(self.process, reap_forever(self.clock, mix.lease, self.owner.reap))

    def _writer(self) -> Writer:
        common, mix = self.common, self.common.mix
        inner: Writer
        if mix.transport is TransportKind.MEMORY:
            inner = MemoryWriter(common.hub, self.clock, mix.chunk_bytes)
        else:
            kind = OneSidedWriter if mix.transport is TransportKind.SHM else TakenWriter
            step = mix.lease / self.chance.pick((8, 40, 200))
            inner = kind(common.loop, self.clock, common.imports, mix.chunk_bytes, step)
        schedule = write_faults(
            mix, self.chance.fork(), self.clock, common.transcript, self.name, lambda: common.network.healed
        )
        return FaultyWriter(inner, schedule, self.clock)

    def _route_to(self, worker: WorkerId, incarnation: Incarnation, transport: str) -> Route[Writer]:
        return Route(transport=transport, mover=self.writer, endpoint=self.find(worker, incarnation).endpoint)

    def handoffs(self) -> int:
        return len(self.owner)

    async def handle(self, caller: Life, message: Body) -> Body:
        match message:
            case PrefillOrder():
                self.common.watch.reserved(HandoffId(message.handoff), message.request.tenant)
                return await self.side.prefill(message)
            case ConfirmOrder():
                return await self.side.confirm(message)
            case RegisterOrder():
                await self.side.register(message)
            case WrittenOrder():
                await self.side.written(message)
            case RenewOrder():
                await self.side.renew(message)
            case AbortOrder():
                await self.side.abort(message)
            case _:
                raise FrameInvalid(f"call: a consumer does not call {type(message).__name__}", field="call")
        return Ack()

    def act_on(self, peer: Life, evidence: Evidence) -> None:
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
        await self.pusher.stop(handoff)
        self.owner.drained(handoff)
