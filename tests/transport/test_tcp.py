"""TCP: connections, who may be at the other end, and what happens when it goes."""

import asyncio
import gc
import os

import msgspec
import pytest

from isthmus.core.clock import SystemClock
from isthmus.core.errors import CapacityExceeded, DeadlineExceeded, Lost, NotAuthorised, PeerLost, StaleEpoch
from isthmus.core.limits import CONNECTIONS_PER_PEER_MAX, TCP_CHUNK_BYTES
from isthmus.core.units import Duration
from isthmus.transport.blocks import HostLender
from isthmus.transport.tcp import TcpExporter, TcpReader, _server
from isthmus.transport.tcp._stream import Stream
from tests.transport.worlds import (
    CONSUMER,
    OWNER,
    SOON,
    STALE,
    FakeGuard,
    image,
    pool,
    request,
    shape,
    staging,
    until,
)

GRID = (shape("tp0.kv", 4, 384),)
LARGE = (shape("tp0.kv", 64, 1 << 16),)  # 64 MiB in 16 blocks


@pytest.fixture
async def reader():
    found = TcpReader(CONSUMER, SystemClock())
    yield found
    await found.close()


def lender(seed, regions, num_blocks):
    held = pool(seed, regions, num_blocks)
    return HostLender(tuple(regions), num_blocks, {n: memoryview(a.reshape(-1)) for n, a in held.items()})


async def read_one(reader, endpoint, regions=GRID, num_blocks=9):
    read = request(regions, [3, 1], num_blocks)
    into = staging(read)
    await reader.read(read, endpoint, into, SOON)
    return {region: bytes(view) for region, view in into.items()}, read


def descriptors() -> int:
    """Open now, but for what an earlier test has left to the collector."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


async def test_nothing_listens_beyond_loopback(owner):
    owner.open(1, GRID, 9)
    assert owner.ask(do="listening") == ["127.0.0.1"]


async def test_two_hundred_reads_use_one_connection_and_leave_none(owner, reader):
    before = descriptors()
    endpoint = owner.open(1, GRID, 9)["tcp"]
    for _ in range(200):
        await read_one(reader, endpoint)
    assert descriptors() == before + 1
    await reader.close()
    await asyncio.sleep(0)
    assert descriptors() == before


async def test_parallel_reads_use_a_bounded_number_of_connections(owner, reader):
    before = descriptors()
    endpoint = owner.open(1, GRID, 9)["tcp"]
    await asyncio.gather(*(read_one(reader, endpoint) for _ in range(50)))
    assert descriptors() <= before + CONNECTIONS_PER_PEER_MAX


async def test_an_owner_killed_in_mid_read_is_lost_and_nothing_writes_afterwards(mortal, reader):
    endpoint = mortal.open(1, LARGE, 16, stall_after=9)["tcp"]
    read = request(LARGE, range(16), 16)
    into = staging(read)
    task = asyncio.create_task(reader.read(read, endpoint, into, SOON))
    assert await asyncio.to_thread(mortal.answer) == {"stalled": True}
    mortal.kill()
    async with asyncio.timeout(2):
        with pytest.raises(PeerLost):
            await task
    view = into[LARGE[0].id]
    assert any(view[:256])
    assert not any(view[-256:])
    before = bytes(view)
    await asyncio.sleep(0.02)  # waits for something not to happen
    assert bytes(view) == before
    with pytest.raises(PeerLost):
        await read_one(reader, endpoint)


async def test_an_owner_that_stalls_is_left_at_the_deadline(mortal, reader):
    endpoint = mortal.open(1, LARGE, 16, stall_after=3)["tcp"]
    read = request(LARGE, range(16), 16)
    with pytest.raises(DeadlineExceeded):
        await reader.read(read, endpoint, staging(read), Duration.of_ms(100))


async def test_forget_ends_reads_in_flight_and_connections_at_rest(mortal, reader):
    before = descriptors()
    endpoint = mortal.open(1, LARGE, 16, stall_after=3)["tcp"]
    read = request(LARGE, range(16), 16)
    task = asyncio.create_task(reader.read(read, endpoint, staging(read), SOON))
    await asyncio.to_thread(mortal.answer)
    reader.forget(endpoint)
    with pytest.raises(PeerLost):
        await task
    await asyncio.sleep(0)
    assert descriptors() == before


async def test_a_refusal_does_not_cost_the_connection(owner, reader):
    endpoint = owner.open(1, GRID, 9)["tcp"]
    await read_one(reader, endpoint)
    (connections,) = reader._pool._peers.values()
    (stream,) = connections.idle
    read = request(GRID, [1], 9, STALE)
    with pytest.raises(StaleEpoch, match="has ended") as caught:
        await reader.read(read, endpoint, staging(read), SOON)
    assert caught.value.field == "epoch"
    await read_one(reader, endpoint)
    assert connections.idle == [stream]


async def test_another_life_of_the_owner_is_a_lost_peer(owner, reader):
    endpoint = owner.open(1, GRID, 9)["tcp"]
    earlier = msgspec.structs.replace(endpoint, peer=OWNER)
    with pytest.raises(PeerLost, match="another life"):
        await read_one(reader, earlier)
    await read_one(reader, endpoint)


async def test_a_request_in_anothers_name_is_refused():
    exporter = TcpExporter(OWNER, lender(1, GRID, 9), FakeGuard(), SystemClock())
    reader = TcpReader(OWNER, SystemClock())  # says hello as "owner", asks as "consumer"
    with pytest.raises(NotAuthorised, match="said hello"):
        await read_one(reader, await exporter.start())
    await reader.close()
    await exporter.close()


async def test_a_closed_exporter_is_a_lost_peer_and_its_descriptors_are_gone(reader):
    before = descriptors()
    exporter = TcpExporter(OWNER, lender(1, GRID, 9), FakeGuard(), SystemClock())
    endpoint = await exporter.start()
    await read_one(reader, endpoint)
    await exporter.close()
    with pytest.raises(PeerLost):
        await read_one(reader, endpoint)
    assert reader._pool._peers == {}
    await asyncio.sleep(0)
    assert descriptors() == before


async def test_more_connections_than_the_limit_are_refused_by_name(monkeypatch):
    monkeypatch.setattr(_server, "CONNECTIONS_PER_EXPORTER_MAX", 2)
    exporter = TcpExporter(OWNER, lender(1, GRID, 9), FakeGuard(), SystemClock())
    endpoint = await exporter.start()
    readers = [TcpReader(CONSUMER, SystemClock()) for _ in range(3)]
    for reader in readers[:2]:
        await read_one(reader, endpoint)
    with pytest.raises(CapacityExceeded, match="connections"):
        await read_one(readers[2], endpoint)
    await readers[0].close()
    await until(lambda: len(exporter._conversations) == 1)
    await read_one(readers[2], endpoint)
    for reader in readers:
        await reader.close()
    await exporter.close()


async def test_a_receive_cut_short_ends_the_connection_and_none_follows_on_a_closed_one():
    exporter = TcpExporter(OWNER, lender(1, GRID, 9), FakeGuard(), SystemClock())
    endpoint = await exporter.start()
    _, stream = await asyncio.get_running_loop().create_connection(Stream, endpoint.host, endpoint.port)
    waiting = asyncio.create_task(stream.receive(memoryview(bytearray(9))))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert stream.closed
    async with asyncio.timeout(2):
        with pytest.raises(PeerLost):
            await stream.receive(memoryview(bytearray(9)))
        with pytest.raises(PeerLost):
            await stream.send(b"x")
    await exporter.close()


class FailingLender(HostLender):
    """Refuses after two chunks: a lender's bug, for the guard had allowed the read."""

    lent = 0

    def copy_out(self, region, outer, blocks, into):
        self.lent += 1
        if self.lent == 3:
            raise StaleEpoch("too late to say so")
        super().copy_out(region, outer, blocks, into)


async def test_a_refusal_never_arrives_as_bytes_of_blocks(reader):
    """Once the first byte is on its way there is no room for words: the connection ends, and the error is ours."""
    held = pool(1, LARGE, 16)
    failing = FailingLender(LARGE, 16, {n: memoryview(a.reshape(-1)) for n, a in held.items()})
    exporter = TcpExporter(OWNER, failing, FakeGuard(), SystemClock())
    reported = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))
    read = request(LARGE, range(16), 16)
    into = staging(read)
    with pytest.raises(Lost):
        await reader.read(read, await exporter.start(), into, SOON)
    await exporter.close()
    await asyncio.sleep(0)
    assert [type(error).__name__ for error in reported] == ["Bug"]
    arrived = bytes(into[LARGE[0].id])
    assert b"too late" not in arrived
    wanted = image(held, read)[LARGE[0].id]
    full = next((i for i in range(0, len(wanted), 4096) if arrived[i : i + 4096] != wanted[i : i + 4096]), len(wanted))
    assert not any(arrived[full + 4096 :])


class EndingGuard(FakeGuard):
    """The grant ends while the third chunk is copied."""

    def check_read(self, grant, epoch, reader, blocks) -> None:
        super().check_read(grant, epoch, reader, blocks)
        if self.asked > 3:
            raise StaleEpoch("epoch: the grant has ended", field="epoch")


async def test_I7_what_is_copied_after_a_grant_has_ended_is_never_sent(reader):
    """Its blocks may be another tenant's by then: the owner looks again after each copy, and ends the connection."""
    held = pool(1, LARGE, 16)
    lender = HostLender(LARGE, 16, {n: memoryview(a.reshape(-1)) for n, a in held.items()})
    guard = EndingGuard()
    exporter = TcpExporter(OWNER, lender, guard, SystemClock())
    read = request(LARGE, range(16), 16)
    into = staging(read)
    with pytest.raises(Lost):
        await reader.read(read, await exporter.start(), into, SOON)
    await exporter.close()
    assert guard.asked == 4
    assert not any(bytes(into[LARGE[0].id])[2 * TCP_CHUNK_BYTES :])
