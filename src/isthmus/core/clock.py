"""The only place that touches time and chance.

Instants are monotonic, local, in nanoseconds, and mean nothing to another host. `SystemClock` is for processes;
`ManualClock` is for tests and simulation: time moves when told to, chance comes from a seed. `Chance` is that alone.
"""

import asyncio
import heapq
import random
import secrets
import time
from collections.abc import Sequence
from typing import NewType, Protocol, TypeVar

from isthmus.core.units import Duration

__all__ = ["Chance", "Clock", "Instant", "ManualClock", "SystemClock", "after"]

Option = TypeVar("Option")

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
