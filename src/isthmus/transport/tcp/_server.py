"""What listens: connections, their greeting, refusals by name. What is answered is the subclass's.

What comes from the network is parsed, bounded and refused; none of it ends the server. An error of ours (a `Bug`, a
lender that fails) ends that connection and goes to the event loop's exception handler, where the process decides to
stop.
"""

import asyncio
import socket
from abc import ABC, abstractmethod
from typing import cast

from isthmus.core.clock import Clock
from isthmus.core.errors import (
    CapacityExceeded,
    DeadlineExceeded,
    FrameInvalid,
    IsthmusError,
    Lost,
    NotAuthorised,
    PeerLost,
    Rejected,
)
from isthmus.core.limits import (
    CONNECTION_SILENCE_SECONDS_MAX,
    CONNECTIONS_PER_EXPORTER_MAX,
    CONNECTIONS_PER_PEER_MAX,
    CONTROL_FRAME_BYTES_MAX,
    FRAME_MS_MAX,
    NAME_CHARS_MAX,
)
from isthmus.core.units import Duration
from isthmus.core.waiting import settle, within
from isthmus.transport.base import Endpoint, PeerId, TcpEndpoint
from isthmus.transport.tcp._frames import PROTOCOL_VERSION, Refusal, Welcome, decode_hello, encode_frame
from isthmus.transport.tcp._stream import Stream
from isthmus.transport.tls import Tls

__all__ = ["FRAME_DURATION_MAX", "TcpServer"]

FRAME_DURATION_MAX = Duration.of_ms(FRAME_MS_MAX)
PROBES = 3
CONNECTIONS_OF_PEER_MAX = 2 * CONNECTIONS_PER_PEER_MAX
"""Twice what a peer opens: those that it has aborted may not have been noticed yet. Each serves one request at a time,
so this also bounds the reads and bytes that one peer can have in flight.
"""


class TcpServer(ABC):
    """Listens on `host`; peers are told the `advertised_` ones where those are others. Port 0 is any free one."""

    def __init__(
        self,
        identity: PeerId,
        clock: Clock,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        advertised_host: str | None = None,
        advertised_port: int | None = None,
        tls: Tls | None = None,
    ) -> None:
        self._identity = identity
        self._clock = clock
        self._host, self._port = host, port
        self._advertised_host = advertised_host or host
        self._advertised_port = advertised_port
        self._tls = tls
        self._greeted: dict[Stream, PeerId] = {}
        self._server: asyncio.Server | None = None
        self._conversations: set[asyncio.Task[None]] = set()

    async def start(self) -> Endpoint:
        """Raises OSError where the address is not to be had."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Stream(self._accept),
            self._host,
            self._port,
            ssl=None if self._tls is None else self._tls.server,
            ssl_handshake_timeout=None if self._tls is None else FRAME_DURATION_MAX.seconds,
        )
        port = self._advertised_port or self._server.sockets[0].getsockname()[1]
        return TcpEndpoint(host=self._advertised_host, port=port, peer=self._identity)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        conversations = tuple(self._conversations)
        for conversation in conversations:
            conversation.cancel()
        for conversation in conversations:
            await settle(conversation)

    @abstractmethod
    async def _serve(self, stream: Stream, peer: PeerId) -> None:
        """Wait for one request of `peer`'s, and answer it. Raises Rejected where the connection is out of step."""

    def _accept(self, stream: Stream) -> None:
        taken = len(self._conversations)
        if taken >= 2 * CONNECTIONS_PER_EXPORTER_MAX:
            stream.abort()  # not even time for a word
            return
        _probe(stream)
        full = taken >= CONNECTIONS_PER_EXPORTER_MAX
        conversation = asyncio.create_task(self._converse(stream, full=full))
        self._conversations.add(conversation)
        conversation.add_done_callback(self._ended)

    def _ended(self, conversation: "asyncio.Task[None]") -> None:
        self._conversations.discard(conversation)
        error = None if conversation.cancelled() else conversation.exception()
        if error is not None:
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a transport conversation failed", "exception": error, "task": conversation}
            )

    async def _converse(self, stream: Stream, *, full: bool) -> None:
        """One connection, from the hello to its end; where the server is full, to the refusal of it."""
        try:
            peer = await within(self._clock, FRAME_DURATION_MAX, self._greet(stream, full=full), "hello")
            while True:
                await self._serve(stream, peer)
        except (PeerLost, DeadlineExceeded):
            pass  # the peer left, or did not say what it wanted; it knows
        except Rejected as error:
            await self._refuse(stream, error)
            await stream.finish()
        finally:
            self._greeted.pop(stream, None)
            if not stream.closed:
                stream.abort()

    async def _greet(self, stream: Stream, *, full: bool) -> PeerId:
        """Who the caller says it is. Raises Rejected where it wants somebody else, or speaks another version."""
        hello = decode_hello(await stream.receive_body(await stream.receive_length(CONTROL_FRAME_BYTES_MAX)))
        if full:
            raise CapacityExceeded(f"connections: {CONNECTIONS_PER_EXPORTER_MAX} are open", field="connections")
        if hello.version != PROTOCOL_VERSION:
            raise FrameInvalid(f"version: {hello.version}, spoken here: {PROTOCOL_VERSION}", field="version")
        if hello.server != self._identity:
            raise NotAuthorised("server: another worker, or another life of it, lives here", field="server")
        if self._tls is not None:
            self._tls.check_name(stream, hello.reader.worker)
        if sum(peer == hello.reader for peer in self._greeted.values()) >= CONNECTIONS_OF_PEER_MAX:
            raise CapacityExceeded(f"connections: {CONNECTIONS_OF_PEER_MAX} of this peer are open", field="connections")
        self._greeted[stream] = hello.reader
        await stream.send(encode_frame(Welcome(version=PROTOCOL_VERSION, server=self._identity)))
        return hello.reader

    async def _refuse(self, stream: Stream, error: IsthmusError) -> None:
        refusal = Refusal(
            code=error.code,
            message=str(error)[: CONTROL_FRAME_BYTES_MAX // 8],
            field=error.field[:NAME_CHARS_MAX],
        )
        try:
            await within(self._clock, FRAME_DURATION_MAX, stream.send(encode_frame(refusal)), "refusal")
        except Lost:
            stream.abort()  # the peer does not want to know


def _probe(stream: Stream) -> None:
    """Have the kernel ask now and then whether a peer at rest is there: one whose host is gone takes no leave."""
    connection = cast(socket.socket, stream.get_extra_info("socket"))
    interval = max(1, CONNECTION_SILENCE_SECONDS_MAX // (2 * PROBES))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBES * interval)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
