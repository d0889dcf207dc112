"""KV over TLS: the same bytes, and only between workers that prove their names."""

import asyncio

import pytest

from isthmus.core.clock import SystemClock
from isthmus.core.errors import CapacityExceeded, NotAuthorised, PeerLost
from isthmus.core.ids import WorkerId
from isthmus.core.limits import CONNECTIONS_PER_PEER_MAX
from isthmus.transport.base import TcpEndpoint
from isthmus.transport.tcp import TcpExporter, TcpImporter, TcpReader, TcpWriter
from isthmus.transport.tcp._frames import Hello, decode_greeting, encode_frame
from isthmus.transport.tcp._server import CONNECTIONS_OF_PEER_MAX
from tests.transport.worlds import (
    CONSUMER,
    OWNER,
    SOON,
    FakeGuard,
    FakeWriteGuard,
    image,
    lender,
    pool,
    request,
    shape,
    staging,
    target,
    write,
)

CLOCK = SystemClock()
# Large enough for many TLS records and many chunks; and one of a few bytes.
GRID = (shape("tp0.kv", 6, 100_003), shape("tp1.kv", 2, 3))
BLOCKS = 9
IDS = [3, 1, 8, 0]


@pytest.fixture
def held():
    return pool(7, GRID, BLOCKS)


def exporter(held, tls):
    return TcpExporter(OWNER, lender(held, GRID, BLOCKS), FakeGuard(), CLOCK, tls=tls)


async def test_a_read_over_tls_brings_the_same_bytes_again_and_again_on_one_connection(authority, held):
    serving = exporter(held, authority.tls("owner"))
    reader = TcpReader(CONSUMER, CLOCK, authority.tls("consumer"))
    endpoint = await serving.start()
    read = request(GRID, IDS, BLOCKS)
    for _ in range(3):
        into = staging(read)
        assert await reader.read(read, endpoint, into, SOON) == read.size_bytes
        assert {name: bytes(view) for name, view in into.items()} == image(held, read)
    (connections,) = reader._pool._peers.values()
    assert len(connections.idle) == 1
    await reader.close()
    await serving.close()


async def test_a_write_over_tls_brings_the_same_bytes(authority, held):
    serving = TcpImporter(CONSUMER, FakeWriteGuard(), CLOCK, tls=authority.tls("consumer"))
    writer = TcpWriter(OWNER, CLOCK, authority.tls("owner"))
    endpoint = await serving.start()
    read = request(GRID, IDS, BLOCKS)
    wanted = target(GRID, len(IDS))
    into = serving.expose(wanted)
    await writer.write(write(wanted), endpoint, lender(held, GRID, BLOCKS), IDS, SOON)
    assert {name: bytes(view) for name, view in into.items()} == image(held, read)
    assert await serving.withdraw(wanted.grant)
    await writer.close()
    await serving.close()


async def test_nothing_of_kv_crosses_in_the_clear(authority, held):
    """A relay in between sees neither the blocks nor the grant."""
    serving = exporter(held, authority.tls("owner"))
    endpoint = await serving.start()
    seen = bytearray()

    async def relay(reading, writing):
        far_reading, far_writing = await asyncio.open_connection(endpoint.host, endpoint.port)

        async def pump(source, sink):
            while data := await source.read(1 << 16):
                seen.extend(data)
                sink.write(data)
            sink.close()

        await asyncio.gather(pump(reading, far_writing), pump(far_reading, writing), return_exceptions=True)

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    reader = TcpReader(CONSUMER, CLOCK, authority.tls("consumer"))
    read = request(GRID, IDS, BLOCKS)
    into = staging(read)
    await reader.read(read, TcpEndpoint(host="127.0.0.1", port=port, peer=OWNER), into, SOON)
    for view in into.values():
        assert bytes(view[:64]) not in seen
    assert read.grant.encode() not in seen
    assert len(seen) > read.size_bytes
    await reader.close()
    server.close()
    await serving.close()


async def test_a_reader_with_anothers_certificate_is_refused_by_name(authority, held):
    serving = exporter(held, authority.tls("owner"))
    reader = TcpReader(CONSUMER, CLOCK, authority.tls("decode-0"))
    read = request(GRID, IDS, BLOCKS)
    with pytest.raises(NotAuthorised, match="is for 'decode-0'"):
        await reader.read(read, await serving.start(), staging(read), SOON)
    await reader.close()
    await serving.close()


async def test_an_owner_with_anothers_certificate_is_not_read_from(authority, held):
    serving = exporter(held, authority.tls("decode-0"))
    reader = TcpReader(CONSUMER, CLOCK, authority.tls("consumer"))
    read = request(GRID, IDS, BLOCKS)
    into = staging(read)
    with pytest.raises(NotAuthorised, match="'owner'"):
        await reader.read(read, await serving.start(), into, SOON)
    assert not any(any(view) for view in into.values())
    await reader.close()
    await serving.close()


async def test_strangers_and_plain_connections_get_nothing(authority, strangers, held):
    serving = exporter(held, authority.tls("owner"))
    endpoint = await serving.start()
    read = request(GRID, IDS, BLOCKS)
    for tls, error in ((None, PeerLost), (strangers.tls("consumer"), NotAuthorised)):
        reader = TcpReader(CONSUMER, CLOCK, tls)
        with pytest.raises(error):
            await reader.read(read, endpoint, staging(read), SOON)
        await reader.close()
    await serving.close()


async def test_one_peer_cannot_take_all_connections(held):
    serving = exporter(held, None)
    endpoint = await serving.start()
    other = CONSUMER.__class__(worker=WorkerId("other"), incarnation=CONSUMER.incarnation)

    async def greet(peer):
        reading, writing = await asyncio.open_connection(endpoint.host, endpoint.port)
        writing.write(encode_frame(Hello(version=1, reader=peer, server=OWNER)))
        length = int.from_bytes(await reading.readexactly(4), "big")
        return writing, decode_greeting(await reading.readexactly(length))

    opened = [await greet(CONSUMER) for _ in range(CONNECTIONS_OF_PEER_MAX + 1)]
    codes = [getattr(answer, "code", "") for _, answer in opened]
    assert codes == [""] * CONNECTIONS_OF_PEER_MAX + [CapacityExceeded.__name__]
    assert CONNECTIONS_OF_PEER_MAX > CONNECTIONS_PER_PEER_MAX
    writing, answer = await greet(other)
    assert getattr(answer, "code", "") == ""
    for one in (writing, *(w for w, _ in opened)):
        one.close()
    await serving.close()
    assert serving._greeted == {}
