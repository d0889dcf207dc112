"""Two engines, two ledgers, one transport, one manual clock, in one process. Real bytes; nothing of ours is mocked."""

import asyncio
import dataclasses
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from isthmus.core.clock import ManualClock
from isthmus.core.errors import PeerLost
from isthmus.core.ids import BlockId, Incarnation, TenantId, WorkerId
from isthmus.core.units import Duration
from isthmus.engines.embedded.adapter import EmbeddedKV
from isthmus.engines.embedded.config import config_of, context_length_of, representation_of
from isthmus.engines.embedded.engine import EmbeddedEngine
from isthmus.engines.embedded.generate import Generated, generate
from isthmus.engines.embedded.model import LoadedModel, load_model
from isthmus.engines.embedded.pool import EncodedRows, PagedPool
from isthmus.handoff.consumer import ConsumerSide, Deadlines, Peer
from isthmus.handoff.handoff import hand_off
from isthmus.handoff.orders import PrefillReply
from isthmus.handoff.producer import ProducerSide
from isthmus.handoff.request import Request, Sampling
from isthmus.handoff.reuse import Reuse
from isthmus.handoff.stages import Placed, Released
from isthmus.handoff.watch import Watch
from isthmus.kernels.torch_codec import decode_rows
from isthmus.ownership import Capacity, DestinationOwner, Ledger, SourceOwner, TransportKind
from isthmus.ownership.prefix_cache import PrefixCache
from isthmus.ownership.retention import LeastRecent
from isthmus.state.manifest import decode_manifest
from isthmus.state.tokens import pack_tokens
from isthmus.transport.base import PeerId
from isthmus.transport.faulty import Fault
from isthmus.transport.memory import MemoryHub
from isthmus.transport.shm import SharedMemory
from isthmus.transport.table import Worker, open_exporters, open_readers
from tests.engines.models import DEVICE
from tests.handoff.hooks import HookedEngine, HookedProducer, HookedReader, Hooks

PREFILL, DECODE = WorkerId("prefill-0"), WorkerId("decode-0")
PREFILL_LIFE, DECODE_LIFE = Incarnation("a" * 32), Incarnation("b" * 32)
TENANT = TenantId("tenant-0")
LEASE = Duration.of_seconds(2)
PATIENCE = Duration.of_seconds(30)
MANY = 1 << 26
SECRET = b"a secret of the deployment"


@lru_cache(maxsize=8)
def loaded(model: Path, dtype: str, device: str) -> LoadedModel:
    return load_model(config_of({"model": model, "dtype": dtype, "device": device}))


def engine_of(model: Path, fields: dict, allocate: Callable[[int], object] = bytearray) -> EmbeddedEngine:
    """An engine whose pool is full of NaN. Models are loaded once: nobody writes to them."""
    config = config_of({"model": model, "num_blocks": 64, "step_tokens": 16, "device": DEVICE, **fields})
    found = loaded(model, config.dtype, config.device)
    found = dataclasses.replace(found, context_length=context_length_of(config, found.shape))
    pool = PagedPool(representation_of(config, found.shape), config.num_blocks, found.device, allocate)
    for region in pool.regions:
        region.data.fill_(0xFF)
    return EmbeddedEngine(config, found, pool)


@lru_cache(maxsize=64)
def alone(model: Path, kv_cache_dtype: str, prompt: tuple[int, ...], max_tokens: int) -> Generated:
    """What one engine alone answers, and its KV."""
    engine = engine_of(model, {"kv_cache_dtype": kv_cache_dtype})
    return generate(engine, [prompt], Sampling(max_tokens=max_tokens, ignore_eos=True), keep_kv=True)[0]


def ask(prompt: tuple[int, ...], *, name: str = "request", max_tokens: int = 5, tenant: str = TENANT) -> Request:
    sampling = Sampling(max_tokens=max_tokens, ignore_eos=True)
    return Request(request_id=name, attempt=0, tenant=tenant, tokens=pack_tokens(prompt), sampling=sampling)


async def turns(count: int = 20) -> None:
    """Let everything that is ready go on."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    """Return when `condition()` holds; engines' threads make it so."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  threads set no event
            await asyncio.sleep(0)


class World:
    """`async with World(model) as world:` runs both engines and the transport."""

    def __init__(
        self,
        model: Path,
        producer: dict | None = None,
        consumer: dict | None = None,
        *,
        consumer_model: Path | None = None,
        faults: Iterable[Fault | None] = (),
        transport: str = "memory",
        sole_tenant: TenantId | None = TENANT,
        staging_bytes: int = MANY,
        keeps: tuple[str, ...] = (),
    ) -> None:
        """`keeps`: which of "producer" and "consumer" keep prefixes for reuse."""
        self.clock = ManualClock()
        self.hooks = Hooks()
        self.memory = SharedMemory(self.clock) if transport == "shm" else None
        allocate = bytearray if self.memory is None else self.memory.allocate
        host = {"device": "cpu"} if self.memory is not None else {}  # only host memory can be shared
        self.source_engine = engine_of(model, host | (producer or {}), allocate)
        self.destination_engine = engine_of(consumer_model or model, consumer or {})
        self.source_kv = EmbeddedKV(self.source_engine, self.clock)
        self.destination_kv = EmbeddedKV(self.destination_engine, self.clock)
        common = {"clock": self.clock, "transport": TransportKind(transport)}
        self.source_ledger, self.source_prefixes, capacity = self._ledger(self.source_kv, 0, "producer" in keeps)
        self.source = SourceOwner(
            ledger=self.source_ledger,
            capacity=capacity,
            worker=PREFILL,
            incarnation=PREFILL_LIFE,
            lease=LEASE,
            sole_tenant=sole_tenant,
            prefixes=self.source_prefixes,
            **common,
        )
        self.destination_ledger, self.destination_prefixes, capacity = self._ledger(
            self.destination_kv, staging_bytes, "consumer" in keeps
        )
        self.destination = DestinationOwner(
            ledger=self.destination_ledger,
            capacity=capacity,
            worker=DECODE,
            incarnation=DECODE_LIFE,
            prefixes=self.destination_prefixes,
            **common,
        )
        self.side = ProducerSide(
            HookedEngine(self.source_kv, self.hooks),
            self.source,
            worker=PREFILL,
            incarnation=PREFILL_LIFE,
            wait=PATIENCE,
            resuming=self.source_kv,
            reuse=Reuse(self.source_kv.representation, self.source_prefixes, secret=SECRET),
        )
        self.producer = HookedProducer(self.side, self.hooks, self.clock)
        self.consumer = ConsumerSide(
            HookedEngine(self.destination_kv, self.hooks),
            self.destination,
            self._peer_of,
            self.clock,
            worker=DECODE,
            incarnation=DECODE_LIFE,
            deadlines=Deadlines(reserve=PATIENCE, prefill=PATIENCE, transfer=PATIENCE, confirm=LEASE / 4),
            reuse=Reuse(self.destination_kv.representation, self.destination_prefixes, secret=SECRET),
        )
        self._wire(transport, faults)
        self.offers: list[tuple[PrefillReply, tuple[BlockId, ...], EncodedRows]] = []

    def _ledger(self, kv: EmbeddedKV, staging_bytes: int, keeps: bool) -> tuple[Ledger, PrefixCache | None, Capacity]:
        num_blocks = kv.residency.num_blocks
        ledger = Ledger(num_blocks=num_blocks, block_bytes=kv.block_bytes, staging_bytes=staging_bytes)
        if not keeps:
            return ledger, None, Capacity(ledger=ledger, clock=self.clock)
        prefixes = PrefixCache(ledger=ledger, clock=self.clock, retention=LeastRecent(), blocks_max=num_blocks)
        return ledger, prefixes, Capacity(ledger=ledger, clock=self.clock, reclaim=prefixes.reclaim)

    def _wire(self, transport: str, faults: Iterable[Fault | None]) -> None:
        hub = MemoryHub(self.clock)
        owner = PeerId(worker=PREFILL, incarnation=PREFILL_LIFE)
        lent = Worker(identity=owner, clock=self.clock, hub=hub, memory=self.memory)
        self.exporter = open_exporters([transport], lent, self.source_kv.lender, self.source)[transport]
        here = Worker(identity=PeerId(worker=DECODE, incarnation=DECODE_LIFE), clock=self.clock, hub=hub)
        self.reader = HookedReader(open_readers([transport], here)[transport], faults, self.clock, self.hooks)

    async def __aenter__(self) -> "World":
        self._stack = AsyncExitStack()
        if self.memory is not None:
            self._stack.callback(self.memory.close)
        await self._stack.enter_async_context(self.source_kv.running())
        await self._stack.enter_async_context(self.destination_kv.running())
        endpoint = await self.exporter.start()
        self._stack.push_async_callback(self.exporter.close)
        self._stack.push_async_callback(self.reader.close)
        self.peer = Peer(
            identity=self.source_kv.identity,
            representation=self.source_kv.representation,
            endpoint=endpoint,
            reader=self.reader,
        )
        return self

    async def __aexit__(self, *error) -> None:
        await self._stack.__aexit__(*error)

    def _peer_of(self, worker: WorkerId, incarnation: Incarnation) -> Peer:
        if (worker, incarnation) != (PREFILL, PREFILL_LIFE):
            raise PeerLost(f"{worker} is not registered", field="producer")
        return self.peer

    # a request

    async def hand_off(self, request: Request) -> Released:
        placed = Placed(request=request, producer=PREFILL, producer_incarnation=PREFILL_LIFE)
        return await hand_off(
            placed, self.producer, self.consumer, watch=Watch(self.clock), on_token=lambda r: self._keep(request, r)
        )

    def _keep(self, request: Request, reply: PrefillReply) -> None:
        """What was offered, and the producer's rows before anybody reads them."""
        if reply.manifest:
            state = decode_manifest(reply.manifest)
            blocks = state.groups[0].block_ids
            block_size = self.source_engine.pool.group.block_size
            length = request.num_tokens - state.token_range.start // block_size * block_size
            rows = self.source_engine.pool.read_tokens(blocks, length)
            self.offers.append((reply, blocks, rows))

    async def decode(self, request: Request, released: Released) -> tuple[int, ...]:
        """All tokens of the answer; then the consumer's blocks are free."""
        reserved, reply = released.filled.reserved, released.filled.reply
        tokens = [reply.token]
        async for step in self.destination_kv.decode(reserved.handoff, request, reply.token, reserved.blocks):
            tokens.append(step.token)
        await self.destination_kv.stop_decode(reserved.handoff)
        self.consumer.finish(reserved)
        return tuple(tokens)

    def installed_rows(self, request: Request, released: Released) -> EncodedRows:
        return self.destination_engine.pool.read_tokens(released.filled.reserved.blocks, request.num_tokens)

    # looking around

    def installs(self) -> int:
        """Hand-offs that were ever committed."""
        rows = [*self.destination.snapshot(), *self.destination.finished()]
        return sum(row["outcome"] == "succeeded" for row in rows)

    def pass_time(self, duration: Duration) -> None:
        """Time passes, and the reaper looks."""
        self.clock.advance(duration)
        self.source.reap()

    async def drained(self) -> None:
        """Both ledgers come to hold nothing, without time passing."""
        try:
            await until(lambda: not len(self.source) and not len(self.destination))
        except TimeoutError:
            raise AssertionError(f"held: {self.source.snapshot()}, {self.destination.snapshot()}") from None
        for ledger in (self.source_ledger, self.destination_ledger):
            held = ledger.held()
            assert (held.blocks, held.staging_bytes, held.grants, held.active, held.retention) == (0, 0, 0, 0, 0)
            ledger.check_in_full()


def decoded(engine: EmbeddedEngine, rows: EncodedRows, name: str) -> Tensor:
    """Rows of "key" or "value" as f32."""
    scale = rows.fields.get(f"{name}_scale")
    if scale is not None:
        scale = scale.contiguous().view(torch.float32).squeeze(-1)
    return decode_rows(rows.fields[name], engine.pool.group.component(name).encoding, scale)
