"""One TCP connection as two verbs: `receive` fills a buffer given by the caller, `send` returns once it is handed over.

The kernel copies into the caller's buffer itself (`BufferedProtocol`), from a callback of the event loop and only
while a `receive` is under way. So when `receive` has ended, for whatever reason, nothing writes there any more.
"""

import asyncio
from collections.abc import Callable
from typing import cast

from isthmus.core.errors import PeerLost
from isthmus.transport.tcp._frames import LENGTH_BYTES, frame_length

__all__ = ["Stream"]


class Stream(asyncio.BufferedProtocol):
    """Reading is paused except in `receive` and `watch`, so a peer that sends unasked fills only the kernel's buffer.

    One `receive` and one `send` at a time. Either one cut short ends the connection, which would be out of step.
    """

    def __init__(self, on_connect: Callable[["Stream"], None] | None = None) -> None:
        self.closed = False
        self._on_connect = on_connect
        self._transport: asyncio.Transport | None = None
        self._into: memoryview | None = None
        self._filled = 0
        self._received: asyncio.Future[None] | None = None
        self._flushed: asyncio.Future[None] | None = None
        self._unasked = memoryview(bytearray(1))

    # ---- what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        # "Flushed" means that nothing is left in the process: a chunk's buffer can be filled again. TLS has made a copy
        # by then; there, a limit of 0 would pause writing with nothing written.
        encrypted = self._transport.get_extra_info("ssl_object") is not None
        self._transport.set_write_buffer_limits(high=1 if encrypted else 0)
        self._transport.pause_reading()
        if self._on_connect is not None:
            self._on_connect(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._unasked if self._into is None else self._into[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        if self._into is None:
            self.abort()  # a byte that nobody asked for: the peer is out of step
            return
        self._filled += nbytes
        if self._filled == self._into.nbytes:
            self._into = None
            self._pause()
            _resolve(self._received)

    def pause_writing(self) -> None:
        self._flushed = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        _resolve(self._flushed)
        self._flushed = None

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        self._into = None
        for waiter in (self._received, self._flushed):
            if waiter is not None and not waiter.done():
                waiter.set_exception(self._lost(error))
                waiter.exception()  # seen: between two sends nobody waits for the flush

    # ---- what we call

    def get_extra_info(self, name: str, default: object = None) -> object:
        """What asyncio knows of the connection; `ssl_object` where it is TLS."""
        return default if self._transport is None else self._transport.get_extra_info(name, default)

    async def receive(self, into: memoryview) -> None:
        """Fill `into`, all of it.

        Raises:
            PeerLost: the connection closed before.
        """
        if self.closed or self._transport is None:
            raise self._lost(None)
        self._received = asyncio.get_running_loop().create_future()
        self._into, self._filled = into, 0
        self._transport.resume_reading()
        try:
            await self._received
        finally:
            self._received = None
            if self._into is not None:
                self.abort()

    async def receive_length(self, bytes_max: int) -> int:
        """The length of the next frame. Raises PeerLost; FrameInvalid where it is larger than `bytes_max`."""
        prefix = bytearray(LENGTH_BYTES)
        await self.receive(memoryview(prefix))
        return frame_length(prefix, bytes_max)

    async def receive_body(self, length: int) -> bytearray:
        """The `length` bytes of a frame. Raises PeerLost."""
        body = bytearray(length)
        await self.receive(memoryview(body))
        return body

    async def send(self, data: bytes | memoryview) -> None:
        """Return when the kernel has taken all of `data`, which waits for the peer to read.

        Raises:
            PeerLost: the connection closed before.
        """
        if self.closed or self._transport is None:
            raise self._lost(None)
        self._transport.write(data)
        if self._flushed is not None:
            try:
                await self._flushed
            except asyncio.CancelledError:
                self.abort()
                raise

    def watch(self) -> None:
        """Between reads: notice at once when the peer closes. It has nothing to say now, so a byte ends it as well."""
        if not self.closed and self._transport is not None:
            self._transport.resume_reading()

    def unwatch(self) -> None:
        """The end of `watch`."""
        if not self.closed:
            self._pause()

    def abort(self) -> None:
        """End the connection now, whatever is under way."""
        self.closed = True
        self._into = None
        if self._transport is not None:
            self._transport.abort()

    async def finish(self) -> None:
        """End the connection after what has been sent."""
        self.closed = True
        if self._transport is not None:
            self._transport.close()

    def _pause(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def _lost(self, error: Exception | None) -> PeerLost:
        return PeerLost(f"connection: closed by the peer{f' ({error})' if error else ''}", field="connection")


def _resolve(waiter: "asyncio.Future[None] | None") -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
