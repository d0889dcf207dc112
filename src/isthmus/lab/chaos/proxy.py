"""A TCP proxy that misbehaves on demand: between workers, and between a worker and its gateway.

Delay, cut, stall, a one-way partition, a flipped bit, bytes sent twice. What passes is otherwise passed unchanged.
"""

import asyncio
import contextlib
import enum
from dataclasses import dataclass
from typing import Self

from isthmus.core.clock import Clock
from isthmus.core.units import Duration

__all__ = ["FaultProxy", "LinkFault"]

CHUNK_BYTES = 64 * 1024


class LinkFault(enum.StrEnum):
    """What a link can suffer. `onward` is from who dialled to who listens."""

    DELAY = "delay"
    CUT = "cut"
    STALL = "stall"
    ONWARD_LOST = "onward_lost"
    BACKWARD_LOST = "backward_lost"
    CORRUPT = "corrupt"
    DUPLICATE = "duplicate"


DELAY = Duration.of_ms(40)


@dataclass(frozen=True, slots=True, eq=False)
class _Pair:
    """One proxied connection."""

    near: asyncio.StreamWriter
    far: asyncio.StreamWriter

    def abort(self) -> None:
        for writer in (self.near, self.far):
            writer.transport.abort()


class FaultProxy:
    """One listening port, one target, both on `host`. Use as an async context manager."""

    def __init__(self, listens: int, target: int, clock: Clock, *, host: str = "127.0.0.1") -> None:
        self._host = host
        self._listens = listens
        self._target = target
        self._clock = clock
        self._pairs: set[_Pair] = set()
        self._healthy = asyncio.Event()
        self._healthy.set()
        self._fault: LinkFault | None = None
        self._once = False
        self.harmed = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, self._host, self._listens)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.heal()
        self._cut()

    def suffer(self, fault: LinkFault) -> None:
        """Until `heal`. A cut, a flipped bit and a duplicate happen once; new connections are served again at once."""
        self.heal()
        self._fault = fault
        self._once = fault in (LinkFault.CORRUPT, LinkFault.DUPLICATE)
        if fault is LinkFault.CUT:
            self.harmed += len(self._pairs)
            self._cut()
        elif not self._once and fault is not LinkFault.DELAY:
            self._healthy.clear()

    def heal(self) -> None:
        """All is well. What a stall or a partition held back has been lost, so its connections are closed."""
        if self._fault in (LinkFault.STALL, LinkFault.ONWARD_LOST, LinkFault.BACKWARD_LOST):
            self._cut()
        self._fault = None
        self._healthy.set()

    def _cut(self) -> None:
        for pair in tuple(self._pairs):
            pair.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(self._host, self._target)
        except OSError:
            writer.transport.abort()
            return
        pair = _Pair(writer, far_writer)
        self._pairs.add(pair)
        onward = asyncio.create_task(self._pump(reader, far_writer, LinkFault.ONWARD_LOST))
        backward = asyncio.create_task(self._pump(far_reader, writer, LinkFault.BACKWARD_LOST))
        try:
            await asyncio.wait({onward, backward}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._pairs.discard(pair)
            pair.abort()
            for pump in (onward, backward):
                pump.cancel()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, lost: LinkFault) -> None:
        with contextlib.suppress(ConnectionError, OSError):
            while data := await reader.read(CHUNK_BYTES):
                if self._fault in (LinkFault.STALL, lost):
                    self.harmed += 1
                    await self._healthy.wait()
                    return
                writer.write(await self._passed(data))
                await writer.drain()

    async def _passed(self, data: bytes) -> bytes:
        """What becomes of some bytes on their way."""
        if self._fault is LinkFault.DELAY:
            self.harmed += 1
            await self._clock.sleep(DELAY)
        if not self._once:
            return data
        self._once = False
        self.harmed += 1
        if self._fault is LinkFault.DUPLICATE:
            return data + data
        middle = len(data) // 2
        return data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1 :]
