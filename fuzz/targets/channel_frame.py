"""Frames between gateway, workers and peers, one by one and as a stream with lengths."""

import asyncio
import struct
from typing import get_type_hints

import msgspec

from isthmus.core.clock import ManualClock
from isthmus.core.errors import FrameInvalid, ManifestInvalid
from isthmus.handoff import orders
from isthmus.handoff.orders import Ack, ConfirmOrder, PrefillOrder, RenewOrder
from isthmus.handoff.request import Request, Sampling
from isthmus.serve.channel import Channel, decode_frame
from isthmus.serve.link import Link
from isthmus.serve.messages import Failure, Fenced, Generate, Message, PeerHello, Pulse, TokenEvent, Welcome
from isthmus.serve.versions import PROTOCOL_VERSION, Conversation
from isthmus.state.tokens import pack_tokens

REFUSALS = (FrameInvalid, ManifestInvalid)
LIFE, GRANT = "a" * 32, "b" * 64


def seeds() -> list[bytes]:
    request = Request(
        request_id="r", attempt=0, tenant="t", tokens=pack_tokens((1, 2, 3)), sampling=Sampling(max_tokens=4)
    )
    holder = {"holder": "decode-0", "holder_incarnation": LIFE}
    renewal = {name: 0 for name in get_type_hints(RenewOrder) if name not in ("grant", "epoch", *holder)}
    messages: list[Message] = [
        Pulse(blocks={"free": 3}),
        Welcome(schema_version=2, heartbeat_ms=100, timeout_ms=1000),
        Fenced(worker="w", incarnation=LIFE),
        PeerHello(worker="w", incarnation=LIFE, to="v", to_incarnation=LIFE),
        Generate(request=request, producer="p", producer_incarnation=LIFE),
        TokenEvent(request_id="r", attempt=0, index=1, token=2, finish_reason="stop"),
        Failure(code="PeerLost", message="gone", field="x", retry_after_ms=1.5),
        PrefillOrder(handoff=LIFE, request=request, **holder),
        ConfirmOrder(grant=GRANT, epoch=1, **holder),
        RenewOrder(grant=GRANT, epoch=1, **holder, **renewal),
        orders.AbortOrder(handoff=LIFE, **holder),
    ]
    return [msgspec.msgpack.encode((kind, 7, message)) for message in messages for kind in (0, 1, 2)]


def parse(data: bytes) -> None:
    """In our own version, in the one before, and where that is not known yet; then as a connection."""
    asyncio.run(_stream(data))
    for version in (PROTOCOL_VERSION - 1, None):
        try:
            decode_frame(data, Conversation(version))
        except REFUSALS:
            continue
    decode_frame(data)


async def _stream(data: bytes) -> None:
    """As a connection: the data as one frame, and as frames of its own making. The channel ends; nothing escapes."""
    for sent in (struct.pack(">I", len(data)) + data, data):
        link = Link()
        link.connection_made(_Sink())
        channel = Channel(link, ManualClock(), handler=_answer, posted=_note)
        running = asyncio.create_task(channel.run())
        await asyncio.sleep(0)
        middle = len(sent) // 2
        for piece in (sent[:middle], sent[middle:]):
            link.data_received(piece)
        link.eof_received()
        await running


async def _answer(_: Channel, message: Message) -> Message:
    return Ack()


def _note(_: Channel, message: Message) -> None:
    """Posts are taken."""


class _Sink(asyncio.Transport):
    """A connection to nobody."""

    def write(self, data: bytes | bytearray | memoryview) -> None: ...
    def close(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def get_write_buffer_size(self) -> int:
        return 0
