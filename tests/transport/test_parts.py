"""Chunks, waiting, faults, the choice of a transport, the table."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.core.clock import ManualClock, SystemClock
from isthmus.core.errors import Bug, ConfigInvalid, DeadlineExceeded, NotAuthorised, TransferFailed, Unsupported
from isthmus.core.units import Duration
from isthmus.core.waiting import in_thread, settle, within
from isthmus.transport.base import Endpoint, MemoryEndpoint, ShmEndpoint, TcpEndpoint, transport_name
from isthmus.transport.blocks import HostLender, chunks_of, copy_blocks
from isthmus.transport.faulty import Delay, Drop, FaultKind, FaultyReader, FlipBit, Tear, When, draw_faults
from isthmus.transport.memory import MemoryExporter, MemoryHub, MemoryReader
from isthmus.transport.select import PREFERRED, choose
from isthmus.transport.shm import SharedMemory, ShmReader
from isthmus.transport.table import TRANSPORTS, Worker, open_exporters, open_importers, open_readers, open_writers
from isthmus.transport.tcp import TcpReader
from tests.transport.worlds import (
    CONSUMER,
    OWNER,
    SOON,
    FakeGuard,
    FakeWriteGuard,
    cases,
    image,
    lender,
    pool,
    request,
    shape,
    staging,
    target,
    write,
)

GRID = (shape("tp0.kv", 3, 100), shape("tp1.kv", 2, 50))


# ---- chunks


@given(case=cases(), chunk_bytes=st.integers(1, 40_000))
def test_chunks_follow_each_other_without_a_gap_and_make_the_image(case, chunk_bytes):
    seed, regions, num_blocks, blocks = case
    held, read = pool(seed, regions, num_blocks), request(regions, blocks, num_blocks)
    for region in regions:
        into, end = memoryview(bytearray(region.size_bytes(len(blocks)))), 0
        for chunk in chunks_of(region, len(blocks), chunk_bytes):
            assert chunk.start == end < chunk.stop
            assert chunk.stop - chunk.start <= max(chunk_bytes, region.block_bytes)
            ids = blocks[chunk.block_start : chunk.block_stop]
            copy_blocks(held[region.id], chunk.outer, ids, into[chunk.start : chunk.stop])
            end = chunk.stop
        assert bytes(into) == image(held, read)[region.id]


@pytest.mark.parametrize(
    ("outer", "blocks"), [(range(2), [5]), (range(2), [-1]), (range(3, 4), [0]), (range(0), [0]), (range(2), [])]
)
def test_a_copy_outside_the_region_is_refused(outer, blocks):
    with pytest.raises(NotAuthorised):
        copy_blocks(np.zeros((3, 5, 8), np.uint8), outer, blocks, memoryview(bytearray(16)))


def test_a_lender_wants_buffers_of_the_regions_sizes():
    with pytest.raises(Bug, match=r"tp0\.kv"):
        HostLender(GRID, 4, {})
    with pytest.raises(Bug, match=r"tp0\.kv"):
        HostLender(GRID, 4, {region.id: memoryview(bytearray(7)) for region in GRID})


# ---- waiting


async def test_a_deadline_waits_for_what_it_cancels():
    clock, ended = ManualClock(), []

    async def stubborn():
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    waiting = asyncio.create_task(within(clock, Duration.of_ms(5), stubborn(), "waiting"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    clock.advance(Duration.of_ms(5))
    with pytest.raises(DeadlineExceeded, match="waiting"):
        await waiting
    assert ended == [True]


async def test_a_thread_is_waited_for_however_often_the_waiter_is_cancelled():
    started, let_go, ended = threading.Event(), threading.Event(), []

    def work(stop):
        started.set()
        stop.wait()
        let_go.wait()
        ended.append(True)

    with ThreadPoolExecutor(1) as threads:
        task = asyncio.create_task(in_thread(threads, work))
        await asyncio.to_thread(started.wait)
        early = []
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
            early.append(task.done())
        let_go.set()
        assert not any(early)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended == [True]


async def test_settle_leaves_the_outcome_alone():
    async def fail():
        raise ValueError

    task = asyncio.create_task(fail())
    await settle(task)
    assert isinstance(task.exception(), ValueError)


# ---- faults


@pytest.fixture
async def source():
    """(reader, endpoint, what is held) of an honest in-process transport."""
    clock = SystemClock()
    hub = MemoryHub(clock)
    held = pool(1, GRID, 9)
    buffers = {name: memoryview(array.reshape(-1)) for name, array in held.items()}
    exporter = MemoryExporter(hub, HostLender(GRID, 9, buffers), FakeGuard(), clock)
    return MemoryReader(hub, clock), await exporter.start(), held


async def read_faulty(source, fault, fill=0, clock=None):
    inner, endpoint, held = source
    read = request(GRID, [3, 1], 9)
    into = staging(read, fill)
    reader = FaultyReader(inner, iter([fault]), clock or SystemClock())
    try:
        await reader.read(read, endpoint, into, SOON)
    finally:
        arrived = b"".join(into.values())
    return arrived, b"".join(image(held, read).values())


@pytest.mark.parametrize("bit", [0, 7, 8 * 600 + 3, 8 * 800 - 1, 8 * 800, 1 << 100])
async def test_a_flipped_bit_is_one_bit(source, bit):
    arrived, wanted = await read_faulty(source, FlipBit(bit=bit))
    assert (int.from_bytes(arrived) ^ int.from_bytes(wanted)).bit_count() == 1
    at = (bit % 6400) // 8
    assert arrived[at] ^ wanted[at] == 1 << bit % 8


async def test_a_torn_read_has_older_content_in_front(source):
    arrived, wanted = await read_faulty(source, Tear(fraction=0.9), fill=0xEE)
    assert arrived == b"\xee" * 720 + wanted[720:]


async def test_a_dropped_read_raises_and_has_only_a_part(source):
    inner, endpoint, held = source
    read = request(GRID, [3, 1], 9)
    into = staging(read)
    reader = FaultyReader(inner, iter([Drop(fraction=0.5)]), SystemClock())
    with pytest.raises(TransferFailed):
        await reader.read(read, endpoint, into, SOON)
    wanted = b"".join(image(held, read).values())
    assert b"".join(into.values()) == wanted[:400] + bytes(400)
    assert await reader.read(read, endpoint, into, SOON) == 800  # the schedule has run out
    assert reader.injected == [Drop(fraction=0.5)]


@pytest.mark.parametrize("when", list(When))
async def test_a_delayed_read_arrives_when_the_clock_says(source, when):
    clock = ManualClock()
    task = asyncio.create_task(read_faulty(source, Delay(duration=Duration.of_ms(9), when=when), clock=clock))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not task.done()
    clock.advance(Duration.of_ms(9))
    arrived, wanted = await task
    assert arrived == wanted


def test_a_seed_draws_the_same_faults_and_about_as_many_as_asked():
    def draw(seed):
        drawn = draw_faults(ManualClock(seed), list(FaultKind), one_in=4, delay=Duration.of_ms(1))
        return list(islice(drawn, 400))

    assert draw(1) == draw(1) != draw(2)
    faults = [fault for fault in draw(1) if fault is not None]
    assert 60 < len(faults) < 140
    assert {type(fault) for fault in faults} == {FlipBit, Tear, Drop, Delay}


# ---- the choice


def endpoints(host):
    return (
        TcpEndpoint(host="127.0.0.1", port=1, peer=OWNER),
        ShmEndpoint(host=host, pid=1, fd=1, stamp="0" * 32),
        MemoryEndpoint(hub="0" * 32, key="0" * 32),
    )


@pytest.fixture
async def readers():
    clock = SystemClock()
    found = {
        "shm": ShmReader(clock),
        "tcp": TcpReader(CONSUMER, clock),
        "memory": MemoryReader(MemoryHub(clock), clock),
    }
    yield found
    await found["shm"].close()


async def test_shared_memory_is_taken_on_one_host_and_tcp_across(readers):
    here = readers["shm"]._host
    assert choose(endpoints(here), readers).transport == "shm"
    assert choose(endpoints("f" * 32), readers).transport == "tcp"
    assert choose(endpoints(here), readers, ("tcp", "shm")).transport == "tcp"
    assert choose(endpoints(here), readers).endpoint == endpoints(here)[1]


async def test_no_common_transport_is_an_error_that_names_both_lists(readers):
    offered = endpoints("f" * 32)[1:]
    with pytest.raises(Unsupported, match=r"offers \['memory', 'shm'\].*moves by \['memory', 'shm', 'tcp'\]") as caught:
        choose(offered, readers)
    assert "['memory', 'shm'] cannot reach" in str(caught.value)
    with pytest.raises(Unsupported, match="share none"):
        choose(offered, {"tcp": readers["tcp"]})


# ---- the table and the wire


def test_endpoints_survive_a_worker_registration_and_unknown_ones_are_refused():
    for endpoint in endpoints("f" * 32):
        encoded = msgspec.msgpack.encode(endpoint)
        assert msgspec.msgpack.decode(encoded, type=Endpoint) == endpoint
        assert transport_name(endpoint) in TRANSPORTS
        more = msgspec.msgpack.decode(encoded) | {"address": 1}
        with pytest.raises(msgspec.ValidationError, match="address"):
            msgspec.convert(more, Endpoint)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"type": "carrier pigeon"}, Endpoint)
    with pytest.raises(msgspec.ValidationError, match="port"):
        msgspec.convert({"type": "tcp", "host": "h", "port": 0, "peer": msgspec.to_builtins(OWNER)}, Endpoint)


async def test_every_row_of_the_table_carries_bytes():
    clock = SystemClock()
    memory = SharedMemory(clock)
    held = pool(1, GRID, 9)
    buffers = {region.id: memory.allocate(region.size_bytes(9)) for region in GRID}
    for name, buffer in buffers.items():
        np.frombuffer(buffer, np.uint8)[:] = held[name].reshape(-1)
    hub = MemoryHub(clock)
    owner = Worker(identity=OWNER, clock=clock, hub=hub, memory=memory)
    consumer = Worker(identity=CONSUMER, clock=clock, hub=hub)
    exporters = open_exporters(tuple(TRANSPORTS), owner, HostLender(GRID, 9, buffers), FakeGuard())
    readers = open_readers(tuple(TRANSPORTS), consumer)
    assert set(PREFERRED) == set(TRANSPORTS)
    for name, row in TRANSPORTS.items():
        endpoint = await exporters[name].start()
        assert isinstance(endpoint, row.endpoint)
        read = request(GRID, [8, 0], 9)
        into = staging(read)
        await readers[name].read(read, endpoint, into, SOON)
        assert {region: bytes(view) for region, view in into.items()} == image(held, read)
        await readers[name].close()
        await exporters[name].close()
    memory.close()


async def test_every_row_of_the_table_carries_bytes_the_other_way():
    clock = SystemClock()
    hub, held, lent = MemoryHub(clock), pool(1, GRID, 9), lender(pool(1, GRID, 9), GRID, 9)
    importers = open_importers(tuple(TRANSPORTS), Worker(identity=CONSUMER, clock=clock, hub=hub), FakeWriteGuard())
    writers = open_writers(tuple(TRANSPORTS), Worker(identity=OWNER, clock=clock, hub=hub))
    for name, row in TRANSPORTS.items():
        endpoint = await importers[name].start()
        assert isinstance(endpoint, row.endpoint)
        wanted = target(GRID, 2)
        exposed = importers[name].expose(wanted)
        await writers[name].write(write(wanted), endpoint, lent, [8, 0], SOON)
        assert await importers[name].withdraw(wanted.grant)
        assert {region: bytes(view) for region, view in exposed.items()} == image(held, request(GRID, [8, 0], 9))
        await writers[name].close()
        await importers[name].close()


def test_a_worker_that_lacks_what_a_transport_needs_is_told_so():
    worker = Worker(identity=OWNER, clock=SystemClock())
    lender = HostLender(GRID[:1], 1, {GRID[0].id: memoryview(bytearray(300))})
    for name, word in (("memory", "hub"), ("shm", "shared memory"), ("nixl", "'memory', 'shm', 'tcp'")):
        with pytest.raises(ConfigInvalid, match=word):
            open_exporters([name], worker, lender, FakeGuard())
