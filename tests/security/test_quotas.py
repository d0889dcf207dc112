"""What one peer can make us hold is bounded: before it has said who it is, and afterwards."""

import asyncio
import struct
from typing import get_type_hints

import msgspec
import pytest

from isthmus.core.clock import SystemClock
from isthmus.core.errors import CapacityExceeded, NotAuthorised
from isthmus.core.limits import HELLO_BYTES_MAX, OFFER_BYTES_MAX
from isthmus.handoff.request import Request, Sampling
from isthmus.serve import channel as channels
from isthmus.serve.channel import Channel, connect
from isthmus.serve.gateway.dispatch import Dispatcher
from isthmus.serve.gateway.metrics import Metrics
from isthmus.serve.gateway.registry import Registry
from isthmus.serve.link import Link, listen
from isthmus.serve.messages import Ack, Generate, HandoffReport, Message, TokenEvent
from isthmus.serve.worker.prefill import PrefillService
from isthmus.state.tokens import pack_tokens
from tests.security.test_tls import SOON, serving

CLOCK = SystemClock()
_EMPTY = {int: 0, float: 0.0, bool: True, dict[str, float]: {}}
REPORT = HandoffReport(**{name: _EMPTY.get(kind, ()) for name, kind in get_type_hints(HandoffReport).items()})


def large() -> Generate:
    """A call of about 100 kB."""
    request = Request(
        request_id="r", attempt=0, tenant="t", tokens=pack_tokens([1 << 20] * 25_000), sampling=Sampling()
    )
    return Generate(request=request, producer="p", producer_incarnation="0" * 32)


@pytest.mark.parametrize("length", [HELLO_BYTES_MAX + 1, OFFER_BYTES_MAX])
async def test_who_has_not_said_who_it_is_may_not_say_much(length):
    async with serving(None) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(struct.pack(">I", length))
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.close()


async def test_bytes_of_calls_under_way_are_bounded_and_the_one_too_many_is_refused_by_name(monkeypatch):
    size = len(msgspec.msgpack.encode(large()))
    monkeypatch.setattr(channels, "CALL_BYTES_IN_FLIGHT_MAX", 3 * size + size // 2)
    release = asyncio.Event()

    async def wait(channel: Channel, _: Message) -> Message:
        channel.greeted = True
        await release.wait()
        return Ack()

    far: list[asyncio.Task[None]] = []

    async def accept(link: Link) -> None:
        far.append(asyncio.current_task())
        await Channel(link, CLOCK, handler=wait, posted=lambda *_: None).run()

    server = await listen(accept, "127.0.0.1", 0, tls=None)
    port = server.sockets[0].getsockname()[1]
    channel = await connect("127.0.0.1", port, CLOCK, handler=wait, posted=lambda *_: None, peer="far", deadline=SOON)
    running = asyncio.create_task(channel.run())
    async with asyncio.timeout(10):
        calls = [asyncio.create_task(channel.call(large())) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(CapacityExceeded, match="bytes"):
            await channel.call(large())
        assert not any(call.done() for call in calls)
        release.set()
        await asyncio.gather(*calls)
        await channel.call(large())  # there is room again
    channel.close()
    await asyncio.wait({running, *far})
    server.close()


class _Everyone:
    """A membership that anybody has."""

    def on_fenced(self, _: object) -> None: ...
    def on_exited(self, _: object) -> None: ...
    def on_reincarnated(self, _: object) -> None: ...
    async def wait_for(self, *_: object) -> None: ...


async def test_a_peer_has_a_few_channels_and_not_all_of_them(monkeypatch):
    from isthmus.serve.messages import PeerHello

    life = "1" * 32
    service = PrefillService(None, _Everyone(), CLOCK, worker="prefill-0", incarnation=life)

    def channel() -> Channel:
        return Channel(Link(), CLOCK, handler=None, posted=None)  # a connection that is not written to here

    hello = PeerHello(worker="decode-0", incarnation="2" * 32, to="prefill-0", to_incarnation=life)
    for _ in range(4):
        assert isinstance(await service._greet(channel(), hello), Ack)
    with pytest.raises(CapacityExceeded, match="4 of decode-0"):
        await service._greet(channel(), hello)
    await service._greet(channel(), msgspec.structs.replace(hello, worker="decode-1"))


class _Seat:
    worker = "decode-0"


def test_a_worker_cannot_post_tokens_into_anothers_answer():
    from isthmus.core.units import Duration
    from isthmus.serve.gateway.dispatch import _Stream

    dispatcher = Dispatcher(Registry(), CLOCK, Metrics(), attempts_max=1, worker_wait=Duration.of_ms(1))
    ours, theirs = _Seat(), _Seat()
    stream = _Stream(consumer=ours, events=asyncio.Queue())
    dispatcher._streams["r", 0] = stream
    event = TokenEvent(request_id="r", attempt=0, index=0, token=1)
    with pytest.raises(NotAuthorised, match="does not answer this request"):
        dispatcher.on_token(event, theirs)
    assert stream.events.empty()
    dispatcher.on_token(event, ours)
    assert stream.events.get_nowait() == event


def test_what_workers_report_makes_no_endless_series_of_metrics():
    metrics = Metrics()
    for number in range(50):
        said = {"transport": f"transport-{number}", "outcome": f"outcome-{number}", "wire_bytes": -5}
        stage_ms = {f"stage-{number}": 1.0, "plan": 1.0}
        metrics.on_handoff(msgspec.structs.replace(REPORT, stage_ms=stage_ms, **said))
    text = metrics.text().decode()
    assert 'isthmus:handoffs_total{outcome="other",transport="other"} 50.0' in text
    assert "stage-" not in text
    assert 'stage="plan"' in text
