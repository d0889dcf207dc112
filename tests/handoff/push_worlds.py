"""The same two workers where the producer writes: an importer at the consumer, a writer at the producer."""

from isthmus.handoff.exposure import WriteGuard
from isthmus.handoff.producer import ProducerSide
from isthmus.handoff.push import Pusher
from isthmus.handoff.reuse import Reuse
from isthmus.ownership.protocol.states import TriggerMode
from isthmus.transport.base import PeerId
from isthmus.transport.faulty import FaultyWriter
from isthmus.transport.memory import MemoryHub
from isthmus.transport.select import choose
from isthmus.transport.table import Worker, open_importers, open_writers
from tests.handoff.hooks import HookedEngine, HookedProducer
from tests.handoff.worlds import DECODE, DECODE_LIFE, LEASE, PATIENCE, PREFILL, PREFILL_LIFE, SECRET, World

POINTS = (
    "order prefill",
    "register",
    "registered",
    "engine prefill",
    "engine prefilled",
    "prefill ordered",
    "write",
    "write done",
    "written",
    "wrote",
    "convert",
    "converted",
    "confirm",
    "confirmed",
)
"""Where a test may hold a push up. Under send nothing is registered apart, and writes come while the engine fills."""

MODES = (TriggerMode.PUSH, TriggerMode.SEND)


class HookedPushProducer(HookedProducer):
    async def register(self, order, deadline):
        await self._pass(deadline, "register", self._inner.register(order), "registered")

    async def written(self, order, deadline):
        await self._pass(deadline, "written", self._inner.written(order), "wrote")


class HookedWriter(FaultyWriter):
    """A writer with a schedule of faults, and a point before and after each write."""

    def __init__(self, inner, schedule, clock, hooks):
        super().__init__(inner, iter(schedule), clock)
        self._hooks = hooks
        self.ranges = []

    async def write(self, request, endpoint, lender, blocks, deadline):
        self.ranges.append((request.start, request.stop))
        await self._hooks("write")
        size = await super().write(request, endpoint, lender, blocks, deadline)
        await self._hooks("write done")
        return size


class PushWorld(World):
    """`World`, where `mode` says when the producer writes."""

    def __init__(self, model, producer=None, consumer=None, *, mode, transport="memory", write_faults=(), **others):
        super().__init__(model, producer, consumer, transport=transport, **others)
        self.mode, self.transport = mode, transport
        hub = MemoryHub(self.clock)
        here = Worker(identity=PeerId(worker=DECODE, incarnation=DECODE_LIFE), clock=self.clock, hub=hub)
        there = Worker(identity=PeerId(worker=PREFILL, incarnation=PREFILL_LIFE), clock=self.clock, hub=hub)
        self.importer = open_importers([transport], here, WriteGuard(self.destination, LEASE))[transport]
        self.writer = HookedWriter(open_writers([transport], there)[transport], write_faults, self.clock, self.hooks)
        self.pusher = Pusher(
            self.source,
            self.source_kv.lender,
            self._route_to,
            self.clock,
            write=PATIENCE,
            lease=LEASE,
            filling=self.source_kv,
        )
        self.side = ProducerSide(
            HookedEngine(self.source_kv, self.hooks),
            self.source,
            worker=PREFILL,
            incarnation=PREFILL_LIFE,
            wait=PATIENCE,
            resuming=self.source_kv,
            reuse=Reuse(self.source_kv.representation, self.source_prefixes, secret=SECRET),
            pusher=self.pusher,
        )
        self.producer = HookedPushProducer(self.side, self.hooks, self.clock)

    def _route_to(self, worker, incarnation, transport):
        assert (worker, incarnation) == (DECODE, DECODE_LIFE)
        return choose([self.target], {self.transport: self.writer}, [transport])

    async def __aenter__(self):
        await super().__aenter__()
        self.target = await self.importer.start()
        self._stack.push_async_callback(self.importer.close)
        self._stack.push_async_callback(self.writer.close)
        self._stack.push_async_callback(self.pusher.close)
        peer = self.peer
        self.peer = type(peer)(
            identity=peer.identity,
            representation=peer.representation,
            endpoint=peer.endpoint,
            reader=peer.reader,
            mode=self.mode,
            importer=self.importer,
        )
        return self

    def pass_time(self, duration):
        super().pass_time(duration)
        self.destination.reap()
