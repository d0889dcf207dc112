"""The only place that touches time and chance.

Instants are monotonic, local, in nanoseconds, and mean nothing to another host. `SystemClock` is for processes;
`ManualClock` is for tests and simulation: time moves when told to, chance comes from a seed.
"""

import asyncio
import heapq
import random
import secrets
import time
from typing import NewType, Protocol

from isthmus.core.units import Duration

__all__ = ["Clock", "Instant", "ManualClock", "SystemClock", "after"]

Instant = NewType("Instant", int)
"""Nanoseconds on one process's monotonic clock."""


def after(start: Instant, duration: Duration) -> Instant:
    """The instant `duration` after `start`."""
    return Instant(start + duration.ns)


class Clock(Protocol):
    """What code may know of time and chance."""

    def now(self) -> Instant:
        """The monotonic instant."""
        ...

    async def sleep(self, duration: Duration) -> None:
        """Return `duration` later."""
        ...

    def token(self) -> str:
        """A new unguessable 128-bit id, 32 hex digits."""
        ...

    def unix_seconds(self) -> int:
        """Wall time, for fields that clients display (`created`) and log lines; never for a decision."""
        ...


class SystemClock:
    """The process's monotonic clock and the operating system's randomness."""

    def now(self) -> Instant:
        return Instant(time.monotonic_ns())

    async def sleep(self, duration: Duration) -> None:
        await asyncio.sleep(duration.seconds)

    def token(self) -> str:
        return secrets.token_hex(16)

    def unix_seconds(self) -> int:
        return int(time.time())


class ManualClock:
    """Time that moves only by `advance`, and chance from a seed: two runs of one seed are the same run."""

    def __init__(self, seed: int = 0) -> None:
        self._now = 0
        self._random = random.Random(seed)
        self._sleepers: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = 0

    def now(self) -> Instant:
        return Instant(self._now)

    async def sleep(self, duration: Duration) -> None:
        self._order += 1
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + duration.ns, self._order, future))
        await future

    def token(self) -> str:
        return f"{self._random.getrandbits(128):032x}"

    def unix_seconds(self) -> int:
        return self._now // 1_000_000_000

    def advance(self, duration: Duration) -> None:
        """Move time on and wake every sleeper whose time has come, in order."""
        self._now += duration.ns
        while self._sleepers and self._sleepers[0][0] <= self._now:
            _, _, future = heapq.heappop(self._sleepers)
            if not future.done():
                future.set_result(None)
