"""The side that reads: a few connections for each peer, one transfer at a time on each."""

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from isthmus.core.clock import Clock
from isthmus.core.errors import FrameInvalid, PeerLost, TransferFailed, Unsupported, error_named
from isthmus.core.ids import RegionId
from isthmus.core.limits import CONNECTIONS_PER_PEER_MAX, CONTROL_FRAME_BYTES_MAX, READ_MS_MAX
from isthmus.core.units import ByteCount, Duration
from isthmus.core.waiting import within
from isthmus.transport.base import BlockRead, Endpoint, PeerId, TcpEndpoint
from isthmus.transport.blocks import check_staging
from isthmus.transport.tcp._frames import (
    PROTOCOL_VERSION,
    Hello,
    ReadBlocks,
    Refusal,
    decode_answer,
    decode_greeting,
    encode_frame,
)
from isthmus.transport.tcp._stream import Stream

__all__ = ["TcpReader"]


@dataclass(slots=True)
class _Connections:
    """The connections to one endpoint: those at rest, and those in use. `turn` bounds their number."""

    idle: list[Stream] = field(default_factory=list)
    busy: set[Stream] = field(default_factory=set)
    waiting: int = 0
    turn: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CONNECTIONS_PER_PEER_MAX))


class TcpReader:
    """Reads from other workers' `TcpExporter`s. A read that fails or is cancelled takes its connection with it."""

    def __init__(self, identity: PeerId, clock: Clock) -> None:
        self._identity = identity
        self._clock = clock
        self._peers: dict[TcpEndpoint, _Connections] = {}

    def can_reach(self, endpoint: Endpoint) -> bool:
        return isinstance(endpoint, TcpEndpoint)

    async def read(
        self, request: BlockRead, endpoint: Endpoint, into: Mapping[RegionId, memoryview], deadline: Duration
    ) -> ByteCount:
        if not isinstance(endpoint, TcpEndpoint):
            raise Unsupported("endpoint: not one of TCP", field="endpoint")
        staging = check_staging(request, into)
        frame = encode_frame(ReadBlocks(read=request, deadline_ms=_whole_ms(deadline)))
        work = self._read(request, frame, endpoint, staging)
        return await within(self._clock, deadline, work, "read over TCP")

    async def _read(
        self, request: BlockRead, frame: bytes, endpoint: TcpEndpoint, staging: Mapping[RegionId, memoryview]
    ) -> ByteCount:
        connections = self._peers.setdefault(endpoint, _Connections())
        connections.waiting += 1
        try:
            async with connections.turn:
                stream = await self._connect(endpoint, connections)
                connections.busy.add(stream)
                try:
                    await _transfer(stream, request, frame, staging)
                finally:
                    connections.busy.discard(stream)
                    self._put_back(stream, endpoint, connections)
        finally:
            connections.waiting -= 1
            self._sweep(endpoint, connections)
        return request.size_bytes

    async def _connect(self, endpoint: TcpEndpoint, connections: _Connections) -> Stream:
        """A connection at rest, or a new one that has been greeted. Raises PeerLost, Rejected."""
        while connections.idle:
            stream = connections.idle.pop()
            if not stream.closed:
                stream.unwatch()
                return stream
        loop = asyncio.get_running_loop()
        try:
            _, stream = await loop.create_connection(Stream, endpoint.host, endpoint.port)
        except OSError as error:
            raise PeerLost(f"endpoint: {endpoint.host}:{endpoint.port}: {error}", field="endpoint") from error
        try:
            await self._greet(stream, endpoint)
        except BaseException:
            stream.abort()
            raise
        return stream

    async def _greet(self, stream: Stream, endpoint: TcpEndpoint) -> None:
        hello = Hello(version=PROTOCOL_VERSION, reader=self._identity, server=endpoint.peer)
        await stream.send(encode_frame(hello))
        welcome = decode_greeting(await stream.receive_body(await stream.receive_length(CONTROL_FRAME_BYTES_MAX)))
        if isinstance(welcome, Refusal):
            if (welcome.code, welcome.field) == ("NotAuthorised", "server"):
                raise PeerLost(f"endpoint.peer: {welcome.message}", field="endpoint.peer")
            raise error_named(welcome.code, welcome.message, field=welcome.field)
        if welcome.server != endpoint.peer or welcome.version != PROTOCOL_VERSION:
            raise PeerLost("endpoint.peer: somebody else answers at this address", field="endpoint.peer")

    def _put_back(self, stream: Stream, endpoint: TcpEndpoint, connections: _Connections) -> None:
        if self._peers.get(endpoint) is not connections:
            stream.abort()  # forgotten meanwhile
        elif not stream.closed:
            stream.watch()
            connections.idle.append(stream)

    def _sweep(self, endpoint: TcpEndpoint, connections: _Connections) -> None:
        """Forget a peer of whom nothing is left, so that peers come and go without a trace."""
        connections.idle = [stream for stream in connections.idle if not stream.closed]
        if not connections.idle and not connections.waiting and self._peers.get(endpoint) is connections:
            del self._peers[endpoint]

    def forget(self, endpoint: Endpoint) -> None:
        connections = self._peers.pop(endpoint, None) if isinstance(endpoint, TcpEndpoint) else None
        if connections is not None:
            for stream in (*connections.idle, *connections.busy):
                stream.abort()

    async def close(self) -> None:
        for endpoint in tuple(self._peers):
            self.forget(endpoint)
        await asyncio.sleep(0)  # a turn in which the loop closes the sockets; no time is meant


async def _transfer(stream: Stream, request: BlockRead, frame: bytes, staging: Mapping[RegionId, memoryview]) -> None:
    """Ask, and receive. Leaves the stream open only where it is in step: after all bytes, or after a refusal."""
    in_step = False
    try:
        await stream.send(frame)
        answer = decode_answer(await stream.receive_body(await stream.receive_length(CONTROL_FRAME_BYTES_MAX)))
        if isinstance(answer, Refusal):
            in_step = True
            raise error_named(answer.code, answer.message, field=answer.field)
        if answer.size_bytes != request.size_bytes:
            raise TransferFailed(f"size_bytes: {answer.size_bytes}, wanted {request.size_bytes}", field="size_bytes")
        for region in request.regions:
            await stream.receive(staging[region.id])
        in_step = True
    except FrameInvalid as error:
        if in_step:
            raise  # the owner's word about our frame, not ours about the owner's
        raise TransferFailed(f"answer: {error}", field="answer") from error
    finally:
        if not in_step:
            stream.abort()


def _whole_ms(deadline: Duration) -> int:
    """On the wire a deadline is in whole milliseconds, rounded up: it is the reader's own that decides."""
    return min(max(1, math.ceil(deadline.ms)), READ_MS_MAX)
