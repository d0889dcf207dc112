"""A reader that goes wrong on purpose, for tests and drills. What goes wrong is given, or drawn from a seed.

Above transport, a wrong byte must end in a refused install and never in an answer; this is how that is shown.
"""

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from isthmus.core.clock import Clock
from isthmus.core.errors import TransferFailed
from isthmus.core.ids import RegionId
from isthmus.core.units import ByteCount, Duration
from isthmus.transport.base import BlockRead, Endpoint, Reader

__all__ = ["Delay", "Drop", "Fault", "FaultKind", "FaultyReader", "FlipBit", "Tear", "When", "draw_faults"]


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


Fault = FlipBit | Tear | Drop | Delay


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
