"""The control cost of a hand-off: everything but prefill, bytes, conversion and decode, in two real processes.

The real `hand_off`, owners, channel and messages, with an engine that computes nothing and a reader that moves nothing.
CPU time is each process's own; round trips are the calls that the consumer awaits. A hand-off begins with a request as
a worker has it, packed: no two have the same tokens. The connection is greeted first, as every consumer does.
"""

import asyncio
import json
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import Mapping, Sequence

from isthmus.core.clock import SystemClock
from isthmus.core.errors import FrameInvalid
from isthmus.core.ids import BlockId, Digest, HandoffId, Incarnation, RegionId, RequestId, TenantId, WorkerId
from isthmus.core.units import ByteCount, Duration
from isthmus.engines.launch.describe import describe
from isthmus.handoff.consumer import ConsumerSide, Deadlines, Peer
from isthmus.handoff.handoff import hand_off
from isthmus.handoff.orders import AbortOrder, Ack, ConfirmOrder, ConfirmReply, PrefillOrder, PrefillReply, RenewOrder
from isthmus.handoff.producer import ProducerSide
from isthmus.handoff.remote import RemoteProducer
from isthmus.handoff.request import Request, Sampling
from isthmus.handoff.seams import Prefilled
from isthmus.handoff.stages import Placed
from isthmus.handoff.watch import Watch
from isthmus.kernels.report import Verified
from isthmus.lab.bench.harness import Row, row
from isthmus.ownership import Capacity, DestinationOwner, Ledger, SourceOwner, TransportKind
from isthmus.serve.channel import Channel, connect
from isthmus.serve.link import Link, listen
from isthmus.serve.messages import Message, PeerHello, Pulse, Snapshot
from isthmus.state.encoding import Encoding, StorageDtype
from isthmus.state.partition import Partition
from isthmus.state.plan import TransformPlan
from isthmus.state.representation import GroupKind, GroupRepresentation, KvOrder, Layout, attention
from isthmus.state.runtime_kv_state import KVRepresentation, Residency, RuntimeKVState
from isthmus.state.tokens import pack_tokens
from isthmus.transport.base import BlockRead, Endpoint, MemoryEndpoint

__all__ = ["bench_control", "serve_producer"]

LINE = "vllm serve Qwen/Qwen3-32B @h100"
PRODUCER, CONSUMER = WorkerId("prefill-0"), WorkerId("decode-0")
PRODUCER_LIFE, CONSUMER_LIFE = Incarnation("a" * 32), Incarnation("b" * 32)
TENANT = TenantId("default")
PATIENCE = Duration.of_seconds(60)
TOKENS, NUM_BLOCKS, HANDOFFS, WARM = 1024, 4096, 500, 100


class _NoEngine:
    """An engine that fills and converts nothing, at once."""

    def __init__(self) -> None:
        self.identity, self.representation = describe(LINE).identity, _thin()
        self.residency = Residency(tier="device", num_blocks=NUM_BLOCKS)
        self.context_length = 32_768

    async def prefill(self, handoff: HandoffId, request: Request, blocks: Sequence[BlockId]) -> Prefilled:
        return Prefilled(token=1, finish_reason=None, digests=(Digest(0),), prefill_ms=0.0)

    async def stop_prefill(self, handoff: HandoffId) -> None:
        return

    async def convert(
        self,
        plans: Sequence[TransformPlan],
        state: RuntimeKVState,
        image: Mapping[RegionId, memoryview],
        blocks: Sequence[BlockId],
    ) -> tuple[Verified, ...]:
        return tuple(Verified(producer_digest=Digest(0), consumer_digest=Digest(0), error_max=0, rows=0) for _ in plans)


def _thin() -> KVRepresentation:
    """A form of four bytes a token: an image of it costs nothing to allocate."""
    components = attention(heads=1, head_size=1, head_size_v=1, encoding=Encoding(storage_dtype=StorageDtype.BF16))
    group = GroupRepresentation(
        kind=GroupKind.FULL_ATTENTION,
        layers=(0,),
        components=components,
        block_size=16,
        layout=Layout.LBNHC,
        kv_order=KvOrder.KV_OUTER,
    )
    return KVRepresentation(groups=(group,), partition=Partition())


class _NoReader:
    """A reader that moves nothing, at once."""

    def can_reach(self, endpoint: Endpoint) -> bool:
        return True

    async def read(
        self, request: BlockRead, endpoint: Endpoint, into: Mapping[RegionId, memoryview], deadline: Duration
    ) -> ByteCount:
        return ByteCount(0)

    def forget(self, endpoint: Endpoint) -> None:
        return

    async def close(self) -> None:
        return


class _Counted(RemoteProducer):
    """Counts the calls that a hand-off awaits."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel.call)
        self._to = channel
        self.calls = 0

    async def prefill(self, order: PrefillOrder, deadline: Duration) -> PrefillReply:
        self.calls += 1
        return await super().prefill(order, deadline)

    async def confirm(self, order: ConfirmOrder, deadline: Duration) -> ConfirmReply:
        self.calls += 1
        return await super().confirm(order, deadline)

    async def cpu_seconds(self) -> float:
        """What the other process has used of its CPU."""
        answer = await self._to.call(Pulse())
        if not isinstance(answer, Snapshot):
            raise FrameInvalid(f"control: answered {type(answer).__name__}", field="answer")
        return float(json.loads(answer.json))


async def bench_control(rounds: int) -> list[Row]:
    """Rows: CPU of either side, round trips, and wall time of one after the other."""
    child = await asyncio.create_subprocess_exec(sys.executable, "-m", "isthmus.lab.bench.control", stdout=PIPE)
    if child.stdout is None:
        raise FrameInvalid("control: the producer's process has no output", field="stdout")
    try:
        port = int(await child.stdout.readline())
        clock = SystemClock()
        channel = await connect(
            "127.0.0.1", port, clock, handler=_nothing_called, posted=_nothing_posted, peer=PRODUCER, deadline=PATIENCE
        )
        running = asyncio.create_task(channel.run())
        await channel.call(
            PeerHello(worker=CONSUMER, incarnation=CONSUMER_LIFE, to=PRODUCER, to_incarnation=PRODUCER_LIFE)
        )
        producer, side = _Counted(channel), _consumer(clock)
        ours, theirs, walls = [list[float]() for _ in range(3)]
        for index in range(rounds + 1):
            count = HANDOFFS if index else WARM
            requests = [_request(clock.token(), first) for first in range(count)]
            theirs_before = await producer.cpu_seconds()
            cpu, wall, producer.calls = time.process_time(), clock.now(), 0
            for request in requests:
                await _one(side, producer, clock, request)
            if index:
                ours.append((time.process_time() - cpu) / count * 1e6)
                walls.append((clock.now() - wall) / count / 1e3)
                calls = producer.calls / count
                theirs.append((await producer.cpu_seconds() - theirs_before) / count * 1e6)
        channel.close()
        await asyncio.wait({running})
        await child.wait()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    return [
        row("control of a hand-off, consumer's CPU", ours, "us", wanted="<= 200"),
        row("control of a hand-off, producer's CPU", theirs, "us", wanted="<= 200"),
        row("round trips on the critical path", [calls], "calls", wanted="<= 2"),
        row("a hand-off without bytes, wall", walls, "us"),
    ]


def _consumer(clock: SystemClock) -> ConsumerSide:
    engine = _NoEngine()
    ledger = Ledger(num_blocks=NUM_BLOCKS, block_bytes=1, staging_bytes=1 << 40)
    owner = DestinationOwner(
        ledger=ledger,
        capacity=Capacity(ledger=ledger, clock=clock),
        clock=clock,
        worker=CONSUMER,
        incarnation=CONSUMER_LIFE,
        transport=TransportKind.TCP,
    )
    endpoint = MemoryEndpoint(hub="e" * 32, key="f" * 32)
    peer = Peer(identity=engine.identity, representation=engine.representation, endpoint=endpoint, reader=_NoReader())
    return ConsumerSide(
        engine,
        owner,
        lambda worker, life: peer,
        clock,
        worker=CONSUMER,
        incarnation=CONSUMER_LIFE,
        deadlines=Deadlines(reserve=PATIENCE, prefill=PATIENCE, transfer=PATIENCE, confirm=PATIENCE),
    )


def _request(name: str, first: int) -> Request:
    tokens = pack_tokens(range(first, first + TOKENS))
    return Request(request_id=RequestId(name), attempt=0, tenant=TENANT, tokens=tokens, sampling=Sampling(max_tokens=2))


async def _one(side: ConsumerSide, producer: _Counted, clock: SystemClock, request: Request) -> None:
    placed = Placed(request=request, producer=PRODUCER, producer_incarnation=PRODUCER_LIFE)
    released = await hand_off(placed, producer, side, watch=Watch(clock), on_token=lambda reply: None)
    side.finish(released.filled.reserved)


async def serve_producer() -> None:
    """The producer's process: one consumer's orders, until it hangs up."""
    clock = SystemClock()
    engine = _NoEngine()
    ledger = Ledger(num_blocks=NUM_BLOCKS, block_bytes=1, staging_bytes=0)
    owner = SourceOwner(
        ledger=ledger,
        capacity=Capacity(ledger=ledger, clock=clock),
        clock=clock,
        worker=PRODUCER,
        incarnation=PRODUCER_LIFE,
        lease=PATIENCE,
        transport=TransportKind.TCP,
        sole_tenant=TENANT,
    )
    side = ProducerSide(engine, owner, worker=PRODUCER, incarnation=PRODUCER_LIFE, wait=PATIENCE)
    done = asyncio.Event()

    async def called(channel: Channel, message: Message) -> Message:
        match message:
            case PeerHello():
                channel.greeted = True
            case PrefillOrder():
                return await side.prefill(message)
            case ConfirmOrder():
                return await side.confirm(message)
            case RenewOrder():
                await side.renew(message)
            case AbortOrder():
                await side.abort(message)
            case Pulse():
                return Snapshot(json=json.dumps(time.process_time()).encode())
            case _:
                return await _nothing_called(channel, message)
        return Ack()

    async def accept(link: Link) -> None:
        await Channel(link, clock, handler=called, posted=_nothing_posted).run()
        done.set()

    server = await listen(accept, "127.0.0.1", 0, tls=None)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await done.wait()
    server.close()


async def _nothing_called(_: Channel, message: Message) -> Message:
    raise FrameInvalid(f"call: {type(message).__name__} is not of this bench", field="call")


def _nothing_posted(_: Channel, message: Message) -> None:
    raise FrameInvalid(f"post: {type(message).__name__} is not of this bench", field="post")


if __name__ == "__main__":
    asyncio.run(serve_producer())
