"""A connection as frames: a 4-byte big-endian length, and that many bytes. Knows nothing of what they say.

Frames are given on as the event loop brings them, in the same turn: no task of its own waits for bytes.
"""

import asyncio
import socket
import struct
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from isthmus.core.errors import FrameInvalid
from isthmus.core.limits import HELLO_MS_MAX
from isthmus.core.units import Duration
from isthmus.transport.tls import Tls

__all__ = ["Link", "Receiver", "listen"]

CLOSE_GRACE = Duration.of_ms(500)
"""How long what is written before a close, a refusal say, may take to leave."""

_LENGTH = struct.Struct(">I")

Accept = Callable[["Link"], Coroutine[Any, Any, None]]


class Receiver(Protocol):
    """Whom a link gives its frames."""

    @property
    def frame_bytes_max(self) -> int:
        """How large the next one may be."""
        ...

    def received(self, body: bytes) -> None:
        """A frame, without its length."""
        ...

    def ended(self, error: Exception | None) -> None:
        """No frame comes any more: the peer has ended the connection, or it broke, or `error` was raised by one."""
        ...


class Link(asyncio.Protocol):
    """One connection. It reads nothing before somebody wants to `receive`. Of one event loop."""

    def __init__(self, accept: Accept | None = None) -> None:
        """`accept` is run as a task once the connection is there."""
        self._accept = accept
        self._accepting: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport
        self._receiver: Receiver | None = None
        self._partial = bytearray()
        self._wanted = 0  # so many bytes are to be there before the next look: the rest of a long frame comes in pieces
        self._over = False

    def receive(self, receiver: Receiver) -> None:
        """From now on frames are given to `receiver`, once `ended` says that there are no more."""
        self._receiver = receiver
        if self._over:
            receiver.ended(None)
        else:
            self._transport.resume_reading()

    def write(self, body: bytes) -> int:
        """Send a frame; returns how many bytes have not left yet, and are buffered."""
        self._transport.write(_LENGTH.pack(len(body)) + body)
        return self._transport.get_write_buffer_size()

    def close(self) -> None:
        """Once what is buffered has been sent, or soon where the peer does not read: `ended` must come in any case."""
        if self._transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(CLOSE_GRACE.seconds, self._transport.abort)
        self._transport.close()

    def get_extra_info(self, name: str, default: object = None) -> object:
        """As a transport's."""
        return self._transport.get_extra_info(name, default)

    # asyncio's

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.pause_reading()
        if self._accept is not None:
            self._accepting = asyncio.get_running_loop().create_task(self._accept(self))
            self._accepting.add_done_callback(self._accepted)

    def data_received(self, data: bytes) -> None:
        if self._partial:
            self._partial += data
            if len(self._partial) < self._wanted:
                return
            data = bytes(self._partial)
            self._partial.clear()
        try:
            rest = self._frames(data)
        except Exception as error:
            self._end(error)
        else:
            if rest < len(data):
                self._partial += data[rest:]

    def eof_received(self) -> None:
        self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(None)

    # inside

    def _frames(self, data: bytes) -> int:
        """Give on the whole frames in `data`; returns where the rest begins."""
        start, header = 0, _LENGTH.size
        self._wanted = header
        while self._receiver is not None and not self._over and len(data) - start >= header:
            (length,) = _LENGTH.unpack_from(data, start)
            bound = self._receiver.frame_bytes_max
            if length > bound:
                raise FrameInvalid(f"frame: {length} bytes, wanted at most {bound}", field="frame")
            stop = start + header + length
            if len(data) < stop:
                self._wanted = header + length
                break
            self._receiver.received(data[start + header : stop])
            start = stop
        return start

    def _end(self, error: Exception | None) -> None:
        if self._over:
            return
        self._over = True
        if self._receiver is not None:
            self._receiver.ended(error)

    def _accepted(self, task: "asyncio.Task[None]") -> None:
        """Whoever accepted is done; what it raised is said, as asyncio does for what it accepts itself."""
        if not task.cancelled() and (error := task.exception()) is not None:
            context = {"message": "accepting a connection failed", "exception": error, "transport": self._transport}
            asyncio.get_running_loop().call_exception_handler(context)
        self._transport.close()


async def listen(
    accept: Accept,
    host: str | None = None,
    port: int | None = None,
    *,
    sock: socket.socket | None = None,
    tls: Tls | None,
) -> asyncio.Server:
    """A server whose connections are links, each given to `accept`, at an address or on a bound socket.

    Raises:
        OSError: the address cannot be had.
    """
    secure = {} if tls is None else {"ssl": tls.server, "ssl_handshake_timeout": HELLO_MS_MAX / 1000}
    loop = asyncio.get_running_loop()
    return await loop.create_server(lambda: Link(accept), host, port, sock=sock, **secure)  # type: ignore[call-overload, no-any-return]
