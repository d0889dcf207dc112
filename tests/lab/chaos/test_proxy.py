"""The fault proxy: what each fault does to bytes that pass."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from isthmus.core.clock import SystemClock
from isthmus.core.errors import DeadlineExceeded
from isthmus.core.units import Duration
from isthmus.core.waiting import within
from isthmus.lab.chaos.proxy import FaultProxy, LinkFault
from isthmus.lab.demo.deployment import free_ports

CLOCK = SystemClock()
BRIEF = Duration.of_ms(150)


@dataclass
class Line:
    """A connection through a proxy to a server that gives back what it gets."""

    proxy: FaultProxy
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    received: bytearray

    async def round_trip(self, data: bytes) -> bytes:
        self.writer.write(data)
        return await self.reader.readexactly(len(data))


@asynccontextmanager
async def line() -> AsyncIterator[Line]:
    received = bytearray()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1024):
            received.extend(data)
            writer.write(data)

    listens, target = free_ports(2)
    server = await asyncio.start_server(echo, "127.0.0.1", target)
    async with FaultProxy(listens, target, CLOCK) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", listens)
        yield Line(proxy, reader, writer, received)
        writer.close()
    server.close()


async def test_bytes_pass_unchanged():
    async with line() as made:
        assert await made.round_trip(b"hello") == b"hello"


async def test_delayed_bytes_pass_late():
    async with line() as made:
        made.proxy.suffer(LinkFault.DELAY)
        start = CLOCK.now()
        assert await made.round_trip(b"hello") == b"hello"
        assert CLOCK.now() - start >= 75_000_000


async def test_a_cut_ends_the_connection():
    async with line() as made:
        await made.round_trip(b"hello")
        made.proxy.suffer(LinkFault.CUT)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await made.round_trip(b"hello")


@pytest.mark.parametrize(
    ("fault", "arrives"), [(LinkFault.STALL, b""), (LinkFault.ONWARD_LOST, b""), (LinkFault.BACKWARD_LOST, b"hello")]
)
async def test_what_is_held_back_does_not_arrive_and_healing_ends_the_connection(fault, arrives):
    async with line() as made:
        made.proxy.suffer(fault)
        with pytest.raises(DeadlineExceeded):
            await within(CLOCK, BRIEF, made.round_trip(b"hello"), "round trip")
        assert made.received == arrives
        made.proxy.heal()
        assert await made.reader.read() == b""


async def test_one_bit_is_flipped_once():
    async with line() as made:
        made.proxy.suffer(LinkFault.CORRUPT)
        assert await made.round_trip(b"hello") == b"he|lo"
        assert await made.round_trip(b"hello") == b"hello"


async def test_bytes_come_twice_once():
    async with line() as made:
        made.proxy.suffer(LinkFault.DUPLICATE)
        made.writer.write(b"hello")
        assert await made.reader.readexactly(10) == b"hellohello"
        assert await made.round_trip(b"hello") == b"hello"
