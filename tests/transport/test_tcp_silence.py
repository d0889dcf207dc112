"""A peer whose host is gone takes no leave: its connections end all the same."""

import asyncio
import socket
from collections.abc import Iterator

import pytest

from isthmus.core.clock import SystemClock
from isthmus.core.errors import Unsupported
from isthmus.lab.chaos.partitions import HUB, Network, Partition
from isthmus.transport.tcp import TcpExporter, _server
from isthmus.transport.tcp._frames import Hello, encode_frame
from tests.transport.test_tcp import GRID, lender
from tests.transport.worlds import CONSUMER, OWNER, FakeGuard

HELLO = encode_frame(Hello(version=1, reader=CONSUMER, server=OWNER))


@pytest.fixture
def network() -> Iterator[Network]:
    try:
        made = Network(["consumer"]).__enter__()
    except Unsupported as error:
        pytest.skip(str(error))
    yield made
    made.__exit__()


async def test_connections_of_a_peer_that_is_silent_for_ever_end(network, monkeypatch):
    """They would count against the exporter's bound until nobody could read any more."""
    monkeypatch.setattr(_server, "CONNECTION_SILENCE_SECONDS_MAX", 2)
    monkeypatch.setattr(_server, "PROBES", 1)
    exporter = TcpExporter(OWNER, lender(1, GRID, 9), FakeGuard(), SystemClock(), host=HUB)
    endpoint = await exporter.start()
    with network.beside("consumer"):
        dialling = socket.socket()
    dialling.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(dialling, (HUB, endpoint.port))
    await loop.sock_sendall(dialling, HELLO)
    assert await loop.sock_recv(dialling, 1024)
    (conversation,) = exporter._conversations
    network.part("consumer", Partition.WHOLE, control_port=1)
    async with asyncio.timeout(10):
        await asyncio.wait({conversation})
    assert not conversation.exception()
    dialling.close()
    await exporter.close()
