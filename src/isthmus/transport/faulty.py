"""A reader and a writer that go wrong on purpose, for tests and drills. What goes wrong is given, or drawn from a seed.

Above transport, a wrong byte must end in a refused install and never in an answer; this is how that is shown.
"""

import asyncio
import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from isthmus.core.clock import Clock
from isthmus.core.errors import IsthmusError, TransferFailed
from isthmus.core.ids import RegionId
from isthmus.core.units import ByteCount, Duration
from isthmus.transport.base import BlockRead, BlockWrite, Endpoint, Lender, Reader, Writer
from isthmus.transport.blocks import HostLender

__all__ = [
    "CANARY",
    "Delay",
    "Drop",
    "Fault",
    "FaultKind",
    "FaultyReader",
    "FaultyWriter",
    "FlipBit",
    "LateWrite",
    "Tear",
    "When",
    "WriteFault",
    "draw_faults",
]

CANARY = 0xCA
"""What a late write consists of: a byte of it in anybody's image is a write after the end."""


class When(enum.StrEnum):
    """Which side of the transfer a delay is on."""

    BEFORE = "before"
    AFTER_LAST_BYTE = "after_last_byte"


@dataclass(frozen=True, slots=True, kw_only=True)
class FlipBit:
    """One bit arrives inverted: bit `bit` of all that arrives, modulo its size; regions in the request's order."""

    bit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tear:
    """The first `fraction` of the bytes keep what the staging buffer held before, as in reused memory."""

    fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """The transfer fails after the first `fraction` of the bytes."""

    fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Delay:
    """All is well but late. A delay after the last byte is what a lease may end in."""

    duration: Duration
    when: When = When.BEFORE


@dataclass(frozen=True, slots=True, kw_only=True)
class LateWrite:
    """All is well; but `duration` after its answer the writer writes again, and all of it is `CANARY`."""

    duration: Duration


Fault = FlipBit | Tear | Drop | Delay
WriteFault = Fault | LateWrite


class FaultKind(enum.StrEnum):
    """What `draw_faults` may draw."""

    FLIP_BIT = "flip_bit"
    TEAR = "tear"
    DROP = "drop"
    DELAY = "delay"


def draw_faults(chance: Clock, kinds: Sequence[FaultKind], *, one_in: int, delay: Duration) -> Iterator[Fault | None]:
    """An endless schedule: on average one read in `one_in` gets a fault of one of `kinds`.

    The same clock seed (`ManualClock(seed)`) gives the same schedule.
    """
    while True:
        number = int(chance.token(), 16)
        number, strikes = divmod(number, one_in)
        number, kind = divmod(number, len(kinds))
        yield None if strikes else _fault(kinds[kind], number, delay)


def _fault(kind: FaultKind, number: int, delay: Duration) -> Fault:
    fraction = (number % 1024) / 1024
    match kind:
        case FaultKind.FLIP_BIT:
            return FlipBit(bit=number)
        case FaultKind.TEAR:
            return Tear(fraction=max(fraction, 1 / 1024))
        case FaultKind.DROP:
            return Drop(fraction=fraction)
        case FaultKind.DELAY:
            return Delay(duration=delay, when=When.BEFORE if number % 2 else When.AFTER_LAST_BYTE)


class FaultyReader:
    """Wraps a reader; the n-th read gets the n-th entry of `schedule`, and none once that has run out."""

    def __init__(self, inner: Reader, schedule: Iterator[Fault | None], clock: Clock) -> None:
        self._inner = inner
        self._schedule = schedule
        self._clock = clock
        self.injected: list[Fault] = []

    def can_reach(self, endpoint: Endpoint) -> bool:
        return self._inner.can_reach(endpoint)

    async def read(
        self, request: BlockRead, endpoint: Endpoint, into: Mapping[RegionId, memoryview], deadline: Duration
    ) -> ByteCount:
        fault = next(self._schedule, None)
        if fault is not None:
            self.injected.append(fault)
        if isinstance(fault, Delay) and fault.when is When.BEFORE:
            await self._clock.sleep(fault.duration)
        views = [into[region.id].cast("B") for region in request.regions]
        before = [bytes(view) for view in views] if isinstance(fault, Tear | Drop) else []
        size = await self._inner.read(request, endpoint, into, deadline)
        match fault:
            case FlipBit():
                _flip(views, fault.bit % (8 * size))
            case Tear():
                _restore(views, before, 0, max(1, int(size * fault.fraction)))
            case Drop():
                _restore(views, before, int(size * fault.fraction), size)
                raise TransferFailed("connection: closed after a part of the bytes (a drill)", field="connection")
            case Delay(when=When.AFTER_LAST_BYTE):
                await self._clock.sleep(fault.duration)
            case _:
                pass
        return size

    def forget(self, endpoint: Endpoint) -> None:
        self._inner.forget(endpoint)

    async def close(self) -> None:
        await self._inner.close()


class FaultyWriter:
    """Wraps a writer; the n-th write gets the n-th entry of `schedule`, and none once that has run out.

    `late` is what became of late writes: the error that refused each, or None where one went through.
    """

    def __init__(self, inner: Writer, schedule: Iterator[WriteFault | None], clock: Clock) -> None:
        self._inner = inner
        self._schedule = schedule
        self._clock = clock
        self._pending: set[asyncio.Task[None]] = set()
        self.injected: list[WriteFault] = []
        self.late: list[IsthmusError | None] = []

    def can_reach(self, endpoint: Endpoint) -> bool:
        return self._inner.can_reach(endpoint)

    async def write(
        self, request: BlockWrite, endpoint: Endpoint, lender: Lender, blocks: Sequence[int], deadline: Duration
    ) -> ByteCount:
        fault = next(self._schedule, None)
        if fault is None:
            return await self._inner.write(request, endpoint, lender, blocks, deadline)
        self.injected.append(fault)
        if isinstance(fault, Delay) and fault.when is When.BEFORE:
            await self._clock.sleep(fault.duration)
        spoiled = _Spoiled(request, lender, blocks, fault)
        size = await self._inner.write(request, endpoint, spoiled, range(request.num_blocks), deadline)
        if isinstance(fault, Delay) and fault.when is When.AFTER_LAST_BYTE:
            await self._clock.sleep(fault.duration)
        if isinstance(fault, LateWrite):
            task = asyncio.create_task(self._write_late(fault, request, endpoint, spoiled, deadline))
            self._pending.add(task)
            task.add_done_callback(self._pending.discard)
        return size

    async def _write_late(
        self, fault: LateWrite, request: BlockWrite, endpoint: Endpoint, spoiled: "_Spoiled", deadline: Duration
    ) -> None:
        await self._clock.sleep(fault.duration)
        spoiled.fill(CANARY)
        try:
            await self._inner.write(request, endpoint, spoiled, range(request.num_blocks), deadline)
            self.late.append(None)
        except IsthmusError as error:
            self.late.append(error)

    def forget(self, endpoint: Endpoint) -> None:
        self._inner.forget(endpoint)

    async def close(self) -> None:
        pending = tuple(self._pending)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        await self._inner.close()


class _Spoiled(HostLender):
    """A copy of just the blocks that are written, with a fault in it."""

    def __init__(self, request: BlockWrite, lender: Lender, blocks: Sequence[int], fault: WriteFault) -> None:
        regions = request.target.regions
        views = [memoryview(bytearray(region.size_bytes(request.num_blocks))) for region in regions]
        for region, view in zip(regions, views, strict=True):
            lender.copy_out(region.id, range(region.outer), blocks, view)
        size = int(request.size_bytes)
        match fault:
            case FlipBit():
                _flip(views, fault.bit % (8 * size))
            case Tear():
                _restore(views, [bytes(view.nbytes) for view in views], 0, max(1, int(size * fault.fraction)))
        self._left = int(size * fault.fraction) if isinstance(fault, Drop) else None
        super().__init__(regions, request.num_blocks, {r.id: view for r, view in zip(regions, views, strict=True)})

    def fill(self, value: int) -> None:
        """Make all of it one byte value."""
        for region in self.regions:
            self.buffer(region.id)[:] = bytes([value]) * self.buffer(region.id).nbytes

    def copy_out(self, region: RegionId, outer: range, blocks: Sequence[int], into: memoryview) -> None:
        if self._left is not None:
            self._left -= into.nbytes
            if self._left < 0:
                raise TransferFailed("connection: closed after a part of the bytes (a drill)", field="connection")
        super().copy_out(region, outer, blocks, into)


def _flip(views: list[memoryview], bit: int) -> None:
    byte, shift = divmod(bit, 8)
    for view in views:
        if byte < view.nbytes:
            view[byte] ^= 1 << shift
            return
        byte -= view.nbytes


def _restore(views: list[memoryview], before: list[bytes], start: int, stop: int) -> None:
    """Put bytes [start, stop) of all views back to what they were."""
    for view, old in zip(views, before, strict=True):
        low, high = max(0, min(start, view.nbytes)), max(0, min(stop, view.nbytes))
        view[low:high] = old[low:high]
        start, stop = start - view.nbytes, stop - view.nbytes
