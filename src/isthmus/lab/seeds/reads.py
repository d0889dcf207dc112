"""Ways to copy out of another simulated process's pool, over virtual time: one-sided like shm, and served like tcp.

One-sided: the reader copies chunk by chunk and asks nobody; it goes on after a thaw, whatever has happened meanwhile.
Served: the owner's process asks its guard before it sends. (Within one process the real
`transport.memory` is used.) Both keep transport's promise: once a read is over, nothing writes into its buffer.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from isthmus.core.clock import Chance, Clock
from isthmus.core.errors import IsthmusError, PeerLost, TransferFailed
from isthmus.core.ids import BlockId, GrantId, RegionId
from isthmus.core.units import ByteCount, Duration
from isthmus.core.waiting import within
from isthmus.lab.seeds.loop import Process, VirtualLoop
from isthmus.lab.seeds.mix import Fault, Mix
from isthmus.lab.seeds.network import Life
from isthmus.lab.seeds.transcript import Transcript
from isthmus.transport import faulty
from isthmus.transport.base import BlockRead, Endpoint, Guard, Lender, Reader
from isthmus.transport.blocks import check_shapes, check_staging, chunks_of, copy_chunk

__all__ = ["Export", "OneSidedReader", "ServedReader", "copy_faults", "watched", "write_faults"]

Copied = Callable[[GrantId, Sequence[BlockId]], None]
"""Told of blocks that are copied under a grant, at that moment."""


@dataclass(slots=True, kw_only=True)
class Export:
    """A pool that others may read, the process that it dies with, and what the served way needs of its owner."""

    process: Process
    lender: Lender
    guard: Guard
    clock: Clock
    copied: Copied
    serving: dict[Life, list["asyncio.Task[None]"]]

    async def close_to(self, reader: Life) -> None:
        """Serve this life no more: returns when our own loops for it have ended."""
        tasks = [task for task in self.serving.pop(reader, ()) if not task.done()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


class _Reader:
    """What both ways share. `exports` is by endpoint, and belongs to the world."""

    def __init__(
        self,
        loop: VirtualLoop,
        clock: Clock,
        exports: Mapping[Endpoint, Export],
        life: Life,
        chunk_bytes: int,
        step: Duration,
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._exports = exports
        self._life = life
        self._chunk_bytes = chunk_bytes
        self._step = step

    def can_reach(self, endpoint: Endpoint) -> bool:
        return endpoint in self._exports

    async def read(
        self, request: BlockRead, endpoint: Endpoint, into: Mapping[RegionId, memoryview], deadline: Duration
    ) -> ByteCount:
        export = self._exports.get(endpoint)
        if export is None:
            raise PeerLost("endpoint: nobody exports there", field="endpoint")
        staging = check_staging(request, into)
        check_shapes(request, export.lender.regions, export.lender.num_blocks)
        return await within(self._clock, deadline, self._read(request, export, staging), "read")

    async def _read(self, request: BlockRead, export: Export, staging: Mapping[RegionId, memoryview]) -> ByteCount:
        raise NotImplementedError

    def forget(self, endpoint: Endpoint) -> None:
        """Nothing is kept."""

    async def close(self) -> None:
        """Nothing is kept."""


class OneSidedReader(_Reader):
    """Copies for itself; sees that the owner's process has ended, and nothing else."""

    async def _read(self, request: BlockRead, export: Export, staging: Mapping[RegionId, memoryview]) -> ByteCount:
        for region in request.regions:
            for chunk in chunks_of(region, len(request.blocks), self._chunk_bytes):
                await self._clock.sleep(self._step)
                if export.process.dead:
                    raise PeerLost("endpoint: the owner's process has ended", field="endpoint")
                export.copied(request.grant, request.blocks[chunk.block_start : chunk.block_stop])
                copy_chunk(export.lender, request, region, chunk, staging[region.id][chunk.start : chunk.stop])
        return request.size_bytes


_Piece = tuple[RegionId, int, bytes] | IsthmusError | None
"""Bytes of a region and where they begin; why there are none; or the end."""


class ServedReader(_Reader):
    """Has the owner's process send. What comes after the read is over is dropped; its end is heard there late."""

    async def _read(self, request: BlockRead, export: Export, staging: Mapping[RegionId, memoryview]) -> ByteCount:
        arrived: asyncio.Queue[_Piece] = asyncio.Queue()
        reader, serving = self._loop.current, list[asyncio.Task[None]]()
        if export.process.dead:
            raise PeerLost("endpoint: nobody listens", field="endpoint")

        def send(piece: _Piece) -> None:
            self._loop.call_in_of(reader, self._step.ns, arrived.put_nowait, piece)

        def begin() -> None:
            serving.append(asyncio.create_task(self._serve(request, export, send)))
            export.serving.setdefault(self._life, []).extend(serving)

        def end() -> None:
            for task in serving:
                task.cancel()

        self._loop.call_in_of(export.process, self._step.ns, begin)
        try:
            while (piece := await arrived.get()) is not None:
                if isinstance(piece, IsthmusError):
                    raise piece
                region, start, data = piece
                staging[region][start : start + len(data)] = data
        finally:
            self._loop.call_in_of(export.process, self._step.ns, end)  # the connection is closed
        return request.size_bytes

    async def _serve(self, request: BlockRead, export: Export, send: Callable[[_Piece], None]) -> None:
        """In the owner's process. As the real exporter, it asks the guard before the first byte, and again after each
        chunk was copied and before it is sent.
        """
        try:
            export.guard.check_read(request.grant, request.epoch, request.reader, request.blocks)
        except IsthmusError as refused:
            send(refused)
            return
        for region in request.regions:
            for chunk in chunks_of(region, len(request.blocks), self._chunk_bytes):
                await export.clock.sleep(self._step)
                buffer = bytearray(chunk.stop - chunk.start)
                copy_chunk(export.lender, request, region, chunk, memoryview(buffer))
                ids = request.blocks[chunk.block_start : chunk.block_stop]
                try:
                    export.guard.check_read(request.grant, request.epoch, request.reader, ids)
                except IsthmusError:
                    send(TransferFailed("grant: ended while its bytes were on their way", field="grant"))
                    return
                export.copied(request.grant, ids)
                send((region.id, chunk.start, bytes(buffer)))
        send(None)


_KINDS: dict[Fault, faulty.FaultKind] = {
    Fault.FLIP_BIT: faulty.FaultKind.FLIP_BIT,
    Fault.TEAR: faulty.FaultKind.TEAR,
    Fault.DROP_READ: faulty.FaultKind.DROP,
    Fault.DELAY_READ: faulty.FaultKind.DELAY,
}


def copy_faults(
    mix: Mix, chance: Chance, clock: Clock, transcript: Transcript, who: str, healed: Callable[[], bool]
) -> Iterator[faulty.Fault | None]:
    """What goes wrong with each copy, as `transport.faulty` does it."""
    schedules = {
        fault: faulty.draw_faults(clock, [kind], one_in=1, delay=mix.lease * chance.between(0.2, 2))
        for fault, kind in _KINDS.items()
    }
    while True:
        hit: Fault | None = None
        for fault in _KINDS:
            if mix.rate(fault) and chance.happens(mix.rate(fault)):
                hit = fault
        if hit is None or healed():
            yield None
        else:
            transcript.fault(hit, who)
            yield next(schedules[hit])


def write_faults(
    mix: Mix, chance: Chance, clock: Clock, transcript: Transcript, who: str, healed: Callable[[], bool]
) -> Iterator[faulty.WriteFault | None]:
    """The same for writes; and some writers write again after their end."""
    for fault in copy_faults(mix, chance, clock, transcript, who, healed):
        if fault is None and not healed() and chance.happens(mix.rate(Fault.LATE_WRITE)):
            transcript.fault(Fault.LATE_WRITE, who)
            yield faulty.LateWrite(duration=mix.lease * chance.between(0.05, 2))
        else:
            yield fault


def watched(reader: Reader, began: Callable[[int], None], ended: Callable[[BlockRead, int], None]) -> Reader:
    """A reader that tells of the bytes that each read takes, when it begins and when it has ended."""
    return _Watched(reader, began, ended)


class _Watched:
    def __init__(self, inner: Reader, began: Callable[[int], None], ended: Callable[[BlockRead, int], None]) -> None:
        self._inner = inner
        self._began = began
        self._ended = ended

    def can_reach(self, endpoint: Endpoint) -> bool:
        return self._inner.can_reach(endpoint)

    async def read(
        self, request: BlockRead, endpoint: Endpoint, into: Mapping[RegionId, memoryview], deadline: Duration
    ) -> ByteCount:
        size = sum(view.nbytes for view in into.values())
        self._began(size)
        try:
            return await self._inner.read(request, endpoint, into, deadline)
        finally:
            self._ended(request, size)

    def forget(self, endpoint: Endpoint) -> None:
        self._inner.forget(endpoint)

    async def close(self) -> None:
        await self._inner.close()
