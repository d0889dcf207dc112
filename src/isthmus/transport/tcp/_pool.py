"""A few greeted connections to each peer, one transfer at a time on each. What is transferred is the caller's."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from isthmus.core.errors import NotAuthorised, PeerLost, error_named
from isthmus.core.limits import CONNECTIONS_PER_PEER_MAX, CONTROL_FRAME_BYTES_MAX
from isthmus.transport.base import Endpoint, PeerId, TcpEndpoint
from isthmus.transport.tcp._frames import PROTOCOL_VERSION, Hello, Refusal, decode_greeting, encode_frame
from isthmus.transport.tcp._stream import Stream
from isthmus.transport.tls import HANDSHAKE_FAILED, Tls

__all__ = ["ConnectionPool"]


@dataclass(slots=True)
class _Connections:
    """The connections to one endpoint: those at rest, and those in use. `turn` bounds their number."""

    idle: list[Stream] = field(default_factory=list)
    busy: set[Stream] = field(default_factory=set)
    waiting: int = 0
    turn: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CONNECTIONS_PER_PEER_MAX))


class ConnectionPool:
    """Connections by endpoint. Peers come and go without a trace."""

    def __init__(self, identity: PeerId, tls: Tls | None = None) -> None:
        self._identity = identity
        self._tls = tls
        self._peers: dict[TcpEndpoint, _Connections] = {}

    @asynccontextmanager
    async def connection(self, endpoint: TcpEndpoint) -> AsyncIterator[Stream]:
        """A connection for the body, which aborts it where it leaves it out of step.

        Raises:
            PeerLost: nobody answers, or another life of the peer. Rejected: it refuses us.
            NotAuthorised: who answers proves another name, or none that we believe.
        """
        connections = self._peers.setdefault(endpoint, _Connections())
        connections.waiting += 1
        try:
            async with connections.turn:
                stream = await self._connect(endpoint, connections)
                connections.busy.add(stream)
                try:
                    yield stream
                finally:
                    connections.busy.discard(stream)
                    self._put_back(stream, endpoint, connections)
        finally:
            connections.waiting -= 1
            self._sweep(endpoint, connections)

    async def _connect(self, endpoint: TcpEndpoint, connections: _Connections) -> Stream:
        """A connection at rest, or a new one that has been greeted."""
        while connections.idle:
            stream = connections.idle.pop()
            if not stream.closed:
                stream.unwatch()
                return stream
        stream = await self._dial(endpoint)
        try:
            if self._tls is not None:
                self._tls.check_name(stream, endpoint.peer.worker)
            await self._greet(stream, endpoint)
        except BaseException:
            stream.abort()
            raise
        return stream

    async def _dial(self, endpoint: TcpEndpoint) -> Stream:
        loop, where = asyncio.get_running_loop(), f"endpoint: {endpoint.host}:{endpoint.port}"
        context = None if self._tls is None else self._tls.client
        try:
            _, stream = await loop.create_connection(Stream, endpoint.host, endpoint.port, ssl=context)
        except ssl.SSLCertVerificationError as error:
            raise NotAuthorised(f"{where}: {error.verify_message}", field="certificate") from error
        except ssl.SSLError as error:
            raise PeerLost(f"{where}: {HANDSHAKE_FAILED}: {error.reason}", field="endpoint") from error
        except OSError as error:
            raise PeerLost(f"{where}: {error}", field="endpoint") from error
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
        """Forget a peer of whom nothing is left."""
        connections.idle = [stream for stream in connections.idle if not stream.closed]
        if not connections.idle and not connections.waiting and self._peers.get(endpoint) is connections:
            del self._peers[endpoint]

    def forget(self, endpoint: Endpoint) -> None:
        """Abort all connections to an endpoint, those in use as well."""
        connections = self._peers.pop(endpoint, None) if isinstance(endpoint, TcpEndpoint) else None
        if connections is not None:
            for stream in (*connections.idle, *connections.busy):
                stream.abort()

    async def close(self) -> None:
        """Abort all connections."""
        for endpoint in tuple(self._peers):
            self.forget(endpoint)
        await asyncio.sleep(0)  # a turn in which the loop closes the sockets; no time is meant
