"""The only place that touches time and chance.

Instants are monotonic, local, in nanoseconds, and mean nothing to another host. `SystemClock` is for processes;
`ManualClock` is for tests and simulation: time moves when told to, chance comes from a seed. `Chance` is that alone.
"""

import asyncio
import heapq
import os
import random
import time
from collections.abc import Callable, Sequence
from typing import NewType, Protocol, TypeVar, cast

from isthmus.core.timers import Timers
from isthmus.core.units import Duration

__all__ = ["Chance", "Clock", "Instant", "ManualClock", "SystemClock", "Timer", "after"]

Option = TypeVar("Option")

Instant = NewType("Instant", int)
"""Nanoseconds on one process's monotonic clock."""


def after(start: Instant, duration: Duration) -> Instant:
    """The instant `duration` after `start`."""
    return Instant(start + duration.ns)


class Timer(Protocol):
    """A call that is to come."""

    def cancel(self) -> None:
        """It does not come. Does nothing once it has."""
        ...


class Clock(Protocol):
    """What code may know of time and chance."""

    def now(self) -> Instant:
        """The monotonic instant."""
        ...

    async def sleep(self, duration: Duration) -> None:
        """Return `duration` later."""
        ...

    def call_later(self, duration: Duration, callback: Callable[[], object]) -> Timer:
        """Call `callback` on the event loop `duration` later, unless cancelled: a deadline without a task."""
        ...

    def token(self) -> str:
        """A new unguessable 128-bit id, 32 hex digits."""
        ...

    def unix_seconds(self) -> int:
        """Wall time, for fields that clients display (`created`) and log lines; never for a decision."""
        ...


class SystemClock:
    """The process's monotonic clock and the operating system's randomness."""

    now = staticmethod(cast("Callable[[], Instant]", time.monotonic_ns))

    def __init__(self) -> None:
        self._timers: Timers | None = None

    async def sleep(self, duration: Duration) -> None:
        await asyncio.sleep(duration.seconds)

    def call_later(self, duration: Duration, callback: Callable[[], object]) -> Timer:
        timers, loop = self._timers, asyncio.get_running_loop()
        if timers is None or timers.loop is not loop:
            timers = self._timers = Timers(loop)
        return timers.add(duration.ns, callback)

    def token(self) -> str:
        return os.urandom(16).hex()

    def unix_seconds(self) -> int:
        return int(time.time())


class ManualClock:
    """Time that moves only by `advance`, and chance from a seed: two runs of one seed are the same run."""

    def __init__(self, seed: int = 0) -> None:
        self._now = 0
        self._random = random.Random(seed)
        self._timers: list[tuple[int, int, _ManualTimer]] = []
        self._order = 0

    def now(self) -> Instant:
        return Instant(self._now)

    async def sleep(self, duration: Duration) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.call_later(duration, lambda: None if woken.done() else woken.set_result(None))
        await woken

    def call_later(self, duration: Duration, callback: Callable[[], object]) -> Timer:
        self._order += 1
        timer = _ManualTimer(callback)
        heapq.heappush(self._timers, (self._now + duration.ns, self._order, timer))
        return timer

    def token(self) -> str:
        return f"{self._random.getrandbits(128):032x}"

    def unix_seconds(self) -> int:
        return self._now // 1_000_000_000

    def advance(self, duration: Duration) -> None:
        """Move time on and make every call whose time has come, in order."""
        self._now += duration.ns
        while self._timers and self._timers[0][0] <= self._now:
            heapq.heappop(self._timers)[2].ring()


class _ManualTimer:
    def __init__(self, callback: Callable[[], object]) -> None:
        self._callback: Callable[[], object] | None = callback

    def ring(self) -> None:
        if self._callback is not None:
            self._callback()

    def cancel(self) -> None:
        self._callback = None


class Chance:
    """Chance from a seed, and nothing else: whoever draws the same in the same order gets the same."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def share(self) -> float:
        """From 0 up to, and without, 1."""
        return self._random.random()

    def happens(self, share: float) -> bool:
        """Yes, in this share of the cases."""
        return self._random.random() < share

    def below(self, count: int) -> int:
        """One of 0 … count - 1."""
        return int(self._random.random() * count)

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self._random.random()

    def pick(self, options: Sequence[Option]) -> Option:
        return options[int(self._random.random() * len(options))]

    def token(self) -> str:
        """128 bits as 32 hex digits, like `Clock.token`."""
        return f"{self._random.getrandbits(128):032x}"

    def fork(self) -> "Chance":
        """Another stream, which this one's later draws do not disturb."""
        return Chance(self._random.getrandbits(64))
