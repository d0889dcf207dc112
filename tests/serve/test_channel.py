"""A channel of two ends in one process: every call is answered."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from isthmus.core.clock import ManualClock, SystemClock
from isthmus.core.errors import Bug, CapacityExceeded, FrameInvalid, Lost, PeerLost
from isthmus.core.limits import HELLO_MS_MAX, OFFER_BYTES_MAX
from isthmus.core.units import Duration
from isthmus.handoff.request import Request, Sampling
from isthmus.serve.channel import Channel, connect
from isthmus.serve.link import Link, listen
from isthmus.serve.messages import Ack, CancelRequest, Generate, Message, Pulse, Snapshot, SnapshotOrder
from isthmus.serve.running import supervised
from isthmus.serve.worker.decode import DecodeService
from isthmus.state.tokens import pack_tokens

CLOCK = SystemClock()


@asynccontextmanager
async def channel_to(handle: Callable) -> AsyncIterator[Channel]:
    """A channel to a peer that answers every call with `handle`."""
    far: list[asyncio.Task[None]] = []

    async def handler(_: Channel, message: Message) -> Message:
        return await handle(message)

    async def accept(link: Link) -> None:
        far.append(asyncio.current_task())
        await Channel(link, CLOCK, handler=handler, posted=lambda *_: None).run()

    server = await listen(accept, "127.0.0.1", 0, tls=None)
    host, port = server.sockets[0].getsockname()
    channel = await connect(
        host, port, CLOCK, handler=handler, posted=lambda *_: None, peer="far", deadline=Duration.of_seconds(5)
    )
    running = asyncio.create_task(channel.run())
    try:
        yield channel
    finally:
        channel.close()
        server.close()
        await asyncio.wait([running, *far])


async def test_an_answer_that_is_too_large_is_an_error_and_not_silence():
    async def handle(_: Message) -> Message:
        return Snapshot(json=b"x" * (OFFER_BYTES_MAX + 1))

    async with channel_to(handle) as channel, asyncio.timeout(5):
        with pytest.raises(FrameInvalid, match="Snapshot"):
            await channel.call(SnapshotOrder())
        assert not channel.closed


async def test_errors_cross_by_name_with_field_and_retry():
    async def handle(_: Message) -> Message:
        raise CapacityExceeded("blocks: none", field="blocks", retry_after=Duration.of_ms(1500))

    async with channel_to(handle) as channel:
        with pytest.raises(CapacityExceeded, match="blocks: none") as full:
            await channel.call(SnapshotOrder())
        assert (full.value.field, full.value.retry_after) == ("blocks", Duration.of_ms(1500))


async def test_an_unexpected_failure_of_a_handler_is_a_loss():
    async def handle(_: Message) -> Message:
        raise ZeroDivisionError("oops")

    async with channel_to(handle) as channel:
        with pytest.raises(Lost, match="ZeroDivisionError"):
            await channel.call(SnapshotOrder())


async def test_calls_under_way_fail_when_the_channel_closes_and_handlers_are_cancelled():
    cancelled = asyncio.Event()

    async def handle(_: Message) -> Message:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return Ack()

    async with channel_to(handle) as channel, asyncio.timeout(5):
        call = asyncio.create_task(channel.call(SnapshotOrder()))
        channel.post(Pulse())
        await asyncio.sleep(0)
        channel.close("enough")
        with pytest.raises(PeerLost, match="enough"):
            await call
        with pytest.raises(PeerLost):
            channel.post(Pulse())
        assert channel.closed


async def test_a_connection_that_does_not_say_who_it_is_is_closed_and_one_that_has_is_not():
    clock = ManualClock()
    ends: list[Channel] = []

    async def accept(link: Link) -> None:
        ends.append(Channel(link, clock, handler=None, posted=lambda *_: None))
        ends[-1].greeted = len(ends) == 1
        await ends[-1].serve()

    server = await listen(accept, "127.0.0.1", 0, tls=None)
    host, port = server.sockets[0].getsockname()
    greeted, silent = [await asyncio.open_connection(host, port) for _ in range(2)]
    async with asyncio.timeout(5):
        while len(ends) < 2:  # noqa: ASYNC110  accepted one after the other, by the loop
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        clock.advance(Duration.of_ms(HELLO_MS_MAX))
        assert await silent[0].read() == b""
    assert [end.closed for end in ends] == [False, True]
    for _, writer in (greeted, silent):
        writer.close()
    server.close()


async def test_a_channel_whose_peer_does_not_read_ends_all_the_same():
    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()
        held.append(writer)

    held: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    channel = await connect(
        host, port, CLOCK, handler=None, posted=lambda *_: None, peer="deaf", deadline=Duration.of_seconds(5)
    )
    running = asyncio.create_task(channel.run())
    while not channel.closed:
        channel.post(Snapshot(json=bytes(4 << 20)))
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await running
    for writer in held:
        writer.close()
    server.close()


async def test_a_cancel_that_overtakes_its_request_keeps_it_from_beginning():
    service = DecodeService(None, None, None, CLOCK, worker="decode-0", post=lambda _: None)
    request = Request(request_id="r", attempt=1, tenant="t", tokens=pack_tokens([1]), sampling=Sampling())
    service.cancel(CancelRequest(request_id="r", attempt=1))
    with pytest.raises(Lost, match="cancelled before it began"):
        await service.generate(Generate(request=request, producer="p", producer_incarnation="0" * 32))


async def test_a_background_task_that_dies_ends_the_process_and_is_not_forgotten():
    async def reap() -> None:
        raise Bug("the ledger caught itself out")

    seen: list[BaseException] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context["exception"]))
    try:
        async with supervised(reap()):
            await asyncio.sleep(0)
            await asyncio.sleep(0)
    finally:
        asyncio.get_running_loop().set_exception_handler(None)
    assert [str(error) for error in seen] == ["the ledger caught itself out"]
